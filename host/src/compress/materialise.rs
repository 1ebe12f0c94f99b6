//! A dense checkpoint of what is awake in an elastic one, as mlx-lm loads it.
//!
//! A slice that runs as components is multiplied out and stored as `<slice>.weight`, in floats or quantised; one that
//! runs as its own weight keeps that, byte for byte. Fails where the source cannot be read, MLX fails or the new
//! directory cannot be written; [`super::fixed`] says how it is written.

use super::error::{Error, Result};
use super::fixed::Fixed;
use crate::mlx::quant::{Mode, Packed, Scheme};
use crate::mlx::{Array, Context, Dtype};
use crate::model::tensor_file::{Tensor, of_array, of_packed};
use crate::model::{Level, Model};
use serde::Serialize;

/// What slices that were components are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Storage {
    /// float16.
    Half,
    /// float32.
    Float,
    /// MLX's affine quantisation with float16 scales; float16 where a slice does not divide into groups.
    Packed {
        /// Bits of a weight.
        bits: u32,
        /// Weights that share a scale.
        group_size: u32,
    },
}

/// How many slices became what.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Tally {
    /// Multiplied out and stored in floats.
    pub floats: usize,
    /// Multiplied out and quantised.
    pub quantised: usize,
    /// Copied.
    pub copied: usize,
}

impl Storage {
    /// The quantisation of a slice with so many inputs; `None` for floats.
    fn scheme(self, cols: usize) -> Option<Scheme> {
        let Storage::Packed { bits, group_size } = self else { return None };
        let fits = cols.is_multiple_of(group_size as usize) && (cols * bits as usize).is_multiple_of(32);
        fits.then_some(Scheme { group_size, bits, mode: Mode::Affine })
    }

    pub(super) fn tensors(self, slice: &str, w: &Array) -> Result<(Option<Scheme>, Vec<Tensor>)> {
        let what = "storing a slice";
        let weight = format!("{slice}.weight");
        let Some(scheme) = self.scheme(w.dim(1) as usize) else {
            let dtype = if self == Storage::Float { Dtype::Float32 } else { Dtype::Float16 };
            return Ok((None, vec![of_array(weight, &w.as_dtype(dtype).context(what)?)?]));
        };
        let packed = Packed::affine(w, scheme.bits, scheme.group_size, Dtype::Float16)?;
        Ok((Some(scheme), of_packed(slice, &packed, Dtype::Float16)?))
    }
}

/// Stores the slices of `model` that run as components; the others are left to [`Fixed::finish`]. `watch` is told how
/// many slices are done, and of how many, and answers whether to go on.
///
/// # Errors
/// When MLX fails or a slice is not finite; [`Error::Stopped`] when `watch` says so.
pub fn materialise(
    model: &Model,
    storage: Storage,
    fixed: &mut Fixed,
    watch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let all = model.slices().len();
    for (i, slice) in model.slices().iter().enumerate() {
        if !watch(i, all) {
            return Err(Error::Stopped);
        }
        let runs_alone = match model.level(i) {
            Some(Level::Rank(r)) => r == 0 && model.stored(i).is_some_and(|s| s.repairs),
            Some(Level::Dense) => true,
            None => !model.is_pivoted(i),
        };
        if runs_alone {
            tally.copied += 1;
            continue;
        }
        let w = model.dense_weight(i)?;
        let range = w.abs().and_then(|w| w.max(None)).context("looking for the largest weight")?;
        let largest: f32 = range.try_item_exact().map_err(|e| Error::slice(&slice.name, e.to_string()))?;
        if !largest.is_finite() || (storage != Storage::Float && largest > half::f16::MAX.to_f32()) {
            let reason = format!("has a weight of {largest}, which float16 cannot hold; use --bits 32");
            return Err(Error::slice(&slice.name, reason));
        }
        let (scheme, tensors) = storage.tensors(&slice.name, &w)?;
        if scheme.is_some() {
            tally.quantised += 1
        } else {
            tally.floats += 1
        }
        fixed.put(&slice.name, scheme, &tensors)?;
    }
    Ok(tally)
}
