//! What an evaluator is asked, and what it answers.

use crate::records::{Attribute, Metric};

/// What is to be judged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    /// Step of the candidate.
    pub step: u32,
    /// Seed of every random draw.
    pub seed: u64,
    /// More facts.
    pub attributes: Vec<Attribute>,
}

/// Whether a change may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The candidate may become current.
    Accept,
    /// The candidate is rolled back.
    Reject,
    /// No opinion.
    Abstain,
}

/// An evaluator's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Accept, reject or abstain.
    pub decision: Decision,
    /// For people, with the figures that decided.
    pub reason: String,
    /// What was measured; the rise of the loss over the base is named `loss-increase`.
    pub metrics: Vec<Metric>,
    /// More facts.
    pub attributes: Vec<Attribute>,
}

impl Verdict {
    /// The candidate may become current.
    pub fn accept(reason: impl Into<String>) -> Verdict {
        Verdict { decision: Decision::Accept, reason: reason.into(), metrics: Vec::new(), attributes: Vec::new() }
    }

    /// The candidate is rolled back.
    pub fn reject(reason: impl Into<String>) -> Verdict {
        Verdict { decision: Decision::Reject, reason: reason.into(), metrics: Vec::new(), attributes: Vec::new() }
    }

    /// No opinion.
    pub fn abstain(reason: impl Into<String>) -> Verdict {
        Verdict { decision: Decision::Abstain, reason: reason.into(), metrics: Vec::new(), attributes: Vec::new() }
    }

    /// Adds a figure.
    pub fn metric(mut self, metric: Metric) -> Verdict {
        self.metrics.push(metric);
        self
    }
}
