//! The events of a demo as JSON lines, one for each slice a step changed, in the fields of
//! mlx-plastic-rank's `out/plasticity.jsonl`. The whole file is written anew after each step
//! (temporary, sync, rename), so that a reader never sees half a line; fails where it cannot be written.

use crate::atomic::{self, FileError};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What a step did to the rank of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Did {
    /// Components went to sleep.
    Shrink,
    /// Components woke.
    Wake,
}

/// One change of one slice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Seconds since 1970, UTC.
    pub ts: f64,
    /// Name of the slice.
    pub layer: String,
    /// Components awake before.
    pub r0: u32,
    /// Components awake after.
    pub r_star: u32,
    /// Share of the slice's norm that sleeps, in the metric of the plan: √(Σ asleep s² / Σ s²); null where
    /// the policy saw no spectrum.
    pub residual: Option<f64>,
    /// Shrink or wake.
    pub action: Did,
    /// Bytes of the slice's parked components after the change.
    pub sleep_bytes: u64,
    /// Loss before the step, nats a token; null where it is not measured.
    pub val_loss_before: Option<f64>,
    /// Loss after the step.
    pub val_loss_after: Option<f64>,
    /// What chose the rank.
    pub strategy: String,
}

/// The file of events.
pub struct Log {
    path: PathBuf,
    text: String,
}

impl Log {
    /// Begins an empty file; its directory is made where it is missing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path) -> Result<Log, FileError> {
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(FileError::at("creating", dir))?;
        }
        atomic::write_file(path, b"")?;
        Ok(Log { path: path.to_owned(), text: String::new() })
    }

    /// Adds the events of a step.
    ///
    /// # Errors
    /// When the file cannot be written; the earlier one is then whole.
    pub fn append(&mut self, events: &[Event]) -> Result<(), FileError> {
        for e in events {
            // Numbers and names always have a JSON form.
            self.text.extend(serde_json::to_string(e).ok());
            self.text.push('\n');
        }
        if events.is_empty() { Ok(()) } else { atomic::write_file(&self.path, self.text.as_bytes()) }
    }
}

/// √(Σ_{i ≥ r} s² / Σ s²) of singular values, largest first; `None` of none.
pub fn residual(values: &[f32], awake: &[u32]) -> Option<f64> {
    let square = |v: f32| f64::from(v).powi(2);
    let all: f64 = values.iter().map(|v| square(*v)).sum();
    let kept: f64 = awake.iter().filter_map(|i| values.get(*i as usize)).map(|v| square(*v)).sum();
    (all > 0.0).then(|| ((all - kept).max(0.0) / all).sqrt())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_residual_is_what_sleeps() {
        let near = |a: Option<f64>, b: f64| assert!((a.unwrap() - b).abs() < 1e-12, "{a:?}");
        near(residual(&[4.0, 3.0], &[0]), 0.6);
        near(residual(&[4.0, 3.0], &[1]), 0.8);
        near(residual(&[4.0, 3.0], &[0, 1]), 0.0);
        near(residual(&[4.0, 3.0], &[]), 1.0);
        assert_eq!(residual(&[], &[]), None);
        assert_eq!(residual(&[0.0], &[0]), None);
    }

    #[test]
    fn lines_have_the_fields_of_the_original() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out/plasticity.jsonl");
        let mut log = Log::create(&path).unwrap();
        let event = Event {
            ts: 1.5,
            layer: "a".into(),
            r0: 4,
            r_star: 2,
            residual: Some(0.25),
            action: Did::Shrink,
            sleep_bytes: 96,
            val_loss_before: Some(1.0),
            val_loss_after: None,
            strategy: "guardrail".into(),
        };
        log.append(std::slice::from_ref(&event)).unwrap();
        log.append(&[]).unwrap();
        log.append(&[Event { action: Did::Wake, ..event }]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            r#"{"ts":1.5,"layer":"a","r0":4,"r_star":2,"residual":0.25,"action":"shrink","sleep_bytes":96,"val_loss_before":1.0,"val_loss_after":null,"strategy":"guardrail"}"#
        );
        assert!(lines.len() == 2 && lines[1].contains(r#""action":"wake""#));
    }
}
