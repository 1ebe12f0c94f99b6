//! The policy `uniform`: the same share of every slice,
//!
//! ```text
//! rank of a slice [m, n] = floor(share · m n / (m + n)),    share = budget / Σ m n,
//! ```
//!
//! whatever its spectrum looks like. Published numbers of low-rank compression are often for this rule; here it is
//! the reference that other policies are measured against. The metric still decides which components stay.

use plastic_plugin::goal::{Goal, Way};
use plastic_plugin::keep::{self, Keep};
use plastic_plugin::prelude::*;
use plastic_plugin::spectrum::Spectrum;

plastic_plugin::options! {
    /// Options of the uniform policy.
    pub struct Options {
        /// Metric that orders the components: fisher (in units of loss), input, or plain.
        pub metric: Spectrum = Spectrum::Fisher,
        /// Components every slice keeps at least.
        #[range(1..=65536)]
        pub min_rank: u32 = 1,
        /// Spread the way to the budget over the steps of the run, instead of taking it at once.
        pub ramp: bool = true,
    }
}

/// The policy and how far it has come.
#[derive(Default)]
pub struct Uniform {
    options: Options,
    goal: Goal,
}

impl RankPolicy for Uniform {
    type Options = Options;

    const PHASES: &'static [&'static str] = &["compress", "train"];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn needs(&self) -> Vec<String> {
        vec![format!("spectrum:{}", self.options.metric)]
    }

    fn start(&mut self, _: &Run, _: &[Slice]) -> Result<(), String> {
        self.goal = Goal::default();
        Ok(())
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let Options { metric, min_rank, ramp } = self.options;
        let metric = metric.as_str();
        let (slices, _) = keep::open(seen);
        self.goal.step(seen, &Way { metric, enough: None, ramp }, |budget| {
            let all = slices.iter().map(|s| s.dense_parameters()).sum();
            let kept: Vec<Keep> = slices.iter().map(|s| even(*s, budget, all, min_rank as usize)).collect();
            let used: u64 = slices.iter().zip(&kept).map(|(s, k)| k.parameters(*s)).sum();
            let why = || format!("{:.1} % of every slice", 100.0 * budget as f64 / all.max(1) as f64);
            let reason = |(s, k): (&SliceView, Keep)| (k, keep::reason(*s, s.spectrum(metric), k, why()));
            (used <= budget || budget >= all).then(|| slices.iter().zip(kept).map(reason).collect())
        })
    }

    fn snapshot(&self) -> Vec<u8> {
        self.goal.to_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.goal = Goal::from_bytes(state)?;
        Ok(())
    }
}

/// What a slice keeps where `budget` of the `all` parameters of the dense slices may stay.
fn even(slice: SliceView, budget: u64, all: u64, min_rank: usize) -> Keep {
    if budget >= all {
        return Keep::cheapest(slice, slice.max_rank());
    }
    // In 128 bits: the product of two counts.
    let share = u128::from(budget) * u128::from(slice.dense_parameters());
    let rank = (share / (u128::from(all) * u128::from(slice.parameters(1)))) as usize;
    Keep::Rank(rank.max(min_rank).min(slice.max_rank()))
}

export_policy!(Uniform, name: "uniform");

#[cfg(test)]
mod tests;
