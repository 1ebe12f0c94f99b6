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
/// When one is not there, is being written or cannot be deleted; none is deleted then, and all stay in use.
pub fn run(args: &RemoveArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let mut names: Vec<&str> = args.chosen.iter().chain(&args.names).map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    store.readable()?;
    let unused = match names.is_empty() {
        true => store.deactivate(None)?,
        false => store.remove(&names)?,
    };
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
            false => {
                let named = |n: &String| if store.has(n) { n.clone() } else { format!("{n} (not there any more)") };
                let all = unused.iter().map(named).collect::<Vec<_>>().join(", ");
                say!("out of use, and not deleted: {all}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
