//! Packs in the adapter layouts of mlx-lm and PEFT, both ways.
//!
//! A pack that goes out and comes back is the same to the bit: what a layout has no place for (ranks and alphas of
//! each slice in mlx-lm's, where everything came from) travels in the text part of its safetensors file, which other
//! programs pass over, and is believed only where it gives exactly the tensors that are there. Adapters that others
//! made are read strictly: a tensor, type or setting that would change what is computed and cannot be taken over is
//! an error. Their numbers become float16, and what that costs is said.

mod adapters;
mod mlx_lm;
mod peft;
#[cfg(test)]
mod tests;

use super::error::{Error, Result};
use super::format::{Meta, Pack, Profile, UPSTREAM_VERSION, VERSION, check_meta};
use crate::atomic::{FileError, Lock, Staged};
use crate::model::tensor_file::{self, Tensor};
use adapters::TensorFile;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Text of a safetensors file in which a pack's metadata travels.
const NOTE: &str = "plastic.pack";
/// File with the settings, in both layouts.
const CONFIG: &str = "adapter_config.json";
/// Most bytes of settings that are read.
const MAX_CONFIG: u64 = 16 << 20;

/// An adapter layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// adapters.safetensors and adapter_config.json, as mlx_lm.lora writes them
    MlxLm,
    /// adapter_model.safetensors and adapter_config.json, as Hugging Face PEFT writes them
    Peft,
}

impl Format {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::MlxLm => "mlx-lm",
            Format::Peft => "peft",
        }
    }

    fn tensors(self) -> &'static str {
        match self {
            Format::MlxLm => "adapters.safetensors",
            Format::Peft => "adapter_model.safetensors",
        }
    }

    /// The layout of a directory, by its files.
    ///
    /// # Errors
    /// When there is no adapter in it, or one of each.
    pub fn of(dir: &Path) -> Result<Format> {
        let there = [Format::MlxLm, Format::Peft].map(|f| dir.join(f.tensors()).is_file());
        match there {
            [true, false] => Ok(Format::MlxLm),
            [false, true] => Ok(Format::Peft),
            [true, true] => Err(Error::file(dir, "holds an adapter in both layouts; say which with --format")),
            [false, false] => Err(Error::file(dir, nothing_here(dir))),
        }
    }
}

fn nothing_here(dir: &Path) -> String {
    let has = |name: &str| dir.join(name).is_file();
    if has("adapter_model.bin") {
        return "holds adapter_model.bin, a pickle, which can run code when it is read; save it as safetensors (PEFT: save_pretrained(..., safe_serialization=True))".into();
    }
    if has(super::format::TENSORS) {
        return "is a pack already; copy it into the packs directory".into();
    }
    let named = format!("{} (mlx-lm) or {} (PEFT)", Format::MlxLm.tensors(), Format::Peft.tensors());
    match dir.is_dir() {
        true => format!("has no {named}; name the directory of an adapter"),
        false => format!("is no directory; name one with {named}"),
    }
}

/// What an export wrote.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// The directory.
    pub dir: PathBuf,
    /// Its layout.
    pub format: Format,
    /// Adapters in it.
    pub adapters: usize,
    /// Rank of the layout, where it has one for all; else the largest.
    pub rank: usize,
    /// Bytes of the tensors.
    pub bytes: u64,
    /// What its reader should know.
    pub notes: Vec<String>,
}

/// Files of an adapter, not yet written.
struct Files {
    tensors: Vec<Tensor>,
    config: serde_json::Value,
    rank: usize,
    notes: Vec<String>,
}

/// Writes a pack to a directory in another layout; the directory is there whole or not at all.
///
/// # Errors
/// When the layout cannot hold the pack, something is in the way, or the files cannot be written.
pub fn export(pack: &Pack, format: Format, out: &Path, force: bool) -> Result<Exported> {
    let files = match format {
        Format::MlxLm => mlx_lm::export(pack)?,
        Format::Peft => peft::export(pack)?,
    };
    let lock = Lock::try_of_directory(out)?;
    let _lock = lock.ok_or_else(|| {
        Error::Name(format!("{}: is being written by another process; wait for it to end", out.display()))
    })?;
    free(out, force)?;
    let note = serde_json::to_string(&pack.meta).map_err(|e| Error::Other(e.to_string()))?;
    let staged = Staged::new(out)?;
    let texts = [("format", if format == Format::Peft { "pt" } else { "mlx" }.to_owned()), (NOTE, note)];
    tensor_file::write(&staged.path().join(format.tensors()), &texts, &files.tensors)?;
    let path = staged.path().join(CONFIG);
    let config = serde_json::to_vec_pretty(&files.config).map_err(|e| Error::Other(e.to_string()))?;
    std::fs::write(&path, config).map_err(FileError::at("writing", &path))?;
    staged.commit()?;
    Ok(Exported {
        dir: out.to_owned(),
        format,
        adapters: pack.adapters.len(),
        rank: files.rank,
        bytes: files.tensors.iter().map(Tensor::nbytes).sum(),
        notes: files.notes,
    })
}

/// That a directory may be written: it is not there or empty, or it is an adapter and `force` is on.
fn free(out: &Path, force: bool) -> Result<()> {
    let empty = std::fs::read_dir(out).is_ok_and(|mut d| d.next().is_none());
    if out.symlink_metadata().is_err() || empty {
        return Ok(());
    }
    match (out.join(CONFIG).is_file(), force) {
        (true, true) => Ok(()),
        (true, false) => Err(Error::file(out, "holds an adapter; name another --out, or replace it with --force")),
        (false, _) => Err(Error::file(out, "is there and is no adapter; name another --out")),
    }
}

/// What became of an adapter that was read.
#[derive(Clone, Debug, Serialize)]
pub struct Imported {
    /// The pack; its name and base are the caller's.
    #[serde(skip)]
    pub pack: Pack,
    /// Layout it had.
    pub format: Format,
    /// It was exported by this program and is, to the bit, the pack that went out.
    pub native: bool,
    /// Largest relative error of a matrix by rounding to float16, in the Frobenius norm; 0: every number fits.
    pub rounding: f64,
    /// Matrices whose numbers do not all fit float16 exactly.
    pub rounded: usize,
    /// What its user should know.
    pub notes: Vec<String>,
}

/// Reads an adapter. `meta` says what the new pack is called and what it belongs to; an adapter that this program
/// exported brings the rest along.
///
/// # Errors
/// When files are missing or damaged, or hold or ask for something that a pack cannot do.
pub fn import(dir: &Path, format: Option<Format>, meta: &Meta) -> Result<Imported> {
    let format = match format {
        Some(f) => f,
        None => Format::of(dir)?,
    };
    let path = dir.join(format.tensors());
    if !path.is_file() {
        let other = Format::of(dir).map(|f| format!("is an adapter of {}; use --format {0}", f.name()));
        return Err(Error::file(dir, other.unwrap_or_else(|_| nothing_here(dir))));
    }
    let config = config(&dir.join(CONFIG))?;
    let mut file = TensorFile::read(&path)?;
    let note: Option<Meta> = file.text(NOTE).and_then(|text| serde_json::from_str(&text).ok());
    // A schema of the future is not ours to restore.
    let note = note.filter(|m: &Meta| [VERSION, UPSTREAM_VERSION].contains(&m.version.as_str()));
    let modules = match format {
        Format::MlxLm => mlx_lm::import(&config, &mut file)?,
        Format::Peft => peft::import(&config, &mut file)?,
    };
    file.no_others()?;
    let known: &[&str] = match format {
        Format::MlxLm => &mlx_lm::KNOWN,
        Format::Peft => &peft::KNOWN,
    };
    let unknown = config.unknown(known);
    if modules.is_empty() {
        return Err(Error::file(&path, "holds no adapter"));
    }
    let native = note.as_ref().and_then(|meta| adapters::native(&modules, meta, format == Format::MlxLm));
    let is_native = native.is_some();
    let (adapters, loss) = match native {
        Some(adapters) => (adapters, adapters::Loss::default()),
        None => adapters::rounded(&modules)?,
    };
    let known = note.filter(|_| is_native);
    let mut meta = match known {
        Some(from) => Meta {
            pack_name: meta.pack_name.clone(),
            base_hash: if from.base_hash.is_empty() { meta.base_hash.clone() } else { from.base_hash },
            base_model: if from.base_model.is_empty() { meta.base_model.clone() } else { from.base_model },
            profile: if meta.profile == Profile::Heavy { Profile::Heavy } else { from.profile },
            ..from
        },
        None => meta.clone(),
    };
    if !is_native && meta.training_config.is_null() {
        meta.training_config = serde_json::json!({ "imported_from": format.name(), "adapter_config": config.value });
    }
    let version = meta.version.clone();
    let mut pack = Pack::new(meta, adapters);
    if is_native {
        pack.meta.version = version;
        check_meta(&pack.meta, &path)?;
    }
    let mut notes = loss.notes;
    if !unknown.is_empty() {
        notes.push(format!(
            "warning: {CONFIG} has settings that this program does not know and passed over: {}",
            unknown.join(", ")
        ));
    }
    Ok(Imported { pack, format, native: is_native, rounding: loss.worst, rounded: loss.matrices, notes })
}

/// The beginning of a text that may be long.
fn short(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// `adapter_config.json`.
struct Config {
    path: PathBuf,
    value: serde_json::Map<String, serde_json::Value>,
}

fn config(path: &Path) -> Result<Config> {
    if !path.exists() {
        return Err(Error::file(path, "is missing; an adapter is its tensors and this file: copy it there"));
    }
    let bytes = crate::atomic::read_bounded(path, MAX_CONFIG).map_err(FileError::at("reading", path))?;
    match serde_json::from_slice(&bytes) {
        Ok(serde_json::Value::Object(value)) => Ok(Config { path: path.to_owned(), value }),
        Ok(_) => Err(Error::file(path, "is no JSON object; expected the settings of an adapter")),
        Err(e) => Err(Error::file(path, format!("is not valid JSON ({e}); copy it again"))),
    }
}

impl Config {
    fn bad(&self, field: &str, reason: impl std::fmt::Display) -> Error {
        Error::file(&self.path, format!("`{field}` {reason}"))
    }

    /// Fields that are set to something and are none of these.
    fn unknown(&self, known: &[&str]) -> Vec<String> {
        let nothing = |v: &serde_json::Value| match v {
            serde_json::Value::Null | serde_json::Value::Bool(false) => true,
            serde_json::Value::Array(a) => a.is_empty(),
            serde_json::Value::Object(o) => o.is_empty(),
            _ => false,
        };
        let set = self.value.iter().filter(|(k, v)| !known.contains(&k.as_str()) && !nothing(v));
        set.map(|(k, _)| short(k)).collect()
    }

    /// A field that is there and not null.
    fn get(&self, field: &str) -> Option<&serde_json::Value> {
        self.value.get(field).filter(|v| !v.is_null())
    }

    fn number(&self, field: &str) -> Result<Option<f64>> {
        match self.get(field) {
            None => Ok(None),
            Some(v) => match v.as_f64().filter(|x| x.is_finite()) {
                Some(x) => Ok(Some(x)),
                None => Err(self.bad(field, format!("is {}; expected a number", short(&v.to_string())))),
            },
        }
    }

    fn flag(&self, field: &str) -> Result<bool> {
        match self.get(field) {
            None => Ok(false),
            Some(serde_json::Value::Bool(b)) => Ok(*b),
            Some(v) => Err(self.bad(field, format!("is {}; expected true or false", short(&v.to_string())))),
        }
    }

    fn text(&self, field: &str) -> Result<Option<&str>> {
        match self.get(field) {
            None => Ok(None),
            Some(v) => v
                .as_str()
                .map(Some)
                .ok_or_else(|| self.bad(field, format!("is {}; expected a text", short(&v.to_string())))),
        }
    }
}
