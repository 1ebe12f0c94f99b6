//! Perplexity with its standard error.
//!
//! With window i's summed loss sᵢ over nᵢ tokens: mean m = Σsᵢ / Σnᵢ nats a token, perplexity eᵐ. Losses
//! within a window depend on each other, so the standard error treats windows as the independent units
//! (the cluster-robust error of a ratio): se(m) = √(k/(k−1) · Σ(sᵢ − m nᵢ)²) / Σnᵢ over k windows; for
//! the perplexity eᵐ·se(m) (delta method).

use super::data::Window;
use crate::mlx;
use crate::model::generate::NOT_FINITE;
use crate::model::{Error, Model, Result};
use std::time::Instant;

/// Loss of one window.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct WindowLoss {
    /// Sum over the tokens that count, nats.
    pub nll: f64,
    /// Tokens that count.
    pub tokens: usize,
}

/// What a measurement found and what it cost.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Perplexity {
    /// Mean loss, nats a token.
    pub mean_nll: f64,
    /// Its standard error over windows; `None` for a single window.
    pub mean_nll_standard_error: Option<f64>,
    /// exp of the mean loss.
    pub perplexity: f64,
    /// Its standard error.
    pub perplexity_standard_error: Option<f64>,
    /// Tokens that counted.
    pub scored_tokens: usize,
    /// Tokens that ran through the model.
    pub tokens: usize,
    /// Those a second, over all batches.
    pub tokens_per_second: f64,
    /// Seconds of all batches.
    pub seconds: f64,
    /// Milliseconds of the first batch.
    pub first_batch_ms: f64,
    /// Most bytes that MLX held at once since the program began.
    pub peak_mlx_bytes: u64,
    /// Most bytes that the process held at once; `None` where the system does not say.
    pub peak_process_bytes: Option<u64>,
    /// Losses in order, for paired comparison.
    pub windows: Vec<WindowLoss>,
}

/// Scores `windows`, `batch` at a time. `progress` is told how many are done and answers whether to go
/// on; `None` when it did not.
///
/// # Errors
/// When a window has a token id that is not in the vocabulary, or MLX fails.
pub fn measure(
    model: &Model,
    windows: &[Window],
    batch: usize,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Perplexity>> {
    let start = Instant::now();
    let mut losses = Vec::with_capacity(windows.len());
    let mut first = None;
    for part in windows.chunks(batch.max(1)) {
        let tokens: Vec<Vec<u32>> = part.iter().map(|w| w.tokens.clone()).collect();
        for (w, nll) in part.iter().zip(model.score(&tokens)?) {
            if nll.iter().any(|x| x.is_nan()) {
                return Err(Error::Request(NOT_FINITE.into()));
            }
            losses.push(sum(&nll, w.mask.as_deref()));
        }
        first.get_or_insert_with(|| start.elapsed());
        if !progress(losses.len()) {
            return Ok(None);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = windows.iter().map(|w| w.tokens.len()).sum();
    let (mean_nll, se) = mean(&losses);
    let perplexity = mean_nll.exp();
    Ok(Some(Perplexity {
        mean_nll,
        mean_nll_standard_error: se,
        perplexity,
        perplexity_standard_error: se.map(|se| perplexity * se),
        scored_tokens: losses.iter().map(|l| l.tokens).sum(),
        tokens,
        tokens_per_second: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
        seconds,
        first_batch_ms: first.unwrap_or_default().as_secs_f64() * 1e3,
        peak_mlx_bytes: mlx::memory::mlx().1,
        peak_process_bytes: mlx::memory::rss().map(|(_, peak)| peak),
        windows: losses,
    }))
}

/// Losses of the tokens of one window, where the mask lets them count.
pub fn sum(nll: &[f32], mask: Option<&[bool]>) -> WindowLoss {
    let counted = nll.iter().enumerate().filter(|(i, _)| mask.is_none_or(|m| m.get(*i) == Some(&true)));
    let (nll, tokens) = counted.fold((0.0, 0), |(s, n), (_, x)| (s + f64::from(*x), n + 1));
    WindowLoss { nll, tokens }
}

/// Mean loss and its standard error over windows.
pub fn mean(losses: &[WindowLoss]) -> (f64, Option<f64>) {
    let total: f64 = losses.iter().map(|l| l.nll).sum();
    let n: f64 = losses.iter().map(|l| l.tokens as f64).sum();
    let (m, k) = (total / n, losses.len() as f64);
    let spread: f64 = losses.iter().map(|l| (l.nll - m * l.tokens as f64).powi(2)).sum();
    (m, (losses.len() > 1).then(|| (k / (k - 1.0) * spread).sqrt() / n))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn equal_windows_have_the_textbook_error_of_a_mean() {
        let losses: Vec<WindowLoss> =
            [2.0, 3.0, 4.0, 7.0].iter().map(|m| WindowLoss { nll: m * 10.0, tokens: 10 }).collect();
        let (m, se) = mean(&losses);
        // Standard deviation of (2, 3, 4, 7) with k-1: sqrt(14/3); over sqrt(4).
        assert!((m - 4.0).abs() < 1e-12);
        assert!((se.unwrap() - (14.0f64 / 3.0).sqrt() / 2.0).abs() < 1e-12);
    }

    #[test]
    fn windows_count_by_their_tokens_and_one_has_no_error() {
        let losses = [WindowLoss { nll: 3.0, tokens: 1 }, WindowLoss { nll: 3.0, tokens: 3 }];
        assert!((mean(&losses).0 - 1.5).abs() < 1e-12);
        assert_eq!(mean(&losses[..1]).1, None);
    }

    #[test]
    fn masked_tokens_do_not_count() {
        assert_eq!(sum(&[1.0, 2.0, 4.0], Some(&[true, false, true])), WindowLoss { nll: 5.0, tokens: 2 });
        assert_eq!(sum(&[1.0, 2.0], None), WindowLoss { nll: 3.0, tokens: 2 });
    }
}
