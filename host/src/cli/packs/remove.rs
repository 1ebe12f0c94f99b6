//! `plastic-host packs remove`.

use super::Global;
use crate::pack::Store;
use std::process::ExitCode;

/// Options of `packs remove`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs remove draft old          deletes two packs, and takes them out of use
  plastic-host packs remove                    takes all packs out of use and deletes nothing")]
pub struct RemoveArgs {
    /// Packs to delete; without one, all packs are taken out of use and none is deleted
    #[arg(value_name = "PACK")]
    chosen: Vec<String>,
    /// A pack to delete
    #[arg(long = "name", value_name = "PACK")]
    names: Vec<String>,
}

/// Deletes packs, or takes all out of use.
///
/// # Errors
/// When one is not there (then none is deleted) or cannot be deleted.
pub fn run(args: &RemoveArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let mut names: Vec<&str> = args.chosen.iter().chain(&args.names).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    // All names are checked before the first pack goes.
    for name in &names {
        store.there(name)?;
        store.free(name, true)?;
    }
    let mut unused = Vec::new();
    if names.is_empty() {
        unused = store.deactivate(None)?;
    }
    for name in &names {
        unused.extend(store.deactivate(Some(name))?);
        store.remove(name)?;
    }
    if g.json {
        say!("{}", serde_json::json!({ "deleted": names, "out_of_use": unused }));
        return Ok(ExitCode::SUCCESS);
    }
    if g.quiet {
        return Ok(ExitCode::SUCCESS);
    }
    for name in &names {
        let was = if unused.iter().any(|u| u == name) { "; it was in use" } else { "" };
        say!("deleted pack {name}{was}");
    }
    if names.is_empty() {
        match unused.is_empty() {
            true => say!("no pack was in use"),
            false => say!("out of use: {} (still in {})", unused.join(", "), store.root().display()),
        }
    }
    Ok(ExitCode::SUCCESS)
}
