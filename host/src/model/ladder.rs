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
use crate::mlx::{self, Array, Context};
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

/// Components of a slice in memory.
#[derive(Clone, Debug)]
pub(crate) struct Ladder {
    /// Left vectors, float32 [R, rows].
    a: Array,
    /// Right vectors, float32 [R, cols].
    b: Array,
    pub(crate) repairs: bool,
}

impl Ladder {
    pub(crate) fn new(a: Array, b: Array, repairs: bool) -> Ladder {
        Ladder { a, b, repairs }
    }

    pub(crate) fn rank(&self) -> u32 {
        self.a.dim(0) as u32
    }

    pub(crate) fn nbytes(&self) -> u64 {
        (self.a.nbytes() + self.b.nbytes()) as u64
    }

    /// The first `rank` components, as views.
    pub(crate) fn first(&self, rank: u32) -> mlx::Result<Factors> {
        let what = "choosing components";
        let r = rank.min(self.rank()) as i32;
        let upto = |m: &Array| if r == m.dim(0) { Ok(m.clone()) } else { m.try_index(..r) };
        let a = upto(&self.a).and_then(|a| a.transpose()).context(what)?;
        let b = upto(&self.b).context(what)?;
        mlx::eval([&a, &b])?;
        Ok(Factors { a, b })
    }
}
