//! How fast a plugin loads and answers, on made-up models: medians over as many repetitions as the
//! time allows.
//!
//! Several plugins are measured in turns, stage by stage, so that a noisy moment of the machine hits
//! all of them. A plugin that refuses to answer at a stage has no figure there, only its reason.

use super::check::{Family, Model, Script};
use super::contract::{Observation, Task};
use super::{Evaluator, Fault, FaultClass, Kind, Loader, Policy, Rules};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Slices and their rank, as every host is measured.
pub const SHAPES: [(u32, u32); 3] = [(1, 576), (210, 576), (10_000, 64)];
/// Turns each stage is measured in.
const ROUNDS: u32 = 3;
/// Repetitions of one stage at most.
const MOST: usize = 200_000;

/// Where half of the repetitions were faster, and where 95 of 100 were.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// Seconds, at least.
    pub min: f64,
    /// Seconds, in the middle.
    pub median: f64,
    /// Seconds, of 95 in 100 at most.
    pub p95: f64,
    /// How many were measured.
    pub times: usize,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Option<Spread> {
        times.sort_unstable();
        let at = |share: f64| times.get(((times.len() - 1) as f64 * share) as usize).map(Duration::as_secs_f64);
        if times.is_empty() {
            return None;
        }
        Some(Spread { min: at(0.0)?, median: at(0.5)?, p95: at(0.95)?, times: times.len() })
    }
}

/// One measured stage of one plugin.
#[derive(Clone, Debug, Serialize)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Spread>,
    /// Why there is no figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// All figures of one plugin.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The file.
    pub file: PathBuf,
    /// The plugin's name.
    pub name: String,
    /// The stages, in order; the same for every plugin.
    pub stages: Vec<Stage>,
    /// Peak of its linear memory, bytes; none where the carrier has none.
    pub peak_memory: Option<u64>,
}

/// A plugin to measure.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The file.
    pub path: PathBuf,
    /// Its options.
    pub options: Value,
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub enum Effort {
    /// About so long each plugin.
    Time(Duration),
    /// One load and exactly so many calls at each stage, the first on each model apart: for counting instructions.
    Calls(usize),
}

/// Measures plugins of one kind side by side; policies on made-up models of `shapes` (slices, rank). Compiled code is
/// kept under `cache` while it is measured.
///
/// # Errors
/// One of them cannot be loaded, or refuses its options.
pub fn run(
    candidates: &[Candidate],
    kind: Kind,
    rules: &Rules,
    cache: &Path,
    shapes: &[(u32, u32)],
    effort: Effort,
) -> Result<Vec<Figures>, Fault> {
    let new = |c| Track::new(c, kind, rules, cache, shapes);
    let mut tracks = candidates.iter().map(new).collect::<Result<Vec<_>, _>>()?;
    let stages = tracks.first().map_or(0, Track::stages);
    let (rounds, slot) = match effort {
        Effort::Time(time) => (ROUNDS, Slot::Time(time / (stages.max(1) as u32 * ROUNDS))),
        Effort::Calls(calls) => (1, Slot::Calls(calls)),
    };
    for stage in 0..stages {
        for _ in 0..rounds {
            for track in &mut tracks {
                track.measure(stage, slot)?;
            }
        }
    }
    Ok(tracks.into_iter().map(Track::figures).collect())
}

/// How long a stage is measured in one turn.
#[derive(Clone, Copy)]
enum Slot {
    Time(Duration),
    Calls(usize),
}

/// A plugin under measurement.
struct Track {
    candidate: Candidate,
    cold: Loader,
    warm: Loader,
    subject: Subject,
    /// Shape by shape: what the policy is told.
    models: Vec<(Model, Observation)>,
    /// Which of them the policy has been started on.
    started: Option<usize>,
    times: Vec<Vec<Duration>>,
    refused: Vec<Option<String>>,
    peak: Option<u64>,
}

enum Subject {
    Policy(Box<dyn Policy>),
    Evaluator(Box<dyn Evaluator>),
}

impl Subject {
    fn load(loader: &Loader, kind: Kind, c: &Candidate) -> Result<Subject, Fault> {
        Ok(match kind {
            Kind::Policy => {
                let mut policy = loader.policy(&c.path)?;
                policy.configure(&c.options)?;
                Subject::Policy(policy)
            }
            Kind::Evaluator => {
                let mut evaluator = loader.evaluator(&c.path)?;
                evaluator.configure(&c.options)?;
                Subject::Evaluator(evaluator)
            }
        })
    }

    fn kind(&self) -> Kind {
        match self {
            Subject::Policy(_) => Kind::Policy,
            Subject::Evaluator(_) => Kind::Evaluator,
        }
    }
}

impl Track {
    fn new(
        candidate: &Candidate,
        kind: Kind,
        rules: &Rules,
        cache: &Path,
        shapes: &[(u32, u32)],
    ) -> Result<Track, Fault> {
        let cold = Loader::new(rules.clone(), None);
        let warm = Loader::new(rules.clone(), Some(cache.to_owned()));
        let subject = Subject::load(&warm, kind, candidate)?;
        let models = match &subject {
            Subject::Evaluator(_) => vec![],
            Subject::Policy(policy) => {
                let info = policy.info();
                let model = |(count, rank): &(u32, u32)| {
                    let mut model = Model::even(*count, *rank, *rank, Family::PowerLaw, 1);
                    if let Some(phase) = info.phases.first() {
                        model.run.phase.clone_from(phase);
                    }
                    let seen = model.observe(&info.needs);
                    (model, seen)
                };
                shapes.iter().map(model).collect()
            }
        };
        let mut track = Track {
            candidate: candidate.clone(),
            cold,
            warm,
            subject,
            models,
            started: None,
            times: vec![],
            refused: vec![],
            peak: None,
        };
        (track.times, track.refused) = (vec![vec![]; track.stages()], vec![None; track.stages()]);
        Ok(track)
    }

    fn names(&self) -> Vec<String> {
        let mut names = vec!["cold load (compiles)".to_owned(), "warm load (from the cache)".to_owned()];
        match self.subject.kind() {
            Kind::Policy => {
                for (model, _) in &self.models {
                    let count = model.slices.len();
                    let rank = model.slices.first().map_or(0, |s| s.max_rank);
                    names.push(format!("decide {count} × {rank}, the call"));
                    names.push(format!("decide {count} × {rank}, all of it"));
                }
            }
            Kind::Evaluator => names.push("evaluate 32 × 512 tokens, the guest's part".into()),
        }
        names
    }

    fn stages(&self) -> usize {
        self.names().len()
    }

    /// Repeats one stage for `slot`, at least once a turn; the first `decide` on a model is not counted.
    fn measure(&mut self, stage: usize, slot: Slot) -> Result<(), Fault> {
        // The two figures of a shape come from the same calls.
        let is_second = self.subject.kind() == Kind::Policy && stage > 2 && stage % 2 == 1;
        if is_second || self.refused[stage].is_some() {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            match stage {
                0 | 1 => {
                    let loader = if stage == 0 { &self.cold } else { &self.warm };
                    let started = Instant::now();
                    let loaded = Subject::load(loader, self.subject.kind(), &self.candidate)?;
                    self.times[stage].push(started.elapsed());
                    drop(loaded);
                }
                _ => {
                    let told = match self.subject.kind() {
                        Kind::Policy => self.decide(stage),
                        Kind::Evaluator => self.evaluate(stage),
                    };
                    match told {
                        Err(f) if f.class == FaultClass::Refused => {
                            self.refused[stage] = Some(f.message.clone());
                            if self.subject.kind() == Kind::Policy {
                                self.refused[stage + 1] = Some(f.message);
                            }
                            return Ok(());
                        }
                        told => told?,
                    }
                }
            }
            let done = match slot {
                Slot::Time(slot) => began.elapsed() >= slot || self.times[stage].len() >= MOST,
                Slot::Calls(calls) => stage < 2 || self.times[stage].len() >= calls,
            };
            if done {
                return Ok(());
            }
        }
    }

    fn decide(&mut self, stage: usize) -> Result<(), Fault> {
        let Subject::Policy(policy) = &mut self.subject else { return Ok(()) };
        let shape = (stage - 2) / 2;
        let (model, seen) = &self.models[shape];
        let is_first = self.started.replace(shape) != Some(shape);
        if is_first {
            policy.start(&model.run, &model.slices)?;
        }
        let began = Instant::now();
        policy.decide(seen)?;
        let whole = began.elapsed();
        let cost = policy.last_cost();
        self.peak = self.peak.max(cost.memory_bytes);
        if !is_first {
            self.times[stage].push(cost.wall);
            self.times[stage + 1].push(whole);
        }
        Ok(())
    }

    fn evaluate(&mut self, stage: usize) -> Result<(), Fault> {
        let Subject::Evaluator(evaluator) = &mut self.subject else { return Ok(()) };
        let mut script = Script { windows: 32, tokens: 512, ..Script::new(1, 0.02) };
        evaluator.evaluate(&Task { step: 1, seed: 1, attributes: vec![] }, &mut script)?;
        let cost = evaluator.last_cost();
        self.peak = self.peak.max(cost.memory_bytes);
        self.times[stage].push(cost.wall);
        Ok(())
    }

    fn figures(self) -> Figures {
        let name = match &self.subject {
            Subject::Policy(p) => p.info().name.clone(),
            Subject::Evaluator(e) => e.info().name.clone(),
        };
        let stages = self.names().into_iter().zip(self.times).zip(self.refused);
        let stage = |((name, times), refused)| Stage { name, time: Spread::of(times), refused };
        Figures { file: self.candidate.path, name, stages: stages.map(stage).collect(), peak_memory: self.peak }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_spread_of_a_hundred() {
        let spread = Spread::of((1..=101).rev().map(Duration::from_millis).collect()).unwrap();
        assert_eq!((spread.min, spread.median, spread.p95, spread.times), (0.001, 0.051, 0.096, 101));
        assert!(Spread::of(vec![]).is_none());
    }
}
