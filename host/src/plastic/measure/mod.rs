//! What an evaluator sees of the model: losses, divergences, answers and times of three subjects.
//!
//! Scores of the base are measured once a run and those of the current state once a step; only the
//! candidate is ever scored twice the same way. Switching subjects moves handles, not tensors; the model stays
//! with a subject until another one is asked for. When the measuring ends it is in the candidate's state again.
//!
//! Every failure is a text for the evaluator. A base that computes no numbers is one; a candidate that
//! does is for the evaluator to reject, so its NaN goes through.

mod book;
mod divergence;
mod timing;

pub use book::{ScoreBook, Subject};

use super::elastic::{Elastic, Snapshot};
use crate::mlx;
use crate::model::generate::NOT_FINITE;
use crate::model::{GenerateOptions, Model, Tokenizer, generate};
use crate::plugin::Measure;
use crate::plugin::contract::{Example, Metric};
use std::time::Instant;

/// The most tokens one call may score.
const MAX_TOKENS: usize = 1 << 20;
/// Tokens of one sequence that is not a window of the evaluation text.
const MAX_SEQUENCE: usize = 8192;
/// Tokens of one generated text.
const MAX_GENERATED: u32 = 4096;

/// A model and the states of it that are measured.
pub trait Subjects {
    /// The model in the state it is in.
    fn model(&self) -> &Model;
    /// Brings it into a subject's state, which cannot fail.
    fn enter(&mut self, subject: Subject);
    /// Parameters awake in that state.
    fn parameters(&self) -> u64;
}

/// The states of an elastic model.
pub struct States<'a> {
    /// The model, in the candidate's state.
    pub elastic: &'a mut Elastic,
    /// The last committed state.
    pub current: &'a Snapshot,
    /// The state under judgement.
    pub candidate: &'a Snapshot,
}

impl Subjects for States<'_> {
    fn model(&self) -> &Model {
        self.elastic.model()
    }

    fn enter(&mut self, subject: Subject) {
        match subject {
            Subject::Base => self.elastic.wake_all(),
            Subject::Current => self.elastic.restore(self.current),
            Subject::Candidate => self.elastic.restore(self.candidate),
        }
    }

    fn parameters(&self) -> u64 {
        self.elastic.parameters()
    }
}

/// [`Measure`] over a model that runs the candidate.
pub struct HostMeasure<'a> {
    /// The model, in the candidate's state.
    pub subjects: &'a mut dyn Subjects,
    /// Text to ids and back.
    pub tokenizer: &'a Tokenizer,
    /// Evaluation text.
    pub windows: &'a [Vec<u32>],
    /// Prompts with answers, from the same file.
    pub examples: &'a [Example],
    /// Windows scored in one batch.
    pub batch: usize,
    /// Scores kept over evaluations.
    pub book: &'a mut ScoreBook,
    /// The subject whose state the model is in: at first the candidate.
    pub running: Subject,
    /// Told (windows scored, windows asked for); answers whether to go on.
    pub progress: &'a mut dyn FnMut(u64, u64) -> bool,
}

impl HostMeasure<'_> {
    /// Runs `f` with the model in a subject's state, and remembers the memory it took.
    fn with<T>(&mut self, subject: Subject, f: impl FnOnce(&mut Self) -> T) -> T {
        if self.running != subject {
            self.subjects.enter(subject);
            self.running = subject;
        }
        mlx::memory::reset_peak();
        let out = f(self);
        let scores = self.book.of(subject);
        scores.peak = scores.peak.max(mlx::memory::mlx().1);
        out
    }

    /// Those of `indices` that `is_known` does not know, each once.
    ///
    /// # Errors
    /// When there is no such window, or more are asked for than there are.
    fn missing(&self, indices: &[u32], is_known: impl Fn(usize) -> bool) -> Result<Vec<usize>, String> {
        let count = self.windows.len();
        if indices.len() > count {
            return Err(format!("{} windows asked for at once; the evaluation text has {count}", indices.len()));
        }
        if let Some(bad) = indices.iter().find(|i| **i as usize >= count) {
            return Err(format!("there is no window {bad}; the evaluation text has {count}"));
        }
        let mut missing: Vec<usize> = Vec::new();
        for i in indices.iter().map(|i| *i as usize) {
            if !is_known(i) && !missing.contains(&i) {
                missing.push(i);
            }
        }
        Ok(missing)
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
        windows.max(MAX_SEQUENCE.min(self.subjects.model().config().max_position_embeddings.unwrap_or(MAX_SEQUENCE)))
    }

    fn score_now(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        let begun = Instant::now();
        let nll = self.subjects.model().score(sequences).map_err(|e| e.to_string())?;
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
        let scored = &self.book.of(subject).windows.iter().map(Option::is_some).collect::<Vec<_>>();
        let missing = self.missing(indices, |i| scored[i])?;
        let (total, all) = (missing.len() as u64, self.windows.len() as u64);
        self.go_on(all.saturating_sub(total), all)?;
        let scored = self.with(subject, |m| -> Result<(), String> {
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
            let text = generate(m.subjects.model(), m.tokenizer, &ids, &how, &mut |_| progress(0, 0));
            m.book.seconds += begun.elapsed().as_secs_f64();
            text.map(|g| g.text).map_err(|e| e.to_string())
        })
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        let encode = |special| self.tokenizer.encode(text, special).map_err(|e| e.to_string());
        let (with, without) = (encode(true)?, encode(false)?);
        // A chat template writes the token that begins a text itself; it must not come twice.
        Ok(if with.first() == without.first() { without } else { with })
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String, String> {
        self.tokenizer.decode(tokens).map_err(|e| e.to_string())
    }

    fn counters(&mut self, subject: &str) -> Result<Vec<Metric>, String> {
        let subject = Subject::parse(subject)?;
        let (parameters, resident) =
            self.with(subject, |m| (m.subjects.parameters(), m.subjects.model().resident().total()));
        let scores = self.book.of(subject);
        let (speed, peak) = (scores.tokens_per_second(), scores.peak);
        let mut out = vec![
            metric("awake-parameters", parameters as f64, "", false),
            metric("resident-bytes", resident as f64, "bytes", false),
            metric("peak-bytes", peak as f64, "bytes", false),
        ];
        out.extend(speed.map(|s| metric("scored-tokens-per-second", s, "tokens/s", true)));
        Ok(out)
    }

    fn divergence(&mut self, reference: &str, of: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        self.diverge(Subject::parse(reference)?, Subject::parse(of)?, indices)
    }

    fn examples(&self) -> u32 {
        self.examples.len() as u32
    }

    fn example(&self, index: u32) -> Result<Example, String> {
        let none = || format!("there is no example {index}; the evaluation text has {}", self.examples.len());
        self.examples.get(index as usize).cloned().ok_or_else(none)
    }

    fn timing(&mut self, subject: &str, prompt_tokens: u32, new_tokens: u32) -> Result<Vec<Metric>, String> {
        self.time(Subject::parse(subject)?, prompt_tokens, new_tokens)
    }
}

impl Drop for HostMeasure<'_> {
    fn drop(&mut self) {
        if self.running != Subject::Candidate {
            self.subjects.enter(Subject::Candidate);
        }
    }
}

fn metric(name: &str, value: f64, unit: &str, higher_is_better: bool) -> Metric {
    Metric { name: name.into(), value, unit: unit.into(), higher_is_better, low: None, high: None }
}
