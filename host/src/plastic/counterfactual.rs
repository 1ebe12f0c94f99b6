//! Decisions made again from a run's own record: with the same policies, to prove that they are
//! reproducible, or with others, to see what they would have done.
//!
//! The recorded observations are given as they were, so another policy is asked at each step about
//! the model as the recorded run had it, not as its own earlier plans would have left it.

use super::journal::{Event, History, JournalError, StepRecord};
use super::plan::{self, Subject};
use super::policies::{Policies, Undecided};
use super::recording::{self, RecordingError, Seen};
use super::state::DENSE;
use super::statistic::spectra_of;
use super::step::{outcome_basis, recall_requests};
use crate::plugin::Fault;
use crate::plugin::contract::Plan;
use serde::Serialize;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Decisions cannot be made again.
#[derive(Debug, thiserror::Error)]
pub enum CounterfactualError {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The observations cannot be read.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// A policy did not start.
    #[error(transparent)]
    Plugin(#[from] Fault),
    /// The run did not keep a statistic.
    #[error(
        "{policy}: needs {need}, which {} did not keep; it has {kept}. Record it in a new run with --record {need}",
        run.display()
    )]
    NotKept {
        /// The policy.
        policy: String,
        /// What it needs.
        need: String,
        /// The run.
        run: PathBuf,
        /// What there is.
        kept: String,
    },
    /// The policies do not go together.
    #[error("{0}")]
    Order(String),
    /// An observation is not the one the journal speaks of.
    #[error("step {step}: the kept observation is not the one the policy saw (SHA-256 differs); the run was changed")]
    Changed {
        /// The step.
        step: u32,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, CounterfactualError>;

/// One step, decided again.
#[derive(Clone, Debug, Serialize)]
pub struct Again {
    /// The step.
    pub step: u32,
    /// The new plan, where there is one.
    pub plan: Option<Plan>,
    /// Why it could not have been applied: a fault, or a rule it breaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Ranks after the new plan, as the recorded run stood before the step; empty where there is none.
    pub ranks: Vec<u32>,
    /// Parameters awake after the new plan.
    pub parameters: u64,
    /// Whether plan and recorded plan are equal to the last bit.
    pub identical: bool,
}

/// Makes the decisions of a run again. `make` gives fresh, configured policies: once at the start,
/// and once for every time the run was resumed.
///
/// # Errors
/// When the record is damaged, lacks a statistic that a policy needs, or a policy refuses the run.
pub fn again(run: &Path, events: &[Event], make: &mut dyn FnMut() -> Result<Policies>) -> Result<Vec<Again>> {
    let observations: HashMap<u32, Seen> = recording::read(run)?.into_iter().map(|s| (s.step, s)).collect();
    let Some(record) = events.run() else { return Ok(Vec::new()) };
    let mut told = record.told.clone();
    let mut policies = begin(make, &told, record)?;
    // The states of the new policies after each step, to go back to where the run went back.
    let mut states: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
    let mut out: Vec<Again> = Vec::new();
    for (n, event) in events.iter().enumerate() {
        let before = events.get(..n).unwrap_or_default();
        match event {
            Event::Resume { steps, .. } => {
                if *steps > 0 {
                    told.steps = *steps;
                }
                policies = begin(make, &told, record)?;
                if let Some(basis) = outcome_basis(before) {
                    if let Some(states) = states.get(&basis.step) {
                        policies.restore(states)?;
                    }
                    let plan = out.iter().find(|a| a.step == basis.step).and_then(|a| a.plan.clone());
                    recall_requests(&mut policies, basis, plan);
                }
            }
            Event::Step(step) => {
                let Some(seen) = observations.get(&step.step) else {
                    let path = run.join("observations.jsonl");
                    return Err(RecordingError::Missing { path, step: step.step }.into());
                };
                out.push(decide(run, before, record, step, seen, &mut policies)?);
                states.insert(step.step, policies.snapshots());
            }
            _ => {}
        }
    }
    Ok(out)
}

fn begin(
    make: &mut dyn FnMut() -> Result<Policies>,
    told: &crate::plugin::contract::Run,
    record: &super::journal::RunRecord,
) -> Result<Policies> {
    let mut policies = make()?;
    policies.check_order().map_err(CounterfactualError::Order)?;
    policies.start(told, &record.slices)?;
    Ok(policies)
}

fn decide(
    run: &Path,
    before: &[Event],
    record: &super::journal::RunRecord,
    step: &StepRecord,
    seen: &Seen,
    policies: &mut Policies,
) -> Result<Again> {
    let observation = recording::observation(run, seen)?;
    if recording::digest(&observation, &seen.needs) != step.observation_sha256 {
        return Err(CounterfactualError::Changed { step: step.step });
    }
    for seat in &policies.line {
        if let Some(need) = seat.needs().iter().find(|n| !seen.needs.contains(n)) {
            let kept = if seen.needs.is_empty() { "none".into() } else { seen.needs.join(", ") };
            let (policy, need) = (seat.name().to_owned(), need.clone());
            return Err(CounterfactualError::NotKept { policy, need, run: run.to_owned(), kept });
        }
    }
    let subjects = subjects(before, record);
    let find = spectra_of(&observation);
    let resolve = |plan: &Plan| plan::resolve(plan, &record.slices, &subjects, record.budget, &find);
    let rank = |awake: &[super::state::Awake]| -> Vec<u32> {
        awake.iter().zip(&record.slices).map(|(a, s)| a.rank(s.max_rank)).collect()
    };
    let parameters = observation.awake;
    let mut again =
        Again { step: step.step, plan: None, problem: None, ranks: Vec::new(), parameters, identical: false };
    let decided = match policies.decide(&observation, &seen.needs, &resolve) {
        Err(Undecided::Fault(fault)) => {
            // A policy that fails as it failed is reproduced too.
            again.identical = step.plan.is_none() && step.fault.as_ref() == Some(&fault);
            again.problem = Some(fault.to_string());
            policies.hear(None, false);
            return Ok(again);
        }
        Err(Undecided::Refused { policy, refusal, plan }) => {
            again.identical = same(Some(&plan), step.plan.as_ref());
            (again.problem, again.plan) = (Some(format!("{policy}: {refusal}")), Some(*plan));
            policies.hear(None, false);
            return Ok(again);
        }
        Ok(decided) => decided,
    };
    again.identical = !step.fallback && same(Some(&decided.plan), step.plan.as_ref());
    let mut heard = None;
    match resolve(&decided.plan) {
        Err(refusal) => again.problem = Some(refusal.to_string()),
        Ok(resolved) => {
            (again.ranks, again.parameters) = (rank(&resolved.awake), resolved.parameters);
            heard = Some(&decided);
        }
    }
    again.plan = Some(decided.plan.clone());
    policies.hear(heard, false);
    Ok(again)
}

/// What was awake and frozen before a step.
fn subjects(before: &[Event], record: &super::journal::RunRecord) -> Vec<Subject> {
    let current = before.current();
    let subject = |i: usize| {
        let awake = current.and_then(|s| s.state.as_ref()).and_then(|state| state.get(i).cloned()).unwrap_or(DENSE);
        let frozen = current.is_some_and(|s| s.frozen.contains(&(i as u32)));
        Subject { awake, frozen }
    };
    (0..record.slices.len()).map(subject).collect()
}

/// Equal as written: the journal keeps numbers so that they come back bit for bit.
fn same(a: Option<&Plan>, b: Option<&Plan>) -> bool {
    let text = |p: Option<&Plan>| p.and_then(|p| serde_json::to_string(p).ok());
    text(a).is_some() && text(a) == text(b)
}
