//! How a pack is trained. What is here decides every number of the result; it is kept with an unfinished
//! training, so that it can go on exactly.

use super::super::format::Profile;
use super::auto::Auto;
use crate::eval::data::Loss;
use crate::plastic::config::Choice;
use crate::plugin::Rules;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How the learning rate goes after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine down to the lowest rate
    #[default]
    Cosine,
    /// A straight line down to the lowest rate
    Linear,
    /// No change
    Constant,
}

/// What turns gradients into steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019)
    #[default]
    Adamw,
    /// Stochastic gradient descent, with --momentum if wanted
    Sgd,
}

/// A pattern of slices and a number for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule<T> {
    /// See [`super::super::key::matches`].
    pub slices: String,
    /// The number.
    pub value: T,
}

/// How ranks change while a pack learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankOptions {
    /// Policies, in the order in which they decide.
    pub policies: Vec<Choice>,
    /// SHA-256 of their files: a training goes on with the ones it began with.
    pub sha256: Vec<String>,
    /// Components that may be awake in all slices together; `None`: as many as at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u32>,
    /// Share of the parameters awake at the beginning that may stay awake, in the place of a number of components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Components a slice can have; 0: twice its rank at the beginning.
    pub most: u32,
    /// Updates between decisions.
    pub interval: u32,
    /// Updates before the first one.
    pub warmup: u32,
    /// Rise of the loss of a batch, nats per token, beyond which a change is taken back.
    pub max_rise: f64,
    /// Limits and rights of plugins.
    #[serde(default)]
    pub rules: Rules,
}

/// All that decides the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Name of the pack.
    pub name: String,
    /// Base, as the user named it.
    pub base: String,
    /// Training text.
    pub data: PathBuf,
    /// Validation text; `None`: a share of the training text, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
    /// Share of the training windows held back for validation where no text is named.
    pub valid_share: f64,
    /// Patterns of slices.
    pub layers: Vec<String>,
    /// Rank of q, o and MLP slices; k and v follow the width of their heads.
    pub rank: u32,
    /// Ranks of slices by pattern; the last that matches counts.
    pub ranks: Vec<Rule<u32>>,
    /// Ranks from the base's own weights, below those by pattern.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto: Option<Auto>,
    /// Ranks below this are raised to it.
    pub min_rank: u32,
    /// Alpha of a slice of rank `rank`; others have the same alpha / rank. `None`: twice the rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f32>,
    /// Alphas by pattern.
    pub alphas: Vec<Rule<f32>>,
    /// Scale by alpha / √rank (Kalajdzievski 2023) in the place of alpha / rank.
    pub rslora: bool,
    /// Learn a magnitude an output besides (Liu et al. 2024).
    pub dora: bool,
    /// Pack whose weights are the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_pack: Option<String>,
    /// Updates.
    pub steps: u32,
    /// Rows of a batch.
    pub batch: usize,
    /// Batches whose gradients are summed for one update.
    pub accumulate: usize,
    /// Tokens of a row.
    pub sequence_length: usize,
    /// Tokens that count.
    pub loss: Loss,
    /// Join short rows, so that every row of a batch is full.
    pub packing: bool,
    /// Method.
    pub optimizer: Method,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Updates over which it rises from 0.
    pub warmup: u32,
    /// How it falls afterwards.
    pub schedule: Schedule,
    /// Share of the highest rate at the end.
    pub final_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Share of a weight (times the rate) that is taken away each update.
    pub weight_decay: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Largest norm of all gradients together; 0: any.
    pub clip: f64,
    /// Share of the inputs of adapters that are dropped.
    pub dropout: f64,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Updates between validations; 0: only at the end.
    pub valid_every: u32,
    /// Windows of a validation; 0: all.
    pub valid_windows: usize,
    /// Validations without a better one after which the training ends; 0: never.
    pub patience: u32,
    /// Updates between checkpoints; 0: none.
    pub checkpoint_every: u32,
    /// Keep the insides of so many layers as fit a bound, and compute the others again on the way back.
    pub recompute: bool,
    /// Train against a base that is dequantised and rounded to float16.
    pub fp16_base: bool,
    /// Who changes ranks while the pack learns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks_by: Option<RankOptions>,
    /// Size allowed.
    pub profile: Profile,
    /// Free text.
    pub notes: String,
}

impl Options {
    /// Refuses what makes no sense, naming the flag.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let share = |flag: &str, x: f64, below: f64| match (0.0..below).contains(&x) {
            true => Ok(()),
            false if below == f64::MAX => Err(format!("{flag} {x:?}: expected a finite number, 0 or more")),
            false => Err(format!("{flag} {x:?}: expected at least 0 and less than {below}")),
        };
        let least = |flag: &str, x: u64, least: u64| match x >= least {
            true => Ok(()),
            false => Err(format!("{flag} {x}: expected at least {least}")),
        };
        least("--steps", self.steps.into(), 1)?;
        least("--batch-size", self.batch as u64, 1)?;
        least("--grad-accumulation", self.accumulate as u64, 1)?;
        for (flag, n) in [("--batch-size", self.batch), ("--grad-accumulation", self.accumulate)] {
            if n > 1 << 20 {
                return Err(format!("{flag} {n}: expected at most {}", 1 << 20));
            }
        }
        least("--sequence-length", self.sequence_length as u64, 2)?;
        least("--rank", self.rank.into(), 1)?;
        if let Some(a) = self.auto.filter(|a| !(a.share > 0.0 && a.share <= 1.0)) {
            return Err(format!("--target-compression {}: expected a share above 0 and at most 1", a.share));
        }
        share("--lora-dropout", self.dropout, 1.0)?;
        share("--valid-share", self.valid_share, 1.0)?;
        share("--beta1", self.beta1, 1.0)?;
        share("--beta2", self.beta2, 1.0)?;
        share("--momentum", self.momentum, 1.0)?;
        share("--weight-decay", self.weight_decay, 1e3)?;
        share("--grad-clip", self.clip, f64::MAX)?;
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return Err(format!("--learning-rate {}: expected more than 0", self.learning_rate));
        }
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            return Err(format!("--epsilon {}: expected more than 0", self.epsilon));
        }
        if !(0.0..=1.0).contains(&self.final_rate) {
            return Err(format!("--final-rate {}: expected a share between 0 and 1", self.final_rate));
        }
        let alphas = self.alphas.iter().map(|r| r.value).chain(self.alpha);
        if let Some(bad) = alphas.into_iter().find(|a| !a.is_finite() || *a < 0.0) {
            return Err(format!("--alpha {bad}: expected a finite number, 0 or more"));
        }
        if let Some(r) = &self.ranks_by {
            least("--rank-interval", r.interval.into(), 1)?;
            share("--max-rank-rise", r.max_rise, f64::MAX)?;
            if let Some(x) = r.share.filter(|x| !(*x > 0.0 && *x <= 1.0)) {
                return Err(format!("--budget {x}: expected a share above 0 and at most 1"));
            }
            if self.dora {
                return Err(
                    "--dora: its magnitudes do not go with ranks that change; leave out --dora or --policy".into()
                );
            }
        }
        if let Some(bad) = self.ranks.iter().find(|r| r.value == 0) {
            return Err(format!("--rank-map {}:0: a rank is at least 1; leave the slice out of --layers", bad.slices));
        }
        Ok(())
    }

    /// Learning rate of an update (counted from 1): linear warm-up, then the schedule down to `final_rate`.
    pub fn rate(&self, step: u32) -> f64 {
        let (step, warmup, steps) = (f64::from(step), f64::from(self.warmup), f64::from(self.steps));
        if step <= warmup {
            return self.learning_rate * step / warmup.max(1.0);
        }
        let along = ((step - warmup) / (steps - warmup).max(1.0)).clamp(0.0, 1.0);
        let fallen = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - along,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * along).cos()),
        };
        self.learning_rate * (self.final_rate + (1.0 - self.final_rate) * fallen)
    }
}
