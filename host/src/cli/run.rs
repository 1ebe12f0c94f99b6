//! `plastic-host` with no verb, or `plastic-host run`: the wake/sleep loop.

use super::awake::AwakeArgs;
use super::packs::using::PackOptions;
use super::rules::RuleArgs;
use super::{Global, session};
use anyhow::Context;
use plastic::config::{Choice, OnFault, RunConfig, pair};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::plastic;
use crate::plastic::bank::Parking;

/// Examples shown under --help.
pub const EXAMPLES: &str = "\
Examples:
  plastic-host --policy plugins/energy.wasm
      Let the energy policy put a tenth of the default model's capacity to sleep, judged by perplexity
  plastic-host --policy plugins/energy.wasm --policy-opt metric=plain
      The same by size of weights alone: the evaluator rejects it and the model stays as it was
  plastic-host --policy plugins/energy.wasm --budget 0.8 --max-loss-increase 0.3 --out runs/small
  plastic-host resume runs/small
  plastic-host eval --state runs/small --data data/eval.jsonl
  plastic-host undo runs/small --to 1";

/// Options of a run. What is not given comes from --config, then from the defaults.
#[derive(clap::Args, Debug, Default)]
#[command(allow_negative_numbers = true)]
pub struct RunArgs {
    /// Rank policy: a file, or a name on the plugin path; given again, the later one revises the plan of the one before (`plastic-host plugin list`)
    #[arg(long, short, value_name = "FILE")]
    pub policy: Vec<PathBuf>,
    /// Option of a policy, `name=value`, or `policy:name=value` where there are several; see `plastic-host plugin inspect FILE`
    #[arg(long, value_name = "NAME=VALUE")]
    pub policy_opt: Vec<String>,
    /// Evaluator that accepts or rejects each change; given again, all are asked and one no is enough [default: perplexity]
    #[arg(long, short, value_name = "FILE")]
    pub evaluator: Vec<PathBuf>,
    /// Option of an evaluator, `name=value`, or `evaluator:name=value` where there are several
    #[arg(long, value_name = "NAME=VALUE")]
    pub evaluator_opt: Vec<String>,
    /// Policy that is asked at each step and not obeyed; what it would have done is shown and kept
    #[arg(long, value_name = "FILE")]
    pub shadow: Vec<PathBuf>,
    /// What happens where a policy fails: keep (asked again at the next step), stop, or fallback=FILE [default: keep]
    #[arg(long, value_name = "WHAT")]
    pub on_fault: Option<String>,
    /// Take in changed plugin files between steps
    #[arg(long)]
    pub watch: bool,
    /// Statistic to keep beside those the policies need, such as spectrum:plain, for a later `replay --policy`
    #[arg(long, value_name = "NAME")]
    pub record: Vec<String>,
    /// Base model: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short)]
    pub base: Option<String>,
    /// Evaluation text: a .jsonl or .txt file, or a data set of the hub as org/name[@revision][:file] [default: data/eval.jsonl]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Calibration text, apart from the evaluation text; named likewise [default: data/calibration.jsonl]
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    /// Only slices whose name matches, such as 'model.layers.1?.mlp.*'; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub layers: Vec<String>,
    /// Steps at most [default: 3]
    #[arg(long)]
    pub steps: Option<u32>,
    /// Share of the slices' parameters that may stay awake [default: 0.9]
    #[arg(long, value_name = "SHARE")]
    pub budget: Option<f64>,
    /// Rise of the loss over the base that the evaluator accepts, nats per token [default: the evaluator's]
    #[arg(long, value_name = "NATS")]
    pub max_loss_increase: Option<f64>,
    /// Seed of every random draw [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Directory of the run: journal, options, parked components [default: runs/<time>-<policy>]
    #[arg(long, short, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Options from a TOML file, such as the config.toml of an earlier run
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How sleeping components are kept [default: 8bit]
    #[arg(long, value_enum)]
    pub parking: Option<Parking>,
    /// Tokens of a window [default: 512]
    #[arg(long)]
    pub window: Option<usize>,
    /// Windows of evaluation text, spread evenly; 0 takes all [default: 12]
    #[arg(long)]
    pub windows: Option<usize>,
    /// Windows of calibration text; 0 takes all [default: 32]
    #[arg(long)]
    pub calibration_windows: Option<usize>,
    /// Of those, how many also give gradients for the fisher metric [default: 16]
    #[arg(long)]
    pub gradient_windows: Option<usize>,
    /// Failures in a row after which the policy is benched [default: 3]
    #[arg(long)]
    pub max_faults: Option<u32>,
    #[command(flatten)]
    pub awake: AwakeArgs,
    #[command(flatten)]
    pub packs: PackOptions,
    #[command(flatten)]
    pub rules: RuleArgs,
}

impl RunArgs {
    /// The options in force: defaults, then the file, then the command line.
    fn resolve(&self) -> anyhow::Result<RunConfig> {
        let mut c = match &self.config {
            None => RunConfig::default(),
            Some(path) => {
                let bytes = crate::atomic::read_bounded(path, 1 << 20)
                    .with_context(|| format!("--config {}", path.display()))?;
                let text = String::from_utf8(bytes).with_context(|| path.display().to_string())?;
                toml::from_str(&text).with_context(|| format!("{}: options cannot be read", path.display()))?
            }
        };
        macro_rules! over {
            ($($field:ident),*) => { $(if let Some(v) = &self.$field { c.$field = v.clone(); })* };
        }
        over!(
            base,
            data,
            calibration,
            steps,
            budget,
            seed,
            parking,
            window,
            windows,
            calibration_windows,
            gradient_windows,
            max_faults
        );
        c.plugins = self.rules.over(c.plugins)?;
        c.packs = self.packs.over(c.packs);
        c.awake_budget = self.awake.awake_budget.or(c.awake_budget);
        let fresh = |files: &[PathBuf]| files.iter().map(Choice::new).collect::<Vec<_>>();
        for (given, kept) in
            [(&self.policy, &mut c.policy), (&self.evaluator, &mut c.evaluator), (&self.shadow, &mut c.shadow)]
        {
            if !given.is_empty() {
                *kept = fresh(given);
            }
        }
        if c.evaluator.is_empty() {
            c.evaluator = vec![Choice::new("perplexity")];
        }
        if let Some(what) = &self.on_fault {
            (c.on_fault, c.fallback) = match what.split_once('=') {
                None if what == "keep" => (OnFault::Keep, Vec::new()),
                None if what == "stop" => (OnFault::Stop, Vec::new()),
                Some(("fallback", file)) if !file.is_empty() => (OnFault::Fallback, vec![Choice::new(file)]),
                _ => anyhow::bail!("--on-fault {what:?}: use keep, stop or fallback=FILE"),
            };
        }
        c.watch |= self.watch;
        if !self.record.is_empty() {
            c.record = self.record.clone();
        }
        if let Some(limit) = self.max_loss_increase {
            c.max_loss_increase = Some(limit);
            c.evaluator.iter_mut().for_each(|e| drop(e.options.remove("max_loss_increase")));
        }
        if !self.layers.is_empty() {
            c.layers = self.layers.clone();
        }
        let mut policies: Vec<&mut Choice> = c.policy.iter_mut().chain(&mut c.shadow).chain(&mut c.fallback).collect();
        set_options("--policy-opt", &self.policy_opt, &mut policies)?;
        let mut evaluators: Vec<&mut Choice> = c.evaluator.iter_mut().collect();
        set_options("--evaluator-opt", &self.evaluator_opt, &mut evaluators)?;
        Ok(c)
    }
}

/// Gives options to the plugins they are meant for: the only one, or the one that is named.
pub(super) fn set_options(option: &'static str, texts: &[String], plugins: &mut [&mut Choice]) -> anyhow::Result<()> {
    for text in texts {
        let (whole, value) = pair(option, text)?;
        let is_named = |(i, c): (usize, &&mut Choice), name: &str| c.stem() == name || (i + 1).to_string() == name;
        let named = whole.split_once(':').filter(|(stem, _)| plugins.iter().enumerate().any(|p| is_named(p, stem)));
        if let Some((stem, _)) = whole.split_once(':').filter(|_| named.is_none() && !plugins.is_empty()) {
            let stems: Vec<String> = plugins.iter().map(|c| c.stem()).collect();
            anyhow::bail!("{option} {text}: there is no plugin `{stem}` to give it to; there are {}", stems.join(", "));
        }
        let (wanted, name) = match (named, plugins.len()) {
            (Some((stem, name)), _) => (Some(stem), name),
            (None, 0) => anyhow::bail!("{option} {text}: there is no plugin to give it to"),
            (None, 1) => (None, whole.as_str()),
            (None, _) => {
                let stems: Vec<String> = plugins.iter().map(|c| c.stem()).collect();
                anyhow::bail!(
                    "{option} {text}: which one is meant? write {}:{text} (there are {})",
                    stems.first().map_or("", String::as_str),
                    stems.join(", ")
                )
            }
        };
        let place = |i: usize, c: &Choice| wanted.is_none_or(|w| c.stem() == w || (i + 1).to_string() == w);
        for (_, plugin) in plugins.iter_mut().enumerate().filter(|(i, c)| place(*i, c)) {
            plugin.options.insert(name.to_owned(), value.clone());
        }
    }
    Ok(())
}

/// Runs the loop.
pub fn run(args: &RunArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let config = args.resolve()?;
    if config.policy.is_empty() {
        note!(
            "error: no policy named\n\n  plastic-host --policy plugins/energy.wasm   runs the loop\n  plastic-host --help                          shows every verb and option"
        );
        return Ok(ExitCode::from(2));
    }
    if let Err(e) = config.check() {
        note!("error: {e}");
        return Ok(ExitCode::from(2));
    }
    session::begin(config, &args.packs.store(), args.out.as_deref(), g)
}
