//! Plain records of the contract. `wit/rank.wit` is the authority on what each field means.
//!
//! They read the JSON that the host writes into its journal, so that recorded observations can be
//! replayed in a test.

use serde::{Deserialize, Serialize};

/// The value of a named fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// True or false.
    Flag(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Num(f64),
    /// Text.
    Text(String),
    /// Numbers.
    Nums(Vec<f64>),
    /// Texts.
    Texts(Vec<String>),
}

/// A named fact. Readers ignore names they do not know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attribute {
    /// Name of the fact.
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// The value of a named fact in a list of facts.
pub fn attribute<'a>(facts: &'a [Attribute], name: &str) -> Option<&'a Value> {
    facts.iter().find(|a| a.name == name).map(|a| &a.value)
}

/// The run that is about to begin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// `compress`, `train` or `serve`.
    pub phase: String,
    /// Seed of every random draw.
    pub seed: u64,
    /// Steps the run takes at most.
    pub steps: u32,
    /// Parameters of all slices when everything is awake.
    pub parameters: u64,
    /// Parameters that may stay awake.
    pub budget: u64,
    /// More facts.
    #[serde(default)]
    pub attributes: Vec<Attribute>,
}

/// What never changes about a slice: one linear projection `y = W x`, W of rows × cols.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// As the checkpoint names it: `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// Layer number.
    pub layer: u32,
    /// `q_proj`, `down_proj`, ...
    pub kind: String,
    /// Slices of one group read the same input.
    pub group: u32,
    /// Output width.
    pub rows: u32,
    /// Input width.
    pub cols: u32,
    /// min(rows, cols): the number of components.
    pub max_rank: u32,
    /// Parameters while dense: rows × cols.
    pub dense_parameters: u64,
    /// Parameters of one awake component: rows + cols.
    pub component_parameters: u64,
    /// More facts.
    #[serde(default)]
    pub attributes: Vec<Attribute>,
}

/// What changes about a slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SliceState {
    /// Components awake now; `max_rank` while dense.
    pub awake: u32,
    /// Runs on the base's own weights.
    pub dense: bool,
    /// May be made dense again.
    pub dense_allowed: bool,
    /// No change is accepted.
    pub frozen: bool,
    /// Steps since the last change.
    pub dwell: u32,
    /// Parameters awake now.
    pub parameters: u64,
    /// Bytes the awake part occupies in memory.
    pub bytes: u64,
    /// Bytes of the parked components.
    pub parked_bytes: u64,
}

/// Where one statistic of one slice lies in the flat list of an observation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    pub slice: u32,
    pub need: u32,
    pub offset: u32,
    pub len: u32,
}

/// What became of the last plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Step of the plan.
    pub step: u32,
    /// `committed`, `held` (nothing changed), `rejected` (by an evaluator), `refused` (by the host) or `failed`.
    pub fate: String,
    /// Why.
    pub reason: String,
    /// The rise of the loss the plan predicted, nats per token.
    pub predicted: Option<f64>,
    /// The rise of the loss the evaluators measured, nats per token.
    pub measured: Option<f64>,
    /// All that the evaluators measured of that plan's candidate, kept or not.
    #[serde(default)]
    pub metrics: Vec<Metric>,
}

/// A measured figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Name, such as `loss-increase`.
    pub name: String,
    /// The figure; finite.
    pub value: f64,
    /// `nats`, `tokens/s`, `bytes`, `ms`, or empty.
    pub unit: String,
    /// Whether a larger figure is better.
    pub higher_is_better: bool,
    /// Lower end of the confidence interval.
    #[serde(default)]
    pub low: Option<f64>,
    /// Upper end of the confidence interval.
    #[serde(default)]
    pub high: Option<f64>,
}

impl Metric {
    /// A figure of which less is better, without an interval.
    pub fn new(name: impl Into<String>, value: f64, unit: impl Into<String>) -> Metric {
        Metric { name: name.into(), value, unit: unit.into(), ..Metric::default() }
    }

    /// The same figure, of which more is better.
    pub fn higher_is_better(mut self) -> Metric {
        self.higher_is_better = true;
        self
    }

    /// The same figure with its confidence interval.
    pub fn interval(mut self, low: f64, high: f64) -> Metric {
        (self.low, self.high) = (Some(low), Some(high));
        self
    }
}

/// A prompt with the answer that is right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// As the model is given it, with the chat template where the row had roles.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
}
