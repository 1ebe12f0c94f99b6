//! A checkpoint with packs folded into its weights, as mlx-lm loads it.
//!
//! A slice that packs change is rebuilt: dequantised, changed, and quantised again, which moves every weight of it to
//! a new grid. A small update can drown in that, so each slice is measured first: what share of the update survives
//! (the projection of what was stored onto it) and how large the error is beside it. Slices may be raised to 8 bits
//! or to floats, which `config.json` then says module by module. Everything else is copied byte for byte, and the
//! base is only read.
//!
//! Fails where the base cannot be read, MLX fails, or the new directory cannot be written; it is there whole or not.

use super::attach::Attachment;
use super::error::{Error, Result};
use crate::atomic::{FileError, Lock, Staged};
use crate::mlx::quant::{Mode, Packed, Scheme};
use crate::mlx::{self, Array, Context, Dtype};
use crate::model::checkpoint::Checkpoint;
use crate::model::safetensors::read_header;
use crate::model::tensor_file::{self, Tensor, by_place, copied, of_array, of_packed};
use crate::model::{Added, Model, awake};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Most bytes of a text file of a checkpoint.
const MAX_TEXT: u64 = 256 << 20;

/// How the slices that change are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Bits {
    /// As the base has them
    #[default]
    Keep,
    /// With 8 bits, where the base has fewer
    #[value(name = "8")]
    Eight,
    /// As floats: those of the base's scales, or float32 where the base has floats already
    Dense,
}

/// What becomes of one slice.
#[derive(Clone, Debug, Serialize)]
pub struct Fate {
    /// The slice.
    pub slice: String,
    /// How the base stores it.
    pub from: String,
    /// How it is stored then.
    pub to: String,
    /// Size of the update beside the weight, in the Frobenius norm.
    pub update: f64,
    /// Share of the update that survives: the projection onto it of what is stored. 1 is all of it.
    pub kept: f64,
    /// Error of what is stored, beside the size of the update.
    pub error: f64,
}

impl Fate {
    /// Whether enough of the update survives.
    pub fn holds(&self, least: f64) -> bool {
        self.kept >= least
    }

    /// Whether storing it moves the slice by more than the update does: the base alone is nearer then.
    pub fn drowns(&self) -> bool {
        self.error > 1.0
    }
}

/// What a slice is stored as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Packed(Scheme, Dtype),
    Float(Dtype),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Packed(s, _) => write!(f, "{s}"),
            Target::Float(d) => f.write_str(match d {
                Dtype::Float16 => "float16",
                Dtype::Bfloat16 => "bfloat16",
                _ => "float32",
            }),
        }
    }
}

/// Packs folded into a base.
pub struct Fusion<'a> {
    model: &'a Model,
    checkpoint: Checkpoint,
    dir: &'a Path,
    attachment: &'a Attachment,
    bits: Bits,
}

impl<'a> Fusion<'a> {
    /// Of what packs add to the base in `dir`, of which `model` was loaded.
    ///
    /// # Errors
    /// When the base cannot be read, or stores a slice that changes as components.
    pub fn new(model: &'a Model, dir: &'a Path, attachment: &'a Attachment, bits: Bits) -> Result<Fusion<'a>> {
        if awake::recorded(dir)?.is_some() {
            return Err(Error::file(
                dir,
                "is an elastic checkpoint, which packs cannot be folded into; fuse them into its base, and compress that",
            ));
        }
        if let Some((i, _)) = attachment.iter().find(|(i, _)| model.is_pivoted(*i)) {
            let name = &model.slices()[i].name;
            let reason = format!(
                "stores {name} pivoted, and a pack is folded into weights; write those first with `plastic-host export --materialise`"
            );
            return Err(Error::file(dir, reason));
        }
        Ok(Fusion { model, checkpoint: Checkpoint::open(dir)?, dir, attachment, bits })
    }

    /// What becomes of every slice that changes; `progress` is told how many are done, and of how many.
    ///
    /// # Errors
    /// When MLX fails.
    pub fn measure(&self, progress: &mut dyn FnMut(usize, usize)) -> Result<Vec<Fate>> {
        let all: Vec<(usize, &Added)> = self.attachment.iter().collect();
        let mut fates = Vec::with_capacity(all.len());
        for (done, (slice, added)) in all.iter().enumerate() {
            progress(done, all.len());
            if let Some((fate, _)) = self.slice(*slice, added)? {
                fates.push(fate);
            }
        }
        Ok(fates)
    }

    /// How the base stores a slice.
    fn stored(&self, slice: usize) -> Target {
        let name = &self.model.slices()[slice].name;
        let dtype = |part: &str| match self.checkpoint.info(&format!("{name}.{part}")).map(|i| i.dtype.as_str()) {
            Some("F16") => Dtype::Float16,
            Some("F32") => Dtype::Float32,
            // Floating-point modes dequantise to this.
            _ => Dtype::Bfloat16,
        };
        match self.model.scheme(slice) {
            Some(scheme) => Target::Packed(scheme, dtype("scales")),
            None => Target::Float(dtype("weight")),
        }
    }

    fn target(&self, slice: usize) -> Target {
        match (self.bits, self.stored(slice)) {
            (Bits::Dense, Target::Packed(_, dtype)) => Target::Float(dtype),
            (Bits::Dense, Target::Float(_)) => Target::Float(Dtype::Float32),
            (_, Target::Float(dtype)) => Target::Float(dtype),
            (bits, Target::Packed(s, dtype)) => {
                let least = if bits == Bits::Eight { 8 } else { 0 };
                // MLX quantises anew in its affine mode, in groups of 32 at least.
                let group_size = if s.mode == Mode::Affine { s.group_size } else { 32 };
                Target::Packed(Scheme { group_size, bits: s.bits.max(least), mode: Mode::Affine }, dtype)
            }
        }
    }

    /// The new tensors of a slice and what became of the update; `None` where there is no update.
    fn slice(&self, slice: usize, added: &Added) -> Result<Option<(Fate, Vec<Tensor>)>> {
        let what = "fusing a slice";
        let name = &self.model.slices()[slice].name;
        let w = self.model.dense_weight(slice)?;
        let product = added.factors.a.matmul(&added.factors.b).context(what)?;
        let mut fused = w.add(&product).context(what)?;
        if let Some(gain) = &added.gain {
            fused = fused.multiply(gain.reshape(&[-1, 1])?).context(what)?;
        }
        let delta = fused.subtract(&w).context(what)?;
        let size = inner(&delta, &delta)?.sqrt();
        if size == 0.0 {
            return Ok(None);
        }
        if !size.is_finite() {
            return Err(Error::Other(format!("{name}: the update is not finite; a pack is damaged")));
        }
        let target = self.target(slice);
        let (tensors, restored) = encode(name, &fused, target)?;
        let moved = restored.subtract(&w).context(what)?;
        let off = restored.subtract(&fused).context(what)?;
        let fate = Fate {
            slice: name.clone(),
            from: self.stored(slice).to_string(),
            to: target.to_string(),
            update: size / inner(&w, &w)?.sqrt().max(f64::MIN_POSITIVE),
            kept: inner(&moved, &delta)? / (size * size),
            error: inner(&off, &off)?.sqrt() / size,
        };
        Ok(Some((fate, tensors)))
    }

    /// Writes the checkpoint to `out`. `check` sees the finished directory before it is moved to its place.
    ///
    /// # Errors
    /// When something is in the way, a file cannot be read or written, or `check` says no.
    pub fn write<T>(
        &self,
        out: &Path,
        force: bool,
        progress: &mut dyn FnMut(usize, usize),
        check: impl FnOnce(&Path) -> Result<T>,
    ) -> Result<T> {
        free(out, self.dir, force)?;
        let lock = Lock::try_of_directory(out)?;
        let _lock = lock.ok_or_else(|| {
            Error::Name(format!("{}: is being written by another process; wait for it to end", out.display()))
        })?;
        let staged = Staged::new(out)?;
        let mut map = BTreeMap::new();
        let mut total = 0;
        let (mut overrides, mut rebuilt) = (BTreeMap::new(), BTreeMap::new());
        let every = self.attachment.iter().count();
        for file in self.checkpoint.files() {
            let mut tensors = Vec::new();
            for (name, info) in by_place(read_header(file)?) {
                let module = name.rsplit_once('.').map_or("", |(module, _)| module);
                let changed = self.attachment.iter().find(|(i, _)| self.model.slices()[*i].name == module);
                let Some((slice, added)) = changed.filter(|_| !name.ends_with(".bias")) else {
                    tensors.push(copied(file, name, &info)?);
                    continue;
                };
                // All new tensors of a slice are written where the first of its old ones lay.
                let rebuilt = match rebuilt.get(&slice) {
                    Some(known) => *known,
                    None => {
                        progress(rebuilt.len(), every);
                        let new = self.slice(slice, added)?;
                        rebuilt.insert(slice, new.is_some());
                        if new.is_some() && self.target(slice) != self.stored(slice) {
                            overrides.insert(module.to_owned(), self.target(slice));
                        }
                        let changes = new.is_some();
                        tensors.extend(new.into_iter().flat_map(|(_, parts)| parts));
                        changes
                    }
                };
                if !rebuilt {
                    tensors.push(copied(file, name, &info)?);
                }
            }
            let shard = file.file_name().unwrap_or_default();
            tensor_file::write(&staged.path().join(shard), &[("format", "mlx".into())], &tensors)?;
            total += tensors.iter().map(Tensor::nbytes).sum::<u64>();
            map.extend(tensors.into_iter().map(|t| (t.name, shard.to_string_lossy().into_owned())));
        }
        self.texts(staged.path(), &overrides, &map, total)?;
        let answer = check(staged.path())?;
        staged.commit()?;
        Ok(answer)
    }

    /// Configuration, index, and every text of the base that is neither.
    fn texts(
        &self,
        to: &Path,
        overrides: &BTreeMap<String, Target>,
        map: &BTreeMap<String, String>,
        total: u64,
    ) -> Result<()> {
        let (config, index) = ("config.json", "model.safetensors.index.json");
        let read = |name: &str| -> Result<Value> {
            let path = self.dir.join(name);
            let bytes = crate::atomic::read_bounded(&path, MAX_TEXT).map_err(FileError::at("reading", &path))?;
            serde_json::from_slice(&bytes).map_err(|e| Error::file(&path, format!("is not valid JSON ({e})")))
        };
        let write = |name: &str, value: &Value| -> Result<()> {
            let path = to.join(name);
            let bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::Other(e.to_string()))?;
            Ok(std::fs::write(&path, bytes).map_err(FileError::at("writing", &path))?)
        };
        let mut settings = read(config)?;
        for field in ["quantization", "quantization_config"] {
            let Some(q) = settings.get_mut(field).and_then(Value::as_object_mut) else { continue };
            for (module, target) in overrides {
                let value = match target {
                    Target::Packed(s, _) => {
                        json!({ "group_size": s.group_size, "bits": s.bits, "mode": s.mode.name() })
                    }
                    Target::Float(_) => false.into(),
                };
                q.insert(module.clone(), value);
            }
        }
        write(config, &settings)?;
        if self.dir.join(index).is_file() {
            let mut old = read(index)?;
            old["metadata"]["total_size"] = total.into();
            old["weight_map"] = json!(map);
            write(index, &old)?;
        }
        tensor_file::copy_texts(self.dir, to)?;
        Ok(())
    }
}

/// That `out` may be written: not there, empty, or with `force` another checkpoint, but never the base.
///
/// # Errors
/// When it may not.
pub fn free(out: &Path, base: &Path, force: bool) -> Result<()> {
    let real = |p: &Path| p.canonicalize().ok();
    if real(out).is_some() && real(out) == real(base) {
        return Err(Error::file(out, "is the base itself, which is never changed; name another directory"));
    }
    let within = |inner: &Path| inner.ancestors().filter(|a| !a.as_os_str().is_empty()).find_map(real);
    let place = std::path::absolute(out).ok().and_then(|p| within(&p));
    if let (Some(place), Some(base)) = (place, real(base))
        && place.starts_with(&base)
    {
        return Err(Error::file(
            out,
            "lies in the directory of the base, which is never changed; name another directory",
        ));
    }
    let empty = std::fs::read_dir(out).is_ok_and(|mut d| d.next().is_none());
    if out.symlink_metadata().is_err() || empty {
        return Ok(());
    }
    match (out.join("config.json").is_file(), force) {
        (true, true) => Ok(()),
        (true, false) => {
            Err(Error::file(out, "holds a checkpoint; name another directory, or replace it with --force"))
        }
        (false, _) => Err(Error::file(out, "is there and is no checkpoint; name another directory")),
    }
}

/// A weight [rows, cols] float32 as tensors of a checkpoint, and what they restore.
fn encode(name: &str, w: &Array, target: Target) -> Result<(Vec<Tensor>, Array)> {
    let what = "quantising a fused slice";
    match target {
        Target::Float(dtype) => {
            let stored = w.as_dtype(dtype).context(what)?;
            let restored = stored.as_dtype(Dtype::Float32).context(what)?;
            Ok((vec![of_array(format!("{name}.weight"), &stored)?], restored))
        }
        Target::Packed(scheme, dtype) => {
            let packed = Packed::affine(w, scheme.bits, scheme.group_size, dtype)?;
            Ok((of_packed(name, &packed, dtype)?, packed.dequantize()?))
        }
    }
}

/// Sum over all elements of a product; rows by MLX, their sum in float64.
fn inner(x: &Array, y: &Array) -> Result<f64> {
    let rows = x.multiply(y).and_then(|p| p.sum_axis(1, false)).context("measuring a fused slice")?;
    mlx::eval([&rows])?;
    let rows = rows.try_as_slice::<f32>().map_err(|e| Error::Other(format!("a sum cannot be read: {e}")))?;
    Ok(rows.iter().map(|x| f64::from(*x)).sum())
}
