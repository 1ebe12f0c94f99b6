//! What an adapter adds to its slice, `alpha / r · A B`, as a product of two thin matrices: norms, singular
//! values, sums and best approximations in float64, without ever forming a matrix of outputs × inputs.
//!
//! With A = Q₁ R₁ and Bᵀ = Q₂ R₂ the singular values of A B are those of the small core R₁ R₂ᵀ = U S Vᵀ, and its
//! singular vectors are Q₁ U and Q₂ V.

use super::error::{Error, Result};
use super::format::{Adapter, Matrix};
use crate::mlx::{Array, Context, Dtype, spectral};

/// A product `A B` of two thin matrices; float64.
#[derive(Clone, Debug)]
pub struct Product {
    /// [rows, r].
    a: Array,
    /// [r, cols].
    b: Array,
}

/// A product as orthonormal vectors and their values, largest first.
#[derive(Clone, Debug)]
pub struct Svd {
    /// [rows, k].
    pub u: Array,
    /// k values.
    pub values: Vec<f64>,
    /// [k, cols].
    pub vt: Array,
}

fn wide(m: &Matrix) -> Result<Array> {
    let a = m.array();
    Ok(spectral::on_cpu(|| a.as_dtype(Dtype::Float64)).context("widening an adapter")?)
}

fn transposed(a: &Array) -> Result<Array> {
    Ok(spectral::on_cpu(|| a.transpose()).context("transposing a factor")?)
}

impl Product {
    /// What an adapter adds, times a weight. A DoRA magnitude is no part of it.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn of(adapter: &Adapter, weight: f64) -> Result<Product> {
        let scale = Array::from_f64(f64::from(adapter.scale()) * weight);
        let a = wide(&adapter.a)?;
        let a = spectral::on_cpu(|| a.multiply(scale)).context("scaling an adapter")?;
        Ok(Product { a, b: wide(&adapter.b)? })
    }

    /// The sum of several products of one shape: their components side by side.
    ///
    /// # Errors
    /// When there is none, or their shapes differ.
    pub fn sum(terms: &[Product]) -> Result<Product> {
        let what = "adding adapters";
        let (a, b): (Vec<Array>, Vec<Array>) = terms.iter().map(|t| (t.a.clone(), t.b.clone())).unzip();
        let joined = spectral::on_cpu(|| Ok((mlx_rs::ops::concatenate(&a, 1)?, mlx_rs::ops::concatenate(&b, 0)?)));
        let (a, b) = joined.context(what)?;
        Ok(Product { a, b })
    }

    /// The product with the opposite sign.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn negated(&self) -> Result<Product> {
        let a = spectral::on_cpu(|| self.a.negative()).context("negating an adapter")?;
        Ok(Product { a, b: self.b.clone() })
    }

    /// The core whose singular values are those of the product, and the bases around it.
    fn core(&self) -> Result<(Array, Array, Array)> {
        let (q1, r1) = spectral::qr(&self.a)?;
        let (q2, r2) = spectral::qr(&transposed(&self.b)?)?;
        Ok((q1, spectral::matmul(&r1, &transposed(&r2)?)?, q2))
    }

    /// Singular values, largest first.
    ///
    /// # Errors
    /// When a factor is not finite.
    pub fn singular_values(&self) -> Result<Vec<f64>> {
        let (_, core, _) = self.core()?;
        Ok(spectral::to_vec(&spectral::svd(&core)?.1)?)
    }

    /// The singular value decomposition.
    ///
    /// # Errors
    /// When a factor is not finite.
    pub fn svd(&self) -> Result<Svd> {
        let (q1, core, q2) = self.core()?;
        let (u, s, vt) = spectral::svd(&core)?;
        Ok(Svd {
            u: spectral::matmul(&q1, &u)?,
            values: spectral::to_vec(&s)?,
            vt: spectral::matmul(&vt, &transposed(&q2)?)?,
        })
    }

    /// Frobenius norm.
    ///
    /// # Errors
    /// When a factor is not finite.
    pub fn norm(&self) -> Result<f64> {
        let (_, core, _) = self.core()?;
        Ok(norm(&spectral::to_vec(&core)?))
    }

    /// Frobenius inner product `⟨A₁B₁, A₂B₂⟩ = Σ (A₁ᵀA₂) ∘ (B₁B₂ᵀ)`.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn dot(&self, other: &Product) -> Result<f64> {
        let left = spectral::to_vec(&spectral::matmul(&transposed(&self.a)?, &other.a)?)?;
        let right = spectral::to_vec(&spectral::matmul(&self.b, &transposed(&other.b)?)?)?;
        Ok(left.iter().zip(&right).map(|(x, y)| x * y).sum())
    }

    /// Norms of the components as they are stored: `‖aᵢ‖ ‖bᵢ‖`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn component_norms(&self) -> Result<Vec<f64>> {
        let of = |m: &Array, axis: i32| -> Result<Vec<f64>> {
            let n = spectral::on_cpu(|| m.square()?.sum_axis(axis, false)?.sqrt()).context("norms of components")?;
            Ok(spectral::to_vec(&n)?)
        };
        let (a, b) = (of(&self.a, 0)?, of(&self.b, 1)?);
        Ok(a.iter().zip(&b).map(|(x, y)| x * y).collect())
    }
}

impl Svd {
    /// The components in `keep` as an adapter of scale `scale` (alpha is their number times the scale), the best
    /// approximation where they are the first ones. The square roots of the values are shared out between A and B,
    /// so that both stay well inside float16.
    ///
    /// # Errors
    /// When a number has no float16.
    pub fn adapter(&self, keep: &[usize], scale: f64) -> Result<Adapter> {
        let keep: Vec<usize> = keep.iter().copied().filter(|k| *k < self.values.len()).collect();
        let index: Vec<i32> = keep.iter().map(|k| *k as i32).collect();
        let index = Array::from_slice(&index, &[keep.len() as i32]);
        let roots: Vec<f32> =
            keep.iter().filter_map(|k| self.values.get(*k)).map(|s| (s / scale).sqrt() as f32).collect();
        let roots = Array::from_slice(&roots, &[keep.len() as i32]);
        let parts = spectral::on_cpu(|| {
            let roots = roots.as_dtype(Dtype::Float64)?;
            let a = self.u.take_axis(&index, 1)?.multiply(roots.reshape(&[1, -1])?)?;
            let b = self.vt.take_axis(&index, 0)?.multiply(roots.reshape(&[-1, 1])?)?;
            Ok((a, b))
        });
        let (a, b) = parts.context("an adapter of lower rank")?;
        let matrix = |m: &Array| spectral::on_cpu(|| Matrix::from_array(m));
        Ok(Adapter { a: matrix(&a)?, b: matrix(&b)?, alpha: (scale * keep.len() as f64) as f32, magnitude: None })
    }

    /// The first `rank` left or right singular vectors, as columns.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn basis(&self, rank: usize, left: bool) -> Result<Array> {
        let index: Vec<i32> = (0..rank.min(self.values.len()) as i32).collect();
        let index = Array::from_slice(&index, &[index.len() as i32]);
        let basis = spectral::on_cpu(|| match left {
            true => self.u.take_axis(&index, 1),
            false => self.vt.take_axis(&index, 0)?.transpose(),
        });
        Ok(basis.context("a basis")?)
    }
}

/// Root of the sum of squares.
pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Number of values above `tol` times the largest.
pub fn effective_rank(values: &[f64], tol: f64) -> usize {
    let largest = values.first().copied().unwrap_or(0.0);
    values.iter().filter(|v| **v > tol * largest).count()
}

/// `exp` of the entropy of the values' shares (Roy & Vetterli 2007); 0 where all are zero.
pub fn entropy_rank(values: &[f64]) -> f64 {
    let total: f64 = values.iter().sum();
    if total <= 0.0 {
        return 0.0;
    }
    let shares = values.iter().map(|v| v / total).filter(|p| *p > 0.0);
    (-shares.map(|p| p * p.ln()).sum::<f64>()).exp()
}

/// `‖·‖F² / σ₁²`; 0 where all are zero.
pub fn stable_rank(values: &[f64]) -> f64 {
    let largest = values.first().copied().unwrap_or(0.0);
    if largest <= 0.0 { 0.0 } else { values.iter().map(|v| (v / largest).powi(2)).sum() }
}

/// That two shapes are one.
///
/// # Errors
/// When they are not.
pub fn same_shape(key: &str, a: (&str, &Adapter), b: (&str, &Adapter)) -> Result<()> {
    let shape = |x: &Adapter| (x.a.rows, x.b.cols);
    let (left, right) = (shape(a.1), shape(b.1));
    match left == right {
        true => Ok(()),
        false => Err(Error::fit(
            b.0,
            format!(
                "{key} is {} × {} here and {} × {} in pack {}; the packs were made for different bases",
                right.0, right.1, left.0, left.1, a.0
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn adapter(rows: usize, cols: usize, rank: usize, alpha: f32) -> Adapter {
        let fill = |n: usize, phase: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * 0.7 + phase).sin()).collect() };
        Adapter {
            a: Matrix::from_f32(rows, rank, &fill(rows * rank, 0.1)),
            b: Matrix::from_f32(rank, cols, &fill(rank * cols, 1.3)),
            alpha,
            magnitude: None,
        }
    }

    /// alpha / r · A B, entry by entry.
    fn dense(x: &Adapter) -> Vec<f64> {
        let (a, b, r) = (x.a.to_f32(), x.b.to_f32(), x.rank());
        let mut out = Vec::new();
        for i in 0..x.a.rows {
            for j in 0..x.b.cols {
                let sum: f64 = (0..r).map(|k| f64::from(a[i * r + k]) * f64::from(b[k * x.b.cols + j])).sum();
                out.push(sum * f64::from(x.scale()));
            }
        }
        out
    }

    #[test]
    fn norms_are_those_of_the_dense_update() {
        // The last one has more components than its sides.
        for (rows, cols, rank) in [(9, 5, 3), (4, 11, 2), (4, 3, 6)] {
            let (x, y) = (adapter(rows, cols, rank, 5.0), adapter(rows, cols, 2, 3.0));
            let (p, q) = (Product::of(&x, 1.0).unwrap(), Product::of(&y, -0.5).unwrap());
            let (dx, dy) = (dense(&x), dense(&y).iter().map(|v| -0.5 * v).collect::<Vec<_>>());
            let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()), "{a} {b}");
            close(p.norm().unwrap(), norm(&dx));
            close(norm(&p.singular_values().unwrap()), norm(&dx));
            close(p.dot(&q).unwrap(), dx.iter().zip(&dy).map(|(a, b)| a * b).sum());
            let sum: Vec<f64> = dx.iter().zip(&dy).map(|(a, b)| a + b).collect();
            close(Product::sum(&[p.clone(), q]).unwrap().norm().unwrap(), norm(&sum));
            let zero = Product::sum(&[p.clone(), p.negated().unwrap()]).unwrap().norm().unwrap();
            assert!(zero < 1e-12 * norm(&dx));
        }
    }

    #[test]
    fn a_truncated_update_is_off_by_its_tail() {
        let x = adapter(40, 30, 6, 12.0);
        let p = Product::of(&x, 1.0).unwrap();
        let svd = p.svd().unwrap();
        for rank in [1, 3, 6] {
            let small = svd.adapter(&(0..rank).collect::<Vec<_>>(), 2.0).unwrap();
            assert_eq!((small.rank(), small.alpha), (rank, 2.0 * rank as f32));
            let rest = Product::sum(&[p.clone(), Product::of(&small, -1.0).unwrap()]).unwrap().norm().unwrap();
            let tail = norm(&svd.values[rank..]);
            // Rounding to float16 costs about 2⁻¹¹ of each factor.
            assert!((rest - tail).abs() < 1e-3 * svd.values[0], "rank {rank}: {rest} {tail}");
        }
    }

    #[test]
    fn ranks_of_known_spectra() {
        assert_eq!(effective_rank(&[1.0, 1e-3, 1e-6], 1e-5), 2);
        assert!((entropy_rank(&[2.0; 4]) - 4.0).abs() < 1e-12);
        assert!((stable_rank(&[3.0, 4.0f64.sqrt()]) - 13.0 / 9.0).abs() < 1e-12);
        assert_eq!((effective_rank(&[0.0; 3], 1e-5), entropy_rank(&[0.0; 3]), stable_rank(&[0.0; 3])), (0, 0.0, 0.0));
    }
}
