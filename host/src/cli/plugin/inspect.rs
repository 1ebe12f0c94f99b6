//! `plastic-host plugin inspect`.

use super::kib;
use crate::cli::{Global, locate, rules::RuleArgs};
use crate::plugin::contract::{Info, Value, attribute};
use crate::plugin::options::{OptionSpec, specs};
use crate::plugin::signature::{self, State};
use crate::plugin::{API_VERSION, Artifact, Loader};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `plugin inspect`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host plugin inspect plugins/energy.wasm
  plastic-host plugin inspect energy --json")]
pub struct InspectArgs {
    /// The plugin: a file, or a name on the plugin path
    file: PathBuf,
    #[command(flatten)]
    rules: RuleArgs,
}

/// Runs the verb.
pub fn run(args: &InspectArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let loader = args.rules.loader()?;
    let file = locate::plugin(&args.file, Some(&loader))?;
    let mut report = Report::of(Artifact::read(&file, loader.limits())?, &loader)?;
    let keys = args.rules.trust.known_keys();
    report.signature = signature::check_file(&file, &report.artifact.sha256, loader.limits().file_bytes, &keys);
    match g.json {
        true => say!("{}", report.json()),
        false => say!("{}", report.text().trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}

/// What a file says about itself, read, and what the plugin in it says, asked.
pub(super) struct Report {
    pub(super) artifact: Artifact,
    pub(super) info: Info,
    options: Vec<OptionSpec>,
    signature: State,
}

impl Report {
    pub(super) fn of(artifact: Artifact, loader: &Loader) -> anyhow::Result<Report> {
        let info = locate::describe(&artifact, loader)?;
        let options = specs(&info);
        Ok(Report { artifact, info, options, signature: State::Unsigned })
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let (a, i) = (&self.artifact, &self.info);
        serde_json::json!({
            "file": a.path,
            "bytes": a.size,
            "sha256": a.sha256,
            "signature": self.signature,
            "kind": a.kind,
            "name": i.name,
            "version": i.version,
            "summary": i.summary,
            "api": a.api,
            "host_api": API_VERSION,
            "imports": a.imports,
            "phases": i.phases,
            "needs": i.needs,
            "attributes": i.attributes,
            "options": self.options,
        })
    }

    fn text(&self) -> String {
        let (a, i) = (&self.artifact, &self.info);
        let mut out = format!("{} {}, {}\n", i.name, i.version, a.kind);
        if !i.summary.is_empty() {
            out += &format!("{}\n", i.summary);
        }
        let mut line = |name: &str, value: String| {
            if !value.is_empty() {
                out += &format!("  {name:<8} {value}\n");
            }
        };
        line("file", format!("{} ({})", a.path.display(), kib(a.size)));
        line("sha256", a.sha256.clone());
        line("signed", self.signature.to_string());
        line("API", format!("plastic:rank {} (this host speaks {API_VERSION})", a.api));
        line("imports", a.imports.join(", "));
        line("phases", i.phases.join(", "));
        line("needs", i.needs.join(", "));
        if let Some(Value::Texts(names)) = attribute(&i.attributes, "metrics") {
            line("reports", names.join(", "));
        }
        if attribute(&i.attributes, "revises") == Some(&Value::Flag(true)) {
            line("revises", "the plan of a policy before it, in a pipeline".into());
        }
        if self.options.is_empty() {
            line("options", "none".into());
            return out;
        }
        line("options", " ".into());
        let value = |o: &OptionSpec| o.default.as_str().map_or_else(|| o.default.to_string(), str::to_owned);
        let width = |f: &dyn Fn(&OptionSpec) -> String| self.options.iter().map(|o| f(o).len()).max().unwrap_or(0);
        let (names, types) = (width(&|o| format!("{}={}", o.name, value(o))), width(&OptionSpec::type_text));
        for o in &self.options {
            let default = format!("{}={}", o.name, value(o));
            out += &format!("    {default:<names$}  {:<types$}  {}\n", o.type_text(), o.description);
        }
        out
    }
}
