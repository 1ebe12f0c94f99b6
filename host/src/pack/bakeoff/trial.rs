//! One arm with one seed: trained by a child process, measured here, kept in a file.

use super::{Arm, Spec, arguments};
use crate::eval::data::Window;
use crate::eval::perplexity::{self, WindowLoss};
use crate::model::Model;
use crate::pack::error::{Error, Result};
use crate::pack::{Store, attach};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Lines of a failed training's output that are told.
const TAIL: usize = 3;

/// A finished trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Arm.
    pub arm: String,
    /// Seed.
    pub seed: u64,
    /// What it depends on; another key is another trial.
    pub key: String,
    /// Name of the pack.
    pub pack: String,
    /// Components of all its adapters.
    pub total_rank: usize,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Loss of each evaluation window.
    pub windows: Vec<WindowLoss>,
}

impl Trial {
    /// Mean loss, nats a token.
    pub fn mean_nll(&self) -> f64 {
        perplexity::mean(&self.windows).0
    }
}

/// Where and with what trials run.
#[derive(Debug)]
pub struct Kitchen<'a> {
    /// The bake-off.
    pub spec: &'a Spec,
    /// Directory of results, logs and packs.
    pub dir: &'a Path,
    /// This program.
    pub program: &'a Path,
    /// Base, training text and evaluation windows, by their hashes.
    pub fingerprint: String,
}

impl Kitchen<'_> {
    /// Packs of the bake-off.
    pub fn store(&self) -> Store {
        Store::new(Some(self.dir.join("packs")))
    }

    /// Name of a trial's pack.
    pub fn pack(arm: &Arm, seed: u64) -> String {
        format!("{}-s{seed}", arm.name)
    }

    fn file(&self, arm: &Arm, seed: u64, extension: &str) -> PathBuf {
        self.dir.join(format!("{}.{extension}", Self::pack(arm, seed)))
    }

    /// The command line that trains an arm.
    ///
    /// # Errors
    /// When an option cannot be on one.
    pub fn command(&self, arm: &Arm, seed: u64) -> Result<Vec<String>> {
        let path = |p: &Path| p.display().to_string();
        let mut line: Vec<String> = vec!["packs".into(), "--packs".into(), path(self.store().root()), "create".into()];
        line.extend(["--name".into(), Self::pack(arm, seed), "--base".into(), self.spec.base.clone()]);
        line.extend(["--data".into(), path(&self.spec.data), "--seed".into(), seed.to_string()]);
        line.extend(arguments(&self.spec.options(arm)).map_err(Error::Other)?);
        line.extend(["--force".into(), "--quiet".into()]);
        Ok(line)
    }

    fn key(&self, arm: &Arm, seed: u64) -> Result<String> {
        let mut sha = Sha256::new();
        sha.update(&self.fingerprint);
        sha.update(serde_json::to_vec(&self.command(arm, seed)?).map_err(|e| Error::Other(e.to_string()))?);
        Ok(crate::model::hash::hex(&sha.finalize()))
    }

    /// A trial that is done already, with the same options, texts and base.
    ///
    /// # Errors
    /// When an option cannot be on a command line.
    pub fn kept(&self, arm: &Arm, seed: u64) -> Result<Option<Trial>> {
        let Ok(bytes) = crate::atomic::read_bounded(&self.file(arm, seed, "json"), 1 << 28) else { return Ok(None) };
        let trial: Option<Trial> = serde_json::from_slice(&bytes).ok();
        let key = self.key(arm, seed)?;
        Ok(trial.filter(|t| t.key == key))
    }

    /// Trains and measures; only what came to its end is kept.
    ///
    /// # Errors
    /// When the training fails, with the end of what it said, or its pack cannot be measured.
    pub fn run(&self, arm: &Arm, seed: u64, model: &mut Model, windows: &[Window]) -> Result<Trial> {
        let result = self.file(arm, seed, "json");
        let _ = std::fs::remove_file(&result);
        let log = self.file(arm, seed, "log");
        let at = |e: std::io::Error| Error::file(&log, e.to_string());
        let out = std::fs::File::create(&log).map_err(at)?;
        let begun = Instant::now();
        let status = Command::new(self.program)
            .args(self.command(arm, seed)?)
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(at)?)
            .stderr(out)
            .status()
            .map_err(|e| Error::file(self.program, format!("cannot be started: {e}")))?;
        let seconds = begun.elapsed().as_secs_f64();
        if !status.success() {
            let said = std::fs::read(&log).map_err(at)?;
            let said = String::from_utf8_lossy(&said).into_owned();
            let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
            let tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default().join(" / ");
            return Err(Error::Other(format!("training ended with {status}: {tail} (all of it: {})", log.display())));
        }
        let pack = self.store().read(&Self::pack(arm, seed))?;
        let attachment = attach::prepare(model, &[(&pack, 1.0)])?;
        attach::attach(model, &attachment);
        let measured = perplexity::measure(model, windows, self.spec.batch_size, &mut |_| true);
        attach::detach(model);
        let measured = measured?.ok_or_else(|| Error::Other("nothing was measured".into()))?;
        let trial = Trial {
            arm: arm.name.clone(),
            seed,
            key: self.key(arm, seed)?,
            pack: pack.name().to_owned(),
            total_rank: pack.total_rank(),
            bytes: pack.nbytes(),
            seconds,
            windows: measured.windows,
        };
        let text = serde_json::to_vec_pretty(&trial).map_err(|e| Error::Other(e.to_string()))?;
        crate::atomic::write_file(&result, &text)?;
        Ok(trial)
    }
}
