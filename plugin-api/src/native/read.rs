//! What the host lends, as the SDK's records.
//!
//! # Safety
//! Every function here trusts the host: what it lends is what the header says.

use crate::abi::{self, Misread, Reader};
use crate::observation::Observation;
use crate::plan::{Action, Plan, SliceId};
use crate::records::{Outcome, Run, Series, Slice, SliceState};
use crate::verdict::Task;

/// One struct of the host's, by pointer.
unsafe fn one<T: abi::Sized32>(reader: &mut Reader, at: *const T, what: &str) -> Result<T, Misread> {
    // SAFETY: see the module.
    unsafe { reader.one(at, size_of::<T>(), what) }
}

pub unsafe fn run(reader: &mut Reader, at: *const abi::Run) -> Result<Run, Misread> {
    // SAFETY: see the module.
    unsafe {
        let r = one(reader, at, "run")?;
        let phase = reader.string(r.phase, "run.phase")?;
        let attributes = abi::attributes(reader, r.attributes, "run.attributes")?;
        Ok(Run { phase, seed: r.seed, steps: r.steps, parameters: r.parameters, budget: r.budget, attributes })
    }
}

pub unsafe fn slices(reader: &mut Reader, list: abi::View<abi::Slice>) -> Result<Vec<Slice>, Misread> {
    // SAFETY: see the module.
    let list = unsafe { reader.records(list, size_of::<abi::Slice>(), "slices")? };
    let slice = |s: abi::Slice| {
        // SAFETY: see the module.
        let (name, kind, attributes) = unsafe {
            let name = reader.string(s.name, "slice.name")?;
            let kind = reader.string(s.kind, "slice.kind")?;
            (name, kind, abi::attributes(reader, s.attributes, "slice.attributes")?)
        };
        Ok(Slice {
            name,
            layer: s.layer,
            kind,
            group: s.group,
            rows: s.rows,
            cols: s.cols,
            max_rank: s.max_rank,
            dense_parameters: s.dense_parameters,
            component_parameters: s.component_parameters,
            attributes,
        })
    };
    list.into_iter().map(slice).collect()
}

pub unsafe fn observation(reader: &mut Reader, at: *const abi::Observation) -> Result<Observation, Misread> {
    // SAFETY: see the module.
    unsafe {
        let o = one(reader, at, "observation")?;
        let state = |s: abi::SliceState| SliceState {
            awake: s.awake,
            dense: s.dense != 0,
            dense_allowed: s.dense_allowed != 0,
            frozen: s.frozen != 0,
            dwell: s.dwell,
            parameters: s.parameters,
            bytes: s.bytes,
            parked_bytes: s.parked_bytes,
        };
        let series = |s: abi::Series| Series { slice: s.slice, need: s.need, offset: s.offset, len: s.len };
        let states = reader.records(o.slices, size_of::<abi::SliceState>(), "observation.slices")?;
        let all_series = reader.records(o.series, size_of::<abi::Series>(), "observation.series")?;
        let last = match o.last.is_null() {
            true => None,
            false => Some(outcome(reader, o.last)?),
        };
        let proposed = match o.proposed.is_null() {
            true => None,
            false => Some(proposal(reader, o.proposed)?),
        };
        Ok(Observation {
            step: o.step,
            awake: o.awake,
            states: states.into_iter().map(state).collect(),
            series: all_series.into_iter().map(series).collect(),
            values: reader.list(o.values, "observation.values")?.to_vec(),
            asleep: reader.list(o.asleep, "observation.asleep")?.to_vec(),
            metrics: abi::metrics(reader, o.metrics, "observation.metrics")?,
            last,
            proposed,
            attributes: abi::attributes(reader, o.attributes, "observation.attributes")?,
            ..Observation::default()
        })
    }
}

unsafe fn outcome(reader: &mut Reader, at: *const abi::Outcome) -> Result<Outcome, Misread> {
    // SAFETY: see the module.
    unsafe {
        let o = one(reader, at, "outcome")?;
        Ok(Outcome {
            step: o.step,
            fate: reader.string(o.fate, "outcome.fate")?,
            reason: reader.string(o.reason, "outcome.reason")?,
            predicted: (o.has_predicted != 0).then_some(o.predicted),
            measured: (o.has_measured != 0).then_some(o.measured),
            metrics: abi::metrics(reader, o.metrics, "outcome.metrics")?,
        })
    }
}

/// The plan of the policies before this one: the host has turned its threshold into ranks.
unsafe fn proposal(reader: &mut Reader, at: *const abi::Plan) -> Result<Plan, Misread> {
    // SAFETY: see the module.
    unsafe {
        let p = one(reader, at, "proposed plan")?;
        let mut actions = Vec::new();
        for a in reader.records(p.actions, size_of::<abi::Action>(), "proposed actions")? {
            let change = abi::change(reader, &a, "proposed action")?;
            let reason = reader.string(a.reason, "proposed reason")?;
            actions.push(Action { slice: SliceId(a.slice), change, reason });
        }
        let stop = match p.has_stop {
            0 => None,
            _ => Some(reader.string(p.stop, "proposed stop")?),
        };
        Ok(Plan {
            actions,
            threshold: None,
            predicted: (p.has_predicted != 0).then_some(p.predicted),
            requests: reader.strings(p.requests, "proposed requests")?,
            stop,
            attributes: abi::attributes(reader, p.attributes, "proposed attributes")?,
        })
    }
}

pub unsafe fn task(reader: &mut Reader, at: *const abi::Task) -> Result<Task, Misread> {
    // SAFETY: see the module.
    unsafe {
        let t = one(reader, at, "task")?;
        Ok(Task { step: t.step, seed: t.seed, attributes: abi::attributes(reader, t.attributes, "task.attributes")? })
    }
}
