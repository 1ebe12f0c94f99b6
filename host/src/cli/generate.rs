//! `plastic-host generate`.

use super::Global;
use std::process::ExitCode;

/// Options of generate.
#[derive(clap::Args, Debug)]
pub struct GenerateArgs {}

/// Runs the verb.
pub fn run(_args: &GenerateArgs, _g: &Global) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
