//! Rotary positions: the frequencies of every supported scaling, computed once in float64.
//!
//! Formulas as in mlx-lm 0.32.2 (`rope_utils.py`). All of them come down to one vector of `d/2` wave
//! lengths over 2π, so the decoder has one code path; YaRN's magnitude, which multiplies q and k
//! alike, is folded into the attention scale.

use std::f64::consts::PI;

/// Rotary positions of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Width that is rotated: all of a head.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Pairs are neighbours (2i, 2i+1) instead of halves (i, i + d/2).
    pub traditional: bool,
    /// How the frequencies are stretched for long contexts.
    pub scaling: Scaling,
}

/// How rotary frequencies are stretched for contexts longer than the model was trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    Default,
    /// Positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: long waves stretched, short ones kept, a ramp between.
    Llama3 {
        /// Stretch of the long waves.
        factor: f64,
        /// Waves longer than `original / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Waves shorter than `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the original training.
        original: usize,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// Stretch of the long waves.
        factor: f64,
        /// Context of the original training.
        original: usize,
        /// Rotations within `original` above which a wave is kept.
        beta_fast: f64,
        /// Rotations within `original` below which a wave is stretched.
        beta_slow: f64,
        /// Weight of the magnitude correction.
        mscale: f64,
        /// The same in the denominator.
        mscale_all_dim: f64,
        /// States the magnitude outright (as in transformers).
        attention_factor: Option<f64>,
    },
}

impl Scaling {
    /// Longest context the scaling is made for; 0 when it does not say.
    pub(crate) fn reach(&self) -> usize {
        match *self {
            Scaling::Llama3 { factor, original, .. } | Scaling::Yarn { factor, original, .. } => {
                (factor * original as f64) as usize
            }
            Scaling::Default | Scaling::Linear { .. } => 0,
        }
    }
}

impl Rope {
    /// The `dims / 2` wave lengths over 2π: position p turns pair i by p / f[i].
    pub fn frequencies(&self) -> Vec<f32> {
        let dims = self.dims as f64;
        let plain = (0..self.dims / 2).map(|i| self.theta.powf(2.0 * i as f64 / dims));
        let scaled: Vec<f64> = match self.scaling {
            Scaling::Default => plain.collect(),
            Scaling::Linear { factor } => plain.map(|f| f * factor).collect(),
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let original = original as f64;
                let stretch = |f: f64| {
                    let wave = 2.0 * PI * f;
                    if wave > original / low_freq_factor {
                        f * factor
                    } else if wave > original / high_freq_factor {
                        let smooth = (original / wave - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        f / ((1.0 - smooth) / factor + smooth)
                    } else {
                        f
                    }
                };
                plain.map(stretch).collect()
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, .. } => {
                let at =
                    |rotations: f64| dims * (original as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let low = at(beta_fast).floor().max(0.0);
                let high = at(beta_slow).ceil().min(dims - 1.0);
                // Equal ends would divide by zero.
                let high = if low == high { high + 0.001 } else { high };
                let stretch = |(i, f): (usize, f64)| {
                    let keep = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    let long = factor * f;
                    long * f / (long * keep + f * (1.0 - keep))
                };
                plain.enumerate().map(stretch).collect()
            }
        };
        scaled.into_iter().map(|f| f as f32).collect()
    }

    /// What multiplies q and k (YaRN's magnitude correction); 1 for the others.
    pub fn magnitude(&self) -> f64 {
        let Scaling::Yarn { factor, mscale, mscale_all_dim, attention_factor, .. } = self.scaling else { return 1.0 };
        let of = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        attention_factor.unwrap_or(of(mscale) / of(mscale_all_dim))
    }
}
