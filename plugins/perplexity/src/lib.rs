//! The evaluator `perplexity`: scores the evaluation text under the base and under the candidate and
//! accepts the candidate while the mean loss rises no more than allowed.
//!
//! The loss is the mean negative log-likelihood in nats per token; the perplexity its exponential.
//! The rise is paired window by window and comes with a bootstrap confidence interval
//! ([`plastic_plugin::stats`]).
//! With `gate = "upper"` the upper end of that interval must stay below the limit: less is accepted,
//! with more certainty.

use plastic_plugin::compare::{self, Losses, Pair};
use plastic_plugin::prelude::*;
use plastic_plugin::stats::{self, Cluster};

plastic_plugin::choices! {
    /// What must not exceed the limit.
    pub enum Gate {
        /// The measured rise.
        Mean = "mean",
        /// The upper end of its confidence interval.
        Upper = "upper",
    }
}

plastic_plugin::options! {
    /// Options of the perplexity evaluator.
    pub struct Options {
        /// Highest rise of the mean loss that is accepted, nats per token.
        #[range(0.0..=100.0)]
        pub max_loss_increase: f64 = 0.1,
        /// What must stay below it: the measured rise (mean), or the upper end of its interval (upper).
        pub gate: Gate = Gate::Mean,
        /// Confidence of the interval.
        #[range(0.5..=0.9999)]
        pub confidence: f64 = 0.95,
        /// Draws of the bootstrap.
        #[range(100..=1000000)]
        pub resamples: u32 = 2000,
        /// Windows to score, from the first; 0 for all.
        pub windows: u32 = 0,
    }
}

/// The evaluator. Losses of the base never change, so they are asked for once.
#[derive(Default)]
pub struct Perplexity {
    options: Options,
    losses: Losses,
}

impl Evaluator for Perplexity {
    type Options = Options;

    const METRICS: &'static [&'static str] =
        &["loss", "loss-increase", "loss-base", "perplexity-base", "perplexity", "tokens-scored"];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn evaluate(&mut self, task: &Task, host: &dyn Measure) -> Result<Verdict, String> {
        let windows = compare::windows(host, self.options.windows)?;
        let pairs = self.losses.of(host, &windows)?;
        Ok(self.judge(task.seed, &pairs))
    }
}

impl Perplexity {
    /// The verdict on what was measured.
    fn judge(&self, seed: u64, pairs: &[Pair]) -> Verdict {
        let mean = |of: fn(&Pair) -> Cluster| stats::mean(&pairs.iter().map(of).collect::<Vec<_>>());
        let (base, candidate) = (mean(Pair::of_base), mean(Pair::of_candidate));
        let rises: Vec<Cluster> = pairs.iter().map(Pair::rise).collect();
        let tokens = stats::tokens(&rises);
        let scored = Metric::new("tokens-scored", tokens as f64, "tokens").higher_is_better();
        if tokens == 0 || !base.is_finite() {
            return Verdict::reject("the loss of the base itself is not finite: the checkpoint or the data is broken")
                .metric(scored);
        }
        let of_base = |v: Verdict| {
            v.metric(Metric::new("loss-base", base, "nats")).metric(Metric::new("perplexity-base", base.exp(), ""))
        };
        if !candidate.is_finite() {
            let why =
                format!("the loss of the candidate is not finite ({candidate}); the base has {base:.4} nats/token");
            return of_base(Verdict::reject(why)).metric(scored);
        }

        let o = &self.options;
        let rise = candidate - base;
        let interval = stats::bootstrap(&rises, o.confidence, o.resamples, seed);
        let gate = match (o.gate, interval) {
            (Gate::Upper, Some((_, high))) => high,
            _ => rise,
        };
        let is_good = gate <= o.max_loss_increase;

        let mut reason = format!("loss {base:.4} → {candidate:.4} nats/token ({rise:+.4}");
        if let Some((low, high)) = interval {
            let percent = stats::percent(o.confidence);
            reason += &format!(", {percent} % between {low:+.4} and {high:+.4}");
        }
        if let Some(error) = stats::standard_error(&rises) {
            reason += &format!(", standard error {error:.4}");
        }
        let what = match (o.gate, interval) {
            (Gate::Mean, _) => "the rise",
            (Gate::Upper, Some(_)) => "the upper end",
            (Gate::Upper, None) => "the rise (one window has no interval)",
        };
        let sign = if is_good { "is within" } else { "exceeds" };
        reason += &format!("): {what} {sign} the limit of {}", o.max_loss_increase);

        let mut increase = Metric::new("loss-increase", rise, "nats");
        if let Some((low, high)) = interval {
            increase = increase.interval(low, high);
        }
        let verdict = if is_good { Verdict::accept(reason) } else { Verdict::reject(reason) };
        let mut verdict = of_base(verdict.metric(Metric::new("loss", candidate, "nats")).metric(increase));
        // A ruined model can have a finite loss whose exponential is not.
        if candidate.exp().is_finite() {
            verdict = verdict.metric(Metric::new("perplexity", candidate.exp(), ""));
        }
        verdict.metric(scored)
    }
}

export_evaluator!(Perplexity, name: "perplexity");

#[cfg(test)]
mod tests;
