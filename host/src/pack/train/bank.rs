//! What is learned, with what sleeps of it: every component of every adapter, awake or not, and what the
//! optimiser remembers of it.
//!
//! A sleeping component keeps its vectors and its moments in float32 on the side and costs nothing in a batch;
//! waking puts it back as it was. One that was never awake has a random row of B and a zero column of A.

use super::super::error::{Error, Result};
use super::super::format::{Adapter, Matrix};
use super::forward::Live;
use super::optimizer::Memory;
use super::options::Options;
use super::targets::Target;
use crate::mlx::{self, Array, Context};

/// One adapter in training.
#[derive(Clone, Debug)]
pub struct Bank {
    /// Components there can be.
    pub capacity: usize,
    /// Those awake, ascending.
    pub awake: Vec<u32>,
    /// The awake ones: what is trained.
    pub live: Live,
    /// What the optimiser remembers of `live`'s arrays, in their order.
    pub memory: Vec<Memory>,
    /// The sleeping ones, by number.
    asleep: Vec<(u32, Sleeper)>,
}

/// A sleeping component: vectors and moments.
#[derive(Clone, Debug, PartialEq)]
struct Sleeper {
    /// Columns of A, of its first moment, of its second (empty under SGD).
    a: [Vec<f32>; 3],
    /// Rows of B, likewise.
    b: [Vec<f32>; 3],
}

impl Bank {
    /// An adapter that does nothing yet: A is 0, B drawn from N(0, 1 / in), as with mlx-plastic-rank.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn new(o: &Options, t: &Target, capacity: usize, magnitude: Option<Array>) -> Result<Bank> {
        let seed = o.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (t.position as u64 + 1);
        let shape = [capacity as i32, t.cols as i32];
        let b = mlx_rs::random::normal::<f32>(&shape, None, None, Some(&mlx_rs::random::key(seed)?))?;
        let b = b.multiply(Array::from_f32((1.0 / (t.cols as f64).sqrt()) as f32))?;
        let a = mlx_rs::ops::zeros::<f32>(&[t.rows as i32, capacity as i32])?;
        let live = Live { a, b, magnitude };
        let memory = live.arrays().map(|x| Memory::new(x.shape(), o.optimizer)).collect::<Result<_>>()?;
        let mut bank = Bank { capacity, awake: (0..capacity as u32).collect(), live, memory, asleep: Vec::new() };
        if t.rank < capacity {
            bank.set_awake(&(0..t.rank as u32).collect::<Vec<_>>())?;
        }
        Ok(bank)
    }

    /// An adapter that begins as one of a pack; further components are as in [`Bank::new`].
    ///
    /// # Errors
    /// When its shape is another, or it has more components than there is room for.
    pub fn from_adapter(o: &Options, t: &Target, capacity: usize, from: &Adapter) -> Result<Bank> {
        let (rank, scale) = (from.rank(), from.scale());
        if (from.a.rows, from.b.cols) != (t.rows, t.cols) || rank > capacity || rank > t.rank {
            return Err(Error::Other(format!(
                "{}: the pack to begin from has {} outputs, rank {rank} and {} inputs; {} outputs, at most rank {} and {} inputs are trained here",
                t.key, from.a.rows, from.b.cols, t.rows, t.rank, t.cols
            )));
        }
        let magnitude = from.magnitude.as_ref().map(|m| Array::from_slice(m, &[m.len() as i32]));
        let mut bank = Bank::new(o, t, capacity, magnitude)?;
        // The same update under this training's own alpha.
        let ours = t.alpha / t.rank.max(1) as f32;
        let a = from.a.array().multiply(Array::from_f32(scale / ours))?;
        let b = from.b.array();
        let rest: Vec<i32> = (rank as i32..bank.live.b.dim(0)).collect();
        let rest = Array::from_slice(&rest, &[rest.len() as i32]);
        bank.live.a = mlx_rs::ops::concatenate(&[a, bank.live.a.take_axis(&rest, 1)?], 1)?;
        bank.live.b = mlx_rs::ops::concatenate(&[b, bank.live.b.take_axis(&rest, 0)?], 0)?;
        Ok(bank)
    }

    /// Number of awake components.
    pub fn rank(&self) -> usize {
        self.awake.len()
    }

    /// Makes exactly these components awake (ascending, below the capacity).
    ///
    /// # Errors
    /// When MLX fails; then nothing has changed.
    pub fn set_awake(&mut self, wanted: &[u32]) -> Result<()> {
        if wanted == self.awake.as_slice() {
            return Ok(());
        }
        let mut all = self.asleep.clone();
        let [a, a1, a2] = [&self.live.a, &self.memory[0].first, &self.memory[0].second];
        let [b, b1, b2] = [&self.live.b, &self.memory[1].first, &self.memory[1].second];
        let columns = [columns(a)?, columns(a1)?, columns_if(a2)?];
        let rows = [rows(b)?, rows(b1)?, rows_if(b2)?];
        for (i, &number) in self.awake.iter().enumerate() {
            let one = |parts: &[Vec<Vec<f32>>; 3]| [0, 1, 2].map(|p| parts[p].get(i).cloned().unwrap_or_default());
            all.push((number, Sleeper { a: one(&columns), b: one(&rows) }));
        }
        all.sort_by_key(|(number, _)| *number);
        let (awake, asleep): (Vec<_>, Vec<_>) = all.into_iter().partition(|(n, _)| wanted.binary_search(n).is_ok());
        let gather = |part: usize, of_a: bool| -> Result<Array> {
            let vectors: Vec<&[f32]> =
                awake.iter().map(|(_, s)| if of_a { s.a[part].as_slice() } else { s.b[part].as_slice() }).collect();
            let width = if of_a { a.dim(0) } else { b.dim(1) };
            let flat: Vec<f32> = vectors.concat();
            let array = Array::from_slice(&flat, &[vectors.len() as i32, width]);
            Ok(if of_a { array.transpose()?.contiguous()? } else { array })
        };
        let sgd = a2.ndim() == 1;
        let new = (
            gather(0, true)?,
            gather(0, false)?,
            Memory { first: gather(1, true)?, second: if sgd { a2.clone() } else { gather(2, true)? } },
            Memory { first: gather(1, false)?, second: if sgd { b2.clone() } else { gather(2, false)? } },
        );
        mlx::eval([&new.0, &new.1, &new.2.first, &new.2.second, &new.3.first, &new.3.second])?;
        (self.live.a, self.live.b, self.memory[0], self.memory[1]) = new;
        self.awake = wanted.to_vec();
        self.asleep = asleep;
        Ok(())
    }

    /// The adapter of a pack: awake components only, with the alpha that keeps alpha / r as trained. Columns and rows
    /// are brought to one size by powers of two first, so that float16 rounds both as little as it can.
    ///
    /// # Errors
    /// When MLX fails or a number is too large for float16.
    pub fn adapter(&self, t: &Target) -> Result<Adapter> {
        let (mut a, mut b) = (columns(&self.live.a)?, rows(&self.live.b)?);
        let largest = |x: &[f32]| x.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (a, b) in a.iter_mut().zip(&mut b) {
            let (la, lb) = (largest(a), largest(b));
            if la > 0.0 && lb > 0.0 && la.is_finite() && lb.is_finite() {
                let c = (0.5 * (lb / la).log2()).round().clamp(-30.0, 30.0).exp2();
                a.iter_mut().for_each(|x| *x *= c);
                b.iter_mut().for_each(|x| *x /= c);
            }
        }
        let r = a.len();
        let across: Vec<f32> = (0..t.rows).flat_map(|i| a.iter().map(move |column| column[i])).collect();
        let (a, b) = (Matrix::from_f32(t.rows, r, &across), Matrix::from_f32(r, t.cols, &b.concat()));
        if let Some(bad) = a.data.iter().chain(&b.data).find(|x| !x.is_finite()) {
            return Err(Error::Other(format!(
                "{}: holds {bad} after rounding to float16; lower --learning-rate",
                t.key
            )));
        }
        let magnitude = self.live.magnitude.as_ref().map(floats).transpose()?;
        Ok(Adapter { a, b, alpha: t.alpha * r as f32 / t.rank.max(1) as f32, magnitude })
    }

    /// All components in order of their numbers: A [out, capacity], B [capacity, in], and which are awake.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn whole(&self) -> Result<(Array, Array, Vec<bool>)> {
        let mut all = self.clone();
        all.set_awake(&(0..self.capacity as u32).collect::<Vec<_>>())?;
        let mut awake = vec![false; self.capacity];
        for n in &self.awake {
            awake[*n as usize] = true;
        }
        Ok((all.live.a, all.live.b, awake))
    }

    /// Size of every component, awake or not: |a| |b|, by number.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn sizes(&self) -> Result<Vec<f32>> {
        let norm = |x: &[f32]| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let mut out = vec![0.0; self.capacity];
        let (a, b) = (columns(&self.live.a)?, rows(&self.live.b)?);
        for (i, n) in self.awake.iter().enumerate() {
            out[*n as usize] = (norm(&a[i]) * norm(&b[i])) as f32;
        }
        for (n, s) in &self.asleep {
            out[*n as usize] = (norm(&s.a[0]) * norm(&s.b[0])) as f32;
        }
        Ok(out)
    }

    /// Everything as named arrays, for a checkpoint.
    pub fn tensors(&self, key: &str) -> Vec<(String, Array)> {
        let mut out: Vec<(String, Array)> = Vec::new();
        for (name, (array, memory)) in ["a", "b", "m"].iter().zip(self.live.arrays().zip(&self.memory)) {
            out.push((format!("{key}.{name}"), array.clone()));
            out.push((format!("{key}.{name}.first"), memory.first.clone()));
            out.push((format!("{key}.{name}.second"), memory.second.clone()));
        }
        let numbers: Vec<i32> = self.awake.iter().map(|n| *n as i32).collect();
        out.push((format!("{key}.awake"), Array::from_slice(&numbers, &[numbers.len() as i32])));
        for (n, s) in &self.asleep {
            for (side, parts) in [("a", &s.a), ("b", &s.b)] {
                for (part, v) in parts.iter().enumerate().filter(|(_, v)| !v.is_empty()) {
                    out.push((format!("{key}.asleep.{n}.{side}{part}"), Array::from_slice(v, &[v.len() as i32])));
                }
            }
        }
        out
    }

    /// Takes everything back from a checkpoint; `take` finds an array by its name.
    ///
    /// # Errors
    /// When one is missing.
    pub fn restore(&mut self, key: &str, take: &mut dyn FnMut(&str) -> Result<Array>) -> Result<()> {
        let mut next = |name: &str| take(&format!("{key}.{name}"));
        let awake = next("awake")?;
        let awake: Vec<u32> = floats(&awake.as_dtype(mlx::Dtype::Float32)?)?.iter().map(|n| *n as u32).collect();
        let wrong = |what: &str| Error::Other(format!("{key}: its checkpoint has {what}; begin the training again"));
        if !awake.windows(2).all(|w| w[0] < w[1]) || awake.last().is_some_and(|n| *n as usize >= self.capacity) {
            return Err(wrong("impossible components"));
        }
        let r = awake.len() as i32;
        let (rows, cols) = (self.live.a.dim(0), self.live.b.dim(1));
        let sgd = self.memory[0].second.ndim() == 1;
        let mut shaped = |name: &str, shape: &[i32]| -> Result<Array> {
            let a = next(name)?;
            match a.shape() == shape && a.dtype() == mlx::Dtype::Float32 {
                true => Ok(a),
                false => Err(wrong(&format!("{name} of shape {:?} in the place of {shape:?}", a.shape()))),
            }
        };
        let mut part = |name: &str, shape: &[i32]| -> Result<(Array, Memory)> {
            let second: &[i32] = if sgd { &[1] } else { shape };
            let first = shaped(&format!("{name}.first"), shape)?;
            Ok((shaped(name, shape)?, Memory { first, second: shaped(&format!("{name}.second"), second)? }))
        };
        let (a, of_a) = part("a", &[rows, r])?;
        let (b, of_b) = part("b", &[r, cols])?;
        let mut memories = vec![of_a, of_b];
        if self.live.magnitude.is_some() {
            let (m, of_m) = part("m", &[rows])?;
            memories.push(of_m);
            self.live.magnitude = Some(m);
        }
        (self.live.a, self.live.b, self.memory) = (a, b, memories);
        self.asleep.clear();
        for n in (0..self.capacity as u32).filter(|n| awake.binary_search(n).is_err()) {
            let mut side = |side: &str| -> Result<[Vec<f32>; 3]> {
                let length = if side == "a" { rows } else { cols } as usize;
                let mut part = |p: usize| -> Result<Vec<f32>> {
                    let name = format!("asleep.{n}.{side}{p}");
                    let v = floats(&next(&name)?.as_dtype(mlx::Dtype::Float32)?)?;
                    if v.len() == length { Ok(v) } else { Err(wrong(&format!("{name} of length {}", v.len()))) }
                };
                Ok([part(0)?, part(1)?, if sgd { Vec::new() } else { part(2)? }])
            };
            self.asleep.push((n, Sleeper { a: side("a")?, b: side("b")? }));
        }
        self.awake = awake;
        Ok(())
    }
}

/// All numbers of an array of floats.
pub fn floats(a: &Array) -> Result<Vec<f32>> {
    if a.size() == 0 {
        return Ok(Vec::new());
    }
    let a = a.contiguous().context("reading an adapter")?;
    mlx::eval([&a])?;
    Ok(a.try_as_slice::<f32>().map_err(|e| Error::Other(format!("an adapter cannot be read: {e}")))?.to_vec())
}

fn rows(b: &Array) -> Result<Vec<Vec<f32>>> {
    let width = b.dim(1).max(1) as usize;
    Ok(floats(b)?.chunks_exact(width).map(<[f32]>::to_vec).collect())
}

fn columns(a: &Array) -> Result<Vec<Vec<f32>>> {
    rows(&a.transpose()?)
}

fn columns_if(a: &Array) -> Result<Vec<Vec<f32>>> {
    if a.ndim() == 2 { columns(a) } else { Ok(Vec::new()) }
}

fn rows_if(b: &Array) -> Result<Vec<Vec<f32>>> {
    if b.ndim() == 2 { rows(b) } else { Ok(Vec::new()) }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::options::Method;
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn options() -> Options {
        serde_json::from_value(serde_json::json!({
            "name": "t", "base": "b", "data": "d", "valid_share": 0.0, "layers": ["q"], "rank": 4, "ranks": [],
            "min_rank": 1, "alphas": [], "rslora": false, "dora": false, "steps": 10, "batch": 1, "accumulate": 1,
            "sequence_length": 8, "loss": "full", "packing": true, "optimizer": "adamw", "learning_rate": 0.1,
            "warmup": 2, "schedule": "cosine", "final_rate": 0.1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8,
            "weight_decay": 0.0, "momentum": 0.0, "clip": 1.0, "dropout": 0.0, "seed": 5, "valid_every": 0,
            "valid_windows": 0, "patience": 0, "checkpoint_every": 0, "recompute": true, "fp16_base": false,
            "profile": "lite", "notes": ""
        }))
        .unwrap()
    }

    fn numbers(a: &Array) -> Vec<f32> {
        floats(&a.as_dtype(mlx::Dtype::Float32).unwrap()).unwrap()
    }

    fn target() -> Target {
        Target {
            position: 0,
            key: "blocks.0.attn.q_proj".into(),
            layer: 0,
            group: 0,
            rows: 5,
            cols: 7,
            rank: 3,
            alpha: 6.0,
        }
    }

    fn filled(method: Method) -> Bank {
        let mut o = options();
        o.optimizer = method;
        let mut bank = Bank::new(&o, &target(), 6, None).unwrap();
        bank.set_awake(&[0, 1, 2, 3, 4, 5]).unwrap();
        let draw = |shape: &[i32], seed| {
            let key = mlx_rs::random::key(seed).unwrap();
            mlx_rs::random::normal::<f32>(shape, None, None, Some(&key)).unwrap()
        };
        bank.live.a = draw(&[5, 6], 1);
        for (i, m) in bank.memory.iter_mut().enumerate() {
            m.first = draw(m.first.shape(), 2 + i as u64);
            if m.second.ndim() == 2 {
                m.second = draw(m.second.shape(), 5 + i as u64);
            }
        }
        bank
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn sleeping_and_waking_loses_nothing(sets in proptest::collection::vec(proptest::collection::btree_set(0u32..6, 0..6), 1..4), sgd: bool) {
            let method = if sgd { Method::Sgd } else { Method::Adamw };
            let before = filled(method);
            let mut bank = before.clone();
            for set in sets {
                bank.set_awake(&set.into_iter().collect::<Vec<_>>()).unwrap();
            }
            bank.set_awake(&[0, 1, 2, 3, 4, 5]).unwrap();
            for (x, y) in before.tensors("k").iter().zip(bank.tensors("k")) {
                prop_assert_eq!(&x.0, &y.0);
                prop_assert_eq!(numbers(&x.1), numbers(&y.1), "{}", x.0);
            }
        }
    }

    #[test]
    fn a_checkpoint_holds_everything() {
        let mut bank = filled(Method::Adamw);
        bank.set_awake(&[1, 4]).unwrap();
        let saved: std::collections::HashMap<String, Array> = bank.tensors("k").into_iter().collect();
        let mut other = Bank::new(&options(), &target(), 6, None).unwrap();
        other.restore("k", &mut |n| Ok(saved.get(n).unwrap().clone())).unwrap();
        other.set_awake(&[0, 1, 2, 3, 4, 5]).unwrap();
        bank.set_awake(&[0, 1, 2, 3, 4, 5]).unwrap();
        assert_eq!(bank.sizes().unwrap(), other.sizes().unwrap());
    }

    #[test]
    fn a_pack_has_the_awake_ones_at_the_scale_they_were_trained_at() {
        let mut bank = filled(Method::Adamw);
        bank.set_awake(&[0, 5]).unwrap();
        let adapter = bank.adapter(&target()).unwrap();
        assert_eq!((adapter.rank(), adapter.scale()), (2, 2.0));
        let whole = adapter.a.array().matmul(adapter.b.array()).unwrap();
        let exact = bank.live.a.matmul(&bank.live.b).unwrap();
        let (whole, exact) = (floats(&whole).unwrap(), floats(&exact).unwrap());
        for (x, y) in whole.iter().zip(exact) {
            assert!((x - y).abs() < 2e-3, "{x} {y}");
        }
    }
}
