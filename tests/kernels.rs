//! The products of the CPU kernels against plain arithmetic, under the address and undefined-behaviour sanitizers, with
//! every instruction set of this machine in turn.
#![allow(clippy::unwrap_used, reason = "tests")]
#![cfg(target_os = "linux")]

use plastic_tests::root;
use std::process::Command;

#[test]
fn products_agree_with_plain_arithmetic_under_sanitizers() {
    let out = root().join("target").join("check");
    let script = root().join("host/native/check/run.sh");
    let run = Command::new("sh").arg(script).arg(out).args(["40", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && said.contains("all agree") && said.contains("scalar: 80"), "{said}");
}
