//! `plastic-host resume`.

use super::{Global, session};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `resume`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  plastic-host resume runs/small\n  plastic-host resume runs/small --steps 6")]
pub struct ResumeArgs {
    /// Directory of the run
    pub run: PathBuf,
    /// Extend the run to so many steps in all
    #[arg(long)]
    pub steps: Option<u32>,
}

/// Goes on where the run was interrupted.
pub fn run(args: &ResumeArgs, g: &Global) -> anyhow::Result<ExitCode> {
    session::resume(&args.run, args.steps, g)
}
