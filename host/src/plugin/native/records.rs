//! The contract's records across the border: lent to the plugin for one call, read from its answers.
#![allow(unsafe_code, reason = "reads what a native library lends")]

use super::super::contract as c;
use super::abi::{self, Facts, Misread, Reader, Sized32, Str, View};

/// Lends a run and its slices to `f`.
pub fn with_run<R>(run: &c::Run, slices: &[c::Slice], f: impl FnOnce(&abi::Run, View<abi::Slice>) -> R) -> R {
    let facts = Facts::of(&run.attributes);
    let slice_facts: Vec<Facts<'_>> = slices.iter().map(|s| Facts::of(&s.attributes)).collect();
    let lend = |(s, facts): (&c::Slice, &Facts<'_>)| abi::Slice {
        layer: s.layer,
        name: Str::of(&s.name),
        kind: Str::of(&s.kind),
        group: s.group,
        rows: s.rows,
        cols: s.cols,
        max_rank: s.max_rank,
        dense_parameters: s.dense_parameters,
        component_parameters: s.component_parameters,
        attributes: facts.view(),
        ..abi::Slice::new()
    };
    let slices: Vec<abi::Slice> = slices.iter().zip(&slice_facts).map(lend).collect();
    let run = abi::Run {
        steps: run.steps,
        phase: Str::of(&run.phase),
        seed: run.seed,
        parameters: run.parameters,
        budget: run.budget,
        attributes: facts.view(),
        ..abi::Run::new()
    };
    f(&run, View::of(&slices))
}

/// Lends an observation to `f`.
pub fn with_observation<R>(o: &c::Observation, f: impl FnOnce(&abi::Observation) -> R) -> R {
    let state = |s: &c::SliceState| abi::SliceState {
        awake: s.awake,
        dwell: s.dwell,
        dense: u8::from(s.dense),
        dense_allowed: u8::from(s.dense_allowed),
        frozen: u8::from(s.frozen),
        parameters: s.parameters,
        bytes: s.bytes,
        parked_bytes: s.parked_bytes,
        ..abi::SliceState::new()
    };
    let lend = |s: &c::Series| abi::Series {
        slice: s.slice,
        need: s.need,
        offset: s.offset,
        len: s.len,
        ..abi::Series::new()
    };
    let slices: Vec<abi::SliceState> = o.slices.iter().map(state).collect();
    let series: Vec<abi::Series> = o.series.iter().map(lend).collect();
    let metrics = abi::lend_metrics(&o.metrics);
    let measured = o.last.as_ref().map_or_else(Vec::new, |l| abi::lend_metrics(&l.metrics));
    let last = o.last.as_ref().map(|l| abi::Outcome {
        step: l.step,
        fate: Str::of(&l.fate),
        reason: Str::of(&l.reason),
        has_predicted: u8::from(l.predicted.is_some()),
        has_measured: u8::from(l.measured.is_some()),
        predicted: l.predicted.unwrap_or(0.0),
        measured: l.measured.unwrap_or(0.0),
        metrics: View::of(&measured),
        ..abi::Outcome::new()
    });
    let parts = o.proposed.as_ref().map(PlanParts::of);
    let proposed = o.proposed.as_ref().zip(parts.as_ref()).map(|(plan, parts)| parts.lend(plan));
    let facts = Facts::of(&o.attributes);
    f(&abi::Observation {
        step: o.step,
        awake: o.awake,
        slices: View::of(&slices),
        series: View::of(&series),
        values: View::of(&o.values),
        asleep: View::of(&o.asleep),
        metrics: View::of(&metrics),
        last: last.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
        proposed: proposed.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
        attributes: facts.view(),
        ..abi::Observation::new()
    })
}

/// The lists of a proposed plan while it is lent.
struct PlanParts<'a> {
    actions: Vec<abi::Action>,
    threshold: Option<abi::Threshold>,
    requests: Vec<Str>,
    facts: Facts<'a>,
}

impl<'a> PlanParts<'a> {
    fn of(p: &'a c::Plan) -> PlanParts<'a> {
        let action = |a: &c::Action| {
            let (change, n, components) = abi::lend_change(&a.change);
            abi::Action { slice: a.slice, change, n, components, reason: Str::of(&a.reason), ..abi::Action::new() }
        };
        let threshold = |t: &c::Threshold| abi::Threshold {
            need: t.need,
            level: t.level,
            reason: Str::of(&t.reason),
            ..abi::Threshold::new()
        };
        PlanParts {
            actions: p.actions.iter().map(action).collect(),
            threshold: p.threshold.as_ref().map(threshold),
            requests: p.requests.iter().map(|r| Str::of(r)).collect(),
            facts: Facts::of(&p.attributes),
        }
    }

    fn lend(&self, p: &c::Plan) -> abi::Plan {
        abi::Plan {
            has_predicted: u8::from(p.predicted.is_some()),
            has_stop: u8::from(p.stop.is_some()),
            actions: View::of(&self.actions),
            threshold: self.threshold.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            predicted: p.predicted.unwrap_or(0.0),
            requests: View::of(&self.requests),
            stop: p.stop.as_deref().map_or(Str::EMPTY, Str::of),
            attributes: self.facts.view(),
            ..abi::Plan::new()
        }
    }
}

/// Lends a task to `f`.
pub fn with_task<R>(t: &c::Task, f: impl FnOnce(&abi::Task) -> R) -> R {
    let facts = Facts::of(&t.attributes);
    f(&abi::Task { step: t.step, seed: t.seed, attributes: facts.view(), ..abi::Task::new() })
}

/// Reads a description.
///
/// # Safety
/// As [`Reader::one`], for all that it points at.
pub unsafe fn info(reader: &mut Reader, at: *const abi::Info) -> Result<c::Info, Misread> {
    // SAFETY: the caller's word.
    unsafe {
        let i = reader.one(at, size_of::<abi::Info>(), "the description")?;
        Ok(c::Info {
            name: reader.string(i.name, "the name")?,
            version: reader.string(i.version, "the version")?,
            summary: reader.string(i.summary, "the summary")?,
            phases: reader.strings(i.phases, "the list of phases")?,
            needs: reader.strings(i.needs, "the list of needs")?,
            options_schema: reader.string(i.options_schema, "the schema of the options")?,
            attributes: abi::attributes(reader, i.attributes, "the list of attributes")?,
        })
    }
}

/// Reads a plan.
///
/// # Safety
/// As [`Reader::one`], for all that it points at.
pub unsafe fn plan(reader: &mut Reader, at: *const abi::Plan) -> Result<c::Plan, Misread> {
    // SAFETY: the caller's word.
    unsafe {
        let p = reader.one(at, size_of::<abi::Plan>(), "the plan")?;
        let list = reader.records(p.actions, size_of::<abi::Action>(), "the list of actions")?;
        let mut actions = Vec::with_capacity(list.len());
        for a in list {
            let change = abi::change(reader, &a, "the list of components")?;
            actions.push(c::Action { slice: a.slice, change, reason: reader.string(a.reason, "a reason")? });
        }
        let threshold = match p.threshold.is_null() {
            true => None,
            false => {
                let t = reader.one(p.threshold, size_of::<abi::Threshold>(), "the threshold")?;
                let reason = reader.string(t.reason, "the reason of the threshold")?;
                Some(c::Threshold { need: t.need, level: t.level, reason })
            }
        };
        let stop = match p.has_stop {
            0 => None,
            _ => Some(reader.string(p.stop, "the reason to stop")?),
        };
        Ok(c::Plan {
            actions,
            threshold,
            predicted: (p.has_predicted != 0).then_some(p.predicted),
            requests: reader.strings(p.requests, "the list of requests")?,
            stop,
            attributes: abi::attributes(reader, p.attributes, "the list of attributes")?,
        })
    }
}

/// Reads a verdict.
///
/// # Safety
/// As [`Reader::one`], for all that it points at.
pub unsafe fn verdict(reader: &mut Reader, at: *const abi::Verdict) -> Result<c::Verdict, Misread> {
    // SAFETY: the caller's word.
    unsafe {
        let v = reader.one(at, size_of::<abi::Verdict>(), "the verdict")?;
        let decision = match v.decision {
            abi::decision::ACCEPT => c::Decision::Accept,
            abi::decision::REJECT => c::Decision::Reject,
            abi::decision::ABSTAIN => c::Decision::Abstain,
            other => return Err(Misread::Broken(format!("there is no decision {other}"))),
        };
        Ok(c::Verdict {
            decision,
            reason: reader.string(v.reason, "the reason")?,
            metrics: abi::metrics(reader, v.metrics, "the list of metrics")?,
            attributes: abi::attributes(reader, v.attributes, "the list of attributes")?,
        })
    }
}
