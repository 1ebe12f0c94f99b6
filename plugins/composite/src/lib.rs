//! The evaluator `composite`: weighs what a change gains against what it costs.
//!
//! Each aspect has a gain without a unit, relative to the base, negative where the candidate is worse:
//!
//! ```text
//! loss    1 − exp(L − L₀)       the rise of the perplexity, as a share of it
//! kl      exp(−KL) − 1          0 where all predictions agree, −1 where none does
//! match   a − a₀                right answers, as a share of all
//! speed   v / v₀ − 1            tokens decoded a second
//! memory  1 − m / m₀            bytes of the model
//!
//! score = Σ weight · gain
//! ```
//!
//! This is the additive model of multi-criteria decisions (Fishburn, Operations Research 15, 1967): a
//! weight is a rate of exchange. With the weights 2 for loss and 1 for memory, a rise of the
//! perplexity by 1 % is worth 2 % of the memory. A sum lets much of one thing pay for any loss of
//! another, so each aspect can have a hard limit besides. Accepted is what holds every limit and
//! reaches `min_score`. What has neither weight nor limit is not measured.

mod measured;

use measured::Measured;
use plastic_plugin::answers::Answers;
use plastic_plugin::compare::Losses;
use plastic_plugin::prelude::*;

plastic_plugin::options! {
    /// Options of the composite evaluator.
    pub struct Options {
        /// Weight of the loss on the evaluation text.
        #[range(0.0..=1000.0)]
        pub weight_loss: f64 = 1.0,
        /// Weight of the divergence from the base.
        #[range(0.0..=1000.0)]
        pub weight_kl: f64 = 0.0,
        /// Weight of the right answers.
        #[range(0.0..=1000.0)]
        pub weight_match: f64 = 0.0,
        /// Weight of the speed of decoding.
        #[range(0.0..=1000.0)]
        pub weight_speed: f64 = 0.0,
        /// Weight of the memory.
        #[range(0.0..=1000.0)]
        pub weight_memory: f64 = 1.0,
        /// Lowest score that is accepted.
        #[range(-1000.0..=1000.0)]
        pub min_score: f64 = 0.0,
        /// Highest rise of the loss, nats per token; 0: no limit.
        #[range(0.0..=100.0)]
        pub max_loss_increase: f64 = 0.1,
        /// Highest mean divergence, nats per token; 0: no limit.
        #[range(0.0..=100.0)]
        pub max_kl: f64 = 0.0,
        /// Highest fall of the share of right answers; 0: no limit.
        #[range(0.0..=1.0)]
        pub max_drop: f64 = 0.0,
        /// Milliseconds from token to token at most, as a multiple of the base's; 0: no limit.
        #[range(0.0..=1000.0)]
        pub max_slowdown: f64 = 0.0,
        /// Memory of the model at most, in MB of a million bytes; 0: no limit.
        #[range(0.0..=1000000000.0)]
        pub max_resident_mb: f64 = 0.0,
        /// Windows to score, from the first; 0 for all.
        pub windows: u32 = 0,
        /// Questions to ask, from the first; 0 for all.
        pub questions: u32 = 0,
        /// Tokens of the prompt that is timed.
        #[range(1..=4096)]
        pub prompt_tokens: u32 = 128,
        /// Tokens decoded after it.
        #[range(2..=1024)]
        pub new_tokens: u32 = 32,
    }
}

/// The evaluator, and what it remembers of the base.
#[derive(Default)]
pub struct Composite {
    options: Options,
    losses: Losses,
    answers: Answers,
}

impl Evaluator for Composite {
    type Options = Options;

    const METRICS: &'static [&'static str] = &[
        "score",
        "loss",
        "loss-base",
        "loss-increase",
        "kl",
        "exact-match",
        "exact-match-base",
        "decode-tokens-per-second",
        "first-token-ms",
        "token-ms",
        "slowdown",
        "resident-bytes",
        "resident-bytes-base",
    ];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        let o = &options;
        let weights = [o.weight_loss, o.weight_kl, o.weight_match, o.weight_speed, o.weight_memory];
        let limits = [o.max_loss_increase, o.max_kl, o.max_drop, o.max_slowdown, o.max_resident_mb];
        if weights.iter().chain(&limits).all(|x| *x == 0.0) {
            return Err("no aspect has a weight or a limit, so nothing would be measured: give one of them one".into());
        }
        self.options = options;
        Ok(())
    }

    fn evaluate(&mut self, _: &Task, host: &dyn Measure) -> Result<Verdict, String> {
        let measured = self.measure(host)?;
        let mut verdict = judge(&measured, self.options.min_score);
        for m in measured.into_iter().flat_map(|m| m.metrics) {
            verdict = verdict.metric(m);
        }
        Ok(verdict)
    }
}

/// The verdict on what was measured.
fn judge(measured: &[Measured], min_score: f64) -> Verdict {
    if let Some(broken) = measured.iter().find(|m| !m.gain.is_finite()) {
        return Verdict::reject(format!("{}: the candidate's outputs are not finite", broken.what));
    }
    let score: f64 = measured.iter().map(|m| m.weight * m.gain).sum();
    let term = |m: &Measured| format!("{} {:+.3} · {} ({})", m.what, m.gain, m.weight, m.text);
    let terms: Vec<String> = measured.iter().map(term).collect();
    let broken: Vec<&str> = measured.iter().filter(|m| m.is_beyond).map(|m| m.what).collect();
    let reason = format!("score {score:+.4} = {}", terms.join(" + "));
    let verdict = match (broken.is_empty(), score >= min_score) {
        (false, _) => Verdict::reject(format!("beyond the limit of {}; {reason}", broken.join(" and "))),
        (true, false) => Verdict::reject(format!("{reason}: below {min_score}")),
        (true, true) => Verdict::accept(format!("{reason}: at least {min_score}, and every limit holds")),
    };
    verdict.metric(Metric::new("score", score, "").higher_is_better())
}

export_evaluator!(Composite, name: "composite");

#[cfg(test)]
mod tests;
