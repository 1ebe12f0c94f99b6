//! What makes an instance a [`Policy`] or an [`Evaluator`], wherever it runs: every answer is
//! checked as a component's is, and an instance that a fault took is made again, told the options
//! and the run again, and given the snapshot taken after the last good step, as if nothing had
//! happened.

use super::super::contract::{Example, Info, Metric, Observation, Plan, Run, Slice, Task, Verdict};
use super::super::limits::Limits;
use super::super::{CallCost, Evaluator, Fault, FaultClass, Measure, Origin, Policy, answer, desk, text};
use super::Failure;
use std::time::{Duration, Instant};

/// A living policy. Which functions there are and what they mean: `plugin-api/wit/rank.wit`.
pub(super) trait PolicyInstance {
    fn describe(&mut self) -> Result<Info, Failure>;
    fn configure(&mut self, options: &str) -> Result<(), Failure>;
    fn start(&mut self, run: &Run, slices: &[Slice]) -> Result<(), Failure>;
    fn decide(&mut self, observation: &Observation) -> Result<Plan, Failure>;
    fn snapshot(&mut self) -> Result<Vec<u8>, Failure>;
    fn restore(&mut self, state: &[u8]) -> Result<(), Failure>;
    fn report(&mut self) -> Result<String, Failure>;
}

/// A living evaluator.
pub(super) trait EvaluatorInstance {
    fn describe(&mut self) -> Result<Info, Failure>;
    fn configure(&mut self, options: &str) -> Result<(), Failure>;
    fn evaluate(&mut self, task: &Task, measure: &mut dyn Measure) -> Result<Verdict, Failure>;
}

/// Makes an instance; the argument is the plugin's name, for its log lines.
pub(super) type Make<I> = Box<dyn Fn(&str) -> Result<Box<I>, Failure>>;
pub(super) type MakePolicy = Make<dyn PolicyInstance>;
pub(super) type MakeEvaluator = Make<dyn EvaluatorInstance>;

/// What both kinds have: the instance, and how another one is made.
struct Kept<I: ?Sized> {
    origin: Origin,
    /// Name of the plugin, for faults and log lines; its path until it has described itself.
    plugin: String,
    limits: Limits,
    make: Make<I>,
    live: Option<Box<I>>,
    info: Info,
    cost: CallCost,
}

impl<I: ?Sized> Kept<I> {
    fn new(origin: Origin, limits: Limits, make: Make<I>) -> Kept<I> {
        let plugin = origin.path.display().to_string();
        Kept { origin, plugin, limits, make, live: None, info: Info::default(), cost: CallCost::default() }
    }

    /// Options the plugin takes, by name and type.
    fn check_options(&self, options: &serde_json::Value) -> Result<(), Fault> {
        super::super::options::check(&self.info, options).map_err(|m| Fault {
            plugin: self.plugin.clone(),
            class: FaultClass::Refused,
            message: format!("`configure`: {m}"),
        })
    }

    /// A new instance.
    fn instance(&self) -> Result<Box<I>, Fault> {
        (self.make)(&self.plugin).map_err(|f| f.of(&self.plugin))
    }

    /// Calls an instance and keeps it, unless the failure costs it.
    fn call<R>(&mut self, mut live: Box<I>, f: impl FnOnce(&mut I) -> Result<R, Failure>) -> Result<R, Fault> {
        let started = Instant::now();
        let result = f(&mut live);
        self.cost = CallCost { wall: started.elapsed(), ..CallCost::default() };
        if !result.as_ref().is_err_and(|f| f.fatal) {
            self.live = Some(live);
        }
        result.map_err(|f| f.of(&self.plugin))
    }

    /// Takes a description, checked.
    fn described(&mut self, mut info: Info) -> Result<(), Fault> {
        answer::info(&mut info, &self.limits).map_err(|m| self.broken(m))?;
        self.plugin.clone_from(&info.name);
        self.info = info;
        Ok(())
    }

    fn broken(&self, message: String) -> Fault {
        Failure::plain(FaultClass::Answer, message).of(&self.plugin)
    }
}

/// A policy, whatever runs its instance.
pub(super) struct KeptPolicy {
    kept: Kept<dyn PolicyInstance>,
    memory: Memory,
}

/// What a new instance of a policy must be told.
#[derive(Default)]
struct Memory {
    options: Option<String>,
    run: Option<(Run, Vec<Slice>)>,
    snapshot: Vec<u8>,
}

impl KeptPolicy {
    /// Makes the first instance and lets it describe itself.
    pub(super) fn new(origin: Origin, limits: Limits, make: MakePolicy) -> Result<KeptPolicy, Fault> {
        let mut policy = KeptPolicy { kept: Kept::new(origin, limits, make), memory: Memory::default() };
        let info = policy.call(|p| p.describe())?;
        policy.kept.described(info)?;
        Ok(policy)
    }

    fn call<R>(&mut self, f: impl FnOnce(&mut dyn PolicyInstance) -> Result<R, Failure>) -> Result<R, Fault> {
        let live = match self.kept.live.take() {
            Some(live) => live,
            None => self.rebuilt()?,
        };
        self.kept.call(live, |live| f(live))
    }

    /// [`call`](KeptPolicy::call) of a function that tells the instance something. Half-told is not
    /// told: after a refusal the next call starts from a fresh instance.
    fn tell(&mut self, f: impl FnOnce(&mut dyn PolicyInstance) -> Result<(), Failure>) -> Result<(), Fault> {
        let result = self.call(f);
        if result.is_err() {
            self.kept.live = None;
        }
        result
    }

    fn rebuilt(&self) -> Result<Box<dyn PolicyInstance>, Fault> {
        let plugin = &self.kept.plugin;
        tracing::debug!(target: "plugin", %plugin, "makes an instance");
        let mut live = self.kept.instance()?;
        let mut tell = || {
            if let Some(options) = &self.memory.options {
                live.configure(options)?;
            }
            if let Some((run, slices)) = &self.memory.run {
                live.start(run, slices)?;
            }
            match self.memory.snapshot.is_empty() {
                true => Ok(()),
                false => live.restore(&self.memory.snapshot),
            }
        };
        tell().map_err(|f: Failure| f.of(plugin))?;
        Ok(live)
    }

    /// Remembers the state after a good call. A policy that cannot even do that keeps its answer.
    fn remember(&mut self) {
        let cost = self.kept.cost;
        match self.call(|p| p.snapshot()) {
            Ok(snapshot) => self.memory.snapshot = snapshot,
            Err(fault) => tracing::warn!(target: "plugin", "{fault}"),
        }
        self.kept.cost = cost;
    }
}

impl Policy for KeptPolicy {
    fn origin(&self) -> &Origin {
        &self.kept.origin
    }

    fn info(&self) -> &Info {
        &self.kept.info
    }

    fn configure(&mut self, options: &serde_json::Value) -> Result<(), Fault> {
        self.kept.check_options(options)?;
        let options = options.to_string();
        self.tell(|p| p.configure(&options))?;
        self.memory.options = Some(options);
        let cost = self.kept.cost;
        // Options may change the needs.
        let info = self.call(|p| p.describe())?;
        self.kept.cost = cost;
        self.kept.described(info)
    }

    fn start(&mut self, run: &Run, slices: &[Slice]) -> Result<(), Fault> {
        self.tell(|p| p.start(run, slices))?;
        self.memory.run = Some((run.clone(), slices.to_vec()));
        self.memory.snapshot.clear();
        self.remember();
        Ok(())
    }

    fn decide(&mut self, observation: &Observation) -> Result<Plan, Fault> {
        let mut plan = self.call(|p| p.decide(observation))?;
        let (slices, needs) = (observation.slices.len(), self.kept.info.needs.len());
        answer::plan(&mut plan, slices, needs, &self.kept.limits).map_err(|m| self.kept.broken(m))?;
        self.remember();
        Ok(plan)
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Fault> {
        self.call(|p| p.snapshot())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Fault> {
        self.tell(|p| p.restore(state))?;
        self.memory.snapshot = state.to_vec();
        Ok(())
    }

    fn report(&mut self) -> Result<String, Fault> {
        let report = self.call(|p| p.report())?;
        Ok(text::clean(&report, self.kept.limits.log_bytes))
    }

    fn last_cost(&self) -> CallCost {
        self.kept.cost
    }
}

/// An evaluator, whatever runs its instance.
pub(super) struct KeptEvaluator {
    kept: Kept<dyn EvaluatorInstance>,
    options: Option<String>,
}

impl KeptEvaluator {
    /// Makes the first instance and lets it describe itself.
    pub(super) fn new(origin: Origin, limits: Limits, make: MakeEvaluator) -> Result<KeptEvaluator, Fault> {
        let mut evaluator = KeptEvaluator { kept: Kept::new(origin, limits, make), options: None };
        let info = evaluator.call(|e| e.describe())?;
        evaluator.kept.described(info)?;
        Ok(evaluator)
    }

    fn call<R>(&mut self, f: impl FnOnce(&mut dyn EvaluatorInstance) -> Result<R, Failure>) -> Result<R, Fault> {
        let live = match self.kept.live.take() {
            Some(live) => live,
            None => {
                let plugin = &self.kept.plugin;
                tracing::debug!(target: "plugin", %plugin, "makes an instance");
                let mut live = self.kept.instance()?;
                if let Some(options) = &self.options {
                    live.configure(options).map_err(|f| f.of(plugin))?;
                }
                live
            }
        };
        self.kept.call(live, |live| f(live))
    }
}

impl Evaluator for KeptEvaluator {
    fn origin(&self) -> &Origin {
        &self.kept.origin
    }

    fn info(&self) -> &Info {
        &self.kept.info
    }

    fn configure(&mut self, options: &serde_json::Value) -> Result<(), Fault> {
        self.kept.check_options(options)?;
        let options = options.to_string();
        let result = self.call(|e| e.configure(&options));
        match result {
            Ok(()) => self.options = Some(options),
            // Half-told is not told.
            Err(_) => self.kept.live = None,
        }
        result
    }

    fn evaluate(&mut self, task: &Task, measure: &mut dyn Measure) -> Result<Verdict, Fault> {
        let mut asked = Asked { measure, spent: Duration::ZERO };
        let result = self.call(|e| e.evaluate(task, &mut asked));
        self.kept.cost.wall = self.kept.cost.wall.saturating_sub(asked.spent);
        let mut verdict = result?;
        answer::verdict(&mut verdict, &self.kept.limits).map_err(|m| self.kept.broken(m))?;
        Ok(verdict)
    }

    fn last_cost(&self) -> CallCost {
        self.kept.cost
    }
}

/// The host's measurements, with the questions checked and the time taken, which is the host's.
struct Asked<'a> {
    measure: &'a mut dyn Measure,
    spent: Duration,
}

impl Asked<'_> {
    fn timed<R>(&mut self, f: impl FnOnce(&mut dyn Measure) -> R) -> R {
        let started = Instant::now();
        let answer = f(self.measure);
        self.spent += started.elapsed();
        answer
    }
}

impl Measure for Asked<'_> {
    fn windows(&self) -> u32 {
        self.measure.windows()
    }
    fn window(&self, index: u32) -> Result<Vec<u32>, String> {
        desk::check_windows(self.measure, &[index])?;
        self.measure.window(index)
    }
    fn score(&mut self, subject: &str, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        desk::check_subject(subject)?;
        self.timed(|m| m.score(subject, sequences))
    }
    fn score_windows(&mut self, subject: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        desk::check_subject(subject)?;
        desk::check_windows(self.measure, indices)?;
        self.timed(|m| m.score_windows(subject, indices))
    }
    fn generate(&mut self, subject: &str, prompt: &str, max_tokens: u32) -> Result<String, String> {
        desk::check_subject(subject)?;
        self.timed(|m| m.generate(subject, prompt, max_tokens))
    }
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        self.measure.tokenize(text)
    }
    fn detokenize(&self, tokens: &[u32]) -> Result<String, String> {
        self.measure.detokenize(tokens)
    }
    fn counters(&mut self, subject: &str) -> Result<Vec<Metric>, String> {
        desk::check_subject(subject)?;
        self.timed(|m| m.counters(subject))
    }
    fn divergence(&mut self, reference: &str, of: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        desk::check_subject(reference)?;
        desk::check_subject(of)?;
        desk::check_windows(self.measure, indices)?;
        self.timed(|m| m.divergence(reference, of, indices))
    }
    fn examples(&self) -> u32 {
        self.measure.examples()
    }
    fn example(&self, index: u32) -> Result<Example, String> {
        self.measure.example(index)
    }
    fn timing(&mut self, subject: &str, prompt_tokens: u32, new_tokens: u32) -> Result<Vec<Metric>, String> {
        desk::check_subject(subject)?;
        self.timed(|m| m.timing(subject, prompt_tokens, new_tokens))
    }
}
