//! `plastic-host packs rerank`.

use super::Global;
use super::named::OnePack;
use super::smaller::{GoalArgs, NewPack, finish};
use crate::cli::rules::RuleArgs;
use crate::cli::{locate, run::set_options, session::options_for};
use crate::mlx;
use crate::pack::rerank::{self, Goal};
use crate::pack::{Store, consult, ranks};
use crate::plastic::config::Choice;
use crate::plastic::policies::{Policies, Seat};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `packs rerank`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs rerank plays --out-name plays-4 --rank 4
  plastic-host packs rerank plays --out-name plays-half --total-rank 240
  plastic-host packs rerank plays --out-name plays-small --budget-mb 0.5 --slices
  plastic-host packs rerank plays --out-name plays-map --rank-map q:4,k:2
  plastic-host packs rerank plays --out-name plays-p --policy energy --policy-opt metric=plain --budget-params 300000

Each update is cut to its largest singular values; what it costs is told as the Frobenius norm of what is missing.
A policy is shown the singular values of the updates, in phase compress.")]
pub struct RerankArgs {
    #[command(flatten)]
    pack: OnePack,
    #[command(flatten)]
    new: NewPack,
    #[command(flatten)]
    goal: GoalArgs,
    /// Rank policy that decides: a file, or a name on the plugin path; given again, the later one revises the plan
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["rank", "total_rank", "budget_mb", "rank_map"])]
    policy: Vec<PathBuf>,
    /// Option of a policy, `name=value`
    #[arg(long, value_name = "NAME=VALUE", requires = "policy")]
    policy_opt: Vec<String>,
    /// Parameters that a policy may keep [default: all]
    #[arg(long, value_name = "N", requires = "policy")]
    budget_params: Option<u64>,
    /// Seed told to a policy
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    rules: RuleArgs,
}

/// Makes a pack of lower rank.
///
/// # Errors
/// When the pack cannot be read, a policy fails or breaks a rule, or the new pack cannot be written.
pub fn run(args: &RerankArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    if !args.goal.usable() {
        return Ok(ExitCode::from(2));
    }
    let pack = store.read(args.pack.get())?;
    let goal = args.goal.get(&ranks::of_pack(&pack))?;
    if goal.is_none() && args.policy.is_empty() {
        note!("error: how much is to be kept? name --rank, --total-rank, --budget-mb, --rank-map or --policy");
        return Ok(ExitCode::from(2));
    }
    store.free(&args.new.out_name, args.new.force)?;
    mlx::device::init()?;
    let sources = rerank::sources(&pack)?;
    let mut made = serde_json::json!({ "reranked_from": pack.name() });
    let goal = match goal {
        Some(goal) => goal,
        None => {
            let mut policies = policies(args)?;
            let decision = consult::ask(&mut policies, &sources, args.budget_params, args.seed)?;
            let names: Vec<String> = policies.line.iter().map(|s| s.name().to_owned()).collect();
            if !g.json && !g.quiet {
                say!(
                    "{}: keeps {} of {} parameters in {} actions{}",
                    names.join(", "),
                    decision.parameters,
                    decision.budget,
                    decision.plan.actions.len(),
                    if decision.plan.threshold.is_some() { " and a threshold" } else { "" }
                );
            }
            made["policy"] = serde_json::json!(names);
            made["budget_parameters"] = serde_json::json!(decision.budget);
            made["parameters"] = serde_json::json!(decision.parameters);
            decision.goal
        }
    };
    made["goal"] = serde_json::json!(described(&goal));
    let result = rerank::rerank(&pack, &args.new.out_name, &sources, &goal)?;
    finish(result, &args.new, made, store, g)?;
    Ok(ExitCode::SUCCESS)
}

fn policies(args: &RerankArgs) -> anyhow::Result<Policies> {
    let loader = args.rules.loader()?;
    let mut choices: Vec<Choice> = args.policy.iter().map(Choice::new).collect();
    set_options("--policy-opt", &args.policy_opt, &mut choices.iter_mut().collect::<Vec<_>>())?;
    let mut line = Vec::with_capacity(choices.len());
    for choice in &choices {
        let mut policy = loader.policy(&locate::plugin(&choice.file, Some(&loader))?)?;
        policy.configure(&options_for(policy.info(), &choice.options)?)?;
        line.push(Seat::new(policy));
    }
    let policies = Policies { line, shadows: Vec::new(), fallback: None };
    policies.check_order().map_err(anyhow::Error::msg)?;
    Ok(policies)
}

/// A goal in a few words, for the metadata.
fn described(goal: &Goal) -> String {
    match goal {
        Goal::Everything => "everything".into(),
        Goal::Each(n) => format!("rank {n}"),
        Goal::Components(n) => format!("total rank {n}"),
        Goal::Bytes(n) => format!("{n} bytes"),
        Goal::Map(_) => "rank map".into(),
        Goal::These(_) => "policy".into(),
    }
}
