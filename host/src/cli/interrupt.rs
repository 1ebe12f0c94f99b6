//! Ctrl-C: the first asks the work to stop in order, the second kills.

use anyhow::Context;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the first Ctrl-C (or SIGTERM).
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the system refuses signal handlers.
    pub fn listen() -> anyhow::Result<Interrupt> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // Order matters: the second signal finds the flag set and ends the process at once.
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, flag.clone())
                .context("listening for Ctrl-C")?;
            signal_hook::flag::register(signal, flag.clone()).context("listening for Ctrl-C")?;
        }
        Ok(Interrupt(flag))
    }

    /// Forgets a stop that was asked for: what it was meant for has ended.
    pub fn forget(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether a stop was asked for.
    pub fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
