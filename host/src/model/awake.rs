//! What runs when the directory of an elastic checkpoint is loaded, as its `elastic.json` says.
//!
//! Either the directory's own weights with so much of each slice awake ([`Levels`]); or the base it was made from, bit
//! for bit: from the base's directory, or, where the checkpoint is self-contained, from the base's own tensors, which
//! lie parked in `parked.safetensors` (those of slices that components replaced) and byte for byte in
//! `model.safetensors` (all others). The rest of `elastic.json` is [`crate::compress::manifest`]'s.
//!
//! Fails where `elastic.json` is damaged or of another version, where a weight file is missing or has another length
//! than it says, and where the base is gone or has changed.

use super::checkpoint::Checkpoint;
use super::config::Config;
use super::error::{Error, Result};
use super::fields::read_json_if_there;
use super::ladder::{Levels, MANIFEST};
use super::safetensors::read_header;
use super::{hash, layout};
use crate::atomic::FileError;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Version of the format of `elastic.json`.
pub const SCHEMA: u32 = 1;
/// The weights of an elastic checkpoint.
pub const WEIGHTS: &str = "model.safetensors";
/// The base's own weights of slices that are stored as components, with `--self-contained`.
pub const PARKED: &str = "parked.safetensors";
/// Before the name of a weight file of the base: its header with the eight bytes of length, in the parked file.
pub const HEADER_OF: &str = "base.header.";
/// The base's `config.json` there.
pub const CONFIG: &str = "base.config";
/// The base's index of shards there, where it has one.
pub const INDEX: &str = "base.index";
/// Most bytes of a text in the parked file.
const MAX_TEXT: u64 = 256 << 20;

/// A file and what is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: String,
}

/// The base that an elastic checkpoint was made from.
#[derive(Clone, Debug, Deserialize)]
pub struct Origin {
    /// Short name.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Its identity: [`layout::checkpoint_hash`].
    pub sha256: String,
}

/// What `elastic.json` says of how its directory runs.
#[derive(Clone, Debug, Deserialize)]
pub struct Recorded {
    /// The base.
    #[serde(rename = "base")]
    pub origin: Origin,
    /// Whether the base can be had from the directory alone.
    #[serde(default)]
    pub self_contained: bool,
    /// The weight files.
    pub files: BTreeMap<String, Part>,
    /// Whether the base itself runs, instead of what is stored here.
    #[serde(default)]
    pub runs_base: bool,
    /// How much of each slice is awake otherwise.
    #[serde(rename = "awake")]
    pub levels: Levels,
}

/// Reads the record of a directory; `None` for other checkpoints.
///
/// # Errors
/// When the file is damaged or of another version, or a weight file is missing or has another length.
pub fn recorded(dir: &Path) -> Result<Option<Recorded>> {
    let path = dir.join(MANIFEST);
    let Some(value) = read_json_if_there(&path)? else { return Ok(None) };
    check_schema(&path, &value)?;
    let record: Recorded = serde_json::from_value(value)
        .map_err(|e| Error::file(&path, format!("cannot be read ({e}); compress the base again")))?;
    check_files(dir, &record.files)?;
    Ok(Some(record))
}

/// That this program reads such a file.
///
/// # Errors
/// When it is of another version, or of none.
pub fn check_schema(path: &Path, value: &serde_json::Value) -> Result<()> {
    let again = "compress the base again";
    let reason = match value.get("schema").and_then(serde_json::Value::as_u64) {
        Some(n) if n == u64::from(SCHEMA) => return Ok(()),
        Some(n) => {
            format!("has format {n}, and this program reads {SCHEMA}; use the version that wrote it, or {again}")
        }
        None => format!("has no `schema`; {again}"),
    };
    Err(Error::file(path, reason))
}

/// That the weight files of a directory are there and as long as they were.
///
/// # Errors
/// With the first that is not.
pub fn check_files(dir: &Path, files: &BTreeMap<String, Part>) -> Result<()> {
    let again = "compress the base again";
    if !files.contains_key(WEIGHTS) {
        return Err(Error::file(&dir.join(MANIFEST), format!("does not name {WEIGHTS}; {again}")));
    }
    for (name, part) in files {
        let file = dir.join(name);
        if Path::new(name).file_name().is_none_or(|n| n != name.as_str()) {
            return Err(Error::file(&dir.join(MANIFEST), format!("names {name:?}, which is no file name; {again}")));
        }
        match file.metadata().map(|f| f.len()) {
            Err(_) => return Err(Error::file(&file, format!("is missing; {again}, or copy the directory whole"))),
            Ok(n) if n != part.bytes => {
                return Err(Error::file(
                    &file,
                    format!("has {n} bytes, and {MANIFEST} says {}; {again}, or copy the directory whole", part.bytes),
                ));
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

impl Recorded {
    /// Checks that the base is where it was and what it was.
    ///
    /// # Errors
    /// When it is gone or has changed.
    pub fn check_base(&self) -> Result<()> {
        self.origin.check()
    }

    /// The identity of the base that runs in the place of the directory `dir`, after a look at what it is read from.
    ///
    /// # Errors
    /// When the base is gone or has changed.
    pub(super) fn base_identity(&self, dir: &Path) -> Result<String> {
        if !self.self_contained {
            self.check_base()?;
        } else {
            for name in [WEIGHTS, PARKED] {
                let path = dir.join(name);
                let found = hash::sha256_file_remembered(&path, &mut |_| {})?;
                if self.files.get(name).is_none_or(|part| part.sha256 != found) {
                    return Err(Error::file(
                        &path,
                        "has changed since the base was compressed, so the base cannot be had from it; compress the base again",
                    ));
                }
            }
        }
        Ok(self.origin.sha256.clone())
    }
}

impl Origin {
    /// Checks that the base is where it was and what it was.
    ///
    /// # Errors
    /// When it is gone or has changed.
    pub fn check(&self) -> Result<()> {
        // A base that is itself elastic could name this one, and so on for ever.
        if self.dir.join(MANIFEST).exists() {
            return Err(Error::file(
                &self.dir,
                "is the base of an elastic checkpoint, and became one itself; put it back",
            ));
        }
        let found = layout::checkpoint_hash(&self.dir).map_err(|e| {
            Error::file(
                &self.dir,
                format!("the base cannot be read ({e}); put {} back there, or compress with --self-contained", self.id),
            )
        })?;
        match found == self.sha256 {
            true => Ok(()),
            false => Err(Error::file(
                &self.dir,
                format!("the base has changed (SHA-256 {found}, compressed was {}); put it back", self.sha256),
            )),
        }
    }
}

/// Configuration, tensors and levels of what runs when `dir` is loaded; `asked` stands above the record.
///
/// # Errors
/// As [`recorded`], when the directory is no checkpoint, or the base cannot be had where that is what runs.
pub(super) fn opened(dir: &Path, asked: Option<&Levels>) -> Result<(Config, Checkpoint, Levels)> {
    let record = recorded(dir)?;
    match (asked, record) {
        (None, Some(r)) if r.runs_base && r.self_contained => {
            r.base_identity(dir)?;
            let parked = Parked::open(dir)?;
            Ok((parked.config()?, parked.checkpoint()?, Levels::new()))
        }
        (None, Some(r)) if r.runs_base => {
            r.check_base()?;
            Ok((Config::read(&r.origin.dir)?, Checkpoint::open(&r.origin.dir)?, Levels::new()))
        }
        (asked, record) => {
            let levels = asked.cloned().or(record.map(|r| r.levels)).unwrap_or_default();
            Ok((Config::read(dir)?, Checkpoint::open(dir)?, levels))
        }
    }
}

/// The base in a self-contained elastic checkpoint.
pub struct Parked {
    dir: PathBuf,
    /// Where its texts lie in the parked file: offset and length.
    texts: BTreeMap<String, (u64, u64)>,
}

impl Parked {
    /// Looks at the parked file of an elastic checkpoint.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn open(dir: &Path) -> Result<Parked> {
        let path = dir.join(PARKED);
        let header = read_header(&path)?;
        let mut length = [0u8; 8];
        let read = crate::atomic::open_regular(&path).and_then(|mut f| f.read_exact(&mut length));
        read.map_err(FileError::at("reading", &path))?;
        let data = 8 + u64::from_le_bytes(length);
        let texts = header.into_iter().filter(|(name, _)| name.starts_with("base."));
        let texts = texts.map(|(name, info)| (name, (data + info.begin, info.end - info.begin))).collect();
        Ok(Parked { dir: dir.to_owned(), texts })
    }

    fn path(&self) -> PathBuf {
        self.dir.join(PARKED)
    }

    fn damaged(&self, what: &str) -> Error {
        Error::file(&self.path(), format!("{what}; compress the base again"))
    }

    /// One of its texts; `None` where there is none of this name.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn text(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some((begin, len)) = self.texts.get(name) else { return Ok(None) };
        if *len > MAX_TEXT {
            return Err(self.damaged(&format!("holds {len} bytes of `{name}`")));
        }
        let path = self.path();
        let mut bytes = Vec::new();
        let read = || -> std::io::Result<usize> {
            let mut f = crate::atomic::open_regular(&path)?;
            f.seek(SeekFrom::Start(*begin))?;
            f.take(*len).read_to_end(&mut bytes)
        };
        let mut read = read;
        read().map_err(FileError::at("reading", &path))?;
        Ok(Some(bytes))
    }

    /// The base's `config.json`, byte for byte.
    ///
    /// # Errors
    /// When it is not there.
    pub fn config_text(&self) -> Result<Vec<u8>> {
        self.text(CONFIG)?.ok_or_else(|| self.damaged(&format!("has no `{CONFIG}`")))
    }

    /// The base's configuration.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn config(&self) -> Result<Config> {
        let bytes = self.config_text()?;
        let value = serde_json::from_slice(&bytes)
            .map_err(|e| self.damaged(&format!("holds a configuration that is no JSON ({e})")))?;
        Config::parse(&self.path(), &value)
    }

    /// The base's weight files: name, and header with the eight bytes of length before it.
    ///
    /// # Errors
    /// When there is none or a name is no file's.
    pub fn headers(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut all = Vec::new();
        for name in self.texts.keys() {
            let Some(file) = name.strip_prefix(HEADER_OF) else { continue };
            if Path::new(file).file_name().is_none_or(|n| n != file) || !file.ends_with(".safetensors") {
                return Err(self.damaged(&format!("names {file:?}, which is no weight file")));
            }
            all.push((file.to_owned(), self.text(name)?.unwrap_or_default()));
        }
        match all.is_empty() {
            true => Err(self.damaged("has no header of the base's files")),
            false => Ok(all),
        }
    }

    /// The base's tensors, where they lie in this directory.
    ///
    /// # Errors
    /// When one is missing.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let mut names = BTreeSet::new();
        for (file, header) in self.headers()? {
            let json = header.get(8..).unwrap_or_default();
            let tensors: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json)
                .map_err(|e| self.damaged(&format!("holds a header of {file} that is no JSON ({e})")))?;
            names.extend(tensors.into_iter().map(|(name, _)| name).filter(|n| n != "__metadata__"));
        }
        Checkpoint::among(&self.dir, vec![self.dir.join(WEIGHTS), self.path()], &names)
    }
}
