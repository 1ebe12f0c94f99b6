//! A model whose slices can sleep and wake: applies a resolved state and takes it back.
//!
//! The base weights stay in the model untouched; a slice that is not dense runs on factors laid over
//! them. So waking everything is forgetting the factors, and rolling back is putting the earlier
//! handles back: both are exact, and neither can fail.

use super::bank::{Bank, BankError, Parking};
use super::factor::{self, Components, Leading, Metric, SliceMoments};
use super::moments::Moments;
use super::state::{Awake, DENSE};
use super::statistic::Probe;
use crate::mlx::{self, Array, workers};
use crate::model::{Error as ModelError, Factors, Model};
use crate::plugin::contract::{Slice, SliceState};
use std::collections::HashMap;
use std::rc::Rc;

/// A state cannot be applied; the model is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ElasticError {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A slice cannot be factored.
    #[error("{slice}: {source}")]
    Factor {
        /// The slice.
        slice: String,
        /// The cause.
        source: mlx::MlxError,
    },
    /// A bank cannot be made or read.
    #[error(transparent)]
    Bank(#[from] BankError),
    /// The metric needs calibration statistics that were not gathered.
    #[error("{slice}: the {metric} metric needs calibration statistics; name a text with --calibration")]
    NoMoments {
        /// The slice.
        slice: String,
        /// The metric.
        metric: &'static str,
    },
    /// A recorded state needs a bank that is not there.
    #[error("{slice}: its parked components are missing from the run; undo to an earlier step")]
    NoBank {
        /// The slice.
        slice: String,
    },
    /// Interrupted between two slices.
    #[error("interrupted while factoring")]
    Interrupted,
}

/// Memory for matrices that are being decomposed.
const DECOMPOSING_BYTES: u64 = 4 << 30;

/// A slice's position, weight and moments, and what to do with them.
type Input<T> = (usize, Array, Metric, Option<SliceMoments>, Leading, Work<T>);
type Work<T> = fn(&Array, Metric, Option<&SliceMoments>, Leading) -> mlx::Result<T>;

/// What is to be decomposed.
pub struct Matrices<'a> {
    /// Slices, by number.
    pub these: &'a [usize],
    /// The matrix of a slice, float32 [rows, cols]: its weight, or another in its place.
    pub weight: &'a dyn Fn(usize) -> Result<Array>,
    /// What orders the components.
    pub metric: Metric,
    /// Calibration statistics of those matrices, where the metric needs them.
    pub moments: Option<&'a Moments>,
    /// How many components are looked for, and how.
    pub leading: &'a dyn Fn(usize) -> Leading,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, ElasticError>;

/// One slice as it runs.
#[derive(Clone)]
struct Running {
    awake: Awake,
    bank: Option<Rc<Bank>>,
    factors: Option<Factors>,
    frozen: bool,
}

/// The running state of all slices, cheap to copy: tensors are shared.
#[derive(Clone)]
pub struct Snapshot(Vec<Running>);

impl Snapshot {
    /// What is awake, slice by slice.
    pub fn awake(&self) -> Vec<Awake> {
        self.0.iter().map(|r| r.awake.clone()).collect()
    }

    /// Whether each slice is frozen.
    pub fn frozen(&self) -> Vec<bool> {
        self.0.iter().map(|r| r.frozen).collect()
    }
}

/// How new banks are made.
pub struct Factoring<'a> {
    /// What orders the components of new banks; `None` keeps to the banks there are.
    pub metric: Option<Metric>,
    /// Calibration statistics, where the metric needs them.
    pub moments: Option<&'a Moments>,
    /// How sleepers are kept.
    pub parking: Parking,
}

/// A model and the slices of it that a run may change.
pub struct Elastic {
    model: Model,
    /// Position of each slice of the run in the model.
    positions: Vec<usize>,
    slices: Vec<Slice>,
    running: Vec<Running>,
}

impl Elastic {
    /// Takes a model; `chosen` are the positions of the slices that may change, ascending.
    pub fn new(model: Model, chosen: Vec<usize>) -> Elastic {
        let slices = chosen.iter().filter_map(|&p| model.slices().get(p)).map(describe).collect::<Vec<_>>();
        let dense = Running { awake: DENSE, bank: None, factors: None, frozen: false };
        let running = vec![dense; slices.len()];
        Elastic { model, positions: chosen, slices, running }
    }

    /// The model in its current state.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Ends the elastic life and hands the model out as it runs now.
    pub fn into_model(self) -> Model {
        self.model
    }

    /// The slices of the run.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// What is awake and frozen, for plan checking.
    pub fn subjects(&self) -> Vec<super::plan::Subject> {
        self.running.iter().map(|r| super::plan::Subject { awake: r.awake.clone(), frozen: r.frozen }).collect()
    }

    /// The state as policies see it; `dwell` is for the owner of the history to fill in.
    pub fn states(&self) -> Vec<SliceState> {
        self.running.iter().zip(&self.slices).map(|(r, s)| state_of(r, s)).collect()
    }

    /// Parameters awake in all slices of the run.
    pub fn parameters(&self) -> u64 {
        self.running.iter().zip(&self.slices).map(|(r, s)| r.awake.parameters(s.rows, s.cols)).sum()
    }

    /// The running state, to come back to.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.running.clone())
    }

    /// Goes back to an earlier state, exactly.
    pub fn restore(&mut self, earlier: &Snapshot) {
        for (i, r) in earlier.0.iter().enumerate() {
            if self.running[i].factors.is_some() || r.factors.is_some() {
                self.model.set_factors(self.positions[i], r.factors.clone());
            }
        }
        self.running = earlier.0.clone();
    }

    /// Runs on the base's own weights until [`Elastic::restore`]; forgets nothing in the snapshot.
    pub fn wake_all(&mut self) {
        for (i, r) in self.running.iter_mut().enumerate() {
            if r.factors.take().is_some() {
                self.model.set_factors(self.positions[i], None);
            }
            r.awake = DENSE;
        }
    }

    /// Makes `awake` the state of every slice, factoring slices that have no bank in this metric yet.
    /// `progress` gets (done, total, slice) before each changed slice and answers whether to go on.
    ///
    /// # Errors
    /// As [`ElasticError`] says; the model then runs exactly as before the call.
    pub fn apply(
        &mut self,
        awake: &[Awake],
        frozen: &[bool],
        how: &Factoring,
        progress: &mut dyn FnMut(usize, usize, &str) -> bool,
    ) -> Result<()> {
        let before = self.snapshot();
        let applied = self.apply_each(awake, frozen, how, progress);
        if applied.is_err() {
            self.restore(&before);
        }
        applied
    }

    fn apply_each(
        &mut self,
        awake: &[Awake],
        frozen: &[bool],
        how: &Factoring,
        progress: &mut dyn FnMut(usize, usize, &str) -> bool,
    ) -> Result<()> {
        let changed: Vec<usize> = (0..self.running.len()).filter(|&i| awake[i] != self.running[i].awake).collect();
        self.make_banks(&changed, awake, how, progress)?;
        for &i in &changed {
            self.set(i, &awake[i])?;
        }
        for (r, f) in self.running.iter_mut().zip(frozen) {
            r.frozen = *f;
        }
        Ok(())
    }

    /// Gives every changed slice that will not be dense a bank in the wanted metric.
    fn make_banks(
        &mut self,
        changed: &[usize],
        awake: &[Awake],
        how: &Factoring,
        progress: &mut dyn FnMut(usize, usize, &str) -> bool,
    ) -> Result<()> {
        let Some(metric) = how.metric else { return Ok(()) };
        let wanted =
            |&&i: &&usize| !awake[i].is_dense() && self.running[i].bank.as_ref().is_none_or(|b| b.metric != metric);
        let missing: Vec<usize> = changed.iter().filter(wanted).copied().collect();
        let mut made = Vec::with_capacity(missing.len());
        let dense = |i: usize| self.dense(i);
        let what = Matrices { these: &missing, weight: &dense, metric, moments: how.moments, leading: &|_| None };
        self.decompose(&what, progress, factor::components, |i, components| {
            made.push((i, Bank::new(&components, metric, &awake[i], how.parking)?));
            Ok(())
        })?;
        for (i, bank) in made {
            self.running[i].bank = Some(Rc::new(bank));
        }
        Ok(())
    }

    /// Does `work` on the weight and moments of each of `these` slices, several at a time.
    fn decompose<T: Send + 'static>(
        &self,
        what: &Matrices,
        progress: &mut dyn FnMut(usize, usize, &str) -> bool,
        work: Work<T>,
        mut take: impl FnMut(usize, T) -> Result<()>,
    ) -> Result<()> {
        let Matrices { these, weight, metric, moments, leading } = *what;
        let side = these.iter().map(|&i| u64::from(self.slices[i].max_rank)).max().unwrap_or(1);
        // A dozen float64 matrices of the smaller side are alive in each thread.
        let at_once = (DECOMPOSING_BYTES / (96 * side * side)).clamp(1, 64) as usize;
        let inputs = these.iter().enumerate().map(|(n, &i)| {
            if !progress(n, these.len(), &self.slices[i].name) {
                return Err(ElasticError::Interrupted);
            }
            let moments = self.moments_of(i, metric, moments)?;
            Ok((i, weight(i)?, metric, moments, leading(i), work))
        });
        let one = |(i, w, metric, moments, leading, work): Input<T>| (i, work(&w, metric, moments.as_ref(), leading));
        workers::for_each(at_once, inputs, one, |(i, result)| {
            let slice = || self.slices[i].name.clone();
            take(i, result.map_err(|source| ElasticError::Factor { slice: slice(), source })?)
        })
    }

    /// The weight of a slice, float32 [rows, cols], evaluated.
    ///
    /// # Errors
    /// Whatever MLX reports.
    pub fn dense(&self, i: usize) -> Result<Array> {
        Ok(self.model.dense_weight(self.positions[i])?)
    }

    /// The place of a slice in the model.
    pub fn position(&self, i: usize) -> usize {
        self.positions[i]
    }

    /// The components of matrices, handed to `take` in the order they are ready.
    ///
    /// # Errors
    /// When a slice cannot be decomposed, `take` fails, or on interruption.
    pub fn components_of(
        &self,
        what: &Matrices,
        progress: &mut dyn FnMut(usize, usize, &str) -> bool,
        take: impl FnMut(usize, Components) -> Result<()>,
    ) -> Result<()> {
        self.decompose(what, progress, factor::components, take)
    }

    fn set(&mut self, i: usize, awake: &Awake) -> Result<()> {
        let factors = match (awake.is_dense(), &self.running[i].bank) {
            (true, _) => None,
            (false, Some(bank)) => Some(bank.factors(awake)?),
            (false, None) => return Err(ElasticError::NoBank { slice: self.slices[i].name.clone() }),
        };
        self.model.set_factors(self.positions[i], factors.clone());
        self.running[i].factors = factors;
        self.running[i].awake = awake.clone();
        Ok(())
    }

    fn moments_of(&self, i: usize, metric: Metric, moments: Option<&Moments>) -> Result<Option<SliceMoments>> {
        if !metric.needs_moments() {
            return Ok(None);
        }
        let position = self.positions[i];
        let of = moments.and_then(|m| m.of(position, &self.model.slices()[position]));
        let name = || self.slices[i].name.clone();
        let of = of.ok_or_else(|| ElasticError::NoMoments { slice: name(), metric: metric.name() })?;
        mlx::eval([&of.input, &of.output]).map_err(|source| ElasticError::Factor { slice: name(), source })?;
        Ok(Some(of))
    }

    /// Singular values of every slice in one metric.
    ///
    /// # Errors
    /// When a slice cannot be decomposed, or on interruption.
    pub fn spectra(
        &self,
        metric: Metric,
        moments: Option<&Moments>,
        progress: &mut dyn FnMut(usize, usize, &str) -> bool,
    ) -> Result<Vec<Vec<f32>>> {
        self.spectra_of(&|i| self.dense(i), metric, moments, progress)
    }

    /// The same of other matrices in the weights' places, whose moments these are.
    ///
    /// # Errors
    /// When one cannot be decomposed, or on interruption.
    pub fn spectra_of(
        &self,
        weight: &dyn Fn(usize) -> Result<Array>,
        metric: Metric,
        moments: Option<&Moments>,
        progress: &mut dyn FnMut(usize, usize, &str) -> bool,
    ) -> Result<Vec<Vec<f32>>> {
        let mut out = vec![Vec::new(); self.slices.len()];
        let all: Vec<usize> = (0..self.slices.len()).collect();
        let what = Matrices { these: &all, weight, metric, moments, leading: &|_| None };
        self.decompose(&what, progress, spectrum, |i, values| {
            out[i] = values;
            Ok(())
        })?;
        Ok(out)
    }

    /// E‖x‖² at the input of every slice, or E‖g‖² of the loss gradient at its output: one value each.
    ///
    /// # Errors
    /// Without calibration statistics.
    pub fn traces(&self, moments: Option<&Moments>, output: bool) -> Result<Vec<Vec<f32>>> {
        let one = |(i, s): (usize, &Slice)| {
            let position = self.positions[i];
            let traces = moments.and_then(|m| m.traces(position, &self.model.slices()[position]));
            let missing = || ElasticError::NoMoments { slice: s.name.clone(), metric: "trace" };
            let (input, gradient) = traces.ok_or_else(missing)?;
            Ok(vec![if output { gradient } else { input } as f32])
        };
        self.slices.iter().enumerate().map(one).collect()
    }

    /// What `probe` says of the base, and of the base with each slice in turn alone at a share of its
    /// components in the fisher metric. The caller restores the running state.
    ///
    /// # Errors
    /// When a slice cannot be decomposed, the probe fails, or on interruption.
    pub fn each_alone(
        &mut self,
        share: f64,
        moments: Option<&Moments>,
        progress: &mut dyn FnMut(usize, usize, &str) -> bool,
        probe: &mut Probe,
    ) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
        self.wake_all();
        let base = probe(&self.model)?;
        let mut out = Vec::with_capacity(self.slices.len());
        for i in 0..self.slices.len() {
            let slice = &self.slices[i];
            if !progress(i, self.slices.len(), &slice.name) {
                return Err(ElasticError::Interrupted);
            }
            let rank = ((share * f64::from(slice.max_rank)).round() as u32).clamp(1, slice.max_rank);
            let of = self.moments_of(i, Metric::Fisher, moments)?;
            let weight = self.model.dense_weight(self.positions[i])?;
            let components = factor::components(&weight, Metric::Fisher, of.as_ref(), None)
                .map_err(|source| ElasticError::Factor { slice: slice.name.clone(), source })?;
            let bank = Bank::new(&components, Metric::Fisher, &Awake::First(rank), Parking::EightBit)?;
            let factors = bank.factors(&Awake::First(rank))?;
            self.model.set_factors(self.positions[i], Some(factors));
            let losses = probe(&self.model);
            self.model.set_factors(self.positions[i], None);
            out.push(losses?);
        }
        Ok((base, out))
    }

    /// Banks that are still only in memory, by slice.
    pub fn unwritten_banks(&self) -> Vec<(usize, Rc<Bank>)> {
        let unwritten = |(i, r): (usize, &Running)| {
            let bank = r.bank.clone()?;
            (!bank.tensors("").is_empty()).then_some((i, bank))
        };
        self.running.iter().enumerate().filter_map(unwritten).collect()
    }

    /// Puts banks that lie in files in the place of those in memory.
    pub fn set_banks(&mut self, banks: HashMap<usize, Bank>) {
        for (i, bank) in banks {
            if let Some(r) = self.running.get_mut(i) {
                r.bank = Some(Rc::new(bank));
            }
        }
    }
}

/// [`factor::spectrum`], which is always exact.
fn spectrum(w: &Array, metric: Metric, moments: Option<&SliceMoments>, _: Leading) -> mlx::Result<Vec<f32>> {
    factor::spectrum(w, metric, moments)
}

fn describe(s: &crate::model::SliceMeta) -> Slice {
    Slice {
        name: s.name.clone(),
        layer: s.layer,
        kind: s.kind.clone(),
        group: s.group,
        rows: s.rows,
        cols: s.cols,
        max_rank: s.rows.min(s.cols),
        dense_parameters: u64::from(s.rows) * u64::from(s.cols),
        component_parameters: u64::from(s.rows) + u64::from(s.cols),
        attributes: Vec::new(),
    }
}

fn state_of(r: &Running, s: &Slice) -> SliceState {
    let parameters = r.awake.parameters(s.rows, s.cols);
    SliceState {
        awake: r.awake.rank(s.max_rank),
        dense: r.awake.is_dense(),
        dense_allowed: true,
        frozen: r.frozen,
        dwell: 0,
        parameters,
        bytes: 4 * parameters,
        parked_bytes: r.bank.as_ref().map_or(0, |b| b.parked_bytes(&r.awake, s.rows, s.cols)),
    }
}
