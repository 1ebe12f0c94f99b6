//! The policy `guardrail`: keep measured figures within limits by putting rank to sleep, and wake it
//! when there is room.
//!
//! A limit L of a figure x, and how far the figure is beyond it (negative: within):
//!
//! ```text
//! excess = x / L - 1   where less is better,      excess = L / x - 1   where more is better.
//! ```
//!
//! Figures are what the evaluator reports (`scored-tokens-per-second`, `resident-bytes`), the bytes
//! that awake components occupy (sleep only adds to the parked ones), and the parameters awake
//! against the budget. While any excess is positive, a step of rank goes to sleep: the components of
//! least predicted loss per parameter ([`plastic_plugin::water`], metric fisher). When every figure
//! has been within its limit by more than `room` for `patience` observations, a step wakes, the best
//! components first, never beyond the budget.
//!
//! What is woken and exceeds a limit at once would come and go for ever. So each such regret doubles
//! the patience, as networks back off after a collision (Metcalfe & Boggs, Ethernet, Communications
//! of the ACM 19, 1976). A step that an evaluator rejects is halved.

mod memory;

use memory::Memory;
use plastic_plugin::keep;
use plastic_plugin::prelude::*;
use plastic_plugin::water::{self, Basin};

/// How often a rejected step is halved before the policy gives in.
const HALVINGS: u32 = 3;

plastic_plugin::options! {
    /// Options of the guardrail policy.
    pub struct Options {
        /// Memory of the whole process (`resident-bytes` of the evaluator) at most, in MB of a million bytes; 0: no limit.
        #[range(0.0..=1000000000.0)]
        pub max_resident_mb: f64 = 0.0,
        /// Speed (`scored-tokens-per-second` of the evaluator) at least; 0: no limit.
        #[range(0.0..=1000000000.0)]
        pub min_tokens_per_second: f64 = 0.0,
        /// Memory of what is awake in the slices at most, in MB of a million bytes; 0: no limit. Needs no evaluator's figure.
        #[range(0.0..=1000000000.0)]
        pub max_slices_mb: f64 = 0.0,
        /// Share of all parameters that goes to sleep or wakes in one step, at most.
        #[range(0.001..=1.0)]
        pub step: f64 = 0.05,
        /// How far within every limit the figures must be before rank wakes, as a share of the limit.
        #[range(0.0..=1.0)]
        pub room: f64 = 0.1,
        /// Observations in a row with room before rank wakes.
        #[range(1..=1000000)]
        pub patience: u32 = 2,
        /// Components every slice keeps at least.
        #[range(1..=65536)]
        pub min_rank: u32 = 1,
    }
}

/// The policy and what it remembers from step to step.
#[derive(Default)]
pub struct Guardrail {
    options: Options,
    memory: Memory,
}

/// A figure beside its limit.
struct Gauge {
    name: &'static str,
    /// None where it is not measured yet.
    value: Option<f64>,
    limit: f64,
    more_is_better: bool,
}

impl Gauge {
    /// How far beyond the limit, as a share of it.
    fn excess(&self) -> Option<f64> {
        let (over, under) = if self.more_is_better { (self.limit, self.value?) } else { (self.value?, self.limit) };
        Some(if under > 0.0 { over / under - 1.0 } else { f64::INFINITY })
    }

    fn text(&self) -> String {
        let bound = if self.more_is_better { "at least" } else { "at most" };
        match self.value {
            Some(value) => format!("{} is {value:.0}, {bound} {:.0}", self.name, self.limit),
            None => format!("{} is not measured yet, {bound} {:.0}", self.name, self.limit),
        }
    }
}

impl RankPolicy for Guardrail {
    type Options = Options;

    const PHASES: &'static [&'static str] = &["compress", "serve"];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn start(&mut self, _: &Run, _: &[Slice]) -> Result<(), String> {
        self.memory = Memory::default();
        Ok(())
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let mut plan = Plan::new();
        match seen.last.as_ref().map(|l| (l.fate.as_str(), &l.reason)) {
            Some(("rejected", _)) => self.memory.rejected(),
            Some((fate @ ("refused" | "failed"), why)) => {
                plan.stop(format!("the last plan was {fate}: {why}"));
                return Ok(plan);
            }
            _ => {}
        }
        let gauges = self.gauges(seen);
        if let Some(missing) = gauges.iter().find(|g| g.value.is_none()).filter(|_| !seen.metrics.is_empty()) {
            return Err(format!(
                "{} has a limit, but the evaluator does not report it; take one that does, or leave the limit out",
                missing.name
            ));
        }
        let worst = gauges.iter().max_by(|a, b| excess_or_probe(a).total_cmp(&excess_or_probe(b)));
        let Some(worst) = worst else { return Ok(plan) };
        let excess = excess_or_probe(worst);
        let step = (self.options.step * seen.run().parameters as f64 / f64::from(1u32 << self.memory.halvings.min(31)))
            .ceil() as u64;

        if excess > 0.0 {
            self.memory.exceeded(seen.step);
            if self.memory.halvings > HALVINGS {
                plan.stop(format!("{}, but no more sleep is accepted", worst.text()));
                return Ok(plan);
            }
            // The budget alone tells how much is too much.
            let only_budget = gauges.iter().all(|g| g.name == AWAKE || excess_or_probe(g) <= 0.0);
            let least = if only_budget { seen.run().budget } else { 0 };
            if !self.spend(seen, seen.awake.saturating_sub(step).max(least), &worst.text(), &mut plan)? {
                plan.stop(format!("{}, but every slice is at the least rank (min_rank)", worst.text()));
            }
        } else if self.memory.has_room(excess < -self.options.room, self.options.patience) {
            let aim = seen.run().budget.min(seen.awake.saturating_add(step));
            if aim > seen.awake && self.spend(seen, aim, &format!("there is room: {}", worst.text()), &mut plan)? {
                self.memory.woke(seen.step);
            }
        }
        Ok(plan)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.memory.to_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.memory = Memory::from_bytes(state)?;
        Ok(())
    }
}

/// Name of the one figure that is always there.
const AWAKE: &str = "awake-parameters";

/// The excess; where nothing was measured yet, a little sleep makes the evaluator measure.
fn excess_or_probe(gauge: &Gauge) -> f64 {
    gauge.excess().unwrap_or(f64::MIN_POSITIVE)
}

impl Guardrail {
    /// Every figure with a limit.
    fn gauges(&self, seen: &Observation) -> Vec<Gauge> {
        let Options { max_resident_mb, min_tokens_per_second, max_slices_mb, .. } = self.options;
        let measured = |name: &str| seen.metrics.iter().find(|m| m.name == name).map(|m| m.value);
        let occupied: u64 = seen.slices().map(|s| s.state().bytes).sum();
        let gauge = |name, value, limit, more_is_better| Gauge { name, value, limit, more_is_better };
        let all = [
            gauge("resident-bytes", measured("resident-bytes"), 1e6 * max_resident_mb, false),
            gauge("scored-tokens-per-second", measured("scored-tokens-per-second"), min_tokens_per_second, true),
            gauge("bytes awake in the slices", Some(occupied as f64), 1e6 * max_slices_mb, false),
        ];
        let mut gauges: Vec<Gauge> = all.into_iter().filter(|g| g.limit > 0.0).collect();
        // The budget is a bound, not a figure that needs room: waking stays below it anyway.
        if seen.awake > seen.run().budget || gauges.is_empty() {
            gauges.push(gauge(AWAKE, Some(seen.awake as f64), seen.run().budget as f64, false));
        }
        gauges
    }

    /// Spends so many parameters where they are worth most; false where that is impossible.
    fn spend(&self, seen: &Observation, aim: u64, why: &str, plan: &mut Plan) -> Result<bool, String> {
        let (slices, fixed) = keep::open(seen);
        let basins: Vec<Basin> = slices.iter().map(|s| Basin::of(*s, "fisher")).collect::<Result<_, _>>()?;
        let Some(kept) = water::fill(&basins, aim.saturating_sub(fixed), self.options.min_rank as usize) else {
            return Ok(false);
        };
        for (slice, keep) in slices.iter().zip(&kept) {
            let why = keep::reason(*slice, slice.spectrum("fisher"), *keep, why.to_owned());
            keep::put(plan, *slice, *keep, &why);
        }
        plan.predict(keep::predicted(seen, &kept)?);
        Ok(!plan.actions.is_empty())
    }
}

export_policy!(Guardrail, name: "guardrail");

#[cfg(test)]
mod tests;
