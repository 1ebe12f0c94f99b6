//! `plastic-host` with no verb, or `plastic-host run`: the wake/sleep loop.

use super::rules::RuleArgs;
use super::{Global, session};
use anyhow::Context;
use plastic::config::{RunConfig, pair};
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
    /// Rank policy: a file, or a name on the plugin path (`plastic-host plugin list`)
    #[arg(long, short, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Option of the policy, `name=value`; see `plastic-host plugin inspect FILE`
    #[arg(long, value_name = "NAME=VALUE")]
    pub policy_opt: Vec<String>,
    /// Evaluator that accepts or rejects each change [default: plugins/perplexity.wasm]
    #[arg(long, short, value_name = "FILE")]
    pub evaluator: Option<PathBuf>,
    /// Option of the evaluator, `name=value`
    #[arg(long, value_name = "NAME=VALUE")]
    pub evaluator_opt: Vec<String>,
    /// Base model: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short)]
    pub base: Option<String>,
    /// Evaluation text: .jsonl or .txt [default: data/eval.jsonl]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Calibration text, apart from the evaluation text [default: data/calibration.jsonl]
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
            policy,
            evaluator,
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
        if self.max_loss_increase.is_some() {
            c.max_loss_increase = self.max_loss_increase;
            c.evaluator_options.remove("max_loss_increase");
        }
        if !self.layers.is_empty() {
            c.layers = self.layers.clone();
        }
        for text in &self.policy_opt {
            let (name, value) = pair("--policy-opt", text)?;
            c.policy_options.insert(name, value);
        }
        for text in &self.evaluator_opt {
            let (name, value) = pair("--evaluator-opt", text)?;
            c.evaluator_options.insert(name, value);
        }
        Ok(c)
    }
}

/// Runs the loop.
pub fn run(args: &RunArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let config = args.resolve()?;
    if config.policy.as_os_str().is_empty() {
        note!(
            "error: no policy named\n\n  plastic-host --policy plugins/energy.wasm   runs the loop\n  plastic-host --help                          shows every verb and option"
        );
        return Ok(ExitCode::from(2));
    }
    if let Err(e) = config.check() {
        note!("error: {e}");
        return Ok(ExitCode::from(2));
    }
    session::begin(config, args.out.as_deref(), g)
}
