//! Testing plugins natively, with `cargo test`: a pretend model for policies, a pretend host for
//! evaluators, and recorded observations.
//!
//! ```
//! # use plastic_plugin::prelude::*;
//! # #[derive(Default)]
//! # struct Halve;
//! # impl RankPolicy for Halve {
//! #     type Options = NoOptions;
//! #     fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
//! #         let mut plan = Plan::new();
//! #         for slice in seen.slices() {
//! #             plan.set_rank(slice, slice.max_rank() / 2, "half of everything");
//! #         }
//! #         Ok(plan)
//! #     }
//! # }
//! use plastic_plugin::testing::{Model, Session};
//!
//! let model = Model::new(0.9).slice("q_proj", 64, 48, "fisher", (1..=48).map(|i| 1.0 / i as f32));
//! let mut session = Session::<Halve>::new(model, "{}").unwrap();
//! let plan = session.decide().unwrap();
//! session.commit(&plan);
//! assert_eq!(session.model().states[0].awake, 24);
//! ```

use crate::evaluator::{Measure, Subject};
use crate::observation::Observation;
use crate::plan::{Change, Plan};
use crate::policy::{PolicyAdapter, RankPolicy};
use crate::records::{Attribute, Example, Metric, Outcome, Run, Series, Slice, SliceState};
use std::cell::RefCell;
use std::collections::HashMap;

/// A pretend model: slices with made-up spectra, that sleep and wake as plans tell them.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The run. Its parameters and budget follow the slices.
    pub run: Run,
    /// What never changes.
    pub slices: Vec<Slice>,
    /// What changes.
    pub states: Vec<SliceState>,
    /// Step of the next observation.
    pub step: u32,
    /// Fate of the last plan.
    pub last: Option<Outcome>,
    /// What the evaluators last measured.
    pub metrics: Vec<Metric>,
    /// Facts of the moment.
    pub attributes: Vec<Attribute>,
    share: f64,
    spectra: HashMap<(String, usize), Vec<f32>>,
    asleep: Vec<Vec<bool>>,
}

impl Model {
    /// A model without slices, of whose parameters `share` may stay awake; 8 steps, seed 0.
    pub fn new(share: f64) -> Model {
        let run = Run { phase: "compress".into(), steps: 8, ..Run::default() };
        Model { run, share, step: 1, ..Model::default() }
    }

    /// Sets how many steps the run takes.
    pub fn steps(mut self, steps: u32) -> Model {
        self.run.steps = steps;
        self
    }

    /// Adds a dense slice `rows` × `cols` with its singular values, largest first, in one metric.
    pub fn slice(
        mut self,
        name: &str,
        rows: u32,
        cols: u32,
        metric: &str,
        spectrum: impl IntoIterator<Item = f32>,
    ) -> Model {
        let (id, max_rank) = (self.slices.len(), rows.min(cols));
        let dense_parameters = u64::from(rows) * u64::from(cols);
        self.slices.push(Slice {
            name: name.into(),
            layer: id as u32,
            kind: name.rsplit('.').next().unwrap_or(name).into(),
            group: id as u32,
            rows,
            cols,
            max_rank,
            dense_parameters,
            component_parameters: u64::from(rows + cols),
            attributes: Vec::new(),
        });
        self.states.push(SliceState {
            awake: max_rank,
            dense: true,
            dense_allowed: true,
            parameters: dense_parameters,
            bytes: 4 * dense_parameters,
            ..SliceState::default()
        });
        self.asleep.push(vec![false; max_rank as usize]);
        self.run.parameters += dense_parameters;
        self.run.budget = (self.share * self.run.parameters as f64) as u64;
        self.spectra.insert((metric.into(), id), spectrum.into_iter().collect());
        self
    }

    /// Gives the last slice its singular values in one more metric.
    pub fn spectrum(mut self, metric: &str, values: impl IntoIterator<Item = f32>) -> Model {
        let id = self.slices.len().saturating_sub(1);
        self.spectra.insert((metric.into(), id), values.into_iter().collect());
        self
    }

    /// Parameters awake.
    pub fn awake(&self) -> u64 {
        self.states.iter().map(|s| s.parameters).sum()
    }

    /// What a policy with these needs is shown.
    pub fn observe(&self, needs: &[String]) -> Observation {
        let mut seen = Observation {
            step: self.step,
            awake: self.awake(),
            metrics: self.metrics.clone(),
            last: self.last.clone(),
            states: self.states.clone(),
            attributes: self.attributes.clone(),
            ..Observation::default()
        };
        for (need, name) in needs.iter().enumerate() {
            let metric = name.strip_prefix("spectrum:").unwrap_or(name);
            for slice in 0..self.slices.len() {
                let Some(values) = self.spectra.get(&(metric.to_owned(), slice)) else { continue };
                let (offset, len) = (seen.values.len() as u32, values.len() as u32);
                seen.series.push(Series { slice: slice as u32, need: need as u32, offset, len });
                seen.values.extend(values);
                let flags = (0..values.len()).map(|i| u8::from(self.asleep[slice].get(i) == Some(&true)));
                seen.asleep.extend(flags);
            }
        }
        seen
    }

    /// Applies a plan's actions (a threshold is the host's work and is not resolved here).
    pub fn apply(&mut self, plan: &Plan) {
        for state in &mut self.states {
            state.dwell += 1;
        }
        for action in &plan.actions {
            let id = action.slice.0 as usize;
            let (Some(slice), Some(state)) = (self.slices.get(id), self.states.get_mut(id)) else { continue };
            let flags = &mut self.asleep[id];
            let awake = |flags: &[bool]| flags.iter().filter(|f| !**f).count();
            state.dwell = 0;
            match &action.change {
                Change::Freeze => state.frozen = true,
                Change::Thaw => state.frozen = false,
                Change::Dense => {
                    flags.fill(false);
                    (state.dense, state.awake, state.parameters) = (true, slice.max_rank, slice.dense_parameters);
                    continue;
                }
                Change::SetRank(rank) => flags.iter_mut().enumerate().for_each(|(i, f)| *f = i >= *rank as usize),
                Change::SleepN(n) => {
                    flags.iter_mut().rev().filter(|f| !**f).take(*n as usize).for_each(|f| *f = true);
                }
                Change::WakeN(n) => flags.iter_mut().filter(|f| **f).take(*n as usize).for_each(|f| *f = false),
                Change::Sleep(list) => list.iter().for_each(|i| flags[*i as usize] = true),
                Change::Wake(list) => list.iter().for_each(|i| flags[*i as usize] = false),
            }
            if !matches!(action.change, Change::Freeze | Change::Thaw) {
                state.dense = false;
                state.awake = awake(flags) as u32;
                state.parameters = slice.component_parameters * u64::from(state.awake);
            }
        }
    }
}

/// A policy at work on a pretend model, called the way the host calls it.
pub struct Session<P> {
    adapter: PolicyAdapter<P>,
    model: Model,
}

impl<P: RankPolicy> Session<P> {
    /// Configures a policy (options as JSON) and starts a run.
    ///
    /// # Errors
    /// The policy's own.
    pub fn new(model: Model, options: &str) -> Result<Session<P>, String> {
        let mut adapter = PolicyAdapter::<P>::new();
        adapter.configure(options)?;
        adapter.start(model.run.clone(), model.slices.clone())?;
        Ok(Session { adapter, model })
    }

    /// The model as it is.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model, to be changed behind the policy's back.
    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    /// The policy.
    pub fn policy(&self) -> &P {
        self.adapter.policy()
    }

    /// Asks the policy about the next step.
    ///
    /// # Errors
    /// The policy's own.
    pub fn decide(&mut self) -> Result<Plan, String> {
        let seen = self.model.observe(self.adapter.upcoming());
        Ok(self.adapter.decide(seen)?.0)
    }

    /// The plan was accepted: applies it.
    pub fn commit(&mut self, plan: &Plan) {
        self.model.apply(plan);
        self.end_step("committed", "", plan.predicted, None);
    }

    /// An evaluator rejected the plan: the model stays as it was.
    pub fn reject(&mut self, plan: &Plan, why: &str, measured: f64) {
        self.end_step("rejected", why, plan.predicted, Some(measured));
    }

    /// The host refused the plan: the model stays as it was.
    pub fn refuse(&mut self, plan: &Plan, why: &str) {
        self.end_step("refused", why, plan.predicted, None);
    }

    /// Puts the policy's state into a fresh instance, as a resume does.
    ///
    /// # Errors
    /// The policy's own.
    pub fn resume(&mut self, options: &str) -> Result<(), String> {
        let state = self.adapter.snapshot();
        self.adapter = PolicyAdapter::new();
        self.adapter.configure(options)?;
        self.adapter.start(self.model.run.clone(), self.model.slices.clone())?;
        self.adapter.restore(&state)
    }

    fn end_step(&mut self, fate: &str, reason: &str, predicted: Option<f64>, measured: Option<f64>) {
        let (step, fate, reason) = (self.model.step, fate.into(), reason.into());
        self.model.last = Some(Outcome { step, fate, reason, predicted, measured, metrics: Vec::new() });
        self.model.step += 1;
    }
}

/// An observation as the host records it, as JSON.
#[derive(serde::Deserialize)]
struct Recorded {
    step: u32,
    awake: u64,
    slices: Vec<SliceState>,
    series: Vec<Series>,
    values: Vec<f32>,
    asleep: Vec<u8>,
    metrics: Vec<Metric>,
    last: Option<Outcome>,
    #[serde(default)]
    attributes: Vec<Attribute>,
}

/// Asks a policy about a recorded observation: options, run, slices and observation as the host
/// wrote them.
///
/// # Errors
/// What could not be read, or the policy's own.
pub fn decide_recorded<P: RankPolicy>(
    options: &str,
    run: &str,
    slices: &str,
    observation: &str,
) -> Result<Plan, String> {
    fn read<T: serde::de::DeserializeOwned>(what: &str, json: &str) -> Result<T, String> {
        serde_json::from_str(json).map_err(|e| format!("recorded {what}: {e}"))
    }
    let mut adapter = PolicyAdapter::<P>::new();
    adapter.configure(options)?;
    adapter.start(read("run", run)?, read("slices", slices)?)?;
    let r: Recorded = read("observation", observation)?;
    let seen = Observation {
        step: r.step,
        awake: r.awake,
        metrics: r.metrics,
        last: r.last,
        attributes: r.attributes,
        states: r.slices,
        series: r.series,
        values: r.values,
        asleep: r.asleep,
        ..Observation::default()
    };
    Ok(adapter.decide(seen)?.0)
}

/// What the policies of a real run saw, as `plastic-host plugin record` writes it.
#[derive(serde::Deserialize)]
pub struct Recording {
    run: Run,
    slices: Vec<Slice>,
    values: HashMap<String, Vec<f32>>,
    steps: Vec<RecordedStep>,
}

#[derive(serde::Deserialize)]
struct RecordedStep {
    needs: Vec<String>,
    values_sha256: String,
    observation: Recorded,
}

impl Recording {
    /// Reads a recording.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn read(json: &str) -> Result<Recording, String> {
        serde_json::from_str(json).map_err(|e| format!("recording: {e}"))
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// What a policy with these options answers at every step.
    ///
    /// # Errors
    /// The policy's own, or a statistic it needs was not recorded.
    pub fn decide<P: RankPolicy>(&self, options: &str) -> Result<Vec<Plan>, String> {
        let mut adapter = PolicyAdapter::<P>::new();
        adapter.configure(options)?;
        adapter.start(self.run.clone(), self.slices.clone())?;
        let mut plans = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let values = self.values.get(&step.values_sha256).ok_or("the recording lacks statistics")?;
            let seen = step.seen(values, adapter.upcoming())?;
            plans.push(adapter.decide(seen)?.0);
        }
        Ok(plans)
    }
}

impl RecordedStep {
    /// The observation with the statistics in `wanted`, numbered by their place there.
    fn seen(&self, values: &[f32], wanted: &[String]) -> Result<Observation, String> {
        let r = &self.observation;
        let mut seen = Observation {
            step: r.step,
            awake: r.awake,
            metrics: r.metrics.clone(),
            last: r.last.clone(),
            attributes: r.attributes.clone(),
            states: r.slices.clone(),
            ..Observation::default()
        };
        for (need, name) in wanted.iter().enumerate() {
            let place = self.needs.iter().position(|n| n == name);
            let place = place.ok_or_else(|| format!("{name} was not recorded; record a run with --record {name}"))?;
            for s in r.series.iter().filter(|s| s.need as usize == place) {
                let range = s.offset as usize..(s.offset as usize).saturating_add(s.len as usize);
                let offset = seen.values.len() as u32;
                seen.series.push(Series { need: need as u32, offset, ..*s });
                seen.values.extend_from_slice(values.get(range.clone()).ok_or("the recording lacks statistics")?);
                seen.asleep.extend_from_slice(r.asleep.get(range).unwrap_or_default());
            }
        }
        Ok(seen)
    }
}

/// A pretend host for evaluators: answers with prepared scores and remembers what it was asked.
#[derive(Default)]
pub struct FakeMeasure {
    scores: HashMap<Subject, Vec<Vec<f32>>>,
    texts: HashMap<Subject, String>,
    replies: HashMap<(Subject, String), String>,
    counters: Vec<Metric>,
    own_counters: HashMap<Subject, Vec<Metric>>,
    timings: HashMap<Subject, Vec<Metric>>,
    divergence: Vec<Vec<f32>>,
    examples: Vec<Example>,
    asked: RefCell<Vec<String>>,
}

impl FakeMeasure {
    /// A host that knows nothing.
    pub fn new() -> FakeMeasure {
        FakeMeasure::default()
    }

    /// Log-probabilities of every window under a model.
    pub fn scores(mut self, subject: Subject, windows: Vec<Vec<f32>>) -> FakeMeasure {
        self.scores.insert(subject, windows);
        self
    }

    /// What `generate` answers under a model, whatever the prompt.
    pub fn text(mut self, subject: Subject, text: &str) -> FakeMeasure {
        self.texts.insert(subject, text.into());
        self
    }

    /// What `generate` answers to one prompt under a model.
    pub fn reply(mut self, subject: Subject, prompt: &str, text: &str) -> FakeMeasure {
        self.replies.insert((subject, prompt.into()), text.into());
        self
    }

    /// One more figure that `counters` answers for one model.
    pub fn counter_of(mut self, subject: Subject, metric: Metric) -> FakeMeasure {
        self.own_counters.entry(subject).or_default().push(metric);
        self
    }

    /// What `counters` answers for every model.
    pub fn counter(mut self, metric: Metric) -> FakeMeasure {
        self.counters.push(metric);
        self
    }

    /// What `divergence` answers, whatever the models: nats at the tokens of each window.
    pub fn divergences(mut self, windows: Vec<Vec<f32>>) -> FakeMeasure {
        self.divergence = windows;
        self
    }

    /// Adds a prompt with its answer.
    pub fn with_example(mut self, prompt: &str, answer: &str) -> FakeMeasure {
        self.examples.push(Example { prompt: prompt.into(), answer: answer.into() });
        self
    }

    /// What `timing` answers for a model.
    pub fn timings(mut self, subject: Subject, metrics: Vec<Metric>) -> FakeMeasure {
        self.timings.insert(subject, metrics);
        self
    }

    /// The questions so far, such as `score-windows candidate 0..8`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.borrow().clone()
    }

    fn note(&self, question: String) {
        self.asked.borrow_mut().push(question);
    }

    fn windows_of(&self, subject: Subject) -> Result<&Vec<Vec<f32>>, String> {
        self.scores.get(&subject).ok_or_else(|| format!("no scores were prepared for {}", subject.as_str()))
    }
}

impl Measure for FakeMeasure {
    fn windows(&self) -> u32 {
        self.scores.values().map(Vec::len).max().unwrap_or(self.divergence.len()) as u32
    }

    /// As many zeros as the window has tokens.
    fn window(&self, index: u32) -> Result<Vec<u32>, String> {
        let windows = self.scores.values().next().unwrap_or(&self.divergence);
        let scores = windows.get(index as usize).ok_or_else(|| format!("there is no window {index}"))?;
        Ok(vec![0; scores.len() + 1])
    }

    /// The scores of the windows, in order.
    fn score(&self, subject: Subject, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        self.note(format!("score {} {}", subject.as_str(), sequences.len()));
        Ok(self.windows_of(subject)?.iter().take(sequences.len()).cloned().collect())
    }

    fn score_windows(&self, subject: Subject, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        let first = indices.first().copied().unwrap_or(0);
        self.note(format!("score-windows {} {first}..{}", subject.as_str(), first as usize + indices.len()));
        let windows = self.windows_of(subject)?;
        let one = |i: &u32| windows.get(*i as usize).cloned().ok_or_else(|| format!("there is no window {i}"));
        indices.iter().map(one).collect()
    }

    fn generate(&self, subject: Subject, prompt: &str, _: u32) -> Result<String, String> {
        self.note(format!("generate {} {prompt}", subject.as_str()));
        let reply = self.replies.get(&(subject, prompt.to_owned())).or(self.texts.get(&subject));
        reply.cloned().ok_or_else(|| format!("no text was prepared for {}", subject.as_str()))
    }

    /// One token a byte.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String, String> {
        let byte = |t: &u32| u8::try_from(*t).map_err(|_| format!("there is no token {t}"));
        let bytes = tokens.iter().map(byte).collect::<Result<Vec<u8>, _>>()?;
        String::from_utf8(bytes).map_err(|e| e.to_string())
    }

    fn counters(&self, subject: Subject) -> Result<Vec<Metric>, String> {
        Ok(self.counters.iter().chain(self.own_counters.get(&subject).into_iter().flatten()).cloned().collect())
    }

    fn divergence(&self, reference: Subject, of: Subject, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        self.note(format!("divergence {} {} {}", reference.as_str(), of.as_str(), indices.len()));
        let one = |i: &u32| self.divergence.get(*i as usize).cloned().ok_or_else(|| format!("there is no window {i}"));
        indices.iter().map(one).collect()
    }

    fn examples(&self) -> u32 {
        self.examples.len() as u32
    }

    fn example(&self, index: u32) -> Result<Example, String> {
        self.examples.get(index as usize).cloned().ok_or_else(|| format!("there is no example {index}"))
    }

    fn timing(&self, subject: Subject, prompt_tokens: u32, new_tokens: u32) -> Result<Vec<Metric>, String> {
        self.note(format!("timing {} {prompt_tokens} {new_tokens}", subject.as_str()));
        self.timings.get(&subject).cloned().ok_or_else(|| format!("no timings were prepared for {}", subject.as_str()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::prelude::*;
    use crate::{SliceId, Value};

    /// Sees everything, decides what the test tells it to.
    #[derive(Default)]
    struct Probe {
        seen: Option<Observation>,
        next: Plan,
    }

    impl RankPolicy for Probe {
        type Options = NoOptions;
        fn needs(&self) -> Vec<String> {
            vec!["spectrum:plain".into(), "spectrum:fisher".into()]
        }
        fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
            self.seen = Some(seen.clone());
            Ok(self.next.clone())
        }
    }

    fn model() -> Model {
        Model::new(0.5)
            .slice("a.q_proj", 4, 3, "plain", [3.0, 2.0, 1.0])
            .spectrum("fisher", [0.3, 0.2, 0.1])
            .slice("b.k_proj", 2, 5, "plain", [5.0, 4.0])
            .spectrum("fisher", [0.5, 0.4])
    }

    #[test]
    fn slices_see_their_own_spectra() {
        let mut session = Session::<Probe>::new(model(), "{}").unwrap();
        session.decide().unwrap();
        let seen = session.policy().seen.clone().unwrap();
        let slices: Vec<_> = seen.slices().collect();
        assert_eq!(slices[0].spectrum("plain"), [3.0, 2.0, 1.0]);
        assert_eq!(slices[0].spectrum("fisher"), [0.3, 0.2, 0.1]);
        assert_eq!(slices[1].spectrum("fisher"), [0.5, 0.4]);
        assert!(slices[1].spectrum("input").is_empty());
        assert_eq!((slices[1].rows(), slices[1].cols(), slices[1].kind()), (2, 5, "k_proj"));
        assert!(slices[0].saves(1) && !slices[0].saves(2), "1·(4+3) < 4·3 <= 2·(4+3)");
        assert_eq!((seen.run().parameters, seen.run().budget), (22, 11));
    }

    #[test]
    fn plans_change_the_pretend_model() {
        let mut session = Session::<Probe>::new(model(), "{}").unwrap();
        let mut plan = Plan::new();
        plan.set_rank(0usize, 2, "two").sleep_these(1usize, [0], "not the largest");
        session.commit(&plan);
        assert_eq!(session.model().states[0].awake, 2);
        assert_eq!(session.model().awake(), 2 * 7 + 7);
        session.decide().unwrap();
        let seen = session.policy().seen.clone().unwrap();
        let b = seen.slice(1).unwrap();
        assert!(b.is_asleep("plain", 0) && !b.is_asleep("plain", 1));
        assert_eq!(seen.last.as_ref().unwrap().fate, "committed");

        let mut plan = Plan::new();
        plan.wake(0usize, 5, "all of it").dense(1usize, "back").freeze(1usize, "there");
        session.commit(&plan);
        assert_eq!(session.model().states[0].awake, 3);
        assert!(!session.model().states[0].dense && session.model().states[1].dense);
        assert!(session.model().states[1].frozen);
    }

    #[test]
    fn requests_of_a_plan_reach_the_next_observation_only() {
        let base = model().spectrum("input", [7.0, 6.0]);
        let mut session = Session::<Probe>::new(base, "{}").unwrap();
        session.adapter.policy_mut().next.request("spectrum:input");
        session.decide().unwrap();
        session.adapter.policy_mut().next = Plan::new();
        session.decide().unwrap();
        assert_eq!(session.policy().seen.as_ref().unwrap().slice(1).unwrap().spectrum("input"), [7.0, 6.0]);
        session.decide().unwrap();
        assert!(session.policy().seen.as_ref().unwrap().slice(1).unwrap().spectrum("input").is_empty());
    }

    #[test]
    fn recorded_json_is_read() {
        let run = r#"{"phase":"compress","seed":7,"steps":2,"parameters":12,"budget":6}"#;
        let slices = r#"[{"name":"q","layer":0,"kind":"q_proj","group":0,"rows":4,"cols":3,"max_rank":3,
            "dense_parameters":12,"component_parameters":7,"attributes":[{"name":"trace","value":1.5}]}]"#;
        let observation = r#"{"step":2,"awake":12,"slices":[{"awake":3,"dense":true,"dense_allowed":true,"frozen":false,
            "dwell":1,"parameters":12,"bytes":48,"parked_bytes":0}],"series":[{"slice":0,"need":0,"offset":0,"len":3}],
            "values":[3.0,2.0,1.0],"asleep":[],"metrics":[],"last":null}"#;
        assert_eq!(decide_recorded::<Probe>("{}", run, slices, observation).unwrap(), Plan::new());
        let error = decide_recorded::<Probe>("{}", run, "[]", observation).unwrap_err();
        assert_eq!(error, "the observation has 1 slices, start announced 0");
        let slices: Vec<Slice> = serde_json::from_str(slices).unwrap();
        assert_eq!(crate::records::attribute(&slices[0].attributes, "trace"), Some(&Value::Num(1.5)));
    }

    #[test]
    fn a_threshold_must_name_a_need() {
        let needs = ["spectrum:plain".to_owned(), "spectrum:fisher".to_owned()];
        let mut plan = Plan::new();
        plan.threshold("fisher", 0.5, "one rule").set_rank(3usize, 4, "and one slice");
        let wit = crate::convert::plan(plan.clone(), &needs).unwrap();
        assert_eq!((wit.threshold.unwrap().need, wit.actions[0].slice), (1, 3));
        assert_eq!(plan.actions[0].slice, SliceId(3));
        plan.threshold("input", 0.5, "one rule");
        assert!(crate::convert::plan(plan, &needs).unwrap_err().contains("spectrum:input"));
    }

    #[test]
    fn the_pretend_host_answers_and_remembers() {
        let host = FakeMeasure::new().scores(Subject::Base, vec![vec![-1.0, -2.0], vec![-3.0]]);
        assert_eq!(host.windows(), 2);
        assert_eq!(host.score_windows(Subject::Base, &[1]).unwrap(), vec![vec![-3.0]]);
        assert_eq!(host.window(0).unwrap().len(), 3);
        assert!(host.score_windows(Subject::Candidate, &[0]).is_err());
        assert_eq!(host.asked(), ["score-windows base 1..2", "score-windows candidate 0..1"]);
    }
}
