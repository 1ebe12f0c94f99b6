//! `plastic-host model`.

use super::Global;
use std::process::ExitCode;

/// Options of model.
#[derive(clap::Args, Debug)]
pub struct ModelArgs {}

/// Runs the verb.
pub fn run(_args: &ModelArgs, _g: &Global) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
