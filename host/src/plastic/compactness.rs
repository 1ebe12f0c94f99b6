//! How far a matrix is from another one, and how compact its factors are beside it.
//!
//! Fails where shapes differ or MLX does.

use crate::mlx::randomized::{self, Options, Precision, Svd};
use crate::mlx::{Array, Context, Dtype, Result, spectral};
use serde::Serialize;

/// How a decomposition is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "svd", rename_all = "lowercase")]
pub enum Method {
    /// All of it, in float64.
    Exact,
    /// The leading part from a few products with a seeded random matrix.
    Randomized {
        /// Columns drawn beyond the rank.
        oversamples: u32,
        /// Power iterations.
        power_iterations: u32,
        /// Seed of the random matrix.
        seed: u64,
    },
}

impl Method {
    /// The leading `k` triplets of `a` [m, n], in float64.
    ///
    /// # Errors
    /// When `k` is not 1 to min(m, n), `a` is not finite, or LAPACK fails.
    pub fn decompose(self, a: &Array, k: u32) -> Result<Svd> {
        match self {
            Method::Randomized { oversamples, power_iterations, seed } => {
                let options = Options { oversamples, power_iterations, seed, precision: Precision::Double };
                randomized::svd(a, k, &options)
            }
            Method::Exact => truncated(&randomized::exact(a)?, k),
        }
    }
}

/// The first `k` triplets of a decomposition.
///
/// # Errors
/// When there are fewer, or `k` is 0.
pub fn truncated(svd: &Svd, k: u32) -> Result<Svd> {
    let what = "truncating a decomposition";
    let held = svd.s.dim(0);
    if k == 0 || i64::from(k) > i64::from(held) {
        let why = format!("rank {k} was asked for; this matrix has ranks 1 to {held}");
        return Err(mlx_rs::error::Exception::custom(why)).context(what);
    }
    let index: Vec<i32> = (0..k as i32).collect();
    let index = Array::from_slice(&index, &[k as i32]);
    spectral::on_cpu(|| {
        Ok(Svd {
            u: svd.u.take_axis(&index, 1).context(what)?,
            s: svd.s.take_axis(&index, 0).context(what)?,
            vt: svd.vt.take_axis(&index, 0).context(what)?,
        })
    })
}

/// U diag(s) Vᵀ in float64.
///
/// # Errors
/// When MLX fails.
pub fn product(svd: &Svd) -> Result<Array> {
    let us = spectral::on_cpu(|| svd.u.multiply(svd.s.reshape(&[1, -1])?)).context("scaling factors")?;
    spectral::matmul(&us, &svd.vt)
}

/// The distance of two matrices.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distance {
    /// ‖W − Ŵ‖_F / ‖W‖_F; 0 where both are zero.
    pub rel_error: f64,
    /// ‖W − Ŵ‖₂ / ‖W‖₂.
    pub spectral_error: f64,
    /// Whether the spectral norms are exact; above 1024 on the smaller side they come from a randomised
    /// decomposition.
    pub spectral_exact: bool,
}

impl Distance {
    /// Of `approximation` from `w`, both [m, n], in float64.
    ///
    /// # Errors
    /// When the shapes differ, or a number is not finite.
    pub fn of(w: &Array, approximation: &Array) -> Result<Distance> {
        let what = "comparing matrices";
        if w.shape() != approximation.shape() {
            let why = format!("shapes {:?} and {:?} differ", w.shape(), approximation.shape());
            return Err(mlx_rs::error::Exception::custom(why)).context(what);
        }
        let off = difference(w, approximation)?;
        let (whole, exact) = randomized::norm2(w)?;
        let (part, _) = randomized::norm2(&off)?;
        Ok(Distance {
            rel_error: share(frobenius(&off)?, frobenius(w)?),
            spectral_error: share(part, whole),
            spectral_exact: exact,
        })
    }
}

/// ‖W − Ŵ‖_F / ‖W‖_F alone.
///
/// # Errors
/// When the shapes differ.
pub fn rel_error(w: &Array, approximation: &Array) -> Result<f64> {
    Ok(share(frobenius(&difference(w, approximation)?)?, frobenius(w)?))
}

/// ‖A‖_F.
///
/// # Errors
/// When the delayed computation fails.
pub fn frobenius(a: &Array) -> Result<f64> {
    let what = "size of a matrix";
    let square = spectral::on_cpu(|| {
        let a = a.as_dtype(Dtype::Float64)?;
        a.multiply(&a)?.sum(None)
    });
    Ok(spectral::to_vec(&square.context(what)?)?.first().copied().unwrap_or(0.0).sqrt())
}

fn difference(w: &Array, other: &Array) -> Result<Array> {
    let d = spectral::on_cpu(|| w.as_dtype(Dtype::Float64)?.subtract(other.as_dtype(Dtype::Float64)?));
    d.context("comparing matrices")
}

fn share(part: f64, whole: f64) -> f64 {
    if part == 0.0 { 0.0 } else { part / whole.max(f64::MIN_POSITIVE) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn distances_of_a_diagonal_matrix() {
        let w = Array::from_slice(&[4.0f32, 0.0, 0.0, 3.0], &[2, 2]);
        for method in [Method::Exact, Method::Randomized { oversamples: 1, power_iterations: 3, seed: 7 }] {
            let one = product(&method.decompose(&w, 1).unwrap()).unwrap();
            let d = Distance::of(&w, &one).unwrap();
            assert!((d.rel_error - 0.6).abs() < 1e-9 && (d.spectral_error - 0.75).abs() < 1e-9, "{d:?}");
            assert!(d.spectral_exact);
            assert!((rel_error(&w, &one).unwrap() - 0.6).abs() < 1e-9);
            assert!(method.decompose(&w, 3).unwrap_err().to_string().contains("ranks 1 to 2"));
        }
        let zero = Array::from_slice(&[0.0f32; 4], &[2, 2]);
        assert_eq!(Distance::of(&zero, &zero).unwrap().rel_error, 0.0);
        let other = Array::from_slice(&[0.0f32; 2], &[1, 2]);
        assert!(Distance::of(&w, &other).unwrap_err().to_string().contains("differ"));
    }
}
