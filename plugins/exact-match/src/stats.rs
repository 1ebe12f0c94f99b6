//! Shares of right answers: how sure one is, and whether two differ by more than chance.

/// Wilson's score interval (Journal of the American Statistical Association 22, 1927) for `right` of
/// `n`: unlike the normal one it stays between 0 and 1 and holds for few questions.
///
/// ```text
/// (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),  p = right / n
/// ```
pub fn wilson(right: u64, n: u64, confidence: f64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (n, z) = (n as f64, normal_quantile(0.5 + confidence / 2.0));
    let p = right as f64 / n;
    let centre = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

/// McNemar's exact test (Psychometrika 12, 1947), two-sided: of the questions that only one of two
/// models answers right, were `lost` and `won` drawn with equal odds?
///
/// ```text
/// p = min(1, 2 Σ_{i ≤ min(lost, won)} C(lost + won, i) / 2^(lost + won))
/// ```
pub fn mcnemar(lost: u64, won: u64) -> f64 {
    let n = lost + won;
    // ln C(n, i), from i = 0 on: each is the one before times (n - i) / (i + 1).
    let (mut log, mut sum) = (0.0, 0.0);
    for i in 0..=lost.min(won) {
        sum += (log - n as f64 * std::f64::consts::LN_2).exp();
        log += ((n - i) as f64).ln() - ((i + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

/// The value that a standard normal variable stays below with probability `p`, 0 < p < 1: bisection
/// of the distribution function, for which `erfc` is summed as a series or continued fraction
/// (Abramowitz & Stegun 1964, 7.1.6 and 7.1.14).
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if normal(middle) < p { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// The normal distribution function.
fn normal(x: f64) -> f64 {
    let t = x.abs() / std::f64::consts::SQRT_2;
    let density = (-t * t).exp() / std::f64::consts::PI.sqrt();
    let tail = if t < 2.5 {
        // erf(t) = 2 e^(−t²) / √π · Σ 2^k t^(2k+1) / (2k+1)!!
        let (mut term, mut sum) = (t, t);
        for k in 1..200 {
            term *= 2.0 * t * t / f64::from(2 * k + 1);
            sum += term;
        }
        (1.0 - 2.0 * density * sum) / 2.0
    } else {
        // erfc(t) = e^(−t²) / √π · 1 / (t + (1/2) / (t + 1 / (t + (3/2) / …)))
        let fraction = (1..60).rev().fold(t, |below, k| t + f64::from(k) / 2.0 / below);
        density / fraction / 2.0
    };
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_quantiles_are_the_tabulated_ones() {
        for (p, z) in [(0.5, 0.0), (0.75, 0.674_489_75), (0.975, 1.959_963_985), (0.9995, 3.290_526_731)] {
            assert!((normal_quantile(p) - z).abs() < 1e-8, "{p}: {}", normal_quantile(p));
        }
        // The series and the fraction meet.
        assert!((normal(2.5 * 2f64.sqrt() - 1e-9) - normal(2.5 * 2f64.sqrt() + 1e-9)).abs() < 1e-10);
    }

    #[test]
    fn wilson_gives_published_intervals() {
        // Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        for (right, n, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let (l, h) = wilson(right, n, 0.95);
            assert!((l - low).abs() < 5e-5 && (h - high).abs() < 5e-5, "{right}/{n}: {l} {h}");
        }
        assert_eq!(wilson(0, 0, 0.95), (0.0, 1.0));
    }

    #[test]
    fn mcnemar_is_the_binomial_test() {
        // 1 of 6: 2 (1 + 6) / 64; none of 5: 2 / 32.
        assert!((mcnemar(1, 5) - 14.0 / 64.0).abs() < 1e-12);
        assert!((mcnemar(5, 0) - 2.0 / 32.0).abs() < 1e-12);
        assert_eq!((mcnemar(0, 0), mcnemar(3, 3)), (1.0, 1.0));
        assert_eq!(mcnemar(2, 9), mcnemar(9, 2));
        // Large counts neither overflow nor vanish: 1400 against 1600, z = 3.65.
        let p = mcnemar(1400, 1600);
        assert!((2e-4..4e-4).contains(&p), "{p}");
    }
}
