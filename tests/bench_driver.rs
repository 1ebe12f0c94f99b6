//! The benchmark's own arithmetic: statistics, overhead, report. (Measuring is `make bench`, not a test.)

use std::path::Path;
use std::process::Command;

#[test]
fn the_benchmark_reckons_rightly() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench");
    let done = Command::new("python3").args(["-B", "-m", "unittest"]).current_dir(&directory).output();
    let output = done.unwrap_or_else(|e| panic!("python3 cannot be started: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("OK"), "{said}");
    assert!(!said.contains("Ran 0 tests"), "no test was found in {}", directory.display());
}
