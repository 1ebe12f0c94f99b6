//! A rank policy carried by a WASM component.
//!
//! The instance lives from call to call. When a call ends in a fault, the instance is gone; the next
//! call builds another one, tells it the options and the run again, and gives it the snapshot taken
//! after the last good step, as if nothing had happened.

use super::component::Artifact;
use super::contract::{Info, Observation, Plan, Run, Slice};
use super::sandbox::{Sandbox, State};
use super::v1::policy::{self as wit, RankPolicy, RankPolicyPre};
use super::{CallCost, Fault, FaultClass, Origin, Policy, answer, options, v1};
use wasmtime::Store;
use wasmtime::component::{Component, Instance, Linker, TypedFunc};

/// A loaded policy.
pub(super) struct WasmPolicy {
    origin: Origin,
    sandbox: Sandbox,
    pre: RankPolicyPre<State>,
    live: Option<Live>,
    info: Info,
    memory: Memory,
    cost: CallCost,
}

/// An instance and its store.
struct Live {
    store: Store<State>,
    guest: wit::Guest,
    /// The optional interface `report`, where the plugin has it.
    report: Option<TypedFunc<(), (String,)>>,
}

/// The functions a policy exports only if it wants to.
///
/// # Errors
/// One is there under another type than the contract's.
fn optional(store: &mut Store<State>, instance: &Instance) -> wasmtime::Result<Option<TypedFunc<(), (String,)>>> {
    let Some(interface) = instance.get_export_index(&mut *store, None, "plastic:rank/report@1.0.0") else {
        return Ok(None);
    };
    let Some(function) = instance.get_export_index(&mut *store, Some(&interface), "report") else { return Ok(None) };
    instance.get_typed_func(&mut *store, function).map(Some)
}

/// What a rebuilt instance must be told.
#[derive(Default)]
struct Memory {
    options: Option<String>,
    run: Option<(Run, Vec<Slice>)>,
    snapshot: Vec<u8>,
    /// Nothing was asked of the guest since that snapshot.
    is_current: bool,
}

impl WasmPolicy {
    /// Links and instantiates a compiled policy and lets it describe itself.
    pub(super) fn new(artifact: &Artifact, component: &Component, mut sandbox: Sandbox) -> Result<WasmPolicy, Fault> {
        let mut linker = Linker::new(component.engine());
        let pre = sandbox
            .link(&mut linker)
            .and_then(|()| linker.instantiate_pre(component))
            .and_then(RankPolicyPre::new)
            .map_err(|e| super::wasm::mismatch(artifact, &e))?;
        let mut live = Live::new(&sandbox, &pre, artifact)?;
        let info = live.describe(&sandbox)?;
        sandbox.plugin = info.name.clone();
        let origin = artifact.origin();
        let live = Some(live);
        Ok(WasmPolicy { origin, sandbox, pre, live, info, memory: Memory::default(), cost: CallCost::default() })
    }

    /// Calls the guest. A fault costs the instance; a plain refusal does not.
    fn call<R>(
        &mut self,
        function: &str,
        f: impl FnOnce(&wit::Guest, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let mut live = match self.live.take() {
            Some(live) => live,
            None => self.rebuild()?,
        };
        self.memory.is_current = false;
        let (answer, cost) = live.call(&self.sandbox, function, f)?;
        self.live = Some(live);
        self.cost = cost;
        Ok(answer)
    }

    fn rebuild(&self) -> Result<Live, Fault> {
        tracing::debug!(target: "plugin", plugin = %self.sandbox.plugin, "builds a new instance");
        let mut live = Live::again(&self.sandbox, &self.pre)?;
        let sandbox = &self.sandbox;
        if let Some(options) = &self.memory.options {
            live.call(sandbox, "configure", |g, s| g.call_configure(s, options))?
                .0
                .map_err(|e| sandbox.refused("configure", &e))?;
        }
        if let Some((run, slices)) = &self.memory.run {
            live.call(sandbox, "start", |g, s| v1::with_run(run, slices, |run, slices| g.call_start(s, run, slices)))?
                .0
                .map_err(|e| sandbox.refused("start", &e))?;
        }
        if !self.memory.snapshot.is_empty() {
            live.call(sandbox, "restore", |g, s| g.call_restore(s, &self.memory.snapshot))?
                .0
                .map_err(|e| sandbox.refused("restore", &e))?;
        }
        Ok(live)
    }

    /// Remembers the state after a good call. A policy that cannot even do that keeps its answer and
    /// loses its instance.
    fn remember(&mut self) {
        let cost = self.cost;
        match self.call("snapshot", |g, s| g.call_snapshot(s)) {
            Ok(snapshot) => (self.memory.snapshot, self.memory.is_current) = (snapshot, true),
            Err(fault) => tracing::warn!(target: "plugin", "{fault}"),
        }
        self.cost = cost;
    }
}

impl Live {
    fn new(sandbox: &Sandbox, pre: &RankPolicyPre<State>, artifact: &Artifact) -> Result<Live, Fault> {
        let mut store = sandbox.store()?;
        let instance = sandbox.call(&mut store, "instantiate", |s| pre.instance_pre().instantiate(s))?.0;
        // Only here are the types of the exported functions compared with the contract's.
        let bindings = RankPolicy::new(&mut store, &instance).map_err(|e| super::wasm::mismatch(artifact, &e))?;
        let guest = bindings.plastic_rank_policy().clone();
        let report = optional(&mut store, &instance).map_err(|e| super::wasm::mismatch(artifact, &e))?;
        Ok(Live { store, guest, report })
    }

    fn again(sandbox: &Sandbox, pre: &RankPolicyPre<State>) -> Result<Live, Fault> {
        let mut store = sandbox.store()?;
        let (instance, _) = sandbox.call(&mut store, "instantiate", |s| pre.instance_pre().instantiate(s))?;
        let parts = RankPolicy::new(&mut store, &instance).and_then(|b| Ok((b, optional(&mut store, &instance)?)));
        // Checked when the plugin was loaded.
        let (bindings, report) = parts.map_err(|e| sandbox.fault(FaultClass::Version, e.to_string()))?;
        let guest = bindings.plastic_rank_policy().clone();
        Ok(Live { store, guest, report })
    }

    fn call<R>(
        &mut self,
        sandbox: &Sandbox,
        function: &str,
        f: impl FnOnce(&wit::Guest, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<(R, CallCost), Fault> {
        let guest = &self.guest;
        sandbox.call(&mut self.store, function, |s| f(guest, s))
    }

    fn describe(&mut self, sandbox: &Sandbox) -> Result<Info, Fault> {
        let (info, _) = self.call(sandbox, "describe", |g, s| g.call_describe(s))?;
        let mut info = v1::policy_info(info);
        answer::info(&mut info, &sandbox.limits).map_err(|m| sandbox.fault(FaultClass::Answer, m))?;
        Ok(info)
    }
}

impl Policy for WasmPolicy {
    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn info(&self) -> &Info {
        &self.info
    }

    fn configure(&mut self, options: &serde_json::Value) -> Result<(), Fault> {
        options::check(&self.info, options).map_err(|m| self.sandbox.refused("configure", &m))?;
        let options = options.to_string();
        let answer = self.call("configure", |g, s| g.call_configure(s, &options))?;
        answer.map_err(|e| {
            // Half-told is not told: the next call starts from a fresh instance.
            self.live = None;
            self.sandbox.refused("configure", &e)
        })?;
        self.memory.options = Some(options);
        // Options may change the needs.
        let info = self.call("describe", |g, s| g.call_describe(s))?;
        let mut info = v1::policy_info(info);
        answer::info(&mut info, &self.sandbox.limits).map_err(|m| self.sandbox.fault(FaultClass::Answer, m))?;
        self.info = info;
        Ok(())
    }

    fn start(&mut self, run: &Run, slices: &[Slice]) -> Result<(), Fault> {
        let answer =
            self.call("start", |g, s| v1::with_run(run, slices, |run, slices| g.call_start(s, run, slices)))?;
        answer.map_err(|e| {
            self.live = None;
            self.sandbox.refused("start", &e)
        })?;
        self.memory.run = Some((run.clone(), slices.to_vec()));
        self.memory.snapshot.clear();
        self.remember();
        Ok(())
    }

    fn decide(&mut self, observation: &Observation) -> Result<Plan, Fault> {
        let answer = self.call("decide", |g, s| v1::with_observation(observation, |o| g.call_decide(s, o)))?;
        let mut plan = v1::plan(answer.map_err(|e| self.sandbox.refused("decide", &e))?);
        let slices = observation.slices.len();
        let needs = self.info.needs.len();
        answer::plan(&mut plan, slices, needs, &self.sandbox.limits)
            .map_err(|m| self.sandbox.fault(FaultClass::Answer, m))?;
        self.remember();
        Ok(plan)
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Fault> {
        if self.memory.is_current && self.live.is_some() {
            return Ok(self.memory.snapshot.clone());
        }
        self.call("snapshot", |g, s| g.call_snapshot(s))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Fault> {
        let answer = self.call("restore", |g, s| g.call_restore(s, state))?;
        answer.map_err(|e| {
            self.live = None;
            self.sandbox.refused("restore", &e)
        })?;
        self.memory.snapshot = state.to_vec();
        Ok(())
    }

    fn report(&mut self) -> Result<String, Fault> {
        let mut live = match self.live.take() {
            Some(live) => live,
            None => self.rebuild()?,
        };
        let Some(report) = live.report else {
            self.live = Some(live);
            return Ok(String::new());
        };
        self.memory.is_current = false;
        let ((text,), cost) = live.call(&self.sandbox, "report", |_, s| report.call(s, ()))?;
        self.live = Some(live);
        self.cost = cost;
        Ok(super::text::clean(&text, self.sandbox.limits.log_bytes))
    }

    fn last_cost(&self) -> CallCost {
        self.cost
    }
}
