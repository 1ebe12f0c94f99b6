//! A whole decoder layer over a cache in one operation, for inference on Linux CPUs.
//!
//! One token costs MLX more in the thirty operations of a layer than in their arithmetic, and in looking at a layer's
//! thirty arrays: here they are looked at once. The numbers are those of the operations of [`super::kernels`],
//! [`super::project`] and [`super::decode`] one by one. Not differentiable. Fails when a layer is made or the graph is
//! built where shapes do not fit.

use super::decode::{Attention, Held, Place};
use super::project::Projection;
use super::{Array, Context, Result, ffi};
use std::ffi::c_void;
use std::ptr::NonNull;

/// What a layer is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Weights [D] of the norm before attention.
    pub input_norm: &'a Array,
    /// Weights [D] of the norm before the MLP.
    pub post_norm: &'a Array,
    /// q, k, v, o, gate, up, down.
    pub projections: &'a [Projection<'a>; 7],
    /// Heads of keys and values.
    pub kv_heads: i32,
    /// Scores, norms of heads and positions.
    pub how: Attention<'a>,
}

/// A layer, ready to run. Keeps the arrays it was made of.
#[derive(Debug)]
pub struct Layer(NonNull<c_void>);

impl Layer {
    /// Evaluates the parts.
    ///
    /// # Errors
    /// When they do not fit together, or cannot be evaluated.
    pub fn new(parts: &Parts) -> Result<Layer> {
        let (mut arrays, mut layout) = (Vec::with_capacity(32), Vec::with_capacity(64));
        arrays.extend([parts.input_norm, parts.post_norm, parts.how.freqs].map(Array::as_ptr));
        if let Some((q, k)) = parts.how.norms {
            arrays.extend([q, k].map(Array::as_ptr));
        }
        for p in parts.projections {
            p.flatten(&mut arrays, &mut layout);
        }
        let mut layer = std::ptr::null_mut();
        ffi::build(|[], s, (err, len)| {
            // SAFETY: live handles and buffers of this call; the layout is what `flatten` wrote.
            unsafe {
                ffi::pk_layer_new(
                    &raw mut layer,
                    arrays.as_ptr(),
                    arrays.len(),
                    layout.as_ptr(),
                    parts.how.norms.is_some(),
                    parts.kv_heads,
                    parts.how.scale,
                    parts.how.eps,
                    parts.how.traditional,
                    s,
                    err,
                    len,
                )
            }
        })
        .context("layer")?;
        let none = || mlx_rs::error::Exception::custom("no layer was made");
        NonNull::new(layer).map(Layer).ok_or_else(none).context("layer")
    }

    /// `h` [B, T, D] through the layer; `held` gets the new positions, in place where nobody else holds it.
    ///
    /// # Errors
    /// When the shapes disagree or the new positions exceed the capacity.
    pub fn apply(&self, h: &Array, held: Held, place: Place) -> Result<(Array, Held)> {
        ffi::build(|[y, keys, values], s, (err, len)| {
            // SAFETY: a layer that lives, live handles, slices with their lengths, and pointers of this call.
            unsafe {
                ffi::pk_layer(
                    y,
                    keys,
                    values,
                    self.0.as_ptr(),
                    h.as_ptr(),
                    held.keys.as_ptr(),
                    held.values.as_ptr(),
                    place.rows.as_ptr(),
                    place.rows.len(),
                    place.past.as_ptr(),
                    place.past.len(),
                    place.capacity,
                    s,
                    err,
                    len,
                )
            }
        })
        .map(|[y, keys, values]| (y, Held { keys, values }))
        .context("layer")
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        // SAFETY: made by pk_layer_new, freed once; graphs that are still to run hold what they need themselves.
        unsafe { ffi::pk_layer_free(self.0.as_ptr()) }
    }
}
