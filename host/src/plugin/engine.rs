//! The wasmtime engines of this process and the clock that lets them interrupt guests.
//!
//! One engine serves every plugin with the same compile-time settings. A thread advances the epoch
//! of all engines every [`TICK`]; guests check it at loops and calls.

use super::limits::{Limits, MAX_STACK_BYTES, size};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use wasmtime::{Config, Engine};

/// How often running guests are looked at: the precision of a time limit.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// Settings that are compiled into the code: engines and cache entries differ by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settings {
    stack_bytes: usize,
    /// Guests count what they execute.
    fuel: bool,
    /// Not a number has one bit pattern, on every machine.
    one_nan: bool,
}

impl Settings {
    fn of(limits: &Limits) -> Settings {
        Settings {
            stack_bytes: limits.stack_bytes,
            fuel: limits.fuel_budget().is_some(),
            one_nan: limits.deterministic,
        }
    }
}

static ENGINES: Mutex<Vec<(Settings, Engine)>> = Mutex::new(Vec::new());

/// The engine for these limits.
///
/// # Errors
/// The stack limit is out of range, or the machine refuses threads or memory.
pub(super) fn engine(limits: &Limits) -> Result<Engine, String> {
    if limits.stack_bytes > MAX_STACK_BYTES {
        let (asked, most) = (size(limits.stack_bytes), size(MAX_STACK_BYTES));
        return Err(format!("a stack of {asked} was asked for (stack_bytes), at most {most} are possible"));
    }
    let settings = Settings::of(limits);
    start_clock()?;
    let mut engines = ENGINES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, engine)) = engines.iter().find(|(s, _)| *s == settings) {
        return Ok(engine.clone());
    }
    let mut config = Config::new();
    config.epoch_interruption(true);
    config.max_wasm_stack(settings.stack_bytes);
    config.consume_fuel(settings.fuel);
    config.cranelift_nan_canonicalization(settings.one_nan);
    // Results of relaxed instructions depend on the machine; plans must not.
    config.wasm_relaxed_simd(false);
    let engine = Engine::new(&config).map_err(|e| format!("wasmtime does not start: {e}"))?;
    engines.push((settings, engine.clone()));
    Ok(engine)
}

/// Ticks after which a call of this length must be looked at.
pub(super) fn ticks(time: Duration) -> u64 {
    let ticks = time.as_millis().div_ceil(TICK.as_millis());
    u64::try_from(ticks).unwrap_or(u64::MAX / 2).clamp(1, u64::MAX / 2)
}

fn start_clock() -> Result<(), String> {
    static STARTED: OnceLock<bool> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let tick = || loop {
            std::thread::sleep(TICK);
            for (_, engine) in ENGINES.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                engine.increment_epoch();
            }
        };
        std::thread::Builder::new().name("plugin-clock".into()).spawn(tick).is_ok()
    });
    match started {
        true => Ok(()),
        false => Err("no thread can be started to watch the time limit of plugins".into()),
    }
}
