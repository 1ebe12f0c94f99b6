//! How far the next-token distributions of two states of one model are apart.
//!
//! The hidden states come from the caller, who alone knows how to put the model into one state and the
//! other; the head belongs to neither. Logits are never held.

use super::decoder::Model;
use super::error::{Error, Result};
use crate::mlx::{self, Array, kernels};
use mlx_rs::ops::indexing::TryIndexOp;

/// Rows that are compared between two questions whether to go on.
const ROWS: usize = 1024;

impl Model {
    /// KL(reference ‖ of) in nats, row by row, from hidden states [N, D] of both ([`Model::states`]): the sum
    /// over the vocabulary of p_reference (ln p_reference − ln p_of). Exactly 0 for equal rows, never below;
    /// NaN where a state is not finite. `go_on` is asked before each part; `None` when it answered no.
    ///
    /// # Errors
    /// When the shapes differ, or whatever MLX reports.
    pub fn divergence(
        &self,
        reference: &Array,
        of: &Array,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Vec<f32>>> {
        if reference.shape() != of.shape() {
            return Err(Error::Request(format!("states {:?} and {:?} differ in shape", reference.shape(), of.shape())));
        }
        let n = reference.dim(0);
        let mut out = Vec::with_capacity(n as usize);
        for from in (0..n).step_by(ROWS) {
            if !go_on() {
                return Ok(None);
            }
            let some = |h: &Array| h.try_index((from..n.min(from + ROWS as i32), ..));
            let part = kernels::divergence(&some(reference)?, &some(of)?, self.head_weight()?)?;
            mlx::eval([&part])?;
            let part = part
                .try_as_slice::<f32>()
                .map_err(|e| Error::Request(format!("the divergence cannot be read: {e}")))?;
            // Rounding can take a divergence of nothing below 0; NaN stays NaN.
            out.extend(part.iter().map(|d| if *d < 0.0 { 0.0 } else { *d }));
        }
        Ok(Some(out))
    }
}
