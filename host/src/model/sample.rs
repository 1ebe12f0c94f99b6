//! Choosing the next token from logits; the meaning of every option as in mlx-lm 0.32.2.
//!
//! Order: repetition penalty on the logits, log-softmax, then (at a temperature above 0) top-p, min-p and
//! top-k on the untempered distribution, then one draw at the temperature. All in float64 on the host:
//! a vocabulary is small next to a forward pass. The draw is seeded and reproducible.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Sampling {
    /// 0: always the likeliest token. Above 1 flattens the distribution, below 1 sharpens it.
    pub temperature: f64,
    /// Keep the likeliest tokens that together have this probability; 0 or 1: all.
    pub top_p: f64,
    /// Keep this many tokens; 0: all.
    pub top_k: usize,
    /// Keep tokens at least this fraction as likely as the likeliest; 0: all.
    pub min_p: f64,
    /// Divides the positive logits of recent tokens and multiplies the negative ones; 0 or 1: none.
    pub repetition_penalty: f64,
    /// How many of the last tokens count as recent.
    pub repetition_context: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            repetition_context: 20,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Whether every option is in its range.
    ///
    /// # Errors
    /// The option, its value and its range, as text.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, x: f64, low: f64, high: f64| match x >= low && x <= high {
            true => Ok(()),
            false => Err(format!("{name} is {x}; expected {low} to {high}")),
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top-p", self.top_p, 0.0, 1.0)?;
        within("min-p", self.min_p, 0.0, 1.0)?;
        within("repetition-penalty", self.repetition_penalty, 0.0, 100.0)
    }

    /// Whether top-p leaves anything out.
    fn cuts(&self) -> bool {
        self.top_p > 0.0 && self.top_p < 1.0
    }

    fn filters(&self) -> bool {
        self.cuts() || self.min_p > 0.0 || self.top_k > 0
    }

    fn penalises(&self) -> bool {
        self.repetition_penalty != 0.0 && self.repetition_penalty != 1.0
    }
}

/// Draws tokens one after another.
#[derive(Debug)]
pub struct Sampler {
    options: Sampling,
    rng: ChaCha8Rng,
    /// Of the tokens that are drawn from; kept between draws.
    weights: Vec<f64>,
}

impl Sampler {
    /// A sampler at the beginning of its seed's sequence.
    pub fn new(options: Sampling) -> Sampler {
        let rng = ChaCha8Rng::seed_from_u64(options.seed);
        Sampler { options, rng, weights: Vec::new() }
    }

    /// Chooses an index of `logits`; `recent` are all tokens so far, prompt included.
    /// Logits that are NaN are never chosen; without any finite logit the answer is 0.
    pub fn next(&mut self, logits: &[f32], recent: &[u32]) -> u32 {
        let penalised;
        let logits = match self.options.penalises() {
            false => logits,
            true => {
                let mut own = logits.to_vec();
                penalise(&mut own, recent, &self.options);
                penalised = own;
                &penalised
            }
        };
        let best = argmax(logits);
        let Some(top) = logits.get(best as usize).copied().filter(|x| x.is_finite()) else { return best };
        if self.options.temperature == 0.0 {
            return best;
        }
        // Weights relative to the likeliest, so that small temperatures do not overflow.
        let weight = |x: f64| (x / self.options.temperature).exp();
        if !self.options.filters() {
            self.weights.clear();
            let of = |x: &f32| if x.is_nan() { 0.0 } else { weight(f64::from(*x) - f64::from(top)) };
            self.weights.extend(logits.iter().map(of));
            // The likeliest changes places with the first: most draws end at once.
            self.weights.swap(0, best as usize);
            let place = match draw(&mut self.rng, self.weights.iter().copied()) {
                0 => best,
                p if p == best as usize => 0,
                p => p as u32,
            };
            return place;
        }
        let kept = candidates(logits, f64::from(top), &self.options);
        self.weights.clear();
        self.weights.extend(kept.iter().map(|c| weight(c.1)));
        let place = draw(&mut self.rng, self.weights.iter().copied());
        kept.get(place).map_or(best, |c| c.0)
    }
}

/// The place of one weight, drawn in proportion to it.
fn draw(rng: &mut ChaCha8Rng, weights: impl Iterator<Item = f64> + Clone) -> usize {
    let mut at = rng.random::<f64>() * weights.clone().sum::<f64>();
    let past = |w: f64| {
        at -= w;
        at < 0.0
    };
    // Rounding may leave a trace beyond the last.
    weights.map(past).position(|there| there).unwrap_or(0)
}

fn penalise(logits: &mut [f32], recent: &[u32], o: &Sampling) {
    let penalty = o.repetition_penalty as f32;
    let mut ids = recent[recent.len().saturating_sub(o.repetition_context)..].to_vec();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        if let Some(x) = logits.get_mut(id as usize) {
            *x = if *x < 0.0 { *x * penalty } else { *x / penalty };
        }
    }
}

/// The first of the largest; NaN is none.
fn argmax(logits: &[f32]) -> u32 {
    let best = largest(logits);
    let at = if best == f32::NEG_INFINITY { None } else { logits.iter().position(|x| *x == best) };
    at.unwrap_or(0) as u32
}

/// The largest number, minus infinity where there is none. In lanes, so that it is vectorised.
fn largest(x: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let (lanes, rest) = x.as_chunks::<32>();
    let mut best = [f32::NEG_INFINITY; 32];
    for chunk in lanes {
        for (b, x) in best.iter_mut().zip(chunk) {
            *b = greater(*b, *x);
        }
    }
    best.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| greater(a, *b))
}

/// Tokens that survive the filters with their log-probabilities less that of the likeliest, whose logit is `top`; the
/// likeliest first where order matters.
fn candidates(logits: &[f32], top: f64, o: &Sampling) -> Vec<(u32, f64)> {
    let floor = if o.min_p > 0.0 { o.min_p.ln() } else { f64::NEG_INFINITY };
    let all = logits.iter().enumerate().map(|(i, x)| (i as u32, f64::from(*x) - top));
    // NaN is neither.
    let mut kept: Vec<(u32, f64)> = all.filter(|c| c.1 >= floor && c.1 > f64::NEG_INFINITY).collect();
    let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if o.cuts() {
        // The whole distribution, also what min-p leaves out.
        let sum: f64 = logits.iter().filter(|x| !x.is_nan()).map(|x| (f64::from(*x) - top).exp()).sum();
        // Only the head of the distribution is sorted: what is e^-9 times less likely seldom matters.
        let near = |c: &(u32, f64)| c.1 >= -9.0;
        let mass: f64 = kept.iter().filter(|c| near(c)).map(|c| c.1.exp()).sum();
        if mass > o.top_p * sum {
            kept.retain(near);
        }
        kept.sort_unstable_by(order);
        // A token stays when the mass above it is below top-p; so do tokens as likely as the last that stays.
        let mut above = 0.0;
        let stay = kept.iter().take_while(|c| {
            let s = above < o.top_p * sum;
            above += c.1.exp();
            s
        });
        let last = stay.last().map_or(0.0, |c| c.1);
        kept.retain(|c| c.1 >= last);
    }
    if o.top_k > 0 && o.top_k < kept.len() {
        if !o.cuts() {
            kept.select_nth_unstable_by(o.top_k, order);
            kept.truncate(o.top_k);
            kept.sort_unstable_by(order);
        }
        kept.truncate(o.top_k);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(p: &[f64]) -> Vec<f32> {
        p.iter().map(|p| p.ln() as f32 + 3.0).collect()
    }

    fn ids(p: &[f64], o: Sampling) -> Vec<u32> {
        let mut v: Vec<u32> = candidates(&logits(p), f64::from(largest(&logits(p))), &o).iter().map(|c| c.0).collect();
        v.sort_unstable();
        v
    }

    const P: [f64; 5] = [0.05, 0.4, 0.1, 0.25, 0.2];

    #[test]
    fn filters_keep_what_mlx_lm_keeps() {
        // Expected sets from mlx_lm.sample_utils with the same probabilities.
        let o = Sampling::default;
        assert_eq!(ids(&P, o()), [0, 1, 2, 3, 4]);
        assert_eq!(ids(&P, Sampling { top_p: 0.5, ..o() }), [1, 3]);
        assert_eq!(ids(&P, Sampling { top_p: 0.66, ..o() }), [1, 3, 4]);
        assert_eq!(ids(&P, Sampling { top_p: 0.01, ..o() }), [1]);
        assert_eq!(ids(&P, Sampling { min_p: 0.3, ..o() }), [1, 3, 4]);
        assert_eq!(ids(&P, Sampling { top_k: 2, ..o() }), [1, 3]);
        assert_eq!(ids(&P, Sampling { top_p: 0.9, min_p: 0.3, top_k: 2, ..o() }), [1, 3]);
        // Ties at the border of top-p stay together.
        assert_eq!(ids(&[0.4, 0.2, 0.2, 0.2], Sampling { top_p: 0.5, ..o() }), [0, 1, 2, 3]);
    }

    #[test]
    fn top_p_is_exact_on_long_tails() {
        // A flat tail that holds half of the mass lies below the near candidates.
        let n = 100_000;
        let mut p = vec![0.5 / f64::from(n); n as usize];
        p[7] = 0.5;
        assert_eq!(ids(&p, Sampling { top_p: 0.4, ..Sampling::default() }), [7]);
        assert_eq!(ids(&p, Sampling { top_p: 0.6, ..Sampling::default() }).len(), n as usize);
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        let mut s = Sampler::new(Sampling::default());
        assert_eq!(s.next(&[1.0, f32::NAN, 3.0, 3.0], &[]), 2);
        assert_eq!(s.next(&[f32::NAN, f32::NEG_INFINITY], &[]), 0);
    }

    #[test]
    fn penalties_are_applied_once_and_away_from_the_sign() {
        let o = Sampling { repetition_penalty: 2.0, repetition_context: 3, ..Sampling::default() };
        let mut l = [4.0, -4.0, 4.0, 4.0];
        penalise(&mut l, &[2, 0, 1, 0], &o);
        assert_eq!(l, [2.0, -8.0, 4.0, 4.0]);
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let o = Sampling { temperature: 1.0, seed: 7, ..Sampling::default() };
        let draw = |n: usize, o: &Sampling| {
            let mut s = Sampler::new(o.clone());
            (0..n).map(|_| s.next(&logits(&P), &[])).collect::<Vec<_>>()
        };
        assert_eq!(draw(50, &o), draw(50, &o));
        assert_ne!(draw(50, &o), draw(50, &Sampling { seed: 8, ..o.clone() }));
        let n = 20_000;
        let drawn = draw(n, &o);
        for (id, p) in P.iter().enumerate() {
            let share = drawn.iter().filter(|d| **d as usize == id).count() as f64 / n as f64;
            // Five standard deviations of a binomial share.
            assert!((share - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{id}: {share} against {p}");
        }
        // Temperature 0.5 squares the probabilities.
        let cold = draw(n, &Sampling { temperature: 0.5, ..o });
        let want = P[1] * P[1] / P.iter().map(|p| p * p).sum::<f64>();
        let share = cold.iter().filter(|d| **d == 1).count() as f64 / n as f64;
        assert!((share - want).abs() < 5.0 * (want * (1.0 - want) / n as f64).sqrt());
    }

    #[test]
    fn options_out_of_range_are_named() {
        let bad = Sampling { top_p: 1.5, ..Sampling::default() };
        assert_eq!(bad.check(), Err("top-p is 1.5; expected 0 to 1".into()));
        assert!(Sampling { temperature: f64::NAN, ..Sampling::default() }.check().is_err());
    }
}
