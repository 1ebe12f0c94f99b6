//! Loading WASM plugins: read, check, compile or take from the cache, link, instantiate, describe.

use super::cache::Entry;
use super::component::{API_VERSION, Artifact, Kind};
use super::evaluator::WasmEvaluator;
use super::limits::Limits;
use super::policy::WasmPolicy;
use super::sandbox::Sandbox;
use super::{Carrier, Evaluator, Fault, FaultClass, Origin, Policy, engine, text};
use std::path::Path;
use wasmtime::component::Component;

/// Loads a rank policy. Compiled code is kept under `cache`, where one is given.
///
/// # Errors
/// [`FaultClass::Load`]: not a plugin, damaged, an evaluator, or it imports more than the contract;
/// [`FaultClass::Version`]: built for another API; or the fault of its first call.
pub fn load_policy(path: &Path, limits: &Limits, cache: Option<&Path>) -> Result<Box<dyn Policy>, Fault> {
    let artifact = Artifact::read(path, limits)?;
    expect(&artifact, Kind::Policy)?;
    let (component, sandbox) = compile(&artifact, limits, cache)?;
    Ok(Box::new(WasmPolicy::new(&artifact, &component, sandbox)?))
}

/// Loads an evaluator. Compiled code is kept under `cache`, where one is given.
///
/// # Errors
/// As [`load_policy`].
pub fn load_evaluator(path: &Path, limits: &Limits, cache: Option<&Path>) -> Result<Box<dyn Evaluator>, Fault> {
    let artifact = Artifact::read(path, limits)?;
    expect(&artifact, Kind::Evaluator)?;
    let (component, sandbox) = compile(&artifact, limits, cache)?;
    Ok(Box::new(WasmEvaluator::new(&artifact, &component, sandbox)?))
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

/// Native code of the plugin: from the cache, or compiled and put there.
fn compile(artifact: &Artifact, limits: &Limits, cache: Option<&Path>) -> Result<(Component, Sandbox), Fault> {
    if artifact.carrier != Carrier::Wasm {
        return Err(artifact.fault(FaultClass::Load, "is a native library where a component is expected".into()));
    }
    let engine = engine::engine(limits).map_err(|m| artifact.fault(FaultClass::Load, m))?;
    let entry = cache.map(|dir| Entry::of(dir, artifact, &engine));
    let sandbox = Sandbox::new(artifact.path.display().to_string(), limits.clone(), engine.clone());
    if let Some(component) = entry.as_ref().and_then(|e| e.load(&engine)) {
        return Ok((component, sandbox));
    }
    let bytes = artifact.component()?;
    let component = Component::new(&engine, &bytes).map_err(|e| {
        let why = text::clean(&e.root_cause().to_string(), limits.text_bytes);
        artifact.fault(FaultClass::Load, format!("does not compile: {why}; build or fetch it again"))
    })?;
    if let Some(entry) = entry {
        entry.save(&component);
    }
    Ok((component, sandbox))
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
        Origin { path: self.path.clone(), sha256: self.sha256.clone(), api: self.api.clone(), carrier: self.carrier }
    }
}

impl Sandbox {
    /// The guest answered with an error of its own.
    pub(super) fn refused(&self, function: &str, message: &str) -> Fault {
        self.fault(FaultClass::Refused, format!("`{function}`: {}", text::clean(message, self.limits.text_bytes)))
    }
}
