//! How long a subject takes to answer: the prompt is evaluation text, the answer is decoded greedily.

use super::{HostMeasure, Subject, metric};
use crate::model::timing::decode;
use crate::plugin::contract::Metric;
use std::time::Instant;

/// Times the same work is done; one more goes ahead and does not count.
const REPEATS: usize = 3;
/// Tokens of the uncounted answer: the prompt brings pages and copies in, two tokens the decoding path.
const WARM_UP: usize = 2;
/// Bounds of what one call may ask for.
const MAX_PROMPT: u32 = 4096;
const MAX_NEW: u32 = 1024;

impl HostMeasure<'_> {
    /// `first-token-ms`: median of the repeats, between the lowest and the highest. `token-ms`: median of
    /// all further tokens, between the 5th and the 95th percentile. `decode-tokens-per-second`: median of
    /// the repeats, between the lowest and the highest.
    pub(super) fn time(&mut self, subject: Subject, prompt: u32, new: u32) -> Result<Vec<Metric>, String> {
        if !(1..=MAX_PROMPT).contains(&prompt) || !(2..=MAX_NEW).contains(&new) {
            return Err(format!(
                "a prompt of {prompt} tokens and {new} more cannot be timed: 1 to {MAX_PROMPT} and 2 to {MAX_NEW} are possible"
            ));
        }
        // What is shorter begins again.
        let ids: Vec<u32> = self.windows.iter().flatten().copied().cycle().take(prompt as usize).collect();
        let runs = self.with(subject, |m| {
            m.run(&ids, WARM_UP)?;
            (0..REPEATS).map(|_| m.run(&ids, new as usize)).collect::<Result<Vec<_>, _>>()
        })?;
        let first = sorted(runs.iter().filter_map(|r| r.first().copied()));
        let tokens = sorted(runs.iter().flat_map(|r| r.iter().skip(1).copied()));
        let speed = |r: &Vec<f64>| 1e3 * (r.len() - 1) as f64 / r.iter().skip(1).sum::<f64>();
        let speeds = sorted(runs.iter().map(speed));
        Ok(vec![
            figure("first-token-ms", &first, [0.0, 1.0], "ms", false),
            figure("token-ms", &tokens, [0.05, 0.95], "ms", false),
            figure("decode-tokens-per-second", &speeds, [0.0, 1.0], "tokens/s", true),
        ])
    }

    /// Milliseconds to the first token and of each further one.
    fn run(&mut self, prompt: &[u32], new: usize) -> Result<Vec<f64>, String> {
        let begun = Instant::now();
        let progress = &mut self.progress;
        let decoded = decode(self.subjects.model(), &[prompt], new, &mut || progress(0, 0));
        self.book.seconds += begun.elapsed().as_secs_f64();
        Ok(decoded.map_err(|e| e.to_string())?.ok_or("interrupted")?.milliseconds)
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The median of sorted values, with two quantiles as its interval.
fn figure(name: &str, sorted: &[f64], interval: [f64; 2], unit: &str, higher_is_better: bool) -> Metric {
    let [low, high] = interval.map(|p| quantile(sorted, p));
    Metric { low: Some(low), high: Some(high), ..metric(name, quantile(sorted, 0.5), unit, higher_is_better) }
}

/// Quantile of sorted values, interpolated linearly; 0 of none.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let place = p * sorted.len().saturating_sub(1) as f64;
    let at = |i: f64| sorted.get(i as usize).copied().unwrap_or(0.0);
    at(place.floor()) + (at(place.ceil()) - at(place.floor())) * place.fract()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_figure_is_a_median_between_quantiles() {
        let m = figure("token-ms", &sorted([4.0, 1.0, 3.0, 2.0].into_iter()), [0.0, 0.5], "ms", false);
        assert_eq!((m.value, m.low, m.high, m.unit.as_str()), (2.5, Some(1.0), Some(2.5), "ms"));
        assert_eq!(quantile(&[7.0], 0.95), 7.0);
        assert_eq!(quantile(&[0.0, 10.0], 0.95), 9.5);
    }
}
