//! How long the slices of a model take factored, beside the same slices dense and as the checkpoint has them.
//!
//! Slices of one shape are measured together: each product of a sample reads another slice's weight, as the layers of a
//! model do, so that a weight larger than the processor's caches is read from memory. All forms go the model's own way
//! through a projection. Factors and dense weight are both float32 or both quantised in 8 bits, and the factors hold
//! random numbers: how long a product takes does not depend on them. Fails where MLX fails.

use super::decoder::Model;
use super::error::Result;
use super::ladder::{Ladder, Level, Vectors};
use super::linear::{Factors, Linear, Stored, Weight};
use crate::mlx::quant::Packed;
use crate::mlx::{self, Array, Context, Dtype};
use mlx_rs::random;
use serde::Serialize;
use std::time::Instant;

/// Bytes of dense weights in memory at once; a single slice may be larger.
const WEIGHTS: usize = 256 << 20;
/// Weights that share a scale in 8 bits.
const GROUP: u32 = 64;
/// Bytes of outputs that are evaluated together.
const OUTPUTS: usize = 4 << 20;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Parameters of the factors, as a share of the slice's own.
    pub share: f64,
    /// Rows of the input, each measured.
    pub rows: Vec<u32>,
    /// Rounds, in which every form takes its turn.
    pub rounds: usize,
}

/// Times of one form: microseconds a slice, one number a round.
pub type Rounds = Vec<f64>;

/// Times with so many rows of input.
#[derive(Clone, Debug, Serialize)]
pub struct Times {
    /// Rows of the input.
    pub rows: u32,
    /// Dense, float32.
    pub dense_us: Rounds,
    /// In factors, float32.
    pub factored_us: Rounds,
    /// Dense, 8 bits; empty where rows or columns do not divide into groups, as the next.
    pub dense_8bit_us: Rounds,
    /// In factors, 8 bits.
    pub factored_8bit_us: Rounds,
    /// As the checkpoint has it.
    pub stored_us: Rounds,
}

/// The slices of one shape.
#[derive(Clone, Debug, Serialize)]
pub struct Shape {
    /// What they are, such as `gate_proj`.
    pub kinds: Vec<String>,
    /// Outputs.
    pub m: u32,
    /// Inputs.
    pub n: u32,
    /// Rank of the factors: the largest whose parameters stay within the share, at least 1.
    pub rank: u32,
    /// Slices of this shape in the model.
    pub count: usize,
    /// Those of them that were measured.
    pub measured: usize,
    /// How the checkpoint has them, such as `4 bits, groups of 32`.
    pub stored_as: String,
    /// Times, by rows.
    pub times: Vec<Times>,
}

/// The largest rank whose factors have at most `share` of the m n parameters, at least 1.
pub fn rank(m: u32, n: u32, share: f64) -> u32 {
    let (m, n) = (f64::from(m), f64::from(n));
    ((share * m * n / (m + n)) as u32).max(1)
}

/// Measures the slices of every shape. `go_on` is asked before each round; `None` when it answered no.
///
/// # Errors
/// When MLX fails.
pub fn measure(model: &Model, plan: &Plan, go_on: &mut dyn FnMut() -> bool) -> Result<Option<Vec<Shape>>> {
    let mut found = Vec::new();
    for (mut shape, slices) in shapes(model, plan.share) {
        let forms = forms(model, &slices, &shape)?;
        for rows in &plan.rows {
            let Some(times) = timed(&forms, &shape, *rows, plan.rounds, go_on)? else { return Ok(None) };
            shape.times.push(times);
        }
        found.push(shape);
    }
    Ok(Some(found))
}

/// Every shape with the slices to measure, spread over the layers.
fn shapes(model: &Model, share: f64) -> Vec<(Shape, Vec<usize>)> {
    let mut found: Vec<(Shape, Vec<usize>)> = Vec::new();
    for (i, s) in model.slices().iter().enumerate() {
        if let Some((shape, slices)) = found.iter_mut().find(|(f, _)| (f.m, f.n) == (s.rows, s.cols)) {
            if !shape.kinds.contains(&s.kind) {
                shape.kinds.push(s.kind.clone());
            }
            slices.push(i);
            continue;
        }
        let stored_as = model.scheme(i).map_or("as it is".into(), |s| s.to_string());
        let (m, n, rank) = (s.rows, s.cols, rank(s.rows, s.cols, share));
        let (kinds, times) = (vec![s.kind.clone()], Vec::new());
        found.push((Shape { kinds, m, n, rank, count: 0, measured: 0, stored_as, times }, vec![i]));
    }
    for (shape, slices) in &mut found {
        let fit = (WEIGHTS / (4 * shape.m as usize * shape.n as usize).max(1)).clamp(1, slices.len());
        shape.count = slices.len();
        shape.measured = fit;
        *slices = (0..fit).filter_map(|k| slices.get(k * slices.len() / fit).copied()).collect();
    }
    found
}

/// The slices in one form.
type Form<'a> = Vec<Box<dyn Fn(&Array) -> mlx::Result<Array> + 'a>>;

/// Dense and factored in float32, the same in 8 bits, and stored.
fn forms<'a>(model: &'a Model, slices: &[usize], shape: &Shape) -> Result<[Form<'a>; 5]> {
    let (m, n, r) = (shape.m as usize, shape.n as usize, shape.rank as usize);
    let plain = |stored| Linear::new(Weight::new(stored, m, n), None);
    let packed = |w: &Array| Packed::affine(w, 8, GROUP, Dtype::Float16);
    let mut forms: [Form; 5] = Default::default();
    let [dense, factored, dense_8bit, factored_8bit, stored] = &mut forms;
    for slice in slices {
        let w = model.dense_weight(*slice)?;
        let (left, b) = (drawn(r, shape.m, 2 * slice)?, drawn(r, shape.n, 2 * slice + 1)?);
        if shape.m.is_multiple_of(GROUP) && shape.n.is_multiple_of(GROUP) {
            let whole = plain(Stored::Packed(packed(&w)?));
            let ladder = Ladder::new(Vectors::Packed(packed(&left)?), Vectors::Packed(packed(&b)?), false);
            let mut low_rank = plain(Stored::Absent).with_ladder(Some(ladder));
            low_rank.set_level(Level::Rank(shape.rank))?;
            dense_8bit.push(Box::new(move |x| whole.apply(x, None)));
            factored_8bit.push(Box::new(move |x| low_rank.apply(x, None)));
        }
        let a = left.transpose().and_then(|a| a.contiguous()).context("turning factors")?;
        mlx::eval([&a])?;
        let mut low_rank = plain(Stored::Absent);
        low_rank.set_factors(Some(Factors { a, b }));
        let whole = plain(Stored::Float(w));
        dense.push(Box::new(move |x| whole.apply(x, None)));
        factored.push(Box::new(move |x| low_rank.apply(x, None)));
        let own = model.linear(*slice);
        stored.push(Box::new(move |x| own.apply(x, None)));
    }
    Ok(forms)
}

/// Random numbers [rows, cols] of variance 1 / cols.
fn drawn(rows: usize, cols: u32, seed: usize) -> Result<Array> {
    let what = "drawing factors";
    let key = random::key(seed as u64).context(what)?;
    let deviation = (1.0 / f64::from(cols)).sqrt() as f32;
    let x = random::normal::<f32>(&[rows as i32, cols as i32], None, deviation, Some(&key)).context(what)?;
    mlx::eval([&x])?;
    Ok(x)
}

/// The times of all forms.
fn timed(
    forms: &[Form; 5],
    shape: &Shape,
    rows: u32,
    rounds: usize,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Times>> {
    let x = drawn(rows as usize, shape.n, rows as usize)?;
    let together = (OUTPUTS / (4 * rows as usize * shape.m as usize).max(1)).max(1);
    let sample = |form: &Form| -> Result<f64> {
        let start = Instant::now();
        for part in form.chunks(together) {
            let outputs = part.iter().map(|f| f(&x)).collect::<mlx::Result<Vec<_>>>()?;
            mlx::eval(&outputs)?;
        }
        Ok(1e6 * start.elapsed().as_secs_f64() / form.len().max(1) as f64)
    };
    let mut times: [Rounds; 5] = Default::default();
    // The first round pays for memory, copies and threads.
    for round in 0..=rounds {
        if !go_on() {
            return Ok(None);
        }
        for (form, times) in forms.iter().zip(&mut times) {
            let sample = sample(form)?;
            if round > 0 && !form.is_empty() {
                times.push(sample);
            }
        }
    }
    let [dense_us, factored_us, dense_8bit_us, factored_8bit_us, stored_us] = times;
    Ok(Some(Times { rows, dense_us, factored_us, dense_8bit_us, factored_8bit_us, stored_us }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_stays_within_its_share() {
        assert_eq!(rank(1536, 576, 0.6), 251);
        for (m, n) in [(576, 576), (192, 576), (1536, 576), (3, 5)] {
            let r = u64::from(rank(m, n, 0.6));
            let (m, n) = (u64::from(m), u64::from(n));
            assert!(10 * r * (m + n) <= 6 * m * n && 10 * (r + 1) * (m + n) > 6 * m * n, "{m} {n} {r}");
        }
        assert_eq!(rank(2, 2, 0.1), 1);
    }
}
