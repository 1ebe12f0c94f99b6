//! Quantised weights in all of MLX's modes.
//!
//! mlx-rs fixes the mode to `affine`, so these two operations call mlx-c themselves. Both are lazy.
//! MLX's own text of a refusal stays in mlx-rs's private slot: the errors here name what was asked.

use super::{Array, Context, Dtype, MlxError, Result};
use mlx_rs::Stream;
use mlx_rs::ops::indexing::TryIndexOp;
use std::ffi::CStr;

/// A quantisation mode of MLX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `w = scale * q + bias`, 2 to 8 bits; scale and bias are floats.
    Affine,
    /// 4-bit floats (e2m1), groups of 32 with a power-of-two scale.
    Mxfp4,
    /// 8-bit floats (e4m3), groups of 32 with a power-of-two scale.
    Mxfp8,
    /// 4-bit floats (e2m1), groups of 16 with an e4m3 scale.
    Nvfp4,
}

impl Mode {
    /// MLX's name of the mode.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Affine => "affine",
            Mode::Mxfp4 => "mxfp4",
            Mode::Mxfp8 => "mxfp8",
            Mode::Nvfp4 => "nvfp4",
        }
    }

    /// The mode of that name.
    pub fn from_name(name: &str) -> Option<Mode> {
        [Mode::Affine, Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].into_iter().find(|m| m.name() == name)
    }

    fn c_name(self) -> &'static CStr {
        match self {
            Mode::Affine => c"affine",
            Mode::Mxfp4 => c"mxfp4",
            Mode::Mxfp8 => c"mxfp8",
            Mode::Nvfp4 => c"nvfp4",
        }
    }
}

/// How a weight was quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Weights that share one scale.
    pub group_size: u32,
    /// Bits of one weight.
    pub bits: u32,
    /// Meaning of codes and scales.
    pub mode: Mode,
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} bits, group {}", self.mode.name(), self.bits, self.group_size)
    }
}

/// A quantised matrix: `codes` [rows, cols * bits / 32] u32, `scales` [rows, cols / group], and for
/// affine `biases` of the same shape.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Packed codes.
    pub codes: Array,
    /// Scales; u8 in the floating-point modes.
    pub scales: Array,
    /// Biases; affine only.
    pub biases: Option<Array>,
    /// How to read them.
    pub scheme: Scheme,
}

impl Packed {
    /// Quantises a float32 matrix [rows, cols] in the mode `affine`; scales and biases are of the type `stored_as`.
    ///
    /// # Errors
    /// When the columns do not divide into groups, or MLX fails.
    pub fn affine(w: &Array, bits: u32, group_size: u32, stored_as: Dtype) -> Result<Packed> {
        let what = "quantising a weight";
        let (codes, scales, biases) = mlx_rs::ops::quantize(w, group_size as i32, bits as i32).context(what)?;
        let rounded = |a: &Array| a.as_dtype(stored_as).context(what);
        let scheme = Scheme { group_size, bits, mode: Mode::Affine };
        Ok(Packed { codes, scales: rounded(&scales)?, biases: Some(rounded(&biases)?), scheme })
    }

    /// The matrix [rows, cols]: float32 for affine, else bfloat16; exact.
    ///
    /// # Errors
    /// When MLX refuses the shapes or the scheme.
    pub fn dequantize(&self) -> Result<Array> {
        let none = dtype_none();
        let (group, bits) = self.params();
        let (empty, stream) = (empty(), Stream::thread_local_or_default());
        let (scales, biases) = self.widened()?;
        let biases = biases.as_ref().unwrap_or(&empty);
        // SAFETY: every handle outlives the call; `res` is filled before it is read.
        let built = op(|res| unsafe {
            mlx_sys::mlx_dequantize(
                res,
                self.codes.as_ptr(),
                scales.as_ptr(),
                biases.as_ptr(),
                group,
                bits,
                self.scheme.mode.c_name().as_ptr(),
                empty.as_ptr(),
                none,
                stream.as_ref().as_ptr(),
            )
        });
        built.ok_or_else(|| self.refused("dequantize", None))
    }

    /// `x · Wᵀ` without unpacking: `x` [.., cols] to [.., rows].
    ///
    /// # Errors
    /// When MLX refuses the shapes or the scheme.
    pub fn matmul(&self, x: &Array) -> Result<Array> {
        let (group, bits) = self.params();
        let (empty, stream) = (empty(), Stream::thread_local_or_default());
        let (scales, biases) = self.widened()?;
        let biases = biases.as_ref().unwrap_or(&empty);
        // SAFETY: every handle outlives the call; `res` is filled before it is read.
        let built = op(|res| unsafe {
            mlx_sys::mlx_quantized_matmul(
                res,
                x.as_ptr(),
                self.codes.as_ptr(),
                scales.as_ptr(),
                biases.as_ptr(),
                true,
                group,
                bits,
                self.scheme.mode.c_name().as_ptr(),
                stream.as_ref().as_ptr(),
            )
        });
        built.ok_or_else(|| self.refused("quantized_matmul", Some(x)))
    }

    /// The rows that `index` (int32, any shape) names, as a matrix of their own; indices must be in range.
    ///
    /// # Errors
    /// Whatever MLX reports.
    pub fn rows(&self, index: &Array) -> Result<Packed> {
        let take = |a: &Array| a.take_axis(index, 0);
        Ok(Packed {
            codes: take(&self.codes)?,
            scales: take(&self.scales)?,
            biases: self.biases.as_ref().map(take).transpose()?,
            scheme: self.scheme,
        })
    }

    /// The first `n` rows, as views.
    ///
    /// # Errors
    /// Whatever MLX reports.
    pub fn first(&self, n: i32) -> Result<Packed> {
        let upto = |a: &Array| a.try_index(..n).context("choosing rows");
        Ok(Packed {
            codes: upto(&self.codes)?,
            scales: upto(&self.scales)?,
            biases: self.biases.as_ref().map(upto).transpose()?,
            scheme: self.scheme,
        })
    }

    /// The arrays, for evaluation and for counting bytes.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.codes, &self.scales].into_iter().chain(self.biases.as_ref())
    }

    /// Scales and biases as MLX should compute with them: affine ones in float32.
    fn widened(&self) -> Result<(Array, Option<Array>)> {
        let wide = |a: &Array| match self.scheme.mode {
            Mode::Affine => a.as_dtype(Dtype::Float32).context("widening scales"),
            _ => Ok(a.clone()),
        };
        Ok((wide(&self.scales)?, self.biases.as_ref().map(wide).transpose()?))
    }

    fn params(&self) -> (mlx_sys::mlx_optional_int, mlx_sys::mlx_optional_int) {
        let some = |v: u32| mlx_sys::mlx_optional_int { value: v as i32, has_value: true };
        (some(self.scheme.group_size), some(self.scheme.bits))
    }

    fn refused(&self, op: &str, x: Option<&Array>) -> MlxError {
        let x = x.map(|x| format!(" by x {:?}", x.shape())).unwrap_or_default();
        let text = format!(
            "MLX refused codes {:?} with scales {:?}{x} ({})",
            self.codes.shape(),
            self.scales.shape(),
            self.scheme
        );
        MlxError { what: op.into(), exception: mlx_rs::error::Exception::custom(text) }
    }
}

fn dtype_none() -> mlx_sys::mlx_optional_dtype {
    mlx_sys::mlx_optional_dtype { value: mlx_sys::mlx_dtype__MLX_FLOAT32, has_value: false }
}

/// The null array that mlx-c takes for "not given".
fn empty() -> Array {
    // SAFETY: mlx_array_new returns a fresh handle, owned from here on.
    unsafe { Array::from_ptr(mlx_sys::mlx_array_new()) }
}

/// Runs one mlx-c operation that fills a fresh handle; `None` when it reports failure.
fn op(f: impl FnOnce(*mut mlx_sys::mlx_array) -> i32) -> Option<Array> {
    // Any call through mlx-rs installs its error handler; without one mlx-c ends the process.
    mlx_rs::memory::active_memory().ok()?;
    // SAFETY: a fresh handle, owned by the Array whether the operation fills it or not.
    let mut res = unsafe { mlx_sys::mlx_array_new() };
    let status = f(&mut res);
    // SAFETY: as above.
    let res = unsafe { Array::from_ptr(res) };
    (status == 0).then_some(res)
}
