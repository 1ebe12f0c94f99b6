//! The policy `hysteresis`: follow the wanted ranks without following their noise.
//!
//! At every step water-filling in the metric of the loss says which ranks w are wanted under the
//! budget ([`plastic_plugin::water`]). Each slice's rank r follows a moving average of that,
//!
//! ```text
//! a ← a + α (w - a),      r ← a   only if  |a - r| > band · r_dense  and  r has stood for `dwell` steps,
//! ```
//!
//! where r_dense is the rank whose factors cost as much as the dense slice. The average takes out
//! what comes and goes, the dead band what is too small to matter, the dwell time bounds how often a
//! slice can change whatever happens: on-off control with dead zone and hysteresis (Åström & Murray,
//! Feedback Systems, 2008, chapter 1). Two wants that differ by less than the band never make a slice
//! go to and fro.
//!
//! In a pipeline the wanted ranks are those that the policy before it proposed.
//!
//! While more is awake than the budget allows, the band does not hold sleeping back: the budget comes
//! first. A slice wakes only as far as the budget has room. When an evaluator rejects a plan, the
//! averages go halfway back to the ranks as they are, and the next plans want less.

mod memory;

use memory::Memory;
use plastic_plugin::keep::{self, Keep};
use plastic_plugin::prelude::*;
use plastic_plugin::spectrum;
use plastic_plugin::water::{self, Basin};

plastic_plugin::options! {
    /// Options of the hysteresis policy.
    pub struct Options {
        /// Weight α of the newest want in its moving average; 1 follows at once.
        #[range(0.01..=1.0)]
        pub smoothing: f64 = 0.5,
        /// Half the width of the dead band, as a share of the rank whose factors cost as much as the dense slice.
        #[range(0.0..=1.0)]
        pub band: f64 = 0.05,
        /// Steps a slice stays as it is after a change, at least.
        #[range(0..=1000000)]
        pub dwell: u32 = 1,
        /// Components every slice keeps at least.
        #[range(1..=65536)]
        pub min_rank: u32 = 1,
    }
}

/// The policy and what it remembers from step to step.
#[derive(Default)]
pub struct Hysteresis {
    options: Options,
    memory: Memory,
}

impl RankPolicy for Hysteresis {
    type Options = Options;

    const REVISES: bool = true;

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn start(&mut self, _: &Run, slices: &[Slice]) -> Result<(), String> {
        self.memory = Memory::new(slices.len());
        Ok(())
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let mut plan = Plan::new();
        if let Some(why) = self.memory.goal.learn(seen) {
            plan.stop(why);
            return Ok(plan);
        }
        let (slices, fixed) = keep::open(seen);
        let wanted: Vec<usize> = match &seen.proposed {
            Some(plan) => slices.iter().map(|s| rank_of(*s, keep::proposed(plan, *s))).collect(),
            None => match self.memory.goal.aim(seen, seen.run().budget, false) {
                Ok(aim) => self.wanted(&slices, aim, fixed)?,
                Err(why) => {
                    plan.stop(why);
                    return Ok(plan);
                }
            },
        };
        let was_rejected = seen.last.as_ref().is_some_and(|l| l.fate == "rejected");
        self.follow(&slices, &wanted, was_rejected);

        let kept = self.keep(seen, &slices);
        for (slice, keep) in slices.iter().zip(&kept) {
            let average = self.memory.averages[slice.id()].unwrap_or(0.0);
            let rule = format!("the wanted rank averages {average:.1}, {} now", keep::rank_now(*slice));
            keep::put(&mut plan, *slice, *keep, &keep::reason(*slice, slice.spectrum("fisher"), *keep, rule));
        }
        plan.predict(keep::predicted(seen, &kept)?);
        if let Some(why) = seen.proposed.as_ref().and_then(|p| p.stop.clone()) {
            plan.stop(why);
        } else if plan.actions.is_empty() && self.is_settled(seen, &slices, &wanted) {
            plan.stop(format!(
                "settled: no slice is further than {:.1} % from the rank it should have",
                100.0 * self.options.band
            ));
        }
        Ok(plan)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.memory.to_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.memory = Memory::from_bytes(state, self.memory.averages.len())?;
        Ok(())
    }
}

impl Hysteresis {
    /// The ranks that water-filling wants.
    fn wanted(&self, slices: &[SliceView], aim: u64, fixed: u64) -> Result<Vec<usize>, String> {
        let basins: Vec<Basin> = slices.iter().map(|s| Basin::of(*s, "fisher")).collect::<Result<_, _>>()?;
        let min_rank = self.options.min_rank as usize;
        let filled = water::fill(&basins, aim.saturating_sub(fixed), min_rank).ok_or_else(|| {
            format!(
                "{aim} parameters are too few for {min_rank} components (min_rank) in every slice; raise the budget"
            )
        })?;
        Ok(slices.iter().zip(filled).map(|(s, k)| rank_of(*s, k)).collect())
    }

    /// Moves the averages. They begin at the ranks as they are.
    fn follow(&mut self, slices: &[SliceView], wanted: &[usize], was_rejected: bool) {
        for (slice, &wanted) in slices.iter().zip(wanted) {
            let now = keep::rank_now(*slice) as f64;
            let average = self.memory.averages[slice.id()].get_or_insert(now);
            if was_rejected {
                *average = 0.5 * (*average + now);
            } else {
                *average += self.options.smoothing * (wanted as f64 - *average);
            }
        }
    }

    /// What becomes of each slice: those that sleep first, then those that wake, by worth, as far as
    /// there is room.
    fn keep(&self, seen: &Observation, slices: &[SliceView]) -> Vec<Keep> {
        let mut kept: Vec<Keep> = slices.iter().map(|s| Keep::now(*s)).collect();
        let mut awake = seen.awake;
        let mut wake = Vec::new();
        for (i, slice) in slices.iter().enumerate().filter(|(_, s)| self.is_free(seen, **s)) {
            let Some(average) = self.memory.averages[slice.id()] else { continue };
            let (rank, now) = (average.round() as usize, keep::rank_now(*slice));
            let band = self.options.band * keep::break_even(*slice) as f64;
            let beyond = (average - now as f64).abs() > band;
            if rank < now && (beyond || seen.awake > seen.run().budget) {
                kept[i] = Keep::cheapest(*slice, rank.max(self.options.min_rank as usize));
                awake -= slice.state().parameters.saturating_sub(kept[i].parameters(*slice));
            } else if rank > now && beyond {
                wake.push((i, rank));
            }
        }
        let worth = |i: usize| {
            let next = slices[i].spectrum("fisher").get(slices[i].awake()).copied().unwrap_or(0.0);
            spectrum::square(next) / slices[i].parameters(1).max(1) as f64
        };
        wake.sort_by(|(a, _), (b, _)| worth(*b).total_cmp(&worth(*a)).then(a.cmp(b)));
        for (i, rank) in wake {
            let keep = Keep::cheapest(slices[i], rank);
            let more = keep.parameters(slices[i]).saturating_sub(slices[i].state().parameters);
            if awake + more <= seen.run().budget {
                (kept[i], awake) = (keep, awake + more);
            }
        }
        kept
    }

    /// Whether a slice has stood long enough. One that never changed has.
    fn is_free(&self, seen: &Observation, slice: SliceView) -> bool {
        let dwell = slice.state().dwell;
        dwell >= self.options.dwell || dwell + 1 >= seen.step
    }

    /// Nothing will change any more while the wants stay as they are.
    fn is_settled(&self, seen: &Observation, slices: &[SliceView], wanted: &[usize]) -> bool {
        slices.iter().zip(wanted).all(|(s, w)| {
            let average = self.memory.averages[s.id()].unwrap_or(*w as f64);
            self.is_free(seen, *s) && (average - *w as f64).abs() < 0.5
        })
    }
}

/// A rank; of a dense slice, the one whose factors cost as much.
fn rank_of(slice: SliceView, keep: Keep) -> usize {
    match keep {
        Keep::Rank(rank) => rank,
        Keep::Dense => keep::break_even(slice),
    }
}

export_policy!(Hysteresis, name: "hysteresis");

#[cfg(test)]
mod tests;
