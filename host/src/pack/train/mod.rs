//! Training: a frozen base, adapters on chosen slices, and what decides when they are good enough.
//!
//! A training is a function of its options, the base, the text and the machine: every draw follows from the seed
//! and a number (of the batch, of the slice), so one that was stopped and goes on ends with the same bytes as one
//! that was not.

pub mod auto;
mod bank;
mod batches;
pub mod checkpoint;
pub mod drawing;
mod forward;
mod governor;
mod optimizer;
pub mod options;
pub mod targets;

use super::attach;
use super::error::{Error, Result};
use super::format::{Adapter, Meta, Pack, VERSION};
use crate::eval::data::Window;
use crate::eval::perplexity::{self, Perplexity};
use crate::mlx::{self, Array, Context};
use crate::model::Model;
use crate::plastic::policies::Policies;
use bank::Bank;
use batches::{Batch, Batches};
use checkpoint::{Lines, State, TrainingDir};
use forward::{Gated, Gradients, Live, Pass};
pub use governor::Decision;
use governor::{Facts, Governor, Probe};
use options::Options;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;
use targets::Target;

/// One update, as the metrics have it.
#[derive(Clone, Debug, Serialize)]
pub struct StepMetrics {
    /// Number of the update.
    pub step: u32,
    /// Mean loss of its batches, nats a token.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Norm of all gradients together, before clipping.
    pub gradient_norm: f64,
    /// Tokens that counted.
    pub tokens: usize,
    /// Tokens that ran through the model a second.
    pub tokens_per_second: f64,
    /// Components awake in all adapters.
    pub rank: usize,
}

/// One validation.
#[derive(Clone, Debug, Serialize)]
pub struct Validation {
    /// After this update; 0 is the base.
    pub step: u32,
    /// Mean loss, nats a token.
    pub valid_loss: f64,
    /// Perplexity.
    pub valid_perplexity: f64,
    /// Whether it is the best so far.
    pub best: bool,
}

/// Told of progress and asked whether to go on.
pub trait Watcher {
    /// An update is done.
    fn step(&mut self, m: &StepMetrics, of: u32);
    /// A validation is done.
    fn validated(&mut self, v: &Validation);
    /// A decision about ranks was taken.
    fn decided(&mut self, d: &Decision);
    /// Windows scored of those to score.
    fn scoring(&mut self, done: usize, of: usize);
    /// Whether the training was asked to stop.
    fn interrupted(&self) -> bool;
}

/// How a training ended.
#[derive(Clone, Debug, Serialize)]
pub struct Ended {
    /// Updates done.
    pub steps: u32,
    /// Why there were no more; `None`: all were done.
    pub stopped: Option<String>,
    /// Mean loss of the last update.
    pub last_loss: f64,
    /// Loss of the base on the validation windows.
    pub base_loss: Option<f64>,
    /// The best validation: after which update, and its loss. The pack is that of this update.
    pub best: Option<(u32, f64)>,
    /// Tokens that counted.
    pub tokens: u64,
    /// Seconds of training, validation apart.
    pub seconds: f64,
}

/// What a training needs, put together by the caller.
pub struct Parts {
    /// The base; nothing attached.
    pub model: Model,
    /// Options.
    pub options: Options,
    /// Rows to train on.
    pub rows: Vec<Window>,
    /// Windows to validate with; may be empty.
    pub valid: Vec<Window>,
    /// Pack to begin from.
    pub from: Option<Pack>,
    /// Who changes ranks, configured; where the options say that somebody does.
    pub policies: Option<Policies>,
}

/// A training in progress.
pub struct Trainer {
    model: Model,
    options: Options,
    targets: Vec<Target>,
    banks: Vec<Bank>,
    /// DoRA: the base's weights of the adapted slices.
    weights: Vec<Option<Array>>,
    batches: Batches,
    valid: Vec<Window>,
    state: State,
    best: BTreeMap<String, Adapter>,
    governor: Option<Governor>,
    /// Loss of the last validation.
    valid_loss: Option<f64>,
    /// Bytes for the insides of layers.
    kept: u64,
}

/// Most bytes for the insides of layers with gradient checkpointing, where so much is free.
const KEPT: u64 = 768 << 20;

impl Trainer {
    /// A training that has not begun.
    ///
    /// # Errors
    /// When the options do not fit the model, the text is too short, or the pack would be too large.
    pub fn new(parts: Parts) -> Result<Trainer> {
        let Parts { mut model, options, rows, valid, from, policies } = parts;
        let targets = targets::choose(&options, model.config(), model.slices())?;
        if options.fp16_base {
            model.round_to_float16()?;
        }
        let batches = Batches::new(rows, options.batch, options.seed)?;
        let mut weights = Vec::with_capacity(targets.len());
        let mut banks = Vec::with_capacity(targets.len());
        for t in &targets {
            let w = if options.dora { Some(model.dense_weight(t.position)?) } else { None };
            let magnitude = w.as_ref().map(row_norms).transpose()?;
            let capacity = match &options.ranks_by {
                None => t.rank,
                Some(r) if r.most == 0 => (2 * t.rank).min(t.rows.min(t.cols)),
                Some(r) => (r.most as usize).clamp(t.rank, t.rows.min(t.cols).max(t.rank)),
            };
            banks.push(match from.as_ref().and_then(|p| p.adapters.get(&t.key)) {
                None => Bank::new(&options, t, capacity, magnitude)?,
                Some(adapter) => Bank::from_adapter(&options, t, capacity, adapter)?,
            });
            weights.push(w);
        }
        if let Some(pack) = &from {
            let known = |key: &&String| !targets.iter().any(|t| t.key == **key);
            if let Some(key) = pack.adapters.keys().find(known) {
                return Err(Error::fit(
                    pack.name(),
                    format!("has an adapter for {key}, which is not trained here; add it to --layers"),
                ));
            }
        }
        let governor = match (policies, &options.ranks_by) {
            (Some(policies), Some(r)) => {
                let (seed, steps) = (options.seed, options.steps);
                Some(Governor::new(policies, r, &targets, &banks, model.slices(), seed, steps)?)
            }
            _ => None,
        };
        let (state, best) = (State::default(), BTreeMap::new());
        let kept = match options.recompute {
            true => KEPT.min(mlx::memory::available().unwrap_or(KEPT) / 4),
            false => u64::MAX,
        };
        let trainer = Trainer {
            model,
            options,
            targets,
            banks,
            weights,
            batches,
            valid,
            state,
            best,
            governor,
            valid_loss: None,
            kept,
        };
        // Before hours are spent on a pack that cannot be written.
        trainer
            .current(&Meta::default_of(&trainer.options))?
            .check_size(std::path::Path::new(&trainer.options.name))?;
        Ok(trainer)
    }

    /// Goes on from the last state of a directory, if it has one.
    ///
    /// # Errors
    /// When the state is damaged or not of this training.
    pub fn resume(&mut self, dir: &TrainingDir) -> Result<()> {
        let Some((state, mut tensors, best)) = dir.load()? else { return Ok(()) };
        let missing =
            |name: &str| Error::file(dir.path(), format!("its state has no {name}; begin the training again"));
        for (bank, t) in self.banks.iter_mut().zip(&self.targets) {
            bank.restore(&t.key, &mut |name| tensors.remove(name).ok_or_else(|| missing(name)))?;
        }
        let damaged = |what: String| Error::file(dir.path(), format!("its state {what}; begin the training again"));
        if let Some(name) = tensors.keys().next() {
            return Err(damaged(format!("has {name}, which belongs to nothing")));
        }
        for (key, a) in &best {
            let fits = |t: &&Target| t.key == *key && (a.a.rows, a.b.cols) == (t.rows, t.cols);
            if !self.targets.iter().any(|t| fits(&t)) || !a.alpha.is_finite() {
                return Err(damaged(format!("has a best {key} that is none of this training")));
            }
        }
        if state.step > self.options.steps || best.is_empty() != state.best.is_none() {
            return Err(damaged(format!("is after update {} of {}", state.step, self.options.steps)));
        }
        if let (Some(g), Some(kept)) = (&mut self.governor, &state.ranks) {
            g.restore(kept)?;
        }
        self.valid_loss = state.valid_loss;
        (self.state, self.best) = (state, best);
        Ok(())
    }

    /// Slices that are trained.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Rows trained on.
    pub fn rows(&self) -> usize {
        self.batches.rows()
    }

    /// Updates done.
    pub fn step(&self) -> u32 {
        self.state.step
    }

    /// Trains to the end, or until stopped: then everything is in the directory to go on from.
    ///
    /// # Errors
    /// When a loss or gradient is no number, MLX fails, or the disk is full. `Ok(None)` on interruption.
    pub fn run(&mut self, dir: &TrainingDir, watcher: &mut dyn Watcher) -> Result<Option<Ended>> {
        let anew = self.state.step == 0 && self.state.base_loss.is_none();
        let mut lines =
            if anew { dir.lines_anew("metrics.jsonl")? } else { dir.lines("metrics.jsonl", self.state.step)? };
        let mut history = match self.governor {
            Some(_) => Some(dir.lines("ranks.jsonl", self.state.step)?),
            None => None,
        };
        if let (Some(g), Some(history), 0) = (&mut self.governor, &mut history, self.state.step) {
            // Twice where a training stopped before its first checkpoint.
            *history = dir.lines_anew("ranks.jsonl")?;
            history.add(&g.opening(&self.banks))?;
        }
        if self.state.base_loss.is_none() && !self.valid.is_empty() {
            let Some(measured) = self.score(watcher)? else { return Ok(None) };
            self.state.base_loss = Some(measured.mean_nll);
            let v = Validation {
                step: 0,
                valid_loss: measured.mean_nll,
                valid_perplexity: measured.perplexity,
                best: false,
            };
            lines.add(&v)?;
            watcher.validated(&v);
        }
        let mut stopped = None;
        while self.state.step < self.options.steps {
            if watcher.interrupted() {
                self.save(dir, &lines, &history)?;
                return Ok(None);
            }
            let m = self.update()?;
            lines.add(&m)?;
            watcher.step(&m, self.options.steps);
            let step = self.state.step;
            if let Some(d) = self.decide(&m)? {
                history.as_mut().map_or(Ok(()), |h| h.add(&d))?;
                watcher.decided(&d);
            }
            let every = |n: u32| n > 0 && step.is_multiple_of(n);
            if !self.valid.is_empty() && (every(self.options.valid_every) || step == self.options.steps) {
                let Some(v) = self.validate(watcher)? else {
                    // Nothing is lost: this update is taken again from the last state.
                    return Ok(None);
                };
                lines.add(&v)?;
                watcher.validated(&v);
                if self.options.patience > 0 && self.state.worse >= self.options.patience {
                    stopped = Some(format!("no better validation in {} of them", self.state.worse));
                }
            }
            if every(self.options.checkpoint_every) || stopped.is_some() {
                self.save(dir, &lines, &history)?;
            }
            if stopped.is_some() {
                break;
            }
        }
        self.save(dir, &lines, &history)?;
        Ok(Some(Ended {
            steps: self.state.step,
            stopped,
            last_loss: self.state.last_loss,
            base_loss: self.state.base_loss,
            best: self.state.best,
            tokens: self.state.tokens,
            seconds: self.state.seconds,
        }))
    }

    fn save(&mut self, dir: &TrainingDir, lines: &Lines, history: &Option<Lines>) -> Result<()> {
        lines.sync()?;
        history.as_ref().map_or(Ok(()), Lines::sync)?;
        self.state.ranks = self.governor.as_mut().map(Governor::snapshot).transpose()?;
        self.state.valid_loss = self.valid_loss;
        let tensors = self.banks.iter().zip(&self.targets).flat_map(|(b, t)| b.tensors(&t.key)).collect();
        dir.save(&self.state, tensors, &self.best)
    }

    /// The pack: that of the best validation, or as it is now where there was none.
    ///
    /// # Errors
    /// When a number is too large for float16.
    pub fn finished(&self, meta: &Meta) -> Result<Pack> {
        match self.best.is_empty() {
            true => self.current(meta),
            false => Ok(Pack::new(meta.clone(), self.best.clone())),
        }
    }

    /// The pack as it is now; adapters without an awake component are left out.
    fn current(&self, meta: &Meta) -> Result<Pack> {
        let mut adapters = BTreeMap::new();
        for (bank, t) in self.banks.iter().zip(&self.targets).filter(|(b, _)| b.rank() > 0) {
            adapters.insert(t.key.clone(), bank.adapter(t)?);
        }
        Ok(Pack::new(meta.clone(), adapters))
    }

    /// Scores the validation windows with what is attached to the model now.
    fn score(&mut self, watcher: &mut dyn Watcher) -> Result<Option<Perplexity>> {
        let of = self.valid.len();
        Ok(perplexity::measure(&self.model, &self.valid, self.options.batch, &mut |done| {
            watcher.scoring(done, of);
            !watcher.interrupted()
        })?)
    }

    /// Measures the pack as it would be written, rounded to float16; `None` on interruption.
    fn validate(&mut self, watcher: &mut dyn Watcher) -> Result<Option<Validation>> {
        let pack = self.current(&Meta::default_of(&self.options))?;
        let attachment = attach::prepare(&self.model, &[(&pack, 1.0)])?;
        attach::attach(&mut self.model, &attachment);
        let measured = self.score(watcher);
        attach::detach(&mut self.model);
        let Some(measured) = measured? else { return Ok(None) };
        self.valid_loss = Some(measured.mean_nll);
        let best = self.state.best.is_none_or(|(_, loss)| measured.mean_nll < loss);
        match best {
            true => {
                self.state.best = Some((self.state.step, measured.mean_nll));
                self.state.worse = 0;
                self.best = pack.adapters;
            }
            false => self.state.worse += 1,
        }
        Ok(Some(Validation {
            step: self.state.step,
            valid_loss: measured.mean_nll,
            valid_perplexity: measured.perplexity,
            best,
        }))
    }

    /// One update.
    fn update(&mut self) -> Result<StepMetrics> {
        let begun = Instant::now();
        let step = self.state.step + 1;
        let Gradients { loss, mut arrays, counted, run } = self.gradients(step)?;
        let norm = norm(&arrays)?;
        self.guard(step, loss, norm, &arrays)?;
        if let Some(g) = &mut self.governor {
            g.learn(&self.banks, &arrays)?;
        }
        if self.options.clip > 0.0 && norm > self.options.clip {
            let factor = Array::from_f32((self.options.clip / norm) as f32);
            arrays = arrays.iter().map(|g| g.multiply(&factor)).collect::<std::result::Result<_, _>>()?;
        }
        let mut grads = arrays.into_iter();
        let mut changed = Vec::new();
        for bank in &mut self.banks {
            let live: Vec<Array> = bank.live.arrays().cloned().collect();
            let mut new = Vec::with_capacity(live.len());
            for (i, (p, memory)) in live.iter().zip(&mut bank.memory).enumerate() {
                let g = grads.next().ok_or_else(|| Error::Other("MLX gave too few gradients".into()))?;
                // Magnitudes begin at the weights' own lengths and are not pulled to 0.
                new.push(optimizer::update(&self.options, step, p, &g, memory, i < 2)?);
                changed.extend([memory.first.clone(), memory.second.clone()]);
            }
            changed.extend(new.iter().cloned());
            let mut new = new.into_iter();
            if let (Some(a), Some(b)) = (new.next(), new.next()) {
                bank.live = Live { a, b, magnitude: new.next() };
            }
        }
        mlx::eval(&changed)?;
        let seconds = begun.elapsed().as_secs_f64();
        self.state.step = step;
        self.state.last_loss = loss;
        self.state.tokens += counted as u64;
        self.state.seconds += seconds;
        Ok(StepMetrics {
            step,
            loss,
            learning_rate: self.options.rate(step),
            gradient_norm: norm,
            tokens: counted,
            tokens_per_second: run as f64 / seconds.max(1e-9),
            rank: self.banks.iter().map(Bank::rank).sum(),
        })
    }

    /// Lets the policies decide, where it is time.
    fn decide(&mut self, m: &StepMetrics) -> Result<Option<Decision>> {
        let Some(mut governor) = self.governor.take_if(|g| g.due(m.step)) else { return Ok(None) };
        let facts = Facts {
            step: m.step,
            steps: self.options.steps,
            loss: m.loss,
            valid: self.valid_loss,
            rate: m.learning_rate,
        };
        let mut banks = self.banks.clone();
        let decision = governor.decide(&mut banks, &facts, self);
        self.governor = Some(governor);
        let decision = decision?;
        self.banks = banks;
        Ok(Some(decision))
    }

    /// A pass for measuring these banks: nothing dropped, layer by layer.
    fn probed<T>(
        &self,
        banks: &[Bank],
        gates: Option<&[Gated]>,
        measure: impl FnOnce(&Pass) -> Result<T>,
    ) -> Result<T> {
        let live: Vec<Live> = banks.iter().map(|b| b.live.clone()).collect();
        measure(&Pass {
            model: &self.model,
            targets: &self.targets,
            live: &live,
            scales: &self.scales(),
            norms: &vec![None; banks.len()],
            dropout: None,
            kept: self.kept,
            gates,
        })
    }

    /// The batch that the next update takes first.
    fn next_batch(&mut self) -> Result<Batch> {
        self.batches.get(u64::from(self.state.step) * self.options.accumulate as u64)
    }

    /// The gradients of all batches of an update together, of the mean loss over all their tokens.
    fn gradients(&mut self, step: u32) -> Result<Gradients> {
        let n = self.options.accumulate as u64;
        let number = |i: u64| u64::from(step - 1) * n + i;
        // One at a time: only the count of all of them is needed first.
        let mut counted = 0;
        for i in 0..n {
            counted += self.batches.get(number(i))?.counted;
        }
        let live: Vec<Live> = self.banks.iter().map(|b| b.live.clone()).collect();
        let scales = self.scales();
        let norms = self.norms(&scales)?;
        let mut sum = Gradients { loss: 0.0, arrays: Vec::new(), counted, run: 0 };
        for i in 0..n {
            let batch = self.batches.get(number(i))?;
            sum.run += batch.run;
            let seed = mixed(self.options.seed, u64::from(step) * n + i);
            let pass = Pass {
                model: &self.model,
                targets: &self.targets,
                live: &live,
                scales: &scales,
                norms: &norms,
                dropout: (self.options.dropout > 0.0).then_some((self.options.dropout as f32, seed)),
                kept: self.kept,
                gates: None,
            };
            let (loss, arrays) = pass.gradients(&batch, 1.0 / counted.max(1) as f64)?;
            sum.loss += loss / counted.max(1) as f64;
            sum.arrays = match sum.arrays.is_empty() {
                true => arrays,
                false => {
                    sum.arrays.iter().zip(&arrays).map(|(a, b)| a.add(b)).collect::<std::result::Result<_, _>>()?
                }
            };
            mlx::eval(&sum.arrays)?;
        }
        Ok(sum)
    }

    /// alpha / r of each target.
    fn scales(&self) -> Vec<f32> {
        self.targets.iter().map(|t| t.alpha / t.rank.max(1) as f32).collect()
    }

    /// DoRA: ‖W + s A B‖ by rows.
    fn norms(&self, scales: &[f32]) -> Result<Vec<Option<Array>>> {
        let mut out = Vec::with_capacity(self.banks.len());
        for ((bank, w), scale) in self.banks.iter().zip(&self.weights).zip(scales) {
            out.push(match w {
                None => None,
                Some(w) => {
                    let a = bank.live.a.multiply(Array::from_f32(*scale))?;
                    let norms = row_norms(&w.add(a.matmul(&bank.live.b)?)?)?;
                    mlx::eval([&norms])?;
                    Some(norms)
                }
            });
        }
        Ok(out)
    }

    /// Stops at a loss or a gradient that is no number, with the cause as far as it can be told.
    fn guard(&self, step: u32, loss: f64, norm: f64, gradients: &[Array]) -> Result<()> {
        if loss.is_finite() && norm.is_finite() {
            return Ok(());
        }
        let what = match loss.is_finite() {
            false => format!("the loss is {loss}"),
            true => {
                let mut at = 0;
                let mut first = String::new();
                for (bank, t) in self.banks.iter().zip(&self.targets) {
                    let n = bank.live.arrays().count();
                    let part = gradients.get(at..at + n).unwrap_or_default();
                    at += n;
                    if !self::norm(part)?.is_finite() {
                        first.clone_from(&t.key);
                        break;
                    }
                }
                format!("the gradient is not finite, first in {first}")
            }
        };
        let rate = self.options.rate(step);
        let kept = match self.state.best {
            Some((s, _)) => format!("; the pack of update {s}, the best validated, is not lost"),
            None => String::new(),
        };
        Err(Error::Other(format!(
            "update {step}: {what} at a learning rate of {rate:.2e} (last loss {:.4}); lower --learning-rate, or --grad-clip{kept}",
            self.state.last_loss
        )))
    }
}

impl Probe for Trainer {
    fn loss(&mut self, banks: &[Bank]) -> Result<f64> {
        let batch = self.next_batch()?;
        let loss = self.probed(banks, None, |pass| pass.loss_of(&batch))?;
        Ok(loss / batch.counted.max(1) as f64)
    }

    fn fisher(&mut self, banks: &[Bank]) -> Result<Vec<Vec<f32>>> {
        let batch = self.next_batch()?;
        let shape = batch.tokens.shape().to_vec();
        let mut gates = Vec::with_capacity(banks.len());
        for bank in banks {
            let (a, b, awake) = bank.whole()?;
            let open: Vec<f32> = awake.iter().map(|x| f32::from(u8::from(*x))).collect();
            let open = Array::from_slice(&open, &[1, 1, open.len() as i32]);
            let gate = mlx_rs::ops::broadcast_to(&open, &[shape[0], shape[1], open.dim(2)])?;
            gates.push(Gated { a, b, gate });
        }
        let (_, gradients) = self.probed(banks, Some(&gates), |pass| pass.gradients(&batch, 1.0))?;
        let tokens = Array::from_f32(1.0 / batch.counted.max(1) as f32);
        let root = |g: &Array| g.square()?.sum_axes(&[0, 1], false)?.multiply(&tokens)?.sqrt();
        gradients.iter().map(|g| bank::floats(&root(g).context("worth of components")?)).collect()
    }
}

impl Meta {
    /// The metadata of a pack that is being trained, base and time left open.
    pub fn default_of(options: &Options) -> Meta {
        Meta {
            pack_name: options.name.clone(),
            base_hash: String::new(),
            base_model: options.base.clone(),
            profile: options.profile,
            rank_map: BTreeMap::new(),
            alpha_map: BTreeMap::new(),
            target_layers: Vec::new(),
            training_data: None,
            training_config: serde_json::Value::Null,
            created_at: String::new(),
            notes: options.notes.clone(),
            version: VERSION.into(),
        }
    }
}

/// A number drawn from a seed and a count (SplitMix64, Steele et al. 2014).
fn mixed(seed: u64, count: u64) -> u64 {
    let mut z = seed.wrapping_add(count.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Lengths of the rows of a matrix: [out].
fn row_norms(w: &Array) -> Result<Array> {
    Ok(w.square().and_then(|x| x.sum_axis(1, false)).and_then(|x| x.sqrt()).context("lengths of rows")?)
}

/// Norm of all arrays together.
fn norm(arrays: &[Array]) -> Result<f64> {
    let squares: Vec<Array> = arrays
        .iter()
        .map(|g| g.square()?.sum(None))
        .collect::<std::result::Result<_, _>>()
        .context("norm of gradients")?;
    if squares.is_empty() {
        return Ok(0.0);
    }
    let each = mlx_rs::ops::stack(&squares, 0)?;
    Ok(bank::floats(&each)?.iter().map(|x| f64::from(*x)).sum::<f64>().sqrt())
}
