//! Slices, factors, the parked store, the step loop and the journal.
//!
//! What flows through: calibration text → [`moments`] (second moments of activations and output
//! gradients) → [`factor`] (ordered components of a slice, and its spectrum) → a policy's plan →
//! [`plan`] (checked and resolved to what shall be awake) → [`elastic`] (applied to the model, and
//! taken back) → an evaluator's verdict → [`journal`]. [`step`] drives it; [`measure`] is what an
//! evaluator sees of the model; [`rundir`] owns the files of one run.
//!
//! The state of a model is one [`state::Awake`] a slice, nothing else: the value of a component is
//! fixed when its bank is written, so undo, resume and replay need no history.

pub mod bank;
pub mod compactness;
pub mod config;
pub mod counterfactual;
pub mod demo;
pub mod elastic;
pub mod factor;
pub mod factor_file;
#[cfg(test)]
mod factor_file_tests;
pub mod footprint;
pub mod journal;
pub mod matrix_file;
pub mod measure;
pub mod moments;
pub mod panel;
pub mod plan;
pub mod policies;
pub mod portable;
pub mod recording;
pub mod rundir;
pub mod state;
pub mod statistic;
pub mod step;
