//! The statistics of a paired comparison: two models scored on the same windows of text.
//!
//! Windows of one text differ much more from each other than two models do on one window, so the
//! models are compared window by window. The interval is the percentile bootstrap over windows
//! (Efron 1979; paired as in Koehn 2004): draw as many windows as there are, with replacement,
//! compute the statistic, repeat, and take the quantiles.

/// Losses of one window under both models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Summed negative log-likelihood under the base, nats.
    pub base: f64,
    /// The same under the candidate.
    pub candidate: f64,
    /// Tokens scored.
    pub tokens: u32,
}

/// Mean loss of the base, mean loss of the candidate (nats per token), tokens.
pub fn means(windows: &[Window]) -> (f64, f64, u64) {
    let tokens: u64 = windows.iter().map(|w| u64::from(w.tokens)).sum();
    let mean = |loss: fn(&Window) -> f64| windows.iter().map(loss).sum::<f64>() / tokens as f64;
    (mean(|w| w.base), mean(|w| w.candidate), tokens)
}

/// Standard error of the rise of the mean loss: windows are the independent draws, and the rise is
/// a ratio of sums (Cochran 1977, 6.4), for windows may differ in length.
pub fn standard_error(windows: &[Window]) -> Option<f64> {
    let n = windows.len() as f64;
    if windows.len() < 2 {
        return None;
    }
    let (base, candidate, tokens) = means(windows);
    let rise = candidate - base;
    let residual = |w: &Window| (w.candidate - w.base) - rise * f64::from(w.tokens);
    let squares: f64 = windows.iter().map(|w| residual(w).powi(2)).sum();
    Some((n / (n - 1.0) * squares).sqrt() / tokens as f64)
}

/// Confidence interval of the rise of the mean loss, from `resamples` draws. None for fewer than two
/// windows.
pub fn bootstrap(windows: &[Window], confidence: f64, resamples: u32, seed: u64) -> Option<(f64, f64)> {
    if windows.len() < 2 || resamples == 0 {
        return None;
    }
    let mut random = SplitMix(seed);
    let mut rises: Vec<f64> = (0..resamples)
        .map(|_| {
            let (mut rise, mut tokens) = (0.0, 0u64);
            for _ in 0..windows.len() {
                let w = &windows[random.below(windows.len())];
                rise += w.candidate - w.base;
                tokens += u64::from(w.tokens);
            }
            rise / tokens as f64
        })
        .collect();
    rises.sort_by(f64::total_cmp);
    let outside = (1.0 - confidence) / 2.0;
    Some((quantile(&rises, outside), quantile(&rises, 1.0 - outside)))
}

/// Quantile of sorted values, interpolated linearly.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let place = p * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, the same everywhere.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below n: the high half of a product (Lemire 2019). The bias, n / 2^64, is far below
    /// what a bootstrap resolves.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn window(base: f64, rise: f64, tokens: u32) -> Window {
        Window { base, candidate: base + rise, tokens }
    }

    #[test]
    fn means_weigh_tokens() {
        let windows = [window(30.0, 1.0, 10), window(80.0, 2.0, 20)];
        let (base, candidate, tokens) = means(&windows);
        assert_eq!((base, tokens), (110.0 / 30.0, 30));
        assert!((candidate - 113.0 / 30.0).abs() < 1e-12);
    }

    #[test]
    fn standard_error_of_equal_windows_is_the_textbook_one() {
        let rises = [0.1, 0.3, 0.2, 0.6, 0.3];
        let windows: Vec<Window> = rises.iter().map(|r| window(300.0, r * 100.0, 100)).collect();
        let mean = rises.iter().sum::<f64>() / 5.0;
        let variance = rises.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / 4.0;
        assert!((standard_error(&windows).unwrap() - (variance / 5.0).sqrt()).abs() < 1e-12);
        assert_eq!(standard_error(&windows[..1]), None);
    }

    #[test]
    fn the_interval_agrees_with_the_normal_one() {
        // 200 windows whose rises are evenly spread over 0 to 0.2: mean 0.1.
        let windows: Vec<Window> = (0..200).map(|i| window(300.0, 0.1 * f64::from(i), 100)).collect();
        let (low, high) = bootstrap(&windows, 0.95, 4000, 7).unwrap();
        let (base, candidate, _) = means(&windows);
        let (rise, error) = (candidate - base, standard_error(&windows).unwrap());
        assert!((low - (rise - 1.96 * error)).abs() < 0.1 * error, "{low}");
        assert!((high - (rise + 1.96 * error)).abs() < 0.1 * error, "{high}");
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let windows: Vec<Window> = (0..20).map(|i| window(100.0, f64::from(i % 7), 50)).collect();
        let one = bootstrap(&windows, 0.9, 500, 1).unwrap();
        assert_eq!(one, bootstrap(&windows, 0.9, 500, 1).unwrap());
        assert_ne!(one, bootstrap(&windows, 0.9, 500, 2).unwrap());
        let wider = bootstrap(&windows, 0.99, 500, 1).unwrap();
        assert!(wider.0 <= one.0 && wider.1 >= one.1);
        assert_eq!(bootstrap(&windows[..1], 0.9, 500, 1), None);
    }

    #[test]
    fn splitmix_gives_the_published_numbers() {
        let mut random = SplitMix(1234567);
        assert_eq!(random.next(), 6457827717110365317);
        assert_eq!(random.next(), 3203168211198807973);
    }
}
