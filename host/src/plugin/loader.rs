//! The one door through which plugins come in: by path, under the operator's rules.

use super::{Evaluator, Fault, Limits, Policy, Rules, wasm};
use std::path::{Path, PathBuf};

/// Loads plugins under one set of rules.
#[derive(Clone, Debug)]
pub struct Loader {
    rules: Rules,
    limits: Limits,
    cache: Option<PathBuf>,
    compiler: Option<PathBuf>,
}

impl Loader {
    /// Compiled code is kept under `cache`, where one is given.
    pub fn new(rules: Rules, cache: Option<PathBuf>) -> Loader {
        let limits = rules.limits();
        Loader { rules, limits, cache, compiler: None }
    }

    /// Compiles in a process of this program, which must be plastic-host, under the limits of
    /// compiling.
    #[must_use]
    pub fn compiled_by(self, program: PathBuf) -> Loader {
        Loader { compiler: Some(program), ..self }
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
        wasm::policy(path, &self.workshop())
    }

    /// Loads an evaluator.
    ///
    /// # Errors
    /// As [`wasm::load_policy`](super::load_policy).
    pub fn evaluator(&self, path: &Path) -> Result<Box<dyn Evaluator>, Fault> {
        wasm::evaluator(path, &self.workshop())
    }

    fn workshop(&self) -> wasm::Workshop<'_> {
        wasm::Workshop { limits: &self.limits, cache: self.cache.as_deref(), compiler: self.compiler.as_deref() }
    }
}
