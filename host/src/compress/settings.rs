//! Everything that decides the bytes of an elastic checkpoint. Two runs with equal settings write the same files, so
//! an interrupted one may go on only with the settings it began with.

use crate::model::{Levels, hash};
use crate::plastic::factor::Metric;
use crate::plastic::journal::PluginRecord;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a slice is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Components in the weight's place: W ≈ Σ aᵢ bᵢᵀ
    #[default]
    Factor,
    /// A coarser quantisation and components that repair it: W ≈ Q(W) + Σ aᵢ bᵢᵀ
    Residual,
}

/// How many components of a slice are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Those that the budget wakes, or a smaller one
    #[default]
    Budget,
    /// All of them, for every budget and for exports
    Full,
}

impl Reach {
    fn is_budget(&self) -> bool {
        *self == Reach::Budget
    }
}

/// How components are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Svd {
    /// All of them, by an eigendecomposition on the smaller side.
    #[default]
    Exact,
    /// The leading ones, by a randomised range finder.
    Randomized {
        /// Columns drawn beyond the rank.
        oversamples: u32,
        /// Power iterations.
        power_iterations: u32,
        /// Seed of the draws.
        seed: u64,
    },
}

/// The coarse quantisation that components repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coarse {
    /// Bits of a weight.
    pub bits: u32,
    /// Weights that share a scale.
    pub group_size: u32,
}

/// A short distillation of the base into the components.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refinement {
    /// Updates.
    pub steps: u32,
    /// Windows in each.
    pub batch: u32,
    /// Learning rate at its highest.
    pub learning_rate: f64,
    /// Seed of windows and budgets.
    pub seed: u64,
    /// Budgets that are drawn, as shares, and how often relative to each other.
    pub budgets: Vec<(f64, f64)>,
}

/// The base a checkpoint was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// Short name.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Its identity: [`crate::model::layout::checkpoint_hash`].
    pub sha256: String,
    /// Bytes of its weight files.
    pub bytes: u64,
}

/// Calibration text and how it was used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Windows taken from it.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Windows that gave gradients.
    pub gradient_windows: usize,
    /// Seed of the labels drawn for them.
    pub seed: u64,
}

/// Who says how many components of each slice stay.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Chooser {
    /// A policy.
    Policy(Box<PluginRecord>),
    /// Whoever wrote a map of ranks.
    Ranks(Levels),
}

/// The settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The base.
    pub base: BaseRecord,
    /// How slices are stored.
    pub mode: Mode,
    /// The coarse quantisation, in [`Mode::Residual`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coarse: Option<Coarse>,
    /// Share of the slices' parameters that may stay.
    pub budget: f64,
    /// Perplexity that may be reached instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_perplexity: Option<f64>,
    /// Who chooses the ranks.
    pub chooser: Chooser,
    /// What orders the components; `None` where the policy's statistic says it.
    pub metric: Option<Metric>,
    /// Calibration text, where a statistic needs it.
    pub calibration: Option<Calibration>,
    /// How components are found.
    pub svd: Svd,
    /// Bits of a value of a component: 16, 8 or 4.
    pub factor_bits: u32,
    /// Distillation of the base into the components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refine: Option<Refinement>,
    /// How many components are stored.
    #[serde(default, skip_serializing_if = "Reach::is_budget")]
    pub ladder: Reach,
    /// Smallest share that must be within reach without what the budget leaves dense.
    pub floor: f64,
    /// Names of the slices that may change.
    pub slices: Vec<String>,
    /// Whether the base can be had back without its directory.
    pub self_contained: bool,
}

impl Settings {
    /// SHA-256 of all of it, and of the version of this program that wrote it.
    pub fn sha256(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        hash::sha256(&[env!("CARGO_PKG_VERSION").as_bytes(), b"\n", &text].concat())
    }
}
