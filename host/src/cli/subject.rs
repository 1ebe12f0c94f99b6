//! The model that `generate` and `eval` work on: a base, or the current state of a run.

use super::{Global, base};
use crate::model::{LoadOptions, Model, Tokenizer};
use crate::plastic::journal::{History, Journal};
use crate::plastic::rundir;
use anyhow::Context;
use std::path::{Path, PathBuf};

/// Names a model.
#[derive(clap::Args, Debug)]
pub struct SubjectArgs {
    /// Base model: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short, conflicts_with = "state")]
    pub base: Option<String>,
    /// Directory of a run: its base in the state that is current there
    #[arg(long, short, value_name = "RUN")]
    pub state: Option<PathBuf>,
}

/// A model ready to run.
pub struct Subject {
    /// The model, its sleeping slices factored.
    pub model: Model,
    /// The tokeniser of its base.
    pub tokenizer: Tokenizer,
    /// Where it comes from, for a JSON document.
    pub origin: Origin,
}

/// Where a model comes from.
#[derive(serde::Serialize)]
pub struct Origin {
    /// Id of the base.
    pub base: String,
    /// The run, where one was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<PathBuf>,
    /// The step whose state is current in that run; 0 is the base with everything awake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
}

impl SubjectArgs {
    /// Loads the model and its tokeniser.
    ///
    /// # Errors
    /// When the base cannot be had, or the run or a bank of it cannot be read.
    pub fn open(&self, g: &Global) -> anyhow::Result<Subject> {
        match &self.state {
            Some(run) => of_run(run),
            None => {
                let base = base::open(&self.base, g)?;
                let tokenizer = Tokenizer::load(&base.dir)?;
                let model = Model::load(&base.dir, &LoadOptions::default())?;
                Ok(Subject { model, tokenizer, origin: Origin { base: base.id, state: None, step: None } })
            }
        }
    }
}

fn of_run(run: &Path) -> anyhow::Result<Subject> {
    let model = rundir::open_state(run, |dir| Model::load(dir, &LoadOptions::default()))?.into_model();
    let events = Journal::read(&run.join("journal.jsonl"))?;
    let record = events.run().context("the journal has no run")?;
    let step = events.current().map_or(0, |s| s.step);
    let tokenizer = Tokenizer::load(&record.base)?;
    Ok(Subject {
        model,
        tokenizer,
        origin: Origin { base: record.base_id.clone(), state: Some(run.to_owned()), step: Some(step) },
    })
}
