//! One slice as ordered rank-1 components, in three metrics.
//!
//! For `y = W x`, W of rows × cols, every metric orders the components of W by what dropping them
//! costs, and W_r, the sum of the first r, is the best rank-r approximation in that metric:
//!
//! - `plain`: ‖W − W_r‖²: the singular value decomposition of W.
//! - `input`: E‖(W − W_r) x‖² over calibration inputs, C = E[x xᵀ]: eigenvectors U of W C Wᵀ,
//!   W_r = U_r U_rᵀ W (the optimum of SVD-LLM, Wang et al. 2024, without its Cholesky factor).
//! - `fisher`: E[½ (gᵀ (W − W_r) x)²] with G = E[g gᵀ] of the gradients g at the output, labels drawn
//!   from the model itself, under K-FAC's independence of x and g (Martens & Grosse 2015): the
//!   singular value decomposition of G^½ W C^½. Half the squared tail predicts the rise of the loss
//!   in nats per token.
//!
//! Each is solved on the smaller side: with rows ≤ cols through W C Wᵀ = E[y yᵀ] and G, else through
//! C and Wᵀ G W = E[(Wᵀg)(Wᵀg)ᵀ]; no matrix larger than min(rows, cols) is ever decomposed.

use crate::mlx::{self, Array, Dtype, randomized, spectral};
use serde::{Deserialize, Serialize};

/// Share of the mean eigenvalue added to input covariances before a root is taken.
const INPUT_RIDGE: f64 = 1e-6;
/// The same for output-gradient covariances, which are estimated from fewer tokens.
const OUTPUT_RIDGE: f64 = 1e-3;

/// What orders the components of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Size of the weights.
    Plain,
    /// Size of the output over calibration inputs.
    Input,
    /// Predicted rise of the loss.
    Fisher,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Metric; 3] = [Metric::Plain, Metric::Input, Metric::Fisher];

    /// The name plugins use.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Plain => "plain",
            Metric::Input => "input",
            Metric::Fisher => "fisher",
        }
    }

    /// From a need such as `spectrum:fisher`.
    pub fn from_need(need: &str) -> Option<Metric> {
        let name = need.strip_prefix("spectrum:")?;
        Metric::ALL.into_iter().find(|m| m.name() == name)
    }

    /// Whether the metric needs calibration text.
    pub fn needs_moments(self) -> bool {
        self != Metric::Plain
    }
}

/// Second moments of one slice on its smaller side, k = min(rows, cols).
#[derive(Clone, Debug)]
pub struct SliceMoments {
    /// rows ≤ cols: E[(Wx)(Wx)ᵀ]; else E[x xᵀ]. [k, k]
    pub input: Array,
    /// rows ≤ cols: E[g gᵀ]; else E[(Wᵀg)(Wᵀg)ᵀ]. [k, k]
    pub output: Array,
    /// Mean of E[g²] over the outputs.
    pub output_mean: f64,
}

/// All components of one slice, most important first.
#[derive(Clone, Debug)]
pub struct Components {
    /// Left vectors, one component a row [k, rows], float32.
    pub a: Array,
    /// Right vectors, one component a row [k, cols], float32.
    pub b: Array,
}

/// The symmetric matrix whose eigenvectors order the components, with what turns them into factors.
struct Problem {
    matrix: Array,
    /// rows ≤ cols: G^½ and G^−½, where the metric weighs outputs; else C^½ and C^−½.
    roots: Option<[Array; 2]>,
    wide: bool,
}

fn problem(w: &Array, metric: Metric, moments: Option<&SliceMoments>) -> mlx::Result<Problem> {
    let wide = w.dim(0) <= w.dim(1);
    let transposed = || mlx::Context::context(w.transpose(), "transposing a weight");
    let gram = || if wide { spectral::matmul(w, &transposed()?) } else { spectral::matmul(&transposed()?, w) };
    let (matrix, roots) = match (metric, moments) {
        (Metric::Plain, _) | (_, None) => (gram()?, None),
        (Metric::Input, Some(m)) if wide => (m.input.clone(), None),
        (Metric::Fisher, Some(m)) if wide => {
            let roots = spectral::powers(&m.output, [0.5, -0.5], OUTPUT_RIDGE)?;
            (sandwich(&roots[0], &m.input)?, Some(roots))
        }
        (Metric::Input, Some(m)) => {
            let roots = spectral::powers(&m.input, [0.5, -0.5], INPUT_RIDGE)?;
            (sandwich(&roots[0], &gram()?)?, Some(roots))
        }
        (Metric::Fisher, Some(m)) => {
            let roots = spectral::powers(&m.input, [0.5, -0.5], INPUT_RIDGE)?;
            let ridge = Array::from_f64(OUTPUT_RIDGE * m.output_mean);
            let weighed = spectral::on_cpu(|| gram_plus(&m.output, &gram()?, &ridge))?;
            (sandwich(&roots[0], &weighed)?, Some(roots))
        }
    };
    Ok(Problem { matrix, roots, wide })
}

fn gram_plus(output: &Array, gram: &Array, ridge: &Array) -> mlx::Result<Array> {
    let sum = output.as_dtype(Dtype::Float64).and_then(|o| o.add(gram.multiply(ridge)?));
    mlx::Context::context(sum, "adding the ridge")
}

/// `r · m · r` for a symmetric root r.
fn sandwich(r: &Array, m: &Array) -> mlx::Result<Array> {
    spectral::matmul(&spectral::matmul(r, m)?, r)
}

/// Singular values of `w` [rows, cols] in a metric, largest first: min(rows, cols) of them.
///
/// # Errors
/// When weights or moments are not finite, or a covariance is zero.
pub fn spectrum(w: &Array, metric: Metric, moments: Option<&SliceMoments>) -> mlx::Result<Vec<f32>> {
    let values = spectral::eigenvalues(&problem(w, metric, moments)?.matrix)?;
    Ok(spectral::to_vec(&values)?.into_iter().map(|v| v.max(0.0).sqrt() as f32).collect())
}

/// Only so many components, by a randomised range finder; `None`: all of them, exactly.
pub type Leading = Option<(u32, randomized::Options)>;

/// The components of `w` [rows, cols] in a metric; the sum of all is `w`, up to rounding to float32.
///
/// # Errors
/// When weights or moments are not finite, or a covariance is zero.
pub fn components(
    w: &Array,
    metric: Metric,
    moments: Option<&SliceMoments>,
    leading: Leading,
) -> mlx::Result<Components> {
    let p = problem(w, metric, moments)?;
    let (_, vectors) = match leading {
        None => spectral::eigh(&p.matrix)?,
        Some((rank, options)) => randomized::eigh(&p.matrix, rank, &options)?,
    };
    let across = mlx::Context::context(vectors.transpose(), "transposing eigenvectors")?;
    let (a, b) = match (p.wide, &p.roots) {
        // W = U Uᵀ W, or G^−½ U Uᵀ G^½ W.
        (true, None) => (across.clone(), spectral::matmul(&across, w)?),
        (true, Some([half, inverse])) => {
            (spectral::matmul(&across, inverse)?, spectral::matmul(&spectral::matmul(&across, half)?, w)?)
        }
        // W = W V Vᵀ, or W C^½ V Vᵀ C^−½.
        (false, None) => (product_rows(w, &vectors)?, across),
        (false, Some([half, inverse])) => {
            (product_rows(w, &spectral::matmul(half, &vectors)?)?, spectral::matmul(&across, inverse)?)
        }
    };
    let narrow = |x: Array| {
        let y = spectral::on_cpu(|| x.as_dtype(Dtype::Float32)?.contiguous());
        mlx::Context::context(y, "narrowing factors")
    };
    let (a, b) = (narrow(a)?, narrow(b)?);
    mlx::eval([&a, &b])?;
    Ok(Components { a, b })
}

/// `(w · m)ᵀ`: one component a row.
fn product_rows(w: &Array, m: &Array) -> mlx::Result<Array> {
    mlx::Context::context(spectral::matmul(w, m)?.transpose(), "transposing factors")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use mlx_rs::random;

    fn normal(shape: &[i32], seed: u64) -> Array {
        random::normal::<f32>(shape, None, None, Some(&random::key(seed).unwrap())).unwrap()
    }

    /// Inputs with a steep spectrum, gradients with a milder one, and the moments they give.
    fn calibrated(rows: i32, cols: i32) -> (Array, SliceMoments, Array, Array) {
        let w = normal(&[rows, cols], 1);
        let decay: Vec<f32> = (0..cols).map(|i| 0.7f32.powi(i)).collect();
        let x = normal(&[400, cols], 2).multiply(Array::from_slice(&decay, &[1, cols])).unwrap();
        let tilt: Vec<f32> = (0..rows).map(|i| 0.8f32.powi(i)).collect();
        let g = normal(&[400, rows], 3).multiply(Array::from_slice(&tilt, &[1, rows])).unwrap();
        let gram = |a: &Array| a.transpose().unwrap().matmul(a).unwrap().divide(Array::from_f32(400.0)).unwrap();
        let (input, output) = match rows <= cols {
            true => (gram(&x.matmul(w.transpose().unwrap()).unwrap()), gram(&g)),
            false => (gram(&x), gram(&g.matmul(&w).unwrap())),
        };
        let output_mean =
            spectral::to_vec(&g.multiply(&g).unwrap()).unwrap().iter().sum::<f64>() / (400.0 * f64::from(rows));
        (w, SliceMoments { input, output, output_mean }, gram(&x), gram(&g))
    }

    fn truncated(c: &Components, r: i32) -> Array {
        let keep: Vec<i32> = (0..r).collect();
        let keep = Array::from_slice(&keep, &[r]);
        let (a, b) = (c.a.take_axis(&keep, 0).unwrap(), c.b.take_axis(&keep, 0).unwrap());
        a.transpose().unwrap().matmul(b).unwrap()
    }

    fn trace(a: &Array) -> f64 {
        let n = a.dim(0) as usize;
        spectral::to_vec(a).unwrap().iter().step_by(n + 1).sum()
    }

    #[test]
    fn all_components_sum_to_the_weight() {
        for (rows, cols) in [(6, 10), (10, 6), (7, 7)] {
            let (w, m, _, _) = calibrated(rows, cols);
            for metric in Metric::ALL {
                let c = components(&w, metric, Some(&m), None).unwrap();
                let back = spectral::to_vec(&truncated(&c, rows.min(cols))).unwrap();
                for (x, y) in back.iter().zip(spectral::to_vec(&w).unwrap()) {
                    assert!((x - y).abs() < 2e-4, "{metric:?} {rows}x{cols}: {x} {y}");
                }
            }
        }
    }

    /// The squared tail is the metric's own error: tr(G D C Dᵀ) for D = W − W_r.
    #[test]
    fn the_tail_is_the_error_it_claims() {
        for (rows, cols) in [(6, 10), (10, 6)] {
            let (w, m, c, g) = calibrated(rows, cols);
            for metric in Metric::ALL {
                let s = spectrum(&w, metric, Some(&m)).unwrap();
                let d = w.subtract(truncated(&components(&w, metric, Some(&m), None).unwrap(), 3)).unwrap();
                let dt = d.transpose().unwrap();
                let error = match metric {
                    Metric::Plain => trace(&spectral::matmul(&d, &dt).unwrap()),
                    Metric::Input => trace(&spectral::matmul(&spectral::matmul(&d, &c).unwrap(), &dt).unwrap()),
                    Metric::Fisher => {
                        let gd = spectral::matmul(&g, &d).unwrap();
                        trace(&spectral::matmul(&spectral::matmul(&gd, &c).unwrap(), &dt).unwrap())
                    }
                };
                let tail: f64 = s[3..].iter().map(|v| f64::from(*v).powi(2)).sum();
                assert!((tail - error).abs() < 0.02 * tail.max(error), "{metric:?} {rows}x{cols}: {tail} {error}");
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for m in Metric::ALL {
            assert_eq!(Metric::from_need(&format!("spectrum:{}", m.name())), Some(m));
        }
        assert_eq!(Metric::from_need("spectrum:other"), None);
    }
}
