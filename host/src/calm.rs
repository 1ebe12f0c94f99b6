//! Panics of libraries as errors.
//!
//! Some parsers panic on damaged files instead of refusing them. Where one is called, [`calm`] turns
//! that into a value; anywhere else a panic is a defect of ours and is shown as one.

use std::cell::Cell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

thread_local! {
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; `None` where it panicked.
pub fn calm<T>(f: impl FnOnce() -> T) -> Option<T> {
    let before = EXPECTED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    EXPECTED.set(before);
    result.ok()
}

/// From now on a panic that nobody expects is shown as a defect, in words, and others not at all.
pub fn install() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo| {
        if EXPECTED.get() {
            return;
        }
        // Standard error may be closed, and a panic in here would abort.
        let _ = writeln!(
            std::io::stderr(),
            "error: plastic-host has a defect and cannot go on; please report it with the lines below. A run\n\
             that was interrupted by it is whole up to its last step: plastic-host resume RUN"
        );
        default(info);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_none() {
        assert_eq!(calm(|| 3), Some(3));
        assert_eq!(calm(|| -> i32 { panic!("no") }), None);
        assert!(!EXPECTED.get());
    }
}
