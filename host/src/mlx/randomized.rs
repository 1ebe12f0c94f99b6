//! Randomised decompositions: the leading singular triplets or eigenpairs of a large matrix, from a few
//! products with it.
//!
//! The scheme is that of Halko, Martinsson and Tropp (SIAM Review 53, 2011): a seeded Gaussian test matrix Ω
//! of k + p columns, an orthonormal basis Q of the range of (A Aᵀ)^q A Ω (algorithm 4.4: a QR decomposition
//! after every product, without which rounding loses all but the largest directions), and the exact
//! decomposition of the small matrix Qᵀ A (algorithms 5.1 and 5.3). On average the error exceeds the
//! best possible one by a factor that tends to 1 as q grows, the faster the steeper the spectrum falls.
//!
//! The same matrix, options and machine give the same bits. Where k + p columns are as many as the matrix
//! has, the exact decomposition is no dearer and is taken. Fails on NaN, infinity and impossible ranks.

use super::spectral::{self, on_cpu};
use super::{Array, Context, Dtype, MlxError, Result};
use mlx_rs::error::Exception;
use mlx_rs::{linalg, random};

/// Columns drawn beyond the rank, where nothing else is asked for.
pub const OVERSAMPLES: u32 = 10;
/// Power iterations, where nothing else is asked for.
pub const POWER_ITERATIONS: u32 = 2;

/// In what numbers to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// float32: factors orthonormal to about 1e-6; products run on MLX's default device.
    Single,
    /// float64, on the CPU.
    #[default]
    Double,
}

/// How much work to spend, and from which random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Columns of the test matrix beyond the rank: 5 to 10 do.
    pub oversamples: u32,
    /// Times A Aᵀ is applied to sharpen the spectrum: 0 for steep ones, 2 to 4 for flat ones.
    pub power_iterations: u32,
    /// Seed of the test matrix.
    pub seed: u64,
    /// Numbers to compute in, and the type of the answer.
    pub precision: Precision,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            oversamples: OVERSAMPLES,
            power_iterations: POWER_ITERATIONS,
            seed: 0,
            precision: Precision::default(),
        }
    }
}

/// A thin singular value decomposition, A ≈ U diag(s) Vᵀ.
#[derive(Clone, Debug)]
pub struct Svd {
    /// Left vectors as columns [m, k].
    pub u: Array,
    /// Singular values, largest first [k].
    pub s: Array,
    /// Right vectors as rows [k, n].
    pub vt: Array,
}

/// The leading `k` singular triplets of `a` [m, n], approximately; in the type of `options.precision`.
///
/// # Errors
/// When `a` is no matrix of finite numbers, `k` is 0 or larger than min(m, n), or LAPACK fails.
pub fn svd(a: &Array, k: u32, options: &Options) -> Result<Svd> {
    let what = "randomised singular value decomposition";
    let (m, n) = shape(a, what)?;
    let l = columns(k, options, m.min(n), what)?;
    let work = Work(options.precision);
    let a = work.take(a, what)?;
    // The test matrix is drawn, and the last decomposition solved, on the smaller side.
    if m < n {
        let flipped = tall(&a.transpose().context(what)?, k as i32, l, options, what)?;
        return Ok(Svd { u: own(flipped.vt.transpose(), what)?, s: flipped.s, vt: own(flipped.u.transpose(), what)? });
    }
    tall(&a, k as i32, l, options, what)
}

/// The whole thin decomposition of `a` [m, n], k = min(m, n), through a QR decomposition, so that nothing larger
/// than k × k is handed to the dense algorithm; float64.
///
/// # Errors
/// When `a` is no matrix of finite numbers, or LAPACK fails.
pub fn exact(a: &Array) -> Result<Svd> {
    let what = "singular value decomposition";
    let (m, n) = shape(a, what)?;
    let flat = m < n;
    let tall = if flat { on_cpu(|| a.transpose()).context(what)? } else { a.clone() };
    let (q, r) = spectral::qr(&tall)?;
    let (u, s, vt) = spectral::svd(&r)?;
    let u = spectral::matmul(&q, &u)?;
    let (u, vt) = match flat {
        true => (own(vt.transpose(), what)?, own(u.transpose(), what)?),
        false => (u, vt),
    };
    super::eval([&u, &s, &vt])?;
    Ok(Svd { u, s, vt })
}

/// The leading `k` eigenvalues [k], largest first, and eigenvectors as columns [n, k] of a symmetric positive
/// semidefinite `a` [n, n], approximately; in the type of `options.precision`. Where the matrix has negative
/// eigenvalues, those of the largest size are found.
///
/// One product with A here counts as A Aᵀ does for the root of A, so that a Gram matrix needs no more power
/// iterations than the matrix it came from.
///
/// # Errors
/// When `a` is no square matrix of finite numbers, `k` is 0 or larger than n, or LAPACK fails.
pub fn eigh(a: &Array, k: u32, options: &Options) -> Result<(Array, Array)> {
    let what = "leading eigenvectors of a symmetric matrix";
    let (n, other) = shape(a, what)?;
    if n != other {
        return Err(refused(what, format!("the matrix is {n} x {other}; expected a square one")));
    }
    let l = columns(k, options, n, what)?;
    let work = Work(options.precision);
    let a = work.take(a, what)?;
    let (values, vectors) = if l >= n {
        let (e, v) = spectral::eigh(&a)?;
        (work.narrow(&e, what)?, work.narrow(&v, what)?)
    } else {
        let mut q = work.orthonormal(&work.product(&a, &gaussian(n, l, options, what)?, what)?, what)?;
        for _ in 0..options.power_iterations {
            q = work.orthonormal(&work.product(&a, &q, what)?, what)?;
        }
        let qt = q.transpose().context(what)?;
        let small = work.product(&qt, &work.product(&a, &q, what)?, what)?;
        let (e, v) = spectral::eigh(&small)?;
        let v = work.narrow(&v, what)?;
        (work.narrow(&e, what)?, work.product(&q, &v, what)?)
    };
    let (values, vectors) = (first(&values, k as i32, 0, what)?, first(&vectors, k as i32, 1, what)?);
    super::eval([&values, &vectors])?;
    Ok((values, vectors))
}

/// The largest singular value of `a` [m, n]: exact up to 1024 on the smaller side, else from a randomised
/// decomposition, which never overestimates. The second answer says whether it is exact.
///
/// # Errors
/// When `a` is no matrix of finite numbers, or LAPACK fails.
pub fn norm2(a: &Array) -> Result<(f64, bool)> {
    let what = "largest singular value";
    let (m, n) = shape(a, what)?;
    if m.min(n) <= 1024 {
        let t = on_cpu(|| a.transpose()).context(what)?;
        let gram = if m < n { spectral::matmul(a, &t)? } else { spectral::matmul(&t, a)? };
        let values = spectral::to_vec(&spectral::eigenvalues(&gram)?)?;
        return Ok((values.first().copied().unwrap_or(0.0).max(0.0).sqrt(), true));
    }
    let options = Options { oversamples: 23, power_iterations: 6, seed: 0, precision: Precision::Double };
    let s = spectral::to_vec(&svd(a, 1, &options)?.s)?;
    Ok((s.first().copied().unwrap_or(0.0), false))
}

/// [`svd`] of `a` [m, n] with m ≥ n, already in its working type.
fn tall(a: &Array, k: i32, l: i32, options: &Options, what: &str) -> Result<Svd> {
    let work = Work(options.precision);
    let n = a.dim(1);
    let (u, s, vt) = if l >= n {
        let whole = exact(a)?;
        (work.narrow(&whole.u, what)?, work.narrow(&whole.s, what)?, work.narrow(&whole.vt, what)?)
    } else {
        let at = a.transpose().context(what)?;
        let mut q = work.orthonormal(&work.product(a, &gaussian(n, l, options, what)?, what)?, what)?;
        for _ in 0..options.power_iterations {
            let z = work.orthonormal(&work.product(&at, &q, what)?, what)?;
            q = work.orthonormal(&work.product(a, &z, what)?, what)?;
        }
        // B = Qᵀ A [l, n] through the QR decomposition of Bᵀ = P R: B = Rᵀ Pᵀ, and only Rᵀ [l, l] is left.
        let (p, r) = work.qr(&work.product(&at, &q, what)?, what)?;
        let (u, s, vt) = spectral::svd(&r.transpose().context(what)?)?;
        let (u, vt) = (work.narrow(&u, what)?, work.narrow(&vt, what)?);
        let pt = p.transpose().context(what)?;
        (work.product(&q, &u, what)?, work.narrow(&s, what)?, work.product(&vt, &pt, what)?)
    };
    let svd = Svd { u: first(&u, k, 1, what)?, s: first(&s, k, 0, what)?, vt: first(&vt, k, 0, what)? };
    super::eval([&svd.u, &svd.s, &svd.vt])?;
    Ok(svd)
}

/// Arithmetic in one precision.
struct Work(Precision);

impl Work {
    fn dtype(&self) -> Dtype {
        match self.0 {
            Precision::Single => Dtype::Float32,
            Precision::Double => Dtype::Float64,
        }
    }

    /// `a` in the working type, refused when it holds NaN or infinity (LAPACK may not return on those).
    fn take(&self, a: &Array, what: &str) -> Result<Array> {
        let a = self.narrow(a, what)?;
        // The maximum of MLX hands a NaN on.
        let largest = on_cpu(|| a.abs().and_then(|x| x.max(None))).context(what)?;
        match spectral::to_vec(&largest)?.first() {
            Some(x) if x.is_finite() => Ok(a),
            _ => Err(refused(what, "the matrix holds NaN or infinite entries")),
        }
    }

    fn narrow(&self, a: &Array, what: &str) -> Result<Array> {
        on_cpu(|| a.as_dtype(self.dtype())).context(what)
    }

    fn product(&self, a: &Array, b: &Array, what: &str) -> Result<Array> {
        match self.0 {
            Precision::Single => a.as_dtype(Dtype::Float32)?.matmul(b.as_dtype(Dtype::Float32)?).context(what),
            Precision::Double => spectral::matmul(a, b),
        }
    }

    fn qr(&self, a: &Array, what: &str) -> Result<(Array, Array)> {
        let (q, r) = on_cpu(|| linalg::qr(a)).context(what)?;
        // One step at a time: a graph of all of them would keep every intermediate alive.
        super::eval([&q, &r])?;
        Ok((q, r))
    }

    fn orthonormal(&self, a: &Array, what: &str) -> Result<Array> {
        Ok(self.qr(a, what)?.0)
    }
}

/// A Gaussian test matrix [n, l], float32: which numbers it holds depends on the seed and its shape alone.
fn gaussian(n: i32, l: i32, options: &Options, what: &str) -> Result<Array> {
    let key = random::key(options.seed).context(what)?;
    on_cpu(|| random::normal::<f32>(&[n, l], None, None, Some(&key))).context(what)
}

/// Columns of the test matrix: k and the oversamples, at most `most`.
fn columns(k: u32, options: &Options, most: i32, what: &str) -> Result<i32> {
    if k == 0 || i64::from(k) > i64::from(most) {
        return Err(refused(what, format!("rank {k} was asked for; this matrix has ranks 1 to {most}")));
    }
    Ok(k.saturating_add(options.oversamples).min(most as u32) as i32)
}

fn shape(a: &Array, what: &str) -> Result<(i32, i32)> {
    match a.shape() {
        [m, n] if *m > 0 && *n > 0 => Ok((*m, *n)),
        other => Err(refused(what, format!("the array has shape {other:?}; expected a matrix that is not empty"))),
    }
}

/// The first `k` along an axis.
fn first(a: &Array, k: i32, axis: i32, what: &str) -> Result<Array> {
    if a.dim(axis) == k {
        return Ok(a.clone());
    }
    let index: Vec<i32> = (0..k).collect();
    on_cpu(|| a.take_axis(Array::from_slice(&index, &[k]), axis)).context(what)
}

/// A transposed view as an array of its own.
fn own(a: std::result::Result<Array, Exception>, what: &str) -> Result<Array> {
    on_cpu(|| a.and_then(|a| a.contiguous())).context(what)
}

fn refused(what: &str, why: impl Into<String>) -> MlxError {
    MlxError { what: what.into(), exception: Exception::custom(why.into()) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn normal(shape: &[i32], seed: u64) -> Array {
        random::normal::<f32>(shape, None, None, Some(&random::key(seed).unwrap())).unwrap()
    }

    /// A matrix [m, n] with these singular values.
    fn with_spectrum(m: i32, n: i32, s: &[f64]) -> Array {
        let (u, _) = spectral::qr(&normal(&[m, s.len() as i32], 11)).unwrap();
        let (v, _) = spectral::qr(&normal(&[n, s.len() as i32], 12)).unwrap();
        let s = Array::from_slice_f64(s, &[1, s.len() as i32]);
        spectral::matmul(&on_cpu(|| u.multiply(s)).unwrap(), &v.transpose().unwrap()).unwrap()
    }

    fn worst(a: &Array, b: &Array) -> f64 {
        let (a, b) = (spectral::to_vec(a).unwrap(), spectral::to_vec(b).unwrap());
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
    }

    /// How far the columns of `q` are from orthonormal.
    fn skew(q: &Array) -> f64 {
        let one = spectral::to_vec(&spectral::matmul(&q.transpose().unwrap(), q).unwrap()).unwrap();
        let k = q.dim(1) as usize;
        one.iter().enumerate().map(|(i, v)| (v - f64::from(i % (k + 1) == 0)).abs()).fold(0.0, f64::max)
    }

    fn product(svd: &Svd) -> Array {
        let us = on_cpu(|| svd.u.multiply(svd.s.reshape(&[1, -1]).unwrap())).unwrap();
        spectral::matmul(&us, &svd.vt).unwrap()
    }

    fn frobenius(a: &Array) -> f64 {
        spectral::to_vec(a).unwrap().iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// On a decaying spectrum, in any orientation: orthonormal factors, the values of the exact
        /// decomposition, nearly its error, and the same bits for the same seed.
        #[test]
        fn close_to_the_exact_decomposition(
            m in 3i32..60, n in 3i32..60, share in 0.05f64..1.0, oversamples in 2u32..12, power_iterations in 1u32..4,
            seed in any::<u64>(), single in any::<bool>(),
        ) {
            let most = m.min(n);
            let s: Vec<f64> = (0..most).map(|i| 0.7f64.powi(i)).collect();
            let a = with_spectrum(m, n, &s);
            let k = ((f64::from(most) * share) as u32).max(1);
            let precision = if single { Precision::Single } else { Precision::Double };
            let options = Options { oversamples, power_iterations, seed, precision };
            let got = svd(&a, k, &options).unwrap();
            let k = k as i32;
            prop_assert_eq!((got.u.shape(), got.s.shape(), got.vt.shape()), (&[m, k][..], &[k][..], &[k, n][..]));
            let tight = if single { 2e-5 } else { 1e-12 };
            prop_assert!(skew(&got.u) < tight && skew(&got.vt.transpose().unwrap()) < tight);
            let values = spectral::to_vec(&got.s).unwrap();
            prop_assert!(values.windows(2).all(|w| w[0] >= w[1] - tight));
            // Values are never larger than the true ones; one power iteration and two spare columns find them to
            // a few per cent.
            for (x, y) in values.iter().zip(&s) {
                prop_assert!(*x <= y + tight && *x > 0.95 * y - tight, "{} {}", x, y);
            }
            let best = s[k as usize..].iter().map(|x| x * x).sum::<f64>().sqrt();
            let error = frobenius(&a.subtract(product(&got)).unwrap());
            prop_assert!(error < 1.05 * best + 4.0 * tight, "{} {}", error, best);
            let again = svd(&a, k as u32, &options).unwrap();
            prop_assert_eq!(worst(&got.u, &again.u) + worst(&got.s, &again.s) + worst(&got.vt, &again.vt), 0.0);
        }

        #[test]
        fn leading_eigenpairs_of_a_gram_matrix(n in 2i32..40, share in 0.05f64..1.0, seed in any::<u64>()) {
            let s: Vec<f64> = (0..n).map(|i| 0.8f64.powi(i)).collect();
            let root = with_spectrum(n, n, &s);
            let a = spectral::matmul(&root, &root.transpose().unwrap()).unwrap();
            let k = ((f64::from(n) * share) as u32).max(1);
            let (e, v) = eigh(&a, k, &Options { seed, ..Options::default() }).unwrap();
            prop_assert_eq!(v.shape(), &[n, k as i32][..]);
            prop_assert!(skew(&v) < 1e-12);
            for (x, y) in spectral::to_vec(&e).unwrap().iter().zip(&s) {
                prop_assert!((x - y * y).abs() < 0.02 * y * y + 1e-12, "{} {}", x, y * y);
            }
        }
    }

    /// Without a QR decomposition between the power iterations this loses every direction below 1e-8 of the first.
    #[test]
    fn steep_spectra_keep_their_small_directions() {
        let s: Vec<f64> = (0..20).map(|i| 10f64.powi(-i / 2)).collect();
        let a = with_spectrum(80, 50, &s);
        let got = svd(&a, 14, &Options { power_iterations: 4, oversamples: 6, ..Options::default() }).unwrap();
        for (x, y) in spectral::to_vec(&got.s).unwrap().iter().zip(&s) {
            assert!((x - y).abs() < 1e-6 * y, "{x} {y}");
        }
    }

    #[test]
    fn other_seeds_draw_other_numbers() {
        let a = normal(&[30, 20], 1);
        let [x, y] = [1, 2].map(|seed| svd(&a, 3, &Options { seed, power_iterations: 0, ..Options::default() }));
        assert!(worst(&x.unwrap().s, &y.unwrap().s) > 0.0);
    }

    #[test]
    fn the_exact_one_is_thin_and_restores_the_matrix() {
        for (m, n) in [(9, 4), (4, 9), (5, 5), (1, 3), (1, 1)] {
            let a = normal(&[m, n], 5);
            let whole = exact(&a).unwrap();
            let k = m.min(n);
            assert_eq!((whole.u.shape(), whole.vt.shape()), (&[m, k][..], &[k, n][..]));
            assert!(worst(&product(&whole), &a) < 1e-12);
            let (largest, is_exact) = norm2(&a).unwrap();
            assert!(is_exact && (largest - spectral::to_vec(&whole.s).unwrap()[0]).abs() < 1e-12 * largest);
        }
    }

    /// Above the size that is solved exactly: a flat spectrum, the hardest case.
    #[test]
    fn the_norm_of_a_large_matrix_is_close() {
        let a = normal(&[1100, 1030], 8);
        let (got, is_exact) = norm2(&a).unwrap();
        let t = a.transpose().unwrap();
        let true_one =
            spectral::to_vec(&spectral::eigenvalues(&spectral::matmul(&t, &a).unwrap()).unwrap()).unwrap()[0].sqrt();
        assert!(!is_exact && got <= true_one * (1.0 + 1e-9) && got > 0.985 * true_one, "{got} {true_one}");
    }

    #[test]
    fn what_cannot_be_decomposed_is_refused_in_words() {
        let a = normal(&[4, 3], 1);
        let o = Options::default();
        assert!(svd(&a, 0, &o).unwrap_err().to_string().contains("ranks 1 to 3"));
        assert!(svd(&a, 4, &o).unwrap_err().to_string().contains("ranks 1 to 3"));
        assert!(eigh(&a, 1, &o).unwrap_err().to_string().contains("square"));
        assert!(svd(&normal(&[4], 1), 1, &o).unwrap_err().to_string().contains("expected a matrix"));
        for bad in [f32::NAN, f32::INFINITY] {
            let a = Array::from_slice(&[1.0, bad, 0.0, 1.0], &[2, 2]);
            assert!(svd(&a, 1, &o).unwrap_err().to_string().contains("NaN or infinite"));
            assert!(exact(&a).unwrap_err().to_string().contains("NaN or infinite"));
        }
    }
}
