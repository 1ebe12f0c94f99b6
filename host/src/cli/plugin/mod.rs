//! `plastic-host plugin`: everything about plugins that needs no model. One file a verb.

mod bench;
mod build;
mod check;
mod inspect;

use super::Global;
use crate::plugin::{Artifact, Kind, Loader};
use std::path::Path;
use std::process::ExitCode;

/// Options of `plugin`.
#[derive(clap::Args, Debug)]
pub struct PluginArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Measure how fast a plugin loads and answers
    Bench(bench::BenchArgs),
    /// Build a plugin's project into a component
    Build(build::BuildArgs),
    /// Check a plugin against the contract, on made-up models
    Check(check::CheckArgs),
    /// Show what a plugin is, what it needs and which options it takes
    Inspect(inspect::InspectArgs),
}

/// Runs the verb.
pub fn run(args: &PluginArgs, g: &Global) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Bench(a) => bench::run(a, g),
        Verb::Build(a) => build::run(a, g),
        Verb::Check(a) => check::run(a, g),
        Verb::Inspect(a) => inspect::run(a, g),
    }
}

/// A size for people.
fn kib(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}

/// Which kind of plugin a file is. Files that do not say so (native libraries) are loaded to see.
fn kind_of(loader: &Loader, file: &Path) -> anyhow::Result<Kind> {
    let unread = match Artifact::read(file, loader.limits()) {
        Ok(artifact) => return Ok(artifact.kind),
        Err(fault) => fault,
    };
    match () {
        () if loader.policy(file).is_ok() => Ok(Kind::Policy),
        () if loader.evaluator(file).is_ok() => Ok(Kind::Evaluator),
        () => Err(unread.into()),
    }
}
