//! `plastic-host doctor`.

use super::Global;
use std::process::ExitCode;

/// Options of doctor.
#[derive(clap::Args, Debug)]
pub struct DoctorArgs {}

/// Runs the verb.
pub fn run(_args: &DoctorArgs, _g: &Global) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
