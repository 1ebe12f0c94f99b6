//! The policy `plateau`: put rank to sleep while the loss stays flat, wake it when the loss rises.
//!
//! This is the controller of mlx-plastic-rank (PlasticityManager, v0.1.1). With l the loss at a step:
//!
//! ```text
//! |l - l_before| < delta   the loss is flat: go a notch towards the wanted ranks,
//!   l - l_before > gamma   it rose: wake half of what the last notch put to sleep,
//!                          and make the next notch half as large.
//! ```
//!
//! The wanted rank of a slice is the smallest that holds the share `energy` of its energy, fewer
//! where the budget allows fewer. What differs from the original, and why:
//!
//! - a step does one thing, never both at once;
//! - a slice that had to wake is not put to sleep below that rank again, so that the two rules do
//!   not chase each other for ever;
//! - all of a notch can wake, not one component a slice;
//! - the way is taken in notches, so that a rise can be laid to the notch before it;
//! - a rejected notch counts as a rise that has been taken back already.
//!
//! A plan may not leave more awake than the budget *and* than now: above the budget nothing wakes,
//! the notches only become smaller.

mod memory;

use memory::Memory;
use plastic_plugin::keep::{self, Keep};
use plastic_plugin::prelude::*;
use plastic_plugin::{level, spectrum};

/// How often a notch is halved before the policy gives in.
const HALVINGS: u32 = 6;

plastic_plugin::options! {
    /// Options of the plateau policy.
    pub struct Options {
        /// Metric of the evaluator to watch; less is better.
        pub watch: String = "loss-increase".into(),
        /// The loss is flat where it changes less than this.
        #[range(0.0..=100.0)]
        pub delta: f64 = 0.05,
        /// The loss rises where it grows by more than this.
        #[range(0.0..=100.0)]
        pub gamma: f64 = 0.2,
        /// Share of a slice's energy (metric fisher) its wanted rank holds.
        #[range(0.0..=1.0)]
        pub energy: f64 = 0.9999,
        /// Share of the way to the wanted ranks that the first notch takes.
        #[range(0.01..=1.0)]
        pub notch: f64 = 0.25,
        /// Components every slice keeps at least.
        #[range(1..=65536)]
        pub min_rank: u32 = 1,
    }
}

/// The policy and what it remembers from step to step.
#[derive(Default)]
pub struct Plateau {
    options: Options,
    memory: Memory,
}

impl RankPolicy for Plateau {
    type Options = Options;

    fn configure(&mut self, options: Options) -> Result<(), String> {
        if options.gamma < options.delta {
            let Options { gamma, delta, .. } = options;
            return Err(format!("option gamma is {gamma}, expected {delta} (delta) or more: what rises is not flat"));
        }
        self.options = options;
        Ok(())
    }

    fn start(&mut self, _: &Run, slices: &[Slice]) -> Result<(), String> {
        self.memory = Memory::new(slices.len());
        Ok(())
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let mut plan = Plan::new();
        match seen.last.as_ref().map(|l| (l.fate.as_str(), &l.reason)) {
            Some(("rejected", _)) => self.memory.took_back(),
            Some((fate @ ("refused" | "failed"), why)) => {
                plan.stop(format!("the last plan was {fate}: {why}"));
                return Ok(plan);
            }
            _ => {}
        }
        if self.memory.halvings > HALVINGS {
            plan.stop(format!("the loss rose or a plan was rejected {} times", self.memory.halvings));
            return Ok(plan);
        }
        let (slices, _) = keep::open(seen);
        let spectra: Vec<&[f32]> = slices.iter().map(|s| spectrum::checked(*s, "fisher")).collect::<Result<_, _>>()?;
        let rise = self.rise(seen);
        let kept = if rise > self.options.gamma {
            self.wake(seen, &slices)
        } else if rise.abs() < self.options.delta {
            self.sleep(seen, &slices, &spectra)
        } else {
            slices.iter().map(|s| Keep::now(*s)).collect()
        };
        let verb = if rise > self.options.gamma { "rose" } else { "is flat" };
        for ((slice, keep), values) in slices.iter().zip(&kept).zip(spectra) {
            let why = keep::reason(*slice, values, *keep, format!("the loss {verb} ({rise:+.4})"));
            keep::put(&mut plan, *slice, *keep, &why);
        }
        plan.predict(keep::predicted(seen, &kept)?);
        if plan.actions.is_empty() && rise.abs() < self.options.delta {
            plan.stop("the loss is flat and every slice is at its wanted rank, or where it had to wake");
        }
        Ok(plan)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.memory.to_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.memory = Memory::from_bytes(state, self.memory.slices())?;
        Ok(())
    }
}

impl Plateau {
    /// How much the loss grew since the last step; 0 where nothing is measured yet.
    fn rise(&mut self, seen: &Observation) -> f64 {
        let watch = &self.options.watch;
        let Some(loss) = seen.metrics.iter().find(|m| m.name == *watch).map(|m| m.value) else { return 0.0 };
        // Before the first measurement the model is the base, of which the rise is none.
        let first = if watch == "loss-increase" { 0.0 } else { loss };
        let before = self.memory.loss.replace(loss).unwrap_or(first);
        loss - before
    }

    /// A notch towards the wanted ranks.
    fn sleep(&mut self, seen: &Observation, slices: &[SliceView], spectra: &[&[f32]]) -> Vec<Keep> {
        let min_rank = self.options.min_rank as usize;
        let now = level::parameters(slices, &slices.iter().map(|s| Keep::now(*s)).collect::<Vec<_>>());
        let allowed = seen.run().budget.saturating_sub(seen.awake.saturating_sub(now));

        // Wanted: what holds the energy, scaled down where that is more than the budget.
        let holds: Vec<usize> = spectra.iter().map(|s| spectrum::energy_rank(s, self.options.energy)).collect();
        let scaled = |i: usize, share: f64| (share.min(1.0) * holds[i] as f64).ceil() as usize;
        let wanted = match level::fill(slices, allowed, min_rank, scaled) {
            Some((_, wanted)) => wanted,
            None => level::at(slices, min_rank, 0.0, scaled),
        };
        let ends: Vec<usize> = slices
            .iter()
            .zip(wanted)
            .map(|(s, k)| {
                let end = if let Keep::Rank(rank) = k { rank } else { keep::break_even(*s) };
                end.max(self.memory.floor[s.id()]).min(keep::rank_now(*s))
            })
            .collect();

        // A notch of the way, counted in parameters; the rest of it where that is next to nothing.
        let between = |i: usize, share: f64| {
            let (end, start) = (ends[i], keep::rank_now(slices[i]));
            end + (share.min(1.0) * (start - end) as f64).ceil() as usize
        };
        let end = level::at(slices, min_rank, 0.0, between);
        let way = now.saturating_sub(level::parameters(slices, &end));
        let notch = match way <= seen.run().parameters / 200 {
            true => way,
            false => (way as f64 * self.notch()).ceil() as u64,
        };
        let kept = level::fill(slices, now - notch, min_rank, between).map_or(end, |(_, kept)| kept);
        for (slice, keep) in slices.iter().zip(&kept) {
            let rank = if let Keep::Rank(rank) = *keep { rank } else { keep::break_even(*slice) };
            self.memory.slept[slice.id()] = keep::rank_now(*slice).saturating_sub(rank);
        }
        kept
    }

    /// Half of what the last notch put to sleep wakes, as far as the budget goes; where a component
    /// more is worth most comes first.
    fn wake(&mut self, seen: &Observation, slices: &[SliceView]) -> Vec<Keep> {
        let mut kept: Vec<Keep> = slices.iter().map(|s| Keep::now(*s)).collect();
        let mut room = seen.run().budget.saturating_sub(seen.awake);
        let worth = |s: SliceView| {
            let next = s.spectrum("fisher").get(s.awake()).copied().unwrap_or(0.0);
            spectrum::square(next) / s.parameters(1).max(1) as f64
        };
        let mut order: Vec<usize> = (0..slices.len()).filter(|&i| !slices[i].is_dense()).collect();
        order.sort_by(|&a, &b| worth(slices[b]).total_cmp(&worth(slices[a])).then(a.cmp(&b)));
        for i in order {
            let slice = slices[i];
            let fit = (room / slice.parameters(1).max(1)) as usize;
            let more = self.memory.slept[slice.id()].div_ceil(2).min(fit).min(slice.max_rank() - slice.awake());
            if more > 0 {
                let rank = slice.awake() + more;
                kept[i] = Keep::cheapest(slice, rank);
                room -= kept[i].parameters(slice).saturating_sub(slice.state().parameters).min(room);
                self.memory.floor[slice.id()] = rank;
            }
        }
        self.memory.took_back();
        kept
    }

    fn notch(&self) -> f64 {
        self.options.notch / f64::from(1u32 << self.memory.halvings.min(31))
    }
}

export_policy!(Plateau, name: "plateau");

#[cfg(test)]
mod tests;
