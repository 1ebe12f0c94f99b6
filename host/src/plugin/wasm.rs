//! Loading WASM plugins that were read and admitted: compile or take from the cache, link, instantiate, describe.

use super::cache::Entry;
use super::component::{API_VERSION, Artifact, Kind};
use super::evaluator::WasmEvaluator;
use super::limits::Limits;
use super::policy::WasmPolicy;
use super::sandbox::Sandbox;
use super::{Carrier, Evaluator, Fault, FaultClass, Grant, Origin, Policy, compile, engine, text};
use std::path::Path;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Loads a rank policy. Compiled code is kept under `cache`, where one is given.
///
/// # Errors
/// [`FaultClass::Load`]: not a plugin, damaged, an evaluator, or it imports more than the contract;
/// [`FaultClass::Version`]: built for another API; or the fault of its first call.
pub fn load_policy(path: &Path, limits: &Limits, cache: Option<&Path>) -> Result<Box<dyn Policy>, Fault> {
    policy(&Artifact::read(path, limits)?, &Workshop { limits, cache, compiler: None })
}

/// Loads an evaluator. Compiled code is kept under `cache`, where one is given.
///
/// # Errors
/// As [`load_policy`].
pub fn load_evaluator(path: &Path, limits: &Limits, cache: Option<&Path>) -> Result<Box<dyn Evaluator>, Fault> {
    evaluator(&Artifact::read(path, limits)?, &Workshop { limits, cache, compiler: None })
}

/// What a plugin is made ready with.
pub(super) struct Workshop<'a> {
    pub limits: &'a Limits,
    /// Where compiled code is kept.
    pub cache: Option<&'a Path>,
    /// The program that compiles; this process does where there is none.
    pub compiler: Option<&'a Path>,
}

pub(super) fn policy(artifact: &Artifact, workshop: &Workshop) -> Result<Box<dyn Policy>, Fault> {
    expect(artifact, Kind::Policy)?;
    let (component, sandbox) = workshop.component(artifact)?;
    Ok(Box::new(WasmPolicy::new(artifact, &component, sandbox)?))
}

pub(super) fn evaluator(artifact: &Artifact, workshop: &Workshop) -> Result<Box<dyn Evaluator>, Fault> {
    expect(artifact, Kind::Evaluator)?;
    let (component, sandbox) = workshop.component(artifact)?;
    Ok(Box::new(WasmEvaluator::new(artifact, &component, sandbox)?))
}

pub(super) fn expect(artifact: &Artifact, kind: Kind) -> Result<(), Fault> {
    if artifact.kind == kind {
        return Ok(());
    }
    let flag = match artifact.kind {
        Kind::Policy => "--policy",
        Kind::Evaluator => "--evaluator",
    };
    let message = format!("is an {} where a {kind} is expected; name it with {flag}", artifact.kind);
    let message = message.replace("an policy", "a policy").replace("a evaluator", "an evaluator");
    Err(artifact.fault(FaultClass::Load, message))
}

impl Workshop<'_> {
    /// The plugin as native code, from the cache, or compiled and put there; and where it will run.
    fn component(&self, artifact: &Artifact) -> Result<(Component, Sandbox), Fault> {
        if artifact.carrier != Carrier::Wasm {
            return Err(artifact.fault(FaultClass::Load, "is a native library where a component is expected".into()));
        }
        warn(artifact);
        let engine = engine::engine(self.limits).map_err(|m| artifact.fault(FaultClass::Load, m))?;
        let entry = self.cache.map(|dir| Entry::of(dir, artifact, &engine));
        let sandbox = Sandbox::new(artifact, self.limits, engine.clone());
        if let Some(component) = entry.as_ref().and_then(|e| e.load(&engine)) {
            return Ok((component, sandbox));
        }
        let code = compile::compile(artifact, self.limits, &engine, self.compiler)?;
        let component = load(&engine, &code).map_err(|e| {
            let why = text::clean(&e.root_cause().to_string(), self.limits.text_bytes);
            artifact.fault(FaultClass::Load, format!("was compiled into something that does not load: {why}"))
        })?;
        if let Some(entry) = entry {
            entry.save(&code);
        }
        Ok((component, sandbox))
    }
}

#[allow(unsafe_code, reason = "loading compiled code; where it comes from is said in this function")]
fn load(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes were made by this process, or by the compiler it started, which wrote them to
    // a directory that only this user can enter.
    unsafe { Component::deserialize(engine, code) }
}

/// Says what can no longer be promised with these grants.
fn warn(artifact: &Artifact) {
    let unrepeatable: Vec<String> =
        artifact.grants.iter().filter(|g| g.is_unrepeatable()).map(Grant::to_string).collect();
    if !unrepeatable.is_empty() {
        let (plugin, grants) = (artifact.path.display(), unrepeatable.join(" and "));
        tracing::warn!(target: "plugin", "{plugin} is given {grants}: the same run may not come out the same again");
    }
}

/// The imports or exports of a component do not fit this host's version of the contract.
pub(super) fn mismatch(artifact: &Artifact, error: &wasmtime::Error) -> Fault {
    let causes: Vec<String> = error.chain().map(|c| c.to_string()).collect();
    let why = text::clean(&causes.join(": "), 400);
    let api = &artifact.api;
    artifact.fault(
        FaultClass::Version,
        format!("says it was built for plastic:rank {api}, which does not fit {API_VERSION} of this host ({why}); build it again, or update plastic-host"),
    )
}

impl Artifact {
    /// Where the plugin came from, for the journal.
    pub fn origin(&self) -> Origin {
        Origin {
            path: self.path.clone(),
            sha256: self.sha256.clone(),
            api: self.api.clone(),
            grants: self.grants.clone(),
            carrier: self.carrier,
        }
    }
}

impl Sandbox {
    /// The guest answered with an error of its own.
    pub(super) fn refused(&self, function: &str, message: &str) -> Fault {
        self.fault(FaultClass::Refused, format!("`{function}`: {}", text::clean(message, self.limits.text_bytes)))
    }
}
