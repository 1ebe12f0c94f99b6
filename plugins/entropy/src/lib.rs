//! The policy `entropy`: a slice's rank is in proportion to its effective rank
//!
//! ```text
//! exp(H(p)),   H(p) = - sum p_i ln p_i,   p_i = s_i / (s_1 + s_2 + ...),
//! ```
//!
//! the exponential of the entropy of its singular values, taken as a distribution (Roy & Vetterli,
//! The effective rank: a measure of effective dimensionality, EUSIPCO 2007). It is 1 where one
//! component is all there is and r where r equal ones are, and it hears the small components that
//! the stable rank does not.
//!
//! The effective rank compares slices; it does not say how many components one may lose. So every
//! slice keeps the same multiple of it, the largest that the budget allows, or the multiple that
//! `factor` says. It is blind to the slices' scales; `water-fill` sees them, and spends better where
//! they are well known, as in `fisher` with ample calibration text.

use plastic_plugin::goal::{Goal, OneLevel};
use plastic_plugin::keep;
use plastic_plugin::prelude::*;
use plastic_plugin::spectrum::{self, Spectrum};

plastic_plugin::options! {
    /// Options of the entropy policy.
    pub struct Options {
        /// Metric of the singular values: fisher (in units of loss), input, or plain.
        pub metric: Spectrum = Spectrum::Fisher,
        /// Every slice keeps this many times its effective rank, or fewer where the budget is less; 0: as many times as the budget allows.
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
pub struct Entropy {
    options: Options,
    goal: Goal,
}

impl RankPolicy for Entropy {
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
        let ranks: Vec<f64> = spectra.iter().map(|s| effective_rank(s)).collect();
        let rule = |i: usize, times: f64| (times * ranks[i]).ceil() as usize;
        let why = |i: usize, times: f64| format!("{times:.3} times its effective rank of {:.2}", ranks[i]);
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

/// exp(H(p)) of the singular values; 1 where there is none.
pub fn effective_rank(values: &[f32]) -> f64 {
    let sum: f64 = values.iter().rev().map(|s| f64::from(*s)).sum();
    if sum <= 0.0 {
        return 1.0;
    }
    let shares = values.iter().rev().map(|s| f64::from(*s) / sum).filter(|p| *p > 0.0);
    shares.map(|p| -p * p.ln()).sum::<f64>().exp()
}

export_policy!(Entropy, name: "entropy");

#[cfg(test)]
mod tests;
