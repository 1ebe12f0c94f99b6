//! Tensor files that are either whole or not there.

use crate::atomic::{shared, sync_dir};
use crate::mlx::Array;
use std::io;
use std::path::Path;

/// Writes tensors to a safetensors file: temporary name, sync, rename.
///
/// # Errors
/// What the file system reports, or MLX when a tensor cannot be computed.
pub fn write_tensors(path: &Path, tensors: &[(String, Array)]) -> io::Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let mut builder = tempfile::Builder::new();
    let temp = shared(&mut builder).prefix(".partial-").suffix(".safetensors").tempfile_in(dir)?;
    let by_name = tensors.iter().map(|(k, v)| (k.as_str(), v));
    Array::save_safetensors(by_name, None, temp.path()).map_err(|e| unwritten(&e.to_string()))?;
    // MLX opened the path itself and does not report every failed write: count what arrived.
    let expected: u64 = tensors.iter().map(|(_, a)| a.nbytes() as u64).sum();
    if data_bytes(temp.path())? != expected {
        return Err(io::Error::new(io::ErrorKind::StorageFull, "it cannot be written whole; is the disk full?"));
    }
    temp.as_file().sync_all()?;
    temp.persist(path).map_err(|e| e.error)?;
    sync_dir(dir).map_err(|e| e.source)
}

/// MLX's refusal to write, without the place in its source code.
fn unwritten(text: &str) -> io::Error {
    io::Error::other(format!("cannot be written whole: {}; is the disk full?", crate::mlx::plainly(text)))
}

/// Bytes behind the header of a safetensors file.
fn data_bytes(path: &Path) -> io::Result<u64> {
    let mut file = std::fs::File::open(path)?;
    let mut length = [0u8; 8];
    io::Read::read_exact(&mut file, &mut length)?;
    Ok(file.metadata()?.len().saturating_sub(8).saturating_sub(u64::from_le_bytes(length)))
}
