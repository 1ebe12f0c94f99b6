//! `plastic-host run`.

use super::Global;
use std::process::ExitCode;

/// Options of run.
#[derive(clap::Args, Debug)]
pub struct RunArgs {}

/// Runs the verb.
pub fn run(_args: &RunArgs, _g: &Global) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}

/// Examples shown under --help.
pub const EXAMPLES: &str = "";
