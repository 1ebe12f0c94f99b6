//! The loss of a batch and its gradient with respect to the adapters.
//!
//! The base is frozen, so a gradient is needed of A, B and the magnitudes alone. The insides of as many layers as
//! there is memory for are kept, from the last one down. Of each layer below only what goes into it is kept; on the
//! way back the layer is computed again and differentiated at once (gradient checkpointing, Chen et al. 2016). Layers
//! below the first adapter are never differentiated.
//!
//! The same way back also gives, in the place of gradients of A and B, those of a factor for each component at each
//! token, which say what a component is worth.

use super::super::error::{Error, Result};
use super::batches::Batch;
use super::targets::Target;
use crate::mlx::project::{Operand, Projection, Thin};
use crate::mlx::{self, Array, Context, kernels};
use crate::model::config::Config;
use crate::model::{Model, Tap};
use mlx_rs::error::Exception;
use mlx_rs::transforms::fallible_vjp;

/// What is learned of one slice.
#[derive(Clone, Debug)]
pub struct Live {
    /// [out, r].
    pub a: Array,
    /// [r, in].
    pub b: Array,
    /// DoRA: [out].
    pub magnitude: Option<Array>,
}

impl Live {
    /// Its arrays, in the order used everywhere.
    pub fn arrays(&self) -> impl Iterator<Item = &Array> {
        [&self.a, &self.b].into_iter().chain(&self.magnitude)
    }
}

/// What stays the same while the gradient of one batch is taken.
pub struct Pass<'a> {
    /// The base, with nothing attached.
    pub model: &'a Model,
    /// Adapted slices, ascending.
    pub targets: &'a [Target],
    /// What is learned, one a target.
    pub live: &'a [Live],
    /// alpha / r of each target.
    pub scales: &'a [f32],
    /// DoRA: ‖W + s A B‖ by rows, one a target; taken as constant (Liu et al. 2024, section 4.3).
    pub norms: &'a [Option<Array>],
    /// Share of inputs dropped, and the seed of this batch.
    pub dropout: Option<(f32, u64)>,
    /// Bytes for the insides of layers, which are computed again where they do not fit; the last layer's always do.
    pub kept: u64,
    /// In the place of A and B, a factor for each component at each token is what is differentiated.
    pub gates: Option<&'a [Gated]>,
}

/// All components of an adapter, asleep or not, with a factor for each at each token.
pub struct Gated {
    /// [out, capacity].
    pub a: Array,
    /// [capacity, in].
    pub b: Array,
    /// [B, T, capacity]: 1 where a component is awake, else 0.
    pub gate: Array,
}

/// The adapters of some layers, over arrays that are differentiated.
struct Adapted<'a> {
    pass: &'a Pass<'a>,
    /// First target of these layers.
    first: usize,
    /// Where each target's arrays begin in `arrays`.
    at: &'a [usize],
    arrays: &'a [Array],
}

impl Tap for Adapted<'_> {
    fn linear(&self, slice: usize, x: &Array, y: Array) -> mlx::Result<Array> {
        let what = "an adapter in training";
        let Ok(n) = self.pass.targets[self.first..].binary_search_by_key(&slice, |t| t.position) else { return Ok(y) };
        let Some(&at) = self.at.get(n) else { return Ok(y) };
        let target = self.first + n;
        let dry = self.pass.dropout.is_none();
        let x = self.pass.dropped(x, self.pass.targets[target].group)?;
        let scale = Array::from_f32(self.pass.scales[target]);
        if let Some(gated) = self.pass.gates.and_then(|g| g.get(target)) {
            let z = x.matmul(gated.b.transpose()?)?.multiply(&self.arrays[at])?.multiply(scale)?;
            return y.add(z.matmul(gated.a.transpose()?)?).context(what);
        }
        let (a, b) = (&self.arrays[at], &self.arrays[at + 1]);
        if a.size() == 0 {
            return Ok(y);
        }
        let a = a.multiply(scale).context(what)?;
        let thin = Thin { a: Operand::Float(&a), b: Operand::Float(b) };
        let Some(norm) = &self.pass.norms[target] else {
            // One operation with the base's own product where both read the same inputs: `y` is then never computed.
            return match dry {
                true => self.pass.model.project_with(slice, thin, &x),
                false => Projection { factors: &[thin], ..Projection::default() }.apply(&x, Some(&y)),
            };
        };
        let low = Projection { factors: &[thin], ..Projection::default() }.apply(&x, None)?;
        let gain = self.arrays[at + 2].divide(norm).context(what)?;
        match self.pass.model.bias(slice) {
            None => y.add(low).and_then(|y| y.multiply(&gain)).context(what),
            Some(bias) => {
                let y = y.subtract(bias).and_then(|y| y.add(low)?.multiply(&gain)?.add(bias));
                y.context(what)
            }
        }
    }
}

/// Mean loss of an update and its gradients.
pub struct Gradients {
    /// Mean over the tokens that count, nats.
    pub loss: f64,
    /// In the order of [`Live::arrays`], target after target.
    pub arrays: Vec<Array>,
    /// Tokens that count.
    pub counted: usize,
    /// Tokens that ran through the model.
    pub run: usize,
}

impl Pass<'_> {
    /// Inputs with a share dropped and the rest scaled up; slices that share an input share the draw.
    fn dropped(&self, x: &Array, group: u32) -> mlx::Result<Array> {
        let Some((share, seed)) = self.dropout else { return Ok(x.clone()) };
        let what = "dropout";
        let key =
            mlx_rs::random::key(seed ^ (u64::from(group) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)).context(what)?;
        let keep = mlx_rs::random::bernoulli(&Array::from_f32(1.0 - share), x.shape(), &key).context(what)?;
        let keep = keep.as_dtype(mlx::Dtype::Float32).context(what)?;
        x.multiply(keep).and_then(|x| x.multiply(Array::from_f32(1.0 / (1.0 - share)))).context(what)
    }

    /// Targets of layers `from..to`.
    fn of_layers(&self, from: usize, to: usize) -> std::ops::Range<usize> {
        let first = self.targets.partition_point(|t| t.layer < from);
        first..self.targets.partition_point(|t| t.layer < to)
    }

    /// `h` through layers `from..to`, with these arrays in the adapters.
    fn up(&self, from: usize, to: usize, h: &Array, arrays: &[Array]) -> mlx::Result<Array> {
        let range = self.of_layers(from, to);
        let mut at = Vec::with_capacity(range.len());
        let mut next = 0;
        for t in range.clone() {
            at.push(next);
            next += if self.gates.is_some() { 1 } else { self.live[t].arrays().count() };
        }
        let tap = Adapted { pass: self, first: range.start, at: &at, arrays };
        let mut h = h.clone();
        for layer in from..to {
            h = self.model.layer(layer, &h, None, Some(&tap))?;
        }
        Ok(h)
    }

    fn arrays(&self, from: usize, to: usize) -> Vec<Array> {
        match self.gates {
            Some(gates) => gates[self.of_layers(from, to)].iter().map(|g| g.gate.clone()).collect(),
            None => self.of_layers(from, to).flat_map(|t| self.live[t].arrays().cloned()).collect(),
        }
    }

    /// The summed loss of a batch, without gradients.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn loss_of(&self, batch: &Batch) -> Result<f64> {
        let mut h = self.model.embed(&batch.tokens)?;
        for layer in 0..self.model.config().num_hidden_layers {
            h = self.up(layer, layer + 1, &h, &self.arrays(layer, layer + 1))?;
            mlx::eval([&h])?;
        }
        let loss = self.loss(&h, self.model.head_weight()?, batch, kernels::token_nll)?;
        Ok(f64::from(loss.try_item_cast::<f32>().map_err(|e| Error::Other(e.to_string()))?))
    }

    /// The summed loss of a batch, and the gradients of this sum times `weight`.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn gradients(&self, batch: &Batch, weight: f64) -> Result<(f64, Vec<Array>)> {
        let what = "the gradient of a batch";
        let layers = self.model.config().num_hidden_layers;
        let lowest = self.targets.first().map_or(layers, |t| t.layer);
        let whole = (self.kept / insides(self.model.config(), batch.run)).clamp(1, layers.max(1) as u64) as usize;
        // Where segments begin; the part below the lowest adapter only runs upwards.
        let cuts: Vec<usize> = (lowest..=lowest.max(layers.saturating_sub(whole))).collect();
        let mut h = self.model.embed(&batch.tokens)?;
        for layer in 0..lowest {
            h = self.model.layer(layer, &h, None, None)?;
        }
        let mut inputs = Vec::with_capacity(cuts.len());
        for (i, &from) in cuts.iter().enumerate() {
            mlx::eval([&h])?;
            inputs.push(h.clone());
            if let Some(&to) = cuts.get(i + 1) {
                h = self.up(from, to, &h, &self.arrays(from, to))?;
            }
        }
        let head = self.model.head_weight()?;
        let mut grads: Vec<Vec<Array>> = Vec::with_capacity(cuts.len());
        let mut loss = None;
        let mut back: Option<Array> = None;
        for (i, &from) in cuts.iter().enumerate().rev() {
            let Some(h) = inputs.pop() else { break };
            let to = cuts.get(i + 1).copied().unwrap_or(layers);
            let mut primals = self.arrays(from, to);
            primals.push(h);
            let last = back.is_none();
            let run = |p: &[Array]| -> std::result::Result<Vec<Array>, Exception> {
                let (h, arrays) = p.split_last().ok_or_else(|| Exception::custom("no input"))?;
                let h = self.up(from, to, h, arrays).map_err(|e| e.exception)?;
                match last {
                    true => Ok(vec![self.loss(&h, head, batch, kernels::token_nll_to_learn).map_err(|e| e.exception)?]),
                    false => Ok(vec![h]),
                }
            };
            let along = back.take().unwrap_or_else(|| Array::from_f32(weight as f32));
            let (out, mut down) = fallible_vjp(run, &primals, &[along]).context(what)?;
            let below = down.pop().ok_or_else(|| Error::Other("MLX gave no gradient".into()))?;
            // Nothing is learned below the lowest adapter: that gradient is never computed.
            let wanted = if i == 0 { None } else { Some(&below) };
            let value = if last { out.first() } else { None };
            mlx::eval(down.iter().chain(wanted).chain(value))?;
            if let Some(value) = value {
                loss = Some(f64::from(value.try_item_cast::<f32>().map_err(|e| Error::Other(e.to_string()))?));
            }
            grads.push(down);
            back = Some(below);
        }
        grads.reverse();
        Ok((loss.unwrap_or(f64::NAN), grads.into_iter().flatten().collect()))
    }

    /// Summed loss of the targets that count.
    fn loss(&self, h: &Array, head: Operand, batch: &Batch, nll: Nll) -> mlx::Result<Array> {
        let what = "the loss of a batch";
        let h = self.model.final_norm(h)?;
        let h = h.reshape(&[-1, h.dim(-1)]).context(what)?;
        nll(&h, head, &batch.targets)?.multiply(&batch.mask).and_then(|x| x.sum(None)).context(what)
    }
}

/// Bytes that the insides of a layer take while `tokens` run through it: what the way back reads again.
fn insides(c: &Config, tokens: usize) -> u64 {
    let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
    // Normed inputs and sums; queries before and after the turn and attention's result; keys and values; gate and up.
    4 * (tokens * (4 * c.hidden_size + 3 * q + 3 * kv + 2 * c.intermediate_size)).max(1) as u64
}

/// Losses of hidden states under a head at targets.
type Nll = fn(&Array, Operand, &Array) -> mlx::Result<Array>;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::bank::{floats, tests::options};
    use super::super::batches::Batches;
    use super::super::options::Rule;
    use super::super::{row_norms, targets};
    use super::*;
    use crate::eval::data::Window;
    use crate::model::LoadOptions;

    fn draw(shape: &[i32], seed: u64, size: f32) -> Array {
        let key = mlx_rs::random::key(seed).unwrap();
        mlx_rs::random::normal::<f32>(shape, None, None, Some(&key)).unwrap().multiply(Array::from_f32(size)).unwrap()
    }

    struct Lab {
        model: Model,
        targets: Vec<Target>,
        live: Vec<Live>,
        scales: Vec<f32>,
        batch: Batch,
    }

    impl Lab {
        fn new(name: &str, dora: bool) -> Lab {
            let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny").join(name);
            let model = Model::load(&dir, &LoadOptions::default()).unwrap();
            let mut o = options();
            // Not in the first layer, so that the part below the lowest adapter is there.
            o.layers = vec!["blocks.1.*".into()];
            o.ranks = vec![Rule { slices: "blocks.1.*".into(), value: 2 }];
            let targets = targets::choose(&o, model.config(), model.slices()).unwrap();
            let live = targets.iter().enumerate().map(|(i, t)| {
                let w = model.dense_weight(t.position).unwrap();
                Live {
                    a: draw(&[t.rows as i32, 2], 2 * i as u64, 0.1),
                    b: draw(&[2, t.cols as i32], 2 * i as u64 + 1, 0.1),
                    magnitude: dora.then(|| row_norms(&w).unwrap()),
                }
            });
            let live = live.collect();
            let window = |k: u32| Window { tokens: (0..9 + k).map(|i| (i * 37 + 11 * k) % 128).collect(), mask: None };
            let batch = Batches::new(vec![window(0), window(3)], 2, 1).unwrap().get(0).unwrap();
            Lab { scales: vec![1.5; targets.len()], model, targets, live, batch }
        }

        /// Norms of the adapters as they are in the beginning: constants of the gradient.
        fn norms(&self) -> Vec<Option<Array>> {
            let norm = |(t, l): (&Target, &Live)| {
                l.magnitude.as_ref()?;
                let w = self.model.dense_weight(t.position).unwrap();
                let delta = l.a.multiply(Array::from_f32(1.5)).unwrap().matmul(&l.b).unwrap();
                Some(row_norms(&w.add(delta).unwrap()).unwrap())
            };
            self.targets.iter().zip(&self.live).map(norm).collect()
        }

        fn pass<'a>(&'a self, live: &'a [Live], norms: &'a [Option<Array>], kept: u64) -> Pass<'a> {
            Pass {
                model: &self.model,
                targets: &self.targets,
                live,
                scales: &self.scales,
                norms,
                dropout: None,
                kept,
                gates: None,
            }
        }
    }

    /// Moves every array a little along a random direction; the loss changes by the gradient's share of it.
    #[test]
    fn gradients_are_those_of_finite_differences() {
        for (name, dora) in [("llama", false), ("qwen2", true), ("qwen3_q4g64", false)] {
            let lab = Lab::new(name, dora);
            let norms = lab.norms();
            let (_, whole) = lab.pass(&lab.live, &norms, u64::MAX).gradients(&lab.batch, 1.0).unwrap();
            let (_, layered) = lab.pass(&lab.live, &norms, 0).gradients(&lab.batch, 1.0).unwrap();
            let mut at = 0;
            for t in 0..lab.targets.len() {
                for part in 0..lab.live[t].arrays().count() {
                    let (g, again) = (floats(&whole[at]).unwrap(), floats(&layered[at]).unwrap());
                    let size = g.iter().fold(0f32, |m, x| m.max(x.abs()));
                    assert!(
                        g.iter().zip(&again).all(|(x, y)| (x - y).abs() <= 1e-4 * size + 1e-6),
                        "{name} {t} {part}"
                    );
                    at += 1;
                    let of = lab.live[t].arrays().nth(part).unwrap();
                    let direction = draw(of.shape(), 77 + at as u64, 1.0);
                    let along: f64 = g.iter().zip(floats(&direction).unwrap()).map(|(x, d)| f64::from(x * d)).sum();
                    let moved = |step: f32| {
                        let mut live = lab.live.clone();
                        let new = of.add(direction.multiply(Array::from_f32(step)).unwrap()).unwrap();
                        match part {
                            0 => live[t].a = new,
                            1 => live[t].b = new,
                            _ => live[t].magnitude = Some(new),
                        }
                        lab.pass(&live, &norms, 0).loss_of(&lab.batch).unwrap()
                    };
                    let h = 4e-3;
                    let slope = (moved(h) - moved(-h)) / (2.0 * f64::from(h));
                    // Float32 losses of some 80 nats are known to about 1e-5.
                    assert!((slope - along).abs() < 0.03 * along.abs() + 1e-2, "{name} {t} {part}: {slope} {along}");
                }
            }
        }
    }

    /// A closed gate of a component is the component asleep, and its gradient is what waking it brings.
    #[test]
    fn gates_open_and_close_components() {
        let lab = Lab::new("llama", false);
        let none = vec![None; lab.live.len()];
        let shape = lab.batch.tokens.shape().to_vec();
        let gated = |open: [f32; 2]| -> Vec<Gated> {
            let gate =
                mlx_rs::ops::broadcast_to(Array::from_slice(&open, &[1, 1, 2]), &[shape[0], shape[1], 2]).unwrap();
            lab.live.iter().map(|l| Gated { a: l.a.clone(), b: l.b.clone(), gate: gate.clone() }).collect()
        };
        let loss = |open| {
            let gates = gated(open);
            let pass = Pass { gates: Some(&gates), ..lab.pass(&lab.live, &none, 0) };
            pass.gradients(&lab.batch, 1.0).unwrap()
        };
        let plain = lab.pass(&lab.live, &none, 0).loss_of(&lab.batch).unwrap();
        assert!((loss([1.0, 1.0]).0 - plain).abs() < 1e-3);
        let (h, half) = (2e-2, [1.0, 0.5]);
        let along: f64 =
            loss(half).1.iter().map(|g| floats(g).unwrap().chunks(2).map(|c| f64::from(c[1])).sum::<f64>()).sum();
        let slope = (loss([1.0, 0.5 + h]).0 - loss([1.0, 0.5 - h]).0) / (2.0 * f64::from(h));
        assert!((slope - along).abs() < 0.03 * along.abs() + 1e-2, "{slope} {along}");
    }
}
