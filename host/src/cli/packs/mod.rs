//! `plastic-host packs …`: one file a verb; parsing and printing only.

mod apply;
mod create;
mod export;
mod fused;
mod import;
mod list;
mod resume;
mod training;
pub mod using;

use super::{Global, base, locate, show, table, ui};
use crate::pack::Store;
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `packs`.
#[derive(clap::Args, Debug)]
pub struct PacksArgs {
    /// Directory with the packs [default: $PLASTIC_PACKS, else packs]
    #[arg(long, global = true, value_name = "DIR")]
    packs: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Train a pack on a text
    Create(Box<create::CreateArgs>),
    /// Go on with an unfinished training
    Resume(resume::ResumeArgs),
    /// Check packs against a base, show what they change, and use them there
    Apply(apply::ApplyArgs),
    /// Write a pack in the adapter layout of mlx-lm or PEFT
    Export(export::ExportArgs),
    /// Make a pack of an adapter of mlx-lm or PEFT
    Import(import::ImportArgs),
    /// List the packs: size, ranks, base, age
    List(list::ListArgs),
}

/// Runs a verb.
///
/// # Errors
/// Whatever the verb reports.
pub fn run(args: &PacksArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let store = Store::new(args.packs.clone());
    match &args.verb {
        Verb::Create(a) => create::run(a, &store, g),
        Verb::Resume(a) => resume::run(a, &store, g),
        Verb::Apply(a) => apply::run(a, &store, g),
        Verb::Export(a) => export::run(a, &store, g),
        Verb::Import(a) => import::run(a, &store, g),
        Verb::List(a) => list::run(a, &store, g),
    }
}
