//! `plastic-host eval`.

use super::Global;
use std::process::ExitCode;

/// Options of eval.
#[derive(clap::Args, Debug)]
pub struct EvalArgs {}

/// Runs the verb.
pub fn run(_args: &EvalArgs, _g: &Global) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
