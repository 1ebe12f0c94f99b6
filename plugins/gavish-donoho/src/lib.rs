//! The policy `gavish-donoho`: keep the components whose singular values stand out of noise.
//!
//! Of a low-rank matrix in white noise of standard deviation σ, m × n with β = m / n <= 1, the hard
//! threshold that recovers it with the least squared error is
//!
//! ```text
//! τ = λ(β) √n σ,   λ(β)² = 2 (β + 1) + 8 β / ((β + 1) + √(β² + 14 β + 1)),   λ(1) = 4 / √3,
//! ```
//!
//! and where σ is not known, because most components are noise,
//!
//! ```text
//! τ = ω(β) median(s),   ω(β) ≈ 0.56 β³ - 0.95 β² + 1.82 β + 1.43,   ω(1) ≈ 2.86
//! ```
//!
//! (Gavish & Donoho, The optimal hard threshold for singular values is 4/√3, IEEE Transactions on
//! Information Theory 60, 2014).
//!
//! Weights of a trained model are not a small signal in white noise: the rule taken literally
//! (`factor` 1) puts much to sleep that matters. So by default the thresholds of all slices are
//! divided by the same factor, the largest that the budget allows; each slice is still measured
//! against its own noise.

use plastic_plugin::goal::{Goal, OneLevel};
use plastic_plugin::keep;
use plastic_plugin::prelude::*;
use plastic_plugin::spectrum::{self, Spectrum};

plastic_plugin::options! {
    /// Options of the gavish-donoho policy.
    pub struct Options {
        /// Metric of the singular values: fisher (in units of loss), input, or plain.
        pub metric: Spectrum = Spectrum::Fisher,
        /// Thresholds are divided by this, or by less where the budget is less: 1 is the rule itself, more keeps more; 0: by as much as the budget allows.
        #[range(0.0..=1000000.0)]
        pub factor: f64 = 0.0,
        /// Standard deviation of the noise in an entry of the matrix, in the units of the metric, if it is known; 0: from the median.
        #[range(0.0..=1000000.0)]
        pub noise: f64 = 0.0,
        /// Components every slice keeps at least.
        #[range(1..=65536)]
        pub min_rank: u32 = 1,
        /// Spread the way to the goal over the steps of the run, instead of taking it at once.
        pub ramp: bool = true,
    }
}

/// The policy and how far it has come.
#[derive(Default)]
pub struct GavishDonoho {
    options: Options,
    goal: Goal,
}

impl RankPolicy for GavishDonoho {
    type Options = Options;

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
        let noise = self.options.noise;
        let thresholds: Vec<f64> =
            slices.iter().zip(&spectra).map(|(s, v)| threshold(v, s.rows(), s.cols(), noise)).collect();
        let rule = |i: usize, times: f64| spectra[i].partition_point(|s| f64::from(*s) > thresholds[i] / times);
        let why = |i: usize, times: f64| {
            format!("above {:.3e}, 1/{times:.3} of its threshold in noise", thresholds[i] / times)
        };
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

/// The optimal hard threshold of a slice; `noise` 0 where it is not known.
pub fn threshold(values: &[f32], rows: usize, cols: usize, noise: f64) -> f64 {
    let (small, large) = (rows.min(cols) as f64, rows.max(cols) as f64);
    let beta = small / large;
    let threshold = match noise > 0.0 {
        true => lambda(beta) * large.sqrt() * noise,
        false => omega(beta) * median(values),
    };
    // Where more than half of the components are nothing at all, what is above rounding stands out.
    let rounding = f64::from(values.first().copied().unwrap_or(0.0)) * f64::from(f32::EPSILON);
    threshold.max(rounding).max(f64::MIN_POSITIVE)
}

/// For known noise.
pub fn lambda(beta: f64) -> f64 {
    let root = (beta * beta + 14.0 * beta + 1.0).sqrt();
    (2.0 * (beta + 1.0) + 8.0 * beta / ((beta + 1.0) + root)).sqrt()
}

/// For unknown noise: the published cubic, within 0.02 of λ(β) over the root of the median of the
/// Marchenko-Pastur law.
pub fn omega(beta: f64) -> f64 {
    0.56 * beta.powi(3) - 0.95 * beta.powi(2) + 1.82 * beta + 1.43
}

/// The middle of sorted values; the mean of the two middle ones.
fn median(values: &[f32]) -> f64 {
    let at = |i: usize| values.get(i).map_or(0.0, |v| f64::from(*v));
    0.5 * (at(values.len().saturating_sub(1) / 2) + at(values.len() / 2))
}

export_policy!(GavishDonoho, name: "gavish-donoho");

#[cfg(test)]
mod tests;
