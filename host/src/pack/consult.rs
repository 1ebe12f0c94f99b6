//! A rank policy asked about a pack: it is shown the singular values of each update as one observation of phase
//! `compress`, as in a run, and its plan is checked as in a run.
//!
//! A slice is here what an adapter adds: all components awake are the adapter as it is (`dense` in a plan), and
//! one costs outputs + inputs parameters.

use super::error::{Error, Result};
use super::key;
use super::rerank::{Goal, Sources};
use crate::plastic::plan::{self, Subject};
use crate::plastic::policies::{Policies, Undecided};
use crate::plastic::state::DENSE;
use crate::plugin::contract::{self, Observation, Plan, Series, Slice, SliceState};
use std::collections::BTreeMap;

/// The statistic that packs have.
const NEED: &str = "spectrum:plain";

/// What a policy decided.
#[derive(Clone, Debug)]
pub struct Decision {
    /// What is kept.
    pub goal: Goal,
    /// Its plan.
    pub plan: Plan,
    /// Parameters it leaves awake.
    pub parameters: u64,
    /// Those that it may.
    pub budget: u64,
}

/// Asks a policy. Without a budget it may keep everything.
///
/// # Errors
/// When it does not serve the phase, needs what a pack does not have, fails, or breaks a rule; or where its plan
/// leaves more awake than the budget.
pub fn ask(policies: &mut Policies, sources: &Sources, budget: Option<u64>, seed: u64) -> Result<Decision> {
    let name = policies.line.first().map_or_else(String::new, |s| s.name().to_owned());
    let wrong = |why: String| Error::Other(format!("{name}: {why}"));
    for info in policies.infos() {
        if !info.phases.iter().any(|p| p == "compress") {
            return Err(wrong(format!("serves {}, not compress", info.phases.join(", "))));
        }
        if let Some(need) = info.needs.iter().find(|n| *n != NEED) {
            return Err(wrong(format!(
                "needs {need}, but a pack alone has {NEED} only; many policies take it with --policy-opt metric=plain"
            )));
        }
    }
    let mut keys: Vec<&String> = sources.keys().collect();
    keys.sort_by(|a, b| key::order(a, b));
    let slices: Vec<Slice> = (0..).zip(&keys).filter_map(|(i, k)| Some(slice(k, i, sources.get(*k)?))).collect();
    let parameters: u64 = slices.iter().map(|s| s.dense_parameters).sum();
    let budget = budget.unwrap_or(parameters).min(parameters);
    let run = contract::Run { phase: "compress".into(), seed, steps: 1, parameters, budget, attributes: Vec::new() };
    let fault = |f: crate::plugin::Fault| Error::Other(f.to_string());
    policies.start(&run, &slices).map_err(fault)?;
    let names = vec![NEED.to_owned()];
    let seen = observation(&keys, &slices, sources, parameters);
    let subjects: Vec<Subject> = slices.iter().map(|_| Subject { awake: DENSE, frozen: false }).collect();
    let spectra = |slice: u32, need: u32| -> Option<&[f32]> {
        let s = seen.series.iter().find(|s| s.slice == slice && s.need == need)?;
        seen.values.get(s.offset as usize..(s.offset + s.len) as usize)
    };
    let resolve = |plan: &Plan| plan::resolve(plan, &slices, &subjects, budget, &spectra);
    let decided = match policies.decide(&seen, &names, &resolve) {
        Ok(decided) => decided,
        Err(Undecided::Fault(f)) => return Err(fault(f)),
        Err(Undecided::Refused { policy, refusal, .. }) => return Err(Error::Other(format!("{policy}: {refusal}"))),
    };
    let resolved = resolve(&decided.plan).map_err(|r| wrong(r.to_string()))?;
    if resolved.parameters > budget {
        return Err(wrong(format!(
            "leaves {} parameters awake in one step, but the budget is {budget}; raise the budget or use another policy",
            resolved.parameters
        )));
    }
    let kept = keys.iter().zip(&slices).zip(&resolved.awake);
    let kept: BTreeMap<String, Vec<usize>> = kept
        .map(|((k, s), awake)| ((*k).clone(), awake.components(s.max_rank).iter().map(|c| *c as usize).collect()))
        .collect();
    Ok(Decision { goal: Goal::These(kept), plan: decided.plan, parameters: resolved.parameters, budget })
}

fn slice(key: &str, group: u32, source: &super::rerank::Source) -> Slice {
    let (rows, cols) = (source.whole.a.rows as u32, source.whole.b.cols as u32);
    let rank = source.svd.values.len().min(source.whole.rank()) as u32;
    let each = u64::from(rows) + u64::from(cols);
    Slice {
        name: key::to_slice(key).unwrap_or_else(|| key.to_owned()),
        layer: key::layer(key).unwrap_or_default(),
        kind: key.rsplit('.').next().unwrap_or_default().to_owned(),
        group,
        rows,
        cols,
        max_rank: rank,
        dense_parameters: u64::from(rank) * each,
        component_parameters: each,
        attributes: Vec::new(),
    }
}

fn observation(keys: &[&String], slices: &[Slice], sources: &Sources, parameters: u64) -> Observation {
    let (mut series, mut values) = (Vec::new(), Vec::<f32>::new());
    for ((number, key), s) in (0..).zip(keys).zip(slices) {
        let of = sources.get(*key).map_or(&[][..], |x| x.svd.values.as_slice());
        series.push(Series { slice: number, need: 0, offset: values.len() as u32, len: s.max_rank });
        values.extend(of.iter().take(s.max_rank as usize).map(|v| *v as f32));
    }
    let state = |s: &Slice| SliceState {
        awake: s.max_rank,
        dense: true,
        dense_allowed: true,
        frozen: false,
        dwell: 0,
        parameters: s.dense_parameters,
        bytes: 2 * s.dense_parameters,
        parked_bytes: 0,
    };
    Observation {
        step: 1,
        awake: parameters,
        slices: slices.iter().map(state).collect(),
        series,
        values,
        ..Observation::default()
    }
}
