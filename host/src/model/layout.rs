//! What makes a directory a checkpoint: its files, whether it can be used, and its identity.
//!
//! Fails with [`NotACheckpoint`], which names the directory, what is wrong and what to do. Only names,
//! `config.json` and what `elastic.json` says to be awake are looked at here; the numbers are the loader's.

use super::fields::MAX_JSON;
use super::ladder::Levels;
use super::{awake, hash};
use crate::atomic::{FileError, read_bounded};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Architectures (`model_type` in `config.json`) that this program runs.
pub const MODEL_TYPES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// A directory without a usable checkpoint in it.
#[derive(Debug, thiserror::Error)]
#[error("{} is no checkpoint that this program runs: {what}; {remedy}", .dir.display())]
pub struct NotACheckpoint {
    /// The directory.
    pub dir: PathBuf,
    /// What is missing or wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl NotACheckpoint {
    fn new(dir: &Path, what: impl Into<String>, remedy: &str) -> NotACheckpoint {
        NotACheckpoint { dir: dir.to_owned(), what: what.into(), remedy: remedy.to_owned() }
    }
}

const AGAIN: &str = "fetch or import the model again";

/// Checks that `config.json` is there and names an architecture that this program runs.
///
/// # Errors
/// [`NotACheckpoint`] where it is not so.
pub fn usable_config(dir: &Path) -> Result<(), NotACheckpoint> {
    let bad = |what: String, remedy: &str| Err(NotACheckpoint::new(dir, what, remedy));
    let config = dir.join("config.json");
    if !config.is_file() {
        let named = "name the directory that holds config.json, *.safetensors and tokenizer.json";
        let gguf = entries(dir).into_iter().find(|n| n.ends_with(".gguf"));
        return match gguf {
            Some(file) => bad("it has no config.json".into(), &format!("to import the GGUF file in it, name {file}")),
            None => bad("it has no config.json".into(), named),
        };
    }
    let text = match read_bounded(&config, MAX_JSON) {
        Ok(text) => text,
        Err(e) => return bad(format!("config.json cannot be read ({e})"), "make it readable"),
    };
    let json: serde_json::Value = match serde_json::from_slice(&text) {
        Ok(json) => json,
        Err(e) => return bad(format!("config.json is not valid JSON ({e})"), AGAIN),
    };
    match json.get("model_type").and_then(|t| t.as_str()) {
        Some(t) if MODEL_TYPES.contains(&t) => Ok(()),
        Some(t) => {
            let remedy = format!("choose a model of one of {}", MODEL_TYPES.join(", "));
            bad(format!("its architecture is \"{t}\" (model_type in config.json)"), &remedy)
        }
        None => bad("config.json has no model_type".into(), AGAIN),
    }
}

/// Checks that config, every shard and the tokenizer are there.
///
/// # Errors
/// [`NotACheckpoint`] with the first thing that is missing.
pub fn usable(dir: &Path) -> Result<(), NotACheckpoint> {
    usable_config(dir)?;
    shards(dir)?;
    if !dir.join("tokenizer.json").is_file() {
        return Err(NotACheckpoint::new(dir, "it has no tokenizer.json", "put the model's tokenizer.json there"));
    }
    Ok(())
}

/// The weight files of a checkpoint directory, sorted by name: those its index names, else
/// `model*.safetensors`, else every `*.safetensors`.
///
/// # Errors
/// Where there is none or one is missing, or the index is unreadable or names something elsewhere.
pub fn shards(dir: &Path) -> Result<Vec<PathBuf>, NotACheckpoint> {
    let all = entries(dir).into_iter().filter(|n| n.ends_with(".safetensors")).collect();
    let names = shard_names(dir, all)?;
    match names.iter().find(|n| !dir.join(n).is_file()) {
        Some(n) => Err(NotACheckpoint::new(dir, format!("{n} is missing"), AGAIN)),
        None => Ok(names.into_iter().map(|n| dir.join(n)).collect()),
    }
}

/// The rule of [`shards`] applied to the names of all `*.safetensors` files; the index is read from `dir`.
///
/// # Errors
/// As [`shards`], except that files may be missing.
pub fn shard_names(dir: &Path, all: Vec<String>) -> Result<Vec<String>, NotACheckpoint> {
    let bad = |what: String| NotACheckpoint::new(dir, what, AGAIN);
    let index = dir.join("model.safetensors.index.json");
    let mut names: Vec<String> = if index.is_file() {
        let text = read_bounded(&index, MAX_JSON).map_err(|e| bad(format!("its index cannot be read ({e})")))?;
        let json: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|e| bad(format!("model.safetensors.index.json is not valid JSON ({e})")))?;
        let map = json.get("weight_map").and_then(|m| m.as_object());
        let map = map.ok_or_else(|| bad("model.safetensors.index.json has no weight_map".into()))?;
        map.values().filter_map(|v| v.as_str()).map(str::to_owned).collect()
    } else {
        let model: Vec<String> = all.iter().filter(|n| n.starts_with("model")).cloned().collect();
        if model.is_empty() { all } else { model }
    };
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(bad("it has no *.safetensors file".into()));
    }
    if let Some(name) = names.iter().find(|n| n.contains(['/', '\\']) || n.starts_with('.')) {
        return Err(bad(format!("its index names \"{name}\", which is not a file name")));
    }
    // Without an index, numbered shards (model-00001-of-00003.safetensors) say how many there are.
    let numbered =
        names.iter().find_map(|n| n.strip_suffix(".safetensors")?.rsplit_once("-of-")?.1.parse::<usize>().ok());
    match numbered {
        Some(n) if n != names.len() => Err(bad(format!("it has {} of {n} shards", names.len()))),
        _ => Ok(names),
    }
}

/// Names of the files in a directory, sorted; none where it cannot be read.
fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The identity of a checkpoint could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is no checkpoint.
    #[error(transparent)]
    NotACheckpoint(#[from] NotACheckpoint),
    /// An elastic checkpoint is damaged, or the base that it runs is not what it was.
    #[error(transparent)]
    Elastic(#[from] Box<super::Error>),
}

/// The identity of what runs when a directory is loaded, in hexadecimal. It is [`weights_hash`], and for an elastic
/// checkpoint what is awake of it counts too; where that is the base itself, it is the identity of the base.
///
/// # Errors
/// Where a file is missing, unreadable or damaged.
pub fn checkpoint_hash(dir: &Path) -> Result<String, HashError> {
    state_hash(dir, None)
}

/// The same with these levels awake instead of those that are recorded.
///
/// # Errors
/// As [`checkpoint_hash`].
pub fn state_hash(dir: &Path, levels: Option<&Levels>) -> Result<String, HashError> {
    let record = awake::recorded(dir).map_err(Box::new)?;
    let levels = match (levels, &record) {
        (None, Some(r)) if r.runs_base => return Ok(r.base_identity(dir).map_err(Box::new)?),
        (None, Some(r)) => Some(&r.levels),
        (levels, _) => levels,
    };
    let mut whole = weights(dir)?;
    if let Some(levels) = levels {
        // A map in the order of names: equal levels are equal bytes.
        whole.update(b"awake");
        whole.update(serde_json::to_vec(levels).unwrap_or_default());
    }
    Ok(hash::hex(&whole.finalize()))
}

/// SHA-256 over name, length and SHA-256 of `config.json` and of every shard in order of names, in hexadecimal. The
/// tokenizer and the place on disk do not count, nor does what is awake.
///
/// # Errors
/// Where a file is missing or unreadable.
pub fn weights_hash(dir: &Path) -> Result<String, HashError> {
    Ok(hash::hex(&weights(dir)?.finalize()))
}

fn weights(dir: &Path) -> Result<Sha256, HashError> {
    let mut files = vec![dir.join("config.json")];
    files.extend(shards(dir)?);
    let mut whole = Sha256::new();
    for path in &files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let length = path.metadata().map_err(FileError::at("reading", path))?.len();
        add(&mut whole, &name, length, &hash::sha256_file_remembered(path, &mut |_| {})?);
    }
    Ok(whole)
}

/// Adds a file to the identity of a checkpoint.
fn add(whole: &mut Sha256, name: &str, length: u64, sha256: &str) {
    whole.update((name.len() as u64).to_le_bytes());
    whole.update(name);
    whole.update(length.to_le_bytes());
    whole.update(sha256);
}

/// [`weights_hash`] of files that need not be on disk: name, length and SHA-256 of `config.json`, then of the shards in
/// order of names.
pub fn hash_of_files<'a>(files: impl IntoIterator<Item = (&'a str, u64, &'a str)>) -> String {
    let mut whole = Sha256::new();
    files.into_iter().for_each(|(name, length, sha256)| add(&mut whole, name, length, sha256));
    hash::hex(&whole.finalize())
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

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        let says = |text: &str| {
            let e = usable(d).unwrap_err().to_string();
            assert!(e.contains(text) && e.contains(&d.display().to_string()), "{e}");
        };
        says("no config.json; name the directory");
        fs::write(d.join("x.gguf"), "").unwrap();
        says("name x.gguf");
        fs::write(d.join("config.json"), "{").unwrap();
        says("not valid JSON");
        fs::write(d.join("config.json"), r#"{"model_type":"gemma3"}"#).unwrap();
        says("choose a model of one of llama, ");
        fs::write(d.join("config.json"), r#"{"model_type":"qwen2"}"#).unwrap();
        says("no *.safetensors");
        fs::write(d.join("model-00001-of-00002.safetensors"), "").unwrap();
        says("1 of 2 shards");
        fs::write(d.join("model-00002-of-00002.safetensors"), "").unwrap();
        says("no tokenizer.json");
        fs::write(d.join("tokenizer.json"), "{}").unwrap();
        usable(d).unwrap();
    }
}
