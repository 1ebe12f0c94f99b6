//! `plastic-host plugin list`.

use super::kib;
use crate::cli::{Global, locate, rules::RuleArgs, table};
use crate::plugin::catalog::{Candidate, Carrier, Catalog};
use crate::plugin::lock::{LOCK_FILE, Lock, LockError, Standing};
use crate::plugin::signature::{self, Key, State};
use crate::plugin::{Artifact, Kind, Loader};
use std::path::Path;
use std::process::ExitCode;

/// Options of `plugin list`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The plugin path, first ones first: the directories of PLASTIC_PLUGIN_PATH, ./plugins, the installation's
plugins, your own (~/.local/share/plastic-host/plugins on Linux). Components are asked what they are, in
their sandbox; native libraries are not loaded. With --locked, --signed or --trust, plugins that would be
refused are not asked, and listed with the reason.

Examples:
  plastic-host plugin list
  plastic-host plugin list --kind evaluator --json
  PLASTIC_PLUGIN_PATH=/srv/plugins plastic-host plugin list --locked")]
pub struct ListArgs {
    /// Only plugins known to be of this kind
    #[arg(long, value_name = "KIND", value_parser = ["policy", "evaluator"])]
    kind: Option<String>,
    /// Ask no plugin: facts of the files only
    #[arg(long)]
    fast: bool,
    #[command(flatten)]
    rules: RuleArgs,
}

/// What is known of one file.
#[derive(serde::Serialize)]
struct Row {
    name: String,
    version: String,
    kind: Option<Kind>,
    api: String,
    carrier: Carrier,
    bytes: Option<u64>,
    sha256: String,
    signature: Option<State>,
    lock: Option<&'static str>,
    file: std::path::PathBuf,
    shadowed_by: Option<std::path::PathBuf>,
    problem: Option<String>,
}

/// Runs the verb.
pub fn run(args: &ListArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let loader = args.rules.loader()?.without_advice();
    let keys = args.rules.trust.known_keys();
    let lock = lock(&loader);
    let catalog = Catalog::scan(&locate::plugin_path());
    let mut rows: Vec<Row> = catalog.files().iter().map(|f| row(f, args.fast, &loader, &keys, lock.as_ref())).collect();
    if let Some(wanted) = &args.kind {
        rows.retain(|r| r.kind.is_some_and(|k| k.to_string() == *wanted));
    }
    if g.json {
        let folders: Vec<_> =
            catalog.folders().iter().map(|f| serde_json::json!({ "path": f.path, "problem": f.problem })).collect();
        say!("{}", serde_json::json!({ "folders": folders, "plugins": rows }));
        return Ok(ExitCode::SUCCESS);
    }
    let folders: Vec<String> = catalog.folders().iter().map(|f| f.path.display().to_string()).collect();
    if rows.is_empty() {
        say!(
            "no plugins in {}",
            if folders.is_empty() { "any directory of the path".into() } else { folders.join(", ") }
        );
    } else {
        say!("{}", text(&rows));
    }
    for row in &rows {
        if let Some(problem) = &row.problem {
            say!("{}", problem_of(&row.file, problem));
        }
    }
    for folder in catalog.folders() {
        if let Some(problem) = &folder.problem {
            say!("{}", problem_of(&folder.path, problem));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The lock in force, else the one in the working directory. Where one that is in force cannot be
/// read, every plugin is refused and listed with that reason.
fn lock(loader: &Loader) -> Option<Lock> {
    match Lock::read(loader.rules().locked.as_deref().unwrap_or(Path::new(LOCK_FILE))) {
        Ok(lock) => Some(lock),
        Err(LockError::Missing { .. }) => None,
        Err(e) => {
            tracing::warn!("{e}");
            None
        }
    }
}

fn row(candidate: &Candidate, fast: bool, loader: &Loader, keys: &[Key], lock: Option<&Lock>) -> Row {
    let mut row = Row {
        name: candidate.name.clone(),
        version: String::new(),
        kind: None,
        api: String::new(),
        carrier: candidate.carrier,
        bytes: None,
        sha256: String::new(),
        signature: None,
        lock: None,
        file: candidate.path.clone(),
        shadowed_by: candidate.shadowed_by.clone(),
        problem: candidate.problem.clone(),
    };
    if row.problem.is_some() {
        return row;
    }
    let (path, most) = (&candidate.path, loader.limits().file_bytes);
    match super::file_digest(path, most) {
        Ok((bytes, sha256)) => {
            row.bytes = Some(bytes);
            row.sha256 = sha256;
        }
        Err(e) => {
            row.problem = Some(e.to_string());
            return row;
        }
    }
    row.signature = Some(signature::check_file(path, &row.sha256, most, keys));
    row.lock = lock.map(|l| match l.judge(path, &row.sha256) {
        Standing::Locked(_) => "locked",
        Standing::Changed(_) => "changed",
        Standing::Absent => "absent",
    });
    let asked = match candidate.carrier {
        Carrier::Native => loader.admit(path, &row.sha256),
        Carrier::Wasm => Artifact::read(path, loader.limits()).and_then(|artifact| {
            row.kind = Some(artifact.kind);
            row.api.clone_from(&artifact.api);
            if fast {
                return loader.admit(path, &artifact.sha256);
            }
            let info = locate::describe(&artifact, loader)?;
            row.name = info.name;
            row.version = info.version;
            Ok(())
        }),
    };
    row.problem = asked.err().map(|fault| format!("{}: {}", fault.class, fault.message));
    row
}

fn text(rows: &[Row]) -> comfy_table::Table {
    let mut table = table::plain(&["name", "version", "kind", "API", "size", "sha256", "state", "file"], &[4]);
    for r in rows {
        let mut state: Vec<String> = Vec::new();
        state.extend(r.problem.as_ref().map(|_| "cannot be used".to_owned()));
        state.extend(r.shadowed_by.as_ref().map(|p| format!("shadowed by {}", p.display())));
        state.extend(r.signature.as_ref().map(ToString::to_string));
        state.extend(r.lock.filter(|l| *l != "absent").map(|l| match l {
            "changed" => "CHANGED since locked".to_owned(),
            other => other.to_owned(),
        }));
        let api = match r.carrier {
            Carrier::Native => "native".into(),
            Carrier::Wasm => r.api.clone(),
        };
        table.add_row([
            r.name.clone(),
            r.version.clone(),
            r.kind.map_or_else(String::new, |k| k.to_string()),
            api,
            r.bytes.map_or_else(String::new, kib),
            r.sha256.chars().take(12).collect(),
            state.join(", "),
            r.file.display().to_string(),
        ]);
    }
    table
}

fn problem_of(path: &Path, problem: &str) -> String {
    format!("{}: {problem}", path.display())
}
