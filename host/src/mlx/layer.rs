//! A whole decoder layer over a cache in one operation, for inference on Linux CPUs.
//!
//! One token costs MLX more in the thirty operations of a layer than in their arithmetic. The numbers are those of the
//! operations of [`super::kernels`], [`super::project`] and [`super::decode`] one by one. Not differentiable. Fails when
//! the graph is built where shapes do not fit.

use super::decode::{Attention, Held, Place};
use super::project::Projection;
use super::{Array, Context, Result, ffi};

/// What a layer is made of.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Weights [D] of the norm before attention.
    pub input_norm: &'a Array,
    /// Weights [D] of the norm before the MLP.
    pub post_norm: &'a Array,
    /// q, k, v, o, gate, up, down.
    pub projections: &'a [Projection<'a>; 7],
}

impl Layer<'_> {
    /// `h` [B, T, D] through the layer; `held` gets the new positions, in place where nobody else holds it.
    ///
    /// # Errors
    /// When the shapes disagree or the new positions exceed the capacity.
    pub fn apply(&self, h: &Array, held: Held, place: Place, how: &Attention) -> Result<(Array, Held)> {
        let (mut arrays, mut layout) = (Vec::with_capacity(32), Vec::with_capacity(48));
        arrays.extend([self.input_norm, self.post_norm, how.freqs, &held.keys, &held.values].map(Array::as_ptr));
        if let Some((q, k)) = how.norms {
            arrays.extend([q, k].map(Array::as_ptr));
        }
        for p in self.projections {
            p.flatten(&mut arrays, &mut layout);
        }
        ffi::build(|[y, keys, values], s, (err, len)| {
            // SAFETY: live handles, slices with their lengths, and pointers of this call; the layout is what `flatten`
            // wrote.
            unsafe {
                ffi::pk_layer(
                    y,
                    keys,
                    values,
                    h.as_ptr(),
                    arrays.as_ptr(),
                    arrays.len(),
                    layout.as_ptr(),
                    how.norms.is_some(),
                    place.rows.as_ptr(),
                    place.rows.len(),
                    place.past.as_ptr(),
                    place.past.len(),
                    place.capacity,
                    how.scale,
                    how.eps,
                    how.traditional,
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
