//! A pack on disk: a directory with `pack.safetensors` and `meta.json`, in the schema of mlx-plastic-rank.
//!
//! An adapter `<key>` is `<key>.lora.A` float16 [out, r], `<key>.lora.B` float16 [r, in] and `<key>.lora.alpha`
//! float32, of no dimension; what it adds to its slice is `alpha / r · A B x`. A DoRA pack (Liu et al. 2024) has
//! `<key>.lora.magnitude` float32 [out] besides. Everything is checked on reading: type, shape, finiteness, alpha
//! against the metadata, tensors that nobody asked for, version, size. Version 0.1.0 is the Python program's, whose
//! own rules (ranks 2, 4, 8, … and an alpha of twice the rank) hold for its packs; ours are 0.2.0 and free of them.

use super::error::{Error, Result};
use super::key;
use crate::atomic::{self, FileError};
use crate::mlx::{Array, Dtype};
use crate::model::safetensors::{TensorInfo, read_header};
use half::f16;
use half::vec::{HalfBitsVecExt, HalfFloatVecExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// File with the tensors.
pub const TENSORS: &str = "pack.safetensors";
/// File with the metadata.
pub const META: &str = "meta.json";
/// Schema this program writes.
pub const VERSION: &str = "0.2.0";
/// Schema of mlx-plastic-rank.
pub const UPSTREAM_VERSION: &str = "0.1.0";
/// Most bytes of metadata that are read.
const MAX_META: u64 = 16 << 20;

/// How large a pack may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// 10 MiB of tensors
    #[default]
    Lite,
    /// 512 MiB of tensors
    Heavy,
}

impl Profile {
    /// Most bytes of tensors.
    pub fn limit(self) -> u64 {
        match self {
            Profile::Lite => 10 << 20,
            Profile::Heavy => 512 << 20,
        }
    }

    /// Ranks that the default rule rounds to, and that packs of version 0.1.0 may have.
    pub fn ladder(self) -> &'static [u32] {
        match self {
            Profile::Lite => &[2, 4, 8],
            Profile::Heavy => &[2, 4, 8, 16, 32, 64],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Profile::Lite => "lite",
            Profile::Heavy => "heavy",
        }
    }
}

/// Most bytes of tensors of a pack; one base of the Python program's first version had a larger allowance.
fn limit(meta: &Meta) -> u64 {
    let base = Path::new(&meta.base_model).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let seed = ["qwen3-4b-2507-mlx-4bit", "qwen3-4b-thinking-2507-mlx-4bit"].contains(&base.as_str());
    match meta.version == UPSTREAM_VERSION && seed && meta.rank_map.values().all(|r| *r <= 8) {
        true => 12 << 20,
        false => meta.profile.limit(),
    }
}

/// `meta.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Name of the pack; that of its directory.
    pub pack_name: String,
    /// Identity of the base: ours over its configuration and all shards ([`crate::model::layout::checkpoint_hash`]);
    /// in version 0.1.0 the SHA-256 of the first shard. Empty: unknown.
    #[serde(default)]
    pub base_hash: String,
    /// What the base was called when the pack was made.
    #[serde(default)]
    pub base_model: String,
    /// Size allowed.
    #[serde(default)]
    pub profile: Profile,
    /// Rank of each adapter.
    pub rank_map: BTreeMap<String, u32>,
    /// Alpha of each adapter; 0 makes it do nothing.
    pub alpha_map: BTreeMap<String, f64>,
    /// Keys of the adapters.
    #[serde(default)]
    pub target_layers: Vec<String>,
    /// Text it was trained on.
    #[serde(default)]
    pub training_data: Option<serde_json::Value>,
    /// How it was made.
    #[serde(default)]
    pub training_config: serde_json::Value,
    /// ISO 8601, UTC.
    #[serde(default)]
    pub created_at: String,
    /// Free text.
    #[serde(default)]
    pub notes: String,
    /// Version of the schema.
    #[serde(default = "upstream")]
    pub version: String,
}

fn upstream() -> String {
    UPSTREAM_VERSION.into()
}

/// A float16 matrix in rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `rows · cols` numbers.
    pub data: Vec<f16>,
}

impl Matrix {
    /// From float32 numbers, rounded to the nearest float16.
    pub fn from_f32(rows: usize, cols: usize, data: &[f32]) -> Matrix {
        Matrix { rows, cols, data: Vec::from_f32_slice(data) }
    }

    /// As float32.
    pub fn to_f32(&self) -> Vec<f32> {
        use half::slice::HalfFloatSliceExt;
        // In one go: the processor converts many at once.
        let mut out = vec![0.0; self.data.len()];
        self.data.convert_to_f32_slice(&mut out);
        out
    }

    /// The largest absolute value; not finite where one entry is not. The bits of a float16 without its sign are in
    /// the order of its size, so nothing is converted one by one.
    pub fn largest(&self) -> f16 {
        f16::from_bits(self.data.iter().map(|x| x.to_bits() & 0x7fff).max().unwrap_or(0))
    }

    /// As an MLX array [rows, cols] float32.
    pub fn array(&self) -> Array {
        Array::from_slice(&self.to_f32(), &[self.rows as i32, self.cols as i32])
    }

    /// From an MLX array [rows, cols] of floats, rounded to the nearest float16.
    ///
    /// # Errors
    /// When MLX fails, or a number has no finite float16.
    pub fn from_array(a: &Array) -> Result<Matrix> {
        let a = a.as_dtype(Dtype::Float32)?.contiguous()?;
        crate::mlx::eval([&a])?;
        let data = a.try_as_slice::<f32>().map_err(|e| Error::Other(format!("a matrix cannot be read: {e}")))?;
        let matrix = Matrix::from_f32(a.dim(0) as usize, a.dim(1) as usize, data);
        match matrix.data.iter().all(|x| x.is_finite()) {
            true => Ok(matrix),
            false => Err(Error::Other("a number is too large for float16, the type of a pack's matrices".into())),
        }
    }
}

/// One adapter: `W x` becomes `W x + alpha / r · A B x`, with a magnitude m normalised by rows (DoRA).
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// [out, r].
    pub a: Matrix,
    /// [r, in].
    pub b: Matrix,
    /// Strength.
    pub alpha: f32,
    /// DoRA: the length of each row of the adapted weight, [out].
    pub magnitude: Option<Vec<f32>>,
}

impl Adapter {
    /// Number of components.
    pub fn rank(&self) -> usize {
        self.b.rows
    }

    /// `alpha / r`; 0 for rank 0.
    pub fn scale(&self) -> f32 {
        if self.rank() == 0 { 0.0 } else { self.alpha / self.rank() as f32 }
    }

    /// The components named by `keep`, in that order; the scale stays. A DoRA magnitude stays as it is.
    pub fn components(&self, keep: &[usize]) -> Adapter {
        let (rank, cols) = (self.rank(), self.b.cols);
        let pick = |row: &[f16]| keep.iter().filter_map(|k| row.get(*k).copied()).collect::<Vec<f16>>();
        let a = self.a.data.chunks(rank.max(1)).flat_map(pick).collect();
        let rows = keep.iter().filter_map(|k| self.b.data.get(k * cols..(k + 1) * cols));
        Adapter {
            a: Matrix { rows: self.a.rows, cols: keep.len(), data: a },
            b: Matrix { rows: keep.len(), cols, data: rows.flatten().copied().collect() },
            alpha: self.scale() * keep.len() as f32,
            magnitude: self.magnitude.clone(),
        }
    }

    /// Its first `rank` components; the scale stays.
    pub fn first(&self, rank: usize) -> Adapter {
        self.components(&(0..rank.min(self.rank())).collect::<Vec<_>>())
    }

    /// Bytes of its tensors.
    pub fn nbytes(&self) -> u64 {
        let magnitude = self.magnitude.as_ref().map_or(0, |m| 4 * m.len());
        (2 * (self.a.data.len() + self.b.data.len()) + 4 + magnitude) as u64
    }
}

/// A pack: metadata and adapters by key.
#[derive(Clone, Debug, PartialEq)]
pub struct Pack {
    /// `meta.json`.
    pub meta: Meta,
    /// Adapters by key.
    pub adapters: BTreeMap<String, Adapter>,
}

impl Pack {
    /// A new pack; ranks, alphas and keys of the metadata are set from the adapters.
    pub fn new(mut meta: Meta, adapters: BTreeMap<String, Adapter>) -> Pack {
        meta.version = VERSION.into();
        meta.rank_map = adapters.iter().map(|(k, a)| (k.clone(), a.rank() as u32)).collect();
        meta.alpha_map = adapters.iter().map(|(k, a)| (k.clone(), f64::from(a.alpha))).collect();
        meta.target_layers = adapters.keys().cloned().collect();
        meta.target_layers.sort_by(|a, b| key::order(a, b));
        Pack { meta, adapters }
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.meta.pack_name
    }

    /// Bytes of all tensors, which is what the size limit counts.
    pub fn nbytes(&self) -> u64 {
        self.adapters.values().map(Adapter::nbytes).sum()
    }

    /// Components of all adapters.
    pub fn total_rank(&self) -> usize {
        self.adapters.values().map(Adapter::rank).sum()
    }

    /// Keys in order of layers.
    pub fn keys(&self) -> Vec<&str> {
        let mut keys: Vec<&str> = self.adapters.keys().map(String::as_str).collect();
        keys.sort_by(|a, b| key::order(a, b));
        keys
    }

    /// Reads and checks the pack in a directory.
    ///
    /// # Errors
    /// When a file is missing or damaged, or breaks a rule of the schema; the message names file and tensor.
    pub fn read(dir: &Path) -> Result<Pack> {
        let meta = read_meta(dir)?;
        let path = dir.join(TENSORS);
        let header = read_header(&path)?;
        check_meta(&meta, &dir.join(META))?;
        let bytes = atomic::read_bounded(&path, limit(&meta) + crate::model::safetensors::MAX_HEADER)
            .map_err(FileError::at("reading", &path))?;
        let begin = bytes.get(..8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes) as usize + 8;
        let data = bytes.get(begin..).unwrap_or_default();
        let mut tensors = Tensors { path: &path, header, data, upstream: meta.version == UPSTREAM_VERSION };
        let mut adapters = BTreeMap::new();
        for (key, rank) in &meta.rank_map {
            adapters.insert(key.clone(), tensors.adapter(key, *rank as usize, meta.alpha_map.get(key).copied())?);
        }
        if let Some(name) = tensors.header.keys().next() {
            return Err(Error::tensor(&path, name, "belongs to no adapter that meta.json names"));
        }
        let pack = Pack { meta, adapters };
        pack.check_size(&path)?;
        Ok(pack)
    }

    /// Refuses a pack that is larger than its profile allows.
    ///
    /// # Errors
    /// Then.
    pub fn check_size(&self, path: &Path) -> Result<()> {
        let (size, most) = (self.nbytes(), limit(&self.meta));
        match size > most {
            true => Err(Error::file(
                path,
                format!(
                    "{:.2} MiB of tensors; a {} pack has at most {:.0} MiB: lower the ranks, choose fewer slices, or use --profile heavy",
                    size as f64 / 1_048_576.0,
                    self.meta.profile.name(),
                    most as f64 / 1_048_576.0
                ),
            )),
            false => Ok(()),
        }
    }

    /// The bytes of `pack.safetensors`, the same for the same pack.
    ///
    /// # Errors
    /// When the tensors cannot be written in the format.
    pub fn tensor_bytes(&self) -> Result<Vec<u8>> {
        use safetensors::tensor::TensorView;
        let mut parts: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (key, a) in &self.adapters {
            for (name, m) in [("A", &a.a), ("B", &a.b)] {
                let bytes = m.data.iter().flat_map(|x| x.to_le_bytes()).collect();
                parts.push((format!("{key}.lora.{name}"), safetensors::Dtype::F16, vec![m.rows, m.cols], bytes));
            }
            parts.push((format!("{key}.lora.alpha"), safetensors::Dtype::F32, vec![], a.alpha.to_le_bytes().to_vec()));
            if let Some(m) = &a.magnitude {
                let bytes = m.iter().flat_map(|x| x.to_le_bytes()).collect();
                parts.push((format!("{key}.lora.magnitude"), safetensors::Dtype::F32, vec![m.len()], bytes));
            }
        }
        let wrong = |e: safetensors::SafeTensorError| Error::Other(format!("the pack cannot be written: {e}"));
        let mut views = Vec::with_capacity(parts.len());
        for (name, dtype, shape, bytes) in &parts {
            views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(wrong)?));
        }
        safetensors::serialize(views, None).map_err(wrong)
    }

    /// Writes the pack into a directory that exists (see [`super::store::Store::put`], which is atomic).
    ///
    /// # Errors
    /// When a file cannot be written, or the pack is too large for its profile.
    pub fn write(&self, dir: &Path) -> Result<()> {
        self.check_size(&dir.join(TENSORS))?;
        let meta = serde_json::to_vec_pretty(&self.meta).map_err(|e| Error::Other(e.to_string()))?;
        for (name, bytes) in [(TENSORS, self.tensor_bytes()?), (META, meta)] {
            let path = dir.join(name);
            std::fs::write(&path, bytes).map_err(FileError::at("writing", &path))?;
        }
        Ok(())
    }
}

/// Reads `meta.json` alone, without a look at the tensors.
///
/// # Errors
/// When it is missing, damaged, or lacks a field.
pub fn read_meta(dir: &Path) -> Result<Meta> {
    let path = dir.join(META);
    let bytes = atomic::read_bounded(&path, MAX_META).map_err(FileError::at("reading", &path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(&path, format!("is no metadata of a pack: {e}")))
}

/// The rules that metadata keep without a look at the tensors.
pub(super) fn check_meta(meta: &Meta, path: &Path) -> Result<()> {
    let bad = |reason: String| Err(Error::file(path, reason));
    let upstream = meta.version == UPSTREAM_VERSION;
    if !upstream && meta.version != VERSION {
        return bad(format!(
            "version {} of the pack schema; this program reads {UPSTREAM_VERSION} and {VERSION}: use a newer plastic-host",
            meta.version
        ));
    }
    if meta.rank_map.is_empty() {
        return bad("the rank_map is empty: the pack has no adapters; train it again".into());
    }
    for (key, rank) in &meta.rank_map {
        if key::to_slice(key).is_none() {
            return bad(format!("rank_map names {key}; expected keys such as blocks.0.attn.q_proj"));
        }
        let Some(alpha) = meta.alpha_map.get(key) else {
            return bad(format!("alpha_map has no entry for {key}, which rank_map names"));
        };
        if !alpha.is_finite() || *alpha < 0.0 {
            return bad(format!("alpha_map gives {key} an alpha of {alpha}; expected a finite number, 0 or more"));
        }
        if upstream && !meta.profile.ladder().contains(rank) {
            return bad(format!(
                "{key} has rank {rank}; a {} pack of version {UPSTREAM_VERSION} has ranks of {:?}",
                meta.profile.name(),
                meta.profile.ladder()
            ));
        }
        if upstream && *alpha != 0.0 && (alpha - 2.0 * f64::from(*rank)).abs() > 1e-6 * alpha.abs().max(1.0) {
            return bad(format!(
                "{key} has rank {rank} and alpha {alpha}; in version {UPSTREAM_VERSION} alpha is 0 or twice the rank"
            ));
        }
        if *rank > 65_536 {
            return bad(format!("{key} has rank {rank}, more than any slice has"));
        }
    }
    match meta.alpha_map.keys().find(|k| !meta.rank_map.contains_key(*k)) {
        Some(key) => bad(format!("alpha_map names {key}, which rank_map does not")),
        None => Ok(()),
    }
}

/// The tensors of a file that are not taken yet.
struct Tensors<'a> {
    path: &'a Path,
    header: BTreeMap<String, TensorInfo>,
    data: &'a [u8],
    /// Whether the pack is of version 0.1.0.
    upstream: bool,
}

impl Tensors<'_> {
    fn bad(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::tensor(self.path, name, reason)
    }

    fn take(&mut self, name: &str, dtype: &str, dims: usize) -> Result<(Vec<usize>, &[u8])> {
        let info = self.header.remove(name).ok_or_else(|| self.bad(name, "is missing; the pack is incomplete"))?;
        if info.dtype != dtype || info.shape.len() != dims {
            let reason = format!("is {} {:?}; expected {dtype} of {dims} dimensions", info.dtype, info.shape);
            return Err(self.bad(name, reason));
        }
        let bytes = self.data.get(info.begin as usize..info.end as usize);
        Ok((info.shape, bytes.ok_or_else(|| Error::tensor(self.path, name, "lies beyond the end of the file"))?))
    }

    fn matrix(&mut self, name: &str) -> Result<Matrix> {
        let (shape, bytes) = self.take(name, "F16", 2)?;
        // Little-endian in the file, as on every machine this program runs on; one copy, ten times as fast as one by one.
        let bits: Vec<u16> = bytemuck::pod_collect_to_vec(bytes);
        let data: Vec<f16> = bits.reinterpret_into();
        let matrix = Matrix { rows: shape[0], cols: shape[1], data };
        if !matrix.largest().is_finite()
            && let Some((at, x)) = matrix.data.iter().enumerate().find(|(_, x)| !x.is_finite())
        {
            let reason = format!("holds {x} at element {at}: the pack is damaged; train or fetch it again");
            return Err(self.bad(name, reason));
        }
        Ok(matrix)
    }

    fn floats(&mut self, name: &str, dims: usize) -> Result<Vec<f32>> {
        let (_, bytes) = self.take(name, "F32", dims)?;
        let data: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        match data.iter().find(|x| !x.is_finite()) {
            Some(x) => Err(self.bad(name, format!("holds {x}: the pack is damaged; train or fetch it again"))),
            None => Ok(data),
        }
    }

    fn adapter(&mut self, key: &str, rank: usize, alpha: Option<f64>) -> Result<Adapter> {
        let [at_a, at_b, at_alpha, at_m] = ["A", "B", "alpha", "magnitude"].map(|part| format!("{key}.lora.{part}"));
        let (a, b) = (self.matrix(&at_a)?, self.matrix(&at_b)?);
        for (name, found) in [(&at_a, a.cols), (&at_b, b.rows)] {
            if found != rank {
                return Err(self.bad(name, format!("has {found} components; meta.json says {rank}")));
            }
        }
        let stored = self.floats(&at_alpha, 0)?.first().copied().unwrap_or_default();
        let stated = alpha.unwrap_or_default();
        // How mlx-plastic-rank's packs are put out of work: the metadata says 0. It counts, whatever the tensor says.
        let off = self.upstream && stated == 0.0;
        if off && stored != 0.0 {
            tracing::warn!(
                "{}: `{at_alpha}` is {stored}, but meta.json says 0: {key} does nothing",
                self.path.display()
            );
        }
        let stored = if off { 0.0 } else { stored };
        if (f64::from(stored) - stated).abs() > 1e-6 * stated.abs().max(1.0) {
            return Err(self.bad(&at_alpha, format!("is {stored}; meta.json says {stated}")));
        }
        let magnitude = match self.header.contains_key(&at_m) {
            false => None,
            true => Some(self.floats(&at_m, 1)?),
        };
        if let Some(m) = magnitude.as_ref().filter(|m| m.len() != a.rows) {
            return Err(self.bad(&at_m, format!("has {} entries; the adapter has {} outputs", m.len(), a.rows)));
        }
        let adapter = Adapter { a, b, alpha: stored, magnitude };
        // What an adapter can add to one entry of its slice.
        let largest = |m: &Matrix| m.largest().to_f64();
        let most = f64::from(stored) * largest(&adapter.a) * largest(&adapter.b);
        if most > f64::from(f32::MAX) {
            let reason =
                format!("is {stored:e}, which makes the update overflow: the pack is damaged; train or fetch it again");
            return Err(self.bad(&at_alpha, reason));
        }
        Ok(adapter)
    }
}
