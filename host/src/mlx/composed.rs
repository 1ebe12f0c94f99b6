//! The kernels of [`super::kernels`] composed of MLX's own operations: what runs on GPUs and macOS, and
//! what the tests compare the custom primitives with.

use super::project::Operand;
use super::{Array, Context, Dtype, Result};
use mlx_rs::error::Exception;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::ops::{self, indexing};

/// See [`super::kernels::swiglu`].
pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    mlx_rs::nn::silu(gate).and_then(|s| s.multiply(up)).context("swiglu")
}

/// See [`super::kernels::attention`].
pub fn attention(q: &Array, k: &Array, v: &Array, scale: f32, causal: bool) -> Result<Array> {
    let mask = causal.then_some(ScaledDotProductAttentionMask::Causal);
    fast::scaled_dot_product_attention(q, k, v, scale, mask, None).context("attention")
}

/// See [`super::kernels::rms_norm`].
pub fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    fast::rms_norm(x, Some(weight), eps).context("rms_norm")
}

/// See [`super::kernels::rope`].
pub fn rope(x: &Array, dims: i32, traditional: bool, offset: i32, freqs: &Array) -> Result<Array> {
    fast::rope(x, dims, traditional, None, 1.0, offset, freqs).context("rope")
}

/// Rows whose logits are held at once.
const ROWS: i32 = 256;

/// See [`super::kernels::token_nll`]. The sum over the vocabulary is taken in blocks of 64 terms, then
/// over the blocks: MLX's own sum over a long axis loses 1e-4 nats.
pub fn token_nll(hidden: &Array, head: Operand, targets: &Array) -> Result<Array> {
    let what = "scoring tokens";
    super::kernels::check_head(hidden, head, Some(targets)).context(what)?;
    let run = |first: i32| {
        let rows = first..hidden.shape()[0].min(first + ROWS);
        use indexing::TryIndexOp;
        let logits = head.composed(&hidden.try_index(rows.clone())?).map_err(|e| e.exception)?;
        let index = targets.try_index(rows)?.reshape(&[-1, 1])?;
        let picked = indexing::take_along_axis(&logits, &index, -1)?.squeeze_axes(&[-1])?;
        logsumexp(&logits)?.subtract(picked)
    };
    let parts: Vec<Array> =
        (0..hidden.shape()[0]).step_by(ROWS as usize).map(run).collect::<std::result::Result<_, _>>().context(what)?;
    if parts.is_empty() {
        return Array::zeros::<f32>(&[0]).context(what);
    }
    ops::concatenate(&parts, 0).context(what)
}

/// log(sum(exp(x))) over the last axis of `x` [N, V], by sums of 64 terms.
fn logsumexp(x: &Array) -> std::result::Result<Array, mlx_rs::error::Exception> {
    let max = x.max_axis(-1, true)?;
    sum(x.subtract(&max)?.exp()?)?.log()?.add(max.squeeze_axes(&[-1])?)
}

/// Sum over the last axis of `x` [N, V], by sums of 64 terms.
fn sum(x: Array) -> std::result::Result<Array, mlx_rs::error::Exception> {
    let mut total = x;
    while total.shape()[1] > 64 {
        let pad = (64 - total.shape()[1] % 64) % 64;
        if pad > 0 {
            total = ops::pad(&total, &[(0, 0), (0, pad)][..], None, None)?;
        }
        total = total.reshape(&[total.shape()[0], -1, 64])?.sum_axis(-1, false)?;
    }
    total.sum_axis(-1, false)
}

/// Kullback-Leibler divergence, in nats, of softmax(`of`) from softmax(`reference`), both [N, V] float32,
/// row by row: [N]. Exactly 0 where the rows are equal; up to rounding never below.
///
/// With x and y the logits less their row's largest, X = sum of exp(x) and Y = sum of exp(y):
/// sum over v of exp(x) / X * (x - y), and then + ln Y - ln X.
///
/// # Errors
/// When the shapes differ.
pub fn divergence(reference: &Array, of: &Array) -> Result<Array> {
    let run = || {
        let (x, y) = (reference.subtract(reference.max_axis(-1, true)?)?, of.subtract(of.max_axis(-1, true)?)?);
        let weight = x.exp()?;
        let (of_x, of_y) = (sum(weight.clone())?, sum(y.exp()?)?);
        let crossed = sum(weight.multiply(x.subtract(y)?)?)?.divide(&of_x)?;
        crossed.add(of_y.log()?.subtract(of_x.log()?)?)
    };
    run().context("comparing distributions")
}

/// See [`super::kernels::divergence`].
pub fn divergence_under(reference: &Array, of: &Array, head: Operand) -> Result<Array> {
    Ok(divergence_by_rows(reference, of, head, false)?.0)
}

/// See [`super::kernels::divergence_to_learn`].
pub fn divergence_to_learn(reference: &Array, of: &Array, head: Operand) -> Result<(Array, Array)> {
    let what = "comparing distributions";
    let (kl, grad) = divergence_by_rows(reference, of, head, true)?;
    grad.map(|g| (kl, g)).ok_or_else(|| Exception::custom("no gradient")).context(what)
}

/// The divergence, and its gradient where it is wanted.
fn divergence_by_rows(reference: &Array, of: &Array, head: Operand, learn: bool) -> Result<(Array, Option<Array>)> {
    let what = "comparing distributions";
    super::kernels::check_head(reference, head, None).context(what)?;
    if reference.shape() != of.shape() {
        let e = format!("states {:?} and {:?} differ in shape", reference.shape(), of.shape());
        return Err(Exception::custom(e)).context(what);
    }
    let wide = if learn { Some(head.widened()?) } else { None };
    let (mut kl, mut grads) = (Vec::new(), Vec::new());
    for first in (0..of.dim(0)).step_by(ROWS as usize) {
        use indexing::TryIndexOp;
        let rows = first..of.dim(0).min(first + ROWS);
        let logits = |h: &Array| head.composed(&h.try_index(rows.clone()).context(what)?);
        let (x, y) = (logits(reference)?, logits(of)?);
        kl.push(divergence(&x, &y)?);
        if let Some(w) = &wide {
            let change = ops::softmax_axis(&y, -1, true).and_then(|q| q.subtract(ops::softmax_axis(&x, -1, true)?));
            grads.push(change.and_then(|c| c.matmul(w)).context(what)?);
        }
    }
    if kl.is_empty() {
        let none = Array::zeros::<f32>(&[0]).context(what)?;
        return Ok((none, learn.then(|| of.clone())));
    }
    let grad = if learn { Some(ops::concatenate(&grads, 0).context(what)?) } else { None };
    Ok((ops::concatenate(&kl, 0).context(what)?, grad))
}

/// See [`super::kernels::fisher_head`].
pub fn fisher_head(hidden: &Array, head: Operand, seed: u64) -> Result<(Array, Array)> {
    let what = "sampling labels";
    super::kernels::check_head(hidden, head, None).context(what)?;
    let wide = head.widened()?;
    let run = || {
        let logits = hidden.matmul(wide.transpose()?)?;
        let labels =
            mlx_rs::random::categorical(&logits, -1, None, &mlx_rs::random::key(seed)?)?.as_dtype(Dtype::Int32)?;
        let p = ops::softmax_axis(&logits, -1, true)?;
        let grad = p.matmul(&wide)?.subtract(indexing::take_axis(&wide, &labels, 0)?)?;
        Ok((labels, grad))
    };
    run().context(what)
}
