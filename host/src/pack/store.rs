//! Where packs lie: one directory a pack under a root (`packs` where the command runs, as with mlx-plastic-rank).

use super::error::{Error, Result};
use super::format::{META, Meta, Pack, read_meta};
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
    /// Whether somebody named the root.
    named: bool,
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
        check_name(pack).map_err(|e| e.to_string())?;
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
        Store { named: root.is_some(), root: root.unwrap_or_else(|| "packs".into()) }
    }

    /// That the root can be listed; where nobody named one, it need not be there yet.
    ///
    /// # Errors
    /// When it cannot, naming the remedy.
    pub fn readable(&self) -> Result<()> {
        match std::fs::read_dir(&self.root) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !self.named => Ok(()),
            Err(e) => Err(Error::file(
                &self.root,
                format!("is no directory of packs that can be read ({e}); name one with --packs or ${ROOT_ENV}"),
            )),
        }
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
                format!(
                    "says its pack is called {:?}; `packs rename {name} {name}` makes it say {name}",
                    pack.meta.pack_name
                ),
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

    /// Names of trainings that were begun and not finished, sorted.
    pub fn unfinished(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        let begun = entries.filter(|e| e.path().join("training.json").is_file());
        let names = begun.filter_map(|e| e.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter_map(|n| Some(n.strip_prefix('.')?.strip_suffix(".training")?.to_owned())).collect();
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
        self.ours(name).map(drop)
    }

    /// That what is there is a pack, and not a user's own directory.
    fn ours(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir(name)?;
        let empty = || std::fs::read_dir(&dir).is_ok_and(|mut d| d.next().is_none());
        match dir.join(META).is_file() || empty() {
            true => Ok(dir),
            false => Err(Error::Name(format!(
                "{}: is there and is no pack ({META} is no file in it), so it is left alone; remove it yourself if nobody needs it",
                dir.display()
            ))),
        }
    }

    /// Deletes packs and takes them out of use: all, or where something is in the way, none. Answers those that
    /// were in use.
    ///
    /// # Errors
    /// When one is not there, is no pack, is being written, or cannot be deleted; the message names it.
    pub fn remove(&self, names: &[&str]) -> Result<Vec<String>> {
        for name in names {
            self.there(name)?;
            self.ours(name)?;
        }
        let _locks = names.iter().map(|name| self.lock(name)).collect::<Result<Vec<_>>>()?;
        // A record that cannot be read cannot be changed either.
        self.all_active()?;
        // Out of the way first, so that nobody reads half a pack.
        let mut moved: Vec<(PathBuf, PathBuf)> = Vec::with_capacity(names.len());
        let back =
            |moved: &[(PathBuf, PathBuf)]| moved.iter().for_each(|(dir, grave)| drop(std::fs::rename(grave, dir)));
        for name in names {
            let (dir, grave) = (self.ours(name)?, self.root.join(format!(".{name}.removed")));
            // What an earlier call left there.
            let _ = std::fs::remove_dir_all(&grave);
            let _ = std::fs::remove_file(&grave);
            if let Err(e) = std::fs::rename(&dir, &grave) {
                back(&moved);
                return Err(FileError::at("removing", &dir)(e).into());
            }
            moved.push((dir, grave));
        }
        let unused = self.deactivate(Some(names)).inspect_err(|_| back(&moved))?;
        for (_, grave) in &moved {
            std::fs::remove_dir_all(grave).map_err(FileError::at("removing what is left of a pack in", grave))?;
        }
        Ok(unused)
    }

    /// Gives a pack another name. Called with the name of its directory, it repairs metadata that say another one.
    ///
    /// # Errors
    /// When it is not there, the new name is taken, or the files cannot be written; it then keeps its name.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.there(from)?;
        let (dir, new) = (self.dir(from)?, self.dir(to)?);
        if from == to {
            let _lock = self.lock(from)?;
            let mut meta = read_meta(&dir)?;
            if meta.pack_name == to {
                return Err(Error::Name(format!("pack {from}: is called so already")));
            }
            meta.pack_name = to.to_owned();
            return Ok(crate::atomic::write_file(&dir.join(META), &text(&meta)?)?);
        }
        let _locks = (self.lock(from)?, self.lock(to)?);
        if self.has(to) {
            let taken =
                format!("{}: there is a pack {to} already; choose another name, or remove it first", new.display());
            return Err(Error::Name(taken));
        }
        // Everything that can fail comes before the pack is moved: the record is read, the metadata are written.
        self.all_active()?;
        let old = read_meta(&dir)?;
        let staged = dir.join(format!(".{META}.renamed"));
        let written = crate::atomic::write_file(&staged, &text(&Meta { pack_name: to.to_owned(), ..old.clone() })?);
        let moved = written.and_then(|()| std::fs::rename(&dir, &new).map_err(FileError::at("renaming", &dir)));
        if let Err(e) = moved {
            let _ = std::fs::remove_file(&staged);
            return Err(e.into());
        }
        let staged = new.join(format!(".{META}.renamed"));
        let renamed = std::fs::rename(&staged, new.join(META)).map_err(FileError::at("renaming", &staged));
        let all = renamed.map_err(Error::from).and_then(|()| {
            self.change_active(|all| {
                for w in all.values_mut().flatten().filter(|w| w.pack == from) {
                    w.pack = to.to_owned();
                }
            })
        });
        if all.is_err() {
            // As it was, as far as the disk allows.
            let _ = crate::atomic::write_file(&new.join(META), &text(&old)?);
            let _ = std::fs::remove_file(&staged);
            let _ = std::fs::rename(&new, &dir);
        }
        all
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

    /// Takes packs, or with `None` every pack, out of use on all bases; answers the names.
    ///
    /// # Errors
    /// As [`Store::set_active`].
    pub fn deactivate(&self, names: Option<&[&str]>) -> Result<Vec<String>> {
        let mut gone = Vec::new();
        self.change_active(|all| {
            for packs in all.values_mut() {
                packs.retain(|w| {
                    let goes = names.is_none_or(|n| n.contains(&w.pack.as_str()));
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

fn text(meta: &Meta) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(meta).map_err(|e| Error::Other(e.to_string()))
}
