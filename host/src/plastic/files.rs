//! Files that are either whole or not there: temporary name, sync, rename.

use crate::mlx::Array;
use std::io::{self, Write};
use std::path::Path;

/// Writes bytes to a file so that a reader sees the old content or the new one.
///
/// # Errors
/// What the file system reports.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = parent(path)?;
    let mut temp = tempfile::NamedTempFile::new_in(dir)?;
    temp.write_all(bytes)?;
    persist(temp, path)
}

/// Writes tensors to a safetensors file in the same way.
///
/// # Errors
/// What the file system reports, or MLX when a tensor cannot be computed.
pub fn write_tensors(path: &Path, tensors: &[(String, Array)]) -> io::Result<()> {
    let dir = parent(path)?;
    let temp = tempfile::Builder::new().prefix(".partial-").suffix(".safetensors").tempfile_in(dir)?;
    let by_name = tensors.iter().map(|(k, v)| (k.as_str(), v));
    Array::save_safetensors(by_name, None, temp.path()).map_err(|e| io::Error::other(e.to_string()))?;
    // MLX opened the path itself and does not report every failed write: count what arrived.
    let expected: u64 = tensors.iter().map(|(_, a)| a.nbytes() as u64).sum();
    if data_bytes(temp.path())? != expected {
        return Err(io::Error::new(
            io::ErrorKind::StorageFull,
            "the file could not be written whole; the disk may be full",
        ));
    }
    persist(temp, path)
}

/// Bytes behind the header of a safetensors file.
fn data_bytes(path: &Path) -> io::Result<u64> {
    let mut file = std::fs::File::open(path)?;
    let mut length = [0u8; 8];
    io::Read::read_exact(&mut file, &mut length)?;
    Ok(file.metadata()?.len().saturating_sub(8).saturating_sub(u64::from_le_bytes(length)))
}

fn parent(path: &Path) -> io::Result<&Path> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    Ok(dir)
}

fn persist(temp: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    temp.as_file().sync_all()?;
    temp.persist(path).map_err(|e| e.error)?;
    sync_dir(parent(path)?)
}

/// Makes a rename in a directory durable.
///
/// # Errors
/// What the file system reports.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_bytes(&path, b"old").unwrap();
        assert!(write_bytes(&dir.path().join("x/y"), b"new").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
