//! The model that `generate` and `eval` work on: a base, or the current state of a run, with its packs.

use super::awake::{self, AwakeArgs};
use super::packs::using::{self, PackOptions};
use super::{Global, base};
use crate::compress::Manifest;
use crate::model::{LoadOptions, Model, Tokenizer};
use crate::pack::{InUse, Used};
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
    #[arg(long, short, value_name = "RUN", conflicts_with_all = ["pack", "no_packs", "packs", "awake_budget"])]
    pub state: Option<PathBuf>,
    #[command(flatten)]
    awake: AwakeArgs,
    #[command(flatten)]
    packs: PackOptions,
}

/// A model ready to run.
pub struct Subject {
    /// The model, its sleeping slices factored.
    pub model: Model,
    /// The tokeniser of its base.
    pub tokenizer: Tokenizer,
    /// Where it comes from, for a JSON document.
    pub origin: Origin,
    /// Packs on it.
    pub packs: InUse,
    /// The directory of its base.
    pub dir: PathBuf,
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
    /// Share of an elastic checkpoint that was asked to be awake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub awake_budget: Option<f64>,
    /// Packs on it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packs: Vec<Used>,
}

impl SubjectArgs {
    /// Loads the model and its tokeniser.
    ///
    /// # Errors
    /// When the base cannot be had, the run or a bank of it cannot be read, or a pack does not fit.
    pub fn open(&self, g: &Global) -> anyhow::Result<Subject> {
        self.open_with(false, g)
    }

    /// The same with `parked`: of an elastic checkpoint what sleeps is loaded too, so that it can be woken.
    ///
    /// # Errors
    /// As [`SubjectArgs::open`].
    pub fn open_with(&self, parked: bool, g: &Global) -> anyhow::Result<Subject> {
        match &self.state {
            Some(run) => of_run(run, g),
            None => {
                let base = base::open(&self.base, g)?;
                let levels = awake::levels(self.awake.awake_budget, &base.dir)?;
                let packs = self.packs.choose(&base.dir)?;
                let tokenizer = Tokenizer::load(&base.dir)?;
                let mut model = Model::load(&base.dir, &LoadOptions { levels, parked })?;
                packs.attach(&mut model, &base.dir)?;
                using::tell(&packs, g);
                let awake_budget = match self.awake.awake_budget {
                    None => Manifest::read(&base.dir)?.filter(|m| !m.runs_base).map(|m| m.awake_budget),
                    asked => asked,
                };
                let origin = Origin { base: base.id, state: None, step: None, awake_budget, packs: packs.used() };
                Ok(Subject { model, tokenizer, origin, packs, dir: base.dir })
            }
        }
    }
}

fn of_run(run: &Path, g: &Global) -> anyhow::Result<Subject> {
    let mut model = rundir::open_state(run, Model::load)?.into_model();
    let events = Journal::read(&run.join("journal.jsonl"))?;
    let record = events.run().context("the journal has no run")?;
    let step = events.current().map_or(0, |s| s.step);
    let packs = InUse::recorded(&record.packs)?;
    packs.attach(&mut model, &record.base)?;
    using::tell(&packs, g);
    let tokenizer = Tokenizer::load(&record.base)?;
    let (base, state) = (record.base_id.clone(), Some(run.to_owned()));
    let origin = Origin { base, state, step: Some(step), awake_budget: record.awake_budget, packs: packs.used() };
    Ok(Subject { model, tokenizer, origin, packs, dir: record.base.clone() })
}
