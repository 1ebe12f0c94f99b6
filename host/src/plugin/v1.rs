//! Version 1 of the contract on wasmtime: bindings made from `plugin-api/wit`, and the way from the
//! host's records ([`contract`](super::contract)) to the bindings' and back.
//!
//! Large lists (singular values) are lent to the guest, not copied on the way.

use super::contract as c;

/// World `rank-policy`.
#[allow(missing_docs, reason = "generated code; rank.wit has the documentation")]
pub(super) mod policy {
    wasmtime::component::bindgen!({
        path: "../plugin-api/wit",
        world: "rank-policy",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
    pub use exports::plastic::rank::policy::*;
    pub use plastic::rank::types;
}

/// World `evaluator`.
#[allow(missing_docs, reason = "generated code; rank.wit has the documentation")]
pub(super) mod evaluator {
    wasmtime::component::bindgen!({
        path: "../plugin-api/wit",
        world: "evaluator",
        ownership: Borrowing { duplicate_if_necessary: true },
        imports: { default: trappable },
    });
    pub use exports::plastic::rank::judge::*;
    pub use plastic::rank::{measure, types};
}

/// Each world has its own copy of the shared types; these conversions serve either.
macro_rules! shared_types {
    ($world:ident, $info:ident, $attribute_in:ident, $attribute_out:ident) => {
        /// Who the plugin is.
        pub(super) fn $info(i: $world::types::Info) -> c::Info {
            let $world::types::Info { name, version, summary, phases, needs, options_schema, attributes } = i;
            let attributes = attributes.into_iter().map($attribute_in).collect();
            c::Info { name, version, summary, phases, needs, options_schema, attributes }
        }

        fn $attribute_in(a: $world::types::AttributeResult) -> c::Attribute {
            use $world::types::ValueResult as V;
            let value = match a.value {
                V::Flag(v) => c::Value::Flag(v),
                V::Int(v) => c::Value::Int(v),
                V::Num(v) => c::Value::Num(v),
                V::Text(v) => c::Value::Text(v),
                V::Nums(v) => c::Value::Nums(v),
            };
            c::Attribute { name: a.name, value }
        }

        fn $attribute_out(a: &c::Attribute) -> $world::types::AttributeParam<'_> {
            use $world::types::ValueParam as V;
            let value = match &a.value {
                c::Value::Flag(v) => V::Flag(*v),
                c::Value::Int(v) => V::Int(*v),
                c::Value::Num(v) => V::Num(*v),
                c::Value::Text(v) => V::Text(v),
                c::Value::Nums(v) => V::Nums(v),
            };
            $world::types::AttributeParam { name: &a.name, value }
        }
    };
}

shared_types!(policy, policy_info, policy_attribute, to_policy_attribute);
shared_types!(evaluator, evaluator_info, evaluator_attribute, to_evaluator_attribute);

/// Lends a run and its slices to `f` as the bindings want them.
pub(super) fn with_run<R>(
    run: &c::Run,
    slices: &[c::Slice],
    f: impl FnOnce(policy::Run<'_>, &[policy::Slice<'_>]) -> R,
) -> R {
    let run_attributes: Vec<_> = run.attributes.iter().map(to_policy_attribute).collect();
    let attributes: Vec<Vec<_>> =
        slices.iter().map(|s| s.attributes.iter().map(to_policy_attribute).collect()).collect();
    let slices: Vec<_> = slices
        .iter()
        .zip(&attributes)
        .map(|(s, attributes)| policy::Slice {
            name: &s.name,
            layer: s.layer,
            kind: &s.kind,
            group: s.group,
            rows: s.rows,
            cols: s.cols,
            max_rank: s.max_rank,
            dense_parameters: s.dense_parameters,
            component_parameters: s.component_parameters,
            attributes,
        })
        .collect();
    let run = policy::Run {
        phase: &run.phase,
        seed: run.seed,
        steps: run.steps,
        parameters: run.parameters,
        budget: run.budget,
        attributes: &run_attributes,
    };
    f(run, &slices)
}

/// Lends an observation to `f` as the bindings want it.
pub(super) fn with_observation<R>(o: &c::Observation, f: impl FnOnce(policy::Observation<'_>) -> R) -> R {
    let slices: Vec<_> = o
        .slices
        .iter()
        .map(|s| policy::SliceState {
            awake: s.awake,
            dense: s.dense,
            dense_allowed: s.dense_allowed,
            frozen: s.frozen,
            dwell: s.dwell,
            parameters: s.parameters,
            bytes: s.bytes,
            parked_bytes: s.parked_bytes,
        })
        .collect();
    let spectra: Vec<_> = o
        .spectra
        .iter()
        .map(|s| policy::Spectrum { slice: s.slice, need: s.need, offset: s.offset, len: s.len })
        .collect();
    let metrics: Vec<_> = o
        .metrics
        .iter()
        .map(|m| policy::types::Metric {
            name: &m.name,
            value: m.value,
            unit: &m.unit,
            higher_is_better: m.higher_is_better,
            low: m.low,
            high: m.high,
        })
        .collect();
    let last = o.last.as_ref().map(|l| policy::Outcome {
        step: l.step,
        fate: &l.fate,
        reason: &l.reason,
        predicted: l.predicted,
        measured: l.measured,
    });
    let attributes: Vec<_> = o.attributes.iter().map(to_policy_attribute).collect();
    f(policy::Observation {
        step: o.step,
        awake: o.awake,
        slices: &slices,
        spectra: &spectra,
        values: &o.values,
        asleep: &o.asleep,
        metrics: &metrics,
        last,
        attributes: &attributes,
    })
}

/// A plan as the host holds it.
pub(super) fn plan(p: policy::Plan) -> c::Plan {
    let change = |change: policy::Change| match change {
        policy::Change::SetRank(r) => c::Change::SetRank(r),
        policy::Change::SleepN(n) => c::Change::SleepN(n),
        policy::Change::WakeN(n) => c::Change::WakeN(n),
        policy::Change::Sleep(list) => c::Change::Sleep(list),
        policy::Change::Wake(list) => c::Change::Wake(list),
        policy::Change::Dense => c::Change::Dense,
        policy::Change::Freeze => c::Change::Freeze,
        policy::Change::Thaw => c::Change::Thaw,
    };
    let action = |a: policy::Action| c::Action { slice: a.slice, change: change(a.change), reason: a.reason };
    c::Plan {
        actions: p.actions.into_iter().map(action).collect(),
        threshold: p.threshold.map(|t| c::Threshold { need: t.need, level: t.level, reason: t.reason }),
        predicted: p.predicted,
        requests: p.requests,
        stop: p.stop,
        attributes: p.attributes.into_iter().map(policy_attribute).collect(),
    }
}

/// Lends a task to `f` as the bindings want it.
pub(super) fn with_task<R>(t: &c::Task, f: impl FnOnce(evaluator::Task<'_>) -> R) -> R {
    let attributes: Vec<_> = t.attributes.iter().map(to_evaluator_attribute).collect();
    f(evaluator::Task { step: t.step, seed: t.seed, attributes: &attributes })
}

/// A verdict as the host holds it.
pub(super) fn verdict(v: evaluator::Verdict) -> c::Verdict {
    let decision = match v.decision {
        evaluator::Decision::Accept => c::Decision::Accept,
        evaluator::Decision::Reject => c::Decision::Reject,
        evaluator::Decision::Abstain => c::Decision::Abstain,
    };
    let metric = |m: evaluator::types::Metric| c::Metric {
        name: m.name,
        value: m.value,
        unit: m.unit,
        higher_is_better: m.higher_is_better,
        low: m.low,
        high: m.high,
    };
    c::Verdict { decision, reason: v.reason, metrics: v.metrics.into_iter().map(metric).collect() }
}

/// A metric as the bindings want it.
pub(super) fn metric(m: c::Metric) -> evaluator::types::Metric {
    let c::Metric { name, value, unit, higher_is_better, low, high } = m;
    evaluator::types::Metric { name, value, unit, higher_is_better, low, high }
}
