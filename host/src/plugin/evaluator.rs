//! An evaluator carried by a WASM component.
//!
//! Its instance lives from call to call, as a policy's does, and is rebuilt after a fault. While it
//! judges, it runs on a thread of its own and its questions are answered on the caller's
//! ([`desk`](super::desk)).

use super::component::Artifact;
use super::contract::{Info, Task, Verdict};
use super::sandbox::{Sandbox, State};
use super::v1::evaluator::{self as wit, EvaluatorPre, measure};
use super::{CallCost, Evaluator, Fault, FaultClass, Measure, Origin, answer, desk, options, v1};
use wasmtime::Store;
use wasmtime::component::{Component, HasSelf, Linker};

/// A loaded evaluator.
pub(super) struct WasmEvaluator {
    origin: Origin,
    sandbox: Sandbox,
    pre: EvaluatorPre<State>,
    live: Option<Live>,
    info: Info,
    options: Option<String>,
    cost: CallCost,
}

/// An instance and its store.
struct Live {
    store: Store<State>,
    guest: wit::Guest,
}

impl WasmEvaluator {
    /// Links and instantiates a compiled evaluator and lets it describe itself.
    pub(super) fn new(
        artifact: &Artifact,
        component: &Component,
        mut sandbox: Sandbox,
    ) -> Result<WasmEvaluator, Fault> {
        let mut linker = Linker::new(component.engine());
        let pre = sandbox
            .link(&mut linker)
            .and_then(|()| measure::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state))
            .and_then(|()| linker.instantiate_pre(component))
            .and_then(EvaluatorPre::new)
            .map_err(|e| super::wasm::mismatch(artifact, &e))?;
        let mut store = sandbox.store()?;
        let instance = sandbox.call(&mut store, "instantiate", |s| pre.instance_pre().instantiate(s))?.0;
        // Only here are the types of the exported functions compared with the contract's.
        let bindings = wit::Evaluator::new(&mut store, &instance).map_err(|e| super::wasm::mismatch(artifact, &e))?;
        let mut live = Live { store, guest: bindings.plastic_rank_judge().clone() };
        let (info, _) = live.call(&sandbox, "describe", |g, s| g.call_describe(s))?;
        let mut info = v1::evaluator_info(info);
        answer::info(&mut info, &sandbox.limits).map_err(|m| sandbox.fault(FaultClass::Answer, m))?;
        sandbox.plugin = info.name.clone();
        let (origin, live) = (artifact.origin(), Some(live));
        Ok(WasmEvaluator { origin, sandbox, pre, live, info, options: None, cost: CallCost::default() })
    }

    /// The instance, rebuilt and configured again where a fault took it.
    fn take(&mut self) -> Result<Live, Fault> {
        if let Some(live) = self.live.take() {
            return Ok(live);
        }
        let sandbox = &self.sandbox;
        tracing::debug!(target: "plugin", plugin = %sandbox.plugin, "builds a new instance");
        let mut store = sandbox.store()?;
        let bindings = sandbox.call(&mut store, "instantiate", |s| self.pre.instantiate(s))?.0;
        let mut live = Live { store, guest: bindings.plastic_rank_judge().clone() };
        if let Some(options) = &self.options {
            let (answer, _) = live.call(sandbox, "configure", |g, s| g.call_configure(s, options))?;
            answer.map_err(|e| sandbox.refused("configure", &e))?;
        }
        Ok(live)
    }
}

impl Live {
    fn call<R>(
        &mut self,
        sandbox: &Sandbox,
        function: &str,
        f: impl FnOnce(&wit::Guest, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<(R, CallCost), Fault> {
        let guest = &self.guest;
        sandbox.call(&mut self.store, function, |s| f(guest, s))
    }

    /// Calls `evaluate` on a thread of its own while this thread answers the questions.
    fn evaluate(
        &mut self,
        sandbox: &Sandbox,
        task: &Task,
        measure: &mut dyn Measure,
    ) -> Result<(Result<wit::Verdict, String>, CallCost), Fault> {
        let (desk, questions) = desk::open();
        self.store.data_mut().desk = Some(desk);
        // The guest's stack lies on the thread's.
        let stack = sandbox.limits.stack_bytes + (1 << 20);
        std::thread::scope(|scope| {
            let judge = || {
                let result =
                    self.call(sandbox, "evaluate", |g, s| v1::with_task(task, |task| g.call_evaluate(s, task)));
                // Closes the channel, which sends the answering thread home.
                self.store.data_mut().desk = None;
                result
            };
            let thread = std::thread::Builder::new().name("evaluator".into()).stack_size(stack);
            let thread = thread
                .spawn_scoped(scope, judge)
                .map_err(|e| sandbox.fault(FaultClass::Trap, format!("no thread can be started for it: {e}")))?;
            for question in questions {
                question(measure);
            }
            let gone = |_| sandbox.fault(FaultClass::Trap, "its thread ended without an answer");
            thread.join().map_err(gone)?
        })
    }
}

impl Evaluator for WasmEvaluator {
    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn info(&self) -> &Info {
        &self.info
    }

    fn configure(&mut self, options: &serde_json::Value) -> Result<(), Fault> {
        options::check(&self.info, options).map_err(|m| self.sandbox.refused("configure", &m))?;
        let options = options.to_string();
        let mut live = self.take()?;
        let (answer, cost) = live.call(&self.sandbox, "configure", |g, s| g.call_configure(s, &options))?;
        // Half-told is not told: an instance that refused its options is dropped here.
        answer.map_err(|e| self.sandbox.refused("configure", &e))?;
        self.options = Some(options);
        self.live = Some(live);
        self.cost = cost;
        Ok(())
    }

    fn evaluate(&mut self, task: &Task, measure: &mut dyn Measure) -> Result<Verdict, Fault> {
        let mut live = self.take()?;
        let (answer, cost) = live.evaluate(&self.sandbox, task, measure)?;
        self.live = Some(live);
        self.cost = cost;
        let mut verdict = v1::verdict(answer.map_err(|e| self.sandbox.refused("evaluate", &e))?);
        answer::verdict(&mut verdict, &self.sandbox.limits).map_err(|m| self.sandbox.fault(FaultClass::Answer, m))?;
        Ok(verdict)
    }

    fn last_cost(&self) -> CallCost {
        self.cost
    }
}
