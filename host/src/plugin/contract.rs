//! The contract's records as the host holds them: plain data, one set for every carrier and every
//! API version, written to the journal as they are.
//!
//! `plugin-api/wit/rank.wit` is the authority on what each field means; the names here are the same.

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

/// A named fact; unknown names are ignored by the reader.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attribute {
    /// Name of the fact.
    pub name: String,
    /// Its value.
    pub value: Value,
}

/// Who a plugin is and what it needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Lower-case name.
    pub name: String,
    /// Semantic version of the plugin.
    pub version: String,
    /// One sentence for people.
    pub summary: String,
    /// Phases a policy serves; empty for an evaluator.
    pub phases: Vec<String>,
    /// Statistics the policy wants, such as `spectrum:fisher`.
    pub needs: Vec<String>,
    /// JSON Schema of the options.
    pub options_schema: String,
    /// More facts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<Attribute>,
}

/// A measured figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Name, such as `loss-increase`.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Unit, or empty.
    pub unit: String,
    /// Whether a larger figure is better.
    pub higher_is_better: bool,
    /// Lower end of the confidence interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low: Option<f64>,
    /// Upper end of the confidence interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<f64>,
}

/// The run a policy is about to decide for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<Attribute>,
}

/// What never changes about a slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// Name in the checkpoint.
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
    /// min(rows, cols).
    pub max_rank: u32,
    /// rows × cols.
    pub dense_parameters: u64,
    /// rows + cols.
    pub component_parameters: u64,
    /// More facts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<Attribute>,
}

/// What changes about a slice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SliceState {
    /// Components awake; max_rank while dense.
    pub awake: u32,
    /// Runs on the base's own weights.
    pub dense: bool,
    /// May be made dense again.
    pub dense_allowed: bool,
    /// No change is accepted.
    pub frozen: bool,
    /// Steps since the last change.
    pub dwell: u32,
    /// Parameters awake.
    pub parameters: u64,
    /// Bytes of the awake part in memory.
    pub bytes: u64,
    /// Bytes of the parked components.
    pub parked_bytes: u64,
}

/// Where one statistic of one slice lies in [`Observation::values`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Slice id.
    pub slice: u32,
    /// Index into [`Info::needs`].
    pub need: u32,
    /// First value.
    pub offset: u32,
    /// Number of values.
    pub len: u32,
}

/// What became of the last plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Step of the plan.
    pub step: u32,
    /// `committed`, `rejected`, `refused` or `failed`.
    pub fate: String,
    /// Why.
    pub reason: String,
    /// Predicted rise of the loss, nats per token.
    pub predicted: Option<f64>,
    /// Measured rise of the loss, nats per token.
    pub measured: Option<f64>,
    /// All that was measured of that plan's candidate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
}

/// What a policy is told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Step, from 1.
    pub step: u32,
    /// Parameters awake in all slices.
    pub awake: u64,
    /// One entry a slice; the index is the slice's id.
    pub slices: Vec<SliceState>,
    /// Where each statistic lies in `values`.
    pub series: Vec<Series>,
    /// The statistics, flat.
    pub values: Vec<f32>,
    /// 1 beside each sleeping component, or empty where the awake ones are the largest.
    pub asleep: Vec<u8>,
    /// What the evaluators measured of the current state.
    pub metrics: Vec<Metric>,
    /// The fate of the last plan.
    pub last: Option<Outcome>,
    /// In a pipeline, the plan of the policies before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposed: Option<Plan>,
    /// More facts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<Attribute>,
}

/// What to do with one slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Exactly this many awake, the largest first.
    SetRank(u32),
    /// Put the n smallest awake components to sleep.
    SleepN(u32),
    /// Wake the n largest sleeping components.
    WakeN(u32),
    /// Put these components to sleep.
    Sleep(Vec<u32>),
    /// Wake these components.
    Wake(Vec<u32>),
    /// Back to the base's own weights.
    Dense,
    /// Accept no change from now on.
    Freeze,
    /// Accept changes again.
    Thaw,
}

/// One change of one slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// Slice id.
    pub slice: u32,
    /// The change.
    pub change: Change,
    /// Why.
    pub reason: String,
}

/// One rule over all slices, resolved by the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    /// Index into [`Info::needs`].
    pub need: u32,
    /// Lowest value² per parameter that stays awake.
    pub level: f64,
    /// Why.
    pub reason: String,
}

/// What a policy answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Changes, slice by slice.
    pub actions: Vec<Action>,
    /// Applied before the actions.
    pub threshold: Option<Threshold>,
    /// Predicted rise of the loss over the base, nats per token.
    pub predicted: Option<f64>,
    /// Statistics wanted at the next observation.
    pub requests: Vec<String>,
    /// Ends the run after this step.
    pub stop: Option<String>,
    /// More facts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<Attribute>,
}

/// What an evaluator is asked to judge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Step of the candidate.
    pub step: u32,
    /// Seed of every random draw.
    pub seed: u64,
    /// More facts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<Attribute>,
}

/// An evaluator's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// The candidate may become current.
    Accept,
    /// The candidate is rolled back.
    Reject,
    /// No opinion.
    Abstain,
}

/// What an evaluator answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Accept, reject or abstain.
    pub decision: Decision,
    /// Why.
    pub reason: String,
    /// What was measured.
    pub metrics: Vec<Metric>,
    /// More facts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<Attribute>,
}

/// A prompt with the answer that is right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// As the model is given it.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
}

/// The value of a named fact in a list of facts.
pub fn attribute<'a>(facts: &'a [Attribute], name: &str) -> Option<&'a Value> {
    facts.iter().find(|a| a.name == name).map(|a| &a.value)
}
