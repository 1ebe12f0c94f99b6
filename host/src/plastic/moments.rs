//! Second moments of what flows through every slice: the statistics behind the `input` and `fisher`
//! metrics, gathered in one streamed pass over calibration text and cached by content.
//!
//! Only matrices of side min(rows, cols) are ever kept (see [`super::factor`]): for a slice with
//! rows ≤ cols the moments of its output `y = W x` and of the gradient `g` there; for a taller one
//! those of its input `x` and of `Wᵀ g`. Gradients are those of the negative log-likelihood of labels
//! drawn from the model's own softmax, which makes E[g gᵀ] a factor of the true Fisher information
//! and not of the empirical one (Kunstner et al. 2019).

use super::factor::SliceMoments;
use crate::mlx::{self, Array, Context, kernels, spectral};
use crate::model::{Error as ModelError, Model, SliceMeta, Tap};
use mlx_rs::error::Exception;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Tokens in one batch of the pass: large enough for full-speed products, small enough for memory.
const BATCH_TOKENS: usize = 2048;

/// Moments cannot be gathered, read or written.
#[derive(Debug, thiserror::Error)]
pub enum MomentsError {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// MLX failed.
    #[error(transparent)]
    Mlx(#[from] mlx::MlxError),
    /// The pass was interrupted.
    #[error("interrupted while gathering calibration statistics")]
    Interrupted,
    /// A moment came out as NaN or infinite.
    #[error("{slice}: calibration statistics are not finite; the weights or the text drive the model out of range")]
    NotFinite {
        /// The slice.
        slice: String,
    },
    /// The cache cannot be written.
    #[error("{path}: {source}; free some space or set PLASTIC_CACHE to another directory")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, MomentsError>;

/// Second moments of all slices.
pub struct Moments {
    tensors: Tensors,
    output_mean: Vec<f64>,
}

/// Where the upper triangles are.
enum Tensors {
    Memory(HashMap<String, Array>),
    /// In a file, from which what is wanted is read each time: all of them are larger than many a model.
    File(PathBuf),
}

impl Tensors {
    fn get(&self, key: &str) -> Option<Array> {
        match self {
            Tensors::Memory(all) => all.get(key).cloned(),
            // Lazy: only this one is read, when it is computed with.
            Tensors::File(path) => Array::load_safetensors(path).ok()?.remove(key),
        }
    }
}

/// A weight [rows, cols] for a slice: float32, in another's place.
pub type Substitute<'a> = dyn Fn(usize) -> mlx::Result<Array> + 'a;

/// What to gather from.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Calibration windows, all of one length.
    pub windows: &'a [Vec<u32>],
    /// How many of them, spread evenly, also give gradients (three times as expensive).
    pub gradient_windows: usize,
    /// Seed of the drawn labels.
    pub seed: u64,
    /// The matrices that are to be decomposed, where those are not the model's own weights: moments are kept on the
    /// smaller side, behind the matrix. What flows through the model stays the same.
    pub of: Option<&'a Substitute<'a>>,
}

impl Pass<'_> {
    /// Which windows give gradients.
    fn gives_gradients(&self, window: usize) -> bool {
        let (n, of) = (self.gradient_windows.min(self.windows.len()), self.windows.len().max(1));
        (window + 1) * n / of > window * n / of
    }

    /// Windows in batches of one kind, in order.
    fn batches(&self) -> Vec<(Vec<usize>, bool)> {
        let length = self.windows.first().map_or(1, Vec::len).max(1);
        let size = (BATCH_TOKENS / length).max(1);
        let mut out = Vec::new();
        for gradients in [true, false] {
            let chosen: Vec<usize> =
                (0..self.windows.len()).filter(|&w| self.gives_gradients(w) == gradients).collect();
            out.extend(chosen.chunks(size).map(|c| (c.to_vec(), gradients)));
        }
        out
    }
}

/// Reports progress (done, total) and answers whether to go on.
pub type Progress<'a> = dyn FnMut(u64, u64) -> bool + 'a;

/// Key of a slice's input moments: taller slices of one group share them.
fn input_key(s: &SliceMeta) -> String {
    if s.rows <= s.cols { format!("{}.input", s.name) } else { format!("group.{}.input", s.group) }
}

/// Key of E‖x‖², as a matrix of one entry.
fn energy_key(s: &SliceMeta) -> String {
    format!("group.{}.energy", s.group)
}

fn output_key(s: &SliceMeta) -> String {
    format!("{}.output", s.name)
}

/// [.., width] as [tokens, width].
fn flat(a: &Array) -> std::result::Result<Array, Exception> {
    a.reshape(&[-1, a.dim(-1)])
}

fn gram(a: &Array) -> std::result::Result<Array, Exception> {
    a.transpose()?.matmul(a)
}

/// Sees the projections of one layer and keeps the Gram matrices of their inputs or outputs.
struct Watch<'a> {
    model: &'a Model,
    of: Option<&'a Substitute<'a>>,
    grams: RefCell<Vec<(String, Array)>>,
}

impl Tap for Watch<'_> {
    fn linear(&self, slice: usize, x: &Array, y: Array) -> mlx::Result<Array> {
        let s = &self.model.slices()[slice];
        let key = input_key(s);
        let mut grams = self.grams.borrow_mut();
        if !grams.iter().any(|(k, _)| *k == key) {
            let through = |w: Array| x.matmul(w.transpose()?).context("input moments");
            let seen = match (s.rows <= s.cols, self.of, self.model.added(slice), self.model.bias(slice)) {
                (false, ..) => x.clone(),
                (true, Some(of), ..) => through(of(slice)?)?,
                // What the base's weight makes of x, without what packs add.
                (true, None, Some(_), _) => through(dense(self.model, slice)?)?,
                (true, None, None, Some(bias)) => y.subtract(bias).context("input moments")?,
                (true, None, None, None) => y.clone(),
            };
            grams.push((key, flat(&seen).and_then(|a| gram(&a)).context("input moments")?));
        }
        let key = energy_key(s);
        if !grams.iter().any(|(k, _)| *k == key) {
            let energy = x.square().and_then(|x| x.sum(None)).and_then(|sum| sum.reshape(&[1, 1]));
            grams.push((key, energy.context("input energy")?));
        }
        Ok(y)
    }
}

fn dense(model: &Model, slice: usize) -> mlx::Result<Array> {
    model
        .dense_weight(slice)
        .map_err(|e| mlx::MlxError { what: "input moments".into(), exception: Exception::custom(e.to_string()) })
}

/// Adds a probe to every projection of one layer, so that the gradient of the probe is the
/// gradient at the projection's output.
struct Probe<'a> {
    first: usize,
    zeros: &'a [Array],
}

impl Tap for Probe<'_> {
    fn linear(&self, slice: usize, _x: &Array, y: Array) -> mlx::Result<Array> {
        match self.zeros.get(slice - self.first) {
            Some(z) => y.add(z).context("probing a projection"),
            None => Ok(y),
        }
    }
}

/// Sums over batches.
struct Sums {
    tensors: HashMap<String, Array>,
    output_squares: Vec<f64>,
    input_tokens: f64,
    output_tokens: f64,
}

impl Sums {
    fn add(&mut self, key: String, gram: Array) -> mlx::Result<()> {
        let sum = match self.tensors.get(&key) {
            Some(old) => old.add(&gram).context("summing moments")?,
            None => gram,
        };
        mlx::eval([&sum])?;
        self.tensors.insert(key, sum);
        Ok(())
    }
}

/// Gathers the moments of all slices of a model that runs on its base weights, with packs or without.
///
/// # Errors
/// When interrupted, when the model fails, or when a moment is not finite.
pub fn gather(model: &Model, pass: &Pass, progress: &mut Progress) -> Result<Moments> {
    let slices = model.slices();
    let layers: Vec<Vec<usize>> = by_layer(slices);
    let mut sums = Sums {
        tensors: HashMap::new(),
        output_squares: vec![0.0; slices.len()],
        input_tokens: 0.0,
        output_tokens: 0.0,
    };
    let batches = pass.batches();
    // A gradient batch costs about four forward passes: forward, again under vjp, and the vjp itself.
    let cost = |gradients: bool| if gradients { 4 } else { 1 };
    let total: u64 = batches.iter().map(|(b, g)| (b.len() * layers.len() * cost(*g)) as u64).sum();
    let mut done = 0;
    let mut advance = |n: usize| -> Result<()> {
        done += n as u64;
        if progress(done, total) { Ok(()) } else { Err(MomentsError::Interrupted) }
    };
    for (number, (batch, gradients)) in batches.iter().enumerate() {
        let tokens = tokens_of(pass.windows, batch);
        let n = f64::from(tokens.dim(0)) * f64::from(tokens.dim(1));
        sums.input_tokens += n;
        let mut h = model.embed(&tokens)?;
        let mut inputs = Vec::new();
        for layer in 0..layers.len() {
            let watch = Watch { model, of: pass.of, grams: RefCell::new(Vec::new()) };
            let next = model.layer(layer, &h, None, Some(&watch))?;
            mlx::eval([&next])?;
            for (key, gram) in watch.grams.into_inner() {
                sums.add(key, gram)?;
            }
            if *gradients {
                inputs.push(h);
            }
            h = next;
            advance(batch.len())?;
        }
        if *gradients {
            sums.output_tokens += n;
            let seeded = Pass { seed: pass.seed.wrapping_add(number as u64), ..*pass };
            backward(model, &layers, inputs, &h, &seeded, &mut sums, &mut || advance(3 * batch.len()))?;
        }
    }
    sums.finish(slices)
}

fn by_layer(slices: &[SliceMeta]) -> Vec<Vec<usize>> {
    let layers = slices.iter().map(|s| s.layer as usize + 1).max().unwrap_or(0);
    let mut out = vec![Vec::new(); layers];
    for (i, s) in slices.iter().enumerate() {
        out[s.layer as usize].push(i);
    }
    out
}

fn tokens_of(windows: &[Vec<u32>], batch: &[usize]) -> Array {
    let ids: Vec<i32> = batch.iter().flat_map(|&w| windows[w].iter().map(|&t| t as i32)).collect();
    let rows = batch.len() as i32;
    Array::from_slice(&ids, &[rows, ids.len() as i32 / rows.max(1)])
}

/// Sends the gradient of drawn labels back through the layers and sums the moments of what passes.
fn backward(
    model: &Model,
    layers: &[Vec<usize>],
    mut inputs: Vec<Array>,
    last: &Array,
    pass: &Pass,
    sums: &mut Sums,
    advance: &mut dyn FnMut() -> Result<()>,
) -> Result<()> {
    let what = "gradients for the Fisher metric";
    let normed = model.final_norm(last)?;
    let (_, dhidden) = kernels::fisher_head(&flat(&normed).context(what)?, model.head_weight()?, pass.seed)?;
    let dhidden = dhidden.reshape(normed.shape()).context(what)?;
    let through_norm = |p: &[Array]| Ok(vec![model.final_norm(&p[0]).map_err(|e| e.exception)?]);
    let (_, back) =
        mlx_rs::transforms::fallible_vjp(through_norm, std::slice::from_ref(last), &[dhidden]).context(what)?;
    let mut dh = back.into_iter().next().ok_or_else(|| Exception::custom("no gradient")).context(what)?;
    mlx::eval([&dh])?;
    for (layer, ids) in layers.iter().enumerate().rev() {
        let Some(h) = inputs.pop() else { break };
        let shape = |s: &SliceMeta| [h.dim(0), h.dim(1), s.rows as i32];
        let mut primals = vec![h.clone()];
        for &i in ids {
            primals.push(mlx_rs::ops::zeros::<f32>(&shape(&model.slices()[i])).context(what)?);
        }
        let run = |p: &[Array]| {
            let probe = Probe { first: ids[0], zeros: &p[1..] };
            Ok(vec![model.layer(layer, &p[0], None, Some(&probe)).map_err(|e| e.exception)?])
        };
        let (_, grads) = mlx_rs::transforms::fallible_vjp(run, &primals, &[dh]).context(what)?;
        mlx::eval(&grads)?;
        let mut grads = grads.into_iter();
        dh = grads.next().ok_or_else(|| Exception::custom("no gradient")).context(what)?;
        for (&i, g) in ids.iter().zip(grads) {
            let s = &model.slices()[i];
            let g = flat(&g).context(what)?;
            // The gradient at the base's own product, which a DoRA pack multiplies.
            let g = match model.added(i).and_then(|a| a.gain.as_ref()) {
                Some(gain) => g.multiply(gain).context(what)?,
                None => g,
            };
            let square = g.multiply(&g).and_then(|x| x.sum(None)).context(what)?;
            sums.output_squares[i] += spectral::to_vec(&square)?.iter().sum::<f64>();
            let seen = match s.rows <= s.cols {
                true => g,
                false => {
                    let w = pass.of.map_or_else(|| dense(model, i), |of| of(i))?;
                    g.matmul(w).context(what)?
                }
            };
            sums.add(output_key(s), gram(&seen).context(what)?)?;
        }
        advance()?;
    }
    Ok(())
}

impl Sums {
    /// Divides by the token counts and checks that everything is finite.
    fn finish(self, slices: &[SliceMeta]) -> Result<Moments> {
        let mut tensors = HashMap::new();
        for (key, sum) in &self.tensors {
            let tokens = if key.ends_with(".output") { self.output_tokens } else { self.input_tokens };
            let mean = sum.multiply(Array::from_f32((1.0 / tokens.max(1.0)) as f32)).context("averaging moments")?;
            let total = spectral::to_vec(&mean.sum(None).context("averaging moments")?)?;
            if !total.iter().all(|v| v.is_finite()) {
                let slice = key.trim_end_matches(".input").trim_end_matches(".output").to_owned();
                return Err(MomentsError::NotFinite { slice });
            }
            // What is kept in memory is what the file keeps: a product of floats is not symmetric to the
            // last bit, and a run that finds the file must decide as the one that wrote it.
            let packed = pack(&mean).context("packing moments")?;
            mlx::eval([&packed])?;
            tensors.insert(key.clone(), packed);
        }
        let per_output =
            |(s, sum): (&SliceMeta, f64)| f64::from((sum / (self.output_tokens.max(1.0) * f64::from(s.rows))) as f32);
        let output_mean = slices.iter().zip(self.output_squares).map(per_output).collect();
        Ok(Moments { tensors: Tensors::Memory(tensors), output_mean })
    }
}

impl Moments {
    /// The moments of one slice; `None` when they were gathered from another model.
    pub fn of(&self, index: usize, slice: &SliceMeta) -> Option<SliceMoments> {
        let side = slice.rows.min(slice.cols) as i32;
        let get = |key: &str| self.tensors.get(key).and_then(|a| unpacked(a, side).ok());
        Some(SliceMoments {
            input: get(&input_key(slice))?,
            output: get(&output_key(slice))?,
            output_mean: *self.output_mean.get(index)?,
        })
    }

    /// E‖x‖² at a slice's input and E‖g‖² of the loss gradient at its output, per token.
    pub fn traces(&self, index: usize, slice: &SliceMeta) -> Option<(f64, f64)> {
        let energy = self.tensors.get(&energy_key(slice)).and_then(|a| unpacked(a, 1).ok())?;
        let input = spectral::to_vec(&energy).ok()?.first().copied()?;
        Some((input, self.output_mean.get(index)? * f64::from(slice.rows)))
    }

    /// Writes the upper triangles to a safetensors file: to a temporary name, synced, renamed.
    ///
    /// # Errors
    /// When the disk is full or the directory cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        // Those in a file are saved already.
        let Tensors::Memory(all) = &self.tensors else { return Ok(()) };
        let mut packed: Vec<(String, Array)> = all.iter().map(|(k, m)| (k.clone(), m.clone())).collect();
        let mean: Vec<f32> = self.output_mean.iter().map(|v| *v as f32).collect();
        packed.push(("output_mean".into(), Array::from_slice(&mean, &[mean.len() as i32])));
        crate::mlx::files::write_tensors(path, &packed)
            .map_err(|source| MomentsError::Write { path: path.to_owned(), source })
    }

    /// Opens a file written by [`Moments::save`]; tensors are read when used. `None` when there is
    /// none or it is damaged: gather again.
    pub fn open(path: &Path, slices: &[SliceMeta]) -> Option<Moments> {
        let mut tensors = Array::load_safetensors(path).ok()?;
        let mean = spectral::to_vec(&tensors.remove("output_mean")?).ok()?;
        let complete = slices.iter().all(|s| {
            let packed = |k: String| {
                let n = s.rows.min(s.cols) as usize;
                tensors.get(&k).is_some_and(|t| t.size() == n * (n + 1) / 2)
            };
            let energy = tensors.get(&energy_key(s)).is_some_and(|t| t.size() == 1);
            energy && packed(input_key(s)) && packed(output_key(s))
        });
        let tensors = Tensors::File(path.to_owned());
        (complete && mean.len() == slices.len()).then_some(Moments { tensors, output_mean: mean })
    }
}

/// Flat indices of the upper triangle of an n × n matrix, row by row.
fn upper(n: i32) -> Array {
    let index: Vec<i32> = (0..n).flat_map(|r| (r..n).map(move |c| r * n + c)).collect();
    Array::from_slice(&index, &[index.len() as i32])
}

fn pack(m: &Array) -> std::result::Result<Array, Exception> {
    m.reshape(&[-1])?.take_axis(upper(m.dim(0)), 0)
}

/// A square matrix from its packed upper triangle.
fn unpacked(a: Array, n: i32) -> std::result::Result<Array, Exception> {
    let at = |r: i32, c: i32| r * (2 * n - r + 1) / 2 + (c - r);
    let index: Vec<i32> = (0..n).flat_map(|r| (0..n).map(move |c| at(r.min(c), r.max(c)))).collect();
    a.take_axis(Array::from_slice(&index, &[n * n]), 0)?.reshape(&[n, n])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn packing_keeps_a_symmetric_matrix() {
        let n = 5;
        let m: Vec<f32> = (0..n * n).map(|i| ((i / n).min(i % n) * 10 + (i / n).max(i % n)) as f32).collect();
        let m = Array::from_slice(&m, &[n, n]);
        let p = pack(&m).unwrap();
        assert_eq!(p.shape(), &[15]);
        assert_eq!(spectral::to_vec(&unpacked(p, n).unwrap()).unwrap(), spectral::to_vec(&m).unwrap());
    }

    #[test]
    fn gradient_windows_are_spread_evenly_and_batched_apart() {
        let windows = vec![vec![0; 512]; 10];
        let pass = Pass { windows: &windows, gradient_windows: 4, seed: 0, of: None };
        let chosen: Vec<usize> = (0..10).filter(|&w| pass.gives_gradients(w)).collect();
        assert_eq!(chosen, vec![2, 4, 7, 9]);
        let batches = pass.batches();
        assert_eq!(batches[0], (vec![2, 4, 7, 9], true));
        assert_eq!(batches.iter().map(|(b, _)| b.len()).sum::<usize>(), 10);
    }
}
