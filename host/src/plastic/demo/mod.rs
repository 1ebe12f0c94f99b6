//! The plasticity demo: a model serves a load that rises and falls, and a policy moves its ranks.
//!
//! A step is: requests arrive and are served ([`serve`]) → a policy sees what was measured and answers a
//! plan → the plan is resolved and applied as in a run → the loss is measured on a few windows. No
//! evaluator judges: what is shown is what the policy does. What a policy is told beside its statistics:
//! the metrics `scored-tokens-per-second` (as a request sees it, waiting included), `throughput`,
//! `token-ms`, `queue-depth`, `loss`, `loss-increase`, `perplexity` and, where the system tells,
//! `resident-bytes`; the facts of the moment also as attributes.
//!
//! A plan that breaks a rule, and a policy that fails, leave the model as it was; after three failures
//! in a row, or when it says stop, the policy is not asked again and the load goes on. The model, MLX
//! and Ctrl-C end a demo with an error. [`Demo::wake`] then or at the end puts the base back, and
//! compares it bit for bit.

pub mod chart;
pub mod load;
pub mod log;
pub mod serve;
pub mod svg;

use super::bank::Parking;
use super::elastic::{Elastic, ElasticError, Factoring};
use super::factor::Metric;
use super::journal::Fate;
use super::moments::Moments;
use super::plan;
use super::policies::{Policies, Undecided};
use super::statistic::{OFFERED, Statistic, spectra_of};
use super::step::{laid_out, probe};
use crate::eval::perplexity;
use crate::mlx;
use crate::model::Error as ModelError;
use crate::plugin::Fault;
use crate::plugin::contract::{self, Attribute, Observation, Outcome, Plan, Run, Value};
use log::{Did, Event};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serve::Served;
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

/// Failures in a row after which a policy is not asked again.
const MAX_FAULTS: u32 = 3;

/// Metrics that policies are told of.
pub const METRICS: [&str; 8] = [
    "scored-tokens-per-second",
    "throughput",
    "token-ms",
    "queue-depth",
    "loss",
    "loss-increase",
    "perplexity",
    "resident-bytes",
];

/// A demo cannot go on; the model runs as after its last whole step.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Tensors.
    #[error(transparent)]
    Elastic(#[from] ElasticError),
    /// A policy refuses the run.
    #[error(transparent)]
    Plugin(#[from] Fault),
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
    /// The loss is no number.
    #[error("the loss is {0} after step {1}: the model computes values that are not finite")]
    NotFinite(f64, u32),
    /// Ctrl-C.
    #[error("interrupted; nothing is left behind: the base itself never changed")]
    Interrupted,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, DemoError>;

/// What a step is doing, for progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Answering requests.
    Serve,
    /// Decomposing every slice for its spectrum.
    Spectra,
    /// Factoring the slices a plan changes.
    Apply,
    /// Measuring the loss.
    Check,
}

/// Told (stage, done, total) and asked whether to go on.
pub type Tell<'a> = dyn FnMut(Stage, u64, u64) -> bool + 'a;

/// Everything a demo needs, put together by the caller.
pub struct Parts {
    /// The model on its base weights.
    pub elastic: Elastic,
    /// Configured policies.
    pub policies: Policies,
    /// Calibration statistics, where the policies' metrics need them.
    pub moments: Option<Moments>,
    /// The run as policies are told; its seed also draws the prompts.
    pub run: Run,
    /// Requests at each step.
    pub load: Vec<u32>,
    /// Rounds in which the requests of a step come; the one of median speed counts.
    pub rounds: u32,
    /// Prompts to draw requests from; at least one.
    pub prompts: Vec<Vec<u32>>,
    /// Windows the loss is measured on; at least one.
    pub check: Vec<Vec<u32>>,
    /// What events name as the strategy.
    pub strategy: String,
}

/// What happened in one step.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// From 1.
    pub step: u32,
    /// The load and what it felt like, measured before the policy was asked.
    pub served: Served,
    /// What became of the plan: `committed`, `held`, `refused` or `failed`.
    pub fate: Fate,
    /// Why, in the policy's words where it has some.
    pub reason: String,
    /// Parameters awake before the plan.
    pub parameters_before: u64,
    /// Parameters awake after it.
    pub parameters: u64,
    /// The same as a share of all.
    pub awake: f64,
    /// Components awake in all slices after it.
    pub rank: u64,
    /// Bytes of parked components after it.
    pub parked_bytes: u64,
    /// Slices with fewer components awake than before.
    pub slept: u32,
    /// Slices with more.
    pub woke: u32,
    /// Rise of the loss that the policy predicted for its plan, nats a token.
    pub predicted: Option<f64>,
    /// Loss after the plan, nats a token.
    pub loss: f64,
    /// Its rise over the base.
    pub loss_increase: f64,
    /// Seconds for decomposing, factoring and swapping.
    pub apply_seconds: f64,
    /// The changes, slice by slice.
    #[serde(skip)]
    pub events: Vec<Event>,
}

/// The proof at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Woken {
    /// SHA-256 of the probe's logits before anything slept.
    pub base_sha256: String,
    /// The same after everything woke.
    pub woken_sha256: String,
    /// Loss after everything woke; equal to the base's to the last bit.
    pub loss: f64,
    /// Whether logits and losses are the base's, bit for bit.
    pub identical: bool,
    /// Seconds that waking took.
    pub seconds: f64,
}

/// A demo in progress.
pub struct Demo {
    parts: Parts,
    rng: ChaCha8Rng,
    statistics: BTreeMap<String, Vec<Vec<f32>>>,
    base_sha256: String,
    base_loss: f64,
    loss: f64,
    last: Option<Outcome>,
    next: u32,
    /// Step at which each slice last changed; 0 where it never did.
    changed: Vec<u32>,
    faults: u32,
    /// Why no policy is asked any more.
    stopped: Option<String>,
}

impl Demo {
    /// Probes the base and starts the policies.
    ///
    /// # Errors
    /// When a policy refuses the run or needs something the host does not offer, or the model fails.
    pub fn new(mut parts: Parts) -> Result<Demo> {
        parts.policies.check_order().map_err(DemoError::Order)?;
        for info in parts.policies.infos() {
            if let Some(need) = info.needs.iter().find(|n| Statistic::parse(n).is_none()) {
                return Err(DemoError::UnknownNeed { plugin: info.name.clone(), need: need.clone() });
            }
        }
        parts.policies.start(&parts.run, parts.elastic.slices())?;
        let base_sha256 = probe(parts.elastic.model(), &parts.check)?;
        let base_loss = loss(&parts, 0)?;
        let slices = parts.elastic.slices().len();
        Ok(Demo {
            rng: ChaCha8Rng::seed_from_u64(parts.run.seed),
            parts,
            statistics: BTreeMap::new(),
            base_sha256,
            base_loss,
            loss: base_loss,
            last: None,
            next: 1,
            changed: vec![0; slices],
            faults: 0,
            stopped: None,
        })
    }

    /// Loss of the base on the windows, nats a token.
    pub fn base_loss(&self) -> f64 {
        self.base_loss
    }

    /// Serves the load of the next step, asks the policies and does what they say; `None` after the last.
    ///
    /// # Errors
    /// When the model fails, and on interruption.
    pub fn step(&mut self, tell: &mut Tell) -> Result<Option<Step>> {
        let Some(&requests) = self.parts.load.get(self.next as usize - 1) else { return Ok(None) };
        let served = self.serve(requests, tell)?;

        let begun = Instant::now();
        let before: Vec<u32> = self.ranks();
        let (parameters_before, loss_before) = (self.parts.elastic.parameters(), self.loss);
        let mut tried = match &self.stopped {
            Some(why) => Tried { reason: why.clone(), ..Tried::default() },
            None => self.decide(&served, tell)?,
        };
        let apply_seconds = begun.elapsed().as_secs_f64();
        let after = self.ranks();
        let moved = |up: bool| before.iter().zip(&after).filter(|(b, a)| if up { a > b } else { a < b }).count() as u32;
        let (slept, woke) = (moved(false), moved(true));
        if slept + woke > 0 {
            tell(Stage::Check, 0, 1);
            self.loss = loss(&self.parts, self.next)?;
            if !tell(Stage::Check, 1, 1) {
                return Err(DemoError::Interrupted);
            }
        }
        let events = self.events(&before, &after, loss_before, tried.metric);
        let states = self.parts.elastic.states();
        let parameters = self.parts.elastic.parameters();
        let loss_increase = self.loss - self.base_loss;
        if let Some(last) = &mut tried.outcome {
            last.measured = Some(loss_increase);
        }
        self.last = tried.outcome;
        for (changed, _) in self.changed.iter_mut().zip(before.iter().zip(&after)).filter(|(_, (b, a))| b != a) {
            *changed = self.next;
        }
        let step = Step {
            step: self.next,
            served,
            fate: tried.fate,
            reason: tried.reason,
            parameters_before,
            parameters,
            awake: parameters as f64 / self.parts.run.parameters.max(1) as f64,
            rank: after.iter().map(|r| u64::from(*r)).sum(),
            parked_bytes: states.iter().map(|s| s.parked_bytes).sum(),
            slept,
            woke,
            predicted: tried.predicted,
            loss: self.loss,
            loss_increase,
            apply_seconds,
            events,
        };
        self.next += 1;
        Ok(Some(step))
    }

    /// Wakes everything and compares logits and losses with the base's, bit for bit.
    ///
    /// # Errors
    /// When the model fails.
    pub fn wake(&mut self) -> Result<Woken> {
        let begun = Instant::now();
        self.parts.elastic.wake_all();
        let seconds = begun.elapsed().as_secs_f64();
        let woken_sha256 = probe(self.parts.elastic.model(), &self.parts.check)?;
        let loss = loss(&self.parts, self.next)?;
        let identical = woken_sha256 == self.base_sha256 && loss.to_bits() == self.base_loss.to_bits();
        Ok(Woken { base_sha256: self.base_sha256.clone(), woken_sha256, loss, identical, seconds })
    }

    /// Serves the same number of requests in each round, and answers the round of median speed: a
    /// neighbour that takes the processor for a moment is no load.
    fn serve(&mut self, requests: u32, tell: &mut Tell) -> Result<Served> {
        let mut rounds = Vec::with_capacity(self.parts.rounds as usize);
        for round in 0..u64::from(self.parts.rounds.max(1)) {
            let prompts = self.draw(requests);
            let each = prompts.len() as u64;
            let total = each * u64::from(self.parts.rounds.max(1));
            let model = self.parts.elastic.model();
            let served = serve::serve(model, requests, &prompts, &mut |n| tell(Stage::Serve, round * each + n, total))?;
            rounds.push(served.ok_or(DemoError::Interrupted)?);
        }
        rounds.sort_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second));
        let middle = rounds.len() / 2;
        Ok(rounds.into_iter().nth(middle).unwrap_or_default())
    }

    /// The prompts of a step; one where no request comes, so that there is something to measure.
    fn draw(&mut self, requests: u32) -> Vec<Vec<u32>> {
        let pool = &self.parts.prompts;
        let rng = &mut self.rng;
        (0..requests.max(1)).filter_map(|_| pool.get(rng.random_range(0..pool.len().max(1))).cloned()).collect()
    }

    fn ranks(&self) -> Vec<u32> {
        self.parts.elastic.states().iter().map(|s| s.awake).collect()
    }

    /// Asks the policies, and applies what they answer.
    fn decide(&mut self, served: &Served, tell: &mut Tell) -> Result<Tried> {
        let needs = self.parts.policies.needs();
        self.compute(&needs, tell)?;
        let seen = self.observe(&needs, served);
        let (slices, subjects) = (self.parts.elastic.slices(), self.parts.elastic.subjects());
        let budget = self.parts.run.budget;
        let resolve = |plan: &Plan| plan::resolve(plan, slices, &subjects, budget, &spectra_of(&seen));
        let decided = match self.parts.policies.decide(&seen, &needs, &resolve) {
            Ok(decided) => decided,
            Err(Undecided::Fault(fault)) => return Ok(self.fault(Fate::Failed, fault.to_string(), None)),
            Err(Undecided::Refused { policy, refusal, plan }) => {
                return Ok(self.fault(Fate::Refused, format!("{policy}: {refusal}"), Some(&plan)));
            }
        };
        let plan = &decided.plan;
        let unmet = |n: &&String| Statistic::parse(n).is_none_or(|s| s.needs_moments() && self.parts.moments.is_none());
        let checked = match plan.requests.iter().find(unmet) {
            Some(name) => Err(plan::Refusal::Request { name: name.clone() }),
            None => resolve(plan),
        };
        let resolved = match checked {
            Ok(resolved) => resolved,
            Err(refusal) => return Ok(self.fault(Fate::Refused, refusal.to_string(), Some(plan))),
        };
        let how = Factoring {
            metric: Some(decided.metric),
            moments: self.parts.moments.as_ref(),
            parking: Parking::EightBit,
        };
        let applied = self.parts.elastic.apply(&resolved.awake, &resolved.frozen, &how, &mut |done, total, _| {
            tell(Stage::Apply, done as u64, total as u64)
        });
        match applied {
            Err(ElasticError::Interrupted) => return Err(DemoError::Interrupted),
            other => other?,
        }
        let fate = if resolved.changed.is_empty() { Fate::Held } else { Fate::Committed };
        let reason = plan.actions.first().map(|a| a.reason.clone());
        let reason = plan.stop.clone().or(plan.threshold.as_ref().map(|t| t.reason.clone())).or(reason);
        let tried = Tried {
            fate,
            reason: reason.filter(|r| !r.is_empty()).unwrap_or_else(|| "the plan changes nothing".into()),
            predicted: plan.predicted,
            metric: Some(decided.metric),
            outcome: Some(self.outcome(fate, String::new(), plan.predicted)),
        };
        self.stopped = plan.stop.as_ref().map(|why| format!("the policy stopped at step {}: {why}", self.next));
        self.faults = 0;
        self.parts.policies.hear(Some(&decided), false);
        Ok(tried)
    }

    /// A step without a plan that can be followed.
    fn fault(&mut self, fate: Fate, reason: String, plan: Option<&Plan>) -> Tried {
        self.parts.policies.hear(None, false);
        self.faults += 1;
        if self.faults >= MAX_FAULTS {
            self.stopped = Some(format!("{MAX_FAULTS} failures in a row, the last: {reason}"));
        }
        let predicted = plan.and_then(|p| p.predicted);
        let outcome = Some(self.outcome(fate, reason.clone(), predicted));
        Tried { fate, reason, predicted, metric: None, outcome }
    }

    fn outcome(&self, fate: Fate, reason: String, predicted: Option<f64>) -> Outcome {
        Outcome { step: self.next, fate: fate.name().into(), reason, predicted, measured: None, metrics: Vec::new() }
    }

    /// Computes what is needed and not yet there, once: the base does not change.
    fn compute(&mut self, needs: &[String], tell: &mut Tell) -> Result<()> {
        for name in needs {
            if self.statistics.contains_key(name) {
                continue;
            }
            let unknown = || DemoError::UnknownNeed { plugin: "a policy".into(), need: name.clone() };
            let statistic = Statistic::parse(name).ok_or_else(unknown)?;
            let Parts { elastic, moments, check, .. } = &mut self.parts;
            let mut tell = |done: usize, total: usize, _: &str| tell(Stage::Spectra, done as u64, total as u64);
            let computed = match statistic.compute(elastic, moments.as_ref(), check, &mut tell) {
                Err(ElasticError::Interrupted) => return Err(DemoError::Interrupted),
                other => other?,
            };
            self.statistics.insert(name.clone(), computed);
        }
        Ok(())
    }

    /// What the policies are told.
    fn observe(&self, needs: &[String], served: &Served) -> Observation {
        let (series, values, asleep) = laid_out(&self.parts.elastic, needs, &self.statistics);
        let mut slices = self.parts.elastic.states();
        for (s, at) in slices.iter_mut().zip(&self.changed) {
            s.dwell = self.next.saturating_sub(1 + at);
        }
        let metrics = self.metrics(served);
        let facts = ["token-ms", "queue-depth", "resident-bytes"];
        let fact = |m: &contract::Metric| Attribute { name: m.name.clone(), value: Value::Num(m.value) };
        Observation {
            step: self.next,
            awake: self.parts.elastic.parameters(),
            slices,
            series,
            values,
            asleep,
            attributes: metrics.iter().filter(|m| facts.contains(&m.name.as_str())).map(fact).collect(),
            metrics,
            last: self.last.clone(),
            proposed: None,
        }
    }

    fn metrics(&self, served: &Served) -> Vec<contract::Metric> {
        let [speed, throughput, token_ms, queue, loss, increase, perplexity, resident] = METRICS;
        let metric = |name: &str, value: f64, unit: &str, higher_is_better| contract::Metric {
            name: name.into(),
            value,
            unit: unit.into(),
            higher_is_better,
            low: None,
            high: None,
        };
        let mut out = vec![
            metric(speed, served.tokens_per_second, "tokens/s", true),
            metric(throughput, served.throughput, "tokens/s", true),
            metric(token_ms, served.token_ms_p50, "ms", false),
            metric(queue, f64::from(served.requests), "requests", false),
            metric(loss, self.loss, "nats/token", false),
            metric(increase, self.loss - self.base_loss, "nats/token", false),
            metric(perplexity, self.loss.exp(), "", false),
        ];
        if let Some((now, _)) = mlx::memory::rss() {
            out.push(metric(resident, now as f64, "bytes", false));
        }
        out
    }

    /// One event for each slice that changed.
    fn events(&self, before: &[u32], after: &[u32], loss_before: f64, metric: Option<Metric>) -> Vec<Event> {
        let ts = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let spectra = metric.and_then(|m| self.statistics.get(&format!("spectrum:{}", m.name())));
        let (states, subjects) = (self.parts.elastic.states(), self.parts.elastic.subjects());
        let mut out = Vec::new();
        for (i, slice) in self.parts.elastic.slices().iter().enumerate() {
            let (Some(&r0), Some(&r_star), Some(state), Some(subject)) =
                (before.get(i), after.get(i), states.get(i), subjects.get(i))
            else {
                continue;
            };
            if r0 == r_star {
                continue;
            }
            let awake = subject.awake.components(slice.max_rank);
            out.push(Event {
                ts,
                layer: slice.name.clone(),
                r0,
                r_star,
                residual: spectra.and_then(|all| log::residual(all.get(i)?, &awake)),
                action: if r_star < r0 { Did::Shrink } else { Did::Wake },
                sleep_bytes: state.parked_bytes,
                val_loss_before: Some(loss_before),
                val_loss_after: Some(self.loss),
                strategy: self.parts.strategy.clone(),
            });
        }
        out
    }
}

/// What became of asking the policies.
struct Tried {
    fate: Fate,
    reason: String,
    predicted: Option<f64>,
    metric: Option<Metric>,
    outcome: Option<Outcome>,
}

impl Default for Tried {
    fn default() -> Tried {
        Tried { fate: Fate::Held, reason: String::new(), predicted: None, metric: None, outcome: None }
    }
}

/// Mean loss on the windows of the check, nats a token.
fn loss(parts: &Parts, step: u32) -> Result<f64> {
    let rows = parts.elastic.model().score(&parts.check)?;
    let losses: Vec<perplexity::WindowLoss> = rows.iter().map(|nll| perplexity::sum(nll, None)).collect();
    let (mean, _) = perplexity::mean(&losses);
    if mean.is_finite() { Ok(mean) } else { Err(DemoError::NotFinite(mean, step)) }
}
