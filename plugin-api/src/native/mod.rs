//! A plugin as a native library: the C functions of `include/plastic_plugin.h` around a
//! [`RankPolicy`](crate::RankPolicy) or an [`Evaluator`](crate::Evaluator).
//!
//! Compiled with the feature `native`, which `plastic-host plugin build --native` turns on; then
//! the export macros also define the symbol `plastic_plugin_entry`. A crate that is only linked into
//! a test does not define it, so several can stand in one program.
//!
//! Every function catches panics: the host gets [`abi::PANICKED`] and the panic's text, and makes a
//! new instance. That needs `panic = "unwind"`.

mod evaluator;
mod policy;
mod read;

pub use evaluator::evaluator_entry;
pub use policy::policy_entry;

use crate::abi::{self, Context, Emit, Info, Instance, Misread, Str, View};
use crate::logging::Level;
use crate::policy::Identity;
use crate::records::Attribute;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// The host of the call this thread is in.
    static HOST: Cell<Option<abi::Host>> = const { Cell::new(None) };
    /// What the last panic on this thread said.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    /// Why the last `create` on this thread failed.
    static CREATE_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A failed call: its code and why.
struct Failed(i32, String);

impl From<String> for Failed {
    fn from(why: String) -> Failed {
        Failed(abi::REFUSED, why)
    }
}

impl From<Misread> for Failed {
    fn from(why: Misread) -> Failed {
        Failed(
            abi::MISFIT,
            match why {
                Misread::Broken(why) => format!("the host's data: {why}"),
                Misread::TooMuch => "the host's data: a length is out of range".into(),
            },
        )
    }
}

/// What an instance pointer points at.
struct Slot<T> {
    host: abi::Host,
    body: T,
    error: String,
}

/// Sends a line to the host of the call this thread is in; false where there is none.
pub(crate) fn log(level: Level, message: &str) -> bool {
    let Some(host) = HOST.get() else { return false };
    let Some(log) = host.log else { return false };
    log(host.context, level as u32, Str::of(message));
    true
}

/// Runs `f` in a call of `host`; a panic becomes a [`Failed`].
fn guarded<R>(host: abi::Host, f: impl FnOnce() -> Result<R, Failed>) -> Result<R, Failed> {
    let before = HOST.replace(Some(host));
    let result = catch_unwind(AssertUnwindSafe(f));
    HOST.set(before);
    result.unwrap_or_else(|_| Err(Failed(abi::PANICKED, PANIC.take())))
}

/// Keeps a panic's text for `last_error`. The library has a standard library of its own, so this is
/// no other program's hook.
fn install_panic_hook() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|panic| PANIC.set(panic.to_string()))));
}

/// `create` of either table.
///
/// # Safety
/// `host` is null or points at the host's table; `to` is null or can be written.
unsafe fn create<T>(host: *const abi::Host, to: *mut Instance, make: impl FnOnce() -> T) -> i32 {
    install_panic_hook();
    let made = if to.is_null() {
        Err(Failed(abi::MISFIT, "no place for the instance".into()))
    } else {
        // SAFETY: the caller's word.
        let host = unsafe { abi::Reader::new(usize::MAX).one(host, size_of::<abi::Host>(), "the host's table") };
        host.map_err(Failed::from).and_then(|host| {
            let body = guarded(host, || Ok(make()))?;
            Ok(Box::new(Slot { host, body, error: String::new() }))
        })
    };
    match made {
        Ok(slot) => {
            // SAFETY: not null, see above; the caller's word.
            unsafe { to.write(Box::into_raw(slot).cast()) };
            abi::OK
        }
        Err(Failed(code, why)) => {
            CREATE_ERROR.replace(why);
            code
        }
    }
}

/// `destroy` of either table.
///
/// # Safety
/// `this` is null or came from [`create`] with the same `T`, and is not used again.
unsafe extern "C" fn destroy<T>(this: Instance) {
    if !this.is_null() {
        // SAFETY: the caller's word.
        let slot = unsafe { Box::from_raw(this.cast::<Slot<T>>()) };
        let host = slot.host;
        // Who panics while being dropped has nobody left to tell.
        let _ = guarded(host, || {
            drop(slot);
            Ok(())
        });
    }
}

/// Every other function of either table.
///
/// # Safety
/// `this` is null or came from [`create`] with the same `T`, and no other call on it is going on.
unsafe fn call<T>(this: Instance, f: impl FnOnce(&mut T) -> Result<(), Failed>) -> i32 {
    // SAFETY: the caller's word.
    let Some(slot) = (unsafe { this.cast::<Slot<T>>().as_mut() }) else { return abi::MISFIT };
    match guarded(slot.host, || f(&mut slot.body)) {
        Ok(()) => abi::OK,
        Err(Failed(code, why)) => {
            slot.error = why;
            code
        }
    }
}

/// `last_error` of either table.
///
/// # Safety
/// As [`call`].
unsafe extern "C" fn last_error<T>(this: Instance, emit: Emit<Str>, to: Context) {
    // SAFETY: the caller's word.
    match unsafe { this.cast::<Slot<T>>().as_ref() } {
        Some(slot) => emit(to, Str::of(&slot.error)),
        None => CREATE_ERROR.with_borrow(|why| emit(to, Str::of(why))),
    }
}

/// Hands a description over.
fn emit_info(id: Identity, info: &Description, emit: Emit<*const Info>, to: Context) {
    let texts = |list: &[String]| list.iter().map(|t| Str::of(t)).collect::<Vec<Str>>();
    let (phases, needs) = (texts(&info.phases), texts(&info.needs));
    let facts = abi::Facts::of(&info.attributes);
    let out = Info {
        name: Str::of(id.name),
        version: Str::of(id.version),
        summary: Str::of(id.summary),
        phases: View::of(&phases),
        needs: View::of(&needs),
        options_schema: Str::of(&info.schema),
        attributes: facts.view(),
        ..abi::Sized32::new()
    };
    emit(to, &out);
}

/// What a description says beyond the identity.
struct Description {
    phases: Vec<String>,
    needs: Vec<String>,
    schema: String,
    attributes: Vec<Attribute>,
}
