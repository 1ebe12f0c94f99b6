//! Bake-offs: several ways to train a pack, over several seeds, at equal budgets, on held-out text.
//!
//! A bake-off is a TOML file. Each arm is trained once a seed, by `packs create` in a process of its own, so that a
//! crash is one failed trial; what is finished is kept, what failed is tried again at the next call. The evaluation
//! text must share nothing with the training text.

pub mod overlap;
pub mod picture;
pub mod trial;
pub mod verdict;

use super::error::{Error, Result};
use crate::atomic::FileError;
use crate::eval::data::Loss;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Options of `packs create` that a bake-off sets itself.
const OWN: [&str; 8] = ["name", "base", "data", "seed", "force", "packs", "json", "quiet"];
/// Options that make one training longer than another.
const WORK: [&str; 4] = ["steps", "batch-size", "grad-accumulation", "sequence-length"];

/// What is compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Name; that of its directory.
    pub name: String,
    /// Base model.
    #[serde(default = "default_base")]
    pub base: String,
    /// Training text.
    pub data: PathBuf,
    /// Held-out text.
    pub eval: PathBuf,
    /// Seeds; each arm is trained with each.
    pub seeds: Vec<u64>,
    /// Arm the others are compared with; the first one where it is not named.
    #[serde(default)]
    pub reference: Option<String>,
    /// Tokens of an evaluation window.
    #[serde(default = "default_length")]
    pub sequence_length: usize,
    /// Evaluation windows, spread evenly; 0: all.
    #[serde(default)]
    pub num_samples: usize,
    /// Windows scored together.
    #[serde(default = "default_batch")]
    pub batch_size: usize,
    /// Tokens that count.
    #[serde(default)]
    pub loss: Loss,
    /// Whether arms must have the same total rank, bytes and length of training.
    #[serde(default = "default_equal")]
    pub equal_budgets: bool,
    /// Percent by which ranks and bytes may still differ.
    #[serde(default)]
    pub budget_tolerance: f64,
    /// Options of `packs create` for every arm.
    #[serde(default)]
    pub create: toml::Table,
    /// The arms.
    pub arm: Vec<Arm>,
}

fn default_base() -> String {
    crate::model::registry::DEFAULT_BASE.into()
}
fn default_length() -> usize {
    256
}
fn default_batch() -> usize {
    8
}
fn default_equal() -> bool {
    true
}

/// One way to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Name.
    pub name: String,
    /// Options of `packs create`, over those of every arm.
    #[serde(default)]
    pub create: toml::Table,
}

impl Spec {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// When it cannot be read or makes no comparison.
    pub fn read(path: &Path) -> Result<Spec> {
        let bytes = crate::atomic::read_bounded(path, 1 << 20).map_err(FileError::at("reading", path))?;
        let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "is no UTF-8 text"))?;
        let mut spec: Spec = toml::from_str(&text)
            .map_err(|e| Error::file(path, format!("is no bake-off: {}", e.to_string().trim())))?;
        for table in std::iter::once(&mut spec.create).chain(spec.arm.iter_mut().map(|a| &mut a.create)) {
            *table = std::mem::take(table).into_iter().map(|(k, v)| (k.replace('_', "-"), v)).collect();
        }
        spec.check().map_err(|reason| Error::file(path, reason))?;
        Ok(spec)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let name = |n: &str| super::store::check_name(n).map_err(|e| e.to_string());
        name(&self.name)?;
        if self.arm.len() < 2 {
            return Err("a comparison takes two [[arm]] tables or more".into());
        }
        for (i, arm) in self.arm.iter().enumerate() {
            name(&arm.name)?;
            if self.arm.iter().take(i).any(|a| a.name == arm.name) {
                return Err(format!("there are two arms called {}", arm.name));
            }
            if let Some(key) = arm.create.keys().chain(self.create.keys()).find(|k| OWN.contains(&k.as_str())) {
                return Err(format!("`create.{key}` is set by the bake-off itself; take it out"));
            }
            arguments(&self.options(arm))?;
        }
        if let Some(r) = self.reference.as_ref().filter(|r| !self.arm.iter().any(|a| a.name == **r)) {
            return Err(format!("reference = {r:?} is no arm"));
        }
        let mut seeds = self.seeds.clone();
        seeds.sort_unstable();
        seeds.dedup();
        if seeds.is_empty() || seeds.len() != self.seeds.len() {
            return Err("`seeds` lists one seed or more, each once; three or more tell something".into());
        }
        if self.sequence_length < 2 || self.batch_size == 0 {
            return Err("`sequence_length` is 2 or more and `batch_size` 1 or more".into());
        }
        if !self.budget_tolerance.is_finite() || self.budget_tolerance < 0.0 {
            return Err("`budget_tolerance` is a percentage of 0 or more".into());
        }
        for key in WORK.iter().filter(|_| self.equal_budgets) {
            let of = |arm: &Arm| self.options(arm).get(*key).map(ToString::to_string);
            let reference = self.arm.first().and_then(of);
            if let Some(arm) = self.arm.iter().find(|a| of(a) != reference) {
                return Err(format!(
                    "arm {} has another `{key}` than arm {}, so its budget is another; make them equal, or say equal_budgets = false",
                    arm.name,
                    self.arm.first().map_or("", |a| a.name.as_str())
                ));
            }
        }
        Ok(())
    }

    /// Options of an arm: its own over those of all.
    pub fn options(&self, arm: &Arm) -> toml::Table {
        let mut all = self.create.clone();
        all.extend(arm.create.clone());
        all
    }

    /// Name of the arm the others are compared with.
    pub fn reference(&self) -> &str {
        let first = self.arm.first().map_or("", |a| a.name.as_str());
        self.reference.as_deref().unwrap_or(first)
    }
}

/// Options as a command line has them: `true` is a flag, a list is joined by commas.
///
/// # Errors
/// When a value is none that a command line can have.
pub fn arguments(options: &toml::Table) -> std::result::Result<Vec<String>, String> {
    fn plain(key: &str, value: &toml::Value) -> std::result::Result<String, String> {
        match value {
            toml::Value::String(s) => Ok(s.clone()),
            toml::Value::Integer(_) | toml::Value::Float(_) => Ok(value.to_string()),
            _ => Err(format!("`create.{key}` is {}; expected text, a number, true or a list", value.type_str())),
        }
    }
    let mut out = Vec::new();
    for (key, value) in options {
        match value {
            toml::Value::Boolean(true) => out.push(format!("--{key}")),
            toml::Value::Boolean(false) => {}
            toml::Value::Array(list) => {
                let list: Vec<String> = list.iter().map(|v| plain(key, v)).collect::<std::result::Result<_, _>>()?;
                out.push(format!("--{key}={}", list.join(",")));
            }
            value => out.push(format!("--{key}={}", plain(key, value)?)),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn of(text: &str) -> Result<Spec> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.toml");
        std::fs::write(&path, text).unwrap();
        Spec::read(&path)
    }

    const HEAD: &str = "name = \"x\"\ndata = \"a\"\neval = \"b\"\nseeds = [1, 2]\n";

    #[test]
    fn options_become_arguments() {
        let spec = of(&format!(
            "{HEAD}[create]\nsteps = 5\nbatch_size = 2\n[[arm]]\nname = \"a\"\n[arm.create]\nrank = 4\nrslora = true\ndora = false\nlayers = [\"q\", \"k\"]\n[[arm]]\nname = \"b\"\n"
        ))
        .unwrap();
        assert_eq!(
            arguments(&spec.options(&spec.arm[0])).unwrap(),
            ["--batch-size=2", "--layers=q,k", "--rank=4", "--rslora", "--steps=5"]
        );
        assert_eq!(spec.reference(), "a");
    }

    #[test]
    fn what_compares_nothing_is_refused() {
        let error = |text: &str| of(&format!("{HEAD}{text}")).unwrap_err().to_string();
        let two = "[[arm]]\nname = \"a\"\n[[arm]]\nname = \"b\"\n";
        assert!(error("[[arm]]\nname = \"a\"\n").contains("two [[arm]] tables"));
        assert!(error("[[arm]]\nname = \"a\"\n[[arm]]\nname = \"a\"\n").contains("two arms called a"));
        assert!(error(&format!("[create]\nseed = 1\n{two}")).contains("set by the bake-off itself"));
        assert!(error(&format!("reference = \"c\"\n{two}")).contains("is no arm"));
        assert!(error(&format!("{two}create = {{ steps = 9 }}\n")).contains("another `steps`"));
        assert!(error(&format!("equal_budgets = true\nwhat = 1\n{two}")).contains("is no bake-off"));
        assert!(error("[[arm]]\nname = \"../a\"\n[[arm]]\nname = \"b\"\n").contains("is no name"));
        assert!(of(&format!("equal_budgets = false\n{HEAD}{two}create = {{ steps = 9 }}\n")).is_ok());
    }
}
