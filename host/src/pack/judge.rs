//! Evaluator plugins on packs: base and current are the base without packs, the candidate is the base with them.

use super::attach::{self, Attachment};
use crate::model::{Model, Tokenizer};
use crate::plastic::measure::{HostMeasure, ScoreBook, Subject, Subjects};
use crate::plastic::panel::{self, Opinion};
use crate::plugin::contract::{Example, Task, Verdict};
use crate::plugin::{Evaluator, Fault};

/// A model with and without packs.
struct Packed<'a> {
    model: &'a mut Model,
    packs: &'a Attachment,
    attached: bool,
}

impl Subjects for Packed<'_> {
    fn model(&self) -> &Model {
        self.model
    }

    fn enter(&mut self, subject: Subject) {
        self.attached = subject == Subject::Candidate;
        match self.attached {
            true => attach::attach(self.model, self.packs),
            false => attach::detach(self.model),
        }
    }

    fn parameters(&self) -> u64 {
        let dense = |s: &crate::model::SliceMeta| u64::from(s.rows) * u64::from(s.cols);
        let base: u64 = self.model.slices().iter().map(dense).sum();
        // Attached factors are float32.
        base + if self.attached { self.packs.nbytes() / 4 } else { 0 }
    }
}

/// What evaluators are shown.
#[derive(Clone, Copy, Debug)]
pub struct Bench<'a> {
    /// Text to ids and back.
    pub tokenizer: &'a Tokenizer,
    /// Evaluation text.
    pub windows: &'a [Vec<u32>],
    /// Prompts with answers, from the same file.
    pub examples: &'a [Example],
    /// Windows scored in one batch.
    pub batch: usize,
    /// Seed of every random draw of an evaluator.
    pub seed: u64,
}

/// Asks every evaluator; the opinions are empty where there is one evaluator only. The model is left without packs.
///
/// # Errors
/// The first fault of an evaluator: a pack that could not be judged is not accepted.
pub fn judge(
    model: &mut Model,
    packs: &Attachment,
    evaluators: &mut [Box<dyn Evaluator>],
    bench: &Bench,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(Verdict, Vec<Opinion>), Fault> {
    let mut subjects = Packed { model, packs, attached: false };
    subjects.enter(Subject::Candidate);
    let mut book = ScoreBook::new(bench.windows.len());
    let mut measure = HostMeasure {
        subjects: &mut subjects,
        tokenizer: bench.tokenizer,
        windows: bench.windows,
        examples: bench.examples,
        batch: bench.batch,
        book: &mut book,
        running: Subject::Candidate,
        progress,
    };
    let task = Task { step: 1, seed: bench.seed, attributes: Vec::new() };
    let said = panel::judge(evaluators, &task, &mut measure);
    drop(measure);
    attach::detach(model);
    said
}
