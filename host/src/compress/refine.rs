//! Refinement: a short distillation of the base into the factors, so that what was cut away is made up for.
//!
//! The factors of all slices are trained together on calibration text to give the base's own next-token
//! distributions: the loss is KL(base ‖ compressed), mean over tokens (Hinton et al. 2015). At each step a budget is
//! drawn, and only what it wakes runs and learns (nested dropout of ranks, as in DyLoRA, Valipour et al. 2023), so
//! components keep their order and every prefix gets better, not only the whole. Both vectors of a component start
//! with the same length; Adam with β = (0.9, 0.95), a tenth of the steps to warm up, then a cosine.
//!
//! The way back goes layer by layer and computes each layer again, so memory holds the insides of one. Steps draw
//! from seeds of their own: a refinement that was interrupted ends with the same bits. Fails where MLX fails, where
//! the loss is not finite, or where the state cannot be kept.

use super::error::{Error, Result};
use super::settings::Refinement;
use super::work;
use crate::mlx::{self, Array, Context, kernels};
use crate::model::{Level, Model, Tap};
use crate::plastic::factor::Components;
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::fallible_vjp;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// Steps between two states on the disk.
const KEEP: u32 = 16;
/// Share of the learning rate that the schedule ends with.
const LAST: f64 = 0.05;

/// One slice in refinement.
pub struct Learner {
    /// Its place in the model.
    pub position: usize,
    /// Its layer.
    pub layer: usize,
    /// Its components.
    pub components: Components,
    /// Its level at each budget that is drawn.
    pub levels: Vec<Level>,
}

/// Mean and square of the gradients of one array.
struct Memory {
    first: Array,
    second: Array,
}

/// Told (step, steps, KL of this step in nats per token); answers whether to go on.
pub type Watch<'a> = dyn FnMut(u32, u32, f64) -> bool + 'a;

/// Refines the components of `learners` (ascending by position) on `windows`; the model runs on its base weights.
/// The state is kept in the file `state` now and then. Answers the KL of the last step, `None` when interrupted.
///
/// # Errors
/// When MLX fails, the loss is not finite, or the state cannot be written.
pub fn refine(
    model: &Model,
    learners: &mut [Learner],
    windows: &[Vec<u32>],
    how: &Refinement,
    state: &Path,
    watch: &mut Watch,
) -> Result<Option<f64>> {
    let mut memories = Vec::with_capacity(learners.len());
    for l in learners.iter() {
        memories.push([empty(&l.components.a)?, empty(&l.components.b)?]);
    }
    let mut at = restore(state, learners, &mut memories)?;
    let mut last = f64::NAN;
    while at < how.steps {
        let mut draw = ChaCha8Rng::seed_from_u64(how.seed ^ (u64::from(at) << 20));
        let budget = drawn(&how.budgets, draw.random::<f64>());
        let batch = tokens(windows, how, at);
        let (kl, gradients) = Pass { model, learners, budget }.gradients(&batch)?;
        if !kl.is_finite() {
            return Err(Error::Usage(format!(
                "refining: the loss is {kl} at step {}; use a smaller --refine-rate than {}",
                at + 1,
                how.learning_rate
            )));
        }
        let rate = how.learning_rate * schedule(at, how.steps);
        for ((l, m), g) in learners.iter_mut().zip(&mut memories).zip(gradients) {
            if let Some([a, b]) = g {
                l.components.a = update(&l.components.a, &a, &mut m[0], rate, at + 1)?;
                l.components.b = update(&l.components.b, &b, &mut m[1], rate, at + 1)?;
            }
        }
        (at, last) = (at + 1, kl);
        let go_on = watch(at, how.steps, kl);
        if at.is_multiple_of(KEEP) && at < how.steps {
            keep(state, at, learners, &memories)?;
        }
        if !go_on {
            keep(state, at, learners, &memories)?;
            return Ok(None);
        }
    }
    Ok(Some(last))
}

/// Warm-up, then a cosine; 1 at its highest.
fn schedule(step: u32, steps: u32) -> f64 {
    let (s, n) = (f64::from(step), f64::from(steps));
    let warm = ((s + 1.0) / (0.1 * n)).min(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * ((s - 0.1 * n) / (0.9 * n)).max(0.0)).cos());
    warm * (LAST + (1.0 - LAST) * cosine)
}

/// Which budget a draw in 0..1 falls on.
fn drawn(budgets: &[(f64, f64)], x: f64) -> usize {
    let all: f64 = budgets.iter().map(|b| b.1).sum();
    let mut sum = 0.0;
    budgets
        .iter()
        .position(|b| {
            sum += b.1;
            x * all < sum
        })
        .unwrap_or(budgets.len().saturating_sub(1))
}

/// The windows of a step: all are seen once before any is seen again.
fn tokens(windows: &[Vec<u32>], how: &Refinement, step: u32) -> Array {
    let n = windows.len().max(1);
    let rows = (how.batch.max(1) as usize).min(n);
    let chosen = (0..rows).map(|i| {
        let place = step as usize * rows + i;
        let mut order: Vec<usize> = (0..n).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(how.seed.wrapping_add(1 + (place / n) as u64)));
        order[place % n]
    });
    let ids: Vec<i32> = chosen.flat_map(|w| windows[w].iter().map(|t| *t as i32)).collect();
    Array::from_slice(&ids, &[rows as i32, ids.len() as i32 / rows as i32])
}

fn empty(a: &Array) -> Result<Memory> {
    let zero = || mlx_rs::ops::zeros::<f32>(a.shape()).context("making room for a gradient");
    Ok(Memory { first: zero()?, second: zero()? })
}

/// One step of Adam (Kingma & Ba 2015); a gradient of fewer rows is one of zeros in the others.
fn update(x: &Array, gradient: &Array, memory: &mut Memory, rate: f64, step: u32) -> Result<Array> {
    const BETA: [f64; 2] = [0.9, 0.95];
    let what = "a step of refinement";
    let f = |x: f64| Array::from_f32(x as f32);
    let missing = x.dim(0) - gradient.dim(0);
    let g = match missing {
        0 => gradient.clone(),
        n => {
            let zeros = mlx_rs::ops::zeros::<f32>(&[n, x.dim(1)]).context(what)?;
            mlx_rs::ops::concatenate(&[gradient.clone(), zeros], 0).context(what)?
        }
    };
    let mix = |old: &Array, new: &Array, beta: f64| old.multiply(f(beta))?.add(new.multiply(f(1.0 - beta))?);
    memory.first = mix(&memory.first, &g, BETA[0]).context(what)?;
    memory.second = g.square().and_then(|square| mix(&memory.second, &square, BETA[1])).context(what)?;
    let unbiased = |m: &Array, beta: f64| m.divide(f(1.0 - beta.powi(step as i32)));
    let down = unbiased(&memory.second, BETA[1]).and_then(|v| v.sqrt()?.add(f(1e-12))).context(what)?;
    let move_by = unbiased(&memory.first, BETA[0]).and_then(|m| m.divide(down)?.multiply(f(rate))).context(what)?;
    let x = x.subtract(move_by).context(what)?;
    mlx::eval([&x, &memory.first, &memory.second])?;
    Ok(x)
}

/// The gradient of one batch at one budget.
struct Pass<'a> {
    model: &'a Model,
    learners: &'a [Learner],
    budget: usize,
}

/// Puts awake components over the outputs of slices.
struct Over<'a> {
    pass: &'a Pass<'a>,
    /// Those awake in this layer: learner and where its two arrays begin.
    awake: &'a [(usize, usize)],
    arrays: &'a [Array],
}

impl Tap for Over<'_> {
    fn linear(&self, slice: usize, x: &Array, y: Array) -> mlx::Result<Array> {
        let mine = self.awake.iter().find(|(l, _)| self.pass.learners[*l].position == slice);
        let Some(&(_, at)) = mine else { return Ok(y) };
        // The weight's own product is never computed: nothing asks for it.
        let low = x.matmul(self.arrays[at + 1].transpose()?)?.matmul(&self.arrays[at]).context("refining a slice")?;
        match self.pass.model.bias(slice) {
            Some(bias) => low.add(bias).context("refining a slice"),
            None => Ok(low),
        }
    }
}

/// Learners that are awake, each with the place of its two arrays, and the arrays.
type Awake = (Vec<(usize, usize)>, Vec<Array>);

impl Pass<'_> {
    /// Awake learners of a layer with their first components.
    fn awake(&self, layer: usize) -> mlx::Result<Awake> {
        let (mut places, mut arrays) = (Vec::new(), Vec::new());
        for (i, l) in self.learners.iter().enumerate().filter(|(_, l)| l.layer == layer) {
            let Some(Level::Rank(r)) = l.levels.get(self.budget) else { continue };
            let upto = |m: &Array| m.try_index(..(*r as i32).min(m.dim(0))).context("choosing components");
            places.push((i, arrays.len()));
            arrays.push(upto(&l.components.a)?);
            arrays.push(upto(&l.components.b)?);
        }
        Ok((places, arrays))
    }

    fn up(&self, layer: usize, h: &Array, places: &[(usize, usize)], arrays: &[Array]) -> mlx::Result<Array> {
        self.model.layer(layer, h, None, Some(&Over { pass: self, awake: places, arrays }))
    }

    /// KL(base ‖ compressed) in nats, mean over tokens, and its gradients, one pair a learner that ran.
    fn gradients(&self, tokens: &Array) -> Result<(f64, Vec<Option<[Array; 2]>>)> {
        let what = "the gradient of a refinement";
        let base = self.model.hidden(tokens, None)?;
        mlx::eval([&base])?;
        let layers = self.model.config().num_hidden_layers;
        let mut h = self.model.embed(tokens)?;
        let mut inputs = Vec::with_capacity(layers);
        for layer in 0..layers {
            let (places, arrays) = self.awake(layer)?;
            inputs.push(h.clone());
            h = self.up(layer, &h, &places, &arrays)?;
            mlx::eval([&h])?;
        }
        let normed = self.model.final_norm(&h)?;
        let (kl, along) = self.head(&base, &normed)?;
        let through = |p: &[Array]| Ok(vec![self.model.final_norm(&p[0]).map_err(|e| e.exception)?]);
        let (_, back) = fallible_vjp(through, &[h], &[along]).context(what)?;
        let mut back = back.into_iter().next().ok_or_else(|| Exception::custom("no gradient")).context(what)?;
        let mut out: Vec<Option<[Array; 2]>> = self.learners.iter().map(|_| None).collect();
        for layer in (0..layers).rev() {
            let Some(h) = inputs.pop() else { break };
            let (places, mut primals) = self.awake(layer)?;
            primals.push(h);
            let run = |p: &[Array]| -> std::result::Result<Vec<Array>, Exception> {
                let (h, arrays) = p.split_last().ok_or_else(|| Exception::custom("no input"))?;
                Ok(vec![self.up(layer, h, &places, arrays).map_err(|e| e.exception)?])
            };
            let (_, mut down) = fallible_vjp(run, &primals, &[back]).context(what)?;
            mlx::eval(&down)?;
            back = down.pop().ok_or_else(|| Exception::custom("no gradient")).context(what)?;
            for (i, at) in places {
                if let (Some(a), Some(b)) = (down.get(at), down.get(at + 1)) {
                    out[i] = Some([a.clone(), b.clone()]);
                }
            }
        }
        Ok((kl, out))
    }

    /// KL from hidden states of both, and its gradient with respect to those of the second.
    fn head(&self, base: &Array, normed: &Array) -> Result<(f64, Array)> {
        let what = "the divergence of a batch";
        let flat = |h: &Array| h.reshape(&[-1, h.dim(-1)]).context(what);
        let (p, q) = (flat(base)?, flat(normed)?);
        let n = f64::from(q.dim(0).max(1));
        let (kl, along) = kernels::divergence_to_learn(&p, &q, self.model.head_weight()?)?;
        let along = along.divide(Array::from_f32(n as f32)).and_then(|a| a.reshape(normed.shape())).context(what)?;
        mlx::eval([&kl, &along])?;
        let rows = kl.try_as_slice::<f32>().map_err(|e| Exception::custom(e.to_string())).context(what)?;
        Ok((rows.iter().map(|x| f64::from(*x)).sum::<f64>() / n, along))
    }
}

/// Writes the state: whole or not at all.
fn keep(path: &Path, step: u32, learners: &[Learner], memories: &[[Memory; 2]]) -> Result<()> {
    let mut tensors = vec![("step".to_owned(), Array::from_slice(&[step as i32], &[1]))];
    for (l, m) in learners.iter().zip(memories) {
        let p = l.position;
        for (name, x, m) in [("a", &l.components.a, &m[0]), ("b", &l.components.b, &m[1])] {
            tensors.push((format!("{p}.{name}"), x.clone()));
            tensors.push((format!("{p}.{name}.first"), m.first.clone()));
            tensors.push((format!("{p}.{name}.second"), m.second.clone()));
        }
    }
    let failed = crate::atomic::FileError::at("writing", path);
    mlx::files::write_tensors(path, &tensors).map_err(failed)?;
    work::seal(path)
}

/// Reads a state that was kept; answers the step it stands at, 0 where there is none.
fn restore(path: &Path, learners: &mut [Learner], memories: &mut [[Memory; 2]]) -> Result<u32> {
    if !path.is_file() {
        return Ok(0);
    }
    let damaged = || Error::file(path, "is damaged; delete it, and refinement begins again");
    if !work::is_sealed(path)? {
        return Err(damaged());
    }
    let mut all = Array::load_safetensors(path).map_err(|_| damaged())?;
    let mut take = |name: String, shape: &[i32]| -> Result<Array> {
        let found = all.remove(&name).filter(|a| a.shape() == shape).ok_or_else(damaged)?;
        mlx::eval([&found])?;
        Ok(found)
    };
    let step = take("step".into(), &[1])?;
    let step = step.try_as_slice::<i32>().ok().and_then(|s| s.first().copied()).ok_or_else(damaged)?;
    for (l, [of_a, of_b]) in learners.iter_mut().zip(memories) {
        let p = l.position;
        for (name, x, memory) in [("a", &mut l.components.a, of_a), ("b", &mut l.components.b, of_b)] {
            let shape = x.shape().to_vec();
            *x = take(format!("{p}.{name}"), &shape)?;
            memory.first = take(format!("{p}.{name}.first"), &shape)?;
            memory.second = take(format!("{p}.{name}.second"), &shape)?;
        }
    }
    Ok(step as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_warms_up_and_falls() {
        let all: Vec<f64> = (0..50).map(|s| schedule(s, 50)).collect();
        assert!((all[0] - 0.2).abs() < 1e-12 && (all[4] - 1.0).abs() < 1e-12);
        assert!(all[5..].windows(2).all(|w| w[1] < w[0]) && all[49] > LAST);
    }

    #[test]
    fn budgets_are_drawn_by_their_weight() {
        let budgets = [(0.8, 1.0), (0.6, 2.0), (0.4, 1.0)];
        assert_eq!([0.1, 0.3, 0.7, 0.8, 1.0].map(|x| drawn(&budgets, x)), [0, 1, 1, 2, 2]);
    }

    #[test]
    fn every_window_is_seen_before_any_is_seen_again() {
        let windows: Vec<Vec<u32>> = (0..6).map(|w| vec![w, w]).collect();
        let how = Refinement { steps: 6, batch: 2, learning_rate: 1e-3, seed: 7, budgets: vec![(1.0, 1.0)] };
        for epoch in 0..2 {
            let mut seen: Vec<i32> = (0..3)
                .flat_map(|s| {
                    let t = tokens(&windows, &how, epoch * 3 + s);
                    t.as_slice::<i32>().iter().step_by(2).copied().collect::<Vec<_>>()
                })
                .collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
        }
    }
}
