//! `plastic-host plugin`.

use super::Global;
use std::process::ExitCode;

/// Options of plugin.
#[derive(clap::Args, Debug)]
pub struct PluginArgs {}

/// Runs the verb.
pub fn run(_args: &PluginArgs, _g: &Global) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
