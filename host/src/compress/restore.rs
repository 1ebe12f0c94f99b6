//! The base of an elastic checkpoint, bit for bit.
//!
//! Without `--self-contained` it is the base's own directory, compared by its identity and copied. With it the base's
//! files are put together again: their headers lie in the parked file, and every tensor either there or, where the
//! compression did not touch it, in the weights of the elastic checkpoint. What comes out is hashed as it goes and is
//! an error, never a file, where the identity is not the one that was compressed.

use super::error::{Error, Result};
use super::manifest::Manifest;
use crate::atomic::{FileError, Staged};
use crate::model::awake::{INDEX, PARKED, Parked, WEIGHTS};
use crate::model::safetensors::{TensorInfo, read_header};
use crate::model::tensor_file::{self, Source, copied};
use crate::model::{hash, layout};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Checks that the base can be had from a self-contained checkpoint: puts it together and compares its identity.
///
/// # Errors
/// When a file is damaged, or what comes out is not the base.
pub fn verify(dir: &Path, manifest: &Manifest) -> Result<()> {
    put_together(dir, manifest, &mut |_| Ok(Box::new(std::io::sink())))
}

/// Writes the base to the directory `out`, which is there whole or not at all.
///
/// # Errors
/// When the base is gone, has changed, or cannot be put together; when `out` cannot be written.
pub fn restore(dir: &Path, manifest: &Manifest, out: &Path) -> Result<()> {
    let staged = Staged::new(out)?;
    let to = staged.path().to_owned();
    match manifest.settings.self_contained {
        true => {
            put_together(dir, manifest, &mut |name| {
                let path = to.join(name);
                let file = File::create(&path).map_err(FileError::at("creating", &path))?;
                Ok(Box::new(BufWriter::with_capacity(1 << 20, file)))
            })?;
            tensor_file::copy_texts(dir, &to)?;
        }
        false => {
            manifest.check_base()?;
            let base = &manifest.settings.base.dir;
            let mut files = layout::shards(base).map_err(|e| Error::file(base, e.to_string()))?;
            files.extend([CONFIG, INDEX_FILE].map(|n| base.join(n)).into_iter().filter(|f| f.is_file()));
            for from in files {
                let name = from.file_name().unwrap_or_default();
                std::fs::copy(&from, to.join(name)).map_err(FileError::at("copying", &from))?;
            }
            tensor_file::copy_texts(base, &to)?;
        }
    }
    // What lies there now, read from there: the disk has the last word.
    let found = layout::weights_hash(&to).map_err(|e| Error::file(&to, e.to_string()))?;
    compare(&to, &found, manifest)?;
    Ok(staged.commit()?)
}

fn compare(dir: &Path, found: &str, manifest: &Manifest) -> Result<()> {
    let expected = &manifest.settings.base.sha256;
    match found == expected {
        true => Ok(()),
        false => Err(Error::file(
            dir,
            format!(
                "what comes out is not the base (SHA-256 {found}, compressed was {expected}); compress the base again"
            ),
        )),
    }
}

/// Where the bytes of the base go, by the name of the file.
type Sink<'a> = dyn FnMut(&str) -> Result<Box<dyn Write>> + 'a;

/// Writes every file of the base of a self-contained checkpoint, and compares the identity of all of them.
fn put_together(dir: &Path, manifest: &Manifest, sink: &mut Sink) -> Result<()> {
    let parked = Parked::open(dir)?;
    let mut places: HashMap<String, (PathBuf, TensorInfo)> = HashMap::new();
    for file in [WEIGHTS, PARKED].map(|n| dir.join(n)) {
        places.extend(read_header(&file)?.into_iter().map(|(name, info)| (name, (file.clone(), info))));
    }
    let config = parked.config_text()?;
    write(dir, CONFIG, &config, &mut sink(CONFIG)?)?;
    if let Some(index) = parked.text(INDEX)? {
        write(dir, INDEX_FILE, &index, &mut sink(INDEX_FILE)?)?;
    }
    let mut done = vec![(CONFIG.to_owned(), config.len() as u64, hash::sha256(&config))];
    for (name, header) in parked.headers()? {
        let mut out = Hashed { out: sink(&name)?, sha: Sha256::new(), length: 0 };
        write(dir, &name, &header, &mut out)?;
        for tensor in in_order(dir, &header)? {
            let there = places.get(&tensor);
            let (file, info) = there.ok_or_else(|| Error::file(dir, format!("has no tensor {tensor} of the base")))?;
            let copy = copied(file, tensor, info)?;
            let Source::File(from, begin, len) = copy.source else { continue };
            pour(&from, begin, len, dir, &name, &mut out)?;
        }
        out.flush().map_err(FileError::at("writing", &dir.join(&name)))?;
        done.push((name, out.length, hash::hex(&out.sha.finalize())));
    }
    let files = done.iter().map(|(name, length, sha)| (name.as_str(), *length, sha.as_str()));
    compare(dir, &layout::hash_of_files(files), manifest)
}

fn write(dir: &Path, name: &str, bytes: &[u8], out: &mut dyn Write) -> Result<()> {
    let written = out.write_all(bytes).and_then(|()| out.flush());
    Ok(written.map_err(FileError::at("writing", &dir.join(name)))?)
}

/// The tensors of a header, as they lie in its file.
fn in_order(dir: &Path, header: &[u8]) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Place {
        data_offsets: (u64, u64),
    }
    let bad = |e: serde_json::Error| Error::file(&dir.join(PARKED), format!("holds a damaged header ({e})"));
    let all: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(header.get(8..).unwrap_or_default()).map_err(bad)?;
    let mut order = Vec::with_capacity(all.len());
    for (name, value) in all.into_iter().filter(|(name, _)| name != "__metadata__") {
        let place: Place = serde_json::from_value(value).map_err(bad)?;
        order.push((place.data_offsets, name));
    }
    order.sort();
    Ok(order.into_iter().map(|(_, name)| name).collect())
}

/// Bytes of one file into another.
fn pour(from: &Path, begin: u64, len: u64, dir: &Path, name: &str, out: &mut dyn Write) -> Result<()> {
    let mut file = crate::atomic::open_regular(from).map_err(FileError::at("reading", from))?;
    file.seek(SeekFrom::Start(begin)).map_err(FileError::at("reading", from))?;
    let copied = std::io::copy(&mut file.take(len), out).map_err(FileError::at("writing", &dir.join(name)))?;
    match copied == len {
        true => Ok(()),
        false => Err(Error::file(from, "is shorter than its header says; the file is damaged")),
    }
}

/// Hashes and counts what goes through.
struct Hashed<'a> {
    out: Box<dyn Write + 'a>,
    sha: Sha256,
    length: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.sha.update(&bytes[..n]);
        self.length += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
