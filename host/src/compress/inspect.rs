//! What an elastic checkpoint holds, what of it is awake, and what less of it would cost.
//!
//! Only headers, energies and `elastic.json` are read. Bytes in memory are what a model takes when it is loaded as
//! recorded: components and vectors widened to float32, other weights as they are stored.

use super::budget::Rungs;
use super::error::Result;
use super::manifest::{Manifest, SPECTRA};
use crate::model::Level;
use crate::model::awake::{PARKED, WEIGHTS};
use crate::model::safetensors::{TensorInfo, read_header};
use crate::plastic::factor::Metric;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Slices of one kind, such as `q_proj`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Kind {
    /// The kind.
    pub kind: String,
    /// Slices.
    pub slices: usize,
    /// Of those, how many run dense now.
    pub dense: usize,
    /// Components stored.
    pub components: u64,
    /// Components awake.
    pub components_awake: u64,
    /// Parameters in the base.
    pub parameters: u64,
    /// Parameters that can be awake here: what the plan keeps.
    pub parameters_planned: u64,
    /// Parameters awake.
    pub parameters_awake: u64,
}

/// What is awake and what is parked, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// On disk: weights that are read when the model is loaded.
    pub disk_awake: u64,
    /// On disk: components and weights that sleep, and what is parked of the base.
    pub disk_parked: u64,
    /// In memory once loaded.
    pub memory: u64,
}

/// What one awake budget would give.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Share of the slices' parameters asked for.
    pub budget: f64,
    /// Parameters that it wakes.
    pub parameters: u64,
    /// Half the energy of what sleeps: in the fisher metric the rise of the loss that this predicts, in nats per token.
    pub loss: f64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Awake budget as it was set; `None` where the base itself runs.
    pub awake_budget: Option<f64>,
    /// Whether the base itself runs.
    pub runs_base: bool,
    /// Slices by kind.
    pub kinds: Vec<Kind>,
    /// Bytes; of the directory's own weights, `None` where the base itself runs.
    pub bytes: Option<Bytes>,
    /// Bytes of all weight files.
    pub disk: u64,
    /// What orders the components, and what [`Point::loss`] is counted in.
    pub order: Metric,
    /// What smaller budgets would give, the smallest first; the last is the plan.
    pub curve: Vec<Point>,
    /// Half the energy that sleeps now; 0 where the base itself runs.
    pub loss: f64,
    /// Why the base cannot be had; `None` where it is what it was.
    pub base_problem: Option<String>,
}

/// Budgets of the curve lie so far apart.
const STEP: f64 = 0.05;

/// Looks at a checkpoint.
///
/// # Errors
/// When a header or the energies are damaged.
pub fn inspect(dir: &Path, manifest: &Manifest) -> Result<Inspection> {
    let rungs = manifest.rungs(dir)?;
    let current = manifest.current();
    let half = |levels: &[Level]| half_lost(&rungs, levels);
    let steps = (1..).map(|i| STEP * f64::from(i)).take_while(|b| b + 1e-9 < manifest.share);
    let all = manifest.parameters().max(1) as f64;
    // Rounded up, so that the least fits.
    let least = (rungs.iter().map(Rungs::least).sum::<u64>() as f64 / all * 1e3).ceil() / 1e3;
    let first = (least < manifest.share).then_some(least);
    let budgets = first.into_iter().chain(steps.filter(|b| *b > least)).chain([manifest.share]);
    let mut curve = Vec::new();
    for budget in budgets {
        let levels = manifest.levels_of(&rungs, budget)?;
        curve.push(Point { budget, parameters: manifest.awake_parameters(&levels), loss: half(&levels) });
    }
    Ok(Inspection {
        awake_budget: (!manifest.runs_base).then_some(manifest.awake_budget),
        runs_base: manifest.runs_base,
        kinds: kinds(manifest, &current),
        bytes: if manifest.runs_base { None } else { Some(bytes(dir, manifest)?) },
        disk: manifest.files.values().map(|f| f.bytes).sum(),
        order: manifest.order,
        curve,
        loss: if manifest.runs_base { 0.0 } else { half(&current) },
        base_problem: manifest.check_base().err().map(|e| e.to_string()),
    })
}

/// Half the energy that sleeps at these levels: in the fisher metric the predicted rise of the loss, nats per token.
pub fn half_lost(rungs: &[Rungs], levels: &[Level]) -> f64 {
    0.5 * rungs.iter().zip(levels).map(|(r, l)| r.lost(*l)).sum::<f64>()
}

/// Slices by kind, in the order in which a layer computes.
fn kinds(manifest: &Manifest, current: &[Level]) -> Vec<Kind> {
    let mut all: Vec<Kind> = Vec::new();
    for (s, level) in manifest.stored.iter().zip(current) {
        let kind = s.name.rsplit_once('.').map_or(s.name.as_str(), |(_, k)| k);
        let at = all.iter().position(|k| k.kind == kind).unwrap_or_else(|| {
            all.push(Kind { kind: kind.to_owned(), ..Kind::default() });
            all.len() - 1
        });
        let Some(k) = all.get_mut(at) else { continue };
        let dense = u64::from(s.rows) * u64::from(s.cols);
        k.slices += 1;
        k.components += u64::from(s.stored);
        k.parameters += dense;
        k.parameters_planned += manifest.cost(s, s.planned);
        match level {
            _ if manifest.runs_base => {
                k.dense += 1;
                k.parameters_awake += dense;
            }
            level => {
                k.parameters_awake += manifest.cost(s, *level);
                match level {
                    Level::Dense => k.dense += 1,
                    Level::Rank(r) => k.components_awake += u64::from(*r),
                }
            }
        }
    }
    all
}

/// Bytes of what is awake as recorded, and of what sleeps.
///
/// # Errors
/// When a header is damaged.
pub fn bytes(dir: &Path, manifest: &Manifest) -> Result<Bytes> {
    let mut b = Bytes::default();
    for name in [SPECTRA, PARKED] {
        b.disk_parked += manifest.files.get(name).map_or(0, |f| f.bytes);
    }
    let slices: BTreeMap<&str, Level> =
        manifest.stored.iter().zip(manifest.current()).map(|(s, l)| (s.name.as_str(), l)).collect();
    for (name, info) in read_header(&dir.join(WEIGHTS))? {
        let on_disk = info.end - info.begin;
        if let Some(slice) = component(&name) {
            let Some(level) = slices.get(slice) else { continue };
            let all = info.shape.first().copied().unwrap_or(0) as u64;
            let awake = match level {
                Level::Dense => 0,
                Level::Rank(r) => u64::from(*r).min(all),
            };
            let of_awake = on_disk.checked_div(all).unwrap_or(0) * awake;
            b.disk_awake += of_awake;
            b.disk_parked += on_disk - of_awake;
            b.memory += of_awake;
            continue;
        }
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        let repairs = manifest.settings.mode == super::settings::Mode::Residual;
        match slices.get(module) {
            Some(Level::Rank(_)) if !repairs && !name.ends_with(".bias") => b.disk_parked += on_disk,
            _ => {
                b.disk_awake += on_disk;
                b.memory += in_memory(&info);
            }
        }
    }
    Ok(b)
}

/// The slice that a tensor holds components of.
fn component(name: &str) -> Option<&str> {
    [".ladder.", ".repair."].into_iter().find_map(|kind| {
        let (slice, side) = name.split_once(kind)?;
        ["a", "b"].contains(&side.split('.').next()?).then_some(slice)
    })
}

/// Bytes of a tensor in memory: vectors of floats are widened to float32, all else is held as it is stored.
fn in_memory(info: &TensorInfo) -> u64 {
    let elements: u64 = info.shape.iter().map(|n| *n as u64).product();
    let float = ["F32", "F16", "BF16"].contains(&info.dtype.as_str());
    if float && info.shape.len() == 1 { 4 * elements } else { info.end - info.begin }
}
