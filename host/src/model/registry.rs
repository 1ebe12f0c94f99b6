//! From what a user names (`--base`) to a checkpoint directory on this machine.
//!
//! A base is named by a directory, a GGUF file, an id in the cache (the default base is fetched when
//! it is first needed) or a Hugging Face repository `org/name[@revision]`. What is fetched or imported
//! appears in the cache complete or not at all. Every failure says what was looked for and what to do.

use super::atomic::FileError;
use super::{hash, paths};
use sha2::{Digest, Sha256};
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
    /// A stage begins ("fetching model.safetensors"), with its size in bytes where known.
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
    /// The spec looks like a path and nothing is there.
    #[error(
        "no such file or directory: {0}; give a model directory, a .gguf file, an id that `plastic-host model list` shows, or a Hugging Face repository as org/name"
    )]
    NoSuchPath(PathBuf),
    /// A directory without a checkpoint in it.
    #[error("{} is no checkpoint in MLX layout: {what}; {remedy}", .dir.display())]
    NotACheckpoint {
        /// The directory.
        dir: PathBuf,
        /// What is missing or wrong.
        what: String,
        /// What to do.
        remedy: String,
    },
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
    /// Neither the environment nor the platform names a cache directory.
    #[error("no cache directory is known (no home directory); set PLASTIC_CACHE to a directory you can write")]
    NoCache,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Finds the checkpoint that `spec` names, fetching or importing it if need be.
///
/// # Errors
/// [`Error`], each with its remedy.
pub fn resolve(spec: &str, _fetch: &mut dyn FetchProgress) -> Result<Base> {
    let path = Path::new(spec);
    if path.is_dir() {
        return directory(path);
    }
    let models = paths::models_dir().ok_or(Error::NoCache)?;
    if paths::is_plain_name(spec) && models.join(spec).join("config.json").is_file() {
        return Ok(Base { id: spec.to_owned(), dir: models.join(spec) });
    }
    Err(Error::Unknown { spec: spec.to_owned(), known: DEFAULT_BASE.to_owned() })
}

/// A checkpoint directory that the user named.
fn directory(path: &Path) -> Result<Base> {
    let dir = path.canonicalize().map_err(FileError::at("opening", path))?;
    if !dir.join("config.json").is_file() {
        return Err(Error::NotACheckpoint {
            dir,
            what: "it has no config.json".into(),
            remedy: "name the directory that holds config.json, *.safetensors and tokenizer.json".into(),
        });
    }
    let id = dir.file_name().map_or_else(|| "base".to_owned(), |n| n.to_string_lossy().into_owned());
    Ok(Base { id, dir })
}

/// The weight files of a checkpoint directory, sorted by name: those its index names, else
/// `model*.safetensors`, else every `*.safetensors`.
///
/// # Errors
/// Where there is none, or the index is unreadable or names something outside the directory.
pub fn shards(dir: &Path) -> Result<Vec<PathBuf>> {
    let bad = |what: String| Error::NotACheckpoint {
        dir: dir.to_owned(),
        what,
        remedy: "fetch or import the model again".into(),
    };
    let index = dir.join("model.safetensors.index.json");
    let mut names: Vec<String> = if index.is_file() {
        let text = std::fs::read(&index).map_err(FileError::at("reading", &index))?;
        let json: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|e| bad(format!("model.safetensors.index.json is not valid JSON ({e})")))?;
        let map = json.get("weight_map").and_then(|m| m.as_object());
        let map = map.ok_or_else(|| bad("model.safetensors.index.json has no weight_map".into()))?;
        map.values().filter_map(|v| v.as_str()).map(str::to_owned).collect()
    } else {
        let entries = std::fs::read_dir(dir).map_err(FileError::at("reading", dir))?;
        let all: Vec<String> = entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|n| n.ends_with(".safetensors"))
            .collect();
        let model: Vec<String> = all.iter().filter(|n| n.starts_with("model")).cloned().collect();
        if model.is_empty() { all } else { model }
    };
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(bad("it has no *.safetensors file".into()));
    }
    for name in &names {
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(bad(format!("its index names \"{name}\", which is not a file name")));
        }
        if !dir.join(name).is_file() {
            return Err(bad(format!("{name}, which its index names, is missing")));
        }
    }
    Ok(names.into_iter().map(|n| dir.join(n)).collect())
}

/// The identity of a checkpoint, in hexadecimal: SHA-256 over name, length and SHA-256 of `config.json`
/// and of every shard in order of names. The tokenizer and the place on disk do not count.
///
/// # Errors
/// Where a file is missing or unreadable.
pub fn checkpoint_hash(dir: &Path) -> Result<String> {
    let mut files = vec![dir.join("config.json")];
    files.extend(shards(dir)?);
    let mut whole = Sha256::new();
    for path in &files {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let length = path.metadata().map_err(FileError::at("reading", path))?.len();
        whole.update((name.len() as u64).to_le_bytes());
        whole.update(name);
        whole.update(length.to_le_bytes());
        whole.update(hash::sha256_file_remembered(path, &mut |_| {})?);
    }
    Ok(hash::hex(&whole.finalize()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::fs;

    #[test]
    fn the_hash_covers_names_lengths_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        fs::write(d.join("config.json"), "{}").unwrap();
        assert!(checkpoint_hash(d).unwrap_err().to_string().contains("no *.safetensors"));
        fs::write(d.join("model.safetensors"), "abc").unwrap();
        let one = checkpoint_hash(d).unwrap();
        assert_eq!(one.len(), 64);
        fs::write(d.join("tokenizer.json"), "{}").unwrap();
        assert_eq!(checkpoint_hash(d).unwrap(), one, "the tokenizer does not count");
        fs::write(d.join("model.safetensors"), "abd").unwrap();
        let two = checkpoint_hash(d).unwrap();
        assert_ne!(one, two);
        fs::rename(d.join("model.safetensors"), d.join("model-1.safetensors")).unwrap();
        assert_ne!(checkpoint_hash(d).unwrap(), two, "names count");
        fs::write(d.join("config.json"), "{ }").unwrap();
        assert_ne!(checkpoint_hash(d).unwrap(), one);
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        fs::write(d.join("model.safetensors.index.json"), r#"{"weight_map":{"a":"../x.safetensors"}}"#).unwrap();
        assert!(shards(d).unwrap_err().to_string().contains("not a file name"));
        fs::write(d.join("model.safetensors.index.json"), r#"{"weight_map":{"a":"m.safetensors"}}"#).unwrap();
        assert!(shards(d).unwrap_err().to_string().contains("missing"));
        fs::write(d.join("m.safetensors"), "").unwrap();
        assert_eq!(shards(d).unwrap(), [d.join("m.safetensors")]);
    }
}
