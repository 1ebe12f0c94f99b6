//! Loading, limiting and calling plugins: every carrier behind [`Policy`] and [`Evaluator`].
//!
//! Nothing outside this room knows wasmtime or loads a library. A plugin can fail in any way it likes: what comes out
//! is a [`Fault`], never a panic, and the model is untouched.

mod answer;
pub mod bench;
pub mod build;
pub mod build_native;
mod cache;
pub mod catalog;
pub mod check;
mod compile;
mod component;
pub mod contract;
mod desk;
mod engine;
mod evaluator;
pub mod fuzzing;
mod grants;
mod limits;
mod loader;
pub mod lock;
pub mod native;
pub mod options;
mod policy;
mod rules;
mod sandbox;
pub mod scaffold;
pub mod signature;
mod text;
mod v1;
mod wasm;

pub use catalog::Carrier;
pub use compile::precompile;
pub use component::{API_MAJOR, API_VERSION, Artifact, Kind, encode};
pub use grants::{Grant, GrantError};
pub use limits::{Limits, MAX_STACK_BYTES};
pub use loader::Loader;
pub use rules::{RuleError, Rules};
pub use wasm::{load_evaluator, load_policy};

use contract::{Info, Observation, Plan, Run, Slice, Task, Verdict};
use std::time::Duration;

/// What one call cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallCost {
    /// Wall-clock time of the call.
    pub wall: Duration,
    /// Peak of the instance's linear memory so far, bytes; none where the carrier has none.
    pub memory_bytes: Option<u64>,
    /// Fuel it burned, where fuel is counted: the same for the same call, on every machine.
    pub fuel: Option<u64>,
}

/// Where a loaded plugin came from.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// The file as named by the user.
    pub path: std::path::PathBuf,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// API version of the contract it was built for, such as `1.0.0`.
    pub api: String,
    /// What it was given beyond the contract, of what the operator grants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
    /// What carries it.
    #[serde(default)]
    pub carrier: Carrier,
}

/// How a plugin failed. The message names the plugin and the remedy.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[error("{plugin}: {class}: {message}")]
pub struct Fault {
    /// Name or path of the plugin.
    pub plugin: String,
    /// What kind of failure.
    pub class: FaultClass,
    /// What happened, with the guest's own text where there is one.
    pub message: String,
}

/// Kinds of failure of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FaultClass {
    /// The file cannot be read or is no plugin.
    Load,
    /// Built for an API version this host does not speak.
    Version,
    /// The lock does not hold it, or no trusted key signed it.
    Untrusted,
    /// The plugin itself answered with an error.
    Refused,
    /// The guest trapped (panic, out of bounds, unreachable).
    Trap,
    /// The call took longer than allowed.
    Timeout,
    /// The guest wanted more memory, stack or data than allowed.
    Memory,
    /// The answer breaks the contract.
    Answer,
}

impl std::fmt::Display for FaultClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FaultClass::Load => "cannot be loaded",
            FaultClass::Version => "wrong API version",
            FaultClass::Untrusted => "is not trusted",
            FaultClass::Refused => "refused",
            FaultClass::Trap => "crashed",
            FaultClass::Timeout => "took too long",
            FaultClass::Memory => "hit a limit",
            FaultClass::Answer => "broke the contract",
        })
    }
}

/// A rank policy, whatever carries it.
pub trait Policy {
    /// Where it came from.
    fn origin(&self) -> &Origin;
    /// Who it is and what it needs, as of the last `configure`.
    fn info(&self) -> &Info;
    /// Options as a JSON object; called once before `start`.
    fn configure(&mut self, options: &serde_json::Value) -> Result<(), Fault>;
    /// Called once a run.
    fn start(&mut self, run: &Run, slices: &[Slice]) -> Result<(), Fault>;
    /// Asks for a plan.
    fn decide(&mut self, observation: &Observation) -> Result<Plan, Fault>;
    /// State to carry over a resume.
    fn snapshot(&mut self) -> Result<Vec<u8>, Fault>;
    /// Puts a snapshot back; after `start`.
    fn restore(&mut self, state: &[u8]) -> Result<(), Fault>;
    /// What it has to say when a run ends, for people; empty where it has nothing to say.
    fn report(&mut self) -> Result<String, Fault>;
    /// What the last call cost.
    fn last_cost(&self) -> CallCost;
}

/// An evaluator, whatever carries it.
pub trait Evaluator {
    /// Where it came from.
    fn origin(&self) -> &Origin;
    /// Who it is.
    fn info(&self) -> &Info;
    /// Options as a JSON object; called once.
    fn configure(&mut self, options: &serde_json::Value) -> Result<(), Fault>;
    /// Asks for a verdict on the candidate that `measure` gives access to.
    fn evaluate(&mut self, task: &Task, measure: &mut dyn Measure) -> Result<Verdict, Fault>;
    /// What the last call cost, the time inside `Measure` not counted.
    fn last_cost(&self) -> CallCost;
}

/// What an evaluator may ask of the host; `subject` is `base`, `current` or `candidate`.
/// Errors are texts for the guest: they fail the guest's call, not the host.
pub trait Measure {
    /// Number of windows of evaluation text.
    fn windows(&self) -> u32;
    /// Token ids of one window.
    fn window(&self, index: u32) -> Result<Vec<u32>, String>;
    /// Log-probabilities of tokens 1.. of each sequence.
    fn score(&mut self, subject: &str, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String>;
    /// The same for windows of the evaluation text.
    fn score_windows(&mut self, subject: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String>;
    /// Greedy continuation of a prompt.
    fn generate(&mut self, subject: &str, prompt: &str, max_tokens: u32) -> Result<String, String>;
    /// Text to token ids.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String>;
    /// Token ids to text.
    fn detokenize(&self, tokens: &[u32]) -> Result<String, String>;
    /// Counters of speed and memory.
    fn counters(&mut self, subject: &str) -> Result<Vec<contract::Metric>, String>;
    /// KL(reference ‖ of) of the next-token distributions, nats, at tokens 1.. of each window.
    fn divergence(&mut self, reference: &str, of: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String>;
    /// Number of prompts with answers in the evaluation text.
    fn examples(&self) -> u32;
    /// One of them.
    fn example(&self, index: u32) -> Result<contract::Example, String>;
    /// Times a decode of `new_tokens` after a prompt of `prompt_tokens`.
    fn timing(&mut self, subject: &str, prompt_tokens: u32, new_tokens: u32) -> Result<Vec<contract::Metric>, String>;
}
