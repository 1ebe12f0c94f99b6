//! AdamW (Loshchilov and Hutter 2019, algorithm 2) and SGD with momentum, over a list of arrays.

use super::super::error::Result;
use super::options::{Method, Options};
use crate::mlx::{self, Array, Context};

/// What an optimiser remembers of one array.
#[derive(Clone, Debug)]
pub struct Memory {
    /// First moment, or the momentum of SGD.
    pub first: Array,
    /// Second moment; with SGD an array of one zero.
    pub second: Array,
}

impl Memory {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn new(shape: &[i32], method: Method) -> Result<Memory> {
        let second = if method == Method::Sgd { &[1] } else { shape };
        Ok(Memory { first: mlx_rs::ops::zeros::<f32>(shape)?, second: mlx_rs::ops::zeros::<f32>(second)? })
    }
}

fn number(x: f64) -> Array {
    Array::from_f32(x as f32)
}

/// One update of one array with its gradient; `step` counts from 1 and corrects the bias of young moments.
///
/// # Errors
/// When MLX fails.
pub fn update(o: &Options, step: u32, p: &Array, g: &Array, memory: &mut Memory, decay: bool) -> mlx::Result<Array> {
    let rate = o.rate(step);
    let run = || match o.optimizer {
        Method::Sgd => {
            let first = memory.first.multiply(number(o.momentum))?.add(g)?;
            let kept = p.multiply(number(1.0 - if decay { rate * o.weight_decay } else { 0.0 }))?;
            let p = kept.subtract(first.multiply(number(rate))?)?;
            Ok((p, first, memory.second.clone()))
        }
        Method::Adamw => {
            let first = memory.first.multiply(number(o.beta1))?.add(g.multiply(number(1.0 - o.beta1))?)?;
            let second = memory.second.multiply(number(o.beta2))?.add(g.square()?.multiply(number(1.0 - o.beta2))?)?;
            let [c1, c2] = [o.beta1, o.beta2].map(|b| 1.0 - b.powi(step as i32));
            let root = second.multiply(number(1.0 / c2))?.sqrt()?.add(number(o.epsilon))?;
            let kept = p.multiply(number(1.0 - if decay { rate * o.weight_decay } else { 0.0 }))?;
            let p = kept.subtract(first.multiply(number(rate / c1))?.divide(root)?)?;
            Ok((p, first, second))
        }
    };
    let (p, first, second) = run().context("updating an adapter")?;
    *memory = Memory { first, second };
    Ok(p)
}
