//! The working directory of a compression, beside the one it will become: `OUT.compressing`.
//!
//! It holds the settings, the plan, and one part file for each finished slice, each written whole or not at all.
//! `--resume` goes on from whatever is there, after a look whether the settings are still the same.

use super::error::{Error, Result};
use super::settings::Settings;
use crate::atomic::{FileError, Lock, write_file};
use crate::model::tensor_file::{self, Tensor};
use crate::model::{Level, hash};
use crate::plastic::factor::Metric;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Most bytes of a text in the directory.
const MAX_TEXT: u64 = 64 << 20;

/// What was decided before the first slice was decomposed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// What orders the components.
    pub metric: Metric,
    /// The level of each slice under the budget.
    pub levels: Vec<Level>,
    /// Components of each slice to be stored.
    pub stored: Vec<u32>,
    /// Singular values of each slice in the metric.
    pub spectra: Vec<Vec<f32>>,
    /// Rise of the loss that was predicted, nats per token.
    pub predicted: Option<f64>,
}

/// The directory, locked.
pub struct Work {
    dir: PathBuf,
    _lock: Lock,
}

/// `OUT.compressing`.
pub fn place(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".compressing");
    out.with_file_name(name)
}

impl Work {
    /// Begins, or with `resume` goes on.
    ///
    /// # Errors
    /// When there is an unfinished compression and `resume` is not asked for, or the other way round; when the
    /// settings are others now; when another process is at it.
    pub fn open(out: &Path, settings: &Settings, resume: bool) -> Result<Work> {
        let dir = place(out);
        let busy =
            || Error::file(out, "is being compressed by another process; wait for it to end or name another directory");
        let lock = Lock::try_of_directory(out)?.ok_or_else(busy)?;
        let there = dir.join("settings.json");
        let foreign = dir.symlink_metadata().is_ok_and(|m| !m.is_dir())
            || !there.is_file() && std::fs::read_dir(&dir).is_ok_and(|mut d| d.next().is_some());
        if foreign {
            return Err(Error::file(
                &dir,
                "is in the way and was not made by compress (it has no settings.json); move it away, or name another --out",
            ));
        }
        let text = serde_json::to_string_pretty(settings).map_err(|e| Error::file(&there, e.to_string()))?;
        match (there.is_file(), resume) {
            (true, false) => {
                return Err(Error::file(
                    &dir,
                    "an unfinished compression is here; go on with --resume, or delete the directory to begin anew",
                ));
            }
            (true, true) => {
                let bytes = crate::atomic::read_bounded(&there, MAX_TEXT).map_err(FileError::at("reading", &there))?;
                let old: Settings = serde_json::from_slice(&bytes).map_err(|e| {
                    Error::file(&there, format!("cannot be read ({e}); delete the directory and begin anew"))
                })?;
                if old.sha256() != settings.sha256() {
                    return Err(Error::file(&there, changed(&old, settings)));
                }
            }
            (false, true) => {
                return Err(Error::file(&dir, "is not there: nothing to resume; begin without --resume"));
            }
            (false, false) => {}
        }
        let parts = dir.join("slices");
        std::fs::create_dir_all(&parts).map_err(FileError::at("creating", &parts))?;
        if !there.is_file() {
            write_file(&there, text.as_bytes())?;
        }
        Ok(Work { dir, _lock: lock })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was decided, where that is known.
    ///
    /// # Errors
    /// When the file cannot be read or is not as it was written.
    pub fn decided(&self) -> Result<Option<Decided>> {
        let path = self.dir.join("plan.json");
        let bytes = match crate::atomic::read_bounded(&path, MAX_TEXT) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(FileError::at("reading", &path)(e).into()),
            Ok(bytes) => bytes,
        };
        let damaged = || Error::file(&path, format!("is damaged; delete {} and begin anew", self.dir.display()));
        if !is_sealed(&path)? {
            return Err(damaged());
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|_| damaged())
    }

    /// Keeps what was decided.
    pub fn decide(&self, decided: &Decided) -> Result<()> {
        let path = self.dir.join("plan.json");
        let text = serde_json::to_vec(decided).map_err(|e| Error::file(&path, e.to_string()))?;
        write_file(&path, &text)?;
        seal(&path)
    }

    /// The part file of a slice.
    pub fn part(&self, slice: usize) -> PathBuf {
        self.dir.join("slices").join(format!("{slice:05}.safetensors"))
    }

    /// Whether the part of a slice is there as it was written.
    pub fn has(&self, slice: usize) -> bool {
        is_sealed(&self.part(slice)).unwrap_or(false)
    }

    /// Keeps the part of a slice.
    pub fn keep(&self, slice: usize, tensors: &[Tensor]) -> Result<()> {
        let (path, fresh) = (self.part(slice), self.dir.join("slices").join(".fresh"));
        tensor_file::write(&fresh, &[], tensors)?;
        let sync = || std::fs::File::open(&fresh)?.sync_all();
        sync().map_err(FileError::at("syncing", &fresh))?;
        std::fs::rename(&fresh, &path).map_err(FileError::at("renaming a file to", &path))?;
        seal(&path)
    }

    /// Removes it where nothing was decided yet: a mistake in the command leaves nothing in the way.
    pub fn abandon(self) {
        if !self.dir.join("plan.json").exists() {
            self.finish();
        }
    }

    /// Removes it: the work is done.
    pub fn finish(self) {
        // What is left is only wasted space.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Notes the SHA-256 of a file beside it.
///
/// # Errors
/// When the file cannot be read or the note not be written.
pub fn seal(path: &Path) -> Result<()> {
    Ok(write_file(&seal_of(path), sha256(path)?.as_bytes())?)
}

/// Whether a file is there as it was when it was sealed.
///
/// # Errors
/// When it cannot be read.
pub fn is_sealed(path: &Path) -> Result<bool> {
    let seal = std::fs::read(seal_of(path)).unwrap_or_default();
    Ok(path.is_file() && sha256(path)?.as_bytes() == seal)
}

fn seal_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".sha256");
    path.with_file_name(name)
}

/// Which settings differ.
fn changed(old: &Settings, new: &Settings) -> String {
    let (old, new) = (fields(old), fields(new));
    let differ: Vec<&str> = old
        .iter()
        .filter(|(k, v)| new.get(*k) != Some(v))
        .map(|(k, _)| k.as_str())
        .chain(new.keys().filter(|k| !old.contains_key(*k)).map(String::as_str))
        .collect();
    let what = if differ.is_empty() { "this version of the program".into() } else { differ.join(", ") };
    format!("was begun with other settings ({what}); resume with those, or delete the directory to begin anew")
}

fn fields(s: &Settings) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(s) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    }
}

/// SHA-256 of a file.
pub fn sha256(path: &Path) -> Result<String> {
    Ok(hash::sha256_file(path, &mut |_| {})?)
}
