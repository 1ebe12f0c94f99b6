//! `plastic-host plugin lock`.

use crate::atomic::Lock as Alone;
use crate::cli::{Global, locate};
use crate::model::paths;
use crate::plugin::catalog::Carrier;
use crate::plugin::lock::{Entry, LOCK_FILE, Lock, LockError};
use crate::plugin::{Artifact, Loader, Rules};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `plugin lock`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Without plugins and --remove, every plugin of the lock is looked up on the plugin path and taken as it is now.
A run with --locked then loads nothing else.

Examples:
  plastic-host plugin lock energy perplexity
  plastic-host plugin lock ~/Downloads/water-fill.wasm --lock ci.lock
  plastic-host plugin lock --remove water-fill
  plastic-host --policy energy --locked")]
pub struct LockArgs {
    /// Plugins to put in: files, or names on the plugin path
    plugins: Vec<PathBuf>,
    /// Take the plugin of this name out; may be repeated
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
    /// The lock to write
    #[arg(long, value_name = "FILE", default_value = LOCK_FILE)]
    lock: PathBuf,
}

/// Runs the verb.
pub fn run(args: &LockArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let loader = Loader::new(Rules::default(), paths::cache_dir()).without_advice();
    // Two writers must not lose each other's entries.
    let _alone = Alone::of_directory(&args.lock, || {})?;
    let mut lock = match Lock::read(&args.lock) {
        Ok(lock) => lock,
        Err(LockError::Missing { .. }) if !args.plugins.is_empty() => Lock::default(),
        Err(e) => return Err(e.into()),
    };
    let mut changes = Vec::new();
    for name in &args.remove {
        if lock.remove(name) == 0 {
            let there: Vec<&str> = lock.entries().iter().map(|e| e.name.as_str()).collect();
            bail!("{}: holds no plugin {name:?}; it holds {}", args.lock.display(), or_none(&there));
        }
        changes.push(Change { what: "removed", name: name.clone(), entry: None });
    }
    let mut put = |lock: &mut Lock, entry: Entry| {
        let what = match lock.put(entry.clone()) {
            None => "added",
            Some(old) if old == entry => "unchanged",
            Some(_) => "updated",
        };
        changes.push(Change { what, name: entry.name.clone(), entry: Some(entry) });
    };
    for plugin in &args.plugins {
        let entry = entry(&locate::plugin(plugin, Some(&loader))?, &loader)?;
        put(&mut lock, entry);
    }
    if args.plugins.is_empty() && args.remove.is_empty() {
        for old in lock.entries().to_vec() {
            let new = entry(&locate::on_path(old.file.as_ref())?, &loader)?;
            if (&new.name, new.kind) != (&old.name, old.kind) {
                bail!(
                    "{}: calls itself {} now, {} knows it as {}; take {} out with --remove and put this one in by name",
                    old.file,
                    new.name,
                    args.lock.display(),
                    old.name,
                    old.name
                );
            }
            put(&mut lock, new);
        }
    }
    if changes.iter().any(|c| c.what != "unchanged") {
        lock.write(&args.lock)?;
    }
    if g.json {
        let changes: Vec<_> = changes.iter().map(|c| serde_json::json!({ "name": c.name, "change": c.what })).collect();
        say!("{}", serde_json::json!({ "lock": args.lock, "changes": changes, "plugins": lock.entries() }));
        return Ok(ExitCode::SUCCESS);
    }
    for change in &changes {
        match &change.entry {
            None => say!("{} {}", change.what, change.name),
            Some(e) => say!("{:<9} {} {} {}", change.what, e.name, e.version, e.sha256),
        }
    }
    if !g.quiet {
        note!("{} holds {} plugins", args.lock.display(), lock.entries().len());
    }
    Ok(ExitCode::SUCCESS)
}

struct Change {
    what: &'static str,
    name: String,
    entry: Option<Entry>,
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// What the lock says of a file. A native library is not loaded for that: its name is its file's.
pub(super) fn entry(path: &Path, loader: &Loader) -> anyhow::Result<Entry> {
    let file = path.file_name().and_then(|n| n.to_str()).with_context(|| format!("{}: no name", path.display()))?;
    if Carrier::of(path) == Some(Carrier::Native) {
        let (_, sha256) = super::file_digest(path, loader.limits().file_bytes)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Entry { name, version: String::new(), kind: None, sha256, file: file.into() });
    }
    let artifact = Artifact::read(path, loader.limits())?;
    let info = locate::describe(&artifact, loader)?;
    let kind = Some(artifact.kind);
    Ok(Entry { name: info.name, version: info.version, kind, sha256: artifact.sha256, file: file.into() })
}
