//! Helpers shared by the end-to-end tests: the built program, the default model, scratch folders.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The program as users run it, from the root of the checkout.
pub fn host() -> Command {
    let program = root().join("target/release/plastic-host");
    assert!(program.is_file(), "{} is missing: run `make build` (or `make test`, which does)", program.display());
    let mut command = Command::new(program);
    command.current_dir(root()).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// The default model: `PLASTIC_TEST_MODEL`, or what `make test` put into the cache.
pub fn base() -> String {
    std::env::var("PLASTIC_TEST_MODEL").unwrap_or_else(|_| "smollm2-135m".into())
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.out, self.err))
    }

    /// Fails unless the exit code and a part of the error text are as expected.
    pub fn refuses(&self, code: i32, text: &str) {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        assert!(self.err.contains(text), "expected {text:?} in: {}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
    }
}

impl From<Output> for Ran {
    fn from(o: Output) -> Ran {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Ran { code: o.status.code(), out: text(&o.stdout), err: text(&o.stderr) }
    }
}

/// Runs a command to its end, with nothing on standard input unless it was given something.
pub fn ran(command: &mut Command) -> Ran {
    command.output().unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}")).into()
}

/// Runs the program with these arguments.
pub fn run(args: &[&str]) -> Ran {
    ran(host().args(args))
}

/// A folder that is deleted when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty folder.
    pub fn new(name: &str) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("plastic-{name}-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch folder");
        Scratch(path)
    }

    /// A path in it, as text for a command line.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Writes a file in it and answers its path.
    pub fn file(&self, name: &str, content: &[u8]) -> String {
        std::fs::write(self.0.join(name), content).expect("writing a scratch file");
        self.path(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
