//! Mode `residual`: W ≈ Q(W) + Σ aᵢ bᵢᵀ, a coarser quantisation and the components of what it loses.
//!
//! The family of LQER (Zhang et al. 2024) and EoRA (Liu et al. 2024): with E = W − Q(W), the best rank-r repair of the
//! outputs is the truncated decomposition of E in the metric of the calibration text, so moments are gathered behind E
//! ([`crate::plastic::moments::Pass::of`]). In the `fisher` metric energies of different slices compare, and one level
//! shares bytes out.

use super::error::Result;
use super::settings::Coarse;
use crate::mlx::quant::Packed;
use crate::mlx::{self, Array, Context, Dtype};
use crate::model::tensor_file::{Tensor, of_packed};
use crate::plugin::contract::{Slice, SliceState};

/// A slice's coarse weight, quantised; scales as they will be stored, in float16.
fn quantise(w: &Array, coarse: Coarse) -> mlx::Result<Packed> {
    Packed::affine(w, coarse.bits, coarse.group_size, Dtype::Float16)
}

/// What the coarse weight loses: W − Q(W), float32 [rows, cols], evaluated.
///
/// # Errors
/// Whatever MLX reports.
pub fn lost(w: &Array, coarse: Coarse) -> mlx::Result<Array> {
    let back = quantise(w, coarse)?.dequantize()?.as_dtype(Dtype::Float32)?;
    let e = w.subtract(back).context("subtracting the coarse weight")?;
    mlx::eval([&e])?;
    Ok(e)
}

/// The coarse weight as tensors of a checkpoint.
///
/// # Errors
/// Whatever MLX reports.
pub fn tensors(slice: &str, w: &Array, coarse: Coarse) -> Result<Vec<Tensor>> {
    Ok(of_packed(slice, &quantise(w, coarse)?, Dtype::Float16)?)
}

/// Parameters that a coarse weight counts for: its bytes in pairs, as float16 has them.
pub fn cost(coarse: Coarse, rows: u32, cols: u32) -> u64 {
    let bits = f64::from(coarse.bits) + 32.0 / f64::from(coarse.group_size);
    (f64::from(rows) * f64::from(cols) * bits / 16.0).ceil() as u64
}

/// Slices as policies see them in this mode: nothing but components, all of them awake, and no way to be dense.
pub fn states(slices: &[Slice]) -> Vec<SliceState> {
    let state = |s: &Slice| {
        let parameters = u64::from(s.max_rank) * s.component_parameters;
        SliceState {
            awake: s.max_rank,
            dense: false,
            dense_allowed: false,
            frozen: false,
            dwell: 0,
            parameters,
            bytes: 4 * parameters,
            parked_bytes: 0,
        }
    };
    slices.iter().map(state).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::mlx::spectral::to_vec;

    #[test]
    fn what_is_lost_and_what_is_kept_make_the_weight() {
        let key = mlx_rs::random::key(4).unwrap();
        let w = mlx_rs::random::normal::<f32>(&[8, 64], None, None, Some(&key)).unwrap();
        let mut before = f64::INFINITY;
        for bits in [2, 3, 4, 8] {
            let coarse = Coarse { bits, group_size: 64 };
            let e = to_vec(&lost(&w, coarse).unwrap()).unwrap();
            let q = to_vec(&quantise(&w, coarse).unwrap().dequantize().unwrap()).unwrap();
            for ((e, q), w) in e.iter().zip(q).zip(to_vec(&w).unwrap()) {
                assert!((e + q - w).abs() < 1e-5);
            }
            let size: f64 = e.iter().map(|x| x * x).sum();
            assert!(size < before, "{bits} bits lose {size}");
            before = size;
        }
        assert_eq!(cost(Coarse { bits: 3, group_size: 64 }, 64, 64), 64 * 64 * 7 / 32);
    }
}
