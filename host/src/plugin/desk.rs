//! How an evaluator's questions reach the model.
//!
//! The model's arrays belong to one thread, and what answers the questions ([`Measure`]) is borrowed
//! for one call. So the guest runs on a thread of its own, its questions travel over a channel, and
//! the calling thread answers them until the guest is done. Nobody borrows across the border.

use super::Measure;
use super::contract::Metric;
use super::sandbox::State;
use super::v1::{self, evaluator::measure};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

/// A question: runs on the model's thread and sends its own answer back.
pub(super) type Question = Box<dyn FnOnce(&mut dyn Measure) + Send>;

/// The guest's end.
pub(super) struct Desk {
    questions: Sender<Question>,
}

/// A desk and where its questions come out.
pub(super) fn open() -> (Desk, Receiver<Question>) {
    let (questions, out) = channel();
    (Desk { questions }, out)
}

impl State {
    /// Asks the model's thread and waits; the time is the host's.
    fn ask<R: Send + 'static>(
        &mut self,
        question: impl FnOnce(&mut dyn Measure) -> R + Send + 'static,
    ) -> wasmtime::Result<R> {
        let started = Instant::now();
        let gone = || wasmtime::Error::msg("measurements are possible during `evaluate` only");
        let desk = self.desk.as_ref().ok_or_else(gone)?;
        let (send, answer) = channel();
        let question = move |m: &mut dyn Measure| {
            // Nobody listens when the guest was ended meanwhile.
            let _ = send.send(question(m));
        };
        desk.questions.send(Box::new(question)).map_err(|_| gone())?;
        let answer = answer.recv().map_err(|_| gone())?;
        self.host_time(started.elapsed());
        Ok(answer)
    }
}

/// The contract's names of the models.
pub(super) fn check_subject(subject: &str) -> Result<(), String> {
    match subject {
        "base" | "current" | "candidate" => Ok(()),
        _ => {
            Err(format!("there is no model `{}`; ask for base, current or candidate", super::text::clean(subject, 40)))
        }
    }
}

pub(super) fn check_windows(measure: &dyn Measure, indices: &[u32]) -> Result<(), String> {
    let windows = measure.windows();
    match indices.iter().find(|i| **i >= windows) {
        Some(i) => Err(format!("there is no window {i}; there are {windows}")),
        None => Ok(()),
    }
}

impl measure::Host for State {
    fn windows(&mut self) -> wasmtime::Result<u32> {
        self.ask(|m| m.windows())
    }

    fn window(&mut self, index: u32) -> wasmtime::Result<Result<Vec<u32>, String>> {
        self.ask(move |m| {
            check_windows(m, &[index])?;
            m.window(index)
        })
    }

    fn score(&mut self, subject: String, sequences: Vec<Vec<u32>>) -> wasmtime::Result<Result<Vec<Vec<f32>>, String>> {
        self.ask(move |m| {
            check_subject(&subject)?;
            m.score(&subject, &sequences)
        })
    }

    fn score_windows(&mut self, subject: String, indices: Vec<u32>) -> wasmtime::Result<Result<Vec<Vec<f32>>, String>> {
        self.ask(move |m| {
            check_subject(&subject)?;
            check_windows(m, &indices)?;
            m.score_windows(&subject, &indices)
        })
    }

    fn generate(
        &mut self,
        subject: String,
        prompt: String,
        max_tokens: u32,
    ) -> wasmtime::Result<Result<String, String>> {
        self.ask(move |m| {
            check_subject(&subject)?;
            m.generate(&subject, &prompt, max_tokens)
        })
    }

    fn tokenize(&mut self, text: String) -> wasmtime::Result<Result<Vec<u32>, String>> {
        self.ask(move |m| m.tokenize(&text))
    }

    fn detokenize(&mut self, tokens: Vec<u32>) -> wasmtime::Result<Result<String, String>> {
        self.ask(move |m| m.detokenize(&tokens))
    }

    fn counters(&mut self, subject: String) -> wasmtime::Result<Result<Vec<v1::evaluator::types::Metric>, String>> {
        self.ask(move |m| {
            check_subject(&subject)?;
            Ok(m.counters(&subject)?.into_iter().map(|c: Metric| v1::metric(c)).collect())
        })
    }

    fn divergence(
        &mut self,
        reference: String,
        of: String,
        indices: Vec<u32>,
    ) -> wasmtime::Result<Result<Vec<Vec<f32>>, String>> {
        self.ask(move |m| {
            check_subject(&reference)?;
            check_subject(&of)?;
            check_windows(m, &indices)?;
            m.divergence(&reference, &of, &indices)
        })
    }

    fn examples(&mut self) -> wasmtime::Result<u32> {
        self.ask(|m| m.examples())
    }

    fn example(&mut self, index: u32) -> wasmtime::Result<Result<measure::Question, String>> {
        self.ask(move |m| m.example(index).map(|e| measure::Question { prompt: e.prompt, answer: e.answer }))
    }

    fn timing(
        &mut self,
        subject: String,
        prompt_tokens: u32,
        new_tokens: u32,
    ) -> wasmtime::Result<Result<Vec<v1::evaluator::types::Metric>, String>> {
        self.ask(move |m| {
            check_subject(&subject)?;
            Ok(m.timing(&subject, prompt_tokens, new_tokens)?.into_iter().map(v1::metric).collect())
        })
    }
}
