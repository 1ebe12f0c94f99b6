//! Lines for the operator. They reach the host's log under the plugin's name; the host drops what
//! goes beyond its limits. In tests they go to standard error.

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the plugin's author.
    Trace = 0,
    /// For a curious operator (`-v`).
    Debug = 1,
    /// Worth a line in a normal run.
    Info = 2,
    /// Something is off, the plugin goes on.
    Warn = 3,
    /// The plugin cannot do its work.
    Error = 4,
}

/// Sends one line; the macros [`trace!`](crate::trace), [`debug!`](crate::debug),
/// [`info!`](crate::info), [`warn!`](crate::warn) and [`error!`](crate::error) format it.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::policy::plastic::rank::host::log(level as u8, message);
    #[cfg(all(feature = "native", not(target_arch = "wasm32")))]
    if crate::native::log(level, message) {
        return;
    }
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// Makes a panic's text reach the operator; without it the host only sees "unreachable executed".
pub(crate) fn install_panic_hook() {
    #[cfg(target_arch = "wasm32")]
    std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
}

/// Logs a formatted line for the plugin's author.
#[macro_export]
macro_rules! trace {
    ($($arg:tt)*) => { $crate::logging::log($crate::logging::Level::Trace, &::std::format!($($arg)*)) };
}

/// Logs a formatted line for a curious operator.
#[macro_export]
macro_rules! debug {
    ($($arg:tt)*) => { $crate::logging::log($crate::logging::Level::Debug, &::std::format!($($arg)*)) };
}

/// Logs a formatted line.
#[macro_export]
macro_rules! info {
    ($($arg:tt)*) => { $crate::logging::log($crate::logging::Level::Info, &::std::format!($($arg)*)) };
}

/// Logs a formatted warning.
#[macro_export]
macro_rules! warn {
    ($($arg:tt)*) => { $crate::logging::log($crate::logging::Level::Warn, &::std::format!($($arg)*)) };
}

/// Logs a formatted error.
#[macro_export]
macro_rules! error {
    ($($arg:tt)*) => { $crate::logging::log($crate::logging::Level::Error, &::std::format!($($arg)*)) };
}
