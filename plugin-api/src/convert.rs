//! From the generated records of the bindings to the SDK's and back. Values move, they are not copied.

use crate::bindings::evaluator::exports::plastic::rank::judge;
use crate::bindings::evaluator::plastic::rank::types as judge_types;
use crate::bindings::policy::exports::plastic::rank::policy;
use crate::bindings::policy::plastic::rank::types;
use crate::observation::Observation;
use crate::plan::{Action, Change, Plan, SliceId, Threshold};
use crate::records::{Attribute, Metric, Outcome, Run, Series, Slice, SliceState, Value};
use crate::verdict::{Decision, Task, Verdict};

/// Both worlds generate their own copy of the shared types; these conversions serve either.
macro_rules! shared_types {
    ($types:ident, $attribute_in:ident, $attribute_out:ident, $metric_in:ident, $metric_out:ident) => {
        pub fn $attribute_in(a: $types::Attribute) -> Attribute {
            use $types::Value as V;
            let value = match a.value {
                V::Flag(v) => Value::Flag(v),
                V::Int(v) => Value::Int(v),
                V::Num(v) => Value::Num(v),
                V::Text(v) => Value::Text(v),
                V::Nums(v) => Value::Nums(v),
                V::Texts(v) => Value::Texts(v),
            };
            Attribute { name: a.name, value }
        }

        #[allow(dead_code, reason = "one world sends no attributes")]
        pub fn $attribute_out(a: Attribute) -> $types::Attribute {
            use $types::Value as V;
            let value = match a.value {
                Value::Flag(v) => V::Flag(v),
                Value::Int(v) => V::Int(v),
                Value::Num(v) => V::Num(v),
                Value::Text(v) => V::Text(v),
                Value::Nums(v) => V::Nums(v),
                Value::Texts(v) => V::Texts(v),
            };
            $types::Attribute { name: a.name, value }
        }

        pub fn $metric_in(m: $types::Metric) -> Metric {
            let $types::Metric { name, value, unit, higher_is_better, low, high } = m;
            Metric { name, value, unit, higher_is_better, low, high }
        }

        #[allow(dead_code, reason = "one world sends no metrics")]
        pub fn $metric_out(m: Metric) -> $types::Metric {
            let Metric { name, value, unit, higher_is_better, low, high } = m;
            $types::Metric { name, value, unit, higher_is_better, low, high }
        }
    };
}

shared_types!(types, attribute_from_policy, attribute_to_policy, metric_from_policy, metric_to_policy);
shared_types!(
    judge_types,
    attribute_from_evaluator,
    attribute_to_evaluator,
    metric_from_evaluator,
    metric_to_evaluator
);

pub fn run(r: policy::Run) -> Run {
    let policy::Run { phase, seed, steps, parameters, budget, attributes } = r;
    let attributes = attributes.into_iter().map(attribute_from_policy).collect();
    Run { phase, seed, steps, parameters, budget, attributes }
}

pub fn slice(s: policy::Slice) -> Slice {
    Slice {
        name: s.name,
        layer: s.layer,
        kind: s.kind,
        group: s.group,
        rows: s.rows,
        cols: s.cols,
        max_rank: s.max_rank,
        dense_parameters: s.dense_parameters,
        component_parameters: s.component_parameters,
        attributes: s.attributes.into_iter().map(attribute_from_policy).collect(),
    }
}

pub fn observation(o: policy::Observation) -> Observation {
    let state = |s: policy::SliceState| SliceState {
        awake: s.awake,
        dense: s.dense,
        dense_allowed: s.dense_allowed,
        frozen: s.frozen,
        dwell: s.dwell,
        parameters: s.parameters,
        bytes: s.bytes,
        parked_bytes: s.parked_bytes,
    };
    let series = |s: policy::Series| Series { slice: s.slice, need: s.need, offset: s.offset, len: s.len };
    let outcome = |o: policy::Outcome| {
        let policy::Outcome { step, fate, reason, predicted, measured, metrics } = o;
        let metrics = metrics.into_iter().map(metric_from_policy).collect();
        Outcome { step, fate, reason, predicted, measured, metrics }
    };
    Observation {
        step: o.step,
        awake: o.awake,
        metrics: o.metrics.into_iter().map(metric_from_policy).collect(),
        last: o.last.map(outcome),
        attributes: o.attributes.into_iter().map(attribute_from_policy).collect(),
        states: o.slices.into_iter().map(state).collect(),
        series: o.series.into_iter().map(series).collect(),
        proposed: o.proposed.map(proposal),
        values: o.values,
        asleep: o.asleep,
        ..Observation::default()
    }
}

/// The plan of the policies before this one: the host has turned its threshold into ranks.
fn proposal(p: policy::Plan) -> Plan {
    let change = |c: policy::Change| match c {
        policy::Change::SetRank(r) => Change::SetRank(r),
        policy::Change::SleepN(n) => Change::SleepN(n),
        policy::Change::WakeN(n) => Change::WakeN(n),
        policy::Change::Sleep(list) => Change::Sleep(list),
        policy::Change::Wake(list) => Change::Wake(list),
        policy::Change::Dense => Change::Dense,
        policy::Change::Freeze => Change::Freeze,
        policy::Change::Thaw => Change::Thaw,
    };
    let action = |a: policy::Action| Action { slice: SliceId(a.slice), change: change(a.change), reason: a.reason };
    Plan {
        actions: p.actions.into_iter().map(action).collect(),
        threshold: None,
        predicted: p.predicted,
        requests: p.requests,
        stop: p.stop,
        attributes: p.attributes.into_iter().map(attribute_from_policy).collect(),
    }
}

/// The place of a threshold's statistic in the needs.
///
/// # Errors
/// It is not there.
pub fn need_of(threshold: &Threshold, needs: &[String]) -> Result<u32, String> {
    let name = format!("spectrum:{}", threshold.metric);
    let place = needs.iter().position(|n| *n == name);
    let need = place.ok_or_else(|| format!("the plan's threshold is in {name}, which the policy does not need"))?;
    Ok(need as u32)
}

/// # Errors
/// As [`need_of`].
pub fn plan(p: Plan, needs: &[String]) -> Result<policy::Plan, String> {
    let change = |c: Change| match c {
        Change::SetRank(r) => policy::Change::SetRank(r),
        Change::SleepN(n) => policy::Change::SleepN(n),
        Change::WakeN(n) => policy::Change::WakeN(n),
        Change::Sleep(list) => policy::Change::Sleep(list),
        Change::Wake(list) => policy::Change::Wake(list),
        Change::Dense => policy::Change::Dense,
        Change::Freeze => policy::Change::Freeze,
        Change::Thaw => policy::Change::Thaw,
    };
    let threshold = match p.threshold {
        None => None,
        Some(t) => Some(policy::Threshold { need: need_of(&t, needs)?, level: t.level, reason: t.reason }),
    };
    Ok(policy::Plan {
        actions: p
            .actions
            .into_iter()
            .map(|a| policy::Action { slice: a.slice.0, change: change(a.change), reason: a.reason })
            .collect(),
        threshold,
        predicted: p.predicted,
        requests: p.requests,
        stop: p.stop,
        attributes: p.attributes.into_iter().map(attribute_to_policy).collect(),
    })
}

pub fn task(t: judge::Task) -> Task {
    let attributes = t.attributes.into_iter().map(attribute_from_evaluator).collect();
    Task { step: t.step, seed: t.seed, attributes }
}

pub fn verdict(v: Verdict) -> judge::Verdict {
    let decision = match v.decision {
        Decision::Accept => judge::Decision::Accept,
        Decision::Reject => judge::Decision::Reject,
        Decision::Abstain => judge::Decision::Abstain,
    };
    let metrics = v.metrics.into_iter().map(metric_to_evaluator).collect();
    let attributes = v.attributes.into_iter().map(attribute_to_evaluator).collect();
    judge::Verdict { decision, reason: v.reason, metrics, attributes }
}
