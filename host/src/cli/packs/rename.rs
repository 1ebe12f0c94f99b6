//! `plastic-host packs rename`.

use super::Global;
use crate::pack::Store;
use std::process::ExitCode;

/// Options of `packs rename`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs rename draft shakespeare

A pack in use stays in use under its new name. Where a directory was renamed by hand, `packs rename NAME NAME` puts
its name into its metadata.")]
pub struct RenameArgs {
    /// Its name now
    #[arg(value_name = "OLD")]
    from: String,
    /// Its name from now on
    #[arg(value_name = "NEW")]
    to: String,
}

/// Gives a pack another name.
///
/// # Errors
/// When it is not there, the new name is taken or none, or the files cannot be written.
pub fn run(args: &RenameArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    store.readable()?;
    store.rename(&args.from, &args.to)?;
    let dir = store.dir(&args.to)?;
    match g.json {
        true => say!("{}", serde_json::json!({ "from": args.from, "to": args.to, "directory": dir })),
        false if g.quiet => {}
        false if args.from == args.to => say!("pack {} says its own name now ({})", args.to, dir.display()),
        false => say!("pack {} is now {} ({})", args.from, args.to, dir.display()),
    }
    Ok(ExitCode::SUCCESS)
}
