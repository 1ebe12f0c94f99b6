//! Small-sample statistics: medians, Student's t, and an interval by resampling.
//!
//! Everything is deterministic; resampling takes a seed. Nothing here fails: where an interval cannot be had
//! (fewer than two values) it is `None`.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Confidence of every interval of this program.
pub const CONFIDENCE: f64 = 0.95;

/// The middle of values; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile(&sorted, 0.5)
}

/// Quantile of sorted values, interpolated linearly; 0 of none.
pub fn quantile(sorted: &[f64], p: f64) -> f64 {
    let place = p * sorted.len().saturating_sub(1) as f64;
    let at = |i: f64| sorted.get(i as usize).copied().unwrap_or(0.0);
    at(place.floor()) + (at(place.ceil()) - at(place.floor())) * place.fract()
}

/// Mean, and its standard error where there are two values or more.
pub fn mean(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let m = values.iter().sum::<f64>() / n.max(1.0);
    let spread: f64 = values.iter().map(|x| (x - m).powi(2)).sum();
    (m, (values.len() > 1).then(|| (spread / (n - 1.0) / n).sqrt()))
}

/// The t for which a Student distribution of `freedom` degrees lies within ±t with [`CONFIDENCE`].
pub fn t_value(freedom: f64) -> f64 {
    let outside = 1.0 - CONFIDENCE;
    // P(|T| > t) = I_x(f/2, 1/2) with x = f / (f + t²), which falls with t.
    let beyond = |t: f64| incomplete_beta(freedom / (freedom + t * t), freedom / 2.0, 0.5);
    let (mut low, mut high) = (0.0, 1e4);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if beyond(middle) > outside { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// `mean ± t · error` for a mean of so many values.
pub fn interval(mean: f64, error: Option<f64>, values: usize) -> Option<[f64; 2]> {
    let half = t_value(values.checked_sub(1).filter(|f| *f > 0)? as f64) * error?;
    Some([mean - half, mean + half])
}

/// Logarithm of the gamma function for x > 0 (Stirling's series after shifting x above 8).
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 8.0 {
        shift += x.ln();
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series = (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r / 1680.0))) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - shift
}

/// Regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method).
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges fast below the mean; above it the mirrored one does.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp() / a;
    let safe = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let (mut c, mut d) = (1.0, 1.0 / safe(1.0 - (a + b) * x / (a + 1.0)));
    let mut f = d;
    for m in 1..500 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / safe(1.0 + term * d);
            c = safe(1.0 + term / c);
            change = c * d;
            f *= change;
        }
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * f
}

/// Interval of a mean over two crossed sources of chance: rows (training runs) by columns (windows). Both are
/// drawn anew with replacement, `draws` times; `weights` says how much each column counts.
///
/// `None` for fewer than two rows or two columns: there is nothing to draw from.
pub fn resampled(rows: &[Vec<f64>], weights: &[f64], draws: usize, seed: u64) -> Option<[f64; 2]> {
    if rows.len() < 2 || weights.len() < 2 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut means: Vec<f64> = (0..draws.max(1))
        .map(|_| {
            let columns: Vec<usize> = weights.iter().map(|_| rng.random_range(0..weights.len())).collect();
            let of = |of: &[f64]| columns.iter().filter_map(|c| of.get(*c)).sum::<f64>();
            let total = of(weights) * rows.len() as f64;
            let picked = rows.iter().map(|_| rng.random_range(0..rows.len())).collect::<Vec<_>>();
            picked.into_iter().filter_map(|r| rows.get(r)).map(|r| of(r)).sum::<f64>() / total
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let outside = 0.5 * (1.0 - CONFIDENCE);
    Some([quantile(&means, outside), quantile(&means, 1.0 - outside)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn t_is_that_of_the_tables() {
        // Two-sided 95 %, from printed tables.
        for (freedom, t) in
            [(1.0, 12.706), (2.0, 4.303), (3.0, 3.182), (9.0, 2.262), (30.0, 2.042), (120.0, 1.980), (1e6, 1.960)]
        {
            assert!((t_value(freedom) - t).abs() < 6e-4, "{freedom}: {}", t_value(freedom));
        }
    }

    #[test]
    fn an_interval_needs_two_values() {
        let (m, error) = mean(&[1.0, 2.0, 3.0]);
        assert_eq!((m, error.map(|e| (e * e * 3.0 * 1e9).round())), (2.0, Some(1e9)));
        let [low, high] = interval(m, error, 3).unwrap();
        assert!((high - 2.0 - 4.3027 / 3f64.sqrt()).abs() < 1e-3 && (low + high - 4.0).abs() < 1e-12);
        assert_eq!(mean(&[1.0]).1, None);
        assert_eq!(interval(1.0, None, 1), None);
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[])), (2.0, 0.0));
    }

    #[test]
    fn resampling_agrees_with_theory_and_repeats() {
        // 40 rows that differ, columns that do not: the interval is that of a mean of 40 values.
        let rows: Vec<Vec<f64>> = (0..40).map(|i| vec![f64::from(i); 5]).collect();
        let [low, high] = resampled(&rows, &[1.0; 5], 4000, 1).unwrap();
        let (m, error) = mean(&(0..40).map(f64::from).collect::<Vec<_>>());
        assert!((low - (m - 1.96 * error.unwrap())).abs() < 0.4 && (high - (m + 1.96 * error.unwrap())).abs() < 0.4);
        assert_eq!(resampled(&rows, &[1.0; 5], 4000, 1), Some([low, high]));
        assert_eq!(resampled(&rows[..1], &[1.0; 5], 10, 1), None);
    }
}
