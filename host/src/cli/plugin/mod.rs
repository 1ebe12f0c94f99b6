//! `plastic-host plugin`: everything about plugins that needs no model. One file a verb.

mod build;
mod inspect;
mod serve;

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
    /// Runs a native library for another process of this program (--isolate)
    #[command(hide = true)]
    Serve(serve::ServeArgs),
}

/// Runs the verb.
pub fn run(args: &PluginArgs, g: &Global) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Build(a) => build::run(a, g),
        Verb::Inspect(a) => inspect::run(a, g),
        Verb::Serve(a) => serve::run(a),
    }
}

/// A size for people.
fn kib(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}
