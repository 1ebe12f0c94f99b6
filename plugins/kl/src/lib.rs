//! The evaluator `kl`: compares what base and candidate predict, whatever the text says next.
//!
//! The divergence of the candidate's next-token distribution q from the base's p (Kullback & Leibler,
//! Annals of Mathematical Statistics 22, 1951), at every token of the evaluation text:
//!
//! ```text
//! KL(p ‖ q) = Σ_v p(v) (ln p(v) − ln q(v)),  in nats: 0 where both agree, else above.
//! ```
//!
//! It sees changes that the loss does not: a candidate may lose on one token what it gains on
//! another, and its loss stays. The mean over all tokens comes with a bootstrap interval over
//! windows ([`plastic_plugin::stats`]), and its upper end must not exceed `max_kl`
//! (`gate = "mean"`: the mean itself). The worst tokens have a limit of their own, `max_p95`.

use plastic_plugin::compare;
use plastic_plugin::prelude::*;
use plastic_plugin::stats::{self, Cluster};

plastic_plugin::choices! {
    /// What must not exceed the limit.
    pub enum Gate {
        /// The mean.
        Mean = "mean",
        /// The upper end of its confidence interval.
        Upper = "upper",
    }
}

plastic_plugin::options! {
    /// Options of the kl evaluator.
    pub struct Options {
        /// Highest mean divergence that is accepted, nats per token.
        #[range(0.0..=100.0)]
        pub max_kl: f64 = 0.15,
        /// What must stay below it: the mean (mean), or the upper end of its interval (upper).
        pub gate: Gate = Gate::Upper,
        /// Highest divergence that 95 of 100 tokens may have, nats; 0: no limit.
        #[range(0.0..=100.0)]
        pub max_p95: f64 = 0.0,
        /// Confidence of the interval.
        #[range(0.5..=0.9999)]
        pub confidence: f64 = 0.95,
        /// Draws of the bootstrap.
        #[range(100..=1000000)]
        pub resamples: u32 = 2000,
        /// Windows to compare, from the first; 0 for all.
        pub windows: u32 = 0,
    }
}

/// The evaluator.
#[derive(Default)]
pub struct Kl {
    options: Options,
}

impl Evaluator for Kl {
    type Options = Options;

    const METRICS: &'static [&'static str] = &["kl", "kl-median", "kl-p95", "kl-max", "tokens-compared"];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn evaluate(&mut self, task: &Task, host: &dyn Measure) -> Result<Verdict, String> {
        let windows = compare::windows(host, self.options.windows)?;
        let divergences = compare::divergences(host, &windows)?;
        Ok(self.judge(task.seed, &divergences))
    }
}

impl Kl {
    fn judge(&self, seed: u64, windows: &[Vec<f32>]) -> Verdict {
        let o = &self.options;
        let clusters: Vec<Cluster> = windows.iter().map(|w| Cluster::of(w)).collect();
        let mut tokens: Vec<f64> = windows.iter().flatten().map(|d| f64::from(*d)).collect();
        let compared = Metric::new("tokens-compared", tokens.len() as f64, "tokens").higher_is_better();
        let broken = tokens.iter().filter(|d| !d.is_finite()).count();
        if broken > 0 || tokens.is_empty() {
            let why = format!("the candidate's outputs are not finite at {broken} of {} tokens", tokens.len());
            return Verdict::reject(why).metric(compared);
        }
        tokens.sort_by(f64::total_cmp);
        let mean = stats::mean(&clusters);
        let [median, p95, max] = [0.5, 0.95, 1.0].map(|p| stats::quantile(&tokens, p));
        let interval = stats::bootstrap(&clusters, o.confidence, o.resamples, seed);

        let mut reason = format!("divergence from the base {mean:.4} nats/token");
        if let Some((low, high)) = interval {
            reason += &format!(" ({} % between {low:.4} and {high:.4})", stats::percent(o.confidence));
        }
        reason += &format!(", median {median:.4}, 95 of 100 tokens below {p95:.4}, largest {max:.4}: ");
        let (what, gate) = match (o.gate, interval) {
            (Gate::Upper, Some((_, high))) => ("the upper end", high),
            (Gate::Upper, None) => ("the mean (one window has no interval)", mean),
            (Gate::Mean, _) => ("the mean", mean),
        };
        let is_good = gate <= o.max_kl;
        reason += &format!("{what} {} the limit of {}", if is_good { "is within" } else { "exceeds" }, o.max_kl);
        let is_even = o.max_p95 == 0.0 || p95 <= o.max_p95;
        if !is_even {
            let and = if is_good { "but" } else { "and" };
            reason += &format!(", {and} the 95th percentile exceeds its limit of {}", o.max_p95);
        }

        let mut kl = Metric::new("kl", mean, "nats");
        if let Some((low, high)) = interval {
            kl = kl.interval(low, high);
        }
        let verdict = if is_good && is_even { Verdict::accept(reason) } else { Verdict::reject(reason) };
        verdict
            .metric(kl)
            .metric(Metric::new("kl-median", median, "nats"))
            .metric(Metric::new("kl-p95", p95, "nats"))
            .metric(Metric::new("kl-max", max, "nats"))
            .metric(compared)
    }
}

export_evaluator!(Kl, name: "kl");

#[cfg(test)]
mod tests;
