//! Drives a compression: plan, decompose slice after slice, assemble.

use super::assemble::{self, Contents};
use super::encode::{self, Kind};
use super::error::{Error, Result};
use super::manifest::{Manifest, component_cost};
use super::plan::{self, Facts};
use super::refine::{self, Learner};
use super::settings::{Chooser, Reach, Refinement, Settings, Svd};
use super::work::{Decided, Work};
use super::{budget, budget::Rungs, residual};
use crate::mlx::{Array, randomized};
use crate::model::tensor_file::Tensor;
use crate::model::{Level, Levels, LoadOptions, Model};
use crate::plastic::elastic::{Elastic, ElasticError, Matrices};
use crate::plastic::factor::{Components, Leading, Metric};
use crate::plastic::moments::Moments;
use crate::plastic::policies::Policies;
use crate::plastic::statistic::Computed;
use crate::plugin::contract::{Run, Slice};
use std::path::Path;

/// What a compression is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Computing the statistics a policy asks for.
    Statistics,
    /// Decomposing slices.
    Slices,
    /// Distilling the base into them.
    Refine,
    /// Looking for the smallest budget.
    Search,
}

/// Budgets tried for a target.
const SEARCHES: usize = 8;

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
    /// Text to refine on.
    pub learn: Vec<Vec<u32>>,
    /// The working directory.
    pub work: Work,
}

impl Job<'_> {
    /// Everything up to the finished parts; answers the plan.
    ///
    /// # Errors
    /// When a plugin or a slice fails, the disk is full, or on interruption. What is done stays.
    pub fn run(&mut self, watch: &mut Watch) -> Result<Decided> {
        let result = self.decided(watch).and_then(|d| {
            match self.settings.refine.clone() {
                None => self.parts(&d, watch),
                Some(how) => self.refined(&d, &how, watch),
            }
            .map(|()| d)
        });
        result.map_err(|e| self.told(e))
    }

    /// An interruption in words that say how to go on.
    fn told(&self, e: Error) -> Error {
        match e {
            Error::Elastic(ElasticError::Interrupted) => Error::Interrupted(self.work.dir().to_owned()),
            e => e,
        }
    }

    /// The plan, from the working directory or from the policy now.
    fn decided(&mut self, watch: &mut Watch) -> Result<Decided> {
        if let Some(known) = self.work.decided()? {
            return Ok(known);
        }
        let decided = self.decide(self.settings.budget, Computed::new(), watch)?;
        self.work.decide(&decided)?;
        Ok(decided)
    }

    /// Finds the smallest budget at which `perplexity` of the compressed model is at most `target`, halving the
    /// interval between the floor and 1, and makes it the plan. Nothing is decomposed twice.
    ///
    /// # Errors
    /// As [`Job::run`], and when not even the whole model reaches the target.
    pub fn search(
        &mut self,
        target: f64,
        perplexity: &mut dyn FnMut(&Model) -> Result<f64>,
        watch: &mut Watch,
    ) -> Result<()> {
        self.searched(target, perplexity, watch).map_err(|e| self.told(e))
    }

    fn searched(
        &mut self,
        target: f64,
        perplexity: &mut dyn FnMut(&Model) -> Result<f64>,
        watch: &mut Watch,
    ) -> Result<()> {
        if self.work.decided()?.is_some() {
            return Ok(());
        }
        let first = self.decide(1.0, Computed::new(), watch)?;
        let slices = self.elastic.slices().to_vec();
        // Beyond this rank the dense slice is smaller.
        let whole_ladder = self.settings.ladder == Reach::Full;
        let most = |s: &Slice| match whole_ladder {
            true => s.max_rank,
            false => (s.dense_parameters / s.component_parameters.max(1)).min(u64::from(s.max_rank)) as u32,
        };
        let whole =
            Decided { levels: vec![Level::Dense; slices.len()], stored: slices.iter().map(most).collect(), ..first };
        self.parts(&whole, watch)?;
        let place = self.work.dir().join("whole");
        let contents = Contents { settings: self.settings, decided: &whole, slices: &slices, work: &self.work };
        assemble::assemble(&place, &contents, |_, _| Ok(()))?;
        let mut model = Model::load(&place, &LoadOptions { parked: true, ..LoadOptions::default() })?;
        let need = format!("spectrum:{}", whole.metric.name());
        let known = Computed::from([(need, whole.spectra.clone())]);
        let base = perplexity(&model)?;
        if base > target {
            return Err(Error::Usage(format!(
                "--target-ppl {target}: the base itself has a perplexity of {base:.2} on this text; ask for more"
            )));
        }
        let (mut low, mut high) = (self.settings.floor, 1.0);
        let mut best = None;
        for done in 0..SEARCHES {
            let middle = if done == 0 { low } else { (low + high) / 2.0 };
            if !watch(Stage::Search, done, SEARCHES, &format!("{middle:.3}")) {
                return Err(Error::Interrupted(self.work.dir().to_owned()));
            }
            let tried = self.decide(middle, known.clone(), watch)?;
            for (i, (level, most)) in tried.levels.iter().zip(&whole.stored).enumerate() {
                let level = match level {
                    Level::Rank(r) if r >= most => Level::Dense,
                    level => *level,
                };
                model.set_level(self.elastic.position(i), level)?;
            }
            let reached = perplexity(&model)? <= target;
            if reached {
                (high, best) = (middle, Some(tried));
            } else {
                low = middle;
            }
            if reached && done == 0 {
                break;
            }
        }
        let best = match best {
            Some(best) => best,
            None => self.decide(1.0, known, watch)?,
        };
        drop(model);
        let _ = std::fs::remove_dir_all(&place);
        self.work.decide(&best)
    }

    /// What the policy, or whoever chose, makes of a budget.
    fn decide(&mut self, share: f64, known: Computed, watch: &mut Watch) -> Result<Decided> {
        let mut tell = |done: usize, total: usize, slice: &str| watch(Stage::Statistics, done, total, slice);
        let dense: u64 = self.elastic.slices().iter().map(|s| s.dense_parameters).sum();
        let settings = self.settings;
        let enough = enough(settings, share, self.elastic.slices())?;
        let (levels, metric, mut computed, predicted) = match (&self.settings.chooser, &mut self.policies) {
            (Chooser::Ranks(ranks), _) => {
                let metric = self.settings.metric.unwrap_or(Metric::Fisher);
                (mapped(settings, ranks, self.elastic.slices())?, metric, Computed::new(), None)
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
                let mut computed = known;
                if settings.coarse.is_some() {
                    // Policies see the spectra of what the coarse weights lose.
                    for need in policies.needs() {
                        let Some(metric) = Metric::from_need(&need) else { continue };
                        let weight = |i: usize| weight(&self.elastic, settings, i);
                        let values = self.elastic.spectra_of(&weight, metric, moments, &mut tell)?;
                        computed.insert(need, values);
                    }
                }
                let repairs = settings.coarse.is_some();
                let mut facts = Facts { elastic: &mut self.elastic, moments, windows, repairs, progress: &mut tell };
                let d = plan::decide(policies, &run, &mut facts, computed)?;
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
                let weight = |i: usize| weight(&self.elastic, settings, i);
                self.elastic.spectra_of(&weight, metric, self.moments.as_ref(), &mut tell)?
            }
        };
        let stored = stored(self.settings, self.elastic.slices(), &levels, &spectra);
        Ok(Decided { metric, levels, stored, spectra, predicted })
    }

    /// Decomposes every slice whose part is not there yet.
    fn parts(&mut self, d: &Decided, watch: &mut Watch) -> Result<()> {
        let all = self.elastic.slices().len();
        let is_stored = |i: usize| self.settings.coarse.is_some() || d.stored.get(i).is_some_and(|r| *r > 0);
        let missing: Vec<usize> = (0..all).filter(|i| is_stored(*i) && !self.work.has(*i)).collect();
        let before = all - missing.len();
        let (settings, work, slices) = (self.settings, &self.work, self.elastic.slices());
        let mut tell = |done: usize, _: usize, slice: &str| watch(Stage::Slices, before + done, all, slice);
        let mut failed = None;
        let elastic = &self.elastic;
        let weight = |i: usize| weight(elastic, settings, i);
        let leading = |i: usize| leading(settings, d.stored[i]);
        let moments = self.moments.as_ref();
        let what = Matrices { these: &missing, weight: &weight, metric: d.metric, moments, leading: &leading };
        let result = elastic.components_of(&what, &mut tell, |i, components| {
            let keep = || -> Result<()> {
                let (slice, rank) = (&slices[i], d.stored[i]);
                let first = encode::first(&components, rank)?;
                let mut tensors = match settings.coarse {
                    Some(coarse) => residual::tensors(&slice.name, &elastic.dense(i)?, coarse)?,
                    None => Vec::new(),
                };
                if rank > 0 {
                    let kind = if settings.coarse.is_some() { Kind::Repair } else { Kind::Ladder };
                    tensors.extend(encode::encode(&slice.name, kind, &first, settings.factor_bits)?.0);
                }
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

    /// Decomposes all slices, refines their components together, and keeps the parts.
    fn refined(&mut self, d: &Decided, how: &Refinement, watch: &mut Watch) -> Result<()> {
        let slices = self.elastic.slices();
        let these: Vec<usize> = (0..slices.len()).filter(|&i| d.stored[i] > 0).collect();
        if these.iter().all(|&i| self.work.has(i)) {
            return Ok(());
        }
        let (elastic, all) = (&self.elastic, slices.len());
        let mut tell = |done: usize, _: usize, slice: &str| watch(Stage::Slices, done, all, slice);
        let mut found: Vec<(usize, Components)> = Vec::with_capacity(these.len());
        let weight = |i: usize| elastic.dense(i);
        let (settings, moments) = (self.settings, self.moments.as_ref());
        let leading = |i: usize| leading(settings, d.stored[i]);
        let what = Matrices { these: &these, weight: &weight, metric: d.metric, moments, leading: &leading };
        elastic.components_of(&what, &mut tell, |i, c| {
            let first = || encode::first(&c, d.stored[i]).and_then(|c| encode::balance(&c));
            found.push((i, first().map_err(|_| ElasticError::Interrupted)?));
            Ok(())
        })?;
        found.sort_by_key(|(i, _)| *i);
        let levels = self.budgets(d, how);
        let learner = |(i, components): (usize, Components)| Learner {
            position: elastic.position(i),
            layer: slices[i].layer as usize,
            components,
            levels: levels.iter().map(|l| l[i]).collect(),
        };
        let mut learners: Vec<Learner> = found.into_iter().map(learner).collect();
        let mut tell = |step: u32, steps: u32, kl: f64| {
            tracing::info!("refining: step {step} of {steps}, KL {kl:.4} nats per token");
            watch(Stage::Refine, step as usize, steps as usize, &format!("KL {kl:.3}"))
        };
        let state = self.work.dir().join("refine.safetensors");
        let done = refine::refine(elastic.model(), &mut learners, &self.learn, how, &state, &mut tell)?;
        if done.is_none() {
            return Err(Error::Interrupted(self.work.dir().to_owned()));
        }
        for (&i, l) in these.iter().zip(&learners) {
            let name = &slices[i].name;
            let (mut tensors, _) = encode::encode(name, Kind::Ladder, &l.components, self.settings.factor_bits)?;
            tensors.push(energies(name, &d.spectra[i]));
            self.work.keep(i, &tensors)?;
        }
        Ok(())
    }

    /// The levels of every slice at the budgets of a refinement: those of the plan at its own.
    fn budgets(&self, d: &Decided, how: &Refinement) -> Vec<Vec<Level>> {
        let slices = self.elastic.slices();
        let dense: u64 = slices.iter().map(|s| s.dense_parameters).sum();
        let rungs = rungs(self.settings, slices, &d.levels, &d.spectra);
        let at = |(share, _): &(f64, f64)| {
            let smaller = *share < self.settings.budget;
            let levels = budget::levels(&rungs, (share * dense as f64) as u64).filter(|_| smaller);
            levels.unwrap_or_else(|| d.levels.clone())
        };
        how.budgets.iter().map(at).collect()
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

/// How many components of a slice are looked for, and how.
fn leading(settings: &Settings, rank: u32) -> Leading {
    let Svd::Randomized { oversamples, power_iterations, seed } = settings.svd else { return None };
    let options = randomized::Options { oversamples, power_iterations, seed, ..randomized::Options::default() };
    (rank > 0).then_some((rank, options))
}

/// What is decomposed of a slice: its weight, or what the coarse weight loses of it.
fn weight(elastic: &Elastic, settings: &Settings, i: usize) -> std::result::Result<Array, ElasticError> {
    let w = elastic.dense(i)?;
    match settings.coarse {
        None => Ok(w),
        Some(coarse) => residual::lost(&w, coarse)
            .map_err(|source| ElasticError::Factor { slice: elastic.slices()[i].name.clone(), source }),
    }
}

/// Parameters that components may have under the budget.
fn enough(settings: &Settings, share: f64, slices: &[Slice]) -> Result<u64> {
    let dense: u64 = slices.iter().map(|s| s.dense_parameters).sum();
    let all = (share * dense as f64).floor() as u64;
    let Some(coarse) = settings.coarse else { return Ok(all) };
    let fixed: u64 = slices.iter().map(|s| residual::cost(coarse, s.rows, s.cols)).sum();
    let left = all.checked_sub(fixed).ok_or_else(|| {
        Error::Usage(format!(
            "a budget of {} of the bytes in float16 is less than the {} bit weights alone take ({:.3}); ask for more, or for fewer bits",
            share,
            coarse.bits,
            fixed as f64 / dense as f64
        ))
    })?;
    // Components are counted by their values, and paid for by their bytes.
    let (values, cost) = slices
        .iter()
        .fold((0, 0), |(v, c), s| (v + s.component_parameters, c + component_cost(settings, s.rows, s.cols)));
    Ok((left as f64 * values as f64 / cost.max(1) as f64) as u64)
}

/// Energies of all components of a slice.
fn energies(slice: &str, values: &[f32]) -> Tensor {
    let squares: Vec<f32> = values.iter().map(|s| s * s).collect();
    Tensor::f32(format!("{slice}.energy"), vec![squares.len()], &squares)
}

/// The levels of a map that names every slice.
fn mapped(settings: &Settings, ranks: &Levels, slices: &[Slice]) -> Result<Vec<Level>> {
    let one = |s: &Slice| {
        let level = ranks.get(&s.name).copied();
        let level = level.ok_or_else(|| Error::slice(&s.name, "the map of ranks does not say what becomes of it"))?;
        match level {
            Level::Rank(0) if settings.coarse.is_none() => {
                Err(Error::slice(&s.name, "rank 0 asked for, which would take it out of the model; give it 1 or more"))
            }
            Level::Rank(r) if r > s.max_rank => {
                Err(Error::slice(&s.name, format!("rank {r} asked for, but it has {} components", s.max_rank)))
            }
            level => Ok(level),
        }
    };
    slices.iter().map(one).collect()
}

/// How many components of each slice are stored: all where the settings say so; else those of the plan, and of a
/// slice that stays dense those that a smaller budget wakes in its place.
fn stored(settings: &Settings, slices: &[Slice], levels: &[Level], spectra: &[Vec<f32>]) -> Vec<u32> {
    let rank = |level: &Level| if let Level::Rank(r) = level { *r } else { 0 };
    if settings.ladder == Reach::Full {
        return slices.iter().map(|s| s.max_rank).collect();
    }
    if settings.coarse.is_some() {
        return levels.iter().map(rank).collect();
    }
    let rungs = rungs(settings, slices, levels, spectra);
    let planned: u64 = rungs.iter().zip(levels).map(|(r, l)| r.cost(*l)).sum();
    let dense: u64 = slices.iter().map(|s| s.dense_parameters).sum();
    let floor = ((settings.floor * dense as f64) as u64).min(planned);
    let reach = budget::reach(&rungs, floor, planned);
    let of_slice = |(level, reach): (&Level, &u32)| match level {
        Level::Rank(r) => *r,
        Level::Dense => *reach,
    };
    levels.iter().zip(&reach).map(of_slice).collect()
}

/// The slices as budgets below the plan see them: no component beyond those of the plan.
fn rungs(settings: &Settings, slices: &[Slice], levels: &[Level], spectra: &[Vec<f32>]) -> Vec<Rungs> {
    slices
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
        .collect()
}
