//! The operations MLX's CPU build is slow at, and what they fall back to elsewhere.
//!
//! Every function is lazy. On Linux CPUs they run as custom primitives (`host/native`), threaded and
//! vectorised; on other devices they are composed of MLX's own operations ([`super::composed`]).
//! Inputs are taken as float32 and results are float32 on the CPU. Shapes are checked when the graph is
//! built. Differentiable once.
//!
//! Environment: `PLASTIC_THREADS` (threads of the primitives; default: the cores this process may use),
//! `PLASTIC_ISA` (`scalar`, `avx2`, `avx512`; default: the best this machine has).

#[cfg(target_os = "linux")]
use super::Context;
use super::project::Operand;
use super::{Array, Result, composed};
use mlx_rs::error::Exception;

#[cfg(target_os = "linux")]
use super::ffi;

/// Whether the custom primitives serve this process: Linux, and MLX's default device is the CPU.
/// Decided once.
pub fn native() -> bool {
    static NATIVE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *NATIVE.get_or_init(|| {
        let cpu = || mlx_rs::Device::try_default().and_then(|d| d.get_type());
        cfg!(target_os = "linux") && cpu().is_ok_and(|t| matches!(t, mlx_rs::DeviceType::Cpu))
    })
}

/// Threads the primitives use; 1 where there are none.
pub fn threads() -> usize {
    #[cfg(target_os = "linux")]
    // SAFETY: no arguments; starts the pool on first use.
    return usize::try_from(unsafe { ffi::pk_threads() }).unwrap_or(1);
    #[cfg(not(target_os = "linux"))]
    1
}

/// Says how many threads to start; counts before the primitives are first used.
pub(super) fn default_threads(n: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: any number is allowed.
    unsafe {
        ffi::pk_default_threads(i32::try_from(n).unwrap_or(0));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = n;
}

/// Limits the primitives to `n` threads, between 1 and the number the pool was made with.
pub fn set_threads(n: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: any number is allowed; it is clamped.
    unsafe {
        ffi::pk_set_threads(i32::try_from(n).unwrap_or(i32::MAX));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = n;
}

/// Whether MLX's matrix products are cut into blocks for the threads of the primitives (`gemm.cpp`).
pub fn splits_products() -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: no arguments; only asks the dynamic linker.
    return unsafe { ffi::pk_gemm_in_use() } == 1;
    #[cfg(not(target_os = "linux"))]
    false
}

/// Instruction set in use: `scalar`, `avx2` or `avx512`; `mlx` where MLX's own kernels run.
pub fn isa() -> &'static str {
    #[cfg(target_os = "linux")]
    // SAFETY: returns a pointer to a static string.
    return unsafe { std::ffi::CStr::from_ptr(ffi::pk_isa()) }.to_str().unwrap_or("unknown");
    #[cfg(not(target_os = "linux"))]
    "mlx"
}

/// `silu(gate) * up`, element by element; differentiable in both.
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    #[cfg(target_os = "linux")]
    if native() {
        // SAFETY: live handles and pointers of this call.
        return ffi::build(|[y], s, (err, len)| unsafe { ffi::pk_swiglu(y, gate.as_ptr(), up.as_ptr(), s, err, len) })
            .map(|[y]| y)
            .context("swiglu");
    }
    composed::swiglu(gate, up)
}

/// Attention of `q` [B, H, Lq, D] over `k`, `v` [B, Hkv, Lk, D], Hkv dividing H; causal attention is
/// aligned to the end of the keys. Result [B, H, Lq, D]; differentiable in all three.
///
/// Strided views are read as they are (a transposed [B, L, H, D], a slice of a key cache), and on the CPU
/// the result's memory is ordered [B, Lq, H, D], so that transposing it back costs nothing.
///
/// # Errors
/// When the shapes disagree, and for causal attention with more queries than keys.
pub fn attention(q: &Array, k: &Array, v: &Array, scale: f32, causal: bool) -> Result<Array> {
    #[cfg(target_os = "linux")]
    if native() {
        return ffi::build(|[y], s, (err, len)| {
            // SAFETY: live handles and pointers of this call.
            unsafe { ffi::pk_attention(y, q.as_ptr(), k.as_ptr(), v.as_ptr(), scale, causal, s, err, len) }
        })
        .map(|[y]| y)
        .context("attention");
    }
    composed::attention(q, k, v, scale, causal)
}

/// Root-mean-square norm over the last axis of `x` [..., D], times `weight` [D]; differentiable in both.
///
/// # Errors
/// When the shapes disagree.
pub fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Result<Array> {
    #[cfg(target_os = "linux")]
    if native() {
        // SAFETY: live handles and pointers of this call.
        return ffi::build(|[y], s, (err, len)| unsafe {
            ffi::pk_rms_norm(y, x.as_ptr(), weight.as_ptr(), eps, s, err, len)
        })
        .map(|[y]| y)
        .context("rms_norm");
    }
    composed::rms_norm(x, weight, eps)
}

/// Rotary position embedding of the first `dims` features of `x` [B, H, L, D]; differentiable in `x`.
///
/// Row `l` stands at position `offset + l`; its pair `i` turns by `position / freqs[i]`, freqs [dims / 2]. Pairs are
/// features `i` and `i + dims / 2`, or `2i` and `2i + 1` when `traditional`. As MLX's `fast::rope`.
///
/// # Errors
/// When the shapes disagree.
pub fn rope(x: &Array, dims: i32, traditional: bool, offset: i32, freqs: &Array) -> Result<Array> {
    #[cfg(target_os = "linux")]
    if native() {
        // SAFETY: live handles and pointers of this call.
        return ffi::build(|[y], s, (err, len)| unsafe {
            ffi::pk_rope(y, x.as_ptr(), dims, traditional, offset, freqs.as_ptr(), s, err, len)
        })
        .map(|[y]| y)
        .context("rope");
    }
    composed::rope(x, dims, traditional, offset, freqs)
}

/// Negative log-probability (nats) of each target: `hidden` [N, D], `head` [V, D] as it is stored, `targets` [N]
/// integers below V. Result [N] float32; differentiable in `hidden`. The sum over the vocabulary is
/// taken in float64 over blocks of at most 64 terms, and the [N, V] logits are never held at once.
///
/// A target outside the vocabulary is not an error here: its result is NaN (composed: undefined).
/// Callers check token ids first.
///
/// # Errors
/// When the shapes disagree.
pub fn token_nll(hidden: &Array, head: Operand, targets: &Array) -> Result<Array> {
    nll(hidden, head, targets, false)
}

/// As [`token_nll`], for training: the gradient is found in the pass that finds the loss, where one of two of the
/// products is needed anyway. A waste where the gradient is never asked for.
///
/// # Errors
/// As [`token_nll`].
pub fn token_nll_to_learn(hidden: &Array, head: Operand, targets: &Array) -> Result<Array> {
    nll(hidden, head, targets, true)
}

fn nll(hidden: &Array, head: Operand, targets: &Array, ahead: bool) -> Result<Array> {
    let _ = ahead;
    #[cfg(target_os = "linux")]
    if native() && head.is_known() {
        let (mut w, mut layout) = (Vec::with_capacity(3), Vec::with_capacity(2));
        head.flatten(&mut w, &mut layout);
        let (h, t) = (hidden.as_ptr(), targets.as_ptr());
        return ffi::build(|[y], s, (err, len)| {
            // SAFETY: live handles and buffers of this call; the layout is what `flatten` wrote.
            unsafe { ffi::pk_token_nll(y, h, w.as_ptr(), w.len(), layout.as_ptr(), t, ahead, s, err, len) }
        })
        .map(|[y]| y)
        .context("scoring tokens");
    }
    composed::token_nll(hidden, head, targets)
}

/// Draws one label per row from the softmax of the row's own logits, and returns the labels [N] int32
/// and the gradient [N, D] of each row's `token_nll` at its label with respect to `hidden` [N, D] (per
/// row, not averaged). The mean of the outer products of such gradients estimates the true Fisher
/// information, which needs no data labels.
///
/// The draw depends on `seed`, the row's number and the row alone, not on threads or blocks. Another
/// device draws other labels from the same distribution.
///
/// # Errors
/// When the shapes disagree.
pub fn fisher_head(hidden: &Array, head: Operand, seed: u64) -> Result<(Array, Array)> {
    #[cfg(target_os = "linux")]
    if native() && head.is_known() {
        let (mut w, mut layout) = (Vec::with_capacity(3), Vec::with_capacity(2));
        head.flatten(&mut w, &mut layout);
        let h = hidden.as_ptr();
        return ffi::build(|[labels, grad], s, (err, len)| {
            // SAFETY: live handles and buffers of this call; the layout is what `flatten` wrote.
            unsafe { ffi::pk_fisher_head(labels, grad, h, w.as_ptr(), w.len(), layout.as_ptr(), seed, s, err, len) }
        })
        .map(|[labels, grad]| (labels, grad))
        .context("sampling labels");
    }
    composed::fisher_head(hidden, head, seed)
}

/// Kullback-Leibler divergence, in nats, of the distribution that follows `of` [N, D] from the one that follows
/// `reference` [N, D], both under `head` [V, D]: [N]. Exactly 0 where the rows are equal; rounding can take it a
/// little below. Logits are never held.
///
/// # Errors
/// When the shapes disagree.
pub fn divergence(reference: &Array, of: &Array, head: Operand) -> Result<Array> {
    #[cfg(target_os = "linux")]
    if native() && head.is_known() {
        let (mut w, mut layout) = (Vec::with_capacity(3), Vec::with_capacity(2));
        head.flatten(&mut w, &mut layout);
        let (p, q, none) = (reference.as_ptr(), of.as_ptr(), std::ptr::null_mut());
        return ffi::build(|[kl], s, (err, len)| {
            // SAFETY: as above; the divergence alone is asked for.
            unsafe { ffi::pk_divergence(kl, none, p, q, w.as_ptr(), w.len(), layout.as_ptr(), s, err, len) }
        })
        .map(|[kl]| kl)
        .context("comparing distributions");
    }
    composed::divergence_under(reference, of, head)
}

/// [`divergence`] and, row by row, its gradient [N, D] with respect to `of`.
///
/// # Errors
/// When the shapes disagree.
pub fn divergence_to_learn(reference: &Array, of: &Array, head: Operand) -> Result<(Array, Array)> {
    #[cfg(target_os = "linux")]
    if native() && head.is_known() {
        let (mut w, mut layout) = (Vec::with_capacity(3), Vec::with_capacity(2));
        head.flatten(&mut w, &mut layout);
        let (p, q) = (reference.as_ptr(), of.as_ptr());
        return ffi::build(|[kl, grad], s, (err, len)| {
            // SAFETY: as above.
            unsafe { ffi::pk_divergence(kl, grad, p, q, w.as_ptr(), w.len(), layout.as_ptr(), s, err, len) }
        })
        .map(|[kl, grad]| (kl, grad))
        .context("comparing distributions");
    }
    composed::divergence_to_learn(reference, of, head)
}

/// `hidden` [N, D] fits `head` [V, D] and `targets` [N].
pub(super) fn check_head(hidden: &Array, head: Operand, targets: Option<&Array>) -> std::result::Result<(), Exception> {
    let (x, w) = (hidden.shape(), head.shape());
    if x.len() != 2 || x[1] != w[1] || w[0] == 0 {
        return Err(Exception::custom(format!("hidden {x:?} must be [N, D] and head {w:?} [V, D]")));
    }
    match targets {
        Some(t) if t.shape() != [x[0]] => {
            Err(Exception::custom(format!("targets {:?} must be [N] for hidden {x:?}", t.shape())))
        }
        _ => Ok(()),
    }
}
