//! An unfinished training on disk, beside its pack: `.<name>.training` with the options, the state and the
//! metrics. The state is one file, replaced whole, so a training killed at any moment goes on from the last one.

use super::super::error::{Error, Result};
use super::super::format::{Adapter, Matrix};
use super::super::store::{Store, check_name};
use super::options::Options;
use crate::atomic::{self, FileError};
use crate::mlx::{self, Array, Dtype, files};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Schema of the files.
const SCHEMA: u32 = 1;
/// Most bytes of metrics that are read.
const MAX_LINES: u64 = 1 << 30;

/// What a training began with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// Schema of the files.
    pub schema: u32,
    /// Options.
    pub options: Options,
    /// Identity of the base.
    pub base_sha256: String,
    /// Identity of the rows trained on and validated with.
    pub rows_sha256: String,
    /// When, RFC 3339.
    pub time: String,
    /// Whether a pack of this name may be replaced.
    pub force: bool,
    /// SHA-256 of the options: an edited record is noticed.
    pub options_sha256: String,
}

impl Begun {
    /// A training that begins.
    pub fn new(options: Options, base_sha256: String, rows_sha256: String) -> Begun {
        let options_sha256 = digest(&options);
        Begun { schema: SCHEMA, options, base_sha256, rows_sha256, time: String::new(), force: false, options_sha256 }
    }
}

fn digest(options: &Options) -> String {
    crate::model::hash::sha256(&serde_json::to_vec(options).unwrap_or_default())
}

/// The numbers of a state; the arrays lie beside them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Updates done.
    pub step: u32,
    /// Best validation so far: its step and loss.
    pub best: Option<(u32, f64)>,
    /// Validations since then.
    pub worse: u32,
    /// Loss of the base on the validation windows.
    pub base_loss: Option<f64>,
    /// Mean loss of the last update.
    pub last_loss: f64,
    /// Tokens that counted.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Loss of the last validation.
    #[serde(default)]
    pub valid_loss: Option<f64>,
    /// Decisions about ranks, where a policy takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<serde_json::Value>,
}

/// The directory of a training.
pub struct TrainingDir(PathBuf);

impl TrainingDir {
    /// That of a pack's name, there or not.
    ///
    /// # Errors
    /// When the name is none.
    pub fn of(store: &Store, name: &str) -> Result<TrainingDir> {
        check_name(name)?;
        Ok(TrainingDir(store.root().join(format!(".{name}.training"))))
    }

    /// Path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether a training was begun and not finished.
    pub fn is_there(&self) -> bool {
        self.0.join("training.json").is_file()
    }

    /// Makes it anew.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(&self, begun: &Begun) -> Result<()> {
        self.remove()?;
        std::fs::create_dir_all(&self.0).map_err(FileError::at("creating", &self.0))?;
        let text = serde_json::to_vec_pretty(begun).map_err(|e| Error::Other(e.to_string()))?;
        Ok(atomic::write_file(&self.0.join("training.json"), &text)?)
    }

    /// Deletes it, if it is there.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.0) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(FileError::at("removing", &self.0)(e).into()),
        }
    }

    /// What it began with.
    ///
    /// # Errors
    /// When there is none, or it is of another version.
    pub fn begun(&self) -> Result<Begun> {
        let path = self.0.join("training.json");
        let bytes = atomic::read_bounded(&path, 1 << 20).map_err(FileError::at("reading", &path))?;
        let begun: Begun = serde_json::from_slice(&bytes)
            .map_err(|e| Error::file(&path, format!("is no record of a training ({e}); begin it again")))?;
        if begun.schema != SCHEMA {
            return Err(Error::file(&path, "is of another version of this program; begin the training again"));
        }
        match begun.options_sha256 == digest(&begun.options) {
            true => Ok(begun),
            false => Err(Error::file(
                &path,
                "its options were changed after the training began; put them back, or begin it again",
            )),
        }
    }

    /// Replaces the state.
    ///
    /// # Errors
    /// When the disk is full; the old state then stays.
    pub fn save(
        &self,
        state: &State,
        mut tensors: Vec<(String, Array)>,
        best: &BTreeMap<String, Adapter>,
    ) -> Result<()> {
        let text = serde_json::to_vec(state).map_err(|e| Error::Other(e.to_string()))?;
        tensors.push(("state".into(), Array::from_slice(&text, &[text.len() as i32])));
        for (key, a) in best {
            let matrix = |m: &Matrix| Array::from_slice(&m.data, &[m.rows as i32, m.cols as i32]);
            tensors.push((format!("best.{key}.A"), matrix(&a.a)));
            tensors.push((format!("best.{key}.B"), matrix(&a.b)));
            tensors.push((format!("best.{key}.alpha"), Array::from_f32(a.alpha)));
            if let Some(m) = &a.magnitude {
                tensors.push((format!("best.{key}.magnitude"), Array::from_slice(m, &[m.len() as i32])));
            }
        }
        let path = self.0.join("state.safetensors");
        files::write_tensors(&path, &tensors).map_err(|e| FileError::at("writing", &path)(e).into())
    }

    /// The last state with its arrays and the best adapters; `None` where none was saved.
    ///
    /// # Errors
    /// When the file is damaged.
    #[allow(clippy::type_complexity, reason = "used once")]
    pub fn load(&self) -> Result<Option<(State, HashMap<String, Array>, BTreeMap<String, Adapter>)>> {
        let path = self.0.join("state.safetensors");
        if !path.exists() {
            return Ok(None);
        }
        let damaged = |why: String| Error::file(&path, format!("is damaged ({why}); begin the training again"));
        crate::model::safetensors::read_header(&path)?;
        let mut all = Array::load_safetensors(&path).map_err(|e| damaged(e.to_string()))?;
        mlx::eval(all.values())?;
        for (name, a) in all.iter().filter(|(_, a)| a.size() > 0 && a.dtype() == Dtype::Float32) {
            if super::bank::floats(a)?.iter().any(|x| !x.is_finite()) {
                return Err(damaged(format!("{name} is not finite")));
            }
        }
        let text = all.remove("state").ok_or_else(|| damaged("it has no state".into()))?;
        let text = text.try_as_slice::<u8>().map_err(|e| damaged(e.to_string()))?;
        let state: State = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
        let keys: Vec<String> =
            all.keys().filter_map(|k| Some(k.strip_prefix("best.")?.strip_suffix(".alpha")?.to_owned())).collect();
        let mut best = BTreeMap::new();
        for key in keys {
            let mut take = |part: &str| all.remove(&format!("best.{key}.{part}"));
            let (Some(a), Some(b), Some(alpha)) = (take("A"), take("B"), take("alpha")) else {
                return Err(damaged(format!("its best {key} is incomplete")));
            };
            let magnitude = take("magnitude").as_ref().map(super::bank::floats).transpose()?;
            if a.ndim() != 2 || b.ndim() != 2 || a.dim(1) != b.dim(0) || alpha.size() != 1 {
                return Err(damaged(format!("its best {key} has impossible shapes")));
            }
            let alpha = super::bank::floats(&alpha.as_dtype(Dtype::Float32)?.reshape(&[1])?)?;
            let alpha = alpha.first().copied().unwrap_or_default();
            best.insert(key, Adapter { a: Matrix::from_array(&a)?, b: Matrix::from_array(&b)?, alpha, magnitude });
        }
        Ok(Some((state, all, best)))
    }

    /// Begins a file of JSON lines.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn lines_anew(&self, name: &str) -> Result<Lines> {
        let path = self.0.join(name);
        atomic::write_file(&path, b"")?;
        let file = File::options().append(true).open(&path).map_err(FileError::at("opening", &path))?;
        Ok(Lines { path, file })
    }

    /// Opens a file of JSON lines to go on with; lines of updates after `step` are dropped.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn lines(&self, name: &str, step: u32) -> Result<Lines> {
        let path = self.0.join(name);
        let old = match atomic::read_bounded(&path, MAX_LINES) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(FileError::at("reading", &path)(e).into()),
        };
        let upto = |line: &&str| {
            let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
            value.and_then(|v| v.get("step")?.as_u64()).is_some_and(|s| s <= u64::from(step))
        };
        let kept: String = old.lines().filter(upto).flat_map(|l| [l, "\n"]).collect();
        atomic::write_file(&path, kept.as_bytes())?;
        let file = File::options().append(true).open(&path).map_err(FileError::at("opening", &path))?;
        Ok(Lines { path, file })
    }
}

/// A file of JSON lines that grows.
pub struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Adds one line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).map_err(|e| Error::Other(e.to_string()))?;
        line.push(b'\n');
        Ok(self.file.write_all(&line).map_err(FileError::at("writing", &self.path))?)
    }

    /// Makes sure that it is on the disk.
    ///
    /// # Errors
    /// When it is full.
    pub fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data().map_err(FileError::at("syncing", &self.path))?)
    }
}
