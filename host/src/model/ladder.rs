//! A slice stored as a ladder of components: any first few of them are a smaller slice.
//!
//! An elastic checkpoint holds, for `y = W x` with W [rows, cols], components aᵢ bᵢᵀ in the order of what they are
//! worth, a as [R, rows] and b as [R, cols], one component a row. The first r are a contiguous part of both, so a
//! slice changes its rank by looking at another part of the same memory: nothing is copied, nothing is allocated.
//! Components either stand in the weight's place (`<slice>.ladder.a`, `.b`) or repair a coarser weight that is
//! stored beside them (`<slice>.repair.a`, `.b`). How many are awake is written in `elastic.json` ([`super::awake`]).
//!
//! Fails only where MLX does: who asks for components has checked that they are there.

use super::linear::Factors;
use crate::mlx::project::{Operand, Thin};
use crate::mlx::quant::Packed;
use crate::mlx::{self, Array, Context, Dtype};
use mlx_rs::ops::indexing::TryIndexOp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The file beside the weights of an elastic checkpoint that says how much of them is awake.
pub const MANIFEST: &str = "elastic.json";

/// How much of a slice is awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The stored weight itself.
    Dense,
    /// The first components of its ladder, so many; on top of the coarse weight where they repair one.
    Rank(u32),
}

/// Levels by the names of slices.
pub type Levels = BTreeMap<String, Level>;

/// What a checkpoint stores of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Components in memory.
    pub rank: u32,
    /// Whether the components repair a coarser weight, instead of standing in its place.
    pub repairs: bool,
    /// Whether the dense weight is in memory as well, for [`Level::Dense`].
    pub dense: bool,
}

/// Vectors of components, one a row, as they are stored: [R, width].
#[derive(Clone, Debug)]
pub(crate) enum Vectors {
    /// float32, float16 or bfloat16.
    Float(Array),
    /// Quantised, in the mode affine.
    Packed(Packed),
}

impl Vectors {
    fn count(&self) -> i32 {
        match self {
            Vectors::Float(a) => a.dim(0),
            Vectors::Packed(p) => p.codes.dim(0),
        }
    }

    pub(crate) fn arrays(&self) -> Vec<&Array> {
        match self {
            Vectors::Float(a) => vec![a],
            Vectors::Packed(p) => p.arrays().collect(),
        }
    }

    /// The first `n`, as views.
    pub(crate) fn first(&self, n: i32) -> mlx::Result<Vectors> {
        let first = match self {
            _ if n == self.count() => self.clone(),
            Vectors::Float(a) => Vectors::Float(a.try_index(..n).context("choosing components")?),
            Vectors::Packed(p) => Vectors::Packed(p.first(n)?),
        };
        mlx::eval(first.arrays())?;
        Ok(first)
    }

    /// The same in memory of its own: what it was a view of can go.
    pub(crate) fn contiguous(&self) -> mlx::Result<Vectors> {
        let own = |a: &Array| a.contiguous().context("keeping components");
        let kept = match self {
            Vectors::Float(a) => Vectors::Float(own(a)?),
            Vectors::Packed(p) => Vectors::Packed(Packed {
                codes: own(&p.codes)?,
                scales: own(&p.scales)?,
                biases: p.biases.as_ref().map(own).transpose()?,
                scheme: p.scheme,
            }),
        };
        mlx::eval(kept.arrays())?;
        Ok(kept)
    }

    fn widened(&self) -> mlx::Result<Array> {
        match self {
            Vectors::Float(a) => a.as_dtype(Dtype::Float32).context("widening components"),
            Vectors::Packed(p) => p.dequantize(),
        }
    }
}

/// Components of a slice in memory.
#[derive(Clone, Debug)]
pub(crate) struct Ladder {
    /// Left vectors [R, rows].
    a: Vectors,
    /// Right vectors [R, cols].
    b: Vectors,
    pub(crate) repairs: bool,
}

impl Ladder {
    pub(crate) fn new(a: Vectors, b: Vectors, repairs: bool) -> Ladder {
        Ladder { a, b, repairs }
    }

    pub(crate) fn rank(&self) -> u32 {
        self.a.count() as u32
    }

    pub(crate) fn nbytes(&self) -> u64 {
        self.a.arrays().into_iter().chain(self.b.arrays()).map(|a| a.nbytes() as u64).sum()
    }

    /// The first `rank` components, as views.
    pub(crate) fn first(&self, rank: u32) -> mlx::Result<Part> {
        let r = rank.min(self.rank()) as i32;
        let (a, b) = (self.a.first(r)?, self.b.first(r)?);
        // Floats are turned round here, as views too.
        let a = match a {
            Vectors::Float(a) => {
                let turned = a.transpose().context("choosing components")?;
                mlx::eval([&turned])?;
                Vectors::Float(turned)
            }
            packed @ Vectors::Packed(_) => packed,
        };
        Ok(Part { a, b })
    }
}

/// Components that are awake.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Floats [rows, r], or quantised as they are stored, [r, rows].
    a: Vectors,
    /// [r, cols].
    b: Vectors,
}

impl Part {
    pub(crate) fn rank(&self) -> u32 {
        self.b.count() as u32
    }

    pub(crate) fn thin(&self) -> Thin<'_> {
        let a = match &self.a {
            Vectors::Float(a) => Operand::Float(a),
            Vectors::Packed(p) => Operand::Components(p),
        };
        let b = match &self.b {
            Vectors::Float(b) => Operand::Float(b),
            Vectors::Packed(p) => Operand::Packed(p),
        };
        Thin { a, b }
    }

    /// The same in float32.
    pub(crate) fn factors(&self) -> mlx::Result<Factors> {
        let a = self.a.widened()?;
        let a = match &self.a {
            Vectors::Float(_) => a,
            Vectors::Packed(_) => a.transpose().context("widening components")?,
        };
        Ok(Factors { a, b: self.b.widened()? })
    }

    /// What they add up to: float32 [rows, cols].
    pub(crate) fn product(&self) -> mlx::Result<Array> {
        self.factors()?.product()
    }
}
