//! A policy's instance in this process, and what every instance has: the host's table it is given,
//! the slot its answers are put into, the meaning of its result codes.
#![allow(unsafe_code, reason = "calls a native library")]

use super::super::contract::{Info, Observation, Plan, Run, Slice};
use super::super::{FaultClass, text};
use super::abi::{self, Context, Emit, Instance, Misread, Reader, Sized32, Str, View};
use super::kept::PolicyInstance;
use super::library::Loaded;
use super::{Failure, Lines, PANIC_BYTES, records};
use std::cell::RefCell;
use std::ffi::c_void;
use std::rc::Rc;

/// What an instance may call of the host. The library keeps pointers to both parts, so they stay
/// where they are, and are shared, not owned by one name.
pub(super) struct HostSide {
    table: Rc<abi::Host>,
    lines: Rc<RefCell<Box<dyn Lines>>>,
}

impl HostSide {
    pub(super) fn new(lines: Box<dyn Lines>) -> HostSide {
        let lines = Rc::new(RefCell::new(lines));
        let table = Rc::new(abi::Host {
            abi_minor: abi::MINOR,
            context: Rc::as_ptr(&lines).cast_mut().cast(),
            log: Some(log),
            get_extension: Some(no_extension),
            ..abi::Host::new()
        });
        HostSide { table, lines }
    }

    /// The table to hand to `create`.
    pub(super) fn table(&self) -> *const abi::Host {
        Rc::as_ptr(&self.table)
    }

    /// A call is over.
    pub(super) fn end_of_call(&self) {
        self.lines.borrow_mut().end_of_call();
    }
}

extern "C" fn log(context: Context, level: u32, message: Str) {
    // SAFETY: the context is the `lines` of the host's side, which live longer than the instance.
    let lines = unsafe { &*context.cast_const().cast::<RefCell<Box<dyn Lines>>>() };
    // SAFETY: the plugin's, read before this returns.
    let message = unsafe { Reader::new(1 << 30).str(message, "a log line") };
    // From another thread, against the contract, it may be taken: then the line is lost.
    if let (Ok(message), Ok(mut lines)) = (message, lines.try_borrow_mut()) {
        lines.line(u8::try_from(level).unwrap_or(u8::MAX), message);
    }
}

extern "C" fn no_extension(_: Context, _: Str) -> *const c_void {
    std::ptr::null()
}

/// Where an emit function puts what it is given.
pub(super) struct Slot<T> {
    budget: usize,
    calls: u32,
    answer: Option<Result<T, Misread>>,
}

impl<T> Slot<T> {
    pub(super) fn new(budget: usize) -> Slot<T> {
        Slot { budget, calls: 0, answer: None }
    }

    /// What to hand over as `to`.
    pub(super) fn to(&mut self) -> Context {
        std::ptr::from_mut(self).cast()
    }

    /// Takes one answer.
    pub(super) fn take(&mut self, read: impl FnOnce(&mut Reader) -> Result<T, Misread>) {
        self.calls += 1;
        if self.calls == 1 {
            self.answer = Some(read(&mut Reader::new(self.budget)));
        }
    }

    /// The answer of a function that succeeded.
    pub(super) fn answer(self, function: &str) -> Result<T, Failure> {
        let broken = |what: &str| Failure::plain(FaultClass::Answer, format!("`{function}` {what}"));
        match (self.calls, self.answer) {
            (1, Some(Ok(answer))) => Ok(answer),
            (1, Some(Err(why))) => Err(Failure::misread(function, why, self.budget)),
            (0, _) => Err(broken("succeeded without an answer; it must call `emit` once")),
            (n, _) => Err(broken(&format!("answered {n} times; it must call `emit` once"))),
        }
    }
}

/// Declares an emit function that reads an answer into a [`Slot`].
macro_rules! emits {
    ($($name:ident: $from:ty => $to:ty = |$reader:ident, $answer:ident| $read:expr;)*) => {$(
        pub(super) extern "C" fn $name(to: Context, $answer: $from) {
            if to.is_null() {
                return;
            }
            // SAFETY: `to` is the slot that went with the call, the answer the plugin's.
            unsafe { (*to.cast::<Slot<$to>>()).take(|$reader| $read) };
        }
    )*};
}
pub(super) use emits;

emits! {
    take_info: *const abi::Info => Info = |reader, answer| records::info(reader, answer);
    take_plan: *const abi::Plan => Plan = |reader, answer| records::plan(reader, answer);
    take_text: Str => String = |reader, answer| reader.string(answer, "the text");
    take_bytes: View<u8> => Vec<u8> = |reader, answer| reader.list(answer, "the state").map(<[u8]>::to_vec);
}

/// `last_error` of a table.
pub(super) type LastError = unsafe extern "C" fn(Instance, Emit<Str>, Context);

/// Turns a result code into what it means.
pub(super) fn check(function: &str, code: i32, this: Instance, last_error: LastError) -> Result<(), Failure> {
    if code == abi::OK {
        return Ok(());
    }
    let why = || {
        let mut slot = Slot::<String>::new(1 << 20);
        // SAFETY: as every function of the table; null after `create`.
        unsafe { last_error(this, take_text, slot.to()) };
        let why = slot.answer("last_error").unwrap_or_else(|_| "it does not say why".into());
        text::clean(&why, PANIC_BYTES)
    };
    Err(match code {
        abi::REFUSED => Failure::plain(FaultClass::Refused, format!("`{function}`: {}", why())),
        abi::PANICKED => Failure::fatal(FaultClass::Trap, format!("`{function}`: {}", why())),
        abi::MISFIT => Failure::plain(
            FaultClass::Version,
            format!("`{function}`: it does not understand this host: {}; build it again", why()),
        ),
        other => Failure::fatal(FaultClass::Answer, format!("`{function}` returned {other}, which is no result code")),
    })
}

/// Reads the table of a plugin and makes sure that it is one.
pub(super) fn table<T: Sized32>(loaded: Loaded, kind: &str) -> Result<T, Failure> {
    let table = loaded.table();
    if table.is_null() {
        let (major, minor) = (abi::MAJOR, abi::MINOR);
        return Err(Failure::fatal(
            FaultClass::Version,
            format!("refuses a host with the C ABI {major}.{minor}; update plastic-host"),
        ));
    }
    // SAFETY: the plugin's table, of the kind its entry names.
    let table =
        unsafe { Reader::new(usize::MAX).one(table.cast::<T>(), size_of::<T>(), &format!("its table of a {kind}")) };
    table.map_err(|e| match e {
        Misread::Broken(why) => {
            Failure::fatal(FaultClass::Load, format!("{why}; build it against plastic_plugin.h 1.x"))
        }
        Misread::TooMuch => Failure::fatal(FaultClass::Load, format!("its table of a {kind} has no size")),
    })
}

/// A table lacks a function.
pub(super) fn lacks(kind: &str, function: &str) -> Failure {
    Failure::fatal(FaultClass::Load, format!("its table of a {kind} has a null pointer for `{function}`"))
}

/// The functions of a policy, all there.
#[derive(Clone, Copy)]
struct Functions {
    destroy: unsafe extern "C" fn(Instance),
    describe: unsafe extern "C" fn(Instance, Emit<*const abi::Info>, Context) -> i32,
    configure: unsafe extern "C" fn(Instance, Str) -> i32,
    start: unsafe extern "C" fn(Instance, *const abi::Run, View<abi::Slice>) -> i32,
    decide: unsafe extern "C" fn(Instance, *const abi::Observation, Emit<*const abi::Plan>, Context) -> i32,
    snapshot: unsafe extern "C" fn(Instance, Emit<View<u8>>, Context) -> i32,
    restore: unsafe extern "C" fn(Instance, View<u8>) -> i32,
    last_error: LastError,
    report: Option<unsafe extern "C" fn(Instance, Emit<Str>, Context) -> i32>,
}

/// An instance of a policy in this process.
pub(super) struct NativePolicy {
    functions: Functions,
    this: Instance,
    host: HostSide,
    budget: usize,
}

impl NativePolicy {
    /// Makes an instance; `budget` is what it may hand over at once, in bytes.
    ///
    /// # Errors
    /// The table does not fit, or `create` failed.
    pub(super) fn new(loaded: Loaded, lines: Box<dyn Lines>, budget: usize) -> Result<NativePolicy, Failure> {
        let t = table::<abi::Policy>(loaded, "policy")?;
        let lacks = |function| lacks("policy", function);
        let create = t.create.ok_or_else(|| lacks("create"))?;
        let get_extension = t.get_extension.ok_or_else(|| lacks("get_extension"))?;
        let mut functions = Functions {
            destroy: t.destroy.ok_or_else(|| lacks("destroy"))?,
            describe: t.describe.ok_or_else(|| lacks("describe"))?,
            configure: t.configure.ok_or_else(|| lacks("configure"))?,
            start: t.start.ok_or_else(|| lacks("start"))?,
            decide: t.decide.ok_or_else(|| lacks("decide"))?,
            snapshot: t.snapshot.ok_or_else(|| lacks("snapshot"))?,
            restore: t.restore.ok_or_else(|| lacks("restore"))?,
            last_error: t.last_error.ok_or_else(|| lacks("last_error"))?,
            report: None,
        };
        let host = HostSide::new(lines);
        let mut this: Instance = std::ptr::null_mut();
        // SAFETY: the host's table lives until after `destroy`.
        let code = unsafe { create(host.table(), &raw mut this) };
        host.end_of_call();
        check("create", code, std::ptr::null_mut(), functions.last_error)?;
        // SAFETY: a good instance, asked for a table by name; null where there is none.
        let report = unsafe { get_extension(this, Str::of(abi::REPORT)) }.cast::<abi::Report>();
        if !report.is_null() {
            // SAFETY: the plugin's, and a plastic_report by its name.
            let table =
                unsafe { Reader::new(usize::MAX).one(report, size_of::<abi::Report>(), "its table of a report") };
            functions.report = table.map_err(|e| Failure::misread("get_extension", e, budget))?.report;
        }
        Ok(NativePolicy { functions, this, host, budget })
    }

    /// One call: `f` gets the instance and where the answer goes.
    fn call<T>(
        &mut self,
        function: &str,
        f: impl FnOnce(&Functions, Instance, &mut Slot<T>) -> i32,
    ) -> Result<Slot<T>, Failure> {
        let mut slot = Slot::new(self.budget);
        let code = f(&self.functions, self.this, &mut slot);
        let result = check(function, code, self.this, self.functions.last_error);
        self.host.end_of_call();
        result.map(|()| slot)
    }
}

// SAFETY of all calls below: the instance is good (`create` made it, no other call is going on, it
// is not destroyed), what is lent lives until the call returns, slots have the type of their emit.
impl PolicyInstance for NativePolicy {
    fn describe(&mut self) -> Result<Info, Failure> {
        // SAFETY: see above.
        self.call("describe", |f, this, slot| unsafe { (f.describe)(this, take_info, slot.to()) })?.answer("describe")
    }

    fn configure(&mut self, options: &str) -> Result<(), Failure> {
        // SAFETY: see above.
        self.call::<()>("configure", |f, this, _| unsafe { (f.configure)(this, Str::of(options)) }).map(drop)
    }

    fn start(&mut self, run: &Run, slices: &[Slice]) -> Result<(), Failure> {
        let call = |f: &Functions, this, _: &mut Slot<()>| {
            // SAFETY: see above.
            records::with_run(run, slices, |run, slices| unsafe { (f.start)(this, run, slices) })
        };
        self.call("start", call).map(drop)
    }

    fn decide(&mut self, observation: &Observation) -> Result<Plan, Failure> {
        let call = |f: &Functions, this, slot: &mut Slot<Plan>| {
            // SAFETY: see above.
            records::with_observation(observation, |seen| unsafe { (f.decide)(this, seen, take_plan, slot.to()) })
        };
        self.call("decide", call)?.answer("decide")
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, Failure> {
        // SAFETY: see above.
        self.call("snapshot", |f, this, slot| unsafe { (f.snapshot)(this, take_bytes, slot.to()) })?.answer("snapshot")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Failure> {
        // SAFETY: see above.
        self.call::<()>("restore", |f, this, _| unsafe { (f.restore)(this, View::of(state)) }).map(drop)
    }

    fn report(&mut self) -> Result<String, Failure> {
        let Some(report) = self.functions.report else { return Ok(String::new()) };
        // SAFETY: see above.
        self.call("report", |_, this, slot| unsafe { report(this, take_text, slot.to()) })?.answer("report")
    }
}

impl Drop for NativePolicy {
    fn drop(&mut self) {
        // SAFETY: the last call on the instance.
        unsafe { (self.functions.destroy)(self.this) };
    }
}
