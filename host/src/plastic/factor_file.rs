//! Quantised factors of one weight in a file, in the format of the Python tool mlx-plastic-rank.
//!
//! W ≈ U diag(S) Vᵀ with U [m, r], S [r], Vᵀ [r, n], each value one byte: q = round((x − min) / scale), ties to even, of
//! a range that every row of U, the whole of S, and every row of Vᵀ has of its own: scale = (max − min) / (2^bits − 1),
//! at least 1e-12. In the file: `U.q` u8 [m, r], `U.min` and `U.scale` f32 [m], `S.q` u8 [r], `S.min` and
//! `S.scale` f32 [1], `Vh.q` u8 [r, n], `Vh.min` and `Vh.scale` f32 [r], and `__meta__.json`, the bytes of a JSON text
//! with `bits`, `shape`, `rank` and `version`. Together m r + r + r n bytes of values and 4 (2 m + 2 + 2 r) of ranges.
//!
//! The same factors give the same bytes as that tool. Fails where a file holds anything else, contradicts
//! itself, or has values that are not finite; nothing is taken on trust from it.

use super::matrix_file::tensor::{bytes, held};
use super::matrix_file::{Error, Result, to_f32};
use crate::atomic::write_file;
use crate::mlx::randomized::Svd;
use crate::mlx::{Array, Context, MlxError, spectral};
use crate::model::safetensors::{TensorInfo, read_header};
use mlx_rs::error::Exception;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

/// The version of the format.
pub const VERSION: &str = "0.1.0";
/// Bits a value may have; it takes a byte all the same.
pub const BITS: RangeInclusive<u32> = 1..=8;
/// The tensor with the description.
const META: &str = "__meta__.json";
/// Longest description that is read.
const MAX_META: u64 = 4096;
/// Least width of a step, so that constant rows have one.
const LEAST_SCALE: f32 = 1e-12;

/// Bytes of the factors of an m × n weight at rank r, headers not counted.
pub fn bytes_of(m: u64, n: u64, r: u64) -> u64 {
    m * r + r + r * n + 4 * (2 * m + 2 + 2 * r)
}

/// Rows of values, each with a range of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranged {
    /// Steps above the least value, row by row.
    pub q: Vec<u8>,
    /// The least value of each row.
    pub min: Vec<f32>,
    /// The width of a step of each row.
    pub scale: Vec<f32>,
}

impl Ranged {
    /// Quantises rows of `width` finite values; a range that overflows float32 gives a scale that is not finite.
    pub fn quantise(values: &[f32], width: usize, bits: u32) -> Ranged {
        let steps = ((1u32 << bits) - 1) as f32;
        let mut out = Ranged { q: Vec::with_capacity(values.len()), min: Vec::new(), scale: Vec::new() };
        for row in values.chunks(width.max(1)) {
            let low = row.iter().copied().fold(f32::INFINITY, f32::min);
            let high = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = ((high - low) / steps).max(LEAST_SCALE);
            out.q.extend(row.iter().map(|x| ((x - low) / scale).round_ties_even() as u8));
            out.min.push(low);
            out.scale.push(scale);
        }
        out
    }

    /// The values, row by row: q · scale + min in float32.
    pub fn dequantise(&self) -> Vec<f32> {
        let width = self.q.len() / self.min.len().max(1);
        let rows = self.q.chunks(width.max(1)).zip(self.min.iter().zip(&self.scale));
        rows.flat_map(|(row, (min, scale))| row.iter().map(move |q| f32::from(*q) * scale + min)).collect()
    }
}

/// The quantised factors of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// Bits of a value.
    pub bits: u32,
    /// Rows m of the weight.
    pub rows: usize,
    /// Columns n of the weight.
    pub cols: usize,
    /// Rank r.
    pub rank: usize,
    /// U [m, r].
    pub u: Ranged,
    /// S [r], one row.
    pub s: Ranged,
    /// Vᵀ [r, n].
    pub vh: Ranged,
}

/// The description in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    bits: u32,
    shape: [usize; 2],
    rank: usize,
    version: String,
}

impl Factors {
    /// Quantises a thin decomposition.
    ///
    /// # Errors
    /// When `bits` is not one of [`BITS`], or a value is not finite or too large for the format.
    pub fn quantise(svd: &Svd, bits: u32) -> crate::mlx::Result<Factors> {
        let refused = |why: String| MlxError { what: "quantising factors".into(), exception: Exception::custom(why) };
        if !BITS.contains(&bits) {
            return Err(refused(format!("{bits} bits; expected {} to {}", BITS.start(), BITS.end())));
        }
        let (rows, rank, cols) = (svd.u.dim(0) as usize, svd.s.dim(0) as usize, svd.vt.dim(1) as usize);
        let ranged = |values: &Array, width: usize| {
            let values = to_f32(values)?;
            let made = Ranged::quantise(&values, width, bits);
            match values.iter().chain(&made.scale).all(|x| x.is_finite()) {
                true => Ok(made),
                false => Err(refused("the values are not finite or span more than float32 can".into())),
            }
        };
        let (u, s, vh) = (ranged(&svd.u, rank)?, ranged(&svd.s, rank)?, ranged(&svd.vt, cols)?);
        Ok(Factors { bits, rows, cols, rank, u, s, vh })
    }

    /// The weight U diag(S) Vᵀ [m, n], float32.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn reconstruct(&self) -> crate::mlx::Result<Array> {
        let what = "multiplying factors";
        let (m, r, n) = (self.rows as i32, self.rank as i32, self.cols as i32);
        let u = Array::from_slice(&self.u.dequantise(), &[m, r]);
        let s = Array::from_slice(&self.s.dequantise(), &[1, r]);
        let vh = Array::from_slice(&self.vh.dequantise(), &[r, n]);
        let w = spectral::on_cpu(|| u.multiply(s)?.matmul(vh)).context(what)?;
        crate::mlx::eval([&w])?;
        Ok(w)
    }

    /// Bytes of values and ranges.
    pub fn nbytes(&self) -> u64 {
        bytes_of(self.rows as u64, self.cols as u64, self.rank as u64)
    }

    /// The file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn to_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        let Factors { bits, rows, cols, rank, .. } = *self;
        // Spaced as Python does it, so that files can be compared byte by byte.
        let meta =
            format!("{{\"bits\": {bits}, \"shape\": [{rows}, {cols}], \"rank\": {rank}, \"version\": \"{VERSION}\"}}");
        let ranges: Vec<(String, Vec<u8>)> = [("U", &self.u), ("S", &self.s), ("Vh", &self.vh)]
            .into_iter()
            .flat_map(|(name, r)| {
                let raw = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect();
                [(format!("{name}.min"), raw(&r.min)), (format!("{name}.scale"), raw(&r.scale))]
            })
            .collect();
        let failed = |e: safetensors::SafeTensorError| Error::bad(path, format!("cannot be made: {e}"));
        let mut views = Vec::with_capacity(10);
        for (name, data) in &ranges {
            views.push((name.as_str(), TensorView::new(Dtype::F32, vec![data.len() / 4], data).map_err(failed)?));
        }
        for (name, shape, data) in [
            ("U.q", vec![rows, rank], self.u.q.as_slice()),
            ("S.q", vec![rank], &self.s.q),
            ("Vh.q", vec![rank, cols], &self.vh.q),
            (META, vec![meta.len()], meta.as_bytes()),
        ] {
            views.push((name, TensorView::new(Dtype::U8, shape, data).map_err(failed)?));
        }
        safetensors::serialize(views, None).map_err(failed)
    }

    /// Writes the file and answers its length.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let bytes = self.to_bytes(path)?;
        write_file(path, &bytes)?;
        Ok(bytes.len() as u64)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it is no file of factors, of another version, contradicts its description, or holds values that are not
    /// finite.
    pub fn read(path: &Path) -> Result<Factors> {
        let header = read_header(path)?;
        let file = Reader { path, header: &header };
        let meta = file.meta()?;
        let (m, n, r) = (meta.shape[0], meta.shape[1], meta.rank);
        let read = |name: &str, rows: usize, q: &[usize]| -> Result<Ranged> {
            let floats = |part: &str| {
                let name = format!("{name}.{part}");
                let raw = file.tensor(&name, "F32", &[rows])?;
                let x: Vec<f32> = raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                match x.iter().position(|x| !x.is_finite() || (part == "scale" && *x <= 0.0)) {
                    None => Ok(x),
                    Some(at) => {
                        let is = x.get(at).copied().unwrap_or(f32::NAN);
                        Err(file.bad(&name, format!("holds {is} at {at}: the file is damaged")))
                    }
                }
            };
            let (min, scale) = (floats("min")?, floats("scale")?);
            let name = format!("{name}.q");
            let q = file.tensor(&name, "U8", q)?;
            let most = ((1u32 << meta.bits) - 1) as u8;
            match q.iter().find(|x| **x > most) {
                None => Ok(Ranged { q, min, scale }),
                Some(x) => Err(file.bad(&name, format!("holds {x}; {} bits reach to {most}", meta.bits))),
            }
        };
        let (u, s, vh) = (read("U", m, &[m, r])?, read("S", 1, &[r])?, read("Vh", r, &[r, n])?);
        Ok(Factors { bits: meta.bits, rows: m, cols: n, rank: r, u, s, vh })
    }
}

/// A file being read.
struct Reader<'a> {
    path: &'a Path,
    header: &'a BTreeMap<String, TensorInfo>,
}

impl Reader<'_> {
    fn bad(&self, tensor: &str, reason: impl std::fmt::Display) -> Error {
        Error::bad(self.path, format!("tensor `{tensor}` {reason}"))
    }

    fn meta(&self) -> Result<Meta> {
        let names = ["U.q", "U.min", "U.scale", "S.q", "S.min", "S.scale", "Vh.q", "Vh.min", "Vh.scale", META];
        if let Some(missing) = names.iter().find(|n| !self.header.contains_key(**n)) {
            let held = held(self.header);
            let reason =
                format!("is no file of factors: it has no `{missing}`; {held}; `export --from-weight` makes one");
            return Err(Error::bad(self.path, reason));
        }
        if let Some(other) = self.header.keys().find(|n| !names.contains(&n.as_str())) {
            return Err(self.bad(other, "does not belong into a file of factors"));
        }
        let length = self.header.get(META).map_or(0, |t| t.end - t.begin);
        if length > MAX_META {
            return Err(self.bad(META, format!("has {length} bytes; at most {MAX_META} are read")));
        }
        let text = self.tensor(META, "U8", &[length as usize])?;
        // The version first: another one may have other fields.
        let value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| self.bad(META, format!("is not valid JSON: {e}")))?;
        match value.get("version").and_then(|v| v.as_str()) {
            Some(VERSION) => {}
            other => {
                let other = other.unwrap_or("none");
                return Err(self.bad(META, format!("states version {other}; version {VERSION} is read")));
            }
        }
        let meta: Meta = serde_json::from_value(value)
            .map_err(|e| self.bad(META, format!("is not as expected ({e}); expected bits, shape, rank and version")))?;
        let [m, n] = meta.shape;
        if !BITS.contains(&meta.bits) {
            return Err(
                self.bad(META, format!("states {} bits; expected {} to {}", meta.bits, BITS.start(), BITS.end()))
            );
        }
        let held = m.checked_mul(n).is_some_and(|x| x > 0 && x <= i32::MAX as usize);
        if !held || m.max(n) > i32::MAX as usize {
            return Err(self.bad(META, format!("states the shape [{m}, {n}]; expected 1 to {} elements", i32::MAX)));
        }
        if meta.rank == 0 || meta.rank > m.min(n) {
            return Err(
                self.bad(META, format!("states rank {}; a weight [{m}, {n}] has ranks 1 to {}", meta.rank, m.min(n)))
            );
        }
        debug_assert_eq!(meta.version, VERSION);
        Ok(meta)
    }

    fn tensor(&self, name: &str, dtype: &str, shape: &[usize]) -> Result<Vec<u8>> {
        let info = self.header.get(name).ok_or_else(|| self.bad(name, "is missing"))?;
        if info.dtype != dtype || info.shape != shape {
            let found = format!("is {} {:?}", info.dtype, info.shape);
            return Err(self.bad(name, format!("{found}; {META} calls for {dtype} {shape:?}: the file is damaged")));
        }
        bytes(self.path, info)
    }
}
