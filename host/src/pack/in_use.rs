//! Packs in use on a base: named on a command line, active there, or recorded by a run.
//!
//! A [`Used`] says which pack, how much of it and which bytes; a run keeps them and goes on with those or not at
//! all. Fails where a pack is not there, is damaged, was named twice, does not fit the base, or has changed since
//! it was recorded.

use super::attach::{self, Attachment, prepare};
use super::error::{Error, Result};
use super::format::{Pack, TENSORS};
use super::store::{Store, Weighted};
use crate::model::{Model, hash};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A pack that is in use, to the byte.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// Name of the pack.
    pub pack: String,
    /// Its deltas are multiplied by this.
    pub weight: f32,
    /// SHA-256 of `pack.safetensors`.
    pub sha256: String,
    /// Its directory.
    pub dir: PathBuf,
}

impl std::fmt::Display for Used {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.weight == 1.0 {
            true => f.write_str(&self.pack),
            false => write!(f, "{} × {}", self.pack, self.weight),
        }
    }
}

/// Packs that were read and checked.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    packs: Vec<(Used, Pack)>,
}

impl InUse {
    /// Reads the packs that are named.
    ///
    /// # Errors
    /// When one is not there, is damaged, or is named twice.
    pub fn read(store: &Store, names: &[Weighted]) -> Result<InUse> {
        let mut packs = Vec::with_capacity(names.len());
        for (i, w) in names.iter().enumerate() {
            if names.iter().take(i).any(|other| other.pack == w.pack) {
                return Err(Error::Name(format!(
                    "pack {} is named twice; name it once, with the weight it should have",
                    w.pack
                )));
            }
            let pack = store.read(&w.pack)?;
            let dir = store.dir(&w.pack)?;
            let dir = dir.canonicalize().unwrap_or(dir);
            let sha256 = hash::sha256_file_remembered(&dir.join(TENSORS), &mut |_| {})?;
            packs.push((Used { pack: w.pack.clone(), weight: w.weight, sha256, dir }, pack));
        }
        Ok(InUse { packs })
    }

    /// Reads the packs that are active on a base; `dir` is looked at only where some pack is active at all. On an
    /// elastic checkpoint they are active whatever of it is awake.
    ///
    /// # Errors
    /// As [`InUse::read`], or when the record of active packs is damaged.
    pub fn active(store: &Store, dir: &Path) -> Result<InUse> {
        if store.all_active()?.is_empty() {
            return Ok(InUse::default());
        }
        let base = crate::model::layout::weights_hash(dir).map_err(|e| Error::Other(e.to_string()))?;
        InUse::read(store, &store.active(&base)?).map_err(|e| match e {
            Error::Name(reason) => Error::Name(format!(
                "{reason}; it is active on this base: take it out of use with `packs remove`, or pass --no-packs"
            )),
            e => e,
        })
    }

    /// Reads the packs that a run recorded, from where it found them.
    ///
    /// # Errors
    /// When one is gone, damaged, or has other bytes than then.
    pub fn recorded(used: &[Used]) -> Result<InUse> {
        let mut packs = Vec::with_capacity(used.len());
        for u in used {
            let path = u.dir.join(TENSORS);
            if !path.exists() {
                let reason = format!("pack {} is no longer here; put it back, or start a new run", u.pack);
                return Err(Error::file(&path, reason));
            }
            let found = hash::sha256_file_remembered(&path, &mut |_| {})?;
            if found != u.sha256 {
                return Err(Error::file(
                    &path,
                    format!(
                        "pack {} has changed since the run began (SHA-256 {found}, the run has {}); put it back, or start a new run",
                        u.pack, u.sha256
                    ),
                ));
            }
            packs.push((u.clone(), Pack::read(&u.dir)?));
        }
        Ok(InUse { packs })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// What is in use, in order.
    pub fn used(&self) -> Vec<Used> {
        self.packs.iter().map(|(u, _)| u.clone()).collect()
    }

    /// The packs with what is in use of each.
    pub fn packs(&self) -> impl Iterator<Item = (&Used, &Pack)> {
        self.packs.iter().map(|(u, p)| (u, p))
    }

    /// What all of them add to a model, checked whole; nothing is attached yet.
    ///
    /// # Errors
    /// As [`prepare`].
    pub fn prepare(&self, model: &Model) -> Result<Attachment> {
        let packs: Vec<(&Pack, f32)> = self.packs.iter().map(|(u, p)| (p, u.weight)).collect();
        prepare(model, &packs)
    }

    /// That each was made for the base in a directory.
    ///
    /// # Errors
    /// As [`attach::check_base`].
    pub fn check_base(&self, dir: &Path) -> Result<()> {
        self.packs.iter().try_for_each(|(_, p)| attach::check_base(p, dir))
    }

    /// Checks all of it against base and model, and attaches it: all or nothing.
    ///
    /// # Errors
    /// When a pack was made for another base or does not fit the model, which then stays as it was.
    pub fn attach(&self, model: &mut Model, dir: &Path) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        self.check_base(dir)?;
        let attachment = self.prepare(model)?;
        attach::attach(model, &attachment);
        Ok(())
    }
}
