//! The policies of a run: a pipeline whose last word counts, shadows that are asked and not obeyed,
//! and perhaps a fallback that decides where the pipeline fails.
//!
//! Each policy is shown the statistics it needs and no others, numbered as it named them. The plan
//! of one is turned into ranks before the next one in the pipeline sees it.

use super::factor::Metric;
use super::plan::{Refusal, Resolved};
use crate::plugin::contract::{
    Action, Attribute, Change, Info, Observation, Plan, Run, Series, Slice, Value, attribute,
};
use crate::plugin::{Fault, FaultClass, Policy};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A plan attribute: the spectrum that orders the components the plan speaks of.
const METRIC: &str = "metric";

/// A policy and what it asked for last.
pub struct Seat {
    /// The policy, configured.
    pub policy: Box<dyn Policy>,
    /// Statistics it wants at the next observation, beyond its needs.
    requests: Vec<String>,
}

impl Seat {
    /// Seats a configured policy.
    pub fn new(policy: Box<dyn Policy>) -> Seat {
        Seat { policy, requests: Vec::new() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.policy.info().name
    }

    /// Statistics of its next observation, in its own order.
    pub fn needs(&self) -> Vec<String> {
        self.policy.info().needs.iter().chain(&self.requests).cloned().collect()
    }

    /// Sets what its last plan requested.
    pub fn hear(&mut self, plan: Option<&Plan>) {
        self.requests = plan.map_or_else(Vec::new, |p| p.requests.clone());
    }

    /// Asks for a plan, whose threshold then counts in `names`.
    fn ask(&mut self, seen: &Observation, names: &[String]) -> Result<Plan, Fault> {
        let needs = self.needs();
        // Heard once: what this plan requests is set by whoever accepts it.
        self.requests.clear();
        let mut plan = self.policy.decide(&project(seen, names, &needs))?;
        if let Some(t) = &mut plan.threshold {
            let name = needs.get(t.need as usize);
            let place = name.and_then(|name| names.iter().position(|n| n == name));
            t.need = place.map_or(u32::MAX, |p| p as u32);
        }
        Ok(plan)
    }
}

/// The policies of a run.
pub struct Policies {
    /// In the order in which they decide; at least one.
    pub line: Vec<Seat>,
    /// Asked, never obeyed.
    pub shadows: Vec<Seat>,
    /// Decides where the line fails.
    pub fallback: Option<Seat>,
}

/// What one policy of a pipeline answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// Name of the policy.
    pub policy: String,
    /// Its answer.
    pub plan: Plan,
}

/// What a pipeline decided.
#[derive(Debug)]
pub struct Decided {
    /// The plan of the last one; its threshold counts in the names the observation was made with.
    pub plan: Plan,
    /// All plans, where there is more than one policy.
    pub proposals: Vec<Proposal>,
    /// What orders the components the plan speaks of.
    pub metric: Metric,
}

/// Why there is no plan.
#[derive(Debug)]
pub enum Undecided {
    /// A policy failed.
    Fault(Fault),
    /// The plan of one that another one follows broke a rule.
    Refused {
        /// Its name.
        policy: String,
        /// The rule.
        refusal: Refusal,
        /// The plan.
        plan: Box<Plan>,
    },
}

/// Checks a plan and turns it into ranks.
pub type Resolver<'a> = dyn Fn(&Plan) -> Result<Resolved, Refusal> + 'a;

impl Policies {
    /// One policy alone.
    pub fn one(policy: Box<dyn Policy>) -> Policies {
        Policies { line: vec![Seat::new(policy)], shadows: Vec::new(), fallback: None }
    }

    /// Every seat, in the order in which states are kept: line, shadows, fallback.
    pub fn seats(&mut self) -> impl Iterator<Item = &mut Seat> {
        self.line.iter_mut().chain(&mut self.shadows).chain(&mut self.fallback)
    }

    fn all(&self) -> impl Iterator<Item = &Seat> {
        self.line.iter().chain(&self.shadows).chain(&self.fallback)
    }

    /// Descriptions of all of them.
    pub fn infos(&self) -> Vec<&Info> {
        self.all().map(|s| s.policy.info()).collect()
    }

    /// Statistics that somebody needs at the next observation, each once.
    pub fn needs(&self) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for name in self.all().flat_map(Seat::needs) {
            if !out.contains(&name) {
                out.push(name);
            }
        }
        out
    }

    /// A policy that stands behind another one must heed what that one proposed.
    ///
    /// # Errors
    /// A sentence that names the one that does not.
    pub fn check_order(&self) -> Result<(), String> {
        let revises = |s: &&Seat| attribute(&s.policy.info().attributes, "revises") == Some(&Value::Flag(true));
        match self.line.iter().skip(1).find(|s| !revises(s)) {
            None => Ok(()),
            Some(s) => Err(format!(
                "{}: cannot follow another policy, since it does not look at what was proposed before it; put it first",
                s.name()
            )),
        }
    }

    /// A run begins for all of them.
    ///
    /// # Errors
    /// The first that refuses it.
    pub fn start(&mut self, run: &Run, slices: &[Slice]) -> Result<(), Fault> {
        self.seats().try_for_each(|s| s.policy.start(run, slices))
    }

    /// Asks the line; each one but the first is told what the one before it proposed.
    ///
    /// # Errors
    /// [`Undecided`].
    pub fn decide(&mut self, seen: &Observation, names: &[String], resolve: &Resolver) -> Result<Decided, Undecided> {
        let count = self.line.len();
        let (mut seen, mut proposals, mut order) = (Cow::Borrowed(seen), Vec::new(), None);
        for (i, seat) in self.line.iter_mut().enumerate() {
            let plan = seat.ask(&seen, names).map_err(Undecided::Fault)?;
            order = metric_of(&plan, names, &seat.policy.info().needs).or(order);
            if i + 1 == count {
                if count > 1 {
                    proposals.push(Proposal { policy: seat.name().to_owned(), plan: plan.clone() });
                }
                return Ok(Decided { plan, proposals, metric: order.unwrap_or(Metric::Plain) });
            }
            let resolved = match resolve(&plan) {
                Ok(resolved) => resolved,
                Err(refusal) => {
                    return Err(Undecided::Refused { policy: seat.name().to_owned(), refusal, plan: Box::new(plan) });
                }
            };
            seen.to_mut().proposed = Some(as_ranks(&plan, &resolved, order));
            proposals.push(Proposal { policy: seat.name().to_owned(), plan });
        }
        Err(Undecided::Fault(Policies::nobody()))
    }

    /// Fuel that the last calls of the pipeline burned, by policy, where fuel is counted.
    pub fn fuel(&self) -> Vec<(String, u64)> {
        self.line.iter().filter_map(|s| Some((s.name().to_owned(), s.policy.last_cost().fuel?))).collect()
    }

    /// What is said where nobody is left to decide.
    pub(super) fn nobody() -> Fault {
        Fault { plugin: "policies".into(), class: FaultClass::Load, message: "nobody is left to decide".into() }
    }

    /// Asks the fallback, where there is one.
    pub fn decide_fallback(&mut self, seen: &Observation, names: &[String]) -> Option<Result<Decided, Fault>> {
        let seat = self.fallback.as_mut()?;
        let needs = seat.policy.info().needs.clone();
        let decided = |plan: Plan| {
            let metric = metric_of(&plan, names, &needs).unwrap_or(Metric::Plain);
            Decided { plan, proposals: Vec::new(), metric }
        };
        Some(seat.ask(seen, names).map(decided))
    }

    /// Asks the shadows, in order.
    pub fn shadow(&mut self, seen: &Observation, names: &[String]) -> Vec<(String, Result<Plan, Fault>)> {
        let mut out = Vec::with_capacity(self.shadows.len());
        for seat in &mut self.shadows {
            // What became of a plan that was never tried would mislead it.
            let mut seen = seen.clone();
            seen.last = None;
            let plan = seat.ask(&seen, names);
            seat.hear(plan.as_ref().ok());
            out.push((seat.name().to_owned(), plan));
        }
        out
    }

    /// States of all of them, to be put back by [`Policies::restore`].
    pub fn snapshots(&mut self) -> Vec<Vec<u8>> {
        self.seats().map(|s| s.policy.snapshot().unwrap_or_default()).collect()
    }

    /// Puts states back; one that was empty leaves its policy as it started.
    ///
    /// # Errors
    /// The first that refuses its own.
    pub fn restore(&mut self, states: &[Vec<u8>]) -> Result<(), Fault> {
        let kept = |(_, state): &(&mut Seat, &Vec<u8>)| !state.is_empty();
        self.seats().zip(states).filter(kept).try_for_each(|(seat, state)| seat.policy.restore(state))
    }

    /// What became of the plans of this step decides what they may request for the next.
    pub fn hear(&mut self, decided: Option<&Decided>, by_fallback: bool) {
        if by_fallback {
            self.line.iter_mut().for_each(|s| s.hear(None));
            self.fallback.iter_mut().for_each(|s| s.hear(decided.map(|d| &d.plan)));
            return;
        }
        let count = self.line.len();
        for (i, seat) in self.line.iter_mut().enumerate() {
            let own = |d: &'_ Decided| {
                if count == 1 { Some(d.plan.clone()) } else { d.proposals.get(i).map(|p| p.plan.clone()) }
            };
            seat.hear(decided.and_then(own).as_ref());
        }
    }
}

/// The spectrum that orders a plan's components: its threshold's, the one it names, or the first
/// among its policy's needs.
fn metric_of(plan: &Plan, names: &[String], needs: &[String]) -> Option<Metric> {
    let threshold = plan.threshold.as_ref().and_then(|t| names.get(t.need as usize));
    let named = match attribute(&plan.attributes, METRIC) {
        Some(Value::Text(name)) => names.iter().find(|n| *n == name),
        _ => None,
    };
    let first = needs.iter().find(|n| Metric::from_need(n).is_some());
    threshold.or(named).or(first).and_then(|n| Metric::from_need(n))
}

/// A plan whose threshold is spelt out, slice by slice.
fn as_ranks(plan: &Plan, resolved: &Resolved, order: Option<Metric>) -> Plan {
    let mut out = Plan { threshold: None, ..plan.clone() };
    let reason = plan.threshold.as_ref().map_or("", |t| t.reason.as_str());
    for &i in &resolved.changed {
        if plan.actions.iter().any(|a| a.slice as usize == i) {
            continue;
        }
        let change = match resolved.awake.get(i) {
            Some(super::state::Awake::First(rank)) => Change::SetRank(*rank),
            _ => Change::Dense,
        };
        out.actions.push(Action { slice: i as u32, change, reason: reason.to_owned() });
    }
    out.actions.sort_by_key(|a| a.slice);
    if let Some(metric) = order.filter(|_| attribute(&plan.attributes, METRIC).is_none()) {
        let value = Value::Text(format!("spectrum:{}", metric.name()));
        out.attributes.push(Attribute { name: METRIC.into(), value });
    }
    out
}

/// An observation with only the statistics in `wanted`, numbered by their place there.
pub fn project<'a>(seen: &'a Observation, names: &[String], wanted: &[String]) -> Cow<'a, Observation> {
    if names == wanted {
        return Cow::Borrowed(seen);
    }
    let (mut series, mut values, mut asleep) = (Vec::new(), Vec::new(), Vec::new());
    for (need, name) in wanted.iter().enumerate() {
        let Some(place) = names.iter().position(|n| n == name) else { continue };
        for s in seen.series.iter().filter(|s| s.need as usize == place) {
            let range = s.offset as usize..(s.offset + s.len) as usize;
            series.push(Series { need: need as u32, offset: values.len() as u32, ..*s });
            values.extend_from_slice(seen.values.get(range.clone()).unwrap_or_default());
            asleep.extend_from_slice(seen.asleep.get(range).unwrap_or_default());
        }
    }
    let rest = Observation {
        step: seen.step,
        awake: seen.awake,
        slices: seen.slices.clone(),
        series,
        values,
        asleep,
        metrics: seen.metrics.clone(),
        last: seen.last.clone(),
        proposed: seen.proposed.clone(),
        attributes: seen.attributes.clone(),
    };
    Cow::Owned(rest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::plastic::state::{Awake, DENSE};
    use crate::plugin::contract::Threshold;

    fn observation() -> Observation {
        let series = |slice, need, offset| Series { slice, need, offset, len: 2 };
        Observation {
            series: vec![series(0, 0, 0), series(1, 0, 2), series(0, 1, 4), series(1, 1, 6)],
            values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
            asleep: vec![0, 1, 0, 1, 0, 1, 0, 1],
            ..Observation::default()
        }
    }

    #[test]
    fn a_policy_sees_what_it_needs_in_its_own_order() {
        let names: Vec<String> = ["spectrum:plain", "trace:input"].map(String::from).into();
        let seen = observation();
        assert!(matches!(project(&seen, &names, &names), Cow::Borrowed(_)));
        let other = project(&seen, &names, &["sensitivity:0.5".into(), "trace:input".into()]).into_owned();
        assert_eq!(other.values, [5.0, 6.0, 7.0, 8.0]);
        assert_eq!(other.asleep, [0, 1, 0, 1]);
        assert_eq!(
            other.series.iter().map(|s| (s.slice, s.need, s.offset)).collect::<Vec<_>>(),
            [(0, 1, 0), (1, 1, 2)]
        );
    }

    #[test]
    fn a_threshold_is_spelt_out_for_the_next_policy() {
        let plan = Plan {
            threshold: Some(Threshold { need: 0, level: 1.0, reason: "worth too little".into() }),
            actions: vec![Action { slice: 2, change: Change::Freeze, reason: String::new() }],
            ..Plan::default()
        };
        let resolved = Resolved {
            awake: vec![Awake::First(3), DENSE, DENSE],
            frozen: vec![false, false, true],
            changed: vec![0, 1],
            parameters: 0,
        };
        let ranks = as_ranks(&plan, &resolved, Some(Metric::Fisher));
        let told: Vec<_> = ranks.actions.iter().map(|a| (a.slice, a.change.clone(), a.reason.as_str())).collect();
        let why = "worth too little";
        assert_eq!(told, [(0, Change::SetRank(3), why), (1, Change::Dense, why), (2, Change::Freeze, "")]);
        assert_eq!(attribute(&ranks.attributes, "metric"), Some(&Value::Text("spectrum:fisher".into())));
        assert_eq!(metric_of(&ranks, &["spectrum:fisher".into()], &[]), Some(Metric::Fisher));
    }
}
