//! The components of a slice as tensors of a checkpoint: rounded to 16, 8 or 4 bits, one component a row.
//!
//! 8 and 4 bits are MLX's affine quantisation along a component, in groups of 64 or 32 values; where neither divides
//! the width of the slice, its components stay in 16 bits. Both vectors of a component get the same length first, so
//! that neither overflows float16. A row of the tensors is a component, so the first r of them are the first bytes.

use super::error::Result;
use crate::mlx::quant::Packed;
use crate::mlx::{self, Array, Context, Dtype};
use crate::model::tensor_file::{Tensor, of_array, of_packed};
use crate::plastic::factor::Components;

/// Which tensors components are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In the weight's place.
    Ladder,
    /// On top of a coarser weight.
    Repair,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Ladder => "ladder",
            Kind::Repair => "repair",
        }
    }

    /// Name of one side of a slice's components.
    pub fn tensor(self, slice: &str, side: &str) -> String {
        format!("{slice}.{}.{side}", self.name())
    }
}

/// Bits that one value of a component takes on a width, scales and biases (float16) included: 16 where it cannot be
/// quantised.
pub fn bits_per_value(width: u32, bits: u32) -> f64 {
    group(width, bits).map_or(16.0, |g| f64::from(bits) + 32.0 / f64::from(g))
}

fn group(width: u32, bits: u32) -> Option<u32> {
    [64, 32].into_iter().find(|g| bits < 16 && width.is_multiple_of(*g))
}

/// Rounds the components of a slice.
///
/// Answers the tensors, and the components as they will be read back, float32.
///
/// # Errors
/// Whatever MLX reports.
pub fn encode(slice: &str, kind: Kind, components: &Components, bits: u32) -> Result<(Vec<Tensor>, Components)> {
    let balanced = balance(components)?;
    let mut tensors = Vec::new();
    let mut side = |name: &str, rows: &Array| -> Result<Array> {
        let (more, back) = rounded(&kind.tensor(slice, name), rows, bits)?;
        tensors.extend(more);
        Ok(back)
    };
    let (a, b) = (side("a", &balanced.a)?, side("b", &balanced.b)?);
    mlx::eval([&a, &b])?;
    Ok((tensors, Components { a, b }))
}

/// Rounds a matrix (float32, groups along its rows) to tensors named `name` or `name.*`.
///
/// Answers them, and the matrix as it will be read back, float32.
///
/// # Errors
/// Whatever MLX reports.
pub fn rounded(name: &str, rows: &Array, bits: u32) -> Result<(Vec<Tensor>, Array)> {
    let what = "rounding components";
    let Some(g) = group(rows.dim(1) as u32, bits).filter(|_| rows.dim(0) > 0) else {
        let stored = rows.as_dtype(Dtype::Float16).context(what)?;
        return Ok((vec![of_array(name.to_owned(), &stored)?], stored.as_dtype(Dtype::Float32).context(what)?));
    };
    let packed = Packed::affine(rows, bits, g, Dtype::Float16)?;
    Ok((of_packed(name, &packed, Dtype::Float16)?, packed.dequantize()?))
}

/// The same components, both vectors of each of the same length.
///
/// # Errors
/// Whatever MLX reports.
pub fn balance(c: &Components) -> Result<Components> {
    let what = "balancing components";
    let length = |m: &Array| m.multiply(m)?.sum_axis(1, true)?.sqrt()?.add(Array::from_f32(1e-30));
    let ratio = length(&c.b).and_then(|b| b.divide(length(&c.a)?)?.sqrt()).context(what)?;
    let a = c.a.multiply(&ratio).context(what)?;
    let b = c.b.divide(&ratio).context(what)?;
    mlx::eval([&a, &b])?;
    Ok(Components { a, b })
}

/// The first `rank` components.
///
/// # Errors
/// Whatever MLX reports.
pub fn first(components: &Components, rank: u32) -> Result<Components> {
    use mlx_rs::ops::indexing::TryIndexOp;
    let upto = |m: &Array| match rank as i32 >= m.dim(0) {
        true => Ok(m.clone()),
        false => m.try_index(..rank as i32).and_then(|m| m.contiguous()).context("choosing components"),
    };
    Ok(Components { a: upto(&components.a)?, b: upto(&components.b)? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::mlx::spectral::to_vec;

    fn made(r: i32, rows: i32, cols: i32) -> Components {
        let draw = |shape: &[i32], seed| {
            let key = mlx_rs::random::key(seed).unwrap();
            mlx_rs::random::normal::<f32>(shape, None, None, Some(&key)).unwrap()
        };
        let a = draw(&[r, rows], 1).multiply(Array::from_f32(1e6)).unwrap();
        Components { a, b: draw(&[r, cols], 2) }
    }

    fn product(c: &Components) -> Vec<f64> {
        to_vec(&c.a.transpose().unwrap().matmul(&c.b).unwrap()).unwrap()
    }

    #[test]
    fn fewer_bits_are_less_exact_and_every_width_works() {
        for (rows, cols) in [(64, 96), (33, 64), (7, 5)] {
            let c = made(3, rows, cols);
            let exact = product(&c);
            let size: f64 = exact.iter().map(|x| x * x).sum::<f64>().sqrt();
            let error = |bits| {
                let (_, back) = encode("s", Kind::Ladder, &c, bits).unwrap();
                product(&back).iter().zip(&exact).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt() / size
            };
            assert!(error(16) < 1e-3, "{rows}x{cols}: {}", error(16));
            assert!(error(8) < 0.02 && error(8) >= error(16) * 0.9, "{}", error(8));
            assert!(error(4) < 0.3 && error(4) >= error(8) * 0.9);
        }
    }

    #[test]
    fn tensors_are_named_and_sized_by_what_they_hold() {
        let (tensors, _) = encode("m.q", Kind::Repair, &made(2, 64, 20), 8).unwrap();
        let names: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.shape.clone())).collect();
        assert_eq!(
            names,
            [
                ("m.q.repair.a.weight", vec![2, 16]),
                ("m.q.repair.a.scales", vec![2, 1]),
                ("m.q.repair.a.biases", vec![2, 1]),
                ("m.q.repair.b", vec![2, 20])
            ]
        );
        assert_eq!(bits_per_value(64, 8), 8.5);
        assert_eq!(bits_per_value(20, 8), 16.0);
        assert_eq!(bits_per_value(96, 4), 5.0);
    }
}
