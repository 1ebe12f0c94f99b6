//! The append-only record of a run: one JSON object a line, synced before the next step begins.
//!
//! The first line describes the run; every step adds one. A line that a kill cut short is dropped on
//! reading: what it told of had not been committed.

use super::bank::BankRecord;
use super::panel::Opinion;
use super::policies::Proposal;
use super::state::Awake;
use crate::plugin::contract::{Info, Plan, Run, Slice, Verdict};
use crate::plugin::{Fault, Origin};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

/// Version of the record format.
pub const SCHEMA: u32 = 2;

/// A file the run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileRecord {
    /// As the user named it.
    pub path: PathBuf,
    /// SHA-256, lower-case hex.
    pub sha256: String,
}

/// A plugin the run depends on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PluginRecord {
    /// Where it came from.
    #[serde(flatten)]
    pub origin: Origin,
    /// Who it is.
    pub info: Info,
    /// Options it was configured with.
    pub options: serde_json::Value,
}

/// First line: what the run is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of this program.
    pub program: String,
    /// UTC, RFC 3339.
    pub time: String,
    /// Directory of the base.
    pub base: PathBuf,
    /// How the base was named.
    pub base_id: String,
    /// SHA-256 over the checkpoint.
    pub base_sha256: String,
    /// Share of an elastic checkpoint that was asked to be awake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awake_budget: Option<f64>,
    /// What of an elastic checkpoint is awake as the run begins; none for another base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awake: Option<crate::model::Levels>,
    /// Packs on the base, from the first step to the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packs: Vec<crate::pack::Used>,
    /// The policies, in the order in which they decide.
    pub policies: Vec<PluginRecord>,
    /// Policies that are asked and not obeyed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<PluginRecord>,
    /// The policy that decides where the others fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<PluginRecord>,
    /// The evaluators.
    pub evaluators: Vec<PluginRecord>,
    /// The run as policies are told of it.
    pub told: Run,
    /// Evaluation text.
    pub data: FileRecord,
    /// Calibration text, where a metric needed it.
    pub calibration: Option<FileRecord>,
    /// Slices of the run; a slice's id is its position.
    pub slices: Vec<Slice>,
    /// Parameters of all slices when dense.
    pub parameters: u64,
    /// Parameters that may stay awake.
    pub budget: u64,
    /// SHA-256 of the resolved options, the number of steps left out.
    pub options_sha256: String,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// The candidate became current.
    Committed,
    /// The plan changed nothing.
    Held,
    /// The evaluator said no; rolled back.
    Rejected,
    /// The plan broke a rule; nothing was touched.
    Refused,
    /// A plugin or the host failed; rolled back.
    Failed,
}

impl Fate {
    /// The word in the journal and in a policy's observation.
    pub fn name(self) -> &'static str {
        match self {
            Fate::Committed => "committed",
            Fate::Held => "held",
            Fate::Rejected => "rejected",
            Fate::Refused => "refused",
            Fate::Failed => "failed",
        }
    }
}

/// Wall-clock seconds of the phases of a step.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// Decomposing slices for the spectra a policy asks for; only the first step of a run does.
    pub spectra: f64,
    /// Building the observation.
    pub observe: f64,
    /// Keeping the observation.
    pub record: f64,
    /// The policies' calls.
    pub decide: f64,
    /// The shadows' calls.
    pub shadow: f64,
    /// Checking the plan.
    pub validate: f64,
    /// Decompositions and factors.
    pub apply: f64,
    /// The evaluator, scoring included.
    pub evaluate: f64,
    /// Of evaluating: the model at work.
    pub scoring: f64,
    /// Writing banks.
    pub commit: f64,
    /// The whole step.
    pub total: f64,
}

/// What is awake in sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    /// Parameters awake.
    pub parameters: u64,
    /// Bytes of the awake part in memory (float32).
    pub bytes: u64,
    /// Bytes of the parked components.
    pub parked_bytes: u64,
}

/// One step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepRecord {
    /// Step, from 1.
    pub step: u32,
    /// Step whose state this one started from; 0 is the base.
    pub parent: u32,
    /// UTC, RFC 3339.
    pub time: String,
    /// SHA-256 of the observation.
    pub observation_sha256: String,
    /// What the policy answered.
    pub plan: Option<Plan>,
    /// What each policy of a pipeline proposed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proposals: Vec<Proposal>,
    /// What the shadows would have done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shadows: Vec<ShadowRecord>,
    /// How a plugin failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Fuel that each policy's `decide` burned, by name, where fuel is counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fuel: Vec<(String, u64)>,
    /// The fallback decided.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fallback: bool,
    /// How it ended.
    pub fate: Fate,
    /// Why.
    pub reason: String,
    /// Before the step.
    pub before: Footprint,
    /// After the step, as it was judged: for a rejected step what the candidate had.
    pub after: Footprint,
    /// Ranks before the step.
    pub ranks_before: Vec<u32>,
    /// Ranks of the candidate.
    pub ranks_after: Vec<u32>,
    /// What the evaluators said, together.
    pub verdict: Option<Verdict>,
    /// What each of several said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub opinions: Vec<Opinion>,
    /// Tokens scored a second, the base and the candidate.
    pub tokens_per_second: Option<[f64; 2]>,
    /// Durations.
    pub times: Times,
    /// The new current state; only when committed.
    pub state: Option<Vec<Awake>>,
    /// Frozen slices after the step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frozen: Vec<u32>,
    /// Banks written by this step, all in its own bank file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub banks: Vec<BankRecord>,
    /// SHA-256 of the bank file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub banks_sha256: String,
    /// The policies' states after deciding, base 16: pipeline, shadows, fallback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy_states: Vec<String>,
}

/// What a shadow would have done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ShadowRecord {
    /// Name of the policy.
    pub policy: String,
    /// Its plan, where it had one.
    pub plan: Option<Plan>,
    /// Why that would not have been applied: a fault of the plugin, or a rule the plan breaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Ranks after its plan, where it could have been applied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<u32>,
    /// Parameters awake after it.
    pub parameters: u64,
}

/// Where a plugin stands in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// In the pipeline.
    Policy,
    /// A shadow.
    Shadow,
    /// The fallback.
    Fallback,
    /// An evaluator.
    Evaluator,
}

/// The file of a plugin changed while the run went on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SwapRecord {
    /// UTC, RFC 3339.
    pub time: String,
    /// Where it stands.
    pub role: Role,
    /// Its place there.
    pub place: usize,
    /// The new plugin; none where the old one goes on.
    pub plugin: Option<PluginRecord>,
    /// Whether the state of the old one was carried over.
    pub carried: bool,
    /// Why the old one goes on, or why its state was not carried over.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

/// Waking everything was tried and compared with the base.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WakeRecord {
    /// UTC, RFC 3339.
    pub time: String,
    /// SHA-256 of the base's probe logits.
    pub base_sha256: String,
    /// SHA-256 of the probe logits with everything awake again.
    pub woken_sha256: String,
    /// Whether the two are equal.
    pub identical: bool,
    /// Seconds that waking took.
    pub seconds: f64,
}

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// The run begins.
    Run(Box<RunRecord>),
    /// A step ended.
    Step(Box<StepRecord>),
    /// Waking everything was tried.
    Wake(WakeRecord),
    /// The run went back.
    Undo {
        /// UTC, RFC 3339.
        time: String,
        /// Step whose state is current again; 0 is the base.
        to: u32,
    },
    /// The run goes on after an interruption.
    Resume {
        /// UTC, RFC 3339.
        time: String,
        /// Steps the run takes at most from now on.
        #[serde(default)]
        steps: u32,
    },
    /// The file of a plugin changed.
    Swap(Box<SwapRecord>),
    /// The run ended in order.
    End {
        /// UTC, RFC 3339.
        time: String,
        /// Why.
        reason: String,
        /// What the policies had to say, by name.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        reports: Vec<(String, String)>,
    },
}

/// A journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line in the middle is damaged.
    #[error("{path}, line {line}: {message}; restore the file from a backup or start a new run")]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// No run header.
    #[error("{path}: this is no journal of a run (the first line must be the run event)")]
    NoRun {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer program.
    #[error("{path}: schema {found} is newer than the {SCHEMA} this program reads; update plastic-host")]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// Written by an older program.
    #[error("{path}: schema {found} was written by an earlier version and cannot be continued; start a new run")]
    OldSchema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// An undo to a step that is not there.
    #[error("{path}: there is no committed step {step}; committed are {committed}")]
    NoStep {
        /// The file.
        path: PathBuf,
        /// What was asked.
        step: u32,
        /// What there is.
        committed: String,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, JournalError>;

/// An open journal.
pub struct Journal {
    path: PathBuf,
    file: File,
    events: Vec<Event>,
}

impl Journal {
    /// Starts a new journal with its first line.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create(path: &Path, run: RunRecord) -> Result<Journal> {
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().create_new(true).append(true).open(path).map_err(io)?;
        let mut journal = Journal { path: path.to_owned(), file, events: Vec::new() };
        journal.append(Event::Run(Box::new(run)))?;
        if let Some(dir) = path.parent() {
            crate::atomic::sync_dir(dir).map_err(|e| io(e.source))?;
        }
        Ok(journal)
    }

    /// Opens a journal to append to it; a last line that was cut short is removed from the file.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub fn open(path: &Path) -> Result<Journal> {
        let (events, whole) = parse(path)?;
        let io = |source| JournalError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().write(true).open(path).map_err(io)?;
        file.set_len(whole).map_err(io)?;
        file.seek(io::SeekFrom::End(0)).map_err(io)?;
        Ok(Journal { path: path.to_owned(), file, events })
    }

    /// Reads the events of a journal.
    ///
    /// # Errors
    /// When it cannot be read, a line in the middle is damaged, or it is no journal.
    pub fn read(path: &Path) -> Result<Vec<Event>> {
        Ok(parse(path)?.0)
    }

    /// The same for the content of a file of that name.
    ///
    /// # Errors
    /// As [`Journal::read`].
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Vec<Event>> {
        Ok(parse_bytes(path, bytes)?.0)
    }

    /// Adds one event and syncs it to the disk.
    ///
    /// # Errors
    /// When the disk is full; the event did not happen then.
    pub fn append(&mut self, event: Event) -> Result<()> {
        let io = |source| JournalError::Io { path: self.path.clone(), source };
        let before = self.file.metadata().map_err(io)?.len();
        let mut line = serde_json::to_string(&event).map_err(|e| io(io::Error::other(e)))?;
        line.push('\n');
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_all());
        if let Err(source) = written {
            // Leave no half line behind; reading would drop it anyway.
            let _ = self.file.set_len(before);
            return Err(JournalError::Io { path: self.path.clone(), source });
        }
        self.events.push(event);
        Ok(())
    }

    /// All events so far.
    pub fn events(&self) -> &[Event] {
        &self.events
    }
}

/// Events, and the length of the file up to the last whole line.
fn parse(path: &Path) -> Result<(Vec<Event>, u64)> {
    let bytes = std::fs::read(path).map_err(|source| JournalError::Io { path: path.to_owned(), source })?;
    parse_bytes(path, &bytes)
}

fn parse_bytes(path: &Path, bytes: &[u8]) -> Result<(Vec<Event>, u64)> {
    if let Some(found) = schema(bytes).filter(|s| *s < SCHEMA) {
        return Err(JournalError::OldSchema { path: path.to_owned(), found });
    }
    let mut events = Vec::new();
    let mut whole = 0;
    for (number, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        let complete = line.ends_with(b"\n");
        match serde_json::from_slice::<Event>(line) {
            Ok(event) if complete => {
                if let Err(message) = follows(&event, &events) {
                    return Err(JournalError::Line { path: path.to_owned(), line: number + 1, message });
                }
                events.push(event);
            }
            _ if !complete => break,
            Ok(_) => break,
            Err(e) => {
                return Err(JournalError::Line { path: path.to_owned(), line: number + 1, message: e.to_string() });
            }
        }
        whole += line.len() as u64;
    }
    match events.first() {
        Some(Event::Run(r)) if r.schema > SCHEMA => {
            Err(JournalError::Schema { path: path.to_owned(), found: r.schema })
        }
        Some(Event::Run(_)) => Ok((events, whole)),
        _ => Err(JournalError::NoRun { path: path.to_owned() }),
    }
}

/// The schema in the first line, whatever else is there.
fn schema(bytes: &[u8]) -> Option<u32> {
    let first = bytes.split(|b| *b == b'\n').next()?;
    let line: serde_json::Value = serde_json::from_slice(first).ok()?;
    u32::try_from(line.get("schema")?.as_u64()?).ok()
}

/// Whether a slice's sizes are those of a matrix: plans are resolved with them.
fn is_possible(s: &Slice) -> bool {
    const MOST: u32 = 1 << 24;
    let (rows, cols) = (u64::from(s.rows), u64::from(s.cols));
    (1..=MOST).contains(&s.rows)
        && (1..=MOST).contains(&s.cols)
        && s.max_rank == s.rows.min(s.cols)
        && (s.dense_parameters, s.component_parameters) == (rows * cols, rows + cols)
}

/// Whether an event can come after the earlier ones; says what is wrong where it cannot.
fn follows(event: &Event, earlier: &[Event]) -> std::result::Result<(), String> {
    match event {
        Event::Run(_) if !earlier.is_empty() => Err("a second run begins; the file is two journals in one".into()),
        Event::Run(run) => match run.slices.iter().find(|s| !is_possible(s)) {
            Some(s) => Err(format!("the sizes of slice {:?} do not fit together", s.name)),
            None => Ok(()),
        },
        Event::Step(s) => {
            let next = earlier.steps().last().map_or(1, |last| last.step + 1);
            let parent = earlier.current().map_or(0, |c| c.step);
            if s.step != next {
                return Err(format!("step {} where step {next} belongs; lines are missing or out of order", s.step));
            }
            if s.parent != parent {
                return Err(format!("step {} starts from step {}, but step {parent} is current", s.step, s.parent));
            }
            if s.state.is_some() != (s.fate == Fate::Committed) {
                return Err(format!(
                    "step {} is {} with{} a new state",
                    s.step,
                    s.fate.name(),
                    if s.state.is_some() { "" } else { "out" }
                ));
            }
            let slices = earlier.run().map_or(&[][..], |r| &r.slices);
            if let Some(state) = &s.state {
                let fits = |(a, slice): (&Awake, &Slice)| a.is_valid(slice.max_rank);
                if state.len() != slices.len() || !state.iter().zip(slices).all(fits) {
                    return Err(format!("the state of step {} does not fit the run's slices", s.step));
                }
            }
            let fits = |b: &BankRecord| {
                slices.get(b.slice as usize).is_some_and(|s| b.rank == s.max_rank && b.core.is_valid(b.rank))
            };
            if !s.banks.iter().all(fits) {
                return Err(format!("the banks of step {} do not fit the run's slices", s.step));
            }
            let digits = |state: &String| state.bytes().all(|b| b.is_ascii_hexdigit()) && state.len().is_multiple_of(2);
            if s.policy_states.iter().all(digits) {
                Ok(())
            } else {
                Err(format!("the policy's state of step {} is not in base 16", s.step))
            }
        }
        Event::Undo { to, .. } if *to != 0 && earlier.committed(*to).is_none() => {
            Err(format!("goes back to step {to}, which was not committed"))
        }
        _ => Ok(()),
    }
}

/// Questions about a list of events.
pub trait History {
    /// The run's first line.
    fn run(&self) -> Option<&RunRecord>;
    /// All steps, in order.
    fn steps(&self) -> impl Iterator<Item = &StepRecord>;
    /// The step whose state is current; `None` is the base.
    fn current(&self) -> Option<&StepRecord>;
    /// The committed step with this number.
    fn committed(&self, step: u32) -> Option<&StepRecord>;
    /// A committed step and those it was built on, back to the base.
    fn chain<'a>(&'a self, from: Option<&'a StepRecord>) -> Vec<&'a StepRecord>;
    /// Why the run ended, if nothing happened after its end.
    fn ended(&self) -> Option<&str>;
    /// The plugin that stands somewhere now, swaps counted in.
    fn plugin(&self, role: Role, place: usize) -> Option<&PluginRecord>;
}

impl History for [Event] {
    fn run(&self) -> Option<&RunRecord> {
        self.iter().find_map(|e| if let Event::Run(r) = e { Some(&**r) } else { None })
    }

    fn steps(&self) -> impl Iterator<Item = &StepRecord> {
        self.iter().filter_map(|e| if let Event::Step(s) = e { Some(&**s) } else { None })
    }

    fn current(&self) -> Option<&StepRecord> {
        let mut current = None;
        for event in self {
            match event {
                Event::Step(s) if s.fate == Fate::Committed => current = Some(&**s),
                Event::Undo { to, .. } => current = self.committed(*to),
                _ => {}
            }
        }
        current
    }

    fn committed(&self, step: u32) -> Option<&StepRecord> {
        self.steps().find(|s| s.step == step && s.fate == Fate::Committed)
    }

    fn chain<'a>(&'a self, from: Option<&'a StepRecord>) -> Vec<&'a StepRecord> {
        // A damaged journal must not lead in circles.
        let before = |s: &&'a StepRecord| self.committed(s.parent).filter(|p| p.step < s.step);
        std::iter::successors(from, before).collect()
    }

    fn ended(&self) -> Option<&str> {
        let last = self.iter().rev().find(|e| !matches!(e, Event::Wake(_) | Event::Undo { .. }))?;
        if let Event::End { reason, .. } = last { Some(reason) } else { None }
    }

    fn plugin(&self, role: Role, place: usize) -> Option<&PluginRecord> {
        let swapped = self.iter().rev().find_map(|e| match e {
            Event::Swap(s) if s.role == role && s.place == place => s.plugin.as_ref(),
            _ => None,
        });
        let begun = self.run().and_then(|r| match role {
            Role::Policy => r.policies.get(place),
            Role::Shadow => r.shadows.get(place),
            Role::Fallback => r.fallback.as_ref(),
            Role::Evaluator => r.evaluators.get(place),
        });
        swapped.or(begun)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn slices_that_no_matrix_has_are_refused() {
        let read = |rows: u32, max_rank: u32, dense: u64| {
            let slice = json!({"name": "q", "layer": 0, "kind": "q", "group": 0, "rows": rows, "cols": 6, "max_rank": max_rank,
                "dense_parameters": dense, "component_parameters": 6 + u64::from(rows)});
            let told = json!({"phase": "compress", "seed": 1, "steps": 1, "parameters": 24, "budget": 24});
            let file = json!({"path": "eval.jsonl", "sha256": ""});
            let run = json!({"event": "run", "schema": SCHEMA, "program": "", "time": "", "base": "", "base_id": "",
                "base_sha256": "", "policies": [], "evaluators": [], "told": told, "data": file, "slices": [slice],
                "parameters": 24, "budget": 24, "options_sha256": ""});
            Journal::from_bytes(Path::new("journal.jsonl"), format!("{run}\n").as_bytes())
        };
        assert_eq!(read(4, 4, 24).unwrap().len(), 1);
        for (rows, max_rank, dense) in
            [(0, 0, 0), (4, u32::MAX, 24), (4, 4, 25), (u32::MAX, 6, u64::from(u32::MAX) * 6)]
        {
            let problem = read(rows, max_rank, dense).unwrap_err().to_string();
            assert!(problem.contains("line 1: the sizes of slice \"q\" do not fit together"), "{problem}");
        }
    }
}
