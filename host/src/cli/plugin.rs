//! `plastic-host plugin`: build and inspect plugins.

use super::Global;
use crate::plugin::contract::Info;
use crate::plugin::options::{OptionSpec, specs};
use crate::plugin::{API_VERSION, Artifact, Kind, Limits, build, load_evaluator, load_policy};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `plugin`.
#[derive(clap::Args, Debug)]
pub struct PluginArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Build a plugin's crate into a component
    #[command(after_help = BUILD_EXAMPLES)]
    Build(BuildArgs),
    /// Show what a plugin is, what it needs and which options it takes
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(InspectArgs),
}

const BUILD_EXAMPLES: &str = "\
Examples:
  plastic-host plugin build examples/top-heavy
  plastic-host plugin build plugins/energy -o plugins/energy.wasm

The crate is built for wasm32-unknown-unknown, with the profile `plugin` where its workspace has one.";

const INSPECT_EXAMPLES: &str = "\
Examples:
  plastic-host plugin inspect plugins/energy.wasm
  plastic-host plugin inspect plugins/energy.wasm --json";

/// Options of `plugin build`.
#[derive(clap::Args, Debug)]
struct BuildArgs {
    /// Directory of the plugin's crate
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where to write the component [default: <package>.wasm in DIR]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Options of `plugin inspect`.
#[derive(clap::Args, Debug)]
struct InspectArgs {
    /// The plugin
    file: PathBuf,
}

/// Runs the verb.
pub fn run(args: &PluginArgs, g: &Global) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Build(a) => {
            let artifact = build::build(&a.dir, a.out.as_deref())?;
            let report = Report::of(artifact)?;
            match g.json {
                true => say!("{}", report.json()),
                false if g.quiet => {}
                false => say!(
                    "{}: {} {} ({}), {}",
                    report.artifact.path.display(),
                    report.info.name,
                    report.info.version,
                    report.artifact.kind,
                    kib(report.artifact.size)
                ),
            }
        }
        Verb::Inspect(a) => {
            let report = Report::of(Artifact::read(&a.file, &Limits::default())?)?;
            match g.json {
                true => say!("{}", report.json()),
                false => print!("{}", report.text()),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a file says about itself, read, and what the plugin in it says, asked.
struct Report {
    artifact: Artifact,
    info: Info,
    options: Vec<OptionSpec>,
}

impl Report {
    fn of(artifact: Artifact) -> anyhow::Result<Report> {
        let limits = Limits::default();
        let path: &Path = &artifact.path;
        let info = match artifact.kind {
            Kind::Policy => load_policy(path, &limits, None)?.info().clone(),
            Kind::Evaluator => load_evaluator(path, &limits, None)?.info().clone(),
        };
        let options = specs(&info);
        Ok(Report { artifact, info, options })
    }

    fn json(&self) -> serde_json::Value {
        let (a, i) = (&self.artifact, &self.info);
        serde_json::json!({
            "file": a.path,
            "bytes": a.size,
            "sha256": a.sha256,
            "kind": a.kind,
            "name": i.name,
            "version": i.version,
            "summary": i.summary,
            "api": a.api,
            "host_api": API_VERSION,
            "imports": a.imports,
            "phases": i.phases,
            "needs": i.needs,
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
        line("API", format!("plastic:rank {} (this host speaks {API_VERSION})", a.api));
        line("imports", a.imports.join(", "));
        line("phases", i.phases.join(", "));
        line("needs", i.needs.join(", "));
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

fn kib(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}
