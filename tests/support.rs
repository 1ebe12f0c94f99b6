//! Helpers shared by the end-to-end tests.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The built program.
///
/// # Panics
/// When it is not built: `make test` does so.
pub fn program() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/plastic-host");
    assert!(path.is_file(), "{} is not built: `make test` builds it", path.display());
    path
}

/// The default model as `--base` names it: a directory in `PLASTIC_TEST_MODEL`, else its id in the cache.
pub fn model() -> OsString {
    std::env::var_os("PLASTIC_TEST_MODEL").unwrap_or_else(|| "smollm2-135m".into())
}

/// `plastic-host VERB` with nothing on standard input; add arguments to it.
pub fn host(verb: &str) -> Command {
    let mut command = Command::new(program());
    command.arg(verb).stdin(Stdio::null());
    command
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
pub fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}
