//! The loop: observe → decide → validate → apply → evaluate → commit or roll back → journal.
//!
//! A step either commits, after its banks and its journal line are on the disk, or leaves the model
//! exactly as it was. Whatever a plugin does ends in a [`Fate`]; only the host's own failures (a full
//! disk, MLX) and an interruption come out as errors, with the model rolled back.

use super::bank::Parking;
use super::config::OnFault;
use super::elastic::{Elastic, ElasticError, Factoring, Snapshot};
use super::factor::Metric;
use super::journal::{
    Event, Fate, Footprint, History, Journal, JournalError, PluginRecord, Role, ShadowRecord, StepRecord, SwapRecord,
    Times, WakeRecord,
};
use super::measure::{HostMeasure, ScoreBook, States, Subject};
use super::moments::Moments;
use super::panel::{self, Opinion};
use super::plan::{self, Resolved};
use super::policies::{Decided, Policies, Seat, Undecided};
use super::recording::{self, RecordingError};
use super::rundir::{RunDir, RunError};
use super::state::DENSE;
use super::statistic::{self, Computed, OFFERED, Statistic, spectra_of};
use crate::mlx::{self, Array};
use crate::model::{Error as ModelError, Model, Tokenizer, hash};
use crate::plugin::contract::{self, Decision, Observation, Outcome, Plan, Run, Series, Task, Verdict};
use crate::plugin::{Evaluator, Fault, Policy};
use sha2::{Digest, Sha256};
use std::time::{Instant, SystemTime};

/// A run failed on the host's side, or was interrupted; the model is as after the last commit.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Files.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Tensors.
    #[error(transparent)]
    Elastic(#[from] ElasticError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A plugin failed before the first step.
    #[error(transparent)]
    Plugin(#[from] Fault),
    /// What policies were shown cannot be kept.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The order of the policies makes no sense.
    #[error("{0}")]
    Order(String),
    /// A policy asks for something this host cannot compute.
    #[error("{plugin}: needs {need:?}, which this host does not offer; it offers {OFFERED}")]
    UnknownNeed {
        /// The policy.
        plugin: String,
        /// What it asked for.
        need: String,
    },
    /// Ctrl-C.
    #[error("interrupted; nothing is lost: the run continues with `plastic-host resume {0}`")]
    Interrupted(String),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, StepError>;

/// What a step is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Decomposing every slice for its spectrum.
    Spectra,
    /// Factoring the slices a plan changes.
    Apply,
    /// Scoring text.
    Evaluate,
}

/// Told of progress and asked whether to go on.
pub trait Watcher {
    /// (done, total) of a stage; `detail` is a slice name or empty. False interrupts.
    fn progress(&mut self, stage: Stage, done: u64, total: u64, detail: &str) -> bool;
    /// A step ended and is in the journal.
    fn step(&mut self, step: &StepRecord);
    /// The file of a plugin changed.
    fn swap(&mut self, swap: &SwapRecord);
    /// Whether the run was asked to stop.
    fn interrupted(&self) -> bool;
}

/// UTC now, RFC 3339 with seconds.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    utc(seconds)
}

/// Seconds since 1970 as RFC 3339 (days to civil date after Hinnant's algorithm).
pub fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// Everything a run needs, put together by the caller.
pub struct Parts {
    /// The model, on its base weights or in the state to go on from.
    pub elastic: Elastic,
    /// Configured policies.
    pub policies: Policies,
    /// Configured evaluators; at least one.
    pub evaluators: Vec<Box<dyn Evaluator>>,
    /// What happens where a policy fails.
    pub on_fault: OnFault,
    /// Statistics to keep beside those the policies need.
    pub record: Vec<String>,
    /// Looks for changed plugins between steps.
    pub watch: Option<Box<dyn Watch>>,
    /// Calibration statistics, where the policy's metrics need them.
    pub moments: Option<Moments>,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Evaluation text.
    pub windows: Vec<Vec<u32>>,
    /// Prompts with answers, from the same file.
    pub examples: Vec<contract::Example>,
    /// Windows scored in one batch.
    pub batch: usize,
    /// The run directory.
    pub dir: RunDir,
    /// The run as the policy is told.
    pub run: Run,
    /// How sleepers are kept.
    pub parking: Parking,
    /// Failures in a row after which the run ends.
    pub max_faults: u32,
}

/// A plugin whose file changed, ready to take its place: loaded and configured.
pub enum Fresh {
    /// A policy.
    Policy(Box<dyn Policy>),
    /// An evaluator.
    Evaluator(Box<dyn Evaluator>),
}

/// A change that [`Watch`] found.
pub struct Changed {
    /// Where the plugin stands.
    pub role: Role,
    /// Its place there.
    pub place: usize,
    /// The new plugin and its record, or why the old one goes on.
    pub fresh: std::result::Result<(Fresh, PluginRecord), String>,
}

/// Looks for plugins whose files changed.
pub trait Watch {
    /// What changed since the last look.
    fn look(&mut self) -> Vec<Changed>;
}

/// A run in progress.
pub struct Runner {
    parts: Parts,
    journal: Journal,
    book: ScoreBook,
    /// Statistics computed so far, by name, slice by slice.
    statistics: Computed,
    metrics: Vec<contract::Metric>,
    last: Option<Outcome>,
    /// Step whose state is current.
    parent: u32,
    next: u32,
    /// Step at which each slice last changed.
    changed: Vec<u32>,
    probe_base: Option<String>,
}

/// Why the loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// One sentence.
    pub reason: String,
    /// Whether steps failed so often that the policy is not asked again.
    pub benched: bool,
    /// What the policies had to say, by name.
    pub reports: Vec<(String, String)>,
}

impl Runner {
    /// Begins or continues: starts the policy, and on continuing gives it its state back.
    ///
    /// # Errors
    /// When the policy refuses the run or needs something the host does not offer.
    pub fn new(mut parts: Parts, journal: Journal) -> Result<Runner> {
        parts.policies.check_order().map_err(StepError::Order)?;
        check_needs(&parts)?;
        parts.policies.start(&parts.run, parts.elastic.slices())?;
        let events = journal.events();
        let current = events.current().cloned();
        let next = events.steps().last().map_or(1, |s| s.step + 1);
        let basis = outcome_basis(events).cloned();
        if let Some(s) = &basis {
            let states: Vec<Vec<u8>> = s.policy_states.iter().map(|hex| from_hex(hex)).collect();
            parts.policies.restore(&states)?;
            recall_requests(&mut parts.policies, s, s.plan.clone());
        }
        let last = basis.as_ref().map(outcome);
        let judged = events.chain(current.as_ref()).into_iter().find_map(|s| s.verdict.as_ref());
        let metrics = judged.map_or_else(Vec::new, |v| v.metrics.clone());
        let changed = changes(events, parts.elastic.slices().len());
        let book = ScoreBook::new(parts.windows.len());
        let parent = current.map_or(0, |s| s.step);
        Ok(Runner {
            parts,
            journal,
            book,
            statistics: Computed::new(),
            metrics,
            last,
            parent,
            next,
            changed,
            probe_base: None,
        })
    }

    /// The journal so far.
    pub fn events(&self) -> &[Event] {
        self.journal.events()
    }

    /// The model in its current state.
    pub fn elastic(&self) -> &Elastic {
        &self.parts.elastic
    }

    /// Takes steps until the run's number of steps is reached, the policy stops, or it is benched.
    ///
    /// # Errors
    /// On the host's own failures and on interruption; the model is as after the last commit.
    pub fn run(&mut self, watcher: &mut dyn Watcher) -> Result<Ended> {
        self.remember_base()?;
        let mut benched = false;
        // What an interruption kept from being the end counts as what it was.
        let mut last = self.unfinished();
        let reason = loop {
            if let Some(record) = &last {
                if let Some(why) = record.plan.as_ref().and_then(|p| p.stop.as_ref()) {
                    break format!("the policy stopped: {why}");
                }
                let faults = self.failures_in_a_row();
                if self.parts.on_fault == OnFault::Stop && record.fault.is_some() {
                    benched = true;
                    break format!("a plugin failed: {}", record.reason);
                }
                // With a fallback the run goes on without the policies that failed.
                if faults >= self.parts.max_faults && self.parts.policies.fallback.is_none() {
                    benched = true;
                    break format!("{faults} failures in a row, the last: {}", record.reason);
                }
            }
            if self.next > self.parts.run.steps {
                break format!("{} of {} steps taken", self.next - 1, self.parts.run.steps);
            }
            if watcher.interrupted() {
                return Err(self.interrupted());
            }
            self.swap(watcher)?;
            let record = self.step(watcher)?;
            watcher.step(&record);
            last = Some(record);
        };
        let reports = self.reports();
        self.journal.append(Event::End { time: now(), reason: reason.clone(), reports: reports.clone() })?;
        Ok(Ended { reason, benched, reports })
    }

    /// What the policies have to say at the end.
    fn reports(&mut self) -> Vec<(String, String)> {
        let mut out = Vec::new();
        for seat in self.parts.policies.seats() {
            match seat.policy.report() {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => out.push((seat.name().to_owned(), text)),
                Err(fault) => tracing::warn!(target: "plugin", "{fault}"),
            }
        }
        out
    }

    /// Takes in plugins whose files changed; a broken one changes nothing and is told of.
    fn swap(&mut self, watcher: &mut dyn Watcher) -> Result<()> {
        let Some(mut watch) = self.parts.watch.take() else { return Ok(()) };
        for changed in watch.look() {
            let (role, place) = (changed.role, changed.place);
            let mut record =
                SwapRecord { time: now(), role, place, plugin: None, carried: false, problem: String::new() };
            match changed.fresh {
                Err(problem) => record.problem = problem,
                Ok((Fresh::Evaluator(e), plugin)) => {
                    if let Some(seat) = self.parts.evaluators.get_mut(place) {
                        *seat = e;
                        record.plugin = Some(plugin);
                    }
                }
                Ok((Fresh::Policy(p), plugin)) => match self.seat_policy(role, place, p) {
                    Ok((carried, problem)) => {
                        (record.carried, record.problem) = (carried, problem);
                        record.plugin = Some(plugin);
                    }
                    Err(problem) => record.problem = problem,
                },
            }
            self.journal.append(Event::Swap(Box::new(record.clone())))?;
            watcher.swap(&record);
        }
        self.parts.watch = Some(watch);
        Ok(())
    }

    /// Puts a new policy in a seat, with the state of the old one where both are of one major version.
    ///
    /// # Errors
    /// Why the old one keeps the seat.
    fn seat_policy(
        &mut self,
        role: Role,
        place: usize,
        mut new: Box<dyn Policy>,
    ) -> std::result::Result<(bool, String), String> {
        if let Some(need) = unmet(&new.info().needs, self.parts.moments.is_some()) {
            return Err(format!("{}: needs {need}, which this run cannot compute", new.info().name));
        }
        let policies = &mut self.parts.policies;
        let seat = match role {
            Role::Policy => policies.line.get_mut(place),
            Role::Shadow => policies.shadows.get_mut(place),
            Role::Fallback => policies.fallback.as_mut(),
            Role::Evaluator => None,
        };
        let seat = seat.ok_or("there is no such seat")?;
        new.start(&self.parts.run, self.parts.elastic.slices()).map_err(|f| f.to_string())?;
        let major = |v: &str| v.split('.').next().unwrap_or_default().to_owned();
        let (old_version, new_version) = (seat.policy.info().version.clone(), new.info().version.clone());
        let (mut carried, mut problem) = (false, String::new());
        if major(&old_version) != major(&new_version) {
            problem = format!("its state stays behind: version {old_version} is now {new_version}");
        } else {
            let state = seat.policy.snapshot().unwrap_or_default();
            match new.restore(&state) {
                Ok(()) => carried = true,
                Err(fault) => {
                    problem = format!("its state stays behind: {fault}");
                    // A half-restored policy begins again.
                    new.start(&self.parts.run, self.parts.elastic.slices()).map_err(|f| f.to_string())?;
                }
            }
        }
        let name = new.info().name.clone();
        let old = std::mem::replace(seat, Seat::new(new));
        if let Err(why) = self.parts.policies.check_order() {
            // Only its order in the line can be wrong.
            if let Some(seat) = self.parts.policies.line.get_mut(place) {
                *seat = old;
            }
            return Err(format!("{name}: {why}"));
        }
        Ok((carried, problem))
    }

    /// The last step, where nothing was done about it yet.
    fn unfinished(&self) -> Option<StepRecord> {
        let last = self.journal.events().iter().rev().find(|e| !matches!(e, Event::Resume { .. } | Event::Wake(_)));
        if let Some(Event::Step(s)) = last { Some((**s).clone()) } else { None }
    }

    fn interrupted(&self) -> StepError {
        StepError::Interrupted(self.parts.dir.path().display().to_string())
    }

    /// One step; answers its record.
    fn step(&mut self, watcher: &mut dyn Watcher) -> Result<StepRecord> {
        let before = self.parts.elastic.snapshot();
        let done = self.try_step(&before, watcher);
        if done.is_err() {
            self.parts.elastic.restore(&before);
        }
        match done {
            Err(StepError::Elastic(ElasticError::Interrupted)) => Err(self.interrupted()),
            other => other,
        }
    }

    fn try_step(&mut self, before: &Snapshot, watcher: &mut dyn Watcher) -> Result<StepRecord> {
        let begun = Instant::now();
        let mut clock = Clock::default();
        let mut needs = self.parts.policies.needs();
        for name in &self.parts.record {
            if !needs.contains(name) {
                needs.push(name.clone());
            }
        }
        clock.time(|t| &mut t.spectra, || self.compute(&needs, watcher))?;
        let observation = clock.time(|t| &mut t.observe, || self.observe(&needs));
        let kept = clock
            .time(|t| &mut t.record, || recording::write(self.parts.dir.path(), self.next, &needs, &observation))?;
        let mut record = self.blank_record(kept);
        let decided = clock.time(|t| &mut t.decide, || self.decide(&observation, &needs, &mut record));
        record.fuel = self.parts.policies.fuel();
        record.shadows = clock.time(|t| &mut t.shadow, || self.shadow(&observation, &needs));
        let mut heard = None;
        match decided {
            Err(Undecided::Fault(fault)) => self.fault(&mut record, fault),
            Err(Undecided::Refused { policy, refusal, plan }) => {
                self.fail(&mut record, Fate::Refused, format!("{policy}: {refusal}"));
                record.plan = Some(*plan);
            }
            Ok(decided) => {
                let plan = &decided.plan;
                let resolved = clock.time(|t| &mut t.validate, || self.resolve(plan, &observation));
                let resolved = resolved.and_then(|r| self.check_requests(&plan.requests).map(|()| r));
                record.plan = Some(decided.plan.clone());
                record.proposals = decided.proposals.clone();
                match resolved {
                    Err(refusal) => self.fail(&mut record, Fate::Refused, refusal.to_string()),
                    Ok(r) => {
                        self.try_plan(decided.metric, r, before, &mut record, &mut clock, watcher)?;
                        heard = Some(decided);
                    }
                }
            }
        }
        self.parts.policies.hear(heard.as_ref(), record.fallback);
        record.policy_states = self.parts.policies.snapshots().iter().map(|s| hash::hex(s)).collect();
        record.times = clock.0;
        record.times.total = begun.elapsed().as_secs_f64();
        self.journal.append(Event::Step(Box::new(record.clone())))?;
        self.last = Some(outcome(&record));
        if record.fate == Fate::Committed {
            self.parent = record.step;
            self.changed = changes(self.journal.events(), self.changed.len());
            if let Some(v) = &record.verdict {
                self.metrics = v.metrics.clone();
                self.book.promote();
            }
        }
        self.next += 1;
        Ok(record)
    }

    /// Asks the pipeline, or the fallback where the pipeline fails or failed too often.
    fn decide(
        &mut self,
        observation: &Observation,
        needs: &[String],
        record: &mut StepRecord,
    ) -> std::result::Result<Decided, Undecided> {
        let benched = self.failures_in_a_row() >= self.parts.max_faults && self.parts.policies.fallback.is_some();
        let fault = match benched {
            true => None,
            false => {
                let (slices, subjects) = (self.parts.elastic.slices(), self.parts.elastic.subjects());
                let budget = self.parts.run.budget;
                let resolve = |plan: &Plan| plan::resolve(plan, slices, &subjects, budget, &spectra_of(observation));
                match self.parts.policies.decide(observation, needs, &resolve) {
                    Err(Undecided::Fault(fault)) => Some(fault),
                    other => return other,
                }
            }
        };
        record.fault = fault.clone();
        match (self.parts.policies.decide_fallback(observation, needs), fault) {
            (Some(Ok(decided)), _) => {
                record.fallback = true;
                Ok(decided)
            }
            (Some(Err(fault)), _) | (None, Some(fault)) => Err(Undecided::Fault(fault)),
            (None, None) => Err(Undecided::Fault(Policies::nobody())),
        }
    }

    /// What the shadows would have done.
    fn shadow(&mut self, observation: &Observation, needs: &[String]) -> Vec<ShadowRecord> {
        let plans = self.parts.policies.shadow(observation, needs);
        let record = |(policy, plan): (String, std::result::Result<Plan, Fault>)| {
            let parameters = self.parts.elastic.parameters();
            let blank = ShadowRecord { policy, plan: None, problem: None, ranks: Vec::new(), parameters };
            let plan = match plan {
                Ok(plan) => plan,
                Err(fault) => return ShadowRecord { problem: Some(fault.to_string()), ..blank },
            };
            match self.resolve(&plan, observation) {
                Err(refusal) => ShadowRecord { plan: Some(plan), problem: Some(refusal.to_string()), ..blank },
                Ok(r) => {
                    let ranks = r.awake.iter().zip(self.parts.elastic.slices()).map(|(a, s)| a.rank(s.max_rank));
                    ShadowRecord { plan: Some(plan), ranks: ranks.collect(), parameters: r.parameters, ..blank }
                }
            }
        };
        plans.into_iter().map(record).collect()
    }

    fn fault(&self, record: &mut StepRecord, fault: Fault) {
        self.fail(record, Fate::Failed, fault.to_string());
        record.fault = Some(fault);
    }

    fn blank_record(&self, observation_sha256: String) -> StepRecord {
        let (footprint, ranks) = (self.footprint(), self.ranks());
        StepRecord {
            step: self.next,
            parent: self.parent,
            time: now(),
            observation_sha256,
            plan: None,
            proposals: Vec::new(),
            shadows: Vec::new(),
            fault: None,
            fuel: Vec::new(),
            fallback: false,
            fate: Fate::Held,
            reason: String::new(),
            before: footprint,
            after: footprint,
            ranks_before: ranks.clone(),
            ranks_after: ranks,
            verdict: None,
            opinions: Vec::new(),
            tokens_per_second: None,
            times: Times::default(),
            state: None,
            frozen: Vec::new(),
            banks: Vec::new(),
            banks_sha256: String::new(),
            policy_states: Vec::new(),
        }
    }

    fn fail(&self, record: &mut StepRecord, fate: Fate, reason: String) {
        record.fate = fate;
        record.reason = reason;
    }

    /// Applies a resolved plan, has it judged, and commits it or rolls it back.
    fn try_plan(
        &mut self,
        metric: Metric,
        resolved: Resolved,
        before: &Snapshot,
        record: &mut StepRecord,
        clock: &mut Clock,
        watcher: &mut dyn Watcher,
    ) -> Result<()> {
        let how = Factoring { metric: Some(metric), moments: self.parts.moments.as_ref(), parking: self.parts.parking };
        let elastic = &mut self.parts.elastic;
        clock.time(
            |t| &mut t.apply,
            || {
                let mut tell = |done: usize, total: usize, slice: &str| {
                    watcher.progress(Stage::Apply, done as u64, total as u64, slice)
                };
                elastic.apply(&resolved.awake, &resolved.frozen, &how, &mut tell)
            },
        )?;
        record.after = self.footprint();
        record.ranks_after = self.ranks();
        let candidate = self.parts.elastic.snapshot();
        let commit = |record: &mut StepRecord| {
            record.fate = Fate::Committed;
            record.state = Some(candidate.awake());
            record.frozen = (0u32..).zip(&resolved.frozen).filter(|(_, f)| **f).map(|(i, _)| i).collect();
        };
        if resolved.changed.is_empty() {
            record.reason = "the plan changes nothing".into();
            if candidate.frozen() != before.frozen() {
                record.reason = "the plan freezes and thaws only: nothing to measure".into();
                commit(record);
            }
            return Ok(());
        }
        let judged = clock.time(|t| &mut t.evaluate, || self.judge(record.step, before, &candidate, watcher));
        clock.0.scoring = self.book.seconds();
        if watcher.interrupted() {
            return Err(self.interrupted());
        }
        record.tokens_per_second = self.book.tokens_per_second();
        match judged {
            Err(fault) => {
                self.parts.elastic.restore(before);
                self.fault(record, fault);
            }
            Ok((verdict, opinions)) => {
                record.opinions = opinions;
                record.reason = verdict.reason.clone();
                let accepted = verdict.decision == Decision::Accept;
                record.verdict = Some(verdict);
                if accepted {
                    (record.banks, record.banks_sha256) = clock
                        .time(|t| &mut t.commit, || self.parts.dir.write_banks(record.step, &mut self.parts.elastic))?;
                    commit(record);
                } else {
                    self.parts.elastic.restore(before);
                    record.fate = Fate::Rejected;
                }
            }
        }
        Ok(())
    }

    /// Whether the statistics a plan asks for can be had.
    fn check_requests(&self, requests: &[String]) -> std::result::Result<(), plan::Refusal> {
        match unmet(requests, self.parts.moments.is_some()) {
            Some(name) => Err(plan::Refusal::Request { name: name.to_owned() }),
            None => Ok(()),
        }
    }

    fn resolve(&self, plan: &Plan, observation: &Observation) -> std::result::Result<Resolved, plan::Refusal> {
        let subjects = self.parts.elastic.subjects();
        let budget = self.parts.run.budget;
        plan::resolve(plan, self.parts.elastic.slices(), &subjects, budget, &spectra_of(observation))
    }

    fn judge(
        &mut self,
        step: u32,
        current: &Snapshot,
        candidate: &Snapshot,
        watcher: &mut dyn Watcher,
    ) -> std::result::Result<(Verdict, Vec<Opinion>), Fault> {
        self.book.begin();
        let mut tell = |done: u64, total: u64| watcher.progress(Stage::Evaluate, done, total, "");
        let mut states = States { elastic: &mut self.parts.elastic, current, candidate };
        let mut measure = HostMeasure {
            subjects: &mut states,
            tokenizer: &self.parts.tokenizer,
            windows: &self.parts.windows,
            examples: &self.parts.examples,
            running: Subject::Candidate,
            batch: self.parts.batch,
            book: &mut self.book,
            progress: &mut tell,
        };
        let task = Task { step, seed: self.parts.run.seed, attributes: Vec::new() };
        panel::judge(&mut self.parts.evaluators, &task, &mut measure)
    }

    /// Computes what is needed and not yet there, once a run: the base does not change.
    fn compute(&mut self, needs: &[String], watcher: &mut dyn Watcher) -> Result<()> {
        for name in needs {
            if self.statistics.contains_key(name) {
                continue;
            }
            let plugin = || self.parts.policies.infos().first().map_or_else(String::new, |i| i.name.clone());
            let statistic = Statistic::parse(name)
                .ok_or_else(|| StepError::UnknownNeed { plugin: plugin(), need: name.clone() })?;
            let mut tell =
                |done: usize, total: usize, s: &str| watcher.progress(Stage::Spectra, done as u64, total as u64, s);
            let Parts { elastic, moments, windows, .. } = &mut self.parts;
            let computed = statistic.compute(elastic, moments.as_ref(), windows, &mut tell)?;
            self.statistics.insert(name.clone(), computed);
        }
        Ok(())
    }

    /// What the policies are told.
    fn observe(&self, needs: &[String]) -> Observation {
        let (series, values, asleep) = laid_out(&self.parts.elastic, needs, &self.statistics);
        Observation {
            step: self.next,
            awake: self.parts.elastic.parameters(),
            slices: self.states(),
            series,
            values,
            asleep,
            metrics: self.metrics.clone(),
            last: self.last.clone(),
            proposed: None,
            attributes: Vec::new(),
        }
    }

    /// The slices' states, with the steps since each changed.
    fn states(&self) -> Vec<contract::SliceState> {
        let mut states = self.parts.elastic.states();
        for (s, at) in states.iter_mut().zip(&self.changed) {
            s.dwell = self.next.saturating_sub(1 + at);
        }
        states
    }

    /// Failed and refused steps at the end of the journal, since the run last ended or went back.
    fn failures_in_a_row(&self) -> u32 {
        let mut count = 0;
        for event in self.journal.events().iter().rev() {
            match event {
                Event::Step(s) if s.fallback && s.fault.is_none() => {}
                Event::Step(s) if s.fault.is_some() || s.fate == Fate::Refused => count += 1,
                // A new plugin gets a new chance.
                Event::Step(_) | Event::End { .. } | Event::Undo { .. } | Event::Swap(_) => break,
                Event::Run(_) | Event::Resume { .. } | Event::Wake(_) => {}
            }
        }
        count
    }

    fn footprint(&self) -> Footprint {
        let states = self.parts.elastic.states();
        Footprint {
            parameters: states.iter().map(|s| s.parameters).sum(),
            bytes: states.iter().map(|s| s.bytes).sum(),
            parked_bytes: states.iter().map(|s| s.parked_bytes).sum(),
        }
    }

    fn ranks(&self) -> Vec<u32> {
        self.parts.elastic.states().iter().map(|s| s.awake).collect()
    }

    /// SHA-256 of the logits of a probe: the first tokens of the evaluation text.
    fn probe(&self) -> Result<String> {
        Ok(probe(self.parts.elastic.model(), &self.parts.windows)?)
    }

    /// Probes the base before anything sleeps.
    fn remember_base(&mut self) -> Result<()> {
        let now = self.parts.elastic.snapshot();
        self.parts.elastic.wake_all();
        let probed = self.probe();
        self.parts.elastic.restore(&now);
        self.probe_base = Some(probed?);
        Ok(())
    }

    /// Wakes everything, compares the logits with the base's, and goes back to the current state.
    ///
    /// # Errors
    /// When the model fails or the journal cannot be written.
    pub fn prove_waking(&mut self) -> Result<WakeRecord> {
        let base_sha256 = match self.probe_base.clone() {
            Some(sha) => sha,
            None => {
                self.remember_base()?;
                self.probe_base.clone().unwrap_or_default()
            }
        };
        let now_running = self.parts.elastic.snapshot();
        let begun = Instant::now();
        self.parts.elastic.wake_all();
        let seconds = begun.elapsed().as_secs_f64();
        let woken = self.probe();
        self.parts.elastic.restore(&now_running);
        let woken_sha256 = woken?;
        let identical = woken_sha256 == base_sha256;
        let record = WakeRecord { time: now(), base_sha256, woken_sha256, identical, seconds };
        self.journal.append(Event::Wake(record.clone()))?;
        Ok(record)
    }
}

/// Statistics as an observation carries them: where each lies, the values, and which components sleep.
pub(super) fn laid_out(elastic: &Elastic, needs: &[String], statistics: &Computed) -> (Vec<Series>, Vec<f32>, Vec<u8>) {
    let (series, values) = statistic::series(needs, statistics);
    let mut asleep = Vec::new();
    let subjects = elastic.subjects();
    if subjects.iter().any(|s| matches!(s.awake, super::state::Awake::These(_))) {
        for s in &series {
            let awake = subjects[s.slice as usize].awake.components(s.len);
            asleep.extend((0..s.len).map(|c| u8::from(awake.binary_search(&c).is_err())));
        }
    }
    (series, values, asleep)
}

/// SHA-256 of the logits of a probe, bit for bit: the first tokens of some windows.
pub(super) fn probe(model: &Model, windows: &[Vec<u32>]) -> std::result::Result<String, ModelError> {
    const TOKENS: usize = 64;
    let ids: Vec<i32> = windows.iter().flatten().take(TOKENS).map(|t| *t as i32).collect();
    let tokens = Array::from_slice(&ids, &[1, ids.len() as i32]);
    let logits = model.logits(&model.hidden(&tokens, None)?)?;
    mlx::eval([&logits])?;
    let mut sha = Sha256::new();
    for v in mlx::spectral::to_vec(&logits)? {
        sha.update((v as f32).to_le_bytes());
    }
    Ok(hash::hex(&sha.finalize()))
}

/// The step at which each slice last changed on the way to the current state; 0 where it never did.
fn changes(events: &[Event], slices: usize) -> Vec<u32> {
    let mut changed = vec![0; slices];
    let chain = events.chain(events.current());
    for (n, s) in chain.iter().enumerate() {
        let parent = chain.get(n + 1);
        for (i, last) in changed.iter_mut().enumerate().filter(|(_, last)| **last == 0) {
            let of = |s: &StepRecord| s.state.as_ref().and_then(|all| all.get(i).cloned()).unwrap_or(DENSE);
            if of(s) != parent.map_or(DENSE, |p| of(p)) {
                *last = s.step;
            }
        }
    }
    changed
}

/// Sums up the phases of a step.
#[derive(Default)]
struct Clock(Times);

impl Clock {
    fn time<T>(&mut self, phase: impl FnOnce(&mut Times) -> &mut f64, f: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let out = f();
        *phase(&mut self.0) += begun.elapsed().as_secs_f64();
        out
    }
}

/// The step whose outcome the policies are told next: the last one, or after an undo the one whose
/// state is current again.
pub(super) fn outcome_basis(events: &[Event]) -> Option<&StepRecord> {
    let mut after = events.iter().rev().take_while(|e| !matches!(e, Event::Step(_)));
    let undone = after.any(|e| matches!(e, Event::Undo { .. }));
    if undone { events.current() } else { events.steps().last() }
}

/// Gives policies that have been restored to a step the requests of their plans there; `plan` is the
/// last word of the pipeline.
pub(super) fn recall_requests(policies: &mut Policies, s: &StepRecord, plan: Option<Plan>) {
    if s.fate != Fate::Refused {
        let decided = plan.map(|plan| Decided { plan, proposals: s.proposals.clone(), metric: Metric::Plain });
        policies.hear(decided.as_ref(), s.fallback);
    }
    for (seat, shadow) in policies.shadows.iter_mut().zip(&s.shadows) {
        seat.hear(shadow.plan.as_ref());
    }
}

/// The first of some statistics that this run cannot compute.
fn unmet(names: &[String], has_moments: bool) -> Option<&str> {
    let can = |name: &str| Statistic::parse(name).is_some_and(|s| has_moments || !s.needs_moments());
    names.iter().map(String::as_str).find(|name| !can(name))
}

fn check_needs(parts: &Parts) -> Result<()> {
    for info in parts.policies.infos() {
        if let Some(need) = info.needs.iter().find(|n| Statistic::parse(n).is_none()) {
            return Err(StepError::UnknownNeed { plugin: info.name.clone(), need: need.clone() });
        }
    }
    Ok(())
}

pub(super) fn outcome(s: &StepRecord) -> Outcome {
    let measured = |v: &Verdict| v.metrics.iter().find(|m| m.name == "loss-increase").map(|m| m.value);
    Outcome {
        step: s.step,
        fate: s.fate.name().into(),
        reason: s.reason.clone(),
        predicted: s.plan.as_ref().and_then(|p| p.predicted),
        measured: s.verdict.as_ref().and_then(measured),
        metrics: s.verdict.as_ref().map_or_else(Vec::new, |v| v.metrics.clone()),
    }
}

/// Bytes from base 16; whatever is no pair of digits ends the reading.
pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks_exact(2);
    digits.map_while(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn dates_are_civil() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_996_799), "2026-11-29T23:59:59Z");
    }

    #[test]
    fn plugin_state_survives_the_journal() {
        assert_eq!(from_hex(&hash::hex(&[0, 255, 16])), vec![0, 255, 16]);
        assert!(from_hex("zz").is_empty());
    }
}
