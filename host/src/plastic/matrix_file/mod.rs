//! Single matrices in files: NumPy's `.npy` and `.npz`, tensors of `.safetensors`, modules of a checkpoint.
//!
//! Reading answers a matrix of finite float32 (float64 where the file has float64) and how it was stored; whatever
//! is no such matrix is refused with the name of the file, what was found and what was expected. A size that a
//! header states is compared with the size of the file before memory is asked for. Writing goes through a
//! temporary file and a rename.

pub mod npy;
pub mod npz;
pub mod tensor;

use crate::atomic::{FileError, write_file};
use crate::mlx::quant::Packed;
use crate::mlx::{self, Array, Context, MlxError, spectral};
use crate::model::{self, single};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The name of a matrix in the files that name theirs.
pub const NAME: &str = "weight";

/// A matrix cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        reason: String,
    },
    /// A checkpoint or a safetensors file is not as it should be.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// MLX failed.
    #[error(transparent)]
    Mlx(#[from] MlxError),
}

impl Error {
    /// For a file that does not hold what it should.
    pub fn bad(path: &Path, reason: impl Into<String>) -> Error {
        Error::Bad { path: path.to_owned(), reason: reason.into() }
    }
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// A matrix and how it was stored.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The numbers [rows, cols], finite, float32 or float64.
    pub weight: Array,
    /// The type in the file (`F16`, `F64`), or how it is quantised (`affine 4 bits, group 32`).
    pub stored_as: String,
    /// As it is in a checkpoint that quantises it.
    pub packed: Option<Packed>,
    /// Bytes it takes in its file, headers not counted.
    pub stored_bytes: u64,
}

impl Matrix {
    /// Rows (outputs of a projection).
    pub fn rows(&self) -> usize {
        self.weight.dim(0) as usize
    }

    /// Columns (inputs of a projection).
    pub fn cols(&self) -> usize {
        self.weight.dim(1) as usize
    }
}

/// Where a matrix lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `FILE.npy`.
    Npy(PathBuf),
    /// `FILE.npz`, `FILE.npz:MEMBER`; without a member the only one.
    Npz(PathBuf, Option<String>),
    /// `FILE.safetensors`, `FILE.safetensors:TENSOR`; without a name the only tensor.
    Tensor(PathBuf, Option<String>),
    /// `BASE:MODULE`: a module of a base, such as `model.layers.0.self_attn.q_proj`.
    Module {
        /// The base as the user names it: a directory or an id.
        base: String,
        /// The module, without `.weight`.
        module: String,
    },
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Source, String> {
        let (file, name) = match [".npy:", ".npz:", ".safetensors:"].iter().find_map(|e| Some((text.find(e)?, e.len())))
        {
            Some((at, len)) => (&text[..at + len - 1], Some(&text[at + len..])),
            None => (text, None),
        };
        if name == Some("") {
            return Err(format!("nothing behind the colon of {text}; name the tensor"));
        }
        let (path, owned) = (PathBuf::from(file), name.map(str::to_owned));
        match (path.extension().and_then(|e| e.to_str()), &owned) {
            (Some("npy"), None) => Ok(Source::Npy(path)),
            (Some("npy"), Some(_)) => Err(format!("{file} holds one array; leave the name behind the colon away")),
            (Some("npz"), _) => Ok(Source::Npz(path, owned)),
            (Some("safetensors"), _) => Ok(Source::Tensor(path, owned)),
            _ => match text.rsplit_once(':') {
                Some((base, module)) if !base.is_empty() && !module.is_empty() => Ok(Source::Module {
                    base: base.to_owned(),
                    module: module.strip_suffix(".weight").unwrap_or(module).to_owned(),
                }),
                _ => Err(format!("{text} names no matrix; expected {EXPECTED}")),
            },
        }
    }
}

/// The forms of [`Source`], for messages.
const EXPECTED: &str = "FILE.npy, FILE.npz[:MEMBER], FILE.safetensors[:TENSOR], or BASE:MODULE of a checkpoint (./my-model:model.layers.0.self_attn.q_proj)";

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Npy(path) | Source::Npz(path, None) | Source::Tensor(path, None) => write!(f, "{}", path.display()),
            Source::Npz(path, Some(name)) | Source::Tensor(path, Some(name)) => write!(f, "{}:{name}", path.display()),
            Source::Module { base, module } => write!(f, "{base}:{module}"),
        }
    }
}

impl Source {
    /// The file, where it is a single one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Source::Npy(path) | Source::Npz(path, _) | Source::Tensor(path, _) => Some(path),
            Source::Module { .. } => None,
        }
    }

    /// Reads the matrix; `directory` finds the directory of a base.
    ///
    /// # Errors
    /// When there is none, or not one of finite numbers; and what `directory` says.
    pub fn read<E: From<Error>>(
        &self,
        directory: impl FnOnce(&str) -> std::result::Result<PathBuf, E>,
    ) -> std::result::Result<Matrix, E> {
        Ok(match self {
            Source::Npy(path) => npy::read(path)?,
            Source::Npz(path, member) => npz::read(path, member.as_deref())?,
            Source::Tensor(path, name) => tensor::read(path, name.as_deref())?,
            Source::Module { base, module } => {
                let found = single::read(&directory(base)?, module).map_err(Error::from)?;
                let single::Single { weight, stored_as, packed, stored_bytes } = found;
                Matrix { weight, stored_as, packed, stored_bytes }
            }
        })
    }
}

/// The formats a matrix can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// NumPy's format for one array.
    Npy,
    /// NumPy's archive; the member is called [`NAME`].
    Npz,
    /// Safetensors; the tensor is called [`NAME`].
    Safetensors,
}

impl Format {
    /// By the ending of a name.
    ///
    /// # Errors
    /// When the ending is none of these.
    pub fn of(path: &Path) -> Result<Format> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => Ok(Format::Npy),
            Some("npz") => Ok(Format::Npz),
            Some("safetensors") => Ok(Format::Safetensors),
            _ => {
                Err(Error::bad(path, "has no ending that says its format; end the name in .npy, .npz or .safetensors"))
            }
        }
    }
}

/// Writes a matrix [rows, cols] as float32 in the format that the name ends in.
///
/// # Errors
/// When the ending is not known or the file cannot be written.
pub fn write(path: &Path, weight: &Array) -> Result<()> {
    let numbers = to_f32(weight)?;
    let shape = [weight.dim(0) as usize, weight.dim(1) as usize];
    let bytes = match Format::of(path)? {
        Format::Npy => npy::to_bytes(&numbers, shape),
        Format::Npz => npz::to_bytes(path, &numbers, shape)?,
        Format::Safetensors => tensor::to_bytes(path, &numbers, shape)?,
    };
    Ok(write_file(path, &bytes)?)
}

/// The numbers of an array as float32, row by row.
///
/// # Errors
/// When the delayed computation fails.
pub fn to_f32(a: &Array) -> mlx::Result<Vec<f32>> {
    let what = "reading an array";
    let a = spectral::on_cpu(|| a.as_dtype(mlx::Dtype::Float32)?.reshape(&[-1])).context(what)?;
    mlx::eval([&a])?;
    a.to_vec_exact::<f32>().map_err(|e| mlx_rs::error::Exception::custom(e.to_string())).context(what)
}

/// A type of floating-point number in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Float {
    F16,
    BF16,
    F32,
    F64,
}

impl Float {
    pub(super) fn name(self) -> &'static str {
        match self {
            Float::F16 => "F16",
            Float::BF16 => "BF16",
            Float::F32 => "F32",
            Float::F64 => "F64",
        }
    }

    pub(super) fn width(self) -> u64 {
        match self {
            Float::F16 | Float::BF16 => 2,
            Float::F32 => 4,
            Float::F64 => 8,
        }
    }
}

/// How the bytes of a matrix are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) float: Float,
    pub(super) big_endian: bool,
    /// Column after column instead of row after row.
    pub(super) fortran: bool,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Layout {
    /// The layout and the bytes it takes, where its shape is one of a matrix that can be held.
    pub(super) fn checked(
        float: Float,
        big_endian: bool,
        fortran: bool,
        shape: &[u64],
    ) -> std::result::Result<(Layout, u64), String> {
        let &[rows, cols] = shape else {
            return Err(format!("has {} dimensions, shape {shape:?}; expected a matrix, two dimensions", shape.len()));
        };
        let elements = rows.checked_mul(cols).filter(|n| *n <= i32::MAX as u64 && rows.max(cols) <= i32::MAX as u64);
        match elements {
            None => Err(format!("states the shape {shape:?}; at most {} elements can be held", i32::MAX)),
            Some(0) => Err(format!("is empty, shape {shape:?}; expected at least one row and one column")),
            Some(n) => {
                let layout = Layout { float, big_endian, fortran, rows: rows as usize, cols: cols as usize };
                Ok((layout, n * float.width()))
            }
        }
    }

    /// The matrix these bytes hold; the reason where a number is not finite.
    pub(super) fn decode(&self, bytes: &[u8]) -> std::result::Result<Array, String> {
        let big = self.big_endian;
        let narrow =
            |width: usize, f: &dyn Fn(&[u8]) -> f32| -> Vec<f32> { bytes.chunks_exact(width).map(f).collect() };
        let two = |b: &[u8]| {
            let b = [b[0], b[1]];
            if big { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) }
        };
        let four = |b: &[u8]| {
            let b = [b[0], b[1], b[2], b[3]];
            f32::from_bits(if big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) })
        };
        let eight = |b: &[u8]| {
            let b = [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]];
            f64::from_bits(if big { u64::from_be_bytes(b) } else { u64::from_le_bytes(b) })
        };
        let (rows, cols) = (self.rows as i32, self.cols as i32);
        let shape = if self.fortran { [cols, rows] } else { [rows, cols] };
        let array = match self.float {
            Float::F64 => {
                let numbers: Vec<f64> = bytes.chunks_exact(8).map(eight).collect();
                self.finite(numbers.iter().map(|x| x.is_finite()), |i| numbers.get(i).copied().unwrap_or(f64::NAN))?;
                Array::from_slice_f64(&numbers, &shape)
            }
            other => {
                let numbers = match other {
                    Float::F16 => narrow(2, &|b| half::f16::from_bits(two(b)).to_f32()),
                    Float::BF16 => narrow(2, &|b| half::bf16::from_bits(two(b)).to_f32()),
                    _ => narrow(4, &four),
                };
                self.finite(numbers.iter().map(|x| x.is_finite()), |i| {
                    numbers.get(i).map_or(f64::NAN, |x| f64::from(*x))
                })?;
                Array::from_slice(&numbers, &shape)
            }
        };
        if !self.fortran {
            return Ok(array);
        }
        spectral::on_cpu(|| array.transpose()?.contiguous()).map_err(|e| mlx::plainly(e.what()).to_owned())
    }

    fn finite(
        &self,
        mut good: impl Iterator<Item = bool>,
        value: impl Fn(usize) -> f64,
    ) -> std::result::Result<(), String> {
        let Some(at) = good.position(|g| !g) else { return Ok(()) };
        let (row, col) = match self.fortran {
            true => (at % self.rows, at / self.rows),
            false => (at / self.cols, at % self.cols),
        };
        Err(format!("holds {} in row {row}, column {col}; expected finite numbers", value(at)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        let parse = |t: &str| t.parse::<Source>();
        assert_eq!(parse("a/w.npy").unwrap(), Source::Npy("a/w.npy".into()));
        assert_eq!(parse("w.npz").unwrap(), Source::Npz("w.npz".into(), None));
        assert_eq!(parse("w.npz:a.b").unwrap(), Source::Npz("w.npz".into(), Some("a.b".into())));
        assert_eq!(parse("w.safetensors:x").unwrap(), Source::Tensor("w.safetensors".into(), Some("x".into())));
        let module = Source::Module { base: "./m".into(), module: "model.layers.0.self_attn.q_proj".into() };
        assert_eq!(parse("./m:model.layers.0.self_attn.q_proj.weight").unwrap(), module);
        for text in ["a/w.npy", "w.npz:a.b", "w.safetensors:x", "./m:lm_head"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        for (bad, why) in [
            ("w.bin", "names no matrix"),
            ("w.npy:x", "holds one array"),
            ("w.npz:", "name the tensor"),
            (":x", "names no"),
        ] {
            assert!(parse(bad).unwrap_err().contains(why), "{bad}");
        }
    }

    #[test]
    fn every_format_gives_back_what_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let w = Array::from_slice(&[1.5f32, -2.0, 0.0, 3.25, 1e-30, 7.0], &[2, 3]);
        for ending in ["npy", "npz", "safetensors"] {
            let path = dir.path().join(format!("w.{ending}"));
            write(&path, &w).unwrap();
            let source: Source = path.to_str().unwrap().parse().unwrap();
            let back = source.read::<Error>(|_| unreachable!()).unwrap();
            assert_eq!((back.rows(), back.cols(), back.stored_bytes), (2, 3, 24));
            assert_eq!(to_f32(&back.weight).unwrap(), to_f32(&w).unwrap());
            assert_eq!(back.stored_as, "F32");
        }
        assert!(write(&dir.path().join("w.txt"), &w).unwrap_err().to_string().contains(".npz"));
    }
}
