//! One projection: its weight in the form the checkpoint has it, or low-rank factors in its place.
//!
//! `y = x Wᵀ + b`. A quantised weight stays quantised. With many rows of x a CPU multiplies a float32
//! copy much faster, so such a copy is made when first needed and kept when the memory budget allows;
//! otherwise it is made for each use. Either way the same numbers are multiplied in the same order: which
//! path runs depends on the number of rows alone, never on what happens to be cached, so that outputs
//! after sleeping and waking are those from before, bit for bit.

use crate::mlx::quant::{Packed, Scheme};
use crate::mlx::{self, Array, Context, Dtype};
use std::cell::OnceCell;

/// Up to this many rows of x a quantised weight is multiplied as it is (decoding); above, its float32 copy.
pub(crate) const FEW_ROWS: usize = 32;

/// Low-rank stand-in for a slice: `y = (x Bᵀ) Aᵀ (+ bias)`.
#[derive(Clone, Debug)]
pub struct Factors {
    /// [rows, r] float32.
    pub a: Array,
    /// [r, cols] float32.
    pub b: Array,
}

impl Factors {
    /// Bytes of both.
    pub fn nbytes(&self) -> u64 {
        (self.a.nbytes() + self.b.nbytes()) as u64
    }
}

/// What packs add to a slice: `y = (W x + (x Bᵀ) Aᵀ) ∘ gain (+ bias)`.
#[derive(Clone, Debug)]
pub struct Added {
    /// A [rows, r] with every scale folded in, B [r, cols].
    pub factors: Factors,
    /// One factor an output [rows]; DoRA.
    pub gain: Option<Array>,
}

impl Added {
    /// Bytes of all of it.
    pub fn nbytes(&self) -> u64 {
        self.factors.nbytes() + self.gain.as_ref().map_or(0, |g| g.nbytes() as u64)
    }

    fn apply(&self, x: &Array, y: &Array) -> mlx::Result<Array> {
        let what = "adding a pack";
        let low = x.matmul(self.factors.b.transpose()?)?.matmul(self.factors.a.transpose()?).context(what)?;
        let y = y.add(low).context(what)?;
        match &self.gain {
            None => Ok(y),
            Some(g) => y.multiply(g).context(what),
        }
    }
}

/// A weight as the checkpoint has it.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    /// float32, float16 or bfloat16 [rows, cols].
    Float(Array),
    /// Quantised.
    Packed(Packed),
}

/// A matrix [rows, cols] of the base with its optional float32 copy.
#[derive(Debug)]
pub(crate) struct Weight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    stored: Stored,
    /// Whether a float32 copy may be kept.
    pub(crate) keep_dense: bool,
    /// Whether this device multiplies a quantised weight faster from a float32 copy.
    dense_is_faster: bool,
    /// Up to so many rows of x the quantised weight is multiplied all the same.
    few_rows: usize,
    dense: OnceCell<Array>,
}

impl Weight {
    pub(crate) fn new(stored: Stored, rows: usize, cols: usize, dense_is_faster: bool) -> Weight {
        Weight { rows, cols, stored, keep_dense: false, dense_is_faster, few_rows: FEW_ROWS, dense: OnceCell::new() }
    }

    /// The quantised weight; `None` for floats.
    pub(crate) fn packed(&self) -> Option<&Packed> {
        match &self.stored {
            Stored::Float(_) => None,
            Stored::Packed(p) => Some(p),
        }
    }

    /// How the checkpoint quantises it; `None` for floats.
    pub(crate) fn scheme(&self) -> Option<Scheme> {
        match &self.stored {
            Stored::Float(_) => None,
            Stored::Packed(p) => Some(p.scheme),
        }
    }

    /// Bytes of a float32 copy, 0 when the weight is float32 as it is.
    pub(crate) fn dense_cost(&self) -> u64 {
        match &self.stored {
            Stored::Float(w) if w.dtype() == Dtype::Float32 => 0,
            _ => 4 * (self.rows * self.cols) as u64,
        }
    }

    /// The weight as float32 [rows, cols]; kept for the next time when it may be.
    pub(crate) fn dense(&self) -> mlx::Result<Array> {
        if let Some(w) = self.dense.get() {
            return Ok(w.clone());
        }
        let w = self.widened()?;
        if self.keep_dense && self.dense_cost() > 0 {
            // Evaluated now: a lazy copy would keep what it was made from alive in every graph that uses it.
            mlx::eval([&w])?;
            return Ok(self.dense.get_or_init(|| w).clone());
        }
        Ok(w)
    }

    /// Makes the float32 copy, where one will be used and kept.
    pub(crate) fn warm(&self) -> mlx::Result<()> {
        if self.keep_dense && self.dense_is_faster {
            self.dense()?;
        }
        Ok(())
    }

    /// The weight as float32, not kept.
    pub(crate) fn widened(&self) -> mlx::Result<Array> {
        match &self.stored {
            Stored::Float(w) if w.dtype() == Dtype::Float32 => Ok(w.clone()),
            Stored::Float(w) => w.as_dtype(Dtype::Float32).context("widening a weight"),
            Stored::Packed(p) => p.dequantize()?.as_dtype(Dtype::Float32).context("widening a weight"),
        }
    }

    /// Multiplies a float32 copy for any number of rows, where that is faster at all: the way back through a
    /// quantised product is slow on a CPU.
    pub(crate) fn for_training(&mut self) {
        self.few_rows = 0;
    }

    /// Rounds a quantised weight to float16 and forgets the quantised one.
    pub(crate) fn round_to_float16(&mut self) -> mlx::Result<()> {
        if let Stored::Packed(p) = &self.stored {
            let w = p.dequantize()?.as_dtype(Dtype::Float16).context("rounding a weight")?;
            mlx::eval([&w])?;
            self.stored = Stored::Float(w);
            self.drop_dense();
        }
        Ok(())
    }

    /// `x Wᵀ`: [.., cols] to [.., rows].
    pub(crate) fn apply(&self, x: &Array) -> mlx::Result<Array> {
        let rows = x.size() / self.cols.max(1);
        match &self.stored {
            Stored::Packed(p) if rows <= self.few_rows || !self.dense_is_faster => p.matmul(x),
            _ => x.matmul(self.dense()?.transpose()?).context("projection"),
        }
    }

    /// Rows by index (int32, checked by the caller), float32: [.., cols].
    pub(crate) fn lookup(&self, index: &Array) -> mlx::Result<Array> {
        let rows = match &self.stored {
            Stored::Float(w) => w.take_axis(index, 0)?,
            Stored::Packed(p) => p.rows(index)?.dequantize()?,
        };
        rows.as_dtype(Dtype::Float32).context("embedding")
    }

    /// Gives a kept copy back.
    pub(crate) fn drop_dense(&mut self) {
        self.dense = OnceCell::new();
    }

    /// Bytes as stored, and of the copy.
    pub(crate) fn nbytes(&self) -> (u64, u64) {
        let stored = match &self.stored {
            Stored::Float(w) => w.nbytes(),
            Stored::Packed(p) => p.arrays().map(Array::nbytes).sum(),
        };
        (stored as u64, self.dense.get().map_or(0, |w| w.nbytes() as u64))
    }
}

/// A projection with its bias, its factors when it sleeps, and what packs add to it.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Array>,
    factors: Option<Factors>,
    pub(crate) added: Option<Added>,
}

impl Linear {
    pub(crate) fn new(weight: Weight, bias: Option<Array>) -> Linear {
        Linear { weight, bias, factors: None, added: None }
    }

    /// `x` [.., cols] to [.., rows].
    pub(crate) fn apply(&self, x: &Array) -> mlx::Result<Array> {
        let y = match &self.factors {
            None => self.weight.apply(x)?,
            Some(f) => x.matmul(f.b.transpose()?)?.matmul(f.a.transpose()?).context("low-rank projection")?,
        };
        let y = match &self.added {
            None => y,
            Some(added) => added.apply(x, &y)?,
        };
        match &self.bias {
            None => Ok(y),
            Some(b) => y.add(b).context("adding a bias"),
        }
    }

    pub(crate) fn factors(&self) -> Option<&Factors> {
        self.factors.as_ref()
    }

    /// Puts factors in the weight's place, or takes them away. The float32 copy is not needed meanwhile.
    pub(crate) fn set_factors(&mut self, factors: Option<Factors>) {
        if factors.is_some() {
            self.weight.drop_dense();
        }
        self.factors = factors;
    }
}
