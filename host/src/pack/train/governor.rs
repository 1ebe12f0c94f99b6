//! Ranks that grow and shrink while a pack learns: the loop observe → decide → validate → apply → measure → keep
//! or take back, with the same policies as everywhere, in the phase `train`.
//!
//! A component is a column of A with its row of B. It is numbered by its place in the spectrum that the first
//! policy asked for, largest first:
//!
//! - `spectrum:plain`: its size `s |a| |b|`, s the scale alpha / r.
//! - `spectrum:fisher`: √(mean over tokens of (∂L / ∂c)²), where c multiplies the component at one token and L is
//!   the summed loss of one batch; half its square predicts the rise of the loss, nats per token, while it sleeps.
//!   The labels are the text's own (the empirical Fisher information), so it is a ranking before it is a forecast.
//! - `gradient:plain`, `importance:plain`: moving averages (β = 0.85, as AdaLoRA, Zhang et al. 2023) of
//!   |∂L / ∂a| / |b|, and of |a · ∂L / ∂a|, which is what the loss changes to first order while it sleeps.
//!
//! No change is kept whose measured rise of the loss on the next batch exceeds the limit.

use super::super::error::{Error, Result};
use super::bank::{Bank, floats};
use super::options::RankOptions;
use super::targets::Target;
use crate::mlx::Array;
use crate::model::SliceMeta;
use crate::plastic::plan::{self, Refusal, Resolved, Subject};
use crate::plastic::policies::{Policies, Undecided};
use crate::plastic::state::{Awake, DENSE};
use crate::plugin::contract::{Attribute, Metric, Observation, Outcome, Plan, Run, Series, Slice, SliceState, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Weight of the past in a moving average.
const BETA: f32 = 0.85;
/// What can be computed of a pack in training.
const OFFERED: [&str; 4] = ["spectrum:plain", "spectrum:fisher", "gradient:plain", "importance:plain"];

/// What became of a decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// After this update.
    pub step: u32,
    /// From 1.
    pub decision: u32,
    /// `committed`, `held`, `rejected`, `refused` or `failed`.
    pub fate: String,
    /// Why.
    pub reason: String,
    /// What the policies answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Loss of the next batch before and after the change, nats per token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<(f64, f64)>,
    /// Awake components of each slice afterwards, by number.
    pub awake: Vec<Vec<u32>>,
}

/// What is carried over a resume.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    decision: u32,
    frozen: Vec<bool>,
    changed: Vec<u32>,
    gradient: Vec<Vec<f32>>,
    importance: Vec<Vec<f32>>,
    last: Option<Outcome>,
    /// States of the policies, in hexadecimal.
    states: Vec<String>,
    plan: Option<Plan>,
    /// Why the policies take no more decisions.
    stopped: Option<String>,
}

/// What an update leaves for the next decision.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Update.
    pub step: u32,
    /// Updates in all.
    pub steps: u32,
    /// Loss of the last one.
    pub loss: f64,
    /// Last validation, where there was one.
    pub valid: Option<f64>,
    /// Learning rate.
    pub rate: f64,
}

/// Lends the model to a decision.
pub trait Probe {
    /// Mean loss of the probe batch with these banks, nats per token.
    ///
    /// # Errors
    /// When MLX fails.
    fn loss(&mut self, banks: &[Bank]) -> Result<f64>;
    /// √(mean (∂L / ∂c)²) of every component of every bank, by number.
    ///
    /// # Errors
    /// When MLX fails.
    fn fisher(&mut self, banks: &[Bank]) -> Result<Vec<Vec<f32>>>;
}

/// Asks the policies and does what they say, as far as the rules allow.
pub struct Governor {
    policies: Policies,
    options: RankOptions,
    slices: Vec<Slice>,
    scales: Vec<f32>,
    run: Run,
    budget: u32,
    kept: Kept,
}

impl Governor {
    /// Begins a training for the policies.
    ///
    /// # Errors
    /// When one does not serve the phase, needs what a training cannot compute, or refuses it.
    pub fn new(
        mut policies: Policies,
        options: &RankOptions,
        targets: &[Target],
        banks: &[Bank],
        metas: &[SliceMeta],
        seed: u64,
        steps: u32,
    ) -> Result<Governor> {
        policies.check_order().map_err(Error::Other)?;
        for info in policies.infos() {
            if !info.phases.iter().any(|p| p == "train") {
                return Err(Error::Other(format!(
                    "{}: serves the phases {}, not train; choose a policy that does (`plastic-host plugin list`)",
                    info.name,
                    info.phases.join(", ")
                )));
            }
            if let Some(need) = info.needs.iter().find(|n| !OFFERED.contains(&n.as_str())) {
                return Err(Error::Other(format!(
                    "{}: needs {need}, which a training cannot compute; it offers {} (options of the policy may change what it needs)",
                    info.name,
                    OFFERED.join(", ")
                )));
            }
        }
        let slices: Vec<Slice> = targets
            .iter()
            .zip(banks)
            .map(|(t, b)| {
                let m = &metas[t.position];
                let one = u64::from(m.rows) + u64::from(m.cols);
                Slice {
                    name: m.name.clone(),
                    layer: m.layer,
                    kind: m.kind.clone(),
                    group: m.group,
                    rows: m.rows,
                    cols: m.cols,
                    max_rank: b.capacity as u32,
                    dense_parameters: one * b.capacity as u64,
                    component_parameters: one,
                    attributes: Vec::new(),
                }
            })
            .collect();
        let awake: u32 = banks.iter().map(|b| b.rank() as u32).sum();
        let budget = match (options.budget, options.share) {
            (Some(n), _) => n,
            (None, Some(share)) => (share * f64::from(awake)).round() as u32,
            (None, None) => awake,
        };
        // In parameters, the budget is that of as many components of average size.
        let each = slices.iter().map(|s| s.component_parameters).sum::<u64>() as f64 / slices.len().max(1) as f64;
        let started: u64 = slices.iter().zip(banks).map(|(s, b)| s.component_parameters * b.rank() as u64).sum();
        let parameters = match options.share {
            Some(share) => (share * started as f64) as u64,
            None => (f64::from(budget) * each) as u64,
        };
        let run = Run {
            phase: "train".into(),
            seed,
            steps: steps.saturating_sub(options.warmup) / options.interval + 1,
            parameters: slices.iter().map(|s| s.dense_parameters).sum(),
            budget: parameters,
            attributes: attributes(options, budget, steps),
        };
        policies.start(&run, &slices).map_err(|f| Error::Other(f.to_string()))?;
        let n = slices.len();
        let zeros: Vec<Vec<f32>> = banks.iter().map(|b| vec![0.0; b.capacity]).collect();
        Ok(Governor {
            policies,
            options: options.clone(),
            scales: targets.iter().map(|t| t.alpha / t.rank.max(1) as f32).collect(),
            slices,
            run,
            budget,
            kept: Kept {
                decision: 0,
                frozen: vec![false; n],
                changed: vec![0; n],
                gradient: zeros.clone(),
                importance: zeros,
                last: None,
                states: Vec::new(),
                plan: None,
                stopped: None,
            },
        })
    }

    /// First line of the history: who decides about what.
    pub fn opening(&mut self, banks: &[Bank]) -> serde_json::Value {
        let policies: Vec<serde_json::Value> = self
            .policies
            .line
            .iter()
            .map(|s| serde_json::json!({ "name": s.policy.info().name, "version": s.policy.info().version, "sha256": s.policy.origin().sha256 }))
            .collect();
        serde_json::json!({
            "step": 0, "policies": policies, "rank_budget": self.budget,
            "slices": self.slices.iter().map(|s| &s.name).collect::<Vec<_>>(),
            "most": self.slices.iter().map(|s| s.max_rank).collect::<Vec<_>>(),
            "awake": banks.iter().map(|b| &b.awake).collect::<Vec<_>>(),
        })
    }

    /// Takes the gradients of an update into the moving averages.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn learn(&mut self, banks: &[Bank], gradients: &[Array]) -> Result<()> {
        let mut at = 0;
        let mut parts = Vec::new();
        for bank in banks {
            let ga = &gradients[at];
            at += bank.live.arrays().count();
            let of_a = ga.square()?.sum_axis(0, false)?.sqrt()?;
            let of_b = bank.live.b.square()?.sum_axis(1, false)?.sqrt()?;
            parts.push(of_a.divide(of_b.add(Array::from_f32(1e-12))?)?);
            parts.push(bank.live.a.multiply(ga)?.sum_axis(0, false)?.abs()?);
        }
        crate::mlx::eval(&parts)?;
        for (i, bank) in banks.iter().enumerate() {
            for (part, averages) in [&mut self.kept.gradient, &mut self.kept.importance].into_iter().enumerate() {
                for (n, x) in bank.awake.iter().zip(floats(&parts[2 * i + part])?) {
                    let old = &mut averages[i][*n as usize];
                    *old = if *old == 0.0 { x } else { BETA * *old + (1.0 - BETA) * x };
                }
            }
        }
        Ok(())
    }

    /// Whether a decision follows this update.
    pub fn due(&self, step: u32) -> bool {
        let past = step.checked_sub(self.options.warmup.max(1));
        self.kept.stopped.is_none() && past.is_some_and(|p| p.is_multiple_of(self.options.interval))
    }

    /// Asks the policies and changes the banks as they say, unless a rule or the probe is against it.
    ///
    /// # Errors
    /// When MLX fails; whatever a policy does ends in a [`Decision`].
    pub fn decide(&mut self, banks: &mut Vec<Bank>, facts: &Facts, probe: &mut dyn Probe) -> Result<Decision> {
        self.kept.decision += 1;
        let names = self.policies.needs();
        if let Some(bad) = names.iter().find(|n| !OFFERED.contains(&n.as_str())) {
            let why =
                format!("a plan requested {bad}, which a training cannot compute; it offers {}", OFFERED.join(", "));
            self.policies.hear(None, false);
            return Ok(self.ended(banks, facts, "refused", why, None, None));
        }
        let statistics = self.statistics(&names, banks, probe)?;
        let by = names.iter().find(|n| n.starts_with("spectrum:"));
        let orders = match by.and_then(|n| statistics.get(n)) {
            Some(values) => order(values, banks),
            None => order(&self.sizes(banks)?, banks),
        };
        let subjects: Vec<Subject> = banks
            .iter()
            .zip(&orders)
            .zip(&self.kept.frozen)
            .map(|((b, o), frozen)| Subject { awake: places(b, o), frozen: *frozen })
            .collect();
        let seen = self.observe(&names, &statistics, &orders, banks, &subjects, facts);
        let (slices, run, rank_budget) = (&self.slices, &self.run, self.options.share.is_none());
        let now: u32 = banks.iter().map(|b| b.rank() as u32).sum();
        let (budget, most) = (self.budget, self.budget.max(now));
        // A budget in components is not one in parameters as well.
        let parameters = if rank_budget { run.parameters } else { run.budget };
        let spectra = |slice: u32, need: u32| {
            let s = seen.series.iter().find(|s| s.slice == slice && s.need == need)?;
            seen.values.get(s.offset as usize..(s.offset + s.len) as usize)
        };
        let resolve = |plan: &Plan| -> std::result::Result<Resolved, Refusal> {
            let resolved = plan::resolve(plan, slices, &subjects, parameters, &spectra)?;
            let after: u32 = resolved.awake.iter().zip(slices).map(|(a, s)| a.rank(s.max_rank)).sum();
            match rank_budget && after > most {
                true => Err(Refusal::OverRankBudget { components: after, budget, now }),
                false => Ok(resolved),
            }
        };
        let decided = self.policies.decide(&seen, &names, &resolve);
        let (plan, resolved) = match decided {
            Err(Undecided::Fault(fault)) => {
                self.policies.hear(None, false);
                return Ok(self.ended(banks, facts, "failed", fault.to_string(), None, None));
            }
            Err(Undecided::Refused { refusal, plan, .. }) => {
                self.policies.hear(None, false);
                return Ok(self.ended(banks, facts, "refused", refusal.to_string(), Some(*plan), None));
            }
            Ok(decided) => match resolve(&decided.plan) {
                Err(refusal) => {
                    self.policies.hear(None, false);
                    return Ok(self.ended(banks, facts, "refused", refusal.to_string(), Some(decided.plan), None));
                }
                Ok(resolved) => {
                    self.policies.hear(Some(&decided), false);
                    (decided.plan, resolved)
                }
            },
        };
        self.kept.frozen.clone_from(&resolved.frozen);
        self.kept.stopped.clone_from(&plan.stop);
        if resolved.changed.is_empty() {
            return Ok(self.ended(
                banks,
                facts,
                "held",
                plan.stop.clone().unwrap_or_else(|| "nothing to change".into()),
                Some(plan),
                None,
            ));
        }
        let mut candidate = banks.clone();
        for &i in &resolved.changed {
            let order = &orders[i];
            let chosen = resolved.awake[i].components(self.slices[i].max_rank);
            let mut numbers: Vec<u32> = chosen.iter().filter_map(|p| order.get(*p as usize).copied()).collect();
            numbers.sort_unstable();
            candidate[i].set_awake(&numbers)?;
        }
        let losses = (probe.loss(banks)?, probe.loss(&candidate)?);
        let rise = losses.1 - losses.0;
        if !rise.is_finite() || rise > self.options.max_rise {
            let why = format!(
                "the loss of the next batch rises by {rise:.4} nats per token, more than {}",
                self.options.max_rise
            );
            return Ok(self.ended(banks, facts, "rejected", why, Some(plan), Some(losses)));
        }
        let after: usize = candidate.iter().map(Bank::rank).sum();
        let why =
            format!("{} slices changed, {now} → {after} components, {rise:+.4} nats per token", resolved.changed.len());
        for &i in &resolved.changed {
            self.kept.changed[i] = self.kept.decision;
        }
        *banks = candidate;
        Ok(self.ended(banks, facts, "committed", why, Some(plan), Some(losses)))
    }

    fn ended(
        &mut self,
        banks: &[Bank],
        facts: &Facts,
        fate: &str,
        reason: String,
        plan: Option<Plan>,
        losses: Option<(f64, f64)>,
    ) -> Decision {
        self.kept.last = Some(Outcome {
            step: self.kept.decision,
            fate: fate.into(),
            reason: reason.clone(),
            predicted: plan.as_ref().and_then(|p| p.predicted),
            measured: losses.map(|(before, after)| after - before),
            metrics: losses.map_or_else(Vec::new, |(before, after)| vec![nats("loss-increase", after - before)]),
        });
        self.kept.plan.clone_from(&plan);
        Decision {
            step: facts.step,
            decision: self.kept.decision,
            fate: fate.into(),
            reason,
            plan,
            losses,
            awake: banks.iter().map(|b| b.awake.clone()).collect(),
        }
    }

    /// Sizes of all components, by number, at the scale they have in the model.
    fn sizes(&self, banks: &[Bank]) -> Result<Vec<Vec<f32>>> {
        let scaled = |(b, s): (&Bank, &f32)| Ok(b.sizes()?.iter().map(|x| x * s).collect());
        banks.iter().zip(&self.scales).map(scaled).collect()
    }

    fn statistics(
        &self,
        names: &[String],
        banks: &[Bank],
        probe: &mut dyn Probe,
    ) -> Result<BTreeMap<String, Vec<Vec<f32>>>> {
        let mut out = BTreeMap::new();
        for name in names {
            let values = match name.as_str() {
                "spectrum:fisher" => probe.fisher(banks)?,
                "gradient:plain" => self.kept.gradient.clone(),
                "importance:plain" => self.kept.importance.clone(),
                _ => self.sizes(banks)?,
            };
            out.insert(name.clone(), values);
        }
        Ok(out)
    }

    fn observe(
        &self,
        names: &[String],
        statistics: &BTreeMap<String, Vec<Vec<f32>>>,
        orders: &[Vec<u32>],
        banks: &[Bank],
        subjects: &[Subject],
        facts: &Facts,
    ) -> Observation {
        let (mut series, mut values, mut asleep) = (Vec::new(), Vec::new(), Vec::new());
        let scattered = subjects.iter().any(|s| matches!(s.awake, Awake::These(_)));
        for (need, name) in names.iter().enumerate() {
            for (i, of) in statistics.get(name).into_iter().flatten().enumerate() {
                series.push(Series {
                    slice: i as u32,
                    need: need as u32,
                    offset: values.len() as u32,
                    len: of.len() as u32,
                });
                values.extend(orders[i].iter().map(|n| of[*n as usize]));
                if scattered {
                    asleep.extend(orders[i].iter().map(|n| u8::from(banks[i].awake.binary_search(n).is_err())));
                }
            }
        }
        let state = |(i, b): (usize, &Bank)| {
            let s = &self.slices[i];
            let parameters = s.component_parameters * b.rank() as u64;
            SliceState {
                awake: b.rank() as u32,
                dense: b.rank() == b.capacity,
                dense_allowed: true,
                frozen: self.kept.frozen[i],
                dwell: self.kept.decision.saturating_sub(1 + self.kept.changed[i]),
                parameters,
                bytes: 4 * parameters,
                parked_bytes: 12 * s.component_parameters * (b.capacity - b.rank()) as u64,
            }
        };
        let slices: Vec<SliceState> = banks.iter().enumerate().map(state).collect();
        let mut metrics = vec![nats("train-loss", facts.loss)];
        metrics.extend(facts.valid.map(|v| nats("valid-loss", v)));
        Observation {
            step: self.kept.decision,
            awake: slices.iter().map(|s| s.parameters).sum(),
            slices,
            series,
            values,
            asleep,
            metrics,
            last: self.kept.last.clone(),
            proposed: None,
            attributes: attributes(&self.options, self.budget, facts.steps)
                .into_iter()
                .chain([
                    number("update", i64::from(facts.step)),
                    number("awake-rank", banks.iter().map(|b| b.rank() as i64).sum()),
                    Attribute { name: "learning-rate".into(), value: Value::Num(facts.rate) },
                ])
                .collect(),
        }
    }

    /// What is carried over a resume.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn snapshot(&mut self) -> Result<serde_json::Value> {
        self.kept.states = self.policies.snapshots().iter().map(|s| crate::model::hash::hex(s)).collect();
        serde_json::to_value(&self.kept).map_err(|e| Error::Other(e.to_string()))
    }

    /// Goes on from a snapshot.
    ///
    /// # Errors
    /// When it is not of this training, or a policy refuses its state.
    pub fn restore(&mut self, kept: &serde_json::Value) -> Result<()> {
        let kept: Kept = serde_json::from_value(kept.clone())
            .map_err(|e| Error::Other(format!("the state of the ranks cannot be read: {e}")))?;
        let states: Vec<Vec<u8>> = kept.states.iter().map(|s| crate::plastic::step::from_hex(s)).collect();
        self.policies.restore(&states).map_err(|f| Error::Other(f.to_string()))?;
        for seat in &mut self.policies.line {
            seat.hear(kept.plan.as_ref());
        }
        self.kept = kept;
        Ok(())
    }
}

/// Numbers of the components of each bank, largest value first; equal ones by number, awake ones before.
fn order(values: &[Vec<f32>], banks: &[Bank]) -> Vec<Vec<u32>> {
    let one = |(v, b): (&Vec<f32>, &Bank)| {
        let mut numbers: Vec<u32> = (0..v.len() as u32).collect();
        let awake = |n: &u32| b.awake.binary_search(n).is_ok();
        numbers.sort_by(|x, y| {
            v[*y as usize].total_cmp(&v[*x as usize]).then_with(|| awake(y).cmp(&awake(x))).then(x.cmp(y))
        });
        numbers
    };
    values.iter().zip(banks).map(one).collect()
}

/// The awake components of a bank, by their places in an order.
fn places(bank: &Bank, order: &[u32]) -> Awake {
    if bank.rank() == bank.capacity {
        return DENSE;
    }
    let awake = |(_, n): &(u32, &u32)| bank.awake.binary_search(n).is_ok();
    Awake::from_components((0u32..).zip(order).filter(awake).map(|(place, _)| place).collect())
}

/// What does not change: the budget in components, where that is the one that counts, and the updates in all.
fn attributes(options: &RankOptions, budget: u32, steps: u32) -> Vec<Attribute> {
    let budget = options.share.is_none().then(|| number("rank-budget", i64::from(budget)));
    budget.into_iter().chain([number("updates", i64::from(steps))]).collect()
}

fn number(name: &str, value: i64) -> Attribute {
    Attribute { name: name.into(), value: Value::Int(value) }
}

fn nats(name: &str, value: f64) -> Metric {
    Metric { name: name.into(), value, unit: "nats".into(), higher_is_better: false, low: None, high: None }
}
