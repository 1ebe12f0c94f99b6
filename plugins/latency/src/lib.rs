//! The evaluator `latency`: how fast the candidate answers and what memory it holds, beside the base.
//!
//! The host decodes `new_tokens` after a prompt of `prompt_tokens`, a few times after a warm-up. Taken
//! are medians, which one slow token does not move; the noise that was seen is told as the spread
//! between the 5th and the 95th percentile of the tokens, as a share of the median:
//!
//! ```text
//! slowdown = median(ms per token, candidate) / median(ms per token, base),
//! noise    = (p95 − p5) / median.
//! ```
//!
//! Base and candidate are timed one after the other at every step, so that a machine that became
//! slower meanwhile slows both (paired measurement, as in Georges et al., OOPSLA 2007). Without
//! limits everything is accepted and reported: the figures are those that `guardrail` watches.

use plastic_plugin::compare::{self, figure};
use plastic_plugin::prelude::*;

/// Windows scored to know the speed of scoring; the first does not count, it pays for copies.
const SCORED: [usize; 2] = [1, 4];

plastic_plugin::options! {
    /// Options of the latency evaluator.
    pub struct Options {
        /// Tokens of the prompt.
        #[range(1..=4096)]
        pub prompt_tokens: u32 = 128,
        /// Tokens decoded after it.
        #[range(2..=1024)]
        pub new_tokens: u32 = 32,
        /// Milliseconds to the first token at most; 0: no limit.
        #[range(0.0..=1000000000.0)]
        pub max_first_token_ms: f64 = 0.0,
        /// Milliseconds from token to token at most; 0: no limit.
        #[range(0.0..=1000000000.0)]
        pub max_token_ms: f64 = 0.0,
        /// Milliseconds from token to token at most, as a multiple of the base's; 0: no limit.
        #[range(0.0..=1000.0)]
        pub max_slowdown: f64 = 0.0,
        /// Memory of the model at most, in MB of a million bytes; 0: no limit.
        #[range(0.0..=1000000000.0)]
        pub max_resident_mb: f64 = 0.0,
    }
}

/// The evaluator.
#[derive(Default)]
pub struct Latency {
    options: Options,
}

/// One figure beside its limit.
struct Bound {
    what: &'static str,
    value: f64,
    /// 0 for none.
    limit: f64,
}

impl Evaluator for Latency {
    type Options = Options;

    const METRICS: &'static [&'static str] = &[
        "first-token-ms",
        "token-ms",
        "decode-tokens-per-second",
        "first-token-ms-base",
        "token-ms-base",
        "decode-tokens-per-second-base",
        "slowdown",
        "token-noise",
        "awake-parameters",
        "resident-bytes",
        "peak-bytes",
        "scored-tokens-per-second",
        "resident-bytes-base",
    ];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn evaluate(&mut self, _: &Task, host: &dyn Measure) -> Result<Verdict, String> {
        let o = &self.options;
        let base = host.timing(Subject::Base, o.prompt_tokens, o.new_tokens)?;
        let resident_base = figure(&host.counters(Subject::Base)?, "resident-bytes")?.clone();
        let candidate = host.timing(Subject::Candidate, o.prompt_tokens, o.new_tokens)?;
        let counters = counters(host)?;

        let (token, token_base) = (figure(&candidate, "token-ms")?, figure(&base, "token-ms")?);
        let (first, first_base) = (figure(&candidate, "first-token-ms")?, figure(&base, "first-token-ms")?);
        let resident = figure(&counters, "resident-bytes")?.value;
        let slowdown = token.value / token_base.value;
        if !slowdown.is_finite() {
            return Err(format!("the base takes {} ms per token: the clock is too coarse for it", token_base.value));
        }
        let noise = noise(token).max(noise(token_base));

        let bounds = [
            Bound { what: "ms to the first token", value: first.value, limit: o.max_first_token_ms },
            Bound { what: "ms per token", value: token.value, limit: o.max_token_ms },
            Bound { what: "times the base's ms per token", value: slowdown, limit: o.max_slowdown },
            Bound { what: "MB in memory", value: resident / 1e6, limit: o.max_resident_mb },
        ];
        let exceeds = |b: &&Bound| b.limit > 0.0 && b.value > b.limit;
        let broken: Vec<String> =
            bounds.iter().filter(exceeds).map(|b| format!("{:.4} {} (limit {})", b.value, b.what, b.limit)).collect();
        let figures = format!(
            "first token {:.1} ms (base {:.1}), then {:.2} ms per token (base {:.2}, {slowdown:.2} times; noise {:.0} %), {:.0} MB in memory (base {:.0})",
            first.value,
            first_base.value,
            token.value,
            token_base.value,
            100.0 * noise,
            resident / 1e6,
            resident_base.value / 1e6
        );
        let mut verdict = match (broken.is_empty(), bounds.iter().any(|b| b.limit > 0.0)) {
            (false, _) => Verdict::reject(format!("too much: {}; {figures}", broken.join(", "))),
            (true, true) => Verdict::accept(format!("{figures}: within the limits")),
            (true, false) => Verdict::accept(format!("{figures}; no limit is set")),
        };
        for m in &candidate {
            verdict = verdict.metric(m.clone());
        }
        for m in base.into_iter().chain([resident_base]) {
            verdict = verdict.metric(Metric { name: format!("{}-base", m.name), ..m });
        }
        for m in counters {
            verdict = verdict.metric(m);
        }
        Ok(verdict.metric(Metric::new("slowdown", slowdown, "")).metric(Metric::new("token-noise", noise, "")))
    }
}

/// The candidate's counters. The speed of scoring is known once something was scored.
fn counters(host: &dyn Measure) -> Result<Vec<Metric>, String> {
    let known = host.counters(Subject::Candidate)?;
    if figure(&known, "scored-tokens-per-second").is_ok() {
        return Ok(known);
    }
    let windows = compare::windows(host, SCORED.iter().sum::<usize>() as u32)?;
    let (first, rest) = windows.split_at(SCORED[0]);
    for part in [first, rest].into_iter().filter(|p| !p.is_empty()) {
        host.score_windows(Subject::Candidate, part)?;
    }
    host.counters(Subject::Candidate)
}

/// How far the tokens of one measurement lie apart.
fn noise(token: &Metric) -> f64 {
    match (token.low, token.high) {
        (Some(low), Some(high)) if token.value > 0.0 => (high - low) / token.value,
        _ => 0.0,
    }
}

export_evaluator!(Latency, name: "latency");

#[cfg(test)]
mod tests;
