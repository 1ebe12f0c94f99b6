//! `elastic.json`: what an elastic checkpoint was made of, what it stores, and what of it is awake.
//!
//! Everything but `awake`, `awake_budget` and `runs_base` is fixed when the checkpoint is made; those are what
//! [`Manifest::set`] and [`Manifest::wake`] change. [`crate::model::awake`] reads them when the model is loaded.

use super::budget::{self, Rungs};
use super::encode::bits_per_value;
use super::error::{Error, Result};
use super::residual;
use super::settings::{Mode, Reach, Settings};
use crate::atomic::{FileError, read_bounded, write_file};
use crate::mlx::spectral;
use crate::model::awake::{self, Origin};
use crate::model::ladder::MANIFEST;
use crate::model::{Level, Levels};
use crate::plastic::factor::Metric;
use crate::plastic::journal::FileRecord;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

pub use crate::model::awake::{PARKED, Part, SCHEMA};

/// Energies of the components that are stored.
pub const SPECTRA: &str = "spectra.safetensors";
/// Most bytes of the file.
const MAX_MANIFEST: u64 = 64 << 20;

/// One slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SliceRecord {
    /// Its name.
    pub name: String,
    /// Outputs.
    pub rows: u32,
    /// Inputs.
    pub cols: u32,
    /// Components stored.
    pub stored: u32,
    /// What the plan gave it.
    pub planned: Level,
    /// Parameters that the coarse weight counts for, where components repair one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub coarse: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Perplexity before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The text.
    pub text: FileRecord,
    /// Windows scored.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Of the base.
    pub before: f64,
    /// Of the compressed model.
    pub after: f64,
    /// Standard errors of both over windows; `None` for one window.
    pub errors: Option<[f64; 2]>,
    /// Rise of the mean loss, nats per token.
    pub rise: f64,
    /// 95 % interval of the rise, paired by windows; `None` for one window.
    pub interval: Option<[f64; 2]>,
}

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of the program that wrote it.
    pub program: String,
    /// What it was made with.
    #[serde(flatten)]
    pub settings: Settings,
    /// What orders the components.
    pub order: Metric,
    /// Share of the slices' parameters that the plan keeps.
    pub share: f64,
    /// Rise of the loss that was predicted, nats per token.
    pub predicted: Option<f64>,
    /// The slices.
    pub stored: Vec<SliceRecord>,
    /// The weight files.
    pub files: BTreeMap<String, Part>,
    /// Perplexity before and after.
    pub measured: Option<Measured>,
    /// What did not go as it should, and what was done instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The share that is awake now; 1 with everything in the checkpoint awake.
    pub awake_budget: f64,
    /// What is awake now.
    pub awake: Levels,
    /// Whether the base itself runs, bit for bit, instead of what is stored here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub runs_base: bool,
}

impl Manifest {
    /// Reads the manifest of a directory; `None` where it is no elastic checkpoint.
    ///
    /// # Errors
    /// When the file is damaged or of another version, or a weight file is missing or has another length.
    pub fn read(dir: &Path) -> Result<Option<Manifest>> {
        let path = dir.join(MANIFEST);
        let bytes = match read_bounded(&path, MAX_MANIFEST) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(FileError::at("reading", &path)(e).into()),
            Ok(bytes) => bytes,
        };
        let again = "compress the base again";
        let value: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::file(&path, format!("is not valid JSON ({e}); {again}")))?;
        awake::check_schema(&path, &value)?;
        let m: Manifest =
            serde_json::from_value(value).map_err(|e| Error::file(&path, format!("cannot be read ({e}); {again}")))?;
        awake::check_files(dir, &m.files)?;
        m.check(&path)?;
        if let Some(flaw) = m.flaw() {
            return Err(Error::file(&path, format!("{flaw}; {again}")));
        }
        Ok(Some(m))
    }

    /// What cannot be in a file that this program wrote.
    fn flaw(&self) -> Option<String> {
        let share = |x: f64| x.is_finite() && (0.0..=4.0).contains(&x);
        if self.stored.is_empty() {
            return Some("names no slice".into());
        }
        if !share(self.share) || !share(self.awake_budget) {
            return Some(format!("has shares of {} and {}", self.share, self.awake_budget));
        }
        let bad = |s: &&SliceRecord| {
            let coarse = self.settings.coarse.map_or(0, |q| residual::cost(q, s.rows, s.cols));
            let most = s.rows.min(s.cols);
            let fits = |l: Level| !matches!(l, Level::Rank(r) if r > s.stored);
            let awake = self.awake.get(&s.name).copied().unwrap_or(s.planned);
            most == 0 || s.stored > most || s.coarse != coarse || !fits(s.planned) || !fits(awake)
        };
        self.stored.iter().find(bad).map(|s| format!("contradicts itself about {}", s.name))
    }

    /// The same for a directory that must be an elastic checkpoint.
    ///
    /// # Errors
    /// As [`Manifest::read`], and when it is none.
    pub fn open(dir: &Path) -> Result<Manifest> {
        let none = || {
            Error::file(dir, "is no elastic checkpoint (it has no elastic.json); make one with `plastic-host compress`")
        };
        Manifest::read(dir)?.ok_or_else(none)
    }

    /// That numbers which decide how much memory is asked for fit each other.
    fn check(&self, path: &Path) -> Result<()> {
        let bad = self.stored.iter().find(|s| {
            let planned = match s.planned {
                Level::Dense => 0,
                Level::Rank(r) => r,
            };
            s.rows == 0 || s.cols == 0 || s.stored > s.rows.min(s.cols) || planned > s.stored
        });
        let share = self.share.is_finite() && self.awake_budget.is_finite();
        match bad {
            Some(s) => Err(Error::file(
                path,
                format!("has numbers of {} that contradict each other; compress the base again", s.name),
            )),
            None if !share => Err(Error::file(path, "has shares that are no numbers; compress the base again")),
            None => Ok(()),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST);
        let text = serde_json::to_vec_pretty(self).map_err(|e| Error::file(&path, e.to_string()))?;
        Ok(write_file(&path, &text)?)
    }

    /// Parameters of the slices in the base.
    pub fn parameters(&self) -> u64 {
        self.stored.iter().map(|s| u64::from(s.rows) * u64::from(s.cols)).sum()
    }

    /// The slices with their energies, as [`budget`] wants them.
    ///
    /// # Errors
    /// When the file of energies is damaged.
    pub fn rungs(&self, dir: &Path) -> Result<Vec<Rungs>> {
        let path = dir.join(SPECTRA);
        let damaged = |why: String| Error::file(&path, format!("{why}; compress the base again"));
        crate::model::safetensors::read_header(&path)?;
        let mut all = crate::mlx::Array::load_safetensors(&path).map_err(|e| damaged(e.to_string()))?;
        let rungs = |s: &SliceRecord| {
            let energies = all.remove(&s.name).ok_or_else(|| damaged(format!("has no energies of {}", s.name)))?;
            let mut energies = spectral::to_vec(&energies)?;
            let beyond = energies.pop().filter(|_| energies.len() == s.stored as usize);
            let beyond = beyond.ok_or_else(|| damaged(format!("has the wrong number of energies of {}", s.name)))?;
            if energies.iter().chain([&beyond]).any(|e| !e.is_finite() || *e < 0.0) {
                return Err(damaged(format!("has energies of {} that are no energies", s.name)));
            }
            Ok(self.rungs_of(s, energies, beyond))
        };
        self.stored.iter().map(rungs).collect()
    }

    fn rungs_of(&self, s: &SliceRecord, energies: Vec<f64>, beyond: f64) -> Rungs {
        let dense = u64::from(s.rows) * u64::from(s.cols);
        let repairs = self.settings.mode == Mode::Residual;
        Rungs {
            energies,
            beyond,
            component: component_cost(&self.settings, s.rows, s.cols),
            dense: (s.planned == Level::Dense && !repairs).then_some(dense),
            fixed: s.coarse,
        }
    }

    /// What `share` of the slices' parameters wakes. From the share of the plan on, that is the plan.
    ///
    /// # Errors
    /// When the share is so small that not even one component of each slice fits, or the energies are damaged.
    pub fn levels(&self, dir: &Path, share: f64) -> Result<Vec<Level>> {
        match share >= self.share && !self.has_more(share) {
            true => Ok(self.planned()),
            false => self.levels_of(&self.rungs(dir)?, share),
        }
    }

    /// Whether a share above that of the plan finds components that the plan left asleep.
    fn has_more(&self, share: f64) -> bool {
        self.settings.ladder == Reach::Full && share > self.share + 1e-9
    }

    /// What the plan keeps: the most that can be awake here, but for ladders that are stored in full.
    pub fn planned(&self) -> Vec<Level> {
        self.stored.iter().map(|s| s.planned).collect()
    }

    /// [`Manifest::levels`] with the energies at hand.
    ///
    /// # Errors
    /// When the share is so small that not even one component of each slice fits.
    pub fn levels_of(&self, rungs: &[Rungs], share: f64) -> Result<Vec<Level>> {
        if share >= self.share && !self.has_more(share) {
            return Ok(self.planned());
        }
        let least: u64 = rungs.iter().map(Rungs::least).sum();
        let budget = (share * self.parameters() as f64).floor() as u64;
        budget::levels(rungs, budget).ok_or_else(|| {
            Error::Usage(format!(
                "an awake budget of {share} is {budget} parameters, and the least that runs is {least} ({:.3}); ask for more",
                least as f64 / self.parameters() as f64
            ))
        })
    }

    /// Levels by name.
    pub fn named(&self, levels: &[Level]) -> Levels {
        self.stored.iter().zip(levels).map(|(s, l)| (s.name.clone(), *l)).collect()
    }

    /// Makes a share the one that is awake when the checkpoint is loaded.
    ///
    /// # Errors
    /// As [`Manifest::levels`], and when the directory cannot be written.
    pub fn set(&mut self, dir: &Path, share: f64) -> Result<()> {
        let levels = self.levels(dir, share)?;
        self.awake = self.named(&levels);
        self.awake_budget = share;
        self.runs_base = false;
        self.write(dir)
    }

    /// Makes the base itself what runs when the directory is loaded, once it is certain that it can be had bit for bit.
    ///
    /// # Errors
    /// When the base is gone or has changed, or what is parked of it is damaged; nothing changes then. And when the
    /// directory cannot be written.
    pub fn wake(&mut self, dir: &Path) -> Result<()> {
        match self.settings.self_contained {
            true => super::restore::verify(dir, self)?,
            false => self.check_base()?,
        }
        self.awake = self.named(&self.planned());
        self.awake_budget = 1.0;
        self.runs_base = true;
        self.write(dir)
    }

    /// Parameters that a level of a slice keeps awake, as the budget counts them.
    pub fn cost(&self, s: &SliceRecord, level: Level) -> u64 {
        s.coarse
            + match level {
                Level::Dense => u64::from(s.rows) * u64::from(s.cols),
                Level::Rank(r) => u64::from(r) * component_cost(&self.settings, s.rows, s.cols),
            }
    }

    /// Parameters that levels keep awake, as the budget counts them.
    pub fn awake_parameters(&self, levels: &[Level]) -> u64 {
        self.stored.iter().zip(levels).map(|(s, l)| self.cost(s, *l)).sum()
    }

    /// The levels that are awake now, in the order of the slices.
    pub fn current(&self) -> Vec<Level> {
        self.stored.iter().map(|s| self.awake.get(&s.name).copied().unwrap_or(s.planned)).collect()
    }

    /// Checks that the base is where it was and what it was.
    ///
    /// # Errors
    /// When it is gone or has changed.
    pub fn check_base(&self) -> Result<()> {
        let base = &self.settings.base;
        let origin = Origin { id: base.id.clone(), dir: base.dir.clone(), sha256: base.sha256.clone() };
        Ok(origin.check()?)
    }
}

/// Parameters that one component counts for: its values; where components repair a coarser weight, its bytes in
/// pairs, since there bytes are what is saved.
pub fn component_cost(settings: &Settings, rows: u32, cols: u32) -> u64 {
    match settings.mode {
        Mode::Factor => u64::from(rows) + u64::from(cols),
        Mode::Residual => {
            let bits = |width: u32| bits_per_value(width, settings.factor_bits) * f64::from(width);
            ((bits(rows) + bits(cols)) / 16.0).ceil() as u64
        }
    }
}
