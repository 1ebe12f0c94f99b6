//! Content hashes of files and checkpoints.
//!
//! Files are streamed, never held in memory. A file's SHA-256 is remembered in the cache under its
//! path, length, inode and times, so that a checkpoint of gigabytes is read once, not at every run;
//! without a cache directory it is computed each time. Fails only where a file cannot be read.

use super::paths;
use crate::atomic::{self, FileError};
use sha2::{Digest, Sha256};
use std::fs::{self, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, in hexadecimal; `advance` is told the bytes read so far, piece by piece.
///
/// # Errors
/// Where the file cannot be read.
pub fn sha256_file(path: &Path, advance: &mut dyn FnMut(u64)) -> Result<String, FileError> {
    let mut file = atomic::open_regular(path).map_err(FileError::at("opening", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(FileError::at("reading", path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => {
                hasher.update(buffer.get(..n).unwrap_or_default());
                advance(n as u64);
            }
        }
    }
}

/// [`sha256_file`], remembered in the cache directory while the file stays as it is.
///
/// # Errors
/// Where the file cannot be read. A cache that cannot be written is no error.
pub fn sha256_file_remembered(path: &Path, advance: &mut dyn FnMut(u64)) -> Result<String, FileError> {
    let path = path.canonicalize().map_err(FileError::at("opening", path))?;
    let meta = path.metadata().map_err(FileError::at("opening", &path))?;
    let note = note_path(&path, &meta);
    if let Some(known) = note.as_deref().and_then(|n| fs::read_to_string(n).ok())
        && known.len() == 64
        && known.bytes().all(|b| b.is_ascii_hexdigit())
    {
        advance(meta.len());
        return Ok(known);
    }
    let hash = sha256_file(&path, advance)?;
    // A file changed within the clock's grain of its time stamp could change again unseen: not remembered.
    let settled = |m: &Metadata| {
        let age = m.modified().ok().and_then(|t| SystemTime::now().duration_since(t).ok());
        age.is_some_and(|a| a > Duration::from_secs(2))
    };
    if let Some(note) = note
        && path.metadata().is_ok_and(|now| settled(&now) && note_path(&path, &now).as_deref() == Some(&note))
        && let Some(dir) = note.parent()
        && fs::create_dir_all(dir).is_ok()
    {
        let _ = atomic::write_file(&note, hash.as_bytes());
    }
    Ok(hash)
}

/// Where the hash of a file in this state is remembered.
fn note_path(path: &Path, meta: &Metadata) -> Option<PathBuf> {
    let modified = meta.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let mut key = Sha256::new();
    key.update(path.as_os_str().as_encoded_bytes());
    key.update([0]);
    key.update(meta.len().to_le_bytes());
    key.update(modified.as_nanos().to_le_bytes());
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        for n in [meta.ino() as i64, meta.dev() as i64, meta.ctime(), meta.ctime_nsec()] {
            key.update(n.to_le_bytes());
        }
    }
    Some(paths::cache_dir()?.join("hashes").join(hex(&key.finalize())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn sha256_of_abc() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "abc").unwrap();
        let mut seen = 0;
        let hash = sha256_file(&path, &mut |n| seen += n).unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(seen, 3);
        let e = sha256_file(&dir.path().join("none"), &mut |_| {}).unwrap_err();
        assert!(e.to_string().starts_with("opening "), "{e}");
    }
}
