//! The conformance suite for plugin authors: does a plugin keep the contract, on made-up models?
//!
//! Needs no checkpoint. Everything is drawn from one seed, so a finding comes back with `--seed` and
//! `--case`. The suite never panics over a plugin: what a plugin does wrong is a [`Finding`]. Only a
//! plugin that cannot be loaded, or that refuses the operator's options, is an error.

mod evaluator;
mod laws;
mod measure;
mod metadata;
mod model;
mod options;
mod play;
mod policy;
mod spectra;

pub use measure::Script;
pub use model::{Model, Standing};
pub use spectra::Family;

use super::contract::{Info, Plan, Slice};
use super::{CallCost, Fault, FaultClass, Kind, Loader};
use serde::Serialize;
use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth a look; may well be meant that way.
    Note,
    /// Breaks the contract, or will in somebody's run.
    Failed,
}

/// The outcome of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Short name of the check.
    pub check: &'static str,
    /// How much it matters.
    pub level: Level,
    /// One sentence: what is well, or what is wrong.
    pub found: String,
    /// What the plugin was sent.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sent: String,
    /// What it answered.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub came_back: String,
    /// What the author can do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// The case to repeat, where it was drawn at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case: Option<u32>,
}

/// The longest call of the whole suite.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Longest {
    /// Its time, microseconds.
    pub micros: f64,
    /// What was asked.
    pub call: String,
}

/// Everything the suite found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Who the plugin is.
    pub info: Info,
    /// Policy or evaluator.
    pub kind: Kind,
    /// Seed of every draw.
    pub seed: u64,
    /// One entry a check, in order.
    pub findings: Vec<Finding>,
    /// The call that took longest.
    pub longest: Longest,
    /// Peak of linear memory, bytes; none where the carrier has none.
    pub peak_memory: Option<u64>,
}

impl Report {
    /// Number of findings of a level.
    pub fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|f| f.level == level).count()
    }
}

/// What is to be checked, and how thoroughly.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Options for the plugin, as for `configure`.
    pub options: serde_json::Value,
    /// Seed of every draw.
    pub seed: u64,
    /// Random cases to draw.
    pub cases: u32,
    /// This case alone.
    pub only: Option<u32>,
}

/// The host's rules about plans. They live in a room above; whoever starts the suite brings them.
pub trait PlanRules {
    /// What shall be awake after the plan, one entry a slice.
    ///
    /// # Errors
    /// The rule the plan breaks.
    fn resolve(
        &self,
        plan: &Plan,
        slices: &[Slice],
        now: &[Standing],
        budget: u64,
        spectrum: &dyn Fn(u32, u32) -> Option<Vec<f32>>,
    ) -> Result<Vec<Standing>, String>;
}

/// Runs the suite on a plugin of either kind.
///
/// # Errors
/// The plugin cannot be loaded, or refuses `settings.options`.
pub fn run(
    loader: &Loader,
    path: &Path,
    kind: Kind,
    settings: &Settings,
    rules: &dyn PlanRules,
) -> Result<Report, Fault> {
    let info = match kind {
        Kind::Policy => {
            let mut policy = loader.policy(path)?;
            policy.configure(&settings.options)?;
            policy.info().clone()
        }
        Kind::Evaluator => {
            let mut evaluator = loader.evaluator(path)?;
            evaluator.configure(&settings.options)?;
            evaluator.info().clone()
        }
    };
    let bench = Bench { loader, path, settings, rules, info: &info, worst: Cell::default(), memory: Cell::default() };
    let mut sheet = Sheet::default();
    metadata::check(&info, kind, &mut sheet);
    options::check(&bench, kind, &mut sheet);
    match kind {
        Kind::Policy => {
            policy::check(&bench, &mut sheet);
            laws::check(&bench, &mut sheet);
        }
        Kind::Evaluator => evaluator::check(&bench, &mut sheet),
    }
    let longest = bench.worst.take();
    let peak_memory = bench.memory.get();
    Ok(Report { info, kind, seed: settings.seed, findings: sheet.findings, longest, peak_memory })
}

/// The plugin on the bench, and what its calls have cost so far.
struct Bench<'a> {
    loader: &'a Loader,
    path: &'a Path,
    settings: &'a Settings,
    rules: &'a dyn PlanRules,
    info: &'a Info,
    worst: Cell<Longest>,
    memory: Cell<Option<u64>>,
}

impl Bench<'_> {
    /// Takes note of what a call cost.
    fn cost(&self, cost: CallCost, call: impl FnOnce() -> String) {
        self.memory.set(self.memory.get().max(cost.memory_bytes));
        let mut worst = self.worst.take();
        let micros = cost.wall.as_secs_f64() * 1e6;
        if micros > worst.micros {
            worst = Longest { micros, call: call() };
        }
        self.worst.set(worst);
    }

    /// Numbers of the random cases to play.
    fn cases(&self) -> impl Iterator<Item = u32> + use<> {
        match self.settings.only {
            Some(case) => case..case.saturating_add(1),
            None => 0..self.settings.cases,
        }
    }
}

/// What is wrong, or worth a note.
#[derive(Clone, Debug, Default)]
struct Trouble {
    is_note: bool,
    found: String,
    sent: String,
    came_back: String,
    fix: String,
    case: Option<u32>,
}

impl Trouble {
    fn new(found: impl Into<String>) -> Trouble {
        Trouble { found: found.into(), ..Trouble::default() }
    }

    fn note(mut self) -> Trouble {
        self.is_note = true;
        self
    }

    fn sent(mut self, sent: impl Into<String>) -> Trouble {
        self.sent = sent.into();
        self
    }

    fn back(mut self, back: impl Into<String>) -> Trouble {
        self.came_back = back.into();
        self
    }

    fn fix(mut self, fix: impl Into<String>) -> Trouble {
        self.fix = fix.into();
        self
    }

    fn case(mut self, case: u32) -> Trouble {
        self.case = Some(case);
        self
    }

    /// A call that ended otherwise than by an answer or a plain refusal.
    fn fault(found: impl Into<String>, fault: &Fault) -> Trouble {
        let fix = match fault.class {
            FaultClass::Trap => {
                "answer with an error text instead of panicking: check lengths and numbers before using them"
            }
            FaultClass::Timeout => {
                "look for a loop that does not end on such input; if it is only slow, raise --plugin-seconds"
            }
            FaultClass::Memory => "look for a list that grows with the input; if it must, raise --plugin-memory",
            FaultClass::Answer => "keep the answer within the contract (rank.wit says what each field may hold)",
            _ => "",
        };
        Trouble::new(found).back(format!("{}: {}", fault.class, fault.message)).fix(fix)
    }
}

/// A sentence where all is well.
type Outcome = Result<String, Box<Trouble>>;

/// The findings so far.
#[derive(Default)]
struct Sheet {
    findings: Vec<Finding>,
}

impl Sheet {
    fn add(&mut self, check: &'static str, outcome: Outcome) {
        let good = |found| Finding {
            check,
            level: Level::Ok,
            found,
            sent: String::new(),
            came_back: String::new(),
            fix: String::new(),
            case: None,
        };
        let bad = |t: Trouble| Finding {
            check,
            level: if t.is_note { Level::Note } else { Level::Failed },
            found: t.found,
            sent: t.sent,
            came_back: t.came_back,
            fix: t.fix,
            case: t.case,
        };
        self.findings.push(outcome.map_or_else(|t| bad(*t), good));
    }
}

/// A time for people.
pub fn span(time: Duration) -> String {
    let us = time.as_secs_f64() * 1e6;
    match us {
        ..1.0 => format!("{:.0} ns", us * 1e3),
        1.0..1e3 => format!("{us:.2} µs"),
        1e3..1e6 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}
