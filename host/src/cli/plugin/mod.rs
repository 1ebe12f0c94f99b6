//! `plastic-host plugin`: everything about plugins that needs no model. One file a verb.

mod bench;
mod build;
mod check;
mod compile;
mod inspect;
mod list;
mod lock;
mod new;
mod record;
mod replay;
mod serve;
mod sign;
mod verify;

use super::Global;
use crate::plugin::{Artifact, Kind, Loader};
use anyhow::Context;
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
    /// Begin a plugin: a project that builds and has a test
    New(new::NewArgs),
    /// Measure how fast a plugin loads and answers
    Bench(bench::BenchArgs),
    /// Build a plugin's project into a component
    Build(build::BuildArgs),
    /// Check a plugin against the contract, on made-up models
    Check(check::CheckArgs),
    /// Show what a plugin is, what it needs and which options it takes
    Inspect(inspect::InspectArgs),
    /// Keep what the policies of a run saw, as one file
    Record(record::RecordArgs),
    /// Put a policy to work on a recording, without a model
    Replay(replay::ReplayArgs),
    /// List the plugins on the plugin path
    List(list::ListArgs),
    /// Write down, by content, which plugins a project uses
    Lock(lock::LockArgs),
    /// Make a pair of keys to sign plugins with
    Keygen(sign::KeygenArgs),
    /// Sign a plugin, in minisign's format
    Sign(sign::SignArgs),
    /// Check the signature of a plugin
    Verify(verify::VerifyArgs),
    /// Compile a plugin under limits, for the host itself
    #[command(hide = true)]
    Compile(compile::CompileArgs),
    /// Runs a native library for another process of this program (--isolate)
    #[command(hide = true)]
    Serve(serve::ServeArgs),
}

/// Runs the verb.
pub fn run(args: &PluginArgs, g: &Global) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::New(a) => new::run(a, g),
        Verb::Bench(a) => bench::run(a, g),
        Verb::Build(a) => build::run(a, g),
        Verb::Check(a) => check::run(a, g),
        Verb::Inspect(a) => inspect::run(a, g),
        Verb::Record(a) => record::run(a, g),
        Verb::Replay(a) => replay::run(a, g),
        Verb::List(a) => list::run(a, g),
        Verb::Lock(a) => lock::run(a, g),
        Verb::Keygen(a) => sign::keygen(a, g),
        Verb::Sign(a) => sign::sign(a, g),
        Verb::Verify(a) => verify::run(a, g),
        Verb::Compile(a) => Ok(compile::run(a)),
        Verb::Serve(a) => serve::run(a),
    }
}

/// A size for people.
fn kib(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}

/// Size and SHA-256 of a file of at most `most` bytes; nothing else is done with it.
fn file_digest(path: &Path, most: u64) -> anyhow::Result<(u64, String)> {
    let bytes = crate::atomic::read_bounded(path, most).with_context(|| format!("reading {}", path.display()))?;
    Ok((bytes.len() as u64, crate::model::hash::sha256(&bytes)))
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
