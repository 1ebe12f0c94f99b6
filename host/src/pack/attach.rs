//! Packs on a model: checked whole before the first slice is touched, attached all or nothing, and taken off
//! without a trace.
//!
//! A slice computes `y = W x + (x Bᵀ) Aᵀ`, scale and weight folded into A; several packs lie side by side in one A
//! and one B. A DoRA adapter multiplies the outputs by `m / ‖W + s A B‖`, row by row (Liu et al. 2024, eq. 5),
//! which does not add up with another pack on the same slice and is refused there.

use super::error::{Error, Result};
use super::format::{Adapter, Pack};
use super::key;
use crate::mlx::{self, Array, Context};
use crate::model::{Added, Factors, Model, awake, layout};
use std::collections::BTreeMap;
use std::path::Path;

/// What packs add to the slices of a model, ready to attach.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// By position of the slice.
    added: BTreeMap<usize, Added>,
}

impl Attachment {
    /// Bytes in memory.
    pub fn nbytes(&self) -> u64 {
        self.added.values().map(Added::nbytes).sum()
    }

    /// What is added to each slice that changes, by position.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Added)> {
        self.added.iter().map(|(i, a)| (*i, a))
    }

    /// What is added to the slice at a position.
    pub fn added(&self, position: usize) -> Option<&Added> {
        self.added.get(&position)
    }

    /// Positions of the slices that change.
    pub fn slices(&self) -> impl Iterator<Item = usize> + '_ {
        self.added.keys().copied()
    }
}

impl FromIterator<(usize, Added)> for Attachment {
    fn from_iter<T: IntoIterator<Item = (usize, Added)>>(added: T) -> Attachment {
        Attachment { added: added.into_iter().collect() }
    }
}

/// Checks packs against a model and makes what they add to it. Nothing is attached yet.
///
/// # Errors
/// When an adapter names a slice that the model does not have or does not fit it, or DoRA meets another pack.
pub fn prepare(model: &Model, packs: &[(&Pack, f32)]) -> Result<Attachment> {
    let mut by_slice: BTreeMap<usize, Vec<(&Pack, &Adapter, f32)>> = BTreeMap::new();
    for (pack, weight) in packs {
        for (key, adapter) in &pack.adapters {
            by_slice.entry(position(model, pack.name(), key, adapter)?).or_default().push((pack, adapter, *weight));
        }
    }
    let mut added = BTreeMap::new();
    for (position, adapters) in by_slice {
        let name = &model.slices()[position].name;
        let one = match adapters.as_slice() {
            [(pack, a, weight)] if a.magnitude.is_some() && *weight != 1.0 => {
                return Err(Error::fit(
                    pack.name(),
                    format!("{name}: a DoRA pack cannot be weighted; use a weight of 1"),
                ));
            }
            [(pack, a, weight)] => single(model, position, pack, a, *weight)?,
            many => {
                if let Some((pack, ..)) = many.iter().find(|(_, a, _)| a.magnitude.is_some()) {
                    let reason = format!(
                        "{name}: a DoRA pack cannot share a slice with another pack; fuse it into a checkpoint of its own first (`packs apply --fuse`), or use one of them"
                    );
                    return Err(Error::fit(pack.name(), reason));
                }
                let what = "joining packs";
                let a: Vec<Array> = many.iter().map(|(p, a, w)| scaled(p, name, a, *w)).collect::<Result<_>>()?;
                let b: Vec<Array> = many.iter().map(|(_, a, _)| a.b.array()).collect();
                let a = mlx_rs::ops::concatenate(&a, 1).context(what)?;
                let b = mlx_rs::ops::concatenate(&b, 0).context(what)?;
                Added { factors: Factors { a, b }, gain: None }
            }
        };
        added.insert(position, one);
    }
    let arrays: Vec<&Array> =
        added.values().flat_map(|x: &Added| [&x.factors.a, &x.factors.b].into_iter().chain(&x.gain)).collect();
    mlx::eval(arrays)?;
    Ok(Attachment { added })
}

/// Where an adapter goes; its geometry is checked.
fn position(model: &Model, pack: &str, key: &str, a: &Adapter) -> Result<usize> {
    let slices = model.slices();
    let slice = key::to_slice(key).unwrap_or_default();
    let Some(position) = slices.iter().position(|s| s.name == slice) else {
        let layers = slices.iter().map(|s| s.layer + 1).max().unwrap_or(0);
        return Err(Error::fit(
            pack,
            format!(
                "has an adapter for {key}, but this model has {layers} layers with no such slice; it was made for another base"
            ),
        ));
    };
    let s = &slices[position];
    let (rows, cols) = (s.rows as usize, s.cols as usize);
    if (a.a.rows, a.b.cols) != (rows, cols) {
        return Err(Error::fit(
            pack,
            format!(
                "{key} maps {} inputs to {} outputs; the slice of this model has {cols} inputs and {rows} outputs; it was made for another base",
                a.b.cols, a.a.rows
            ),
        ));
    }
    Ok(position)
}

/// A [rows, r] times `alpha / r` and a weight.
fn scaled(pack: &Pack, slice: &str, adapter: &Adapter, weight: f32) -> Result<Array> {
    let scale = adapter.scale() * weight;
    let mut a = adapter.a.to_f32();
    let mut most = 0f32;
    for x in &mut a {
        *x *= scale;
        most = most.max(x.abs());
    }
    // A maximum passes over NaN, which only a scale that is not finite makes of finite numbers.
    if !scale.is_finite() || !most.is_finite() {
        let reason = format!(
            "{slice}: alpha {} with a weight of {weight} makes numbers that are not finite; the pack is damaged, or the weight too large",
            adapter.alpha
        );
        return Err(Error::fit(pack.name(), reason));
    }
    Ok(Array::from_slice(&a, &[adapter.a.rows as i32, adapter.a.cols as i32]))
}

fn single(model: &Model, position: usize, pack: &Pack, adapter: &Adapter, weight: f32) -> Result<Added> {
    let name = &model.slices()[position].name;
    let factors = Factors { a: scaled(pack, name, adapter, weight)?, b: adapter.b.array() };
    let gain = match &adapter.magnitude {
        None => None,
        Some(m) => {
            let what = "normalising a DoRA adapter";
            let w = model.dense_weight(position)?;
            let adapted = factors.a.matmul(&factors.b).and_then(|d| w.add(d)).context(what)?;
            let norm = adapted.square().and_then(|x| x.sum_axis(1, false)).and_then(|x| x.sqrt()).context(what)?;
            let m = Array::from_slice(m, &[m.len() as i32]);
            let gain = m.divide(norm).context(what)?;
            mlx::eval([&gain])?;
            let gains = gain.try_as_slice::<f32>().map_err(|e| Error::Other(format!("a gain cannot be read: {e}")))?;
            if let Some(row) = gains.iter().position(|g| !g.is_finite()) {
                let reason = format!("{name}: row {row} of the adapted weight has the length 0, which DoRA divides by");
                return Err(Error::fit(pack.name(), reason));
            }
            Some(gain)
        }
    };
    Ok(Added { factors, gain })
}

/// Puts an attachment on a model in the place of what was attached; cannot fail.
pub fn attach(model: &mut Model, attachment: &Attachment) {
    detach(model);
    put(model, attachment);
}

/// Puts an attachment on its slices; what lies on other slices stays.
pub fn put(model: &mut Model, attachment: &Attachment) {
    for (position, added) in &attachment.added {
        model.set_added(*position, Some(added.clone()));
    }
}

/// Takes everything off.
pub fn detach(model: &mut Model) {
    for i in 0..model.slices().len() {
        model.set_added(i, None);
    }
}

/// Compares the base a pack was made for with the one in a directory. What was made for a base fits an elastic
/// checkpoint of it too.
///
/// # Errors
/// When they differ. A pack that does not say what its base was passes.
pub fn check_base(pack: &Pack, dir: &Path) -> Result<()> {
    let stated = &pack.meta.base_hash;
    if stated.is_empty() {
        tracing::warn!("pack {}: does not say what base it was made for; only its shapes are checked", pack.name());
        return Ok(());
    }
    let whole = layout::checkpoint_hash(dir).map_err(|e| Error::Other(e.to_string()))?;
    let elastic = awake::recorded(dir)?;
    if elastic.as_ref().is_some_and(|r| r.origin.sha256 == *stated) {
        return Ok(());
    }
    // Version 0.1.0 names the first shard; a pack made from one of those goes on naming it.
    let first = match *stated == whole {
        true => None,
        false => {
            let shards = layout::shards(dir).map_err(|e| Error::Other(e.to_string()))?;
            shards.first().map(|s| crate::model::hash::sha256_file_remembered(s, &mut |_| {})).transpose()?
        }
    };
    match *stated == whole || first.as_ref() == Some(stated) {
        true => Ok(()),
        false => Err(Error::fit(
            pack.name(),
            format!(
                "was made for another base ({}, hash {}…) than {} ({}…); name that base with --base{}",
                if pack.meta.base_model.is_empty() { "unnamed" } else { &pack.meta.base_model },
                stated.get(..12).unwrap_or(stated),
                dir.display(),
                whole.get(..12).unwrap_or_default(),
                match elastic {
                    Some(_) => ", or wake as much of this one as when the pack was made (`plastic-host elastic set`)",
                    None => "",
                }
            ),
        )),
    }
}
