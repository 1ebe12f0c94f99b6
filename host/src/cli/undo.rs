//! `plastic-host undo`.

use super::Global;
use std::process::ExitCode;

/// Options of undo.
#[derive(clap::Args, Debug)]
pub struct UndoArgs {}

/// Runs the verb.
pub fn run(_args: &UndoArgs, _g: &Global) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
