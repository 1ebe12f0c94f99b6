//! Keys and values of past positions, per layer.
//!
//! Grown in steps of [`STEP`] positions and written in place, so a new token costs its own size and
//! not a copy of the past.

use crate::mlx::{self, Array, Context};
use mlx_rs::ops::indexing::{TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{concatenate, zeros_dtype};

/// Positions that are added at once.
const STEP: i32 = 256;

/// Keys and values of one layer: [B, Hkv, capacity, d], the first `len` positions filled.
#[derive(Debug, Default)]
pub struct LayerCache {
    kv: Option<(Array, Array)>,
    len: i32,
}

impl LayerCache {
    /// Number of positions held.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends `k`, `v` [B, Hkv, T, d]; answers all positions so far.
    ///
    /// # Errors
    /// When the shapes disagree with what is held.
    pub fn append(&mut self, k: &Array, v: &Array) -> mlx::Result<(Array, Array)> {
        let what = "growing the cache";
        let end = self.len + k.dim(2);
        let (mut ks, mut vs) = match self.kv.take() {
            Some(kv) if kv.0.dim(2) >= end => kv,
            held => {
                let room = (end - held.as_ref().map_or(0, |kv| kv.0.dim(2)) + STEP - 1) / STEP * STEP;
                let grow = |old: Option<Array>, new: &Array| {
                    let zeros = zeros_dtype(&[new.dim(0), new.dim(1), room, new.dim(3)], new.dtype())?;
                    match old {
                        Some(old) => concatenate(&[old, zeros], 2),
                        None => Ok(zeros),
                    }
                };
                let (ks, vs) = held.map_or((None, None), |(k, v)| (Some(k), Some(v)));
                (grow(ks, k).context(what)?, grow(vs, v).context(what)?)
            }
        };
        ks.try_index_mut((.., .., self.len..end, ..), k).context(what)?;
        vs.try_index_mut((.., .., self.len..end, ..), v).context(what)?;
        self.len = end;
        let upto = |a: &Array| if a.dim(2) == end { Ok(a.clone()) } else { a.try_index((.., .., ..end, ..)) };
        let all = (upto(&ks).context(what)?, upto(&vs).context(what)?);
        self.kv = Some((ks, vs));
        Ok(all)
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.kv.iter().flat_map(|(k, v)| [k, v])
    }
}

/// The caches of all layers.
#[derive(Debug)]
pub struct KvCache {
    /// One per layer.
    pub layers: Vec<LayerCache>,
}

impl KvCache {
    /// Empty caches for `layers` layers.
    pub fn new(layers: usize) -> KvCache {
        KvCache { layers: (0..layers).map(|_| LayerCache::default()).collect() }
    }

    /// Number of positions held.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Evaluates what is held, so that the graph behind it is let go.
    ///
    /// # Errors
    /// Whatever MLX reports from the computation.
    pub fn eval(&self) -> mlx::Result<()> {
        mlx::eval(self.layers.iter().flat_map(LayerCache::arrays))
    }
}
