//! One tensor of a safetensors file as a matrix: float16, bfloat16, float32 or float64.
//!
//! Fails on files whose header contradicts them, tensors that are not there, packed codes (whose scales lie in
//! other tensors: name the module of a checkpoint directory instead), and numbers that are not finite.

use super::{Error, Float, Layout, Matrix, NAME, Result};
use crate::atomic::{FileError, open_regular};
use crate::model::safetensors::{TensorInfo, read_header};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Reads a tensor; without a name the only one.
///
/// # Errors
/// When the file cannot be read, the tensor is not there, or is no matrix of finite floats.
pub fn read(path: &Path, name: Option<&str>) -> Result<Matrix> {
    let header = read_header(path)?;
    let bad = |reason: String| Error::bad(path, reason);
    let (name, info) = match name {
        Some(n) => header.get_key_value(n).ok_or_else(|| bad(format!("has no tensor `{n}`; {}", held(&header))))?,
        None => match header.len() {
            1 => header.iter().next().ok_or_else(|| bad("is empty".into()))?,
            _ => {
                let held = held(&header);
                return Err(bad(format!("name a tensor behind a colon, FILE.safetensors:TENSOR; {held}")));
            }
        },
    };
    let bad = |reason: String| bad(format!("tensor `{name}` {reason}"));
    let float = match info.dtype.as_str() {
        "F16" => Float::F16,
        "BF16" => Float::BF16,
        "F32" => Float::F32,
        "F64" => Float::F64,
        "U32" if header.contains_key(&name.replace(".weight", ".scales")) => {
            return Err(bad("holds packed codes, whose scales lie beside it; name the directory of the checkpoint and the module, DIR:MODULE".into()));
        }
        other => return Err(bad(format!("has type {other}; expected F16, BF16, F32 or F64"))),
    };
    let shape: Vec<u64> = info.shape.iter().map(|d| *d as u64).collect();
    let (layout, need) = Layout::checked(float, false, false, &shape).map_err(bad)?;
    let bytes = bytes(path, info)?;
    let weight = layout.decode(&bytes).map_err(bad)?;
    Ok(Matrix { weight, stored_as: info.dtype.clone(), packed: None, stored_bytes: need })
}

/// The bytes of a tensor whose header was checked.
pub(in crate::plastic) fn bytes(path: &Path, info: &TensorInfo) -> Result<Vec<u8>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = open_regular(path)?;
        let mut length = [0u8; 8];
        file.read_exact(&mut length)?;
        file.seek(SeekFrom::Start(u64::from_le_bytes(length).saturating_add(8).saturating_add(info.begin)))?;
        let mut out = Vec::new();
        file.take(info.end - info.begin).read_to_end(&mut out)?;
        match out.len() as u64 == info.end - info.begin {
            true => Ok(out),
            false => Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it became shorter while it was read")),
        }
    };
    Ok(read().map_err(FileError::at("reading", path))?)
}

/// A file with one tensor, [`NAME`], of these numbers, row by row.
///
/// # Errors
/// When the file cannot be made.
pub fn to_bytes(path: &Path, numbers: &[f32], shape: [usize; 2]) -> Result<Vec<u8>> {
    let data: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape.to_vec(), &data);
    let made = view.and_then(|v| safetensors::serialize([(NAME, v)], None));
    made.map_err(|e| Error::bad(path, format!("cannot be made: {e}")))
}

/// What a file holds, for messages.
pub(in crate::plastic) fn held(header: &BTreeMap<String, TensorInfo>) -> String {
    let some: Vec<&str> = header.keys().take(8).map(String::as_str).collect();
    match header.len() {
        0 => "it is empty".into(),
        n if n > some.len() => format!("it holds {}, … ({n} in all)", some.join(", ")),
        _ => format!("it holds {}", some.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::to_f32;
    use super::*;

    fn file(dir: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> std::path::PathBuf {
        let views: Vec<_> =
            tensors.iter().map(|(n, t, s, b)| (*n, TensorView::new(*t, s.clone(), b).unwrap())).collect();
        let path = dir.join("w.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    #[test]
    fn tensors_of_every_float_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let b16 = |x: f32| half::bf16::from_f32(x).to_le_bytes();
        let path = file(
            dir.path(),
            &[
                ("a", Dtype::BF16, vec![1, 2], [b16(1.0), b16(-2.0)].concat()),
                ("b", Dtype::F64, vec![2, 1], [0.1f64.to_le_bytes(), 2f64.to_le_bytes()].concat()),
                ("m.weight", Dtype::U32, vec![1, 1], vec![0; 4]),
                ("m.scales", Dtype::F32, vec![1, 1], vec![0; 4]),
                ("v", Dtype::F32, vec![1], vec![0; 4]),
                ("n", Dtype::F32, vec![1, 1], f32::INFINITY.to_le_bytes().to_vec()),
            ],
        );
        assert_eq!(to_f32(&read(&path, Some("a")).unwrap().weight).unwrap(), [1.0, -2.0]);
        assert_eq!(crate::mlx::spectral::to_vec(&read(&path, Some("b")).unwrap().weight).unwrap(), [0.1, 2.0]);
        for (name, why) in [
            (Some("m.weight"), "packed codes"),
            (Some("v"), "has 1 dimensions"),
            (Some("n"), "holds inf in row 0, column 0"),
            (Some("x"), "has no tensor `x`; it holds a, b, m.scales"),
            (None, "name a tensor behind a colon"),
        ] {
            let text = read(&path, name).unwrap_err().to_string();
            assert!(text.contains(why), "{why:?} in {text}");
        }
    }
}
