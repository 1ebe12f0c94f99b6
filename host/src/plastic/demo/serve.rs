//! Serving the requests of one step, and what is measured of it.
//!
//! All requests of a step arrive together and are answered one after the other, so that a request
//! waits for those before it: with one request at a time a busy model looks slow from outside even
//! where it is as fast as ever. An answer here is the loss of every token of a prompt: one forward pass.
//! Fails where the model does.

use crate::eval::stats;
use crate::model::{Model, Result};
use serde::Serialize;
use std::time::Instant;

/// What was measured of the requests of one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Served {
    /// Requests that arrived. Where none did, one probe was served, which counts nowhere else.
    pub requests: u32,
    /// Tokens of all that was served.
    pub tokens: u64,
    /// Seconds from the arrival to the last answer.
    pub seconds: f64,
    /// Tokens the model ran a second.
    pub throughput: f64,
    /// Tokens a second as a request sees them, waiting included: Σ tokens / Σ (answer − arrival).
    pub tokens_per_second: f64,
    /// Median milliseconds a token, waiting included.
    pub token_ms_p50: f64,
    /// The same, 95th percentile.
    pub token_ms_p95: f64,
}

impl Served {
    /// From the tokens of each request and the seconds from arrival to its answer.
    fn of(requests: u32, tokens: &[usize], answered: &[f64]) -> Served {
        let total: usize = tokens.iter().sum();
        let seconds = answered.last().copied().unwrap_or(0.0);
        let mut each: Vec<f64> = answered.iter().zip(tokens).map(|(s, t)| 1e3 * s / (*t).max(1) as f64).collect();
        each.sort_by(f64::total_cmp);
        let rate = |s: f64| if s > 0.0 { total as f64 / s } else { 0.0 };
        Served {
            requests,
            tokens: total as u64,
            seconds,
            throughput: rate(seconds),
            tokens_per_second: rate(answered.iter().sum()),
            token_ms_p50: stats::quantile(&each, 0.5),
            token_ms_p95: stats::quantile(&each, 0.95),
        }
    }
}

/// Serves prompts; `progress` is told how many are answered and says whether to go on. `None` when it did not.
///
/// # Errors
/// When the model fails.
pub fn serve(
    model: &Model,
    requests: u32,
    prompts: &[Vec<u32>],
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<Served>> {
    let arrival = Instant::now();
    let (mut tokens, mut answered) = (Vec::new(), Vec::new());
    for (n, prompt) in prompts.iter().enumerate() {
        // Its values are read out, so the work is done when it returns.
        model.score(std::slice::from_ref(prompt))?;
        tokens.push(prompt.len());
        answered.push(arrival.elapsed().as_secs_f64());
        if !progress(n as u64 + 1) {
            return Ok(None);
        }
    }
    Ok(Some(Served::of(requests, &tokens, &answered)))
}

/// Median tokens a second of requests that find the model idle: each prompt alone, one untimed before them.
///
/// # Errors
/// When the model fails.
pub fn idle_speed(model: &Model, prompts: &[Vec<u32>]) -> Result<f64> {
    let mut speeds = Vec::with_capacity(prompts.len());
    if let Some(first) = prompts.first() {
        model.score(std::slice::from_ref(first))?;
    }
    for prompt in prompts {
        if let Some(s) = serve(model, 1, std::slice::from_ref(prompt), &mut |_| true)? {
            speeds.push(s.throughput);
        }
    }
    Ok(stats::median(&speeds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_counts_for_a_request_and_not_for_the_model() {
        // Three requests of ten tokens, a tenth of a second each.
        let s = Served::of(3, &[10, 10, 10], &[0.1, 0.2, 0.3]);
        assert!((s.throughput - 100.0).abs() < 1e-9);
        // Answers after 0.1, 0.2 and 0.3 s: on average 20 ms a token.
        assert!((s.tokens_per_second - 50.0).abs() < 1e-9);
        assert!((s.token_ms_p50 - 20.0).abs() < 1e-9 && (s.token_ms_p95 - 29.0).abs() < 1e-9, "{s:?}");
        assert_eq!((s.requests, s.tokens), (3, 30));
    }

    #[test]
    fn nothing_served_is_no_speed() {
        assert_eq!(Served::of(0, &[], &[]).tokens_per_second, 0.0);
    }
}
