//! `plastic-host resume`.

use super::Global;
use std::process::ExitCode;

/// Options of resume.
#[derive(clap::Args, Debug)]
pub struct ResumeArgs {}

/// Runs the verb.
pub fn run(_args: &ResumeArgs, _g: &Global) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
