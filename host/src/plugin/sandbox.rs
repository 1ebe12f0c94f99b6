//! Where a guest runs: its store, its limits, its log lines, and how its end becomes a [`Fault`].
//!
//! A call that traps, takes too long or hits a limit leaves its instance unusable: the callers in
//! [`policy`](super::policy) and [`evaluator`](super::evaluator) drop it and build another.

use super::grants::{self, Wasi};
use super::limits::{Limits, Watch, size};
use super::{CallCost, Fault, FaultClass, engine, text};
use std::time::{Duration, Instant};
use wasmtime::component::{Linker, WasmStr};
use wasmtime::{Engine, Store, StoreContextMut, Trap, UpdateDeadline};

/// What the host keeps beside an instance.
pub(super) struct State {
    watch: Watch,
    log: Log,
    clock: Clock,
    /// The granted part of the system, where the plugin is built on it.
    wasi: Option<Box<Wasi>>,
    /// Where an evaluator's questions go; there while it is being asked.
    pub desk: Option<super::desk::Desk>,
}

/// Time of the guest in the current call.
struct Clock {
    limit: Duration,
    started: Instant,
    in_host: Duration,
}

impl Clock {
    fn guest_time(&self) -> Duration {
        self.started.elapsed().saturating_sub(self.in_host)
    }
}

/// Ends a call whose time is up.
#[derive(Debug, thiserror::Error)]
#[error("time is up")]
struct TimeIsUp;

/// Lines of the current call.
pub(super) struct Log {
    plugin: String,
    limits: (usize, usize),
    lines: usize,
    bytes: usize,
    dropped: usize,
    panic: Option<String>,
}

/// Levels of the contract.
const INFO: u8 = 2;
const WARNING: u8 = 3;
/// The error level of the contract; the SDK's panic hook logs with it.
const ERROR: u8 = 4;
/// Most of a panic's text that a fault carries.
const PANIC_BYTES: usize = 4096;

impl Log {
    /// The lines of this plugin, as many as the limits allow.
    pub(super) fn new(plugin: String, limits: &Limits) -> Log {
        let limits = (limits.log_lines, limits.log_bytes);
        Log { plugin, limits, lines: 0, bytes: 0, dropped: 0, panic: None }
    }

    /// Takes one line, or counts it.
    pub(super) fn take(&mut self, level: u8, message: &str) {
        if level >= ERROR && message.contains("panicked at") {
            self.panic = Some(text::clean(message, PANIC_BYTES));
        }
        if self.is_full() {
            self.dropped += 1;
            return;
        }
        self.lines += 1;
        self.bytes += message.len();
        let room = self.limits.1;
        let message = text::clean(message, room);
        let plugin = &self.plugin;
        match level {
            0 => tracing::trace!(target: "plugin", %plugin, "{message}"),
            1 => tracing::debug!(target: "plugin", %plugin, "{message}"),
            2 => tracing::info!(target: "plugin", %plugin, "{message}"),
            3 => tracing::warn!(target: "plugin", %plugin, "{message}"),
            _ => tracing::error!(target: "plugin", %plugin, "{message}"),
        }
    }

    fn is_full(&self) -> bool {
        self.lines >= self.limits.0 || self.bytes >= self.limits.1
    }

    /// Counts lines that were dropped before they came here.
    pub(super) fn drop_lines(&mut self, count: usize) {
        self.dropped += count;
    }

    /// Says what was dropped and starts over.
    pub(super) fn close(&mut self) {
        if self.dropped > 0 {
            let (plugin, dropped) = (&self.plugin, self.dropped);
            tracing::warn!(target: "plugin", %plugin, "{dropped} more log lines were dropped (limits log_lines, log_bytes)");
        }
        (self.lines, self.bytes, self.dropped, self.panic) = (0, 0, 0, None);
    }
}

impl State {
    /// Time that passed in the host's work, not the guest's.
    pub(super) fn host_time(&mut self, spent: Duration) {
        self.clock.in_host += spent;
    }

    /// What is left of the current call's time.
    pub(super) fn time_left(&self) -> Duration {
        self.clock.limit.saturating_sub(self.clock.guest_time())
    }

    /// The granted part of the system. Nobody asks where the plugin is not built on it.
    pub(super) fn wasi(&mut self) -> &mut Wasi {
        self.wasi.get_or_insert_with(|| Box::new(Wasi::closed()))
    }

    /// Passes on what the guest wrote to its standard streams, as log lines.
    fn log_output(&mut self) {
        let Some(wasi) = &self.wasi else { return };
        let (out, err, lost) = wasi.written();
        for (level, text) in [(INFO, &out), (WARNING, &err)] {
            for line in text.lines().filter(|l| !l.is_empty()) {
                self.log.take(level, line);
            }
        }
        if let Some(start) = err.find("panicked at") {
            self.log.panic = Some(text::clean(err[start..].trim_end(), PANIC_BYTES));
        }
        // Of what was too much, nobody counted the lines.
        self.log.dropped += usize::from(lost > 0);
    }
}

/// Makes stores and calls guests under the limits.
pub(super) struct Sandbox {
    /// Name of the plugin, for faults and log lines.
    pub plugin: String,
    pub limits: Limits,
    /// Built on the system interface, of which `limits.grants` is what it gets.
    is_wasi: bool,
    engine: Engine,
}

impl Sandbox {
    /// For an artifact, with the grants it makes use of.
    pub(super) fn new(artifact: &super::Artifact, limits: &Limits, engine: Engine) -> Sandbox {
        let limits = Limits { grants: artifact.grants.clone(), ..limits.clone() };
        Sandbox { plugin: artifact.path.display().to_string(), limits, is_wasi: artifact.is_wasi, engine }
    }

    /// The imports this plugin may use.
    ///
    /// # Errors
    /// wasmtime's own; none in practice.
    pub(super) fn link(&self, linker: &mut Linker<State>) -> wasmtime::Result<()> {
        link_host(linker)?;
        match self.is_wasi {
            true => grants::link(linker, &self.limits.grants),
            false => Ok(()),
        }
    }

    pub(super) fn fault(&self, class: FaultClass, message: impl Into<String>) -> Fault {
        Fault { plugin: self.plugin.clone(), class, message: message.into() }
    }

    /// A store of its own for one instance.
    ///
    /// # Errors
    /// A granted directory or variable cannot be given.
    pub(super) fn store(&self) -> Result<Store<State>, Fault> {
        let wasi = match self.is_wasi {
            true => Some(Box::new(
                Wasi::new(&self.limits.grants, &self.limits).map_err(|m| self.fault(FaultClass::Load, m))?,
            )),
            false => None,
        };
        let log = Log::new(self.plugin.clone(), &self.limits);
        let clock = Clock { limit: self.limits.call_time, started: Instant::now(), in_host: Duration::ZERO };
        let state = State { watch: Watch::new(&self.limits), log, clock, wasi, desk: None };
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.watch);
        store.set_hostcall_fuel(self.limits.transfer_bytes);
        store.epoch_deadline_callback(|cx: StoreContextMut<'_, State>| {
            let clock = &cx.data().clock;
            match clock.limit.checked_sub(clock.guest_time()) {
                Some(left) if !left.is_zero() => Ok(UpdateDeadline::Continue(engine::ticks(left))),
                _ => Err(wasmtime::Error::new(TimeIsUp)),
            }
        });
        Ok(store)
    }

    /// Runs `f`, which calls the guest's `function`, under the limits; answers what it cost too.
    ///
    /// # Errors
    /// The fault that ended the call. The instance must not be used again.
    pub(super) fn call<R>(
        &self,
        store: &mut Store<State>,
        function: &str,
        f: impl FnOnce(&mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<(R, CallCost), Fault> {
        let state = store.data_mut();
        state.watch.refused = None;
        // The name is known once the first instance has described itself.
        state.log.plugin.clone_from(&self.plugin);
        let clock = &mut state.clock;
        (clock.started, clock.in_host) = (Instant::now(), Duration::ZERO);
        store.set_epoch_deadline(engine::ticks(self.limits.call_time));
        let budget = self.limits.fuel_budget();
        if let Some(fuel) = budget {
            store.set_fuel(fuel).map_err(|e| self.fault(FaultClass::Load, e.to_string()))?;
        }
        let result = f(store);
        let state = store.data();
        let (wall, memory_bytes) = (state.clock.guest_time(), Some(state.watch.memory_bytes()));
        let fuel = budget.and_then(|b| Some(b.saturating_sub(store.get_fuel().ok()?)));
        store.data_mut().log_output();
        // Who slept until the end of its time may wake and return before the clock looks at it.
        let result = match result {
            Ok(_) if self.is_wasi && wall >= self.limits.call_time => Err(wasmtime::Error::new(TimeIsUp)),
            result => result,
        };
        let result = result.map_err(|e| self.why(&e, function, store.data()));
        store.data_mut().log.close();
        Ok((result?, CallCost { wall, memory_bytes, fuel }))
    }

    /// A wasmtime error as a fault, with the guest's panic text where there is one.
    fn why(&self, error: &wasmtime::Error, function: &str, state: &State) -> Fault {
        tracing::debug!(target: "plugin", plugin = %self.plugin, "{function}: {error:?}");
        let trap = error.downcast_ref::<Trap>();
        let root = error.root_cause().to_string();
        if error.downcast_ref::<TimeIsUp>().is_some() || trap == Some(&Trap::Interrupt) {
            let limit = self.limits.call_time;
            return self
                .fault(FaultClass::Timeout, format!("`{function}` ran longer than {limit:?}, the limit (call_time)"));
        }
        if trap == Some(&Trap::OutOfFuel) {
            let limit = self.limits.fuel_budget().unwrap_or_default();
            return self.fault(
                FaultClass::Timeout,
                format!("`{function}` used up its {limit} units of fuel, the limit (--fuel)"),
            );
        }
        if trap == Some(&Trap::StackOverflow) {
            let limit = size(self.limits.stack_bytes);
            return self.fault(
                FaultClass::Memory,
                format!("`{function}` needs more than {limit} of stack, the limit (stack_bytes); does it recurse without end?"),
            );
        }
        // wasmtime keeps this error to itself; its text is all there is.
        if root.contains("too much data is being copied") {
            let limit = size(self.limits.transfer_bytes);
            return self.fault(
                FaultClass::Memory,
                format!("`{function}` handed the host more than {limit} at once, the limit (transfer_bytes)"),
            );
        }
        if let Some(refused) = &state.watch.refused {
            return self.fault(FaultClass::Memory, format!("`{function}` {refused}"));
        }
        if root == "resource table has no free keys" {
            let most = grants::MOST_HANDLES;
            let message = format!("`{function}` wanted to hold more than {most} files, directories and streams open");
            return self.fault(FaultClass::Memory, message);
        }
        // The same goes for this one, which names what there is too much of.
        if let Some(what) = root.strip_prefix("resource limit exceeded: ") {
            let limit = self.limits.instances;
            return self.fault(
                FaultClass::Memory,
                format!("`{function}` needs more than {limit} of a kind, the limit (instances): {what}"),
            );
        }
        let panic = state.log.panic.as_deref();
        self.fault(FaultClass::Trap, format!("`{function}`: {}", panic.unwrap_or(&root)))
    }
}

/// The imports every plugin may use.
fn link_host(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    // Takes the text where it lies in the guest's memory: a line that is dropped is never copied.
    linker.instance("plastic:rank/host@1.0.0")?.func_wrap(
        "log",
        |mut cx: StoreContextMut<'_, State>, (level, message): (u8, WasmStr)| {
            if cx.data().log.is_full() && level < ERROR {
                cx.data_mut().log.dropped += 1;
                return Ok(());
            }
            let limit = cx.data().log.limits.1.max(PANIC_BYTES);
            let message = text::head(&message.to_str(&cx)?, limit).to_owned();
            cx.data_mut().log.take(level, &message);
            Ok(())
        },
    )
}
