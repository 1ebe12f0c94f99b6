//! How far the next-token distributions of two states of one model are apart.
//!
//! The hidden states come from the caller, who alone knows how to put the model into one state and the
//! other; the head belongs to neither. Logits are held for a bounded number of rows at a time.

use super::decoder::Model;
use super::error::{Error, Result};
use crate::mlx::{self, Array, composed};
use mlx_rs::ops::indexing::TryIndexOp;

/// Logits of one of the two that are held at once: 64 MiB in float32.
const LOGITS: usize = 1 << 24;

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
        let (n, rows) = (reference.dim(0), (LOGITS / self.config().vocab_size.max(1)).max(1));
        if reference.shape() != of.shape() {
            return Err(Error::Request(format!("states {:?} and {:?} differ in shape", reference.shape(), of.shape())));
        }
        let mut out = Vec::with_capacity(n as usize);
        for from in (0..n).step_by(rows) {
            if !go_on() {
                return Ok(None);
            }
            let to = n.min(from.saturating_add(rows as i32));
            let logits = |h: &Array| self.logits(&h.try_index((from..to, ..))?);
            let part = composed::divergence(&logits(reference)?, &logits(of)?)?;
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
