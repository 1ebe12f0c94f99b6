//! What an evaluator sees of the model: losses of three subjects over the evaluation text.
//!
//! Scores of the base are measured once a run and those of the current state once a step; only the
//! candidate is ever scored twice the same way. Switching subjects moves handles, not tensors.

use super::elastic::{Elastic, Snapshot};
use crate::mlx;
use crate::model::generate::NOT_FINITE;
use crate::model::{GenerateOptions, Tokenizer, generate};
use crate::plugin::Measure;
use crate::plugin::contract::{Example, Metric};
use std::time::Instant;

/// The most tokens one call may score.
const MAX_TOKENS: usize = 1 << 20;
/// Tokens of one sequence that is not a window of the evaluation text.
const MAX_SEQUENCE: usize = 8192;
/// Tokens of one generated text.
const MAX_GENERATED: u32 = 4096;

/// Losses of one subject, window by window, and how fast they came.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// Log-probabilities of tokens 1.. of each window.
    windows: Vec<Option<Vec<f32>>>,
    /// Tokens and seconds of each batch.
    speed: Vec<(usize, f64)>,
}

impl Scores {
    fn new(windows: usize) -> Scores {
        Scores { windows: vec![None; windows], speed: Vec::new() }
    }

    fn tokens_per_second(&self) -> Option<f64> {
        // The first batch also pays for copies and page faults.
        let rated = if self.speed.len() > 1 { &self.speed[1..] } else { &self.speed[..] };
        let (tokens, seconds) = rated.iter().fold((0, 0.0), |(t, s), (a, b)| (t + a, s + b));
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    }
}

/// Scores that outlive one evaluation.
#[derive(Clone, Debug)]
pub struct ScoreBook {
    base: Scores,
    current: Scores,
    candidate: Scores,
    seconds: f64,
}

impl ScoreBook {
    /// For so many windows.
    pub fn new(windows: usize) -> ScoreBook {
        let empty = Scores::new(windows);
        ScoreBook { base: empty.clone(), current: empty.clone(), candidate: empty, seconds: 0.0 }
    }

    /// Forgets the candidate.
    pub fn begin(&mut self) {
        self.candidate = Scores::new(self.base.windows.len());
        self.seconds = 0.0;
    }

    /// The candidate became current.
    pub fn promote(&mut self) {
        self.current = self.candidate.clone();
    }

    /// Seconds the model was at work since [`ScoreBook::begin`].
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Tokens scored a second: the base and the candidate.
    pub fn tokens_per_second(&self) -> Option<[f64; 2]> {
        Some([self.base.tokens_per_second()?, self.candidate.tokens_per_second()?])
    }

    fn of(&mut self, subject: Subject) -> &mut Scores {
        match subject {
            Subject::Base => &mut self.base,
            Subject::Current => &mut self.current,
            Subject::Candidate => &mut self.candidate,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Base,
    Current,
    Candidate,
}

impl Subject {
    fn parse(name: &str) -> Result<Subject, String> {
        match name {
            "base" => Ok(Subject::Base),
            "current" => Ok(Subject::Current),
            "candidate" => Ok(Subject::Candidate),
            other => Err(format!("unknown subject {other:?}: use base, current or candidate")),
        }
    }
}

/// [`Measure`] over an elastic model that runs the candidate.
pub struct HostMeasure<'a> {
    /// The model, in the candidate's state.
    pub elastic: &'a mut Elastic,
    /// The last committed state.
    pub current: &'a Snapshot,
    /// The state under judgement.
    pub candidate: &'a Snapshot,
    /// Text to ids and back.
    pub tokenizer: &'a Tokenizer,
    /// Evaluation text.
    pub windows: &'a [Vec<u32>],
    /// Windows scored in one batch.
    pub batch: usize,
    /// Scores kept over evaluations.
    pub book: &'a mut ScoreBook,
    /// Told (windows scored, windows asked for); answers whether to go on.
    pub progress: &'a mut dyn FnMut(u64, u64) -> bool,
}

impl HostMeasure<'_> {
    /// Runs `f` with a subject in the place of the candidate.
    fn with<T>(&mut self, subject: Subject, f: impl FnOnce(&mut Self) -> T) -> T {
        match subject {
            Subject::Candidate => return f(self),
            Subject::Base => self.elastic.wake_all(),
            Subject::Current => self.elastic.restore(self.current),
        }
        let out = f(self);
        self.elastic.restore(self.candidate);
        out
    }

    /// Tells how far things are.
    ///
    /// # Errors
    /// When nobody waits for the answer any more.
    fn go_on(&mut self, done: u64, total: u64) -> Result<(), String> {
        if (self.progress)(done, total) { Ok(()) } else { Err("interrupted".into()) }
    }

    /// Most tokens of one sequence: a layer's activations must fit in memory.
    fn longest(&self) -> usize {
        let windows = self.windows.iter().map(Vec::len).max().unwrap_or(0);
        windows.max(MAX_SEQUENCE.min(self.elastic.model().config().max_position_embeddings.unwrap_or(MAX_SEQUENCE)))
    }

    fn score_now(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        let begun = Instant::now();
        let nll = self.elastic.model().score(sequences).map_err(|e| e.to_string())?;
        self.book.seconds += begun.elapsed().as_secs_f64();
        Ok(nll.into_iter().map(|w| w.into_iter().map(|l| -l).collect()).collect())
    }
}

impl Measure for HostMeasure<'_> {
    fn windows(&self) -> u32 {
        self.windows.len() as u32
    }

    fn window(&self, index: u32) -> Result<Vec<u32>, String> {
        let none = || format!("there is no window {index}; the evaluation text has {}", self.windows.len());
        self.windows.get(index as usize).cloned().ok_or_else(none)
    }

    fn score(&mut self, subject: &str, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        let tokens: usize = sequences.iter().map(Vec::len).sum();
        if tokens > MAX_TOKENS {
            return Err(format!("{tokens} tokens in one call; the limit is {MAX_TOKENS}, ask in parts"));
        }
        if let Some(short) = sequences.iter().position(|s| s.len() < 2) {
            return Err(format!("sequence {short} has fewer than two tokens; nothing can be scored"));
        }
        let most = self.longest();
        if let Some(i) = sequences.iter().position(|s| s.len() > most) {
            return Err(format!("sequence {i} has {} tokens; at most {most} can be scored", sequences[i].len()));
        }
        self.with(Subject::parse(subject)?, |m| {
            let mut out = Vec::with_capacity(sequences.len());
            for part in sequences.chunks(m.batch.max(1)) {
                m.go_on(out.len() as u64, sequences.len() as u64)?;
                out.extend(m.score_now(part)?);
            }
            Ok(out)
        })
    }

    fn score_windows(&mut self, subject: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        let subject = Subject::parse(subject)?;
        let count = self.windows.len();
        if indices.len() > count {
            return Err(format!("{} windows asked for at once; the evaluation text has {count}", indices.len()));
        }
        if let Some(bad) = indices.iter().find(|i| **i as usize >= count) {
            return Err(format!("there is no window {bad}; the evaluation text has {count}"));
        }
        let mut missing: Vec<usize> = Vec::new();
        for &i in indices {
            let i = i as usize;
            if self.book.of(subject).windows[i].is_none() && !missing.contains(&i) {
                missing.push(i);
            }
        }
        let total = missing.len() as u64;
        self.go_on((count as u64).saturating_sub(total), count as u64)?;
        let all = count as u64;
        let scored = self.with(subject, |m| -> Result<(), String> {
            if total > 0 {
                // The model's work, though not at the speed it is judged by.
                let begun = Instant::now();
                m.elastic.model().warm().map_err(|e| e.to_string())?;
                m.book.seconds += begun.elapsed().as_secs_f64();
            }
            for part in missing.chunks(m.batch.max(1)) {
                let done = m.book.of(subject).windows.iter().flatten().count();
                m.go_on(done as u64, all)?;
                let sequences: Vec<Vec<u32>> = part.iter().map(|&i| m.windows[i].clone()).collect();
                let begun = Instant::now();
                let rows = m.score_now(&sequences)?;
                // Of a candidate it is a result like any other; of the base it is damage.
                if subject == Subject::Base && rows.iter().flatten().any(|x| x.is_nan()) {
                    return Err(NOT_FINITE.into());
                }
                let tokens = rows.iter().map(Vec::len).sum();
                let scores = m.book.of(subject);
                scores.speed.push((tokens, begun.elapsed().as_secs_f64()));
                for (&i, row) in part.iter().zip(rows) {
                    scores.windows[i] = Some(row);
                }
            }
            Ok(())
        });
        scored?;
        let scores = self.book.of(subject);
        Ok(indices.iter().filter_map(|&i| scores.windows[i as usize].clone()).collect())
    }

    fn generate(&mut self, subject: &str, prompt: &str, max_tokens: u32) -> Result<String, String> {
        let begun = Instant::now();
        let ids = self.tokenize(prompt)?;
        self.with(Subject::parse(subject)?, |m| {
            let how =
                GenerateOptions { max_tokens: max_tokens.min(MAX_GENERATED) as usize, ..GenerateOptions::default() };
            let progress = &mut m.progress;
            let text = generate(m.elastic.model(), m.tokenizer, &ids, &how, &mut |_| progress(0, 0));
            m.book.seconds += begun.elapsed().as_secs_f64();
            text.map(|g| g.text).map_err(|e| e.to_string())
        })
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        self.tokenizer.encode(text, true).map_err(|e| e.to_string())
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String, String> {
        self.tokenizer.decode(tokens).map_err(|e| e.to_string())
    }

    fn counters(&mut self, subject: &str) -> Result<Vec<Metric>, String> {
        let subject = Subject::parse(subject)?;
        let speed = self.book.of(subject).tokens_per_second();
        let (parameters, resident) =
            self.with(subject, |m| (m.elastic.parameters(), m.elastic.model().resident().total()));
        let metric = |name: &str, value: f64, unit: &str, higher_is_better| Metric {
            name: name.into(),
            value,
            unit: unit.into(),
            higher_is_better,
            low: None,
            high: None,
        };
        let mut out = vec![
            metric("awake-parameters", parameters as f64, "", false),
            metric("resident-bytes", resident as f64, "bytes", false),
            metric("peak-bytes", mlx::memory::mlx().1 as f64, "bytes", false),
        ];
        out.extend(speed.map(|s| metric("scored-tokens-per-second", s, "tokens/s", true)));
        Ok(out)
    }

    fn divergence(&mut self, _: &str, _: &str, _: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        Err("divergence is not measured yet".into())
    }

    fn examples(&self) -> u32 {
        0
    }

    fn example(&self, index: u32) -> Result<Example, String> {
        Err(format!("there is no example {index}"))
    }

    fn timing(&mut self, _: &str, _: u32, _: u32) -> Result<Vec<Metric>, String> {
        Err("decoding is not timed yet".into())
    }
}
