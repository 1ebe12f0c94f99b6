//! Which rows are in which batch: every row once an epoch, in an order drawn from the seed, so that a batch
//! follows from its number alone and a training can go on where it stopped.

use super::super::error::{Error, Result};
use crate::eval::data::Window;
use crate::mlx::Array;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Rows in drawn order, without end.
pub struct Batches {
    rows: Vec<Window>,
    size: usize,
    seed: u64,
    /// Order of one epoch.
    epoch: Option<(u64, Vec<usize>)>,
}

/// Token ids and what counts.
pub struct Batch {
    /// [B, T] int32; rows end with padding.
    pub tokens: Array,
    /// Flat [B·T] int32.
    pub targets: Array,
    /// Flat [B·T] float32: 1 where a target counts.
    pub mask: Array,
    /// Targets that count.
    pub counted: usize,
    /// Tokens that run through the model.
    pub run: usize,
}

impl Batches {
    /// Batches of `size` of these rows.
    ///
    /// # Errors
    /// When there are fewer rows than one batch has.
    pub fn new(rows: Vec<Window>, size: usize, seed: u64) -> Result<Batches> {
        match rows.len() >= size {
            true => Ok(Batches { rows, size, seed, epoch: None }),
            false => Err(Error::Other(format!(
                "the training text makes {} row{}, fewer than one batch of {size}: use more text, a shorter --sequence-length, or a smaller --batch-size",
                rows.len(),
                if rows.len() == 1 { "" } else { "s" }
            ))),
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Batch number `n`, from 0.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn get(&mut self, n: u64) -> Result<Batch> {
        let first = n * self.size as u64;
        let chosen: Vec<usize> = (first..first + self.size as u64).map(|i| self.row(i)).collect();
        make(&chosen.iter().map(|&i| &self.rows[i]).collect::<Vec<_>>())
    }

    /// The row at place `i` of the endless order.
    fn row(&mut self, i: u64) -> usize {
        let n = self.rows.len() as u64;
        let epoch = i / n;
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let mut order: Vec<usize> = (0..self.rows.len()).collect();
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch + 1);
            order.shuffle(&mut rng);
            self.epoch = Some((epoch, order));
        }
        self.epoch.as_ref().map_or(0, |(_, order)| order[(i % n) as usize])
    }
}

/// Rows side by side, padded at their ends: what follows a row under causal attention cannot be seen by it.
fn make(rows: &[&Window]) -> Result<Batch> {
    let longest = rows.iter().map(|w| w.tokens.len() - 1).max().unwrap_or(1);
    let (mut tokens, mut targets, mut mask) = (Vec::new(), Vec::new(), Vec::new());
    for w in rows {
        for i in 0..longest {
            let there = i + 1 < w.tokens.len();
            let id = |i: usize| w.tokens.get(i).copied().filter(|_| there).unwrap_or(0) as i32;
            tokens.push(id(i));
            targets.push(id(i + 1));
            let counts = there && w.mask.as_ref().is_none_or(|m| m.get(i) == Some(&true));
            mask.push(f32::from(u8::from(counts)));
        }
    }
    let counted = mask.iter().filter(|m| **m > 0.0).count();
    let flat = [tokens.len() as i32];
    Ok(Batch {
        run: tokens.len(),
        tokens: Array::from_slice(&tokens, &[rows.len() as i32, longest as i32]),
        targets: Array::from_slice(&targets, &flat),
        mask: Array::from_slice(&mask, &flat),
        counted,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn rows(n: usize) -> Vec<Window> {
        (0..n).map(|i| Window { tokens: vec![i as u32; 2 + i % 3], mask: None }).collect()
    }

    #[test]
    fn every_row_comes_once_an_epoch_and_the_order_is_the_seeds() {
        let order = |seed| -> Vec<usize> {
            let mut b = Batches::new(rows(7), 2, seed).unwrap();
            (0..14).map(|i| b.row(i)).collect()
        };
        let a = order(1);
        for epoch in a.chunks(7) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..7).collect::<Vec<_>>());
        }
        assert_ne!(a[..7], a[7..], "another order in the second epoch");
        assert_eq!(a, order(1));
        assert_ne!(a, order(2));
    }

    #[test]
    fn any_batch_can_be_asked_for_first() {
        let mut all = Batches::new(rows(5), 2, 3).unwrap();
        let third = (0..4).map(|n| all.get(n).unwrap()).nth(3).unwrap();
        let again = Batches::new(rows(5), 2, 3).unwrap().get(3).unwrap();
        let ids = |b: &Batch| b.tokens.try_as_slice::<i32>().unwrap().to_vec();
        assert_eq!(ids(&third), ids(&again));
    }

    #[test]
    fn padding_does_not_count() {
        let short = Window { tokens: vec![1, 2], mask: None };
        let long = Window { tokens: vec![3, 4, 5, 6], mask: Some(vec![false, true, true]) };
        let b = make(&[&short, &long]).unwrap();
        assert_eq!(b.tokens.shape(), &[2, 3]);
        assert_eq!(b.mask.try_as_slice::<f32>().unwrap(), &[1.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(b.targets.try_as_slice::<i32>().unwrap(), &[2, 0, 0, 4, 5, 6]);
        assert_eq!((b.counted, b.run), (3, 6));
    }

    #[test]
    fn less_than_a_batch_is_told() {
        let e = Batches::new(rows(1), 2, 0).err().unwrap().to_string();
        assert!(e.contains("makes 1 row, fewer than one batch of 2"), "{e}");
    }
}
