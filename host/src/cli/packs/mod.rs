//! `plastic-host packs …`: one file a verb; parsing and printing only.

mod ablate;
mod apply;
mod bakeoff;
mod create;
mod eval;
mod eval_batch;
mod export;
mod fused;
mod import;
mod inspect;
mod judging;
mod ledger;
mod list;
mod merge;
mod named;
mod output;
mod rank_map;
mod remove;
mod rename;
mod rerank;
mod resume;
mod route;
mod smaller;
mod subject;
mod training;
pub mod using;
mod verify;

use super::{Global, base, locate, show, table, ui};
use crate::pack::{Error, Store};
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
    /// Show a pack: metadata, and rank, size and spectrum of each update; as a picture with --svg
    Inspect(inspect::InspectArgs),
    /// What the ranks of a pack are worth, and what two packs have in common
    #[command(alias = "rank-ledger")]
    Ledger(ledger::LedgerArgs),
    /// Cut a pack to lower rank, by a budget, a map or a policy, and say what it costs
    Rerank(Box<rerank::RerankArgs>),
    /// Make one pack of several, exactly or cut
    Merge(merge::MergeArgs),
    /// Maps of ranks: extract, check, bring to a budget, random and shuffled controls
    RankMap(Box<rank_map::RankMapArgs>),
    /// What each part of a pack is worth: by norm, or by the loss without it
    #[command(alias = "ablation-report")]
    Ablate(ablate::AblateArgs),
    /// Check packs: files, schema, numbers; with --base also hash and geometry
    Verify(verify::VerifyArgs),
    /// Give a pack another name
    Rename(rename::RenameArgs),
    /// Delete packs; without a name, take all packs out of use
    Remove(remove::RemoveArgs),
}

/// Runs a verb.
///
/// # Errors
/// Whatever the verb reports.
pub fn run(args: &PacksArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let store = Store::new(args.packs.clone());
    let result = match &args.verb {
        Verb::Create(a) => create::run(a, &store, g),
        Verb::Resume(a) => resume::run(a, &store, g),
        Verb::Apply(a) => apply::run(a, &store, g),
        Verb::Export(a) => export::run(a, &store, g),
        Verb::Import(a) => import::run(a, &store, g),
        Verb::Eval(a) => eval::run(a, &store, g),
        Verb::EvalBatch(a) => eval_batch::run(a, &store, g),
        Verb::Route(a) => route::run(a, &store, g),
        Verb::Bakeoff(a) => bakeoff::run(a, &store, g),
        Verb::List(a) => list::run(a, &store, g),
        Verb::Inspect(a) => inspect::run(a, &store, g),
        Verb::Ledger(a) => ledger::run(a, &store, g),
        Verb::Rerank(a) => rerank::run(a, &store, g),
        Verb::Merge(a) => merge::run(a, &store, g),
        Verb::RankMap(a) => rank_map::run(a, &store, g),
        Verb::Ablate(a) => ablate::run(a, &store, g),
        Verb::Verify(a) => verify::run(a, &store, g),
        Verb::Rename(a) => rename::run(a, &store, g),
        Verb::Remove(a) => remove::run(a, &store, g),
    };
    match result {
        // A value that no flag can have is wrong usage, wherever it is found.
        Err(e) if e.chain().any(|c| matches!(c.downcast_ref(), Some(Error::Usage(_)))) => {
            ui::fail(&e, g);
            Ok(ExitCode::from(2))
        }
        result => result,
    }
}

/// When a pack was made; `SOURCE_DATE_EPOCH` fixes it, so that two packs can be compared byte by byte.
fn time() -> String {
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|s| s.parse::<u64>().ok());
    fixed.map_or_else(crate::plastic::step::now, crate::plastic::step::utc)
}

/// Whether a tolerance is a share; says so where it is none.
fn rank_tol_is_share(tol: f64) -> bool {
    let ok = (0.0..1.0).contains(&tol);
    if !ok {
        note!("error: --rank-tol is a share from 0 up to 1, such as 1e-5");
    }
    ok
}

/// A number in few characters, small ones with an exponent.
fn figure(v: f64) -> String {
    match v.abs() {
        0.0 => "0".into(),
        a if a >= 1000.0 => format!("{v:.0}"),
        a if a >= 0.001 => {
            let digits = if a >= 100.0 { 1 } else { 3 + usize::from(a < 1.0) };
            let text = format!("{v:.digits$}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        _ => format!("{v:.1e}"),
    }
}
