//! One projection: its weight in the form the checkpoint has it, or low-rank factors in its place.
//!
//! `y = x Wᵀ + b`. A quantised weight is multiplied as it is: the kernels of [`crate::mlx::project`] decode it on the
//! way, and MLX's on GPUs do too. What sleeps is put aside and never changed, so that outputs after sleeping and
//! waking are those from before, bit for bit.

use super::ladder::{self, Ladder, Level, Part};
use super::pivot::Pivoted;
use crate::mlx::project::{Operand, Projection, Thin};
use crate::mlx::quant::{Packed, Scheme};
use crate::mlx::{self, Array, Context, Dtype};

/// Low-rank stand-in for a slice: `y = (x Bᵀ) Aᵀ (+ bias)`.
#[derive(Clone, Debug)]
pub struct Factors {
    /// [rows, r] float32.
    pub a: Array,
    /// [r, cols] float32.
    pub b: Array,
}

impl Factors {
    fn thin(&self) -> Thin<'_> {
        Thin { a: Operand::Float(&self.a), b: Operand::Float(&self.b) }
    }

    /// A · B: [rows, cols].
    pub(crate) fn product(&self) -> mlx::Result<Array> {
        self.a.matmul(&self.b).context("multiplying factors out")
    }

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
}

/// A weight as the checkpoint has it.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    /// float32, float16 or bfloat16 [rows, cols].
    Float(Array),
    /// Quantised.
    Packed(Packed),
    /// Rows of its own and coefficients.
    Pivoted(Pivoted),
    /// Not in memory: components stand in its place.
    Absent,
}

/// A matrix [rows, cols] of the base.
#[derive(Debug)]
pub(crate) struct Weight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    stored: Stored,
}

impl Weight {
    pub(crate) fn new(stored: Stored, rows: usize, cols: usize) -> Weight {
        Weight { rows, cols, stored }
    }

    /// The quantised weight; `None` for floats.
    pub(crate) fn packed(&self) -> Option<&Packed> {
        match &self.stored {
            Stored::Packed(p) => Some(p),
            Stored::Float(_) | Stored::Pivoted(_) | Stored::Absent => None,
        }
    }

    /// How the checkpoint quantises it; `None` for floats.
    pub(crate) fn scheme(&self) -> Option<Scheme> {
        match &self.stored {
            Stored::Packed(p) => Some(p.scheme),
            Stored::Float(_) | Stored::Pivoted(_) | Stored::Absent => None,
        }
    }

    /// The weight as float32, not kept.
    pub(crate) fn widened(&self) -> mlx::Result<Array> {
        match &self.stored {
            Stored::Float(w) if w.dtype() == Dtype::Float32 => Ok(w.clone()),
            Stored::Float(w) => w.as_dtype(Dtype::Float32).context("widening a weight"),
            Stored::Packed(p) => p.dequantize()?.as_dtype(Dtype::Float32).context("widening a weight"),
            Stored::Pivoted(p) => p.product(),
            Stored::Absent => Err(absent()),
        }
    }

    /// Rounds a quantised weight to float16 and forgets the quantised one.
    pub(crate) fn round_to_float16(&mut self) -> mlx::Result<()> {
        if let Stored::Packed(p) = &self.stored {
            let w = p.dequantize()?.as_dtype(Dtype::Float16).context("rounding a weight")?;
            mlx::eval([&w])?;
            self.stored = Stored::Float(w);
        }
        Ok(())
    }

    /// `x Wᵀ`: [.., cols] to [.., rows].
    pub(crate) fn apply(&self, x: &Array) -> mlx::Result<Array> {
        match &self.stored {
            Stored::Pivoted(p) => p.apply(x),
            _ => Projection { base: self.operand(), ..Projection::default() }.apply(x, None),
        }
    }

    /// How the kernels read it; `None` where it is no one matrix.
    pub(crate) fn operand(&self) -> Option<Operand<'_>> {
        match &self.stored {
            Stored::Float(w) => Some(Operand::Float(w)),
            Stored::Packed(p) => Some(Operand::Packed(p)),
            Stored::Pivoted(_) | Stored::Absent => None,
        }
    }

    /// Rows by index (int32, checked by the caller), float32: [.., cols].
    pub(crate) fn lookup(&self, index: &Array) -> mlx::Result<Array> {
        let rows = match &self.stored {
            Stored::Float(w) => w.take_axis(index, 0)?,
            Stored::Packed(p) => p.rows(index)?.dequantize()?,
            Stored::Pivoted(p) => p.product()?.take_axis(index, 0)?,
            Stored::Absent => return Err(absent()),
        };
        rows.as_dtype(Dtype::Float32).context("embedding")
    }

    /// Whether it is not in memory.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self.stored, Stored::Absent)
    }

    /// Whether it is rows of its own and coefficients.
    pub(crate) fn is_pivoted(&self) -> bool {
        matches!(self.stored, Stored::Pivoted(_))
    }

    /// Bytes as stored.
    pub(crate) fn nbytes(&self) -> u64 {
        let stored = match &self.stored {
            Stored::Float(w) => w.nbytes(),
            Stored::Packed(p) => p.arrays().map(Array::nbytes).sum(),
            Stored::Pivoted(p) => p.arrays().into_iter().map(Array::nbytes).sum(),
            Stored::Absent => 0,
        };
        stored as u64
    }
}

fn absent() -> mlx::MlxError {
    let exception = mlx_rs::error::Exception::custom("only components of this slice are in memory");
    mlx::MlxError { what: "a dense weight".into(), exception }
}

/// A projection with its bias, its factors when it sleeps, and what packs add to it.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Array>,
    /// Components of an elastic checkpoint.
    ladder: Option<Ladder>,
    /// Those of them that are awake; `None` while the weight itself runs alone.
    part: Option<Part>,
    factors: Option<Factors>,
    pub(crate) added: Option<Added>,
}

impl Linear {
    pub(crate) fn new(weight: Weight, bias: Option<Array>) -> Linear {
        Linear { weight, bias, ladder: None, part: None, factors: None, added: None }
    }

    /// The same with components, of which none is awake yet.
    pub(crate) fn with_ladder(self, ladder: Option<Ladder>) -> Linear {
        Linear { ladder, ..self }
    }

    /// `x` [.., cols] to [.., rows], plus `residual` of the result's shape.
    pub(crate) fn apply(&self, x: &Array, residual: Option<&Array>) -> mlx::Result<Array> {
        self.apply_with(None, x, residual)
    }

    /// The same with `more` factors on top.
    pub(crate) fn apply_with(&self, more: Option<Thin>, x: &Array, residual: Option<&Array>) -> mlx::Result<Array> {
        let mut factors = Vec::with_capacity(3);
        if let Some(p) = self.projection(more, &mut factors) {
            return p.apply(x, residual);
        }
        let y = self.onto(self.weight.apply(x)?, x, residual)?;
        match more {
            None => Ok(y),
            Some(more) => Projection { factors: &[more], ..Projection::default() }.apply(x, Some(&y)),
        }
    }

    /// All of it as one operation; `None` for a weight that is not one matrix. `factors` is where its factors go.
    pub(crate) fn projection<'a>(
        &'a self,
        more: Option<Thin<'a>>,
        factors: &'a mut Vec<Thin<'a>>,
    ) -> Option<Projection<'a>> {
        let base = self.weight.operand();
        if self.weight_runs() && base.is_none() {
            return None;
        }
        factors.extend(self.factors.as_ref().map(Factors::thin).or(self.part.as_ref().map(Part::thin)));
        factors.extend(self.added.as_ref().map(|a| a.factors.thin()));
        factors.extend(more);
        Some(Projection {
            base: base.filter(|_| self.weight_runs()),
            factors,
            gain: self.added.as_ref().and_then(|a| a.gain.as_ref()),
            bias: self.bias.as_ref(),
        })
    }

    /// What comes on top of a weight that multiplied in its own way.
    fn onto(&self, y: Array, x: &Array, residual: Option<&Array>) -> mlx::Result<Array> {
        let what = "adding a pack";
        let y = match &self.added {
            None => y,
            Some(a) => {
                let factors = &[a.factors.thin()];
                let y = Projection { factors, ..Projection::default() }.apply(x, Some(&y))?;
                a.gain.as_ref().map_or(Ok(y.clone()), |g| y.multiply(g)).context(what)?
            }
        };
        self.bias.iter().chain(residual).try_fold(y, |y, more| y.add(more)).context(what)
    }

    /// Whether the weight itself multiplies: no factors stand in its place.
    fn weight_runs(&self) -> bool {
        self.factors.is_none() && (self.part.is_none() || self.repairs())
    }

    /// The components that are awake.
    pub(crate) fn part(&self) -> Option<&Part> {
        self.part.as_ref()
    }

    fn repairs(&self) -> bool {
        self.ladder.as_ref().is_some_and(|l| l.repairs)
    }

    /// The weight that runs where no factors stand in for it, float32 [rows, cols], not kept.
    pub(crate) fn widened(&self) -> mlx::Result<Array> {
        match &self.part {
            None => self.weight.widened(),
            Some(part) if self.repairs() => self.weight.widened()?.add(part.product()?).context("repairing a weight"),
            Some(part) => part.product(),
        }
    }

    /// How the checkpoint quantises the weight that runs; `None` for floats and components.
    pub(crate) fn scheme(&self) -> Option<Scheme> {
        if self.part.is_some() { None } else { self.weight.scheme() }
    }

    /// What the checkpoint stores of it; `None` where that is the weight alone.
    pub(crate) fn stored(&self) -> Option<ladder::Stored> {
        let l = self.ladder.as_ref()?;
        let dense = !l.repairs && !self.weight.is_absent();
        Some(ladder::Stored { rank: l.rank(), repairs: l.repairs, dense })
    }

    /// How much is awake; `None` for a slice without components.
    pub(crate) fn level(&self) -> Option<Level> {
        self.ladder.as_ref()?;
        Some(self.part.as_ref().map_or(Level::Dense, |p| Level::Rank(p.rank())))
    }

    /// Wakes so many components and puts the others to sleep. The caller has checked that they are there.
    pub(crate) fn set_level(&mut self, level: Level) -> mlx::Result<()> {
        let Some(ladder) = &self.ladder else { return Ok(()) };
        self.part = match level {
            Level::Dense => None,
            Level::Rank(r) => Some(ladder.first(r)?),
        };
        Ok(())
    }

    /// Bytes of components in memory.
    pub(crate) fn ladder_bytes(&self) -> u64 {
        self.ladder.as_ref().map_or(0, Ladder::nbytes)
    }

    pub(crate) fn factors(&self) -> Option<&Factors> {
        self.factors.as_ref()
    }

    /// Puts factors in the weight's place, or takes them away.
    pub(crate) fn set_factors(&mut self, factors: Option<Factors>) {
        self.factors = factors;
    }
}
