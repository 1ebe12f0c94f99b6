//! Adapters of other programs in memory, and how they become those of a pack.

use crate::atomic::{self, FileError};
use crate::model::safetensors::{TensorInfo, read_header};
use crate::pack::error::{Error, Result};
use crate::pack::format::{Adapter, Matrix, Meta};
use crate::pack::key;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Most bytes of a file of tensors: the largest pack, in float32, ranks padded.
const MAX_FILE: u64 = 4 << 30;

/// Numbers of a tensor, widened to float32, which is exact.
pub(super) struct Floats {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// The tensors of a file that are not taken yet.
pub(super) struct TensorFile {
    pub path: PathBuf,
    header: BTreeMap<String, TensorInfo>,
    bytes: Vec<u8>,
    begin: usize,
}

impl TensorFile {
    pub(super) fn read(path: &Path) -> Result<TensorFile> {
        let header = read_header(path)?;
        let bytes = atomic::read_bounded(path, MAX_FILE).map_err(FileError::at("reading", path))?;
        let length = bytes.get(..8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        Ok(TensorFile { path: path.to_owned(), header, bytes, begin: length as usize + 8 })
    }

    /// A text beside the tensors.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let header: serde_json::Value = serde_json::from_slice(self.bytes.get(8..self.begin)?).ok()?;
        header.get("__metadata__")?.get(name)?.as_str().map(str::to_owned)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.header.keys().cloned().collect()
    }

    pub(super) fn bad(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::tensor(&self.path, name, reason)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.header.contains_key(name)
    }

    /// A tensor of `dims` dimensions; every number is finite.
    pub(super) fn take(&mut self, name: &str, dims: usize) -> Result<Floats> {
        let info = self.header.remove(name).ok_or_else(|| self.bad(name, "is missing; the adapter is incomplete"))?;
        if info.shape.len() != dims {
            return Err(self.bad(name, format!("has shape {:?}; expected {dims} dimensions", info.shape)));
        }
        let (from, to) = (self.begin + info.begin as usize, self.begin + info.end as usize);
        let bytes = self.bytes.get(from..to).ok_or_else(|| self.bad(name, "lies beyond the end of the file"))?;
        let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        let data: Vec<f32> = match info.dtype.as_str() {
            "F32" => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            "F16" => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            "BF16" => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => return Err(self.bad(name, format!("has type {other}; supported: F32, F16, BF16"))),
        };
        match data.iter().position(|x| !x.is_finite()) {
            Some(at) => Err(self.bad(name, format!("holds {} at element {at}: the adapter is damaged", data[at]))),
            None => Ok(Floats { shape: info.shape, data }),
        }
    }

    /// Refuses tensors that nobody asked for.
    pub(super) fn no_others(&self) -> Result<()> {
        match self.header.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.bad(
                name,
                "is no part of a LoRA or DoRA adapter of a linear layer, which is all that a pack can hold",
            )),
        }
    }
}

/// One adapter as a layout has it: `W x` becomes `W x + scale · A B x`.
pub(super) struct Module {
    /// Key in a pack.
    pub key: String,
    /// [out, r].
    pub a: Floats,
    /// [r, in].
    pub b: Floats,
    pub scale: f64,
    pub magnitude: Option<Vec<f32>>,
    /// For messages.
    pub path: PathBuf,
}

/// Rows become columns.
pub(super) fn transposed<T: Copy>(rows: usize, cols: usize, data: &[T]) -> Vec<T> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| data[r * cols + c])).collect()
}

impl Floats {
    pub(super) fn transposed(&self) -> Floats {
        let (rows, cols) = (self.shape[0], self.shape[1]);
        Floats { shape: vec![cols, rows], data: transposed(rows, cols, &self.data) }
    }
}

/// The factor that folds the scale of one adapter into the scale that all have.
pub(super) fn folding(own: f32, common: f32) -> f64 {
    if own == common { 1.0 } else { f64::from(own) / f64::from(common) }
}

/// The pack that went out, where the tensors are those that `meta` and some float16 numbers give: `folded` undoes
/// what the layout of mlx-lm needs, one rank and one scale.
pub(super) fn native(modules: &[Module], meta: &Meta, folded: bool) -> Option<BTreeMap<String, Adapter>> {
    let mut out = BTreeMap::new();
    for m in modules {
        let rank = *meta.rank_map.get(&m.key)? as usize;
        let alpha = *meta.alpha_map.get(&m.key)? as f32;
        let (rows, cols, wide) = (m.a.shape[0], m.b.shape[1], m.b.shape[0]);
        if rank > wide || (!folded && rank != wide) || alpha < 0.0 {
            return None;
        }
        let own = if rank == 0 { 0.0 } else { alpha / rank as f32 };
        let factor = if folded { folding(own, m.scale as f32) } else { 1.0 };
        if (!folded && own != m.scale as f32) || !factor.is_finite() || factor <= 0.0 {
            return None;
        }
        let mut a = Vec::with_capacity(rows * rank);
        for row in m.a.data.chunks_exact(wide.max(1)) {
            let (kept, padding) = row.split_at(rank);
            for x in kept {
                let half = f16::from_f64(f64::from(*x) / factor);
                // Bits are compared: a negative zero is not a positive one.
                if ((half.to_f64() * factor) as f32).to_bits() != x.to_bits() {
                    return None;
                }
                a.push(half);
            }
            if padding.iter().any(|x| *x != 0.0) {
                return None;
            }
        }
        let (kept, padding) = m.b.data.split_at(rank * cols);
        let b: Vec<f16> = kept.iter().map(|x| f16::from_f32(*x)).collect();
        if padding.iter().any(|x| *x != 0.0) || b.iter().zip(kept).any(|(h, x)| h.to_f32().to_bits() != x.to_bits()) {
            return None;
        }
        let (a, b) = (Matrix { rows, cols: rank, data: a }, Matrix { rows: rank, cols, data: b });
        out.insert(m.key.clone(), Adapter { a, b, alpha, magnitude: m.magnitude.clone() });
    }
    (out.len() == meta.rank_map.len()).then_some(out)
}

/// What rounding to float16 costs.
#[derive(Default)]
pub(super) struct Loss {
    /// Largest relative error of a matrix.
    pub worst: f64,
    /// Matrices with an error.
    pub matrices: usize,
    pub notes: Vec<String>,
}

/// Adapters of any origin, their numbers rounded to float16. Where some do not fit as they are, a matrix is moved
/// by a power of two into the middle of the type's range first, and alpha takes it back, which is exact.
pub(super) fn rounded(modules: &[Module]) -> Result<(BTreeMap<String, Adapter>, Loss)> {
    let mut loss = Loss::default();
    let mut out = BTreeMap::new();
    let mut moved = 0;
    for m in modules {
        let rank = m.b.shape[0];
        // Alpha is not negative: a sign belongs to A.
        let sign = if m.scale < 0.0 { -1.0 } else { 1.0 };
        let (a, shift_a) = halves(&m.a, sign, &mut loss);
        let (b, shift_b) = halves(&m.b, 1.0, &mut loss);
        moved += usize::from(shift_a != 0 || shift_b != 0);
        let alpha = (m.scale.abs() * rank as f64 * 2f64.powi(shift_a + shift_b)) as f32;
        if !alpha.is_finite() {
            return Err(Error::file(
                &m.path,
                format!(
                    "{}: a scale of {:e} with numbers of this size is beyond float32; the adapter is damaged",
                    m.key, m.scale
                ),
            ));
        }
        if alpha == 0.0 && m.scale != 0.0 {
            return Err(Error::file(
                &m.path,
                format!(
                    "{}: a scale of {:e} with numbers of this size is 0 in float32; the adapter is damaged",
                    m.key, m.scale
                ),
            ));
        }
        if out.insert(m.key.clone(), Adapter { a, b, alpha, magnitude: m.magnitude.clone() }).is_some() {
            return Err(Error::file(&m.path, format!("holds two adapters for {}", m.key)));
        }
    }
    if loss.matrices > 0 {
        loss.notes.push(format!(
            "{} of {} matrices hold numbers that float16, the type of a pack, has not exactly; they were rounded, which changes a matrix by at most {:.4} % of its norm",
            loss.matrices,
            2 * modules.len(),
            100.0 * loss.worst
        ));
    }
    if moved > 0 {
        loss.notes.push(format!(
            "in {moved} adapters a power of two was moved from the matrices to alpha, which keeps small numbers apart; the product is the same"
        ));
    }
    Ok((out, loss))
}

/// A matrix in float16, and the power of two it must be multiplied with.
fn halves(m: &Floats, sign: f32, loss: &mut Loss) -> (Matrix, i32) {
    let fits = |x: &f32| f16::from_f32(*x).to_f32() == *x;
    let most = m.data.iter().fold(0f32, |most, x| most.max(x.abs()));
    let shift = match m.data.iter().all(fits) || most == 0.0 {
        true => 0,
        false => most.log2().floor() as i32,
    };
    let factor = f64::from(sign) * 2f64.powi(-shift);
    let scaled: Vec<f64> = m.data.iter().map(|x| f64::from(*x) * factor).collect();
    let data: Vec<f16> = scaled.iter().map(|x| f16::from_f64(*x)).collect();
    let error: f64 = scaled.iter().zip(&data).map(|(x, h)| (x - h.to_f64()).powi(2)).sum();
    let norm: f64 = scaled.iter().map(|x| x * x).sum();
    if error > 0.0 {
        loss.matrices += 1;
        loss.worst = loss.worst.max((error / norm).sqrt());
    }
    (Matrix { rows: m.shape[0], cols: m.shape[1], data }, shift)
}

/// The key of a module of the model, such as `model.layers.3.self_attn.q_proj`.
pub(super) fn key_of(module: &str) -> Option<String> {
    let key = key::of_slice(module)?;
    (key::to_slice(&key).as_deref() == Some(module)).then_some(key)
}

/// That the matrices of one adapter have one rank and its magnitude one length.
pub(super) fn check(
    file: &TensorFile,
    module: &str,
    a: &Floats,
    b: &Floats,
    magnitude: Option<&Vec<f32>>,
) -> Result<()> {
    if a.shape[1] != b.shape[0] {
        let reason = format!("has matrices of ranks {} and {}; the adapter is damaged", b.shape[0], a.shape[1]);
        return Err(file.bad(module, reason));
    }
    if a.data.is_empty() || b.data.is_empty() {
        return Err(file.bad(module, "has an empty matrix; the adapter is damaged"));
    }
    match magnitude {
        Some(m) if m.len() != a.shape[0] => {
            Err(file.bad(module, format!("has a magnitude of {} numbers for {} outputs", m.len(), a.shape[0])))
        }
        _ => Ok(()),
    }
}
