//! `plastic-host completions`.

use super::Global;
use clap::CommandFactory;
use std::io::Write;
use std::process::ExitCode;

/// Options of `completions`.
#[derive(clap::Args, Debug)]
pub struct CompletionsArgs {
    /// Shell to complete for
    pub shell: clap_complete::Shell,
}

/// Prints the completion script of one shell.
pub fn run(args: &CompletionsArgs, _g: &Global) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "plastic-host", &mut script);
    if let Err(e) = std::io::stdout().write_all(&script) {
        super::ui::keep(e);
    }
    Ok(ExitCode::SUCCESS)
}
