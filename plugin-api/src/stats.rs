//! The statistics of measurements that come in clusters, such as the tokens of a window of text.
//!
//! Tokens of one window resemble each other, and windows differ much more from each other than two
//! models do on one window. So windows are the independent draws, two models are compared window by
//! window, and a mean over tokens is a ratio of sums, for windows may differ in length. The interval
//! is the percentile bootstrap (Efron, Annals of Statistics 7, 1979; over paired windows as in Koehn,
//! EMNLP 2004): draw as many windows as there are, with replacement, compute the mean, repeat, and
//! take the quantiles.

/// What was measured over one window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cluster {
    /// Sum over its tokens.
    pub sum: f64,
    /// Tokens.
    pub tokens: u32,
}

impl Cluster {
    /// Sums up the figures of a window's tokens.
    pub fn of(tokens: &[f32]) -> Cluster {
        Cluster { sum: tokens.iter().map(|t| f64::from(*t)).sum(), tokens: tokens.len() as u32 }
    }
}

/// Tokens in all clusters.
pub fn tokens(clusters: &[Cluster]) -> u64 {
    clusters.iter().map(|c| u64::from(c.tokens)).sum()
}

/// Mean over all tokens; NaN where there are none.
pub fn mean(clusters: &[Cluster]) -> f64 {
    clusters.iter().map(|c| c.sum).sum::<f64>() / tokens(clusters) as f64
}

/// Standard error of the mean, a ratio of sums (Cochran, Sampling Techniques, 1977, 6.4). None for
/// fewer than two clusters.
pub fn standard_error(clusters: &[Cluster]) -> Option<f64> {
    let n = clusters.len() as f64;
    if clusters.len() < 2 {
        return None;
    }
    let mean = mean(clusters);
    let squares: f64 = clusters.iter().map(|c| (c.sum - mean * f64::from(c.tokens)).powi(2)).sum();
    Some((n / (n - 1.0) * squares).sqrt() / tokens(clusters) as f64)
}

/// Confidence interval of the mean, from `resamples` draws. None for fewer than two clusters.
pub fn bootstrap(clusters: &[Cluster], confidence: f64, resamples: u32, seed: u64) -> Option<(f64, f64)> {
    if clusters.len() < 2 || resamples == 0 {
        return None;
    }
    let mut random = SplitMix::new(seed);
    let mut means: Vec<f64> = (0..resamples)
        .map(|_| {
            let (mut sum, mut tokens) = (0.0, 0u64);
            for _ in 0..clusters.len() {
                let c = &clusters[random.below(clusters.len())];
                sum += c.sum;
                tokens += u64::from(c.tokens);
            }
            sum / tokens as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let outside = (1.0 - confidence) / 2.0;
    Some((quantile(&means, outside), quantile(&means, 1.0 - outside)))
}

/// Quantile of sorted values, interpolated linearly; NaN of none.
pub fn quantile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = p.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

/// A confidence in percent, for people: `95` of 0.95, `99.9` of 0.999.
pub fn percent(share: f64) -> f64 {
    (1e6 * share).round() / 1e4
}

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): small, seeded, the same everywhere.
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    /// From a seed.
    pub fn new(seed: u64) -> SplitMix {
        SplitMix(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below n, 0 for n = 0: the high half of a product (Lemire 2019). The bias, n / 2^64, is
    /// far below what a bootstrap resolves.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn cluster(sum: f64, tokens: u32) -> Cluster {
        Cluster { sum, tokens }
    }

    #[test]
    fn means_weigh_tokens() {
        let clusters = [cluster(1.0, 10), cluster(2.0, 20)];
        assert_eq!((mean(&clusters), tokens(&clusters)), (0.1, 30));
        assert!(mean(&[]).is_nan());
        assert_eq!(Cluster::of(&[0.5, 0.25]), cluster(0.75, 2));
    }

    #[test]
    fn standard_error_of_equal_windows_is_the_textbook_one() {
        let rises = [0.1, 0.3, 0.2, 0.6, 0.3];
        let clusters: Vec<Cluster> = rises.iter().map(|r| cluster(r * 100.0, 100)).collect();
        let mean = rises.iter().sum::<f64>() / 5.0;
        let variance = rises.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / 4.0;
        assert!((standard_error(&clusters).unwrap() - (variance / 5.0).sqrt()).abs() < 1e-12);
        assert_eq!(standard_error(&clusters[..1]), None);
    }

    #[test]
    fn the_interval_agrees_with_the_normal_one() {
        // 200 windows whose means are evenly spread over 0 to 0.2.
        let clusters: Vec<Cluster> = (0..200).map(|i| cluster(0.1 * f64::from(i), 100)).collect();
        let (low, high) = bootstrap(&clusters, 0.95, 4000, 7).unwrap();
        let (mean, error) = (mean(&clusters), standard_error(&clusters).unwrap());
        assert!((low - (mean - 1.96 * error)).abs() < 0.1 * error, "{low}");
        assert!((high - (mean + 1.96 * error)).abs() < 0.1 * error, "{high}");
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let clusters: Vec<Cluster> = (0..20).map(|i| cluster(f64::from(i % 7), 50)).collect();
        let one = bootstrap(&clusters, 0.9, 500, 1).unwrap();
        assert_eq!(one, bootstrap(&clusters, 0.9, 500, 1).unwrap());
        assert_ne!(one, bootstrap(&clusters, 0.9, 500, 2).unwrap());
        let wider = bootstrap(&clusters, 0.99, 500, 1).unwrap();
        assert!(wider.0 <= one.0 && wider.1 >= one.1);
        assert_eq!(bootstrap(&clusters[..1], 0.9, 500, 1), None);
    }

    #[test]
    fn quantiles_lie_between_values() {
        assert_eq!(quantile(&[0.0, 10.0], 0.95), 9.5);
        assert_eq!(quantile(&[3.0], 0.5), 3.0);
        assert!(quantile(&[], 0.5).is_nan());
        assert_eq!((percent(0.95), percent(0.999)), (95.0, 99.9));
    }

    #[test]
    fn splitmix_gives_the_published_numbers() {
        let mut random = SplitMix::new(1234567);
        assert_eq!(random.next_u64(), 6457827717110365317);
        assert_eq!(random.next_u64(), 3203168211198807973);
        assert_eq!(random.below(0), 0);
    }
}
