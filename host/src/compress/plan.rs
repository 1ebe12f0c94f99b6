//! Asks a policy how many components of each slice stay, as the first step of a run would, until what it proposes
//! rests on all the statistics it asked for.
//!
//! The plan is checked by the rules of every plan ([`crate::plastic::plan`]) and has to keep to the budget. A policy
//! that chooses single components is refused: a checkpoint stores the first ones of a slice.

use super::error::{Error, Result};
use super::residual;
use crate::model::Level;
use crate::plastic::elastic::Elastic;
use crate::plastic::factor::Metric;
use crate::plastic::moments::Moments;
use crate::plastic::plan::{self, Resolved};
use crate::plastic::policies::{Policies, Undecided};
use crate::plastic::state::Awake;
use crate::plastic::statistic::{self, Computed, Statistic};
use crate::plugin::contract::{Observation, Plan, Run};

/// Times a policy may ask for further statistics before it decides.
const QUESTIONS: usize = 4;

/// What is needed to compute statistics.
pub struct Facts<'a> {
    /// The model, everything awake.
    pub elastic: &'a mut Elastic,
    /// Calibration statistics.
    pub moments: Option<&'a Moments>,
    /// Text that sensitivities are measured on.
    pub windows: &'a [Vec<u32>],
    /// Whether components repair a coarser weight, so that no slice can be dense.
    pub repairs: bool,
    /// Told (done, total, slice); answers whether to go on.
    pub progress: &'a mut dyn FnMut(usize, usize, &str) -> bool,
}

/// What a policy decided.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The level of each slice.
    pub levels: Vec<Level>,
    /// What orders the components.
    pub metric: Metric,
    /// Statistics that were computed on the way.
    pub computed: Computed,
    /// Rise of the loss that the policy predicts, nats per token.
    pub predicted: Option<f64>,
}

/// Asks the policies for their plan under `run.budget`.
///
/// # Errors
/// When a policy fails, asks for what cannot be computed, breaks a rule or the budget, or leaves the model as it is
/// where it is above the budget; and on interruption.
pub fn decide(policies: &mut Policies, run: &Run, facts: &mut Facts, mut computed: Computed) -> Result<Decision> {
    let name = || policies.line.last().map_or_else(String::new, |s| s.name().to_owned());
    let policy = name();
    let refuse = |reason: String| Error::Plan { policy: policy.clone(), reason };
    policies.start(run, facts.elastic.slices())?;
    for _ in 0..QUESTIONS {
        let needs = policies.needs();
        for need in &needs {
            if computed.contains_key(need) {
                continue;
            }
            let statistic = Statistic::parse(need)
                .ok_or_else(|| refuse(format!("needs {need:?}; this host offers {}", statistic::OFFERED)))?;
            let values = statistic.compute(facts.elastic, facts.moments, facts.windows, facts.progress)?;
            computed.insert(need.clone(), values);
        }
        let (series, values) = statistic::series(&needs, &computed);
        let states = match facts.repairs {
            true => residual::states(facts.elastic.slices()),
            false => facts.elastic.states(),
        };
        let seen = Observation {
            step: 1,
            awake: states.iter().map(|s| s.parameters).sum(),
            slices: states,
            series,
            values,
            ..Observation::default()
        };
        let mut subjects = facts.elastic.subjects();
        if facts.repairs {
            for (subject, s) in subjects.iter_mut().zip(facts.elastic.slices()) {
                subject.awake = Awake::First(s.max_rank);
            }
        }
        let slices = facts.elastic.slices();
        let resolve = |plan: &Plan| -> std::result::Result<Resolved, plan::Refusal> {
            let spectra = statistic::spectra_of(&seen);
            plan::resolve(plan, slices, &subjects, run.budget, &spectra)
        };
        let decided = policies.decide(&seen, &needs, &resolve).map_err(|u| match u {
            Undecided::Fault(fault) => fault.into(),
            Undecided::Refused { policy, refusal, .. } => Error::Plan { policy, reason: refusal.to_string() },
        })?;
        let resolved = resolve(&decided.plan).map_err(|r| refuse(r.to_string()))?;
        policies.hear(Some(&decided), false);
        let open: Vec<String> = policies.needs().into_iter().filter(|n| !computed.contains_key(n)).collect();
        if !open.is_empty() {
            continue;
        }
        if resolved.parameters > run.budget {
            return Err(refuse(format!(
                "its plan keeps {} parameters awake, and the budget is {}: it cannot be used to compress at once (is it one for another phase?)",
                resolved.parameters, run.budget
            )));
        }
        let levels = resolved.awake.iter().zip(slices).map(|(awake, s)| match awake {
            Awake::First(r) if *r < s.max_rank => Ok(Level::Rank(*r)),
            Awake::First(_) | Awake::Dense(_) if facts.repairs => Ok(Level::Rank(s.max_rank)),
            Awake::First(_) | Awake::Dense(_) => Ok(Level::Dense),
            Awake::These(_) => Err(refuse(format!(
                "{}: it chooses single components, and a checkpoint stores the first ones of a slice",
                s.name
            ))),
        });
        let levels = levels.collect::<Result<_>>()?;
        return Ok(Decision { levels, metric: decided.metric, computed, predicted: decided.plan.predicted });
    }
    Err(refuse(format!("asked {QUESTIONS} times for further statistics and did not decide")))
}
