//! The operations MLX's CPU build is slow at, and what they fall back to elsewhere.
//!
//! Every function is lazy. On Linux CPUs they run as custom primitives (`host/native`); on other
//! devices they are composed of MLX's own operations. Inputs and results are float32 on the CPU.

use super::{Array, Context, Dtype, Result};
use mlx_rs::fast::{self, ScaledDotProductAttentionMask};

/// `silu(gate) * up`, element by element; differentiable in both.
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    mlx_rs::nn::silu(gate).and_then(|s| s.multiply(up)).context("swiglu")
}

/// Attention of `q` [B, H, Lq, D] over `k`, `v` [B, Hkv, Lk, D], Hkv dividing H; causal attention is
/// aligned to the end of the keys. Result [B, H, Lq, D]; differentiable in all three.
///
/// # Errors
/// When the shapes disagree.
pub fn attention(q: &Array, k: &Array, v: &Array, scale: f32, causal: bool) -> Result<Array> {
    let mask = causal.then_some(ScaledDotProductAttentionMask::Causal);
    fast::scaled_dot_product_attention(q, k, v, scale, mask, None).context("attention")
}

/// Root-mean-square norm over the last axis, times `weight`; differentiable in `x`.
///
/// # Errors
/// When the shapes disagree.
pub fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    fast::rms_norm(x, Some(weight), eps).context("rms_norm")
}

/// Negative log-probability (nats) of each target: `hidden` [N, D], `head` [V, D], `targets` [N]
/// int32 below V. Result [N] float32, each from a sum of V terms in float64 or pairwise; the
/// [N, V] logits are never held at once.
///
/// # Errors
/// When the shapes disagree.
pub fn token_nll(hidden: &Array, head: &Array, targets: &Array) -> Result<Array> {
    let what = "scoring tokens";
    let logits = hidden.matmul(head.transpose().context(what)?).context(what)?;
    let lse = mlx_rs::ops::logsumexp_axis(&logits, -1, None).context(what)?;
    let index = targets.reshape(&[-1, 1]).context(what)?;
    let picked = mlx_rs::ops::indexing::take_along_axis(&logits, &index, -1).context(what)?;
    lse.subtract(picked.squeeze_axes(&[-1]).context(what)?).and_then(|y| y.as_dtype(Dtype::Float32)).context(what)
}
