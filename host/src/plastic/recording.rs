//! What policies were shown, step by step, kept in the run's directory so that decisions can be made
//! again without a model.
//!
//! ```text
//! RUN/observations.jsonl         one line a step: the observation without its statistics
//! RUN/statistics/<sha256>.f32    the statistics, float32, little-endian; equal ones are kept once
//! ```

use crate::model::hash;
use crate::plugin::contract::Observation;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Most that is read of one file.
const MAX_BYTES: u64 = 1 << 30;

/// What was seen at one step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// The step.
    pub step: u32,
    /// Names of the statistics, by number.
    pub needs: Vec<String>,
    /// SHA-256 of the statistics.
    pub values_sha256: String,
    /// The observation; on disk without its values.
    pub observation: Observation,
}

/// An observation cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A line or a file of statistics is damaged.
    #[error("{}: {what}; decisions of this run cannot be made again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A step's observation is not there.
    #[error("{}: step {step} was taken, but what was seen then is not kept there; the file was cut short", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The step.
        step: u32,
    },
    /// The run was made without observations.
    #[error("{}: no observations are kept there; it was made by an earlier version", path.display())]
    None {
        /// The run.
        path: PathBuf,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, RecordingError>;

/// SHA-256 of an observation: of the names and bytes of its statistics, and of the rest as JSON.
pub fn digest(observation: &Observation, needs: &[String]) -> String {
    let mut sha = Sha256::new();
    for name in needs {
        sha.update(name);
        sha.update([0]);
    }
    sha.update(bytemuck::cast_slice::<f32, u8>(&observation.values));
    let rest = Observation { values: Vec::new(), ..observation.clone() };
    sha.update(serde_json::to_vec(&rest).unwrap_or_default());
    hash::hex(&sha.finalize())
}

/// Keeps one observation; answers its digest.
///
/// # Errors
/// When the disk is full.
pub fn write(run: &Path, step: u32, needs: &[String], observation: &Observation) -> Result<String> {
    let values: &[u8] = bytemuck::cast_slice(&observation.values);
    let values_sha256 = hash::sha256(values);
    let file = statistics(run, &values_sha256);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RecordingError::Io { path, source }
    };
    // A damaged copy is written again.
    if crate::atomic::read_bounded(&file, MAX_BYTES).is_ok_and(|b| hash::sha256(&b) == values_sha256) {
        // Kept already.
    } else {
        let dir = run.join("statistics");
        std::fs::create_dir_all(&dir).map_err(io(&dir))?;
        crate::atomic::write_file(&file, values).map_err(|e| io(&file)(e.source))?;
    }
    let rest = Observation { values: Vec::new(), ..observation.clone() };
    let seen = Seen { step, needs: needs.to_vec(), values_sha256, observation: rest };
    let path = run.join("observations.jsonl");
    let mut line = serde_json::to_vec(&seen).map_err(|e| io(&path)(std::io::Error::other(e)))?;
    line.push(b'\n');
    if std::fs::metadata(&path).is_ok_and(|m| !m.is_file()) {
        return Err(io(&path)(std::io::Error::other("not a regular file; move it away")));
    }
    let mut out = OpenOptions::new().create(true).append(true).open(&path).map_err(io(&path))?;
    out.write_all(&line).map_err(io(&path))?;
    Ok(digest(observation, needs))
}

/// What was seen at every step, in order, without the statistics ([`observation`] adds them). A line
/// that a kill cut short is left out; of a step that was begun twice the second one counts.
///
/// # Errors
/// When there are none, or one is damaged.
pub fn read(run: &Path) -> Result<Vec<Seen>> {
    let path = run.join("observations.jsonl");
    if !path.is_file() {
        return Err(RecordingError::None { path: run.to_owned() });
    }
    let bytes = bounded(&path)?;
    let mut out: Vec<Seen> = Vec::new();
    for (number, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        let seen: Seen = match serde_json::from_slice(line) {
            Ok(seen) => seen,
            Err(_) if !line.ends_with(b"\n") => break,
            Err(e) => return Err(RecordingError::Damaged { path, what: format!("line {}: {e}", number + 1) }),
        };
        out.retain(|s| s.step != seen.step);
        out.push(seen);
    }
    Ok(out)
}

/// What was seen at one step, whole.
///
/// # Errors
/// When its statistics are missing or damaged.
pub fn observation(run: &Path, seen: &Seen) -> Result<Observation> {
    let observation = Observation { values: values(run, &seen.values_sha256)?, ..seen.observation.clone() };
    let end = observation.series.iter().map(|s| u64::from(s.offset) + u64::from(s.len)).max().unwrap_or(0);
    if end > observation.values.len() as u64 {
        let what = format!("step {}: statistics are missing", seen.step);
        return Err(RecordingError::Damaged { path: run.join("observations.jsonl"), what });
    }
    Ok(observation)
}

fn bounded(path: &Path) -> Result<Vec<u8>> {
    let io = |source| RecordingError::Io { path: path.to_owned(), source };
    crate::atomic::read_bounded(path, MAX_BYTES).map_err(io)
}

fn values(run: &Path, sha256: &str) -> Result<Vec<f32>> {
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        let path = run.join("observations.jsonl");
        return Err(RecordingError::Damaged { path, what: format!("{sha256:?} is no SHA-256") });
    }
    let path = statistics(run, sha256);
    let bytes = bounded(&path)?;
    if hash::sha256(&bytes) != sha256 || bytes.len() % 4 != 0 {
        return Err(RecordingError::Damaged { path, what: "its content is not what its name says".into() });
    }
    Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

fn statistics(run: &Path, sha256: &str) -> PathBuf {
    run.join("statistics").join(format!("{sha256}.f32"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::plugin::contract::Series;

    fn observation(step: u32) -> Observation {
        let series = vec![Series { slice: 0, need: 0, offset: 0, len: 2 }];
        Observation { step, series, values: vec![2.0, 1.0], ..Observation::default() }
    }

    #[test]
    fn what_was_written_is_read_and_equal_statistics_are_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let needs = ["spectrum:plain".to_owned()];
        for step in [1, 2, 2] {
            write(dir.path(), step, &needs, &observation(step)).unwrap();
        }
        let mut file = OpenOptions::new().append(true).open(dir.path().join("observations.jsonl")).unwrap();
        file.write_all(b"{\"step\": 3, \"ne").unwrap();
        let seen = read(dir.path()).unwrap();
        assert_eq!(seen.iter().map(|s| s.step).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(super::observation(dir.path(), &seen[0]).unwrap(), observation(1));
        assert_eq!(std::fs::read_dir(dir.path().join("statistics")).unwrap().count(), 1);
    }

    #[test]
    fn changed_statistics_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Err(RecordingError::None { .. })));
        write(dir.path(), 1, &[], &observation(1)).unwrap();
        let file = std::fs::read_dir(dir.path().join("statistics")).unwrap().next().unwrap().unwrap().path();
        std::fs::write(&file, [0; 8]).unwrap();
        let seen = read(dir.path()).unwrap();
        let damaged = super::observation(dir.path(), &seen[0]);
        assert!(matches!(damaged, Err(RecordingError::Damaged { .. })));
    }

    #[test]
    fn a_digest_tells_names_and_values_apart() {
        let one = digest(&observation(1), &["spectrum:plain".into()]);
        assert_ne!(one, digest(&observation(1), &["spectrum:input".into()]));
        assert_ne!(one, digest(&Observation { values: vec![2.0, 1.5], ..observation(1) }, &["spectrum:plain".into()]));
    }
}
