//! Every test of the workspace, and one total: Cargo prints a summary a test program, and none over all.

use crate::command;
use crate::failure::{Doing, Failure, Result};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// How many tests did what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Total {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Total {
    /// Counts one line of a test program's output; other lines than its summary change nothing.
    fn count(&mut self, line: &str) {
        let Some(summary) = line.trim().strip_prefix("test result: ") else { return };
        let Some((_, counts)) = summary.split_once(". ") else { return };
        for part in counts.split("; ") {
            let Some((n, what)) = part.split_once(' ') else { continue };
            let n = n.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += n,
                "failed" => self.failed += n,
                "ignored" => self.ignored += n,
                _ => {}
            }
        }
    }
}

/// Runs the tests of the checkout at `project` and prints `N passed, N failed` as the last line.
/// Arguments are handed to `cargo test`, such as the name of a test. Answers whether all passed.
pub fn run(project: &Path, arguments: &[String]) -> Result<bool> {
    // This program's own tests reuse what it was built from; everything else is the release build
    // that `make build` made.
    let runs: [&[&str]; 3] = [
        &["--profile", "setup", "--target-dir", "target/setup", "-p", "plastic-setup"],
        &["--release", "--workspace", "--exclude", "plastic-setup"],
        // The example is a project of its own, as a user's would be.
        &["--manifest-path", "examples/top-heavy/Cargo.toml"],
    ];
    let mut total = Total::default();
    for options in runs {
        let mut cargo = command::program("CARGO", "cargo");
        cargo.args(["test", "--no-fail-fast"]).args(options).args(arguments).current_dir(project);
        if options.contains(&"plastic-setup") && options.contains(&"-p") {
            cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        }
        let before = total.failed;
        let ok = count_one(&mut cargo, &mut total)?;
        // A program that crashed, or did not compile, prints no summary.
        if !ok && total.failed == before {
            total.failed += 1;
        }
    }
    if total.ignored > 0 {
        println!("\n{} ignored", total.ignored);
    }
    println!("\n{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0 && total.passed > 0)
}

/// Runs one `cargo test`, passes its output on and counts it; answers whether it succeeded.
fn count_one(cargo: &mut Command, total: &mut Total) -> Result<bool> {
    let mut child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().doing("starting cargo test")?;
    let out = child.stdout.take().ok_or_else(|| Failure::new("cargo test has no output"))?;
    for line in BufReader::new(out).split(b'\n') {
        let line = line.doing("reading the output of cargo test")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        total.count(&line);
    }
    Ok(child.wait().doing("waiting for cargo test")?.success())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn summaries_add_up() {
        let mut total = Total::default();
        for line in [
            "running 3 tests",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test a::test result: odd ... ok",
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.00s",
        ] {
            total.count(line);
        }
        assert_eq!(total, Total { passed: 15, failed: 2, ignored: 1 });
    }

    #[test]
    fn a_crash_is_seen() {
        let mut total = Total::default();
        let script = "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'; kill -SEGV $$";
        assert!(!count_one(Command::new("sh").args(["-c", script]), &mut total).unwrap());
        assert_eq!(total.passed, 1);
    }
}
