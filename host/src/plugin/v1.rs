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
                V::Texts(v) => c::Value::Texts(v),
            };
            c::Attribute { name: a.name, value }
        }

        /// Lends facts to the bindings; `texts` are theirs, from [`texts`].
        fn $attribute_out<'a>(
            list: &'a [c::Attribute],
            texts: &'a [Vec<&'a str>],
        ) -> Vec<$world::types::AttributeParam<'a>> {
            use $world::types::ValueParam as V;
            let lend = |(a, texts): (&'a c::Attribute, &'a Vec<&'a str>)| {
                let value = match &a.value {
                    c::Value::Flag(v) => V::Flag(*v),
                    c::Value::Int(v) => V::Int(*v),
                    c::Value::Num(v) => V::Num(*v),
                    c::Value::Text(v) => V::Text(v),
                    c::Value::Nums(v) => V::Nums(v),
                    c::Value::Texts(_) => V::Texts(texts),
                };
                $world::types::AttributeParam { name: &a.name, value }
            };
            list.iter().zip(texts).map(lend).collect()
        }
    };
}

/// Beside each fact its list of texts, in the form the bindings lend.
fn texts(list: &[c::Attribute]) -> Vec<Vec<&str>> {
    let mut out = Vec::with_capacity(list.len());
    for a in list {
        out.push(match &a.value {
            c::Value::Texts(v) => v.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        });
    }
    out
}

shared_types!(policy, policy_info, policy_attribute, to_policy_attributes);
shared_types!(evaluator, evaluator_info, evaluator_attribute, to_evaluator_attributes);

/// Lends a run and its slices to `f` as the bindings want them.
pub(super) fn with_run<R>(
    run: &c::Run,
    slices: &[c::Slice],
    f: impl FnOnce(policy::Run<'_>, &[policy::Slice<'_>]) -> R,
) -> R {
    let run_texts = texts(&run.attributes);
    let run_attributes = to_policy_attributes(&run.attributes, &run_texts);
    let slice_texts: Vec<_> = slices.iter().map(|s| texts(&s.attributes)).collect();
    let lent = slices.iter().zip(&slice_texts);
    let attributes: Vec<Vec<_>> = lent.map(|(s, texts)| to_policy_attributes(&s.attributes, texts)).collect();
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
    let series: Vec<_> = o
        .series
        .iter()
        .map(|s| policy::Series { slice: s.slice, need: s.need, offset: s.offset, len: s.len })
        .collect();
    let metrics = lend_metrics(&o.metrics);
    let measured_last = o.last.as_ref().map_or_else(Vec::new, |l| lend_metrics(&l.metrics));
    let last = o.last.as_ref().map(|l| policy::Outcome {
        step: l.step,
        fate: &l.fate,
        reason: &l.reason,
        predicted: l.predicted,
        measured: l.measured,
        metrics: &measured_last,
    });
    let plan_texts = o.proposed.as_ref().map_or_else(Vec::new, |p| texts(&p.attributes));
    let parts = o.proposed.as_ref().map(|p| PlanParts::of(p, &plan_texts));
    let proposed = o.proposed.as_ref().zip(parts.as_ref()).map(|(p, parts)| parts.lend(p));
    let fact_texts = texts(&o.attributes);
    let attributes = to_policy_attributes(&o.attributes, &fact_texts);
    f(policy::Observation {
        step: o.step,
        awake: o.awake,
        slices: &slices,
        series: &series,
        values: &o.values,
        asleep: &o.asleep,
        metrics: &metrics,
        last,
        proposed,
        attributes: &attributes,
    })
}

fn lend_metrics(metrics: &[c::Metric]) -> Vec<policy::types::Metric<'_>> {
    let mut out = Vec::with_capacity(metrics.len());
    for c::Metric { name, value, unit, higher_is_better, low, high } in metrics {
        let (value, higher_is_better, low, high) = (*value, *higher_is_better, *low, *high);
        out.push(policy::types::Metric { name, value, unit, higher_is_better, low, high });
    }
    out
}

/// The lists of a proposed plan while it is lent.
struct PlanParts<'a> {
    actions: Vec<policy::ActionParam<'a>>,
    requests: Vec<&'a str>,
    attributes: Vec<policy::types::AttributeParam<'a>>,
}

impl<'a> PlanParts<'a> {
    fn of(p: &'a c::Plan, texts: &'a [Vec<&'a str>]) -> PlanParts<'a> {
        use policy::ChangeParam as C;
        let change = |change: &'a c::Change| match change {
            c::Change::SetRank(r) => C::SetRank(*r),
            c::Change::SleepN(n) => C::SleepN(*n),
            c::Change::WakeN(n) => C::WakeN(*n),
            c::Change::Sleep(list) => C::Sleep(list),
            c::Change::Wake(list) => C::Wake(list),
            c::Change::Dense => C::Dense,
            c::Change::Freeze => C::Freeze,
            c::Change::Thaw => C::Thaw,
        };
        let action =
            |a: &'a c::Action| policy::ActionParam { slice: a.slice, change: change(&a.change), reason: &a.reason };
        PlanParts {
            actions: p.actions.iter().map(action).collect(),
            requests: p.requests.iter().map(String::as_str).collect(),
            attributes: to_policy_attributes(&p.attributes, texts),
        }
    }

    fn lend(&'a self, p: &'a c::Plan) -> policy::PlanParam<'a> {
        let threshold = p.threshold.as_ref();
        policy::PlanParam {
            actions: &self.actions,
            threshold: threshold.map(|t| policy::ThresholdParam { need: t.need, level: t.level, reason: &t.reason }),
            predicted: p.predicted,
            requests: &self.requests,
            stop: p.stop.as_deref(),
            attributes: &self.attributes,
        }
    }
}

/// A plan as the host holds it.
pub(super) fn plan(p: policy::PlanResult) -> c::Plan {
    let change = |change: policy::ChangeResult| match change {
        policy::ChangeResult::SetRank(r) => c::Change::SetRank(r),
        policy::ChangeResult::SleepN(n) => c::Change::SleepN(n),
        policy::ChangeResult::WakeN(n) => c::Change::WakeN(n),
        policy::ChangeResult::Sleep(list) => c::Change::Sleep(list),
        policy::ChangeResult::Wake(list) => c::Change::Wake(list),
        policy::ChangeResult::Dense => c::Change::Dense,
        policy::ChangeResult::Freeze => c::Change::Freeze,
        policy::ChangeResult::Thaw => c::Change::Thaw,
    };
    let action = |a: policy::ActionResult| c::Action { slice: a.slice, change: change(a.change), reason: a.reason };
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
    let fact_texts = texts(&t.attributes);
    let attributes = to_evaluator_attributes(&t.attributes, &fact_texts);
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
    let metrics = v.metrics.into_iter().map(metric).collect();
    let attributes = v.attributes.into_iter().map(evaluator_attribute).collect();
    c::Verdict { decision, reason: v.reason, metrics, attributes }
}

/// A metric as the bindings want it.
pub(super) fn metric(m: c::Metric) -> evaluator::types::Metric {
    let c::Metric { name, value, unit, higher_is_better, low, high } = m;
    evaluator::types::Metric { name, value, unit, higher_is_better, low, high }
}
