//! Safetensors files as packs and checkpoints are written: in a fixed order, the same bytes for the same tensors,
//! each tensor from memory or copied from another file without a look at its numbers.
//!
//! Fails where a file cannot be read or written, or a tensor has not the bytes that its shape needs.

use super::error::{Error, Result};
use super::safetensors::TensorInfo;
use crate::atomic::FileError;
use crate::mlx::quant::Packed;
use crate::mlx::{self, Array, Dtype};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Where the bytes of a tensor come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// From memory.
    Bytes(Vec<u8>),
    /// From a file: offset and length.
    File(PathBuf, u64, u64),
}

impl Source {
    fn len(&self) -> u64 {
        match self {
            Source::Bytes(b) => b.len() as u64,
            Source::File(_, _, len) => *len,
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name.
    pub name: String,
    /// Type as the format spells it, such as `F16`.
    pub dtype: &'static str,
    /// Shape.
    pub shape: Vec<usize>,
    /// Bytes, little-endian.
    pub source: Source,
}

impl Tensor {
    /// A tensor of float32 numbers.
    pub fn f32(name: impl Into<String>, shape: Vec<usize>, data: &[f32]) -> Tensor {
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor { name: name.into(), dtype: "F32", shape, source: Source::Bytes(bytes) }
    }

    /// A tensor of float16 numbers.
    pub fn f16(name: impl Into<String>, shape: Vec<usize>, data: &[half::f16]) -> Tensor {
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor { name: name.into(), dtype: "F16", shape, source: Source::Bytes(bytes) }
    }

    /// Bytes of it.
    pub fn nbytes(&self) -> u64 {
        self.source.len()
    }
}

/// The name of a type by its spelling in a header, to keep.
pub fn dtype(name: &str) -> Option<&'static str> {
    ["F32", "F16", "BF16", "U32", "U8", "I8", "I32", "I64", "F64", "U16", "I16", "U64", "BOOL", "F8_E4M3", "F8_E5M2"]
        .into_iter()
        .find(|known| *known == name)
}

/// Writes a file with these tensors, in this order, and texts beside them. The file is not synced; write it into
/// a [`crate::atomic::Staged`] directory.
///
/// # Errors
/// When a source cannot be read or the file not written.
pub fn write(path: &Path, texts: &[(&str, String)], tensors: &[Tensor]) -> Result<()> {
    let mut header = serde_json::Map::new();
    if !texts.is_empty() {
        let texts = texts.iter().map(|(k, v)| ((*k).to_owned(), v.clone().into())).collect::<serde_json::Map<_, _>>();
        header.insert("__metadata__".into(), texts.into());
    }
    let mut at = 0;
    for t in tensors {
        let end = at + t.nbytes();
        header.insert(
            t.name.clone(),
            serde_json::json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": [at, end] }),
        );
        at = end;
    }
    let mut header = serde_json::to_vec(&header).map_err(|e| Error::file(path, e.to_string()))?;
    // The data begin at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    let doing = || FileError::at("writing", path);
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(doing())?);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(doing())?;
    out.write_all(&header).map_err(doing())?;
    for t in tensors {
        match &t.source {
            Source::Bytes(bytes) => out.write_all(bytes).map_err(doing())?,
            Source::File(from, begin, len) => {
                let mut file = crate::atomic::open_regular(from).map_err(FileError::at("reading", from))?;
                file.seek(SeekFrom::Start(*begin)).map_err(FileError::at("reading", from))?;
                let copied = std::io::copy(&mut file.take(*len), &mut out).map_err(doing())?;
                if copied != *len {
                    return Err(Error::tensor(from, &t.name, "is shorter than its header says; the file is damaged"));
                }
            }
        }
    }
    Ok(out.flush().map_err(doing())?)
}

/// Tensors in the order in which they lie in their file.
pub fn by_place(header: BTreeMap<String, TensorInfo>) -> Vec<(String, TensorInfo)> {
    let mut all: Vec<_> = header.into_iter().collect();
    all.sort_by_key(|(_, info)| info.begin);
    all
}

/// A tensor as it lies in a file.
///
/// # Errors
/// When the file cannot be read or the type is unknown.
pub fn copied(file: &Path, name: String, info: &TensorInfo) -> Result<Tensor> {
    use std::io::Read;
    let mut length = [0u8; 8];
    let read = crate::atomic::open_regular(file).and_then(|mut f| f.read_exact(&mut length));
    read.map_err(FileError::at("reading", file))?;
    let begin = 8 + u64::from_le_bytes(length) + info.begin;
    let kind = dtype(&info.dtype)
        .ok_or_else(|| Error::tensor(file, &name, format!("has type {}, which cannot be copied", info.dtype)))?;
    let source = Source::File(file.to_owned(), begin, info.end - info.begin);
    Ok(Tensor { name, dtype: kind, shape: info.shape.clone(), source })
}

/// An array, evaluated: float32 for types other than uint8, uint32, int32, float16 and bfloat16.
///
/// # Errors
/// Whatever MLX reports.
pub fn of_array(name: String, a: &Array) -> Result<Tensor> {
    let a = a.contiguous()?;
    mlx::eval([&a])?;
    let wrong = |e: &dyn std::fmt::Display| Error::Request(format!("{name}: cannot be read: {e}"));
    let (dtype, bytes) = match a.dtype() {
        Dtype::Uint32 => {
            ("U32", a.try_as_slice::<u32>().map_err(|e| wrong(&e))?.iter().flat_map(|x| x.to_le_bytes()).collect())
        }
        Dtype::Int32 => {
            ("I32", a.try_as_slice::<i32>().map_err(|e| wrong(&e))?.iter().flat_map(|x| x.to_le_bytes()).collect())
        }
        Dtype::Uint8 => ("U8", a.try_as_slice::<u8>().map_err(|e| wrong(&e))?.to_vec()),
        Dtype::Float16 => (
            "F16",
            a.try_as_slice::<half::f16>().map_err(|e| wrong(&e))?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        Dtype::Bfloat16 => (
            "BF16",
            a.try_as_slice::<half::bf16>().map_err(|e| wrong(&e))?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        _ => ("F32", a.try_as_slice::<f32>().map_err(|e| wrong(&e))?.iter().flat_map(|x| x.to_le_bytes()).collect()),
    };
    let shape = a.shape().iter().map(|n| *n as usize).collect();
    Ok(Tensor { name, dtype, shape, source: Source::Bytes(bytes) })
}

/// A quantised matrix in the mode `affine`: `name.weight`, `name.scales` and `name.biases`, the last two in
/// `stored_as`, which they must fit.
///
/// # Errors
/// Whatever MLX reports.
pub fn of_packed(name: &str, packed: &Packed, stored_as: Dtype) -> Result<Vec<Tensor>> {
    let mut tensors = vec![of_array(format!("{name}.weight"), &packed.codes)?];
    for (part, a) in [("scales", Some(&packed.scales)), ("biases", packed.biases.as_ref())] {
        if let Some(a) = a {
            tensors.push(of_array(format!("{name}.{part}"), &a.as_dtype(stored_as)?)?);
        }
    }
    Ok(tensors)
}

/// Copies the texts of a checkpoint (tokeniser, templates, licences) to another directory; `config.json`, an index
/// and what is known of the origin are left to the caller.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy_texts(from: &Path, to: &Path) -> Result<()> {
    let others = ["config.json", "model.safetensors.index.json", "import.json", super::ladder::MANIFEST];
    for entry in std::fs::read_dir(from).map_err(FileError::at("reading", from))?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let kind = path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
        let text = ["json", "txt", "model", "jinja", "tiktoken"].contains(&kind.as_str());
        let other = others.contains(&name.as_str()) || name.starts_with('.');
        if (text || name.starts_with("LICENSE")) && !other && path.is_file() {
            std::fs::copy(&path, to.join(&name)).map_err(FileError::at("copying", &path))?;
        }
    }
    Ok(())
}
