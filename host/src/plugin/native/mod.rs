//! Plugins as native libraries (`.so`, `.dylib`): the same contract as a C ABI.
//!
//! `plugin-api/include/plastic_plugin.h` is the contract; [`abi`] is the same in Rust. A library is
//! trusted code: it runs with all rights of the user, so it is loaded only where the operator
//! allows it ([`Rules::allow_native`](super::Rules)). In this process its crash is ours and no clock
//! stops it; in a process of its own ([`isolate`]) both are a [`Fault`].
//!
//! - [`file`]: what a library says about itself, read without running it;
//! - [`library`]: loading it;
//! - [`records`]: the contract's records across the border;
//! - [`policy`], [`evaluator`]: an instance in this process;
//! - [`kept`]: what makes an instance, wherever it runs, a [`Policy`] or an [`Evaluator`]: checked
//!   answers, and a rebuilt instance after a fault.
//!
//! `unsafe` code about plugins is here, in the files above, and nowhere else. What is checked: sizes,
//! versions, null and misaligned pointers, lengths, texts, every answer. What cannot be checked is
//! whether a pointer points at what the library says; that is the trust.

#[path = "../../../../plugin-api/src/abi/mod.rs"]
pub mod abi;
mod evaluator;
pub(super) mod file;
pub mod isolate;
mod kept;
mod library;
mod policy;
pub(super) mod records;

/// What [`abi`] calls its records.
mod shared {
    pub use super::super::contract::{Attribute, Change, Metric, Value};
}

use super::component::{Artifact, Kind};
use super::limits::{Limits, size};
use super::sandbox::Log;
use super::{Carrier, Evaluator, Fault, FaultClass, Policy, text, wasm};
use abi::Misread;
use evaluator::NativeEvaluator;
use isolate::Isolation;
use kept::{KeptEvaluator, KeptPolicy};
use policy::NativePolicy;
use std::path::Path;

/// Most of a panic's text that a fault carries.
const PANIC_BYTES: usize = 4096;

/// Loads a rank policy from a native library, into this process or into one of its own.
///
/// # Errors
/// [`FaultClass::Load`]: not a library for this machine, not a plugin, an evaluator;
/// [`FaultClass::Version`]: built for another major version; or the fault of its first call.
pub fn load_policy(path: &Path, limits: &Limits, isolation: Option<&Isolation>) -> Result<Box<dyn Policy>, Fault> {
    policy(&read(path, limits)?, limits, isolation)
}

/// The same for a library that was read.
pub(super) fn policy(
    artifact: &Artifact,
    limits: &Limits,
    isolation: Option<&Isolation>,
) -> Result<Box<dyn Policy>, Fault> {
    wasm::expect(artifact, Kind::Policy)?;
    let fault = |f: Failure| f.of(&artifact.path.display().to_string());
    let lines = limits.clone();
    let make: kept::MakePolicy = match isolation {
        Some(isolation) => {
            let spawner = isolation.spawner(artifact, limits).map_err(fault)?;
            Box::new(move |plugin| Ok(Box::new(spawner.spawn(plugin)?)))
        }
        None => {
            let entry = library::open(artifact).map_err(fault)?;
            Box::new(move |plugin| {
                let log = Log::new(plugin.to_owned(), &lines);
                Ok(Box::new(NativePolicy::new(entry, Box::new(log), lines.transfer_bytes)?))
            })
        }
    };
    Ok(Box::new(KeptPolicy::new(artifact.origin(), limits.clone(), make)?))
}

/// Loads an evaluator from a native library, into this process or into one of its own.
///
/// # Errors
/// As [`load_policy`].
pub fn load_evaluator(
    path: &Path,
    limits: &Limits,
    isolation: Option<&Isolation>,
) -> Result<Box<dyn Evaluator>, Fault> {
    evaluator(&read(path, limits)?, limits, isolation)
}

/// The same for a library that was read.
pub(super) fn evaluator(
    artifact: &Artifact,
    limits: &Limits,
    isolation: Option<&Isolation>,
) -> Result<Box<dyn Evaluator>, Fault> {
    wasm::expect(artifact, Kind::Evaluator)?;
    let fault = |f: Failure| f.of(&artifact.path.display().to_string());
    let lines = limits.clone();
    let make: kept::MakeEvaluator = match isolation {
        Some(isolation) => {
            let spawner = isolation.spawner(artifact, limits).map_err(fault)?;
            Box::new(move |plugin| Ok(Box::new(spawner.spawn(plugin)?)))
        }
        None => {
            let entry = library::open(artifact).map_err(fault)?;
            Box::new(move |plugin| {
                let log = Log::new(plugin.to_owned(), &lines);
                Ok(Box::new(NativeEvaluator::new(entry, Box::new(log), lines.transfer_bytes)?))
            })
        }
    };
    Ok(Box::new(KeptEvaluator::new(artifact.origin(), limits.clone(), make)?))
}

fn read(path: &Path, limits: &Limits) -> Result<Artifact, Fault> {
    let artifact = Artifact::read(path, limits)?;
    if artifact.carrier != Carrier::Native {
        return Err(artifact.fault(FaultClass::Load, "is no native library".into()));
    }
    Ok(artifact)
}

/// How a call on an instance failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    class: FaultClass,
    message: String,
    /// The instance cannot be used again.
    fatal: bool,
}

impl Failure {
    /// The instance is as good as before.
    fn plain(class: FaultClass, message: impl Into<String>) -> Failure {
        Failure { class, message: message.into(), fatal: false }
    }

    /// The instance is gone.
    fn fatal(class: FaultClass, message: impl Into<String>) -> Failure {
        Failure { class, message: message.into(), fatal: true }
    }

    /// What `function` handed over could not be read.
    fn misread(function: &str, why: Misread, budget: usize) -> Failure {
        match why {
            Misread::Broken(why) => Failure::plain(FaultClass::Answer, format!("`{function}`: {why}")),
            Misread::TooMuch => Failure::plain(
                FaultClass::Memory,
                format!("`{function}` handed the host more than {} at once, the limit (transfer_bytes)", size(budget)),
            ),
        }
    }

    /// As a fault of the plugin.
    pub(super) fn of(self, plugin: &str) -> Fault {
        let message = text::clean(&self.message, 2 * PANIC_BYTES);
        Fault { plugin: plugin.to_owned(), class: self.class, message }
    }
}

/// Where an instance's log lines go.
pub(super) trait Lines {
    /// One line; the level is the contract's.
    fn line(&mut self, level: u8, message: &str);
    /// A call is over: what is counted by call starts again.
    fn end_of_call(&mut self) {}
}

impl Lines for Log {
    fn line(&mut self, level: u8, message: &str) {
        self.take(level, message);
    }

    fn end_of_call(&mut self) {
        self.close();
    }
}
