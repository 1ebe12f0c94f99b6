//! `plastic-host packs merge`.

use super::Global;
use super::smaller::{GoalArgs, NewPack, finish};
use crate::mlx;
use crate::pack::rerank::{self, Goal};
use crate::pack::{Pack, Store, Weighted, merge, ranks};
use anyhow::Context;
use std::process::ExitCode;

/// Options of `packs merge`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs merge plays law --out-name both
  plastic-host packs merge plays:0.7 law:0.3 --out-name mix --rank 8
  plastic-host packs merge plays law --out-name small --total-rank 400 --slices
  plastic-host packs merge a b c --out-name abc --profile heavy

Without a goal the sum is exact: ranks add up, and float16 rounds only where weights or scales differ.")]
pub struct MergeArgs {
    /// Packs, each with a weight [default weight: 1]
    #[arg(value_name = "PACK[:WEIGHT]", required = true)]
    terms: Vec<Weighted>,
    #[command(flatten)]
    new: NewPack,
    #[command(flatten)]
    goal: GoalArgs,
    /// Components side by side, nothing cut (the default)
    #[arg(long, conflicts_with_all = ["rank", "total_rank", "budget_mb", "rank_map"])]
    exact: bool,
}

/// Makes one pack of several.
///
/// # Errors
/// When a pack cannot be read, the packs do not go together, or the new one is too large or cannot be written.
pub fn run(args: &MergeArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    if !args.goal.usable() {
        return Ok(ExitCode::from(2));
    }
    let packs: Vec<Pack> = args.terms.iter().map(|w| store.read(&w.pack)).collect::<Result<_, _>>()?;
    store.free(&args.new.out_name, args.new.force)?;
    let shapes = packs.iter().flat_map(ranks::of_pack).collect();
    let goal = args.goal.get(&shapes)?.unwrap_or(Goal::Everything);
    mlx::device::init()?;
    let terms: Vec<(&Pack, f32)> = packs.iter().zip(&args.terms).map(|(p, w)| (p, w.weight)).collect();
    let sources = merge::sources(&terms)?;
    // A pack that knows its base, and the largest allowance of all, speak for the sum.
    let known = packs.iter().find(|p| !p.meta.base_hash.is_empty()).or(packs.first()).context("no pack is named")?;
    let mut model = known.clone();
    if packs.iter().any(|p| p.meta.profile == crate::pack::Profile::Heavy) {
        model.meta.profile = crate::pack::Profile::Heavy;
    }
    model.meta.training_config = serde_json::json!({});
    model.meta.training_data = Some(packs.iter().filter_map(|p| p.meta.training_data.clone()).collect());
    model.meta.notes = format!("merged from {}", names(&args.terms));
    let result = rerank::rerank(&model, &args.new.out_name, &sources, &goal)?;
    let made = serde_json::json!({ "merged_from": args.terms });
    finish(result, &args.new, made, store, g)?;
    Ok(ExitCode::SUCCESS)
}

fn names(packs: &[Weighted]) -> String {
    let one = |w: &Weighted| if w.weight == 1.0 { w.pack.clone() } else { format!("{}:{}", w.pack, w.weight) };
    packs.iter().map(one).collect::<Vec<_>>().join(", ")
}
