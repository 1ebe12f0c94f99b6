//! Plays a policy on a made-up model the way the host does: observe, decide, check, commit or not.

use super::model::{Model, Standing};
use super::{Bench, Trouble, spectra};
use crate::plugin::contract::{Metric, Outcome as Fate, Plan};
use crate::plugin::{Fault, FaultClass, Policy};
use rand::Rng;

/// What becomes of the plans of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// Every plan is committed.
    Committed,
    /// One in four is rejected, as this seed says.
    Mixed(u64),
    /// Every plan meets this fate.
    Always(&'static str),
}

/// One step: what the policy answered, and its state afterwards.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Played {
    /// A plan, or the plain refusal.
    pub answer: Result<Plan, String>,
    pub snapshot: Vec<u8>,
}

/// A policy in the course of a run.
pub(super) struct Play<'a> {
    bench: &'a Bench<'a>,
    policy: Box<dyn Policy>,
    pub model: Model,
    course: Course,
    requests: Vec<String>,
    pub is_over: bool,
}

impl<'a> Play<'a> {
    /// A fresh instance, configured and started. A plain refusal to start is a note.
    pub(super) fn new(bench: &'a Bench<'a>, mut model: Model, course: Course) -> Result<Play<'a>, Box<Trouble>> {
        if let Some(phase) = bench.info.phases.first() {
            model.run.phase.clone_from(phase);
        }
        let wrong = |what: &str, fault: &Fault| {
            let t = Trouble::fault(format!("`{what}` fails"), fault).sent(model.describe());
            Box::new(if fault.class == FaultClass::Refused { t.note() } else { t })
        };
        let mut policy = bench.loader.policy(bench.path).map_err(|f| wrong("load", &f))?;
        policy.configure(&bench.settings.options).map_err(|f| wrong("configure", &f))?;
        policy.start(&model.run, &model.slices).map_err(|f| wrong("start", &f))?;
        bench.cost(policy.last_cost(), || format!("start: {}", model.describe()));
        Ok(Play { bench, policy, model, course, requests: vec![], is_over: false })
    }

    /// Another instance that goes on from this one's state.
    pub(super) fn twin(&self, snapshot: &[u8]) -> Result<Play<'a>, Box<Trouble>> {
        let mut twin = Play::new(self.bench, self.model.clone(), self.course)?;
        twin.policy.restore(snapshot).map_err(|f| {
            Trouble::fault("it does not take its own snapshot back", &f)
                .sent(format!("restore with {} bytes that `snapshot` gave", snapshot.len()))
        })?;
        (twin.requests, twin.is_over) = (self.requests.clone(), self.is_over);
        Ok(twin)
    }

    /// One step of the run.
    ///
    /// # Errors
    /// A fault other than a plain refusal, or a plan that breaks the host's rules.
    pub(super) fn step(&mut self) -> Result<Played, Box<Trouble>> {
        let mut needs = self.policy.info().needs.clone();
        needs.append(&mut self.requests);
        let seen = self.model.observe(&needs);
        let what = || format!("step {}: {}", self.model.step, self.model.describe());
        let answer = self.policy.decide(&seen);
        self.bench.cost(self.policy.last_cost(), || format!("decide, {}", what()));
        let answer = match answer {
            Err(f) if f.class == FaultClass::Refused => Err(f.message),
            Err(f) => return Err(Trouble::fault("`decide` fails", &f).sent(what()).into()),
            Ok(plan) => Ok(plan),
        };
        let snapshot = self.policy.snapshot().map_err(|f| Trouble::fault("`snapshot` fails", &f).sent(what()))?;
        match &answer {
            Ok(plan) => {
                let after = self.model.resolve(plan, &seen, self.bench.rules).map_err(|rule| {
                    Trouble::new("the plan breaks a rule of the host")
                        .sent(what())
                        .back(rule)
                        .fix("the host refuses the whole plan then; compute the new state and check it in the policy")
                })?;
                self.is_over = plan.stop.is_some();
                self.requests.clone_from(&plan.requests);
                self.settle(plan, after);
            }
            Err(_) => self.is_over = true,
        }
        self.model.step += 1;
        self.is_over |= self.model.step > self.model.run.steps;
        Ok(Played { answer, snapshot })
    }

    /// The evaluator's part, and its effect.
    fn settle(&mut self, plan: &Plan, after: Vec<Standing>) {
        let step = self.model.step;
        let rise = self.model.rise(&after);
        let changes = after != self.model.standing;
        let fate = match self.course {
            Course::Always(fate) => fate,
            _ if !changes => "held",
            Course::Committed => "committed",
            Course::Mixed(seed) => match spectra::rng(seed, ("fate", step)).random_bool(0.25) {
                true => "rejected",
                false => "committed",
            },
        };
        let metric = |name: &str, value: f64, unit: &str, higher_is_better| Metric {
            name: name.into(),
            value,
            unit: unit.into(),
            higher_is_better,
            low: None,
            high: None,
        };
        let awake: u64 = after.iter().zip(&self.model.slices).map(|(s, slice)| s.parameters(slice)).sum();
        let metrics = vec![
            metric("loss-increase", rise, "nats", false),
            metric("perplexity", (3.0 + rise).exp(), "", false),
            metric("scored-tokens-per-second", 1e9 / (1.0 + awake as f64), "tokens/s", true),
            metric("resident-bytes", 1e6 + 4.0 * awake as f64, "bytes", false),
        ];
        self.model.last = Some(Fate {
            step,
            fate: fate.into(),
            reason: match fate {
                "committed" => String::new(),
                "held" => "nothing changes".into(),
                _ => format!("loss-increase {rise:.4} is beyond the limit"),
            },
            predicted: plan.predicted,
            measured: changes.then_some(rise),
            metrics: metrics.clone(),
        });
        if matches!(fate, "committed" | "held") {
            self.model.metrics = metrics;
            self.model.commit(after);
        }
    }

    /// Plays to the end; the policy's last word too.
    pub(super) fn finish(&mut self) -> Result<Vec<Played>, Box<Trouble>> {
        let mut all = Vec::new();
        while !self.is_over {
            all.push(self.step()?);
        }
        self.policy.report().map_err(|f| Trouble::fault("`report` fails", &f).sent(self.model.describe()))?;
        Ok(all)
    }

    /// The policy itself.
    pub(super) fn policy(&mut self) -> &mut dyn Policy {
        self.policy.as_mut()
    }
}
