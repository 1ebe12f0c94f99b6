//! Drives a compression: plan, decompose slice after slice, assemble.

use super::assemble::{self, Contents};
use super::encode::{self, Kind};
use super::error::{Error, Result};
use super::manifest::{Manifest, component_cost};
use super::plan::{self, Facts};
use super::settings::{Chooser, Settings};
use super::work::{Decided, Work};
use super::{budget, budget::Rungs};
use crate::model::tensor_file::Tensor;
use crate::model::{Level, Levels};
use crate::plastic::elastic::{Elastic, ElasticError};
use crate::plastic::factor::Metric;
use crate::plastic::moments::Moments;
use crate::plastic::policies::Policies;
use crate::plastic::statistic::{Computed, Statistic};
use crate::plugin::contract::{Run, Slice};
use std::path::Path;

/// What a compression is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Computing the statistics a policy asks for.
    Statistics,
    /// Decomposing slices.
    Slices,
}

/// Told (stage, done, total, slice); answers whether to go on.
pub type Watch<'a> = dyn FnMut(Stage, usize, usize, &str) -> bool + 'a;

/// A compression about to run.
pub struct Job<'a> {
    /// What decides the bytes.
    pub settings: &'a Settings,
    /// The base, everything awake.
    pub elastic: Elastic,
    /// Calibration statistics, where the settings need them.
    pub moments: Option<Moments>,
    /// The policies, where they choose.
    pub policies: Option<Policies>,
    /// Text that sensitivities are measured on.
    pub windows: Vec<Vec<u32>>,
    /// The working directory.
    pub work: Work,
}

impl Job<'_> {
    /// Everything up to the finished parts; answers the plan.
    ///
    /// # Errors
    /// When a plugin or a slice fails, the disk is full, or on interruption. What is done stays.
    pub fn run(&mut self, watch: &mut Watch) -> Result<Decided> {
        let result = self.decided(watch).and_then(|d| self.parts(&d, watch).map(|()| d));
        result.map_err(|e| match e {
            Error::Elastic(ElasticError::Interrupted) => Error::Interrupted(self.work.dir().to_owned()),
            e => e,
        })
    }

    /// The plan, from the working directory or from the policy now.
    fn decided(&mut self, watch: &mut Watch) -> Result<Decided> {
        if let Some(known) = self.work.decided()? {
            return Ok(known);
        }
        let mut tell = |done: usize, total: usize, slice: &str| watch(Stage::Statistics, done, total, slice);
        let dense: u64 = self.elastic.slices().iter().map(|s| s.dense_parameters).sum();
        let enough = (self.settings.budget * dense as f64).floor() as u64;
        let (levels, metric, mut computed, predicted) = match (&self.settings.chooser, &mut self.policies) {
            (Chooser::Ranks(ranks), _) => {
                let metric = self.settings.metric.unwrap_or(Metric::Fisher);
                (mapped(ranks, self.elastic.slices())?, metric, Computed::new(), None)
            }
            (Chooser::Policy(_), Some(policies)) => {
                let run = Run {
                    phase: "compress".into(),
                    seed: self.settings.calibration.as_ref().map_or(0, |c| c.seed),
                    steps: 1,
                    parameters: dense,
                    budget: enough,
                    attributes: Vec::new(),
                };
                let (moments, windows) = (self.moments.as_ref(), self.windows.as_slice());
                let mut facts = Facts { elastic: &mut self.elastic, moments, windows, progress: &mut tell };
                let d = plan::decide(policies, &run, &mut facts, Computed::new())?;
                (d.levels, self.settings.metric.unwrap_or(d.metric), d.computed, d.predicted)
            }
            (Chooser::Policy(p), None) => {
                return Err(Error::Usage(format!("the policy {} is not loaded", p.info.name)));
            }
        };
        let need = format!("spectrum:{}", metric.name());
        let spectra = match computed.remove(&need) {
            Some(known) => known,
            None => {
                let moments = self.moments.as_ref();
                Statistic::Spectrum(metric).compute(&mut self.elastic, moments, &self.windows, &mut tell)?
            }
        };
        let stored = stored(self.settings, self.elastic.slices(), &levels, &spectra);
        let decided = Decided { metric, levels, stored, spectra, predicted };
        self.work.decide(&decided)?;
        Ok(decided)
    }

    /// Decomposes every slice whose part is not there yet.
    fn parts(&mut self, d: &Decided, watch: &mut Watch) -> Result<()> {
        let all = self.elastic.slices().len();
        let missing: Vec<usize> =
            (0..all).filter(|i| d.stored.get(*i).is_some_and(|r| *r > 0) && !self.work.has(*i)).collect();
        let before = all - missing.len();
        let (settings, work, slices) = (self.settings, &self.work, self.elastic.slices());
        let mut tell = |done: usize, _: usize, slice: &str| watch(Stage::Slices, before + done, all, slice);
        let mut failed = None;
        let result =
            self.elastic.components_of(&missing, d.metric, self.moments.as_ref(), &mut tell, |i, components| {
                let keep = || -> Result<()> {
                    let (slice, rank) = (&slices[i], d.stored[i]);
                    let first = encode::first(&components, rank)?;
                    let (mut tensors, _) = encode::encode(&slice.name, Kind::Ladder, &first, settings.factor_bits)?;
                    tensors.push(energies(&slice.name, &d.spectra[i]));
                    work.keep(i, &tensors)
                };
                keep().map_err(|e| {
                    failed = Some(e);
                    ElasticError::Interrupted
                })
            });
        match (result, failed) {
            (_, Some(e)) => Err(e),
            (result, None) => Ok(result?),
        }
    }

    /// Writes the directory; `check` sees it before it is moved to its place.
    ///
    /// # Errors
    /// When a file cannot be read or written, or `check` says no.
    pub fn assemble(
        self,
        out: &Path,
        decided: &Decided,
        check: impl FnOnce(&Path, &mut Manifest) -> Result<()>,
    ) -> Result<Manifest> {
        let Job { settings, elastic, work, .. } = self;
        let slices = elastic.slices().to_vec();
        // The base's weights are not needed any more.
        drop(elastic);
        let contents = Contents { settings, decided, slices: &slices, work: &work };
        let manifest = assemble::assemble(out, &contents, check)?;
        work.finish();
        Ok(manifest)
    }
}

/// Energies of all components of a slice.
fn energies(slice: &str, values: &[f32]) -> Tensor {
    let squares: Vec<f32> = values.iter().map(|s| s * s).collect();
    Tensor::f32(format!("{slice}.energy"), vec![squares.len()], &squares)
}

/// The levels of a map that names every slice.
fn mapped(ranks: &Levels, slices: &[Slice]) -> Result<Vec<Level>> {
    let one = |s: &Slice| {
        let level = ranks.get(&s.name).copied();
        let level = level.ok_or_else(|| Error::slice(&s.name, "the map of ranks does not say what becomes of it"))?;
        match level {
            Level::Rank(r) if r > s.max_rank => {
                Err(Error::slice(&s.name, format!("rank {r} asked for, but it has {} components", s.max_rank)))
            }
            level => Ok(level),
        }
    };
    slices.iter().map(one).collect()
}

/// How many components of each slice are stored: those of the plan, and of a slice that stays dense those that a
/// smaller budget wakes in its place.
fn stored(settings: &Settings, slices: &[Slice], levels: &[Level], spectra: &[Vec<f32>]) -> Vec<u32> {
    let rungs: Vec<Rungs> = slices
        .iter()
        .zip(levels)
        .zip(spectra)
        .map(|((s, level), values)| {
            let most = match level {
                Level::Dense => values.len(),
                Level::Rank(r) => *r as usize,
            };
            let squares: Vec<f64> = values.iter().map(|v| f64::from(*v).powi(2)).collect();
            let (first, rest) = squares.split_at(most.min(squares.len()));
            Rungs {
                energies: first.to_vec(),
                beyond: rest.iter().sum(),
                component: component_cost(settings, s.rows, s.cols),
                dense: (*level == Level::Dense).then_some(s.dense_parameters),
                fixed: 0,
            }
        })
        .collect();
    let planned: u64 = rungs.iter().zip(levels).map(|(r, l)| r.cost(*l)).sum();
    let dense: u64 = slices.iter().map(|s| s.dense_parameters).sum();
    let floor = ((settings.floor * dense as f64) as u64).min(planned);
    let reach = budget::reach(&rungs, floor, planned);
    let of_slice = |((level, reach), _): ((&Level, &u32), &Slice)| match level {
        Level::Rank(r) => *r,
        Level::Dense => *reach,
    };
    levels.iter().zip(&reach).zip(slices).map(of_slice).collect()
}
