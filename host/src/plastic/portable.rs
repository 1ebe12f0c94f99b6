//! A run's observations as one file: to develop and test a policy without a model or a run directory.

use super::journal::{Event, History};
use super::recording::{self, RecordingError, Seen};
use crate::plugin::contract::{Observation, Plan, Run, Slice};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the format.
pub const FORMAT: u32 = 1;

/// All that a run's policies saw, and what they answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Portable {
    /// [`FORMAT`].
    pub recording: u32,
    /// The run as policies were told of it.
    pub run: Run,
    /// Its slices.
    pub slices: Vec<Slice>,
    /// Name of the policy whose plans are recorded (the last of a pipeline).
    pub policy: String,
    /// Options of that policy.
    pub options: serde_json::Value,
    /// Statistics by their SHA-256; steps refer to them.
    pub values: BTreeMap<String, Vec<f32>>,
    /// The steps.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// What was seen, its values left out.
    #[serde(flatten)]
    pub seen: Seen,
    /// What was answered.
    pub plan: Option<Plan>,
}

/// A recording cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PortableError {
    /// A run's record cannot be read.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The file is no recording.
    #[error("{}: {why}; make one with `plastic-host plugin record RUN -o FILE`", path.display())]
    NotOne {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Portable {
    /// From a run directory.
    ///
    /// # Errors
    /// When its observations are missing or damaged.
    pub fn of_run(run: &Path, events: &[Event]) -> Result<Portable, PortableError> {
        let none = || RecordingError::None { path: run.to_owned() };
        let record = events.run().ok_or_else(none)?;
        let policy = record.policies.last().ok_or_else(none)?;
        let mut out = Portable {
            recording: FORMAT,
            run: record.told.clone(),
            slices: record.slices.clone(),
            policy: policy.info.name.clone(),
            options: policy.options.clone(),
            values: BTreeMap::new(),
            steps: Vec::new(),
        };
        let all = recording::read(run)?;
        if let Some(s) = events.steps().find(|s| !all.iter().any(|seen| seen.step == s.step)) {
            let path = run.join("observations.jsonl");
            return Err(RecordingError::Missing { path, step: s.step }.into());
        }
        for seen in all {
            let plan = events.steps().find(|s| s.step == seen.step).and_then(|s| s.plan.clone());
            if !out.values.contains_key(&seen.values_sha256) {
                out.values.insert(seen.values_sha256.clone(), recording::observation(run, &seen)?.values);
            }
            out.steps.push(Step { seen, plan });
        }
        Ok(out)
    }

    /// From a file.
    ///
    /// # Errors
    /// When it is no recording, or statistics are missing.
    pub fn read(path: &Path) -> Result<Portable, PortableError> {
        let not_one = |why: String| PortableError::NotOne { path: path.to_owned(), why };
        let bytes = crate::atomic::read_bounded(path, 1 << 30).map_err(|e| not_one(e.to_string()))?;
        Portable::from_bytes(path, &bytes)
    }

    /// The same for the content of a file of that name.
    ///
    /// # Errors
    /// As [`Portable::read`].
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Portable, PortableError> {
        let not_one = |why: String| PortableError::NotOne { path: path.to_owned(), why };
        let out: Portable = serde_json::from_slice(bytes).map_err(|e| not_one(e.to_string()))?;
        if out.recording != FORMAT {
            return Err(not_one(format!("it is of format {}, this program reads {FORMAT}", out.recording)));
        }
        for step in &out.steps {
            let values = out.values.get(&step.seen.values_sha256).map_or(0, Vec::len) as u64;
            let end = step.seen.observation.series.iter().map(|s| u64::from(s.offset) + u64::from(s.len)).max();
            if end.unwrap_or(0) > values {
                return Err(not_one(format!("step {} lacks statistics", step.seen.step)));
            }
        }
        Ok(out)
    }

    /// What was seen at a step, whole.
    pub fn observation(&self, step: &Step) -> Observation {
        let values = self.values.get(&step.seen.values_sha256).cloned().unwrap_or_default();
        Observation { values, ..step.seen.observation.clone() }
    }
}
