//! From the tensors of a checkpoint to the weights of a decoder, every one compared with the configuration.
//!
//! What is checked at load: that every tensor the configuration calls for is there, has the shape it
//! calls for and a type that is supported; that there are no others; and that every float in the
//! checkpoint is finite. The last needs the numbers, so all tensors are read at load: what comes later
//! cannot fail for want of the file. Norms are widened to float32, which is exact,
//! so that activations and dequantised weights are float32 whatever the checkpoint uses.

use super::checkpoint::Checkpoint;
use super::config::{Config, check_scheme};
use super::error::{Error, Result};
use super::finite::{first_bad, first_bad_code};
use super::ladder::{self, Ladder, Level, Levels, Vectors};
use super::linear::{Linear, Stored, Weight};
use super::pivot::Pivoted;
use crate::mlx::quant::{Mode, Packed, Scheme};
use crate::mlx::{self, Array, Dtype};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

/// Takes tensors out of a checkpoint by name, shape in hand.
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    arrays: HashMap<String, Array>,
    used: RefCell<BTreeSet<String>>,
    levels: Levels,
    parked: bool,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, config: &'a Config) -> Result<Self> {
        let arrays = checkpoint.arrays()?;
        let (used, levels) = (RefCell::default(), Levels::new());
        Ok(Weights { checkpoint, config, arrays, used, levels, parked: false })
    }

    /// Wakes so much of slices stored as components; with `parked` the rest of them is loaded too.
    pub(crate) fn at(self, levels: Levels, parked: bool) -> Self {
        Weights { levels, parked, ..self }
    }

    /// Whether the checkpoint has the tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.info(name).is_some()
    }

    /// A vector of floats [n], widened to float32.
    pub(crate) fn vector(&self, name: &str, n: usize) -> Result<Array> {
        let v = self.floats(name, &[n])?.as_dtype(Dtype::Float32)?;
        self.finite(name, &v)?;
        Ok(v)
    }

    /// The projection `module` [rows, cols], with its bias when there should be one.
    pub(crate) fn linear(&self, module: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear> {
        let bias = bias.then(|| self.vector(&format!("{module}.bias"), rows)).transpose()?;
        if self.has(&format!("{module}.pivot.rows")) {
            let stored = Stored::Pivoted(self.pivoted(module, rows, cols)?);
            return Ok(Linear::new(Weight::new(stored, rows, cols), bias));
        }
        let kind = ["ladder", "repair"].into_iter().find(|k| {
            let a = format!("{module}.{k}.a");
            self.has(&a) || self.has(&format!("{a}.weight"))
        });
        let Some(kind) = kind else {
            return match self.levels.get(module) {
                Some(level @ Level::Rank(1..)) => Err(self.unavailable(module, *level, 0)),
                _ => Ok(Linear::new(self.matrix(module, rows, cols)?, bias)),
            };
        };
        let repairs = kind == "repair";
        let [a, b] = ["a", "b"].map(|side| format!("{module}.{kind}.{side}"));
        let stored = self.components(&a)?;
        let has_dense = !repairs && self.has(&format!("{module}.weight"));
        let level = match self.levels.get(module) {
            Some(level) => *level,
            None if has_dense => Level::Dense,
            None => Level::Rank(stored),
        };
        let awake = match level {
            Level::Dense if has_dense => None,
            Level::Rank(r) if r <= stored => Some(r),
            level => return Err(self.unavailable(module, level, stored)),
        };
        // What sleeps is read only where it may be woken.
        let loaded = if self.parked { stored } else { awake.unwrap_or(0) };
        let part = |name: &str, width: usize| -> Result<Vectors> {
            let all = if self.has(name) {
                Vectors::Float(self.floats(name, &[stored as usize, width])?)
            } else {
                let scheme = self.inferred(name, stored as usize, width)?;
                Vectors::Packed(self.packed(name, stored as usize, width, scheme)?)
            };
            let first = if loaded == stored { all } else { all.first(loaded as i32)?.contiguous()? };
            if let Vectors::Float(a) = &first
                && loaded > 0
            {
                self.finite(name, a)?;
            }
            Ok(first)
        };
        let ladder = Ladder::new(part(&a, rows)?, part(&b, cols)?, repairs);
        let weight = match repairs || (has_dense && (self.parked || awake.is_none())) {
            true => self.matrix(module, rows, cols)?,
            false => {
                for part in ["weight", "scales", "biases"].map(|p| format!("{module}.{p}")) {
                    self.used.borrow_mut().insert(part);
                }
                Weight::new(Stored::Absent, rows, cols)
            }
        };
        let mut linear = Linear::new(weight, bias).with_ladder(Some(ladder));
        linear.set_level(level)?;
        Ok(linear)
    }

    /// The slice `module` [rows, cols] stored as rows of its own and coefficients.
    fn pivoted(&self, module: &str, rows: usize, cols: usize) -> Result<Pivoted> {
        let [index, basis, coefficients] = ["rows", "basis", "coefficients"].map(|p| format!("{module}.pivot.{p}"));
        let rank = self.checkpoint.info(&index).and_then(|i| i.shape.first()).copied().unwrap_or(0);
        if rank == 0 || rank >= rows || rank > cols {
            return Err(self.bad(&index, format!("names {rank} rows of a slice [{rows}, {cols}]; export it again")));
        }
        let picked = self.typed(&index, &[rank], &["I32"])?;
        mlx::eval([&picked])?;
        let picked = picked.try_as_slice::<i32>().map_err(|e| self.bad(&index, format!("cannot be read: {e}")))?;
        let part = |name: &str, r: usize, c: usize| -> Result<Array> {
            let a = self.floats_or_packed(name, r, c)?;
            self.finite(name, &a)?;
            Ok(a)
        };
        let (p, c) = (part(&basis, rank, cols)?, part(&coefficients, rows - rank, rank)?);
        Pivoted::new(p, c, picked)
            .map_err(|why| self.bad(&index, format!("{why}: the checkpoint is damaged; export it again")))
    }

    /// How many components a ladder has, by the tensor `name` or its codes.
    fn components(&self, name: &str) -> Result<u32> {
        let info = self.checkpoint.info(name).or_else(|| self.checkpoint.info(&format!("{name}.weight")));
        let rank = info.and_then(|i| i.shape.first()).filter(|r| **r < i32::MAX as usize);
        rank.map(|r| *r as u32).ok_or_else(|| self.bad(name, "has no components; compress the base again"))
    }

    fn unavailable(&self, module: &str, level: Level, stored: u32) -> Error {
        let asked = match level {
            Level::Dense => "the dense slice".to_owned(),
            Level::Rank(r) => format!("{r} components"),
        };
        Error::file(
            &self.checkpoint.dir().join(ladder::MANIFEST),
            format!(
                "calls for {asked} of {module}, of which {stored} components are stored: the file and the weights do not belong together; compress the base again"
            ),
        )
    }

    /// A matrix [rows, cols] stored as floats or quantised, widened to float32; unevaluated.
    fn floats_or_packed(&self, name: &str, rows: usize, cols: usize) -> Result<Array> {
        if self.has(name) {
            return Ok(self.floats(name, &[rows, cols])?.as_dtype(Dtype::Float32)?);
        }
        let scheme = self.inferred(name, rows, cols)?;
        Ok(self.packed(name, rows, cols, scheme)?.dequantize()?.as_dtype(Dtype::Float32)?)
    }

    /// The matrix `module.weight` [rows, cols] in whatever form it has.
    pub(crate) fn matrix(&self, module: &str, rows: usize, cols: usize) -> Result<Weight> {
        let name = format!("{module}.weight");
        let stored = match self.scheme(module, rows, cols)? {
            Some(scheme) => Stored::Packed(self.packed(module, rows, cols, scheme)?),
            None => {
                let w = self.floats(&name, &[rows, cols])?;
                self.finite(&name, &w)?;
                Stored::Float(w)
            }
        };
        Ok(Weight::new(stored, rows, cols))
    }

    /// Refuses tensors that nothing asked for: then the configuration describes another model.
    pub(crate) fn no_others(&self, tied: bool) -> Result<()> {
        let used = self.used.borrow();
        // mlx-lm drops these too: tables that are computed, and the spare head of a tied model.
        let harmless = |n: &str| n.contains("rotary_emb.inv_freq") || (tied && n.starts_with("lm_head."));
        let others: Vec<&str> = self.checkpoint.names().filter(|n| !used.contains(*n) && !harmless(n)).collect();
        let Some(first) = others.first() else { return Ok(()) };
        let more = match others.len() {
            1 => String::new(),
            n => format!(" (and {} more: {}{})", n - 1, others[1..n.min(4)].join(", "), if n > 4 { ", …" } else { "" }),
        };
        Err(Error::tensor(
            self.checkpoint.file_of(first),
            *first,
            format!(
                "does not belong to a {} model as config.json describes it{more}; check model_type, num_hidden_layers, tie_word_embeddings and the bias fields",
                self.config.model_type
            ),
        ))
    }

    fn bad(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::tensor(self.checkpoint.file_of(name), name, reason)
    }

    /// The tensor, its shape checked, unevaluated.
    fn take(&self, name: &str, shape: &[usize]) -> Result<Array> {
        let info = self
            .checkpoint
            .info(name)
            .ok_or_else(|| self.bad(name, format!("is missing; config.json calls for shape {shape:?}")))?;
        if info.shape != shape {
            return Err(self.bad(name, format!("has shape {:?}; config.json calls for {shape:?}", info.shape)));
        }
        self.used.borrow_mut().insert(name.to_owned());
        self.arrays.get(name).cloned().ok_or_else(|| self.bad(name, "was not loaded by MLX"))
    }

    fn typed(&self, name: &str, shape: &[usize], supported: &[&str]) -> Result<Array> {
        let array = self.take(name, shape)?;
        match self.checkpoint.info(name) {
            Some(i) if !supported.contains(&i.dtype.as_str()) => {
                Err(self.bad(name, format!("has type {}; supported here: {}", i.dtype, supported.join(", "))))
            }
            _ => Ok(array),
        }
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Array> {
        self.typed(name, shape, &["F32", "F16", "BF16"])
    }

    fn finite(&self, name: &str, a: &Array) -> Result<()> {
        mlx::eval([a])?;
        match first_bad(a)? {
            None => Ok(()),
            Some((at, x)) => {
                Err(self.bad(name, format!("holds {x} at element {at}: the checkpoint is damaged; fetch it again")))
            }
        }
    }

    fn packed(&self, module: &str, rows: usize, cols: usize, scheme: Scheme) -> Result<Packed> {
        let [weight, scales, biases] = ["weight", "scales", "biases"].map(|p| format!("{module}.{p}"));
        let groups = cols / scheme.group_size as usize;
        let codes = self.typed(&weight, &[rows, cols * scheme.bits as usize / 32], &["U32"])?;
        if scheme.mode != Mode::Affine {
            let s = self.typed(&scales, &[rows, groups], &["U8"])?;
            mlx::eval([&codes, &s])?;
            let bad = |name: &str, at| {
                self.bad(name, format!("holds a NaN code at byte {at}: the checkpoint is damaged; fetch it again"))
            };
            // e8m0 scales have one NaN, e4m3 codes and scales two.
            match (scheme.mode, first_bad_code(&s, scheme.mode == Mode::Nvfp4)?) {
                (_, Some(at)) => return Err(bad(&scales, at)),
                (Mode::Mxfp8, None) => {
                    if let Some(at) = first_bad_code(&codes, true)? {
                        return Err(bad(&weight, at));
                    }
                }
                _ => {}
            }
            return Ok(Packed { codes, scales: s, biases: None, scheme });
        }
        let mut parts = Vec::with_capacity(2);
        for name in [&scales, &biases] {
            let a = self.floats(name, &[rows, groups])?;
            self.finite(name, &a)?;
            parts.push(a);
        }
        mlx::eval([&codes])?;
        let biases = parts.pop();
        let scales = parts.pop().ok_or_else(|| self.bad(&scales, "is missing"))?;
        Ok(Packed { codes, scales, biases, scheme })
    }

    /// How `module` is quantised, or `None`: what config.json says of this module, else (as mlx-lm
    /// does) what the shapes of codes and scales say, since the global entry is wrong in mixed checkpoints.
    fn scheme(&self, module: &str, rows: usize, cols: usize) -> Result<Option<Scheme>> {
        let q = &self.config.quantization;
        let scheme = match q.overrides.get(module) {
            Some(None) => return Ok(None),
            Some(Some(s)) => *s,
            None => match self.checkpoint.info(&format!("{module}.scales")) {
                None => return Ok(None),
                Some(_) if q.global.is_none() => {
                    return Err(self.bad(&format!("{module}.scales"), "is there but config.json has no `quantization`"));
                }
                Some(_) => self.inferred(module, rows, cols)?,
            },
        };
        let (group, bits) = (scheme.group_size as usize, scheme.bits as usize);
        if !cols.is_multiple_of(group) || !(cols * bits).is_multiple_of(32) {
            let name = format!("{module}.weight");
            return Err(self.bad(&name, format!("has {cols} columns, which do not divide into {scheme}")));
        }
        Ok(Some(scheme))
    }

    fn inferred(&self, module: &str, rows: usize, cols: usize) -> Result<Scheme> {
        let [weight, scales] = ["weight", "scales"].map(|p| format!("{module}.{p}"));
        let missing = || self.bad(&weight, format!("is missing; config.json calls for a matrix [{rows}, {cols}]"));
        let w = self.checkpoint.info(&weight).ok_or_else(missing)?;
        let s = self.checkpoint.info(&scales).ok_or_else(missing)?;
        let contradiction = || {
            self.bad(&weight, format!(
                "has shape {:?} with scales {:?}; config.json calls for [{rows}, {cols}] in a quantisation that MLX loads",
                w.shape, s.shape
            ))
        };
        let ([r, words], [sr, groups]) = (w.shape.as_slice(), s.shape.as_slice()) else { return Err(contradiction()) };
        if *r != rows
            || *sr != rows
            || *groups == 0
            || !cols.is_multiple_of(*groups)
            || !(words * 32).is_multiple_of(cols)
        {
            return Err(contradiction());
        }
        let (group_size, bits) = ((cols / groups) as u32, (words * 32 / cols) as u32);
        let mode = match (s.dtype.as_str(), bits, group_size) {
            ("U8", 4, 16) => Mode::Nvfp4,
            ("U8", 4, 32) => Mode::Mxfp4,
            ("U8", 8, 32) => Mode::Mxfp8,
            ("U8", ..) => return Err(contradiction()),
            _ => Mode::Affine,
        };
        let scheme = Scheme { group_size, bits, mode };
        check_scheme(scheme).map_err(|why| {
            self.bad(
                &weight,
                format!(
                    "has shape {:?} with scales {:?}, for [{rows}, {cols}] that is {scheme}: {why}",
                    w.shape, s.shape
                ),
            )
        })?;
        Ok(scheme)
    }
}
