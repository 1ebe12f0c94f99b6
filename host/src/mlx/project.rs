//! A projection in one operation: a stored weight, thin factors in its place or on top of it, a gain, a bias and a
//! residual. Nothing is widened in memory: weights are decoded as they are multiplied.
//!
//! Lazy, and differentiable once: in `x`, in the residual and in factors of floats. Fails when the graph is built
//! where shapes or types do not fit.

#[cfg(target_os = "linux")]
use super::ffi;
use super::quant::{Mode, Packed};
use super::{Array, Context, Dtype, Result, kernels};

/// A matrix as it is stored.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// float32, float16 or bfloat16 [rows, cols]; a transposed view costs nothing.
    Float(&'a Array),
    /// Quantised.
    Packed(&'a Packed),
    /// Quantised and stored the other way round, [cols, rows]: components, one a row.
    Components(&'a Packed),
}

/// Thin factors `A B`: `a` [rows, r], `b` [r, cols].
#[derive(Clone, Copy, Debug)]
pub struct Thin<'a> {
    /// [rows, r].
    pub a: Operand<'a>,
    /// [r, cols].
    pub b: Operand<'a>,
}

/// `y = ((W + Σ A B) x) ∘ gain + bias + residual`; what is not given is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Projection<'a> {
    /// The stored weight [rows, cols].
    pub base: Option<Operand<'a>>,
    /// Factors.
    pub factors: &'a [Thin<'a>],
    /// One factor an output [rows], float32.
    pub gain: Option<&'a Array>,
    /// [rows], float32.
    pub bias: Option<&'a Array>,
}

impl Operand<'_> {
    /// Whether the kernels read it.
    pub fn is_known(&self) -> bool {
        match self {
            Operand::Float(_) => true,
            Operand::Packed(p) | Operand::Components(p) => {
                p.scheme.mode != Mode::Affine
                    || (matches!(p.scheme.bits, 2..=6 | 8) && matches!(p.scheme.group_size, 32 | 64 | 128))
            }
        }
    }

    /// Its arrays, then kind, group and whether it is transposed: `MatrixLayout` of `native/projection.h`.
    #[cfg(target_os = "linux")]
    pub(super) fn flatten(&self, arrays: &mut Vec<mlx_sys::mlx_array>, layout: &mut Vec<i32>) {
        match self {
            Operand::Float(w) => {
                arrays.push(w.as_ptr());
                layout.extend([0, 0, 0]);
            }
            Operand::Packed(p) | Operand::Components(p) => {
                arrays.extend(p.arrays().map(Array::as_ptr));
                // `KIND_*` of native/isa/table.h
                let kind = match p.scheme.mode {
                    Mode::Affine => p.scheme.bits as i32,
                    Mode::Mxfp4 => 40,
                    Mode::Mxfp8 => 41,
                    Mode::Nvfp4 => 42,
                };
                layout.extend([kind, p.scheme.group_size as i32, i32::from(matches!(self, Operand::Components(_)))]);
            }
        }
    }

    /// The matrix as float32.
    ///
    /// # Errors
    /// Whatever MLX reports.
    pub fn widened(&self) -> Result<Array> {
        let what = "widening a weight";
        match self {
            Operand::Float(w) if w.dtype() == Dtype::Float32 => Ok((*w).clone()),
            Operand::Float(w) => w.as_dtype(Dtype::Float32).context(what),
            Operand::Packed(p) => p.dequantize()?.as_dtype(Dtype::Float32).context(what),
            Operand::Components(p) => {
                p.dequantize()?.as_dtype(Dtype::Float32).and_then(|w| w.transpose()).context(what)
            }
        }
    }

    /// [rows, cols].
    pub fn shape(&self) -> [i32; 2] {
        let of = |a: &Array| [0, 1].map(|i| a.shape().get(i).copied().unwrap_or(0));
        match self {
            Operand::Float(w) => of(w),
            Operand::Packed(p) | Operand::Components(p) => {
                let [rows, words] = of(&p.codes);
                let cols = (i64::from(words) * 32 / i64::from(p.scheme.bits.max(1))) as i32;
                if matches!(self, Operand::Components(_)) { [cols, rows] } else { [rows, cols] }
            }
        }
    }

    /// `x Wᵀ` by MLX.
    pub(super) fn composed(&self, x: &Array) -> Result<Array> {
        match self {
            Operand::Packed(p) => p.matmul(x),
            Operand::Components(p) => x.matmul(&p.dequantize()?).context("projection"),
            Operand::Float(w) => {
                let w = w.as_dtype(Dtype::Float32).and_then(|w| w.transpose());
                w.and_then(|w| x.matmul(&w)).context("projection")
            }
        }
    }
}

impl<'a> Projection<'a> {
    /// `x` [.., cols] float32 to [.., rows], plus `residual` of the result's shape.
    ///
    /// # Errors
    /// When shapes or types do not fit; the message says which.
    pub fn apply(&self, x: &Array, residual: Option<&Array>) -> Result<Array> {
        #[cfg(target_os = "linux")]
        if self.is_native() {
            return self.native(x, residual);
        }
        self.composed(x, residual)
    }

    /// Whether the kernels do all of it.
    pub fn is_native(&self) -> bool {
        kernels::native() && self.operands().all(|o| o.is_known())
    }

    fn operands(&self) -> impl Iterator<Item = Operand<'a>> {
        self.base.into_iter().chain(self.factors.iter().flat_map(|t| [t.b, t.a]))
    }

    /// The arrays and the numbers that `pk_project` wants: `native/projection.cpp`.
    #[cfg(target_os = "linux")]
    pub(super) fn flatten(&self, arrays: &mut Vec<mlx_sys::mlx_array>, layout: &mut Vec<i32>) {
        let count = i32::try_from(self.factors.len()).unwrap_or(i32::MAX);
        let given = |x: bool| i32::from(x);
        layout.extend([given(self.base.is_some()), given(self.gain.is_some()), given(self.bias.is_some()), count]);
        for o in self.operands() {
            o.flatten(arrays, layout);
        }
        arrays.extend(self.gain.into_iter().chain(self.bias).map(Array::as_ptr));
    }

    #[cfg(target_os = "linux")]
    fn native(&self, x: &Array, residual: Option<&Array>) -> Result<Array> {
        let (mut arrays, mut layout) = (Vec::new(), Vec::new());
        self.flatten(&mut arrays, &mut layout);
        ffi::build(|[y], s, (err, len)| {
            // SAFETY: an empty handle, live handles and buffers of this call; the layout is what `flatten` wrote.
            unsafe {
                let residual = residual.map_or_else(|| mlx_sys::mlx_array_new(), Array::as_ptr);
                ffi::pk_project(y, x.as_ptr(), arrays.as_ptr(), arrays.len(), layout.as_ptr(), residual, s, err, len)
            }
        })
        .map(|[y]| y)
        .context("projection")
    }

    /// The same by MLX's own operations: what runs on GPUs and macOS, and what tests compare with.
    pub(super) fn composed(&self, x: &Array, residual: Option<&Array>) -> Result<Array> {
        let mut y = self.base.map(|w| w.composed(x)).transpose()?;
        for t in self.factors {
            let more = t.a.composed(&t.b.composed(x)?)?;
            y = Some(match y {
                None => more,
                Some(y) => y.add(more).context("projection")?,
            });
        }
        let missing = || mlx_rs::error::Exception::custom("nothing to multiply with");
        let mut y = y.ok_or_else(missing).context("projection")?;
        if let Some(gain) = self.gain {
            y = y.multiply(gain).context("projection")?;
        }
        for more in self.bias.into_iter().chain(residual) {
            y = y.add(more).context("projection")?;
        }
        Ok(y)
    }
}
