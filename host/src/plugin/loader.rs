//! The one door through which plugins come in: by path, under the operator's rules.

use super::native::{self, isolate::Isolation};
use super::{Evaluator, Fault, FaultClass, Limits, Policy, Rules, wasm};
use std::io::Read;
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
    /// As [`load_policy`](super::load_policy) and [`native::load_policy`]; a native library that the rules
    /// do not allow.
    pub fn policy(&self, path: &Path) -> Result<Box<dyn Policy>, Fault> {
        if !is_native(path) {
            return wasm::load_policy(path, &self.limits, self.cache.as_deref());
        }
        native::load_policy(path, &self.limits, self.admit(path)?.as_ref())
    }

    /// Loads an evaluator.
    ///
    /// # Errors
    /// As [`policy`](Loader::policy).
    pub fn evaluator(&self, path: &Path) -> Result<Box<dyn Evaluator>, Fault> {
        if !is_native(path) {
            return wasm::load_evaluator(path, &self.limits, self.cache.as_deref());
        }
        native::load_evaluator(path, &self.limits, self.admit(path)?.as_ref())
    }

    /// Whether a native library may be loaded, and whether into a process of its own.
    fn admit(&self, path: &Path) -> Result<Option<Isolation>, Fault> {
        let fault = |message: String| Fault { plugin: path.display().to_string(), class: FaultClass::Load, message };
        if !self.rules.allow_native {
            return Err(fault(
                "is a native library, which runs with all your rights; load it with --allow-native if you trust it"
                    .into(),
            ));
        }
        if !self.rules.isolate {
            return Ok(None);
        }
        Isolation::by_this_program().map(Some).map_err(|e| fault(format!("cannot be isolated: {e}")))
    }
}

/// What carries a plugin is in the file, not in its name. A file that cannot be read is left to the
/// loader of components, which says why.
fn is_native(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut start));
    read.is_ok() && native::file::is_library(&start)
}
