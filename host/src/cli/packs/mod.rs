//! `plastic-host packs …`: one file a verb; parsing and printing only.

mod bakeoff;
mod create;
mod eval;
mod eval_batch;
mod judging;
mod list;
mod resume;
mod route;
mod subject;
mod training;

use super::{Global, locate, show, table, ui};
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
    /// Compare a base with and without a pack: perplexity, speed, memory, guardrails
    Eval(Box<eval::EvalArgs>),
    /// Compare a base with and without a pack across domains and batch sizes
    EvalBatch(Box<eval_batch::EvalBatchArgs>),
    /// Answer requests, each with the pack of its domain awake
    Route(route::RouteArgs),
    /// Compare ways to train a pack: arms by seeds, equal budgets, held-out text
    Bakeoff(bakeoff::BakeoffArgs),
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
        Verb::Eval(a) => eval::run(a, &store, g),
        Verb::EvalBatch(a) => eval_batch::run(a, &store, g),
        Verb::Route(a) => route::run(a, &store, g),
        Verb::Bakeoff(a) => bakeoff::run(a, g),
        Verb::List(a) => list::run(a, &store, g),
    }
}
