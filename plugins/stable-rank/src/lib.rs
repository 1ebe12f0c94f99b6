//! The policy `stable-rank`: a slice's rank is in proportion to its stable rank
//!
//! ```text
//! ||W||_F² / ||W||_2² = (s_1² + s_2² + ...) / s_1²,
//! ```
//!
//! how many components as strong as the strongest hold the energy of all (Rudelson & Vershynin,
//! Sampling from large matrices, Journal of the ACM 54, 2007). It is 1 where one component rules
//! and min(m, n) where all are equal, and a little noise hardly moves it.
//!
//! The stable rank compares slices; it does not say how many components one may lose. So every
//! slice keeps the same multiple of it, the largest that the budget allows, or the multiple that
//! `factor` says. It is blind to the slices' scales; `water-fill` sees them, and spends better where
//! they are well known, as in `fisher` with ample calibration text.

use plastic_plugin::goal::{Goal, OneLevel};
use plastic_plugin::keep;
use plastic_plugin::prelude::*;
use plastic_plugin::spectrum::{self, Spectrum};

plastic_plugin::options! {
    /// Options of the stable-rank policy.
    pub struct Options {
        /// Metric of the singular values: fisher (in units of loss), input, or plain.
        pub metric: Spectrum = Spectrum::Fisher,
        /// Every slice keeps this many times its stable rank, or fewer where the budget is less; 0: as many times as the budget allows.
        #[range(0.0..=1000000.0)]
        pub factor: f64 = 0.0,
        /// Components every slice keeps at least.
        #[range(1..=65536)]
        pub min_rank: u32 = 1,
        /// Spread the way to the goal over the steps of the run, instead of taking it at once.
        pub ramp: bool = true,
    }
}

/// The policy and how far it has come.
#[derive(Default)]
pub struct StableRank {
    options: Options,
    goal: Goal,
}

impl RankPolicy for StableRank {
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
        let Options { metric, factor, min_rank, ramp, .. } = self.options;
        let (metric, min_rank) = (metric.as_str(), min_rank as usize);
        let (slices, _) = keep::open(seen);
        let spectra: Vec<&[f32]> = slices.iter().map(|s| spectrum::checked(*s, metric)).collect::<Result<_, _>>()?;
        let ranks: Vec<f64> = spectra.iter().map(|s| stable_rank(s)).collect();
        let rule = |i: usize, times: f64| (times * ranks[i]).ceil() as usize;
        let why = |i: usize, times: f64| format!("{times:.3} times its stable rank of {:.2}", ranks[i]);
        self.goal.step_by_level(seen, &OneLevel { metric, level: factor, min_rank, ramp }, &slices, rule, why)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.goal.to_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.goal = Goal::from_bytes(state)?;
        Ok(())
    }
}

/// Energy of all components over that of the largest; 1 where there is none.
pub fn stable_rank(values: &[f32]) -> f64 {
    let largest = values.first().map_or(0.0, |s| spectrum::square(*s));
    if largest > 0.0 { spectrum::tail(values, 0) / largest } else { 1.0 }
}

export_policy!(StableRank, name: "stable-rank");

#[cfg(test)]
mod tests;
