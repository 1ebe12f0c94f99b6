//! A fixed checkpoint from an elastic one: its slices stored anew in one way or another, everything else as it was.
//!
//! First every slice that changes is written to a part file of its own, so that memory holds one at a time; then the
//! parts and what did not change are put together. Texts are copied; `config.json` says of each new slice how it is
//! quantised; `elastic.json` and what only it needs stay behind.
//!
//! The source is only read, and the new directory appears whole or not at all. Errors name the file or the slice.

use super::error::{Error, Result};
use crate::atomic::{FileError, Lock, Staged};
use crate::mlx::quant::Scheme;
use crate::model::checkpoint::Checkpoint;
use crate::model::safetensors::read_header;
use crate::model::tensor_file::{self, Tensor, by_place, copied};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Most bytes of a `config.json`.
const MAX_CONFIG: u64 = 16 << 20;
/// Where the parts lie meanwhile.
const PARTS: &str = "parts";
/// What a slice's own weight is made of.
const WEIGHT: [&str; 3] = ["weight", "scales", "biases"];
/// What it may be stored as instead.
const OTHERS: [&str; 3] = [".ladder.", ".repair.", ".pivot."];

/// A directory in the making.
pub struct Fixed<'a> {
    from: &'a Path,
    slices: BTreeSet<&'a str>,
    staged: Staged,
    _lock: Lock,
    parts: BTreeMap<String, PathBuf>,
    schemes: BTreeMap<String, Option<Scheme>>,
}

impl<'a> Fixed<'a> {
    /// Begins to make `out` from the checkpoint `from`, whose slices are named `slices`. With `force` another
    /// checkpoint at `out` is replaced in the end.
    ///
    /// # Errors
    /// When `out` is in the way or cannot be written.
    pub fn new(from: &'a Path, slices: impl Iterator<Item = &'a str>, out: &Path, force: bool) -> Result<Fixed<'a>> {
        crate::pack::fuse::free(out, from, force).map_err(|e| Error::Usage(e.to_string()))?;
        if let Some(m) = super::Manifest::read(from)? {
            crate::pack::fuse::free(out, &m.settings.base.dir, force).map_err(|e| Error::Usage(e.to_string()))?;
        }
        let busy = || Error::file(out, "is being written by another process; wait for it to end");
        let lock = Lock::try_of_directory(out)?.ok_or_else(busy)?;
        let staged = Staged::new(out)?;
        let parts = staged.path().join(PARTS);
        std::fs::create_dir(&parts).map_err(FileError::at("creating", &parts))?;
        let (parts, schemes) = (BTreeMap::new(), BTreeMap::new());
        Ok(Fixed { from, slices: slices.collect(), staged, _lock: lock, parts, schemes })
    }

    /// Stores a slice as these tensors; `scheme` says how they are quantised, `None` that they are not.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn put(&mut self, slice: &str, scheme: Option<Scheme>, tensors: &[Tensor]) -> Result<()> {
        let path = self.staged.path().join(PARTS).join(format!("{}.safetensors", self.parts.len()));
        tensor_file::write(&path, &[], tensors)?;
        self.parts.insert(slice.to_owned(), path);
        self.schemes.insert(slice.to_owned(), scheme);
        Ok(())
    }

    /// Puts everything together; a slice that was not stored anew keeps its own weight. `check` sees the finished
    /// directory before it is moved to its place. Answers the bytes of the weights.
    ///
    /// # Errors
    /// When a file cannot be read or written, or `check` says no; nothing is at the new place then.
    pub fn finish(self, check: impl FnOnce(&Path) -> Result<()>) -> Result<u64> {
        let to = self.staged.path();
        let mut tensors = Vec::new();
        let mut done = BTreeSet::new();
        for file in Checkpoint::open(self.from)?.files() {
            for (name, info) in by_place(read_header(file)?) {
                let (slice, own) = match self.owner(&name) {
                    None => {
                        tensors.push(copied(file, name, &info)?);
                        continue;
                    }
                    Some((slice, own)) => (slice.to_owned(), own),
                };
                match self.parts.get(&slice) {
                    // All new tensors of a slice lie where the first of its old ones lay.
                    Some(part) if done.insert(slice) => {
                        for (name, info) in by_place(read_header(part)?) {
                            tensors.push(copied(part, name, &info)?);
                        }
                    }
                    Some(_) => {}
                    None if own => tensors.push(copied(file, name, &info)?),
                    // Components that sleep beside the weight.
                    None => {}
                }
            }
        }
        let bytes = tensors.iter().map(Tensor::nbytes).sum();
        tensor_file::write(&to.join("model.safetensors"), &[("format", "mlx".into())], &tensors)?;
        let parts = to.join(PARTS);
        std::fs::remove_dir_all(&parts).map_err(FileError::at("removing", &parts))?;
        tensor_file::copy_texts(self.from, to)?;
        config(self.from, to, &self.schemes)?;
        check(to)?;
        self.staged.commit()?;
        Ok(bytes)
    }

    /// The slice that a tensor belongs to, and whether it is of its own weight.
    fn owner<'n>(&self, name: &'n str) -> Option<(&'n str, bool)> {
        let other = OTHERS.iter().find_map(|o| name.split_once(o)).map(|(slice, _)| (slice, false));
        let own = || name.rsplit_once('.').filter(|(_, part)| WEIGHT.contains(part)).map(|(slice, _)| (slice, true));
        other.or_else(own).filter(|(slice, _)| self.slices.contains(slice))
    }
}

/// Writes the `config.json` of a checkpoint anew, saying of each of these slices how it is quantised, or that it is
/// not; byte for byte the old one where that says nothing new.
///
/// # Errors
/// When the old one cannot be read or the new one not be written.
pub(super) fn config(from: &Path, to: &Path, schemes: &BTreeMap<String, Option<Scheme>>) -> Result<()> {
    let (from, to) = (from.join("config.json"), to.join("config.json"));
    let bytes = crate::atomic::read_bounded(&from, MAX_CONFIG).map_err(FileError::at("reading", &from))?;
    let wrong = |e: &dyn std::fmt::Display| Error::file(&from, format!("is not valid JSON ({e})"));
    let mut value: Value = serde_json::from_slice(&bytes).map_err(|e| wrong(&e))?;
    let object = value.as_object_mut().ok_or_else(|| wrong(&"no object"))?;
    let entry = |s: &Scheme| json!({ "group_size": s.group_size, "bits": s.bits, "mode": s.mode.name() });
    let any = schemes.values().flatten().next();
    if let Some(any) = any.filter(|_| !object.contains_key("quantization")) {
        object.insert("quantization".into(), entry(any));
    }
    let mut changed = any.is_some();
    for field in ["quantization", "quantization_config"] {
        let Some(q) = object.get_mut(field).and_then(Value::as_object_mut) else { continue };
        for (slice, scheme) in schemes {
            q.insert(slice.clone(), scheme.as_ref().map_or(false.into(), entry));
            changed = true;
        }
    }
    let text = if changed { serde_json::to_vec_pretty(&value).map_err(|e| wrong(&e))? } else { bytes };
    Ok(std::fs::write(&to, text).map_err(FileError::at("writing", &to))?)
}
