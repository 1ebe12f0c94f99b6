//! A fixed checkpoint whose slices are rows of their own and coefficients, from the components of an elastic one.
//!
//! At the same number of parameters a slice can have a larger rank than as factors, so less is lost; in exchange a
//! prefix is no smaller model. Which ranks: [`super::pivot_budget`]; which rows: [`super::pivot`]; how it is stored:
//! [`crate::model`] as `<slice>.pivot.*`; how it is written: [`super::fixed`].
//!
//! Fails where components repair a coarser weight, and where MLX or the disk does.

use super::encode;
use super::error::{Error, Result};
use super::fixed::Fixed;
use super::manifest::{Manifest, SliceRecord};
use super::materialise::Storage;
use super::pivot::{self, Pivots};
use super::pivot_budget::{self, Shaft};
use super::settings::Mode;
use crate::mlx::{self, Array, Context, spectral};
use crate::model::tensor_file::{Tensor, of_array};
use crate::model::{Level, Model};
use serde::Serialize;
use std::path::Path;

/// What a budget bought.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The level of each slice, in the order of the manifest; [`Level::Dense`] is the full rank.
    pub levels: Vec<Level>,
    /// Parameters of all of them.
    pub parameters: u64,
    /// Parameters that were asked for.
    pub budget: u64,
    /// Of `levels`, how many are as large as what is stored allows, and not dense.
    pub capped: usize,
}

/// The ranks for a share of the slices' parameters.
///
/// # Errors
/// When the checkpoint is of mode residual, its energies are damaged, or the share is too small.
pub fn plan(manifest: &Manifest, dir: &Path, share: f64) -> Result<Plan> {
    if manifest.settings.mode == Mode::Residual {
        return Err(Error::Usage(format!(
            "{}: its components repair a coarser weight; pivoted storage is for --mode factor",
            dir.display()
        )));
    }
    let rungs = manifest.rungs(dir)?;
    let shaft = |(s, r): (&SliceRecord, &super::budget::Rungs)| {
        Shaft::new(s.rows, s.cols, &r.energies, r.beyond, s.planned == Level::Dense)
    };
    let shafts: Vec<Shaft> = manifest.stored.iter().zip(&rungs).map(shaft).collect();
    let budget = (share * manifest.parameters() as f64).floor() as u64;
    let levels = pivot_budget::levels(&shafts, budget).ok_or_else(|| {
        Error::Usage(format!("an awake budget of {share} is less than one component of each slice takes; ask for more"))
    })?;
    let parameters = pivot_budget::cost(&shafts, &levels);
    let capped = |(s, l): &(&SliceRecord, &Level)| matches!(l, Level::Rank(r) if *r == s.stored);
    let capped = manifest.stored.iter().zip(&levels).filter(capped).count();
    Ok(Plan { levels, parameters, budget, capped })
}

/// Stores the slices of `model`, which holds all components, at the levels of `plan` (`names` are the slices in its
/// order); values in `bits` (16, 8 or 4). `watch` is told how many slices are done, and of how many, and answers
/// whether to go on. Answers the largest coefficient.
///
/// # Errors
/// When MLX fails or a slice has not the rank its components promise; [`Error::Stopped`] when `watch` says so.
pub fn store(
    model: &mut Model,
    names: &[String],
    plan: &Plan,
    bits: u32,
    fixed: &mut Fixed,
    watch: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<f64> {
    let place = |name: &String| model.slices().iter().position(|s| s.name == *name);
    let places = names.iter().map(|n| place(n).ok_or_else(|| Error::slice(n, "is not in the model")));
    let places = places.collect::<Result<Vec<usize>>>()?;
    let work: Vec<(usize, Level)> = places.into_iter().zip(plan.levels.iter().copied()).collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let (mut done, mut largest) = (0, 0.0f64);
    for some in work.chunks(threads) {
        if !watch(done, work.len()) {
            return Err(Error::Stopped);
        }
        done += some.len();
        let mut taken = Vec::new();
        for &(i, level) in some {
            taken.extend(take(model, i, level, fixed)?);
        }
        // Choosing rows is plain arithmetic: one thread a slice.
        let chosen: Vec<Option<Pivots>> = std::thread::scope(|s| {
            let one = |t: &Taken| {
                let (basis, rows, rank) = (std::sync::Arc::clone(&t.basis), t.rows, t.rank);
                s.spawn(move || pivot::choose(&basis, rows, rank))
            };
            let each: Vec<_> = taken.iter().map(one).collect();
            each.into_iter().map(|h| h.join().ok().flatten()).collect()
        });
        for (t, pivots) in taken.iter().zip(chosen) {
            let pivots = pivots.ok_or_else(|| {
                Error::slice(&t.name, format!("its components have not the rank {}; compress the base again", t.rank))
            })?;
            largest = pivots.coefficients.iter().fold(largest, |a, c| a.max(c.abs()));
            fixed.put(&t.name, None, &tensors(t, &pivots, bits)?)?;
        }
    }
    Ok(largest)
}

/// A slice at its rank.
struct Taken {
    name: String,
    rows: usize,
    rank: usize,
    /// W = A B, float32 [rows, cols].
    w: Array,
    /// Orthonormal basis of the columns of A, [rows, rank] row by row.
    basis: std::sync::Arc<[f64]>,
}

/// The slice at its level. `None` where it is dense: then it keeps its own weight, or is stored whole at once.
fn take(model: &mut Model, i: usize, level: Level, fixed: &mut Fixed) -> Result<Option<Taken>> {
    let (name, rows) = (model.slices()[i].name.clone(), model.slices()[i].rows as usize);
    let stored = model.stored(i);
    let level = match (level, stored) {
        (_, None) => return Ok(None),
        (Level::Dense, Some(s)) if s.dense => return Ok(None),
        (Level::Dense, Some(s)) => Level::Rank(s.rank),
        (level, Some(_)) => level,
    };
    model.set_level(i, level)?;
    let full = |r: u32| r == model.slices()[i].rows.min(model.slices()[i].cols);
    let Some(parts) = model.components(i).transpose()? else { return Ok(None) };
    let rank = parts.b.dim(0) as usize;
    if full(rank as u32) {
        let (scheme, tensors) = Storage::Half.tensors(&name, &model.dense_weight(i)?)?;
        fixed.put(&name, scheme, &tensors)?;
        return Ok(None);
    }
    let (q, _) = spectral::qr(&parts.a)?;
    let basis = spectral::to_vec(&q)?.into();
    Ok(Some(Taken { w: model.dense_weight(i)?, name, rows, rank, basis }))
}

/// The tensors of a pivoted slice.
fn tensors(t: &Taken, pivots: &Pivots, bits: u32) -> Result<Vec<Tensor>> {
    let what = "storing a pivoted slice";
    let rows: Vec<i32> = pivots.rows.iter().map(|r| *r as i32).collect();
    let rows = Array::from_slice(&rows, &[rows.len() as i32]);
    let own = t.w.take_axis(&rows, 0).context(what)?;
    let coefficients: Vec<f32> = pivots.coefficients.iter().map(|c| *c as f32).collect();
    let coefficients = Array::from_slice(&coefficients, &[(t.rows - t.rank) as i32, t.rank as i32]);
    mlx::eval([&own])?;
    let mut all = vec![of_array(format!("{}.pivot.rows", t.name), &rows)?];
    for (part, a) in [("basis", &own), ("coefficients", &coefficients)] {
        all.extend(encode::rounded(&format!("{}.pivot.{part}", t.name), a, bits)?.0);
    }
    Ok(all)
}
