//! A base against the same base with packs, on the same windows.
//!
//! The two sides take turns, batch by batch, and begin by turns, after an uncounted warm-up, so that neither pays
//! for cold caches or a busy moment of the machine. Speeds are medians over batches. Losses are compared window by
//! window: what both sides find hard cancels out, and the interval of the difference is that of the pack alone.
//! The model is left without packs, whatever happens.

use super::attach::{self, Attachment};
use super::error::{Error, Result};
use crate::eval::data::Window;
use crate::eval::perplexity::{self, WindowLoss};
use crate::eval::stats;
use crate::mlx::{self, Array, Context, Dtype, kernels};
use crate::model::Model;
use crate::model::generate::NOT_FINITE;
use mlx_rs::ops::indexing::{TryIndexOp, argmax_axis};
use serde::Serialize;
use std::time::Instant;

/// Batches each side is timed on at least.
const LEAST: usize = 3;
/// Prompt tokens that run together.
const PREFILL: usize = 512;
/// Logits of one side that are held at once: 64 MiB in float32.
const LOGITS: usize = 1 << 24;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// Windows to score.
    pub windows: &'a [Window],
    /// Windows that run together.
    pub batch: usize,
    /// Fill a batch that is not full by windows that are scored already, so that every batch is timed at its size.
    pub fill: bool,
    /// Prompts that are answered together when the first token is timed.
    pub prompts: usize,
    /// Times the first token is timed on each side.
    pub repeats: usize,
}

/// One side.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Side {
    /// Mean loss, nats a token.
    pub mean_nll: f64,
    /// Its standard error over windows.
    pub mean_nll_standard_error: Option<f64>,
    /// exp of the mean loss.
    pub perplexity: f64,
    /// Its standard error.
    pub perplexity_standard_error: Option<f64>,
    /// Share of the tokens that count which are the model's first guess.
    pub token_accuracy: f64,
    /// Tokens scored a second: median over batches.
    pub tokens_per_second: f64,
    /// Seconds of the batches that scored each window once.
    pub seconds: f64,
    /// Milliseconds from a prompt to its first token: median.
    pub first_token_ms: f64,
    /// Most bytes that MLX held while this side was at work, model included.
    pub peak_bytes: u64,
    /// Loss of each window, in order.
    pub windows: Vec<WindowLoss>,
    #[serde(skip)]
    speeds: Vec<f64>,
    #[serde(skip)]
    first_tokens: Vec<f64>,
    #[serde(skip)]
    right: usize,
}

/// The pack less the base, window by window.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Mean difference of the losses, nats a token; below 0 the pack is better.
    pub mean_nll: f64,
    /// Its standard error over windows.
    pub standard_error: Option<f64>,
    /// Interval of it.
    pub interval: Option<[f64; 2]>,
    /// Change of the perplexity, percent.
    pub ppl_delta_pct: f64,
    /// Interval of it.
    pub ppl_interval_pct: Option<[f64; 2]>,
    /// Confidence of the intervals.
    pub confidence: f64,
    /// Windows, which are the independent units.
    pub windows: usize,
}

impl Difference {
    /// Of losses on the same windows.
    pub fn of(base: &[WindowLoss], pack: &[WindowLoss]) -> Difference {
        let paired: Vec<WindowLoss> =
            base.iter().zip(pack).map(|(b, p)| WindowLoss { nll: p.nll - b.nll, tokens: b.tokens }).collect();
        let (mean_nll, standard_error) = perplexity::mean(&paired);
        let interval = stats::interval(mean_nll, standard_error, paired.len());
        let percent = |nats: f64| 100.0 * nats.exp_m1();
        Difference {
            mean_nll,
            standard_error,
            interval,
            ppl_delta_pct: percent(mean_nll),
            ppl_interval_pct: interval.map(|i| i.map(percent)),
            confidence: stats::CONFIDENCE,
            windows: paired.len(),
        }
    }

    /// In one word: `better`, `worse`, or `no significant difference`.
    pub fn verdict(&self) -> &'static str {
        match self.interval {
            Some([_, high]) if high < 0.0 => "better",
            Some([low, _]) if low > 0.0 => "worse",
            Some(_) => "no significant difference",
            None => "too few windows to tell",
        }
    }
}

/// What a comparison found.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The base.
    pub base: Side,
    /// The base with packs; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pack: Option<Side>,
    /// Pack less base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// Largest difference of any logit at any token scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_logit_diff: Option<f32>,
    /// Tokens that count.
    pub scored_tokens: usize,
}

impl Compared {
    /// Loss of speed against the base, percent; below 0 it is faster.
    pub fn tps_loss_pct(&self) -> Option<f64> {
        self.pack.as_ref().map(|p| 100.0 * (1.0 - p.tokens_per_second / self.base.tokens_per_second))
    }
}

/// Measures. `progress` is told how many batches of how many are done and answers whether to go on; `None` when it
/// did not.
///
/// # Errors
/// When there is no window, a window does not fit the model, or either side computes no numbers.
pub fn compare(
    model: &mut Model,
    packs: Option<&Attachment>,
    work: &Work,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<Compared>> {
    let mut course = Course { model, packs, work, sides: Vec::new(), max_logit_diff: 0.0 };
    let measured = course.run(progress);
    let Course { sides, max_logit_diff, .. } = course;
    attach::detach(model);
    if !measured? {
        return Ok(None);
    }
    let scored_tokens: usize = work.windows.iter().map(Window::scored).sum();
    let mut sides = sides.into_iter().map(|s| s.finished(scored_tokens));
    let (Some(base), pack) = (sides.next(), sides.next()) else {
        return Err(Error::Other("no side was measured".into()));
    };
    let difference = pack.as_ref().map(|p| Difference::of(&base.windows, &p.windows));
    let max_logit_diff = pack.is_some().then_some(max_logit_diff);
    Ok(Some(Compared { base, pack, difference, max_logit_diff, scored_tokens }))
}

/// A comparison under way.
struct Course<'a> {
    model: &'a mut Model,
    packs: Option<&'a Attachment>,
    work: &'a Work<'a>,
    /// The base, then the packs.
    sides: Vec<Side>,
    max_logit_diff: f32,
}

/// Windows that run together; the first `new` of them are not scored yet.
struct Batch {
    windows: Vec<usize>,
    new: usize,
}

impl Course<'_> {
    fn run(&mut self, progress: &mut dyn FnMut(usize, usize) -> bool) -> Result<bool> {
        let empty =
            Side { windows: vec![WindowLoss { nll: 0.0, tokens: 0 }; self.work.windows.len()], ..Side::default() };
        self.sides = vec![empty; 1 + usize::from(self.packs.is_some())];
        let batches = batches(self.work);
        let rounds = batches.len().max(LEAST);
        let Some(first) = batches.first() else {
            return Err(Error::Other("there are no windows to score".into()));
        };
        for side in 0..self.sides.len() {
            self.enter(side);
            self.score(first)?;
        }
        for round in 0..rounds {
            if !progress(round, rounds + self.work.repeats) {
                return Ok(false);
            }
            let Some(batch) = batches.get(round % batches.len()) else { continue };
            let mut states: Vec<Option<Array>> = vec![None; self.sides.len()];
            for side in self.order(round) {
                states[side] = Some(self.timed(side, batch, round < batches.len())?);
            }
            if round < batches.len() {
                self.look_at_logits(batch, &states)?;
            }
        }
        self.first_tokens(&mut |done| progress(rounds + done, rounds + self.work.repeats))
    }

    /// Which side begins changes from round to round.
    fn order(&self, round: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.sides.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        order
    }

    fn enter(&mut self, side: usize) {
        match self.packs.filter(|_| side > 0) {
            Some(packs) => attach::attach(self.model, packs),
            None => attach::detach(self.model),
        }
    }

    fn rows(&self, batch: &Batch) -> Vec<&[u32]> {
        batch.windows.iter().filter_map(|i| self.work.windows.get(*i)).map(|w| w.tokens.as_slice()).collect()
    }

    /// Hidden states [N, D] and losses [N] of a batch.
    fn score(&self, batch: &Batch) -> Result<(Array, Vec<f32>)> {
        let rows = self.rows(batch);
        let targets: Vec<i32> = rows.iter().flat_map(|r| r.get(1..).unwrap_or_default()).map(|id| *id as i32).collect();
        // Ids out of the vocabulary are found here.
        let states = self.model.states(&rows)?;
        let vocabulary = self.model.config().vocab_size as i32;
        if let Some(id) = targets.iter().find(|id| !(0..vocabulary).contains(*id)) {
            return Err(Error::Other(format!("token id {id} is not in the vocabulary of {vocabulary} ids")));
        }
        let targets = Array::from_slice(&targets, &[targets.len() as i32]);
        let nll = kernels::token_nll(&states, self.model.head_weight()?, &targets)?;
        mlx::eval([&nll])?;
        let nll = nll.try_as_slice::<f32>().map_err(|e| Error::Other(format!("losses cannot be read: {e}")))?;
        Ok((states, nll.to_vec()))
    }

    fn timed(&mut self, side: usize, batch: &Batch, counts: bool) -> Result<Array> {
        self.enter(side);
        mlx::memory::reset_peak();
        let begun = Instant::now();
        let (states, nll) = self.score(batch)?;
        let seconds = begun.elapsed().as_secs_f64();
        let peak = mlx::memory::mlx().1;
        if nll.iter().any(|x| !x.is_finite()) {
            return Err(Error::Other(match side {
                0 => NOT_FINITE.into(),
                _ => "with the packs the model computes values that are not finite; lower their weight, or train them with a smaller learning rate".into(),
            }));
        }
        let work = self.work;
        let side = &mut self.sides[side];
        side.peak_bytes = side.peak_bytes.max(peak);
        side.speeds.push(nll.len() as f64 / seconds);
        if counts {
            side.seconds += seconds;
            let length = (nll.len() / batch.windows.len().max(1)).max(1);
            for (i, row) in batch.windows.iter().zip(nll.chunks(length)).take(batch.new) {
                let mask = work.windows.get(*i).and_then(|w| w.mask.as_deref());
                if let Some(slot) = side.windows.get_mut(*i) {
                    *slot = perplexity::sum(row, mask);
                }
            }
        }
        Ok(states)
    }

    /// First guesses of each side, and how far the logits are apart.
    fn look_at_logits(&mut self, batch: &Batch, states: &[Option<Array>]) -> Result<()> {
        let what = "comparing logits";
        let rows = self.rows(batch);
        let length = rows.first().map_or(1, |r| r.len() - 1);
        let targets: Vec<u32> = rows.iter().flat_map(|r| r.get(1..).unwrap_or_default()).copied().collect();
        let masks: Vec<bool> = (batch.windows.iter())
            .filter_map(|i| self.work.windows.get(*i))
            .flat_map(|w| w.mask.clone().unwrap_or_else(|| vec![true; length]))
            .collect();
        let count = batch.new * length;
        let step = (LOGITS / self.model.config().vocab_size.max(1)).max(1);
        for from in (0..count).step_by(step) {
            let to = count.min(from + step);
            let mut first: Option<Array> = None;
            for (side, states) in states.iter().enumerate() {
                let Some(states) = states else { continue };
                let logits = self.model.logits(&states.try_index((from as i32..to as i32, ..)).context(what)?)?;
                let guesses = argmax_axis(&logits, -1, false).and_then(|g| g.as_dtype(Dtype::Uint32)).context(what)?;
                mlx::eval([&guesses, &logits])?;
                let guesses = guesses.try_as_slice::<u32>().map_err(|e| Error::Other(e.to_string()))?;
                let counted = guesses.iter().zip(targets.iter().zip(&masks).skip(from));
                let right = counted.filter(|(guess, (target, counts))| **counts && guess == target).count();
                self.sides[side].right += right;
                match &first {
                    None => first = Some(logits),
                    Some(base) => {
                        let far =
                            logits.subtract(base).and_then(|d| d.abs()).and_then(|d| d.max(None)).context(what)?;
                        self.max_logit_diff = self.max_logit_diff.max(number(&far)?);
                    }
                }
            }
        }
        Ok(())
    }

    fn first_tokens(&mut self, progress: &mut dyn FnMut(usize) -> bool) -> Result<bool> {
        let work = self.work;
        let c = self.model.config();
        let most = [c.max_position_embeddings, c.sliding_window].into_iter().flatten().min().unwrap_or(usize::MAX);
        let prompt = |i: usize| -> &[u32] {
            let tokens = work.windows.get(i % work.windows.len()).map_or(&[][..], |w| w.tokens.as_slice());
            tokens.get(..tokens.len().min(most - 1)).unwrap_or_default()
        };
        // Prompts of one length, as many as are answered together.
        let length = prompt(0).len();
        let alike: Vec<usize> = (0..work.windows.len()).filter(|i| prompt(*i).len() == length).collect();
        for repeat in 0..=work.repeats {
            if repeat > 0 && !progress(repeat) {
                return Ok(false);
            }
            let rows: Vec<&[u32]> = (0..work.prompts)
                .filter_map(|i| alike.get((repeat * work.prompts + i) % alike.len()))
                .map(|i| prompt(*i))
                .collect();
            for side in self.order(repeat) {
                self.enter(side);
                mlx::memory::reset_peak();
                let ms = first_token_ms(self.model, &rows)?;
                let side = &mut self.sides[side];
                side.peak_bytes = side.peak_bytes.max(mlx::memory::mlx().1);
                if repeat > 0 {
                    side.first_tokens.push(ms);
                }
            }
        }
        Ok(true)
    }
}

impl Side {
    fn finished(mut self, scored: usize) -> Side {
        (self.mean_nll, self.mean_nll_standard_error) = perplexity::mean(&self.windows);
        self.perplexity = self.mean_nll.exp();
        self.perplexity_standard_error = self.mean_nll_standard_error.map(|se| self.perplexity * se);
        self.token_accuracy = self.right as f64 / scored.max(1) as f64;
        self.tokens_per_second = stats::median(&self.speeds);
        self.first_token_ms = stats::median(&self.first_tokens);
        self
    }
}

/// Windows of one length together, in order of length.
fn batches(work: &Work) -> Vec<Batch> {
    let length = |i: &usize| work.windows.get(*i).map_or(0, |w| w.tokens.len());
    let mut order: Vec<usize> = (0..work.windows.len()).collect();
    order.sort_by_key(length);
    let mut out = Vec::new();
    for same in order.chunk_by(|a, b| length(a) == length(b)) {
        for part in same.chunks(work.batch.max(1)) {
            let size = if work.fill { work.batch.max(1) } else { part.len() };
            let rest = same.iter().cycle().take(size - part.len());
            out.push(Batch { windows: part.iter().chain(rest).copied().collect(), new: part.len() });
        }
    }
    out
}

/// Milliseconds from prompts of one length to the first token of each: what an empty cache and the whole prompts
/// cost, up to the choice of the most likely token.
///
/// # Errors
/// When a prompt does not fit the model, or the outputs are not finite.
pub fn first_token_ms(model: &Model, prompts: &[&[u32]]) -> Result<f64> {
    let what = "timing the first token";
    let begun = Instant::now();
    let length = prompts.first().map_or(0, |p| p.len());
    let mut cache = model.new_cache();
    let mut last = None;
    for from in (0..length).step_by(PREFILL) {
        let to = length.min(from + PREFILL);
        let ids: Vec<i32> =
            prompts.iter().flat_map(|p| p.get(from..to).unwrap_or_default()).map(|id| *id as i32).collect();
        let h =
            model.hidden(&Array::from_slice(&ids, &[prompts.len() as i32, (to - from) as i32]), Some(&mut cache))?;
        if to < length {
            cache.eval()?;
        }
        last = Some(h);
    }
    let h = last.ok_or_else(|| Error::Other("there is no prompt to time".into()))?;
    let logits = model.logits(&h.try_index((.., -1, ..)).context(what)?)?;
    let token = argmax_axis(&logits, -1, false).context(what)?;
    mlx::eval([&token])?;
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    match number(&logits.max(None).context(what)?)?.is_finite() {
        true => Ok(ms),
        false => Err(Error::Other(NOT_FINITE.into())),
    }
}

/// The only number of an array.
fn number(a: &Array) -> Result<f32> {
    mlx::eval([a])?;
    a.try_item_exact::<f32>().map_err(|e| Error::Other(format!("a number cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn window(tokens: usize) -> Window {
        Window { tokens: vec![1; tokens], mask: None }
    }

    #[test]
    fn batches_have_one_length_and_are_filled_by_windows_of_their_own() {
        let windows = [window(4), window(3), window(4), window(4)];
        let of = |fill| {
            let work = Work { windows: &windows, batch: 2, fill, prompts: 1, repeats: 1 };
            batches(&work).into_iter().map(|b| (b.windows, b.new)).collect::<Vec<_>>()
        };
        assert_eq!(of(false), [(vec![1], 1), (vec![0, 2], 2), (vec![3], 1)]);
        assert_eq!(of(true), [(vec![1, 1], 1), (vec![0, 2], 2), (vec![3, 0], 1)]);
    }

    #[test]
    fn what_both_find_hard_cancels_out() {
        let base: Vec<WindowLoss> =
            [10.0, 50.0, 20.0, 90.0].iter().map(|nll| WindowLoss { nll: *nll, tokens: 10 }).collect();
        let moved = |by: [f64; 4]| -> Vec<WindowLoss> {
            base.iter().zip(by).map(|(b, d)| WindowLoss { nll: b.nll + d, tokens: 10 }).collect()
        };
        let d = Difference::of(&base, &moved([-1.0, -1.1, -0.9, -1.0]));
        assert!((d.mean_nll + 0.1).abs() < 1e-12, "{d:?}");
        assert!((d.ppl_delta_pct - 100.0 * ((-0.1f64).exp() - 1.0)).abs() < 1e-9);
        // Alone, the windows' own spread would hide it.
        assert_eq!(d.verdict(), "better");
        assert_eq!(Difference::of(&base, &moved([1.0, 1.1, 0.9, 1.0])).verdict(), "worse");
        assert_eq!(Difference::of(&base, &moved([1.0, -1.0, 2.0, -2.0])).verdict(), "no significant difference");
        assert_eq!(Difference::of(&base[..1], &base[..1]).verdict(), "too few windows to tell");
    }
}
