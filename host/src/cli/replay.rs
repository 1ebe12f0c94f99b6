//! `plastic-host replay`.

use super::Global;
use std::process::ExitCode;

/// Options of replay.
#[derive(clap::Args, Debug)]
pub struct ReplayArgs {}

/// Runs the verb.
pub fn run(_args: &ReplayArgs, _g: &Global) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
