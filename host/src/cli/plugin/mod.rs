//! `plastic-host plugin`: everything about plugins that needs no model. One file a verb.

mod build;
mod compile;
mod inspect;
mod record;
mod replay;

use super::Global;
use std::process::ExitCode;

/// Options of `plugin`.
#[derive(clap::Args, Debug)]
pub struct PluginArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Build a plugin's project into a component
    Build(build::BuildArgs),
    /// Show what a plugin is, what it needs and which options it takes
    Inspect(inspect::InspectArgs),
    /// Keep what the policies of a run saw, as one file
    Record(record::RecordArgs),
    /// Put a policy to work on a recording, without a model
    Replay(replay::ReplayArgs),
    /// Compile a plugin under limits, for the host itself
    #[command(hide = true)]
    Compile(compile::CompileArgs),
}

/// Runs the verb.
pub fn run(args: &PluginArgs, g: &Global) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Build(a) => build::run(a, g),
        Verb::Inspect(a) => inspect::run(a, g),
        Verb::Record(a) => record::run(a, g),
        Verb::Replay(a) => replay::run(a, g),
        Verb::Compile(a) => Ok(compile::run(a)),
    }
}

/// A size for people.
fn kib(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}
