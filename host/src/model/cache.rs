//! Keys and values of past positions, per layer: a row for each sequence, rows of any length.
//!
//! New positions are written in place, so a token costs its own size and not a copy of the past. Room that was
//! [reserved](KvCache::reserve) is there from the beginning; without, it doubles, so that copying is a constant share of
//! the work. Memory that no position was written to is not touched.
//!
//! After an error in a pass the cache is empty.

use crate::mlx::decode::{Attention, Held, Place, cached_attention};
use crate::mlx::{self, Array};

/// Room grows by multiples of this many positions.
const STEP: i32 = 64;

/// Most positions that are reserved beyond those needed at once: long answers are seldom as long as they may be.
const RESERVE: i32 = 4096;

/// Keys and values of one layer.
#[derive(Debug, Default)]
pub struct LayerCache {
    held: Option<Held>,
    /// Positions in each row.
    lengths: Vec<i32>,
    /// Rows that the next pass goes on with, in its order.
    rows: Vec<i32>,
    /// Positions to make room for.
    reserve: i32,
}

impl LayerCache {
    /// Positions held by the longest of the chosen rows.
    pub fn len(&self) -> usize {
        let of = |r: &i32| self.lengths.get(*r as usize).copied().unwrap_or(0);
        self.rows.iter().map(of).max().unwrap_or(0) as usize
    }

    /// Whether the chosen rows hold nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Runs `f`, which appends `t` new positions to each of `b` sequences, with the cache and the place for them.
    /// An empty cache of no known size gets `b` rows.
    ///
    /// # Errors
    /// Those of `f`; the cache is empty then.
    pub(crate) fn step<T>(
        &mut self,
        (b, t): (i32, i32),
        (kv_heads, head_dim): (i32, i32),
        f: impl FnOnce(Held, Place) -> mlx::Result<(T, Held)>,
    ) -> mlx::Result<T> {
        if self.lengths.is_empty() {
            self.lengths = vec![0; b as usize];
            self.rows = (0..b).collect();
        }
        let held = match self.held.take() {
            Some(held) => held,
            None => Held::empty(self.lengths.len() as i32, kv_heads, head_dim)?,
        };
        let capacity = self.capacity(held.capacity(), self.len() as i32 + t);
        match f(held, Place { rows: &self.rows, past: &self.lengths, capacity }) {
            Ok((y, held)) => {
                self.held = Some(held);
                for r in &self.rows {
                    if let Some(n) = self.lengths.get_mut(*r as usize) {
                        *n += t;
                    }
                }
                Ok(y)
            }
            Err(e) => {
                self.lengths.fill(0);
                Err(e)
            }
        }
    }

    /// Room for `needed` positions, where there is room for `had`.
    fn capacity(&self, had: i32, needed: i32) -> i32 {
        if needed <= had {
            return had;
        }
        let wanted = self.reserve.min(needed.saturating_add(RESERVE)).max(needed);
        // Doubling stops at what was reserved: no more will come.
        let doubled =
            if self.reserve >= needed { had.saturating_mul(2).min(self.reserve) } else { had.saturating_mul(2) };
        let room = wanted.max(doubled);
        room.checked_add(STEP - 1).map_or(room, |r| r / STEP * STEP)
    }

    /// Splits `q` [B, T, H·d], `k`, `v` [B, T, Hkv·d] into heads, appends k and v and answers the attention [B, T, H·d].
    ///
    /// # Errors
    /// When the shapes disagree with what is held.
    pub(crate) fn attend(
        &mut self,
        q: &Array,
        k: &Array,
        v: &Array,
        kv: (i32, i32),
        how: &Attention,
    ) -> mlx::Result<Array> {
        self.step((q.dim(0), q.dim(1)), kv, |held, place| cached_attention(q, k, v, held, place, how))
    }

    fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.held.iter().flat_map(|h| [&h.keys, &h.values])
    }
}

/// The caches of all layers.
#[derive(Debug)]
pub struct KvCache {
    /// One per layer.
    pub layers: Vec<LayerCache>,
}

impl KvCache {
    /// Empty caches for `layers` layers; the first pass says for how many sequences.
    pub fn new(layers: usize) -> KvCache {
        KvCache { layers: (0..layers).map(|_| LayerCache::default()).collect() }
    }

    /// Empty caches for `rows` sequences, all chosen.
    pub fn with_rows(layers: usize, rows: usize) -> KvCache {
        let mut cache = KvCache::new(layers);
        for l in &mut cache.layers {
            l.lengths = vec![0; rows];
            l.rows = (0..rows as i32).collect();
        }
        cache
    }

    /// Chooses the rows that the next passes go on with, in the order of their sequences.
    pub fn select(&mut self, rows: &[usize]) {
        for l in &mut self.layers {
            l.rows.clear();
            l.rows.extend(rows.iter().map(|r| *r as i32));
        }
    }

    /// Forgets what a row holds; its room is kept for another sequence.
    pub fn clear(&mut self, row: usize) {
        for l in &mut self.layers {
            if let Some(n) = l.lengths.get_mut(row) {
                *n = 0;
            }
        }
    }

    /// Says how many positions a row will hold at most, so that it need not grow. No promise: more may come.
    pub fn reserve(&mut self, positions: usize) {
        for l in &mut self.layers {
            l.reserve = i32::try_from(positions).unwrap_or(i32::MAX);
        }
    }

    /// Positions held by the longest of the chosen rows.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Whether the chosen rows hold nothing.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_reserved_within_reason_and_doubles_otherwise() {
        let of = |reserve, had, needed| LayerCache { reserve, ..LayerCache::default() }.capacity(had, needed);
        assert_eq!(of(0, 0, 1), 64);
        assert_eq!(of(0, 64, 64), 64);
        assert_eq!(of(0, 64, 65), 128);
        assert_eq!(of(0, 640, 641), 1280);
        assert_eq!(of(300, 0, 40), 320);
        assert_eq!(of(1_000_000, 0, 40), 4160);
        // What comes against the promise gets its room too, and at the end of a promise there is no more than that.
        assert_eq!(of(300, 320, 321), 640);
        assert_eq!(of(5000, 4160, 4161), 5056);
        assert_eq!(of(0, i32::MAX - 5, i32::MAX - 1), i32::MAX);
    }
}
