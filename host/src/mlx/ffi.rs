//! The C surface of `host/native`: declarations, and the one place where a return code becomes an error.

use mlx_rs::{Array, Stream, error::Exception};
use mlx_sys::{mlx_array, mlx_stream};
use std::ffi::{CStr, c_char, c_int, c_void};

/// Where a kernel writes the text of an error: its buffer and the length of that.
pub(super) type ErrorText = (*mut c_char, usize);

// Every function returns 0 and sets its results, or 1 with a message in `err` and results untouched.
unsafe extern "C" {
    pub(super) fn pk_threads() -> c_int;
    pub(super) fn pk_default_threads(n: c_int);
    pub(super) fn pk_set_threads(n: c_int);
    pub(super) fn pk_gemm_in_use() -> c_int;
    pub(super) fn pk_isa() -> *const c_char;
    pub(super) fn pk_swiglu(
        res: *mut mlx_array,
        gate: mlx_array,
        up: mlx_array,
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
    pub(super) fn pk_attention(
        res: *mut mlx_array,
        q: mlx_array,
        k: mlx_array,
        v: mlx_array,
        scale: f32,
        causal: bool,
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
    pub(super) fn pk_rms_norm(
        res: *mut mlx_array,
        x: mlx_array,
        weight: mlx_array,
        eps: f32,
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
    pub(super) fn pk_rope(
        res: *mut mlx_array,
        x: mlx_array,
        dims: c_int,
        traditional: bool,
        offset: c_int,
        freqs: mlx_array,
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
    pub(super) fn pk_project(
        res: *mut mlx_array,
        x: mlx_array,
        arrays: *const mlx_array,
        count: usize,
        layout: *const c_int,
        residual: mlx_array, // an empty handle: none
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
    pub(super) fn pk_cached_attention(
        res: *mut mlx_array,
        keys_res: *mut mlx_array,
        values_res: *mut mlx_array,
        q: mlx_array,
        k: mlx_array,
        v: mlx_array,
        keys: mlx_array,
        values: mlx_array,
        freqs: mlx_array,
        q_norm: mlx_array,
        k_norm: mlx_array,
        rows: *const c_int,
        n_rows: usize,
        past: *const c_int,
        n_past: usize,
        capacity: c_int,
        scale: f32,
        eps: f32,
        traditional: bool,
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
    pub(super) fn pk_layer_new(
        res: *mut *mut c_void,
        arrays: *const mlx_array,
        count: usize,
        layout: *const c_int,
        norms: bool,
        kv_heads: c_int,
        scale: f32,
        eps: f32,
        traditional: bool,
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
    pub(super) fn pk_layer_free(layer: *mut c_void);
    pub(super) fn pk_layer(
        res: *mut mlx_array,
        keys_res: *mut mlx_array,
        values_res: *mut mlx_array,
        layer: *const c_void,
        h: mlx_array,
        keys: mlx_array,
        values: mlx_array,
        rows: *const c_int,
        n_rows: usize,
        past: *const c_int,
        n_past: usize,
        capacity: c_int,
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
    pub(super) fn pk_token_nll(
        res: *mut mlx_array,
        hidden: mlx_array,
        head: *const mlx_array,
        count: usize,
        layout: *const c_int,
        targets: mlx_array,
        ahead: bool,
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
    pub(super) fn pk_fisher_head(
        labels: *mut mlx_array,
        grad: *mut mlx_array,
        hidden: mlx_array,
        head: *const mlx_array,
        count: usize,
        layout: *const c_int,
        seed: u64,
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
    pub(super) fn pk_divergence(
        kl: *mut mlx_array,
        grad: *mut mlx_array, // null: the divergence alone
        reference: mlx_array,
        of: mlx_array,
        head: *const mlx_array,
        count: usize,
        layout: *const c_int,
        s: mlx_stream,
        err: *mut c_char,
        len: usize,
    ) -> c_int;
}

/// Runs a kernel's constructor `f(results, stream, error text)` and takes its `N` results.
///
/// # Errors
/// With the kernel's message when it refuses its arguments.
pub(super) fn build<const N: usize>(
    f: impl FnOnce(&mut [mlx_array; N], mlx_stream, ErrorText) -> c_int,
) -> Result<[Array; N], Exception> {
    let stream = Stream::thread_local_or_default();
    let mut text = [0 as c_char; 512];
    // SAFETY: makes an empty handle (a null pointer), which needs no freeing.
    let mut results = [(); N].map(|()| unsafe { mlx_sys::mlx_array_new() });
    if f(&mut results, stream.as_ptr(), (text.as_mut_ptr(), text.len())) != 0 {
        // SAFETY: the kernel wrote a terminated string of at most `text.len()` bytes, or left the zeros.
        let message = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
        return Err(Exception::custom(message));
    }
    // SAFETY: on success each result owns one new array, and nothing else frees it.
    Ok(results.map(|r| unsafe { Array::from_ptr(r) }))
}
