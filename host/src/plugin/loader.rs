//! The one door through which plugins come in: by path, under the operator's rules.

use super::{Evaluator, Fault, Limits, Policy, Rules, wasm};
use std::path::{Path, PathBuf};

/// Loads plugins under one set of rules.
#[derive(Clone, Debug)]
pub struct Loader {
    rules: Rules,
    limits: Limits,
    cache: Option<PathBuf>,
}

impl Loader {
    /// Compiled code is kept under `cache`, where one is given.
    pub fn new(rules: Rules, cache: Option<PathBuf>) -> Loader {
        let limits = rules.limits();
        Loader { rules, limits, cache }
    }

    /// The rules in force.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Loads a rank policy.
    ///
    /// # Errors
    /// As [`wasm::load_policy`](super::load_policy).
    pub fn policy(&self, path: &Path) -> Result<Box<dyn Policy>, Fault> {
        wasm::load_policy(path, &self.limits, self.cache.as_deref())
    }

    /// Loads an evaluator.
    ///
    /// # Errors
    /// As [`wasm::load_policy`](super::load_policy).
    pub fn evaluator(&self, path: &Path) -> Result<Box<dyn Evaluator>, Fault> {
        wasm::load_evaluator(path, &self.limits, self.cache.as_deref())
    }
}
