//! Eigenproblems and small decompositions in float64 on the CPU: the numerical heart of every factorisation.
//!
//! Covariances of language-model activations span ten orders of magnitude, more than float32 can
//! separate, so Gram matrices enter in float32 and are decomposed in float64. LAPACK runs on the
//! CPU whatever the default device is.

use super::{Array, Context, Dtype, Result};
use mlx_rs::{Stream, linalg, with_stream};

/// Runs `f` with the CPU as the default stream of this thread.
pub fn on_cpu<T>(f: impl FnOnce() -> T) -> T {
    with_stream(&Stream::cpu(), f)
}

/// Indices n−1 … 0, to turn LAPACK's ascending order into the descending one used everywhere here.
fn reversed(n: i32) -> Array {
    let index: Vec<i32> = (0..n).rev().collect();
    Array::from_slice(&index, &[n])
}

/// `a` in float64, refused when it holds NaN or infinity (LAPACK may not return on those).
fn finite_f64(a: &Array, what: &str) -> Result<Array> {
    let a = a.as_dtype(Dtype::Float64).context(what)?;
    let total = a.abs().and_then(|x| x.sum(None)).context(what)?;
    let total =
        total.try_item_cast::<f64>().map_err(|e| mlx_rs::error::Exception::custom(e.to_string())).context(what)?;
    if !total.is_finite() {
        return Err(mlx_rs::error::Exception::custom("the matrix holds NaN or infinite entries")).context(what);
    }
    Ok(a)
}

/// Eigenvalues, largest first, of a symmetric matrix [n, n]; float64 [n].
///
/// # Errors
/// When the matrix is not finite or LAPACK does not converge.
pub fn eigenvalues(a: &Array) -> Result<Array> {
    let what = "eigenvalues of a symmetric matrix";
    on_cpu(|| {
        let a = finite_f64(a, what)?;
        let e = linalg::eigvalsh(&a, None).context(what)?;
        e.take_axis(reversed(e.dim(0)), 0).context(what)
    })
}

/// Eigenvalues, largest first [n], and eigenvectors as columns [n, n] of a symmetric matrix; float64.
///
/// # Errors
/// When the matrix is not finite or LAPACK does not converge.
pub fn eigh(a: &Array) -> Result<(Array, Array)> {
    let what = "eigenvectors of a symmetric matrix";
    on_cpu(|| {
        let a = finite_f64(a, what)?;
        let (e, u) = linalg::eigh(&a, None).context(what)?;
        let order = reversed(e.dim(0));
        Ok((e.take_axis(&order, 0).context(what)?, u.take_axis(&order, 1).context(what)?))
    })
}

/// `(max(a, 0) + ridge · mean eigenvalue)^p` for each power p, of a symmetric matrix [n, n]; float64.
///
/// The ridge keeps directions the data never showed from blowing up in negative powers.
///
/// # Errors
/// When the matrix is not finite, or holds no energy at all.
pub fn powers<const N: usize>(a: &Array, powers: [f64; N], ridge: f64) -> Result<[Array; N]> {
    let what = "root of a covariance matrix";
    let (values, vectors) = eigh(a)?;
    let values = on_cpu(|| mlx_rs::ops::maximum(&values, Array::from_f64(0.0))).context(what)?;
    let mean = to_vec(&values)?.iter().sum::<f64>() / f64::from(values.dim(0).max(1));
    if mean <= 0.0 {
        return Err(mlx_rs::error::Exception::custom(
            "the covariance is zero: the calibration text never exercised this slice; use more or other text",
        ))
        .context(what);
    }
    let mut out = Vec::with_capacity(N);
    for p in powers {
        let m = on_cpu(|| {
            let scaled = values.add(Array::from_f64(ridge * mean))?.power(Array::from_f64(p))?.reshape(&[1, -1])?;
            vectors.multiply(scaled)?.matmul(vectors.transpose()?)
        });
        out.push(m.context(what)?);
    }
    super::eval(&out)?;
    out.try_into().map_err(|_| mlx_rs::error::Exception::custom("power count")).context(what)
}

/// `a · b` in float64 on the CPU.
///
/// # Errors
/// When the shapes disagree.
pub fn matmul(a: &Array, b: &Array) -> Result<Array> {
    on_cpu(|| a.as_dtype(Dtype::Float64)?.matmul(b.as_dtype(Dtype::Float64)?)).context("float64 product")
}

/// The thin QR decomposition of `a` [m, n] with k = min(m, n): Q [m, k] and R [k, n]; float64.
///
/// # Errors
/// When the matrix is not finite or LAPACK fails.
pub fn qr(a: &Array) -> Result<(Array, Array)> {
    let what = "QR decomposition";
    on_cpu(|| {
        let a = finite_f64(a, what)?;
        linalg::qr(&a).context(what)
    })
}

/// The singular value decomposition of a small `a` [m, n] with k = min(m, n): U [m, k], the values largest
/// first [k], Vᵀ [k, n]; float64.
///
/// # Errors
/// When the matrix is not finite or LAPACK does not converge.
pub fn svd(a: &Array) -> Result<(Array, Array, Array)> {
    let what = "singular value decomposition";
    on_cpu(|| {
        let a = finite_f64(a, what)?;
        let (u, s, vt) = linalg::svd(&a).context(what)?;
        // MLX answers square U and V.
        let first: Vec<i32> = (0..s.dim(0)).collect();
        let first = Array::from_slice(&first, &[s.dim(0)]);
        Ok((u.take_axis(&first, 1).context(what)?, s, vt.take_axis(&first, 0).context(what)?))
    })
}

/// The values of an array of any float type as float64.
///
/// # Errors
/// When the delayed computation fails.
pub fn to_vec(a: &Array) -> Result<Vec<f64>> {
    let what = "reading an array";
    let a = on_cpu(|| a.as_dtype(Dtype::Float64)?.reshape(&[-1])).context(what)?;
    a.eval().context(what)?;
    a.to_vec_exact::<f64>().map_err(|e| mlx_rs::error::Exception::custom(e.to_string())).context(what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn spd(n: i32) -> Array {
        let key = mlx_rs::random::key(3).unwrap();
        let x = mlx_rs::random::normal::<f32>(&[2 * n, n], None, None, Some(&key)).unwrap();
        x.transpose().unwrap().matmul(&x).unwrap()
    }

    #[test]
    fn eigen_decomposition_restores_the_matrix() {
        let a = spd(17);
        let (e, u) = eigh(&a).unwrap();
        let e = to_vec(&e).unwrap();
        assert!(e.windows(2).all(|w| w[0] >= w[1]));
        let scaled =
            on_cpu(|| u.multiply(Array::from_slice_f64(&e, &[1, 17]).as_dtype(Dtype::Float64).unwrap())).unwrap();
        let back = to_vec(&matmul(&scaled, &u.transpose().unwrap()).unwrap()).unwrap();
        // LAPACK reads the lower triangle; a float32 product need not be symmetric to the last bit.
        for (i, (x, y)) in back.iter().zip(to_vec(&a).unwrap()).enumerate().filter(|(i, _)| i / 17 >= i % 17) {
            assert!((x - y).abs() < 1e-12 * e[0], "{i}: {x} {y}");
        }
        assert_eq!(to_vec(&eigenvalues(&a).unwrap()).unwrap().len(), 17);
    }

    #[test]
    fn factors_multiply_to_the_matrix() {
        for (m, n) in [(7, 3), (3, 7), (4, 4)] {
            let key = mlx_rs::random::key(5).unwrap();
            let a = mlx_rs::random::normal::<f32>(&[m, n], None, None, Some(&key)).unwrap();
            let whole = to_vec(&a).unwrap();
            let (q, r) = qr(&a).unwrap();
            let (u, s, vt) = svd(&a).unwrap();
            assert_eq!((q.dim(1), s.dim(0), vt.dim(0)), (m.min(n), m.min(n), m.min(n)));
            let us = on_cpu(|| u.multiply(s.reshape(&[1, -1]).unwrap())).unwrap();
            for back in [matmul(&q, &r).unwrap(), matmul(&us, &vt).unwrap()] {
                let worst = to_vec(&back).unwrap().iter().zip(&whole).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
                assert!(worst < 1e-13, "{m}x{n}: {worst}");
            }
            assert!(to_vec(&s).unwrap().windows(2).all(|w| w[0] >= w[1]));
        }
    }

    #[test]
    fn roots_multiply_to_one() {
        let [half, inverse] = powers(&spd(9), [0.5, -0.5], 1e-9).unwrap();
        let one = to_vec(&matmul(&half, &inverse).unwrap()).unwrap();
        for (i, v) in one.iter().enumerate() {
            assert!((v - f64::from(i % 10 == 0)).abs() < 1e-8);
        }
    }

    #[test]
    fn bad_matrices_are_refused_in_words() {
        let nan = Array::from_slice(&[1.0f32, f32::NAN, 0.0, 1.0], &[2, 2]);
        assert!(eigh(&nan).unwrap_err().to_string().contains("NaN"));
        let zero = Array::from_slice(&[0.0f32; 4], &[2, 2]);
        assert!(powers(&zero, [0.5], 1e-3).unwrap_err().to_string().contains("zero"));
    }
}
