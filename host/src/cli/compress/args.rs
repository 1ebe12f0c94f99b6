//! The options of `plastic-host compress`.

use crate::cli::rules::RuleArgs;
use crate::cli::run::set_options;
use crate::compress::settings::{Coarse, Mode, Reach, Refinement};
use crate::plastic::config::{Choice, RunConfig};
use std::path::PathBuf;

/// Options of `compress`.
#[derive(clap::Args, Debug)]
#[command(
    allow_negative_numbers = true,
    args_override_self = true,
    after_help = "\
Examples:
  plastic-host compress --out small                          the default model at 80 % of its parameters
  plastic-host compress --budget 0.6 --factor-bits 16 --out small
  plastic-host compress --policy uniform --policy-opt metric=input --budget 0.9 --out even
  plastic-host compress --out small --resume                 goes on where it was interrupted
  plastic-host generate --base small --awake-budget 0.5 --prompt 'Why is the sky blue?'"
)]
pub struct CompressArgs {
    /// Base model: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short)]
    pub(super) base: Option<String>,
    /// Directory to make
    #[arg(long, short, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Policy that chooses the ranks: a file, or a name on the plugin path [default: water-fill]
    #[arg(long, short, value_name = "FILE", conflicts_with = "ranks")]
    pub(super) policy: Vec<PathBuf>,
    /// Option of a policy, `name=value`
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) policy_opt: Vec<String>,
    /// Ranks instead of a policy: a JSON file with a rank or the word dense for each slice name or glob, or such pairs as 'q_proj:64,*:dense'
    #[arg(long, value_name = "MAP")]
    pub(super) ranks: Option<String>,
    /// Share of the slices' parameters that stays; with --mode residual of their bytes in float16 [default: 0.8, or 0.05 more than the coarse weights take]
    #[arg(long, value_name = "SHARE")]
    pub(super) budget: Option<f64>,
    /// Instead of a budget: the smallest one whose perplexity on --data is at most this
    #[arg(long, value_name = "PERPLEXITY", conflicts_with_all = ["budget", "ranks", "no_eval", "refine"])]
    pub(super) target_ppl: Option<f64>,
    /// Bits of the coarse weights of --mode residual [default: 3]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(2..=8))]
    pub(super) bits: Option<u32>,
    /// Weights of those that share a scale: 32, 64 or 128
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = group)]
    pub(super) group_size: u32,
    /// Calibration text: a .jsonl or .txt file, or a data set of the hub [default: data/calibration.jsonl]
    #[arg(long, value_name = "FILE")]
    pub(super) calibration: Option<PathBuf>,
    /// Windows of calibration text; 0 takes all
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(super) calibration_windows: usize,
    /// Of those, how many also give gradients for the fisher metric
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(super) gradient_windows: usize,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    pub(super) window: usize,
    /// Text that perplexity before and after is measured on [default: data/eval.jsonl]
    #[arg(long, value_name = "FILE")]
    pub(super) data: Option<PathBuf>,
    /// Windows of it, spread evenly; 0 takes all
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub(super) windows: usize,
    /// Do not measure perplexity
    #[arg(long)]
    pub(super) no_eval: bool,
    /// How slices are stored
    #[arg(long, value_enum, default_value_t)]
    pub(super) mode: Mode,
    /// Bits of a value of a component
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = bits)]
    pub(super) factor_bits: u32,
    /// Steps of distilling the base into the components on the calibration text; better, and some seconds a step
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    pub(super) refine: u32,
    /// Windows in each of those
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(super) refine_batch: u32,
    /// Their learning rate
    #[arg(long, value_name = "RATE", default_value_t = 5e-4)]
    pub(super) refine_rate: f64,
    /// How components are found
    #[arg(long, value_enum, default_value_t = Finder::Exact)]
    pub(super) svd: Finder,
    /// Columns that --svd randomized draws beyond the rank
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(super) oversamples: u32,
    /// Power iterations of --svd randomized
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(super) power_iterations: u32,
    /// Weigh components by what they do to activations and loss; off: by size of the weights alone
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub(super) whitening: Switch,
    /// Only slices whose name matches, such as 'model.layers.1?.mlp.*'; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub(super) layers: Vec<String>,
    /// How many components of each slice are stored; all of them make a larger directory, for exports and every budget
    #[arg(long, value_enum, default_value_t)]
    pub(super) ladder: Reach,
    /// Smallest awake budget that slices left dense must still be able to shrink for
    #[arg(long, value_name = "SHARE", default_value_t = 0.3)]
    pub(super) floor: f64,
    /// Keep the base's own weights of the slices too, parked, so that the base can be had back without its directory
    #[arg(long)]
    pub(super) self_contained: bool,
    /// Windows that run through the model together
    #[arg(long, value_name = "N")]
    pub(super) batch_size: Option<usize>,
    /// Seed of every random draw
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Go on with a compression that was interrupted
    #[arg(long)]
    pub(super) resume: bool,
    /// Replace an elastic checkpoint at --out
    #[arg(long)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) rules: RuleArgs,
}

/// 32, 64 or 128.
pub(in crate::cli) fn group(text: &str) -> Result<u32, String> {
    match text {
        "32" | "64" | "128" => text.parse().map_err(|e| format!("{e}")),
        _ => Err("32, 64 or 128".into()),
    }
}

/// 16, 8 or 4.
fn bits(text: &str) -> Result<u32, String> {
    match text {
        "16" | "8" | "4" => text.parse().map_err(|e| format!("{e}")),
        _ => Err("16, 8 or 4".into()),
    }
}

/// How components are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Finder {
    /// All of them, by eigendecomposition
    Exact,
    /// The leading ones, by a seeded random range finder
    Randomized,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

impl CompressArgs {
    /// What is wrong with a number.
    pub(super) fn check(&self) -> Result<(), String> {
        let share = |name: &str, x: f64| match x > 0.0 && x <= 1.0 {
            true => Ok(()),
            false => Err(format!("--{name} {x}: a share lies above 0 and up to 1")),
        };
        share("budget", self.share())?;
        if self.mode == Mode::Residual && self.refine > 0 {
            return Err("--refine goes with --mode factor".into());
        }
        if !(self.refine_rate > 0.0 && self.refine_rate < 1.0) {
            return Err(format!("--refine-rate {}: a rate lies above 0 and below 1", self.refine_rate));
        }
        if self.bits.is_some() && self.mode != Mode::Residual {
            return Err("--bits is of --mode residual; components have --factor-bits".into());
        }
        if self.bits == Some(7) {
            return Err("--bits 7: MLX quantises to 2, 3, 4, 5, 6 or 8 bits".into());
        }
        share("floor", self.floor)?;
        if let Some(t) = self.target_ppl {
            if self.mode == Mode::Residual {
                return Err("--target-ppl goes with --mode factor".into());
            }
            if !(t >= 1.0 && t.is_finite()) {
                return Err(format!("--target-ppl {t}: a perplexity is at least 1"));
            }
        }
        if self.window < 2 || self.batch_size == Some(0) {
            return Err("--window must be at least 2 and --batch-size at least 1".into());
        }
        Ok(())
    }

    /// The coarse quantisation of mode residual.
    pub(super) fn coarse(&self) -> Option<Coarse> {
        (self.mode == Mode::Residual).then_some(Coarse { bits: self.bits.unwrap_or(3), group_size: self.group_size })
    }

    /// The distillation: the budget itself, and smaller ones down to the floor, so that those get better too.
    pub(super) fn refinement(&self) -> Option<Refinement> {
        let mut budgets = vec![(self.share(), 1.0)];
        let smaller = [(0.8, 0.6), (0.6, 1.0), (0.4, 0.9)];
        budgets.extend(smaller.into_iter().filter(|(b, _)| *b < self.share() - 0.05 && *b >= self.floor));
        let (steps, batch, learning_rate) = (self.refine, self.refine_batch, self.refine_rate);
        (steps > 0).then_some(Refinement { steps, batch, learning_rate, seed: self.seed, budgets })
    }

    /// The budget.
    pub(super) fn share(&self) -> f64 {
        let coarse = |c: Coarse| (f64::from(c.bits) + 32.0 / f64::from(c.group_size)) / 16.0 + 0.05;
        self.budget.unwrap_or_else(|| self.coarse().map_or(0.8, coarse).min(1.0))
    }

    /// The same as options of a run, for what both share.
    pub(super) fn as_run(&self) -> anyhow::Result<RunConfig> {
        let mut policy: Vec<Choice> = match (self.policy.is_empty(), &self.ranks) {
            (true, None) => vec![Choice::new("water-fill")],
            (true, Some(_)) => Vec::new(),
            (false, _) => self.policy.iter().map(Choice::new).collect(),
        };
        set_options("--policy-opt", &self.policy_opt, &mut policy.iter_mut().collect::<Vec<_>>())?;
        Ok(RunConfig {
            policy,
            budget: self.share(),
            layers: self.layers.clone(),
            steps: 1,
            seed: self.seed,
            window: self.window,
            windows: self.windows,
            calibration_windows: self.calibration_windows,
            gradient_windows: self.gradient_windows,
            data: self.data.clone().unwrap_or_default(),
            calibration: self.calibration.clone().unwrap_or_default(),
            plugins: self.rules.over(RunConfig::default().plugins)?,
            ..RunConfig::default()
        })
    }
}
