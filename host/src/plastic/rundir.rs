//! The directory of one run: configuration, journal, spectra, banks, and a lock.
//!
//! ```text
//! RUN/config.toml            the resolved options
//! RUN/journal.jsonl          what happened (see super::journal)
//! RUN/banks/step-0001.safetensors   banks of the slices that step first factored
//! ```
//!
//! A bank file is written whole before the line that needs it is appended to the journal, so a kill
//! between the two leaves a file nobody refers to, and the next attempt writes it again.

use super::bank::Bank;
use super::elastic::{Elastic, Factoring};
use super::journal::{History, Journal, JournalError, StepRecord};
use super::state::{Awake, DENSE};
use crate::model::hash::sha256_file;
use crate::model::{Levels, LoadOptions, Model, registry};
use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A run cannot be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The journal cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The directory holds something already.
    #[error("{} is not empty; name another directory with --out, or continue it with `plastic-host resume {}`", path.display(), path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// No run there.
    #[error("{} is no run: it has no journal.jsonl", path.display())]
    NoRun {
        /// The directory.
        path: PathBuf,
    },
    /// Another process works on it.
    #[error("{} is in use by another plastic-host; wait for it to end", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The base is not the one the run was made with.
    #[error("the base at {} has changed since the run began (SHA-256 {found}, the run has {expected}); put it back, or start a new run", path.display())]
    BaseChanged {
        /// The base.
        path: PathBuf,
        /// Now.
        found: String,
        /// Then.
        expected: String,
    },
    /// The base cannot be read.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// A slice of the run is not in the base, or a state does not fit it.
    #[error("{slice}: the run's record does not fit the base; start a new run")]
    Mismatch {
        /// The slice.
        slice: String,
    },
    /// A bank file is not the one that the step wrote.
    #[error("{}: {what}; the run cannot be used from this step, undo to an earlier one", path.display())]
    Bank {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A state cannot be applied.
    #[error(transparent)]
    Elastic(#[from] super::elastic::ElasticError),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, RunError>;

/// A run directory, locked while this lives.
pub struct RunDir {
    path: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Makes a new, empty run directory and locks it.
    ///
    /// # Errors
    /// When it holds anything, cannot be made, or is in use.
    pub fn create(path: &Path) -> Result<RunDir> {
        let io = |source| RunError::Io { path: path.to_owned(), source };
        std::fs::create_dir_all(path).map_err(io)?;
        let dir = RunDir::locked(path)?;
        // What a crash leaves between the first file and the first whole line of the journal is no run.
        let journal = dir.journal();
        let begun = std::fs::read(&journal).is_ok_and(|bytes| bytes.contains(&b'\n'));
        let ours = [".lock", "config.toml", "journal.jsonl"];
        let other = |e: std::fs::DirEntry| !ours.iter().any(|name| e.file_name() == *name);
        let occupied = begun || std::fs::read_dir(path).map_err(io)?.flatten().any(other);
        if !occupied && journal.exists() {
            std::fs::remove_file(&journal).map_err(io)?;
        }
        match occupied {
            true => Err(RunError::NotEmpty { path: path.to_owned() }),
            false => Ok(dir),
        }
    }

    /// Opens a run and locks it.
    ///
    /// # Errors
    /// When there is no run, or it is in use.
    pub fn open(path: &Path) -> Result<RunDir> {
        if !path.join("journal.jsonl").is_file() {
            return Err(RunError::NoRun { path: path.to_owned() });
        }
        RunDir::locked(path)
    }

    fn locked(path: &Path) -> Result<RunDir> {
        let name = path.join(".lock");
        let io = |source| RunError::Io { path: name.clone(), source };
        if std::fs::metadata(&name).is_ok_and(|m| !m.is_file()) {
            return Err(io(io::Error::other("not a regular file; move it away")));
        }
        let lock = File::options().create(true).truncate(false).write(true).open(&name).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(RunDir { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(RunError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The journal file.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal.jsonl")
    }

    /// The file of the resolved options.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// Writes the banks a step first made and moves them out of memory; answers their records and the
    /// SHA-256 of their file.
    ///
    /// # Errors
    /// When the disk is full; the banks then stay in memory and no half file is left.
    pub fn write_banks(&self, step: u32, elastic: &mut Elastic) -> Result<(Vec<super::bank::BankRecord>, String)> {
        let banks = elastic.unwritten_banks();
        if banks.is_empty() {
            return Ok((Vec::new(), String::new()));
        }
        let path = bank_file(&self.path, step);
        let (mut tensors, mut records, mut filed) = (Vec::new(), Vec::new(), HashMap::new());
        for (i, bank) in banks {
            let name = &elastic.slices()[i].name;
            let record = bank.record(i as u32);
            tensors.extend(bank.tensors(name));
            filed.insert(i, Bank::in_file(&record, &path, name));
            records.push(record);
        }
        let io = |source| RunError::Io { path: path.clone(), source };
        crate::mlx::files::write_tensors(&path, &tensors).map_err(io)?;
        let sha256 =
            sha256_file(&path, &mut |_| {}).map_err(|e| RunError::Io { path: path.clone(), source: e.source })?;
        elastic.set_banks(filed);
        Ok((records, sha256))
    }
}

fn bank_file(run: &Path, step: u32) -> PathBuf {
    run.join("banks").join(format!("step-{step:04}.safetensors"))
}

/// Puts the state after one step of a run (`None`: the base) onto an elastic model of its base.
///
/// # Errors
/// When the record does not fit the model or a bank is damaged.
pub fn apply_state(
    run: &Path,
    history: &[super::journal::Event],
    step: Option<&StepRecord>,
    elastic: &mut Elastic,
    progress: &mut dyn FnMut(usize, usize, &str) -> bool,
) -> Result<()> {
    let Some(step) = step else {
        elastic.wake_all();
        return Ok(());
    };
    let slices = elastic.slices().to_vec();
    let state = step.state.clone().unwrap_or_else(|| vec![DENSE; slices.len()]);
    let fits = |i: usize, a: &Awake| slices.get(i).is_some_and(|s| a.is_valid(s.max_rank));
    let unfit = state.iter().enumerate().position(|(i, a)| !fits(i, a));
    if state.len() != slices.len() || unfit.is_some() {
        let slice = slices.get(unfit.unwrap_or(state.len())).map_or_else(|| "the journal".into(), |s| s.name.clone());
        return Err(RunError::Mismatch { slice });
    }
    // The newest bank of each slice along the chain of states that led here.
    let mut banks: HashMap<usize, Bank> = HashMap::new();
    for s in history.chain(Some(step)) {
        check_banks(run, s)?;
        for record in &s.banks {
            let i = record.slice as usize;
            let Some(slice) = slices.get(i) else { continue };
            banks.entry(i).or_insert_with(|| Bank::in_file(record, &bank_file(run, s.step), &slice.name));
        }
    }
    elastic.set_banks(banks);
    let mut frozen = vec![false; slices.len()];
    for &f in &step.frozen {
        if let Some(f) = frozen.get_mut(f as usize) {
            *f = true;
        }
    }
    let how = Factoring { metric: None, moments: None, parking: super::bank::Parking::EightBit };
    Ok(elastic.apply(&state, &frozen, &how, progress)?)
}

/// Checks that the bank file of a step is the one it wrote.
fn check_banks(run: &Path, step: &StepRecord) -> Result<()> {
    if step.banks.is_empty() {
        return Ok(());
    }
    let path = bank_file(run, step.step);
    let found = sha256_file(&path, &mut |_| {});
    let what = match found {
        Ok(found) if found == step.banks_sha256 => return Ok(()),
        Ok(_) => "its contents have changed since the step wrote it".into(),
        Err(e) if e.source.kind() == io::ErrorKind::NotFound => "it is missing".into(),
        Err(e) => e.source.to_string(),
    };
    Err(RunError::Bank { path, what })
}

/// The slices of a run as positions in a model.
///
/// # Errors
/// When the model lacks one of them or it has another shape.
pub fn positions(slices: &[crate::plugin::contract::Slice], model: &Model) -> Result<Vec<usize>> {
    let find = |s: &crate::plugin::contract::Slice| {
        let same = |m: &crate::model::SliceMeta| m.name == s.name && m.rows == s.rows && m.cols == s.cols;
        model.slices().iter().position(same).ok_or_else(|| RunError::Mismatch { slice: s.name.clone() })
    };
    slices.iter().map(find).collect()
}

/// Checks that the base, with these levels of it awake where it is an elastic checkpoint, is the one a run was made with.
///
/// # Errors
/// When it has changed or cannot be read.
pub fn check_base(dir: &Path, levels: Option<&Levels>, expected: &str) -> Result<()> {
    let found = registry::state_hash(dir, levels)?;
    match found == expected {
        true => Ok(()),
        false => Err(RunError::BaseChanged { path: dir.to_owned(), found, expected: expected.to_owned() }),
    }
}

/// A model in the current state of a run, for `--state`.
///
/// # Errors
/// When the run, its base or a bank cannot be read.
pub fn open_state(
    run: &Path,
    load: impl FnOnce(&Path, &LoadOptions) -> crate::model::Result<Model>,
) -> Result<Elastic> {
    let journal = run.join("journal.jsonl");
    if !journal.is_file() {
        return Err(RunError::NoRun { path: run.to_owned() });
    }
    let events = Journal::read(&journal)?;
    let record = events.run().ok_or_else(|| JournalError::NoRun { path: journal.clone() })?;
    check_base(&record.base, record.awake.as_ref(), &record.base_sha256)?;
    let options = LoadOptions { levels: record.awake.clone(), ..LoadOptions::default() };
    let model = load(&record.base, &options).map_err(super::elastic::ElasticError::from)?;
    let chosen = positions(&record.slices, &model)?;
    let mut elastic = Elastic::new(model, chosen);
    apply_state(run, &events, events.current(), &mut elastic, &mut |_, _, _| true)?;
    Ok(elastic)
}
