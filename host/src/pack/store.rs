//! Where packs lie: one directory a pack under a root (`packs` where the command runs, as with mlx-plastic-rank).

use super::error::{Error, Result};
use super::format::{META, Pack, read_meta};
use crate::atomic::{FileError, Lock, Staged};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Environment variable that names the root.
pub const ROOT_ENV: &str = "PLASTIC_PACKS";

/// Packs that are in use on each base.
const ACTIVE: &str = "active.json";

/// A directory of packs.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// A pack and how much of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weighted {
    /// Name of the pack.
    pub pack: String,
    /// Its deltas are multiplied by this.
    pub weight: f32,
}

impl std::str::FromStr for Weighted {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Weighted, String> {
        let (pack, weight) = match text.rsplit_once(':') {
            Some((pack, weight)) => {
                let w: f32 =
                    weight.parse().map_err(|_| format!("{text}: {weight} is no number; expected NAME:WEIGHT"))?;
                (pack, w)
            }
            None => (text, 1.0),
        };
        if !weight.is_finite() {
            return Err(format!("{text}: a weight is a finite number"));
        }
        Ok(Weighted { pack: pack.to_owned(), weight })
    }
}

/// Whether a name is that of one directory: it cannot lead out of the root.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let ok = !name.is_empty() && name.len() <= 100 && name.bytes().all(plain) && !name.starts_with(['.', '-']);
    match ok && name != ACTIVE {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "{name:?} is no name for a pack; use letters, digits, '-', '_' and '.', and begin with a letter, a digit or '_'"
        ))),
    }
}

impl Store {
    /// The packs under `root`; without one, under `$PLASTIC_PACKS` or `packs`.
    pub fn new(root: Option<PathBuf>) -> Store {
        let root = root.or_else(|| std::env::var_os(ROOT_ENV).filter(|r| !r.is_empty()).map(PathBuf::from));
        Store { root: root.unwrap_or_else(|| "packs".into()) }
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether a name in the root is that of a record, a lock or work in progress.
    pub fn is_record(&self, name: &str) -> bool {
        name == ACTIVE || name.starts_with('.')
    }

    /// The directory of a pack, there or not.
    ///
    /// # Errors
    /// When the name is none.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        Ok(self.root.join(name))
    }

    /// Whether there is a pack of this name, whole or not.
    pub fn has(&self, name: &str) -> bool {
        self.dir(name).is_ok_and(|d| d.symlink_metadata().is_ok())
    }

    /// Reads a pack by its name.
    ///
    /// # Errors
    /// When it is not there, or as [`Pack::read`].
    pub fn read(&self, name: &str) -> Result<Pack> {
        let dir = self.dir(name)?;
        self.there(name)?;
        let pack = Pack::read(&dir)?;
        match pack.meta.pack_name == name {
            true => Ok(pack),
            false => Err(Error::file(
                &dir.join(META),
                format!("says its pack is called {:?}; rename it with `packs rename`", pack.meta.pack_name),
            )),
        }
    }

    /// That a pack is there.
    ///
    /// # Errors
    /// With the names that are, where it is not.
    pub fn there(&self, name: &str) -> Result<()> {
        if self.dir(name)?.is_dir() {
            return Ok(());
        }
        let names = self.names();
        let near = names.iter().filter(|n| strsim::jaro_winkler(n, name) > 0.8).cloned().collect::<Vec<_>>();
        let remedy = match (names.is_empty(), near.is_empty()) {
            (true, _) => {
                "there are none here yet: make one with `packs create`, or name another directory with --packs".into()
            }
            (_, false) => format!("did you mean {}?", near.join(" or ")),
            _ => format!("there are: {}", names.join(", ")),
        };
        Err(Error::Name(format!("{}: no pack {name}; {remedy}", self.root.display())))
    }

    /// Names of all packs, sorted; also of damaged ones.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        let names = entries.filter(|e| e.path().is_dir()).filter_map(|e| e.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|n| check_name(n).is_ok()).collect();
        names.sort();
        names
    }

    /// Locks the name of a pack against other processes; refuses at once where another one holds it.
    ///
    /// # Errors
    /// Then, or when the lock cannot be made.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        let dir = self.dir(name)?;
        let lock = Lock::try_of_directory(&dir)?;
        lock.ok_or_else(|| Error::Name(format!("pack {name} is being written by another process; wait for it to end")))
    }

    /// Writes a pack under its name: the old one or the new one is there, never half of one. `lock` is that
    /// of [`Store::lock`] for this name.
    ///
    /// # Errors
    /// When there is one already and `force` is off, or it cannot be written.
    pub fn put(&self, pack: &Pack, force: bool, lock: &Lock) -> Result<PathBuf> {
        self.put_with(pack, force, lock, &[])
    }

    /// [`Store::put`] with copies of these files beside the pack, where they are there.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_with(&self, pack: &Pack, force: bool, _lock: &Lock, files: &[PathBuf]) -> Result<PathBuf> {
        let dir = self.dir(pack.name())?;
        self.free(pack.name(), force)?;
        let staged = Staged::new(&dir)?;
        pack.write(staged.path())?;
        // What is put there can be read again, or it is not put there.
        Pack::read(staged.path())?;
        for file in files.iter().filter(|f| f.is_file()) {
            let to = staged.path().join(file.file_name().unwrap_or_default());
            std::fs::copy(file, &to).map_err(FileError::at("writing", &to))?;
        }
        staged.commit()?;
        Ok(dir)
    }

    /// That a name may be written.
    ///
    /// # Errors
    /// When it is taken and `force` is off, or what is there is no pack.
    pub fn free(&self, name: &str, force: bool) -> Result<()> {
        let dir = self.dir(name)?;
        if !self.has(name) {
            return Ok(());
        }
        if !force {
            return Err(Error::Name(format!(
                "{}: there is a pack {name} already; choose another name, or replace it with --force",
                dir.display()
            )));
        }
        let ours = dir.join(META).is_file() || std::fs::read_dir(&dir).is_ok_and(|mut d| d.next().is_none());
        match ours {
            true => Ok(()),
            false => Err(Error::Name(format!("{}: is there and is no pack; choose another name", dir.display()))),
        }
    }

    /// Deletes a pack.
    ///
    /// # Errors
    /// When it is not there, is no pack, or cannot be deleted.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.there(name)?;
        let _lock = self.lock(name)?;
        self.free(name, true)?;
        let dir = self.dir(name)?;
        // Out of the way first, so that nobody reads half a pack.
        let grave = self.root.join(format!(".{name}.removed"));
        let _ = std::fs::remove_dir_all(&grave);
        std::fs::rename(&dir, &grave).map_err(FileError::at("removing", &dir))?;
        std::fs::remove_dir_all(&grave).map_err(FileError::at("removing", &dir))?;
        Ok(())
    }

    /// Gives a pack another name.
    ///
    /// # Errors
    /// When it is not there, the new name is taken, or the files cannot be written.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.there(from)?;
        check_name(to)?;
        if from == to {
            return Err(Error::Name(format!("pack {from}: is called so already")));
        }
        let _locks = (self.lock(from)?, self.lock(to)?);
        self.free(to, false)?;
        let dir = self.dir(from)?;
        let mut meta = read_meta(&dir)?;
        meta.pack_name = to.to_owned();
        let text = serde_json::to_vec_pretty(&meta).map_err(|e| Error::Other(e.to_string()))?;
        // The directory is moved first: a crash in between leaves a pack that says so and can be renamed again.
        let new = self.dir(to)?;
        std::fs::rename(&dir, &new).map_err(FileError::at("renaming", &dir))?;
        crate::atomic::write_file(&new.join(META), &text)?;
        self.change_active(|all| {
            for w in all.values_mut().flatten().filter(|w| w.pack == from) {
                w.pack = to.to_owned();
            }
        })
    }

    /// Packs in use, by hash of the base.
    ///
    /// # Errors
    /// When the record is damaged.
    pub fn all_active(&self) -> Result<BTreeMap<String, Vec<Weighted>>> {
        let path = self.root.join(ACTIVE);
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let bytes = crate::atomic::read_bounded(&path, 1 << 20).map_err(FileError::at("reading", &path))?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Error::file(&path, format!("is no record of packs in use ({e}); delete it, and activate the packs again"))
        })
    }

    /// Packs in use on a base.
    ///
    /// # Errors
    /// As [`Store::all_active`].
    pub fn active(&self, base_hash: &str) -> Result<Vec<Weighted>> {
        Ok(self.all_active()?.remove(base_hash).unwrap_or_default())
    }

    /// Says which packs are in use on a base from now on.
    ///
    /// # Errors
    /// When the record cannot be read or written.
    pub fn set_active(&self, base_hash: &str, packs: Vec<Weighted>) -> Result<()> {
        self.change_active(|all| match packs.is_empty() {
            true => drop(all.remove(base_hash)),
            false => drop(all.insert(base_hash.to_owned(), packs)),
        })
    }

    /// Takes a pack, or with `None` every pack, out of use on all bases; answers the names.
    ///
    /// # Errors
    /// As [`Store::set_active`].
    pub fn deactivate(&self, name: Option<&str>) -> Result<Vec<String>> {
        let mut gone = Vec::new();
        self.change_active(|all| {
            for packs in all.values_mut() {
                packs.retain(|w| {
                    let goes = name.is_none_or(|n| n == w.pack);
                    if goes {
                        gone.push(w.pack.clone());
                    }
                    !goes
                });
            }
            all.retain(|_, packs| !packs.is_empty());
        })?;
        gone.sort();
        gone.dedup();
        Ok(gone)
    }

    /// Reads, changes and writes the record of packs in use, one process at a time.
    fn change_active(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<Weighted>>)) -> Result<()> {
        let path = self.root.join(ACTIVE);
        if !self.root.is_dir() {
            return Ok(());
        }
        let _lock =
            Lock::of_directory(&path, || tracing::info!("waiting for another process that changes packs in use"))?;
        let before = self.all_active()?;
        let mut all = before.clone();
        change(&mut all);
        if all == before {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&all).map_err(|e| Error::Other(e.to_string()))?;
        Ok(crate::atomic::write_file(&path, &text)?)
    }
}
