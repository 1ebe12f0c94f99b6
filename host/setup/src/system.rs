//! What the operating system and rustup must bring: found, or installed, or named in one line.

use crate::command;
use crate::failure::{Failure, Result};
use crate::wheel;
use std::env::consts::OS;
use std::path::Path;
use std::process::Command;

/// The Rust target that plugins are built for.
const WASM: &str = "wasm32-unknown-unknown";

/// A tool, and the Debian package that brings it.
struct Tool {
    name: &'static str,
    package: &'static str,
    found: fn() -> bool,
}

/// Everything a Linux build needs beside Rust and a C compiler (without which Rust links nothing).
const LINUX: &[Tool] = &[
    Tool { name: "a C++20 compiler", package: "g++", found: knows_cxx20 },
    Tool { name: "git", package: "git", found: || runs("git") },
    Tool { name: "make", package: "make", found: || runs("make") },
    Tool { name: "python3", package: "python3", found: has_python },
    Tool { name: "pip", package: "python3-pip", found: has_pip },
];

/// Checks the machine for the checkout at `project`, and installs what is missing where we may.
pub fn run(project: &Path) -> Result<()> {
    match OS {
        "linux" => linux()?,
        "macos" => macos()?,
        other => return Err(Failure::new(format!("{other} is not supported")).remedy("use Linux or macOS")),
    }
    wasm_target(project)
}

fn linux() -> Result<()> {
    let missing: Vec<&Tool> = LINUX.iter().filter(|t| !(t.found)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|t| t.package).collect();
    let Some(mut apt) = apt_get() else { return Err(ask_for(&missing)) };
    eprintln!("  installing with apt-get: {}", packages.join(" "));
    // An old package list is often good enough, so a failed update is not the end.
    if let Err(e) = command::output(apt().arg("update")) {
        eprintln!("  {e}");
    }
    command::output(apt().args(["install", "-y", "--no-install-recommends"]).args(&packages))
        .map_err(|e| Failure::new(e.to_string()).remedy(format!("install these packages: {}", packages.join(" "))))?;
    let missing: Vec<&Tool> = LINUX.iter().filter(|t| !(t.found)()).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(ask_for(&missing)),
    }
}

/// One line that names what to install.
fn ask_for(missing: &[&Tool]) -> Failure {
    let names: Vec<&str> = missing.iter().map(|t| t.name).collect();
    let packages: Vec<&str> = missing.iter().map(|t| t.package).collect();
    Failure::new(format!("not found: {}", names.join(", "))).remedy(format!(
        "install the packages (named as on Debian and Ubuntu) and run make again: apt-get install {}",
        packages.join(" ")
    ))
}

/// How apt-get is called without asking anybody: as root, or through a sudo that wants no password.
fn apt_get() -> Option<impl FnMut() -> Command> {
    if !runs("apt-get") {
        return None;
    }
    let root = command::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if !root && !command::succeeds(Command::new("sudo").args(["-n", "true"])) {
        return None;
    }
    Some(move || {
        // `env` because sudo does not pass variables on.
        let mut apt = Command::new(if root { "env" } else { "sudo" });
        if !root {
            apt.args(["-n", "env"]);
        }
        apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
        apt
    })
}

fn runs(program: &str) -> bool {
    command::succeeds(Command::new(program).arg("--version"))
}

fn has_python() -> bool {
    command::succeeds(wheel::python().args(["-c", "import sys; sys.exit(sys.version_info < (3, 8))"]))
}

fn has_pip() -> bool {
    command::succeeds(wheel::python().args(["-m", "pip", "--version"]))
}

/// Parses C++20's own headers with the compiler that the `cc` crate would take.
fn knows_cxx20() -> bool {
    let dir = std::env::temp_dir().join(format!("plastic-setup-{}", std::process::id()));
    let file = dir.join("probe.hpp");
    let written = std::fs::create_dir_all(&dir).is_ok()
        && std::fs::write(&file, "#include <concepts>\n#include <ranges>\n").is_ok();
    let known = written
        && command::succeeds(
            command::program("CXX", "c++").args(["-std=c++20", "-fsyntax-only", "-w", "-x", "c++"]).arg(&file),
        );
    let _ = std::fs::remove_dir_all(&dir); // in the way of nobody
    known
}

fn macos() -> Result<()> {
    if !command::succeeds(Command::new("xcode-select").arg("-p")) {
        return Err(Failure::new("Xcode's command line tools are not installed").remedy("run: xcode-select --install"));
    }
    if !command::succeeds(Command::new("xcrun").args(["-sdk", "macosx", "metal", "--version"])) {
        return Err(Failure::new("the Metal compiler is not installed (MLX's GPU kernels need it)").remedy(
            "install Xcode from the App Store, then run: xcodebuild -downloadComponent MetalToolchain (Xcode 26 and newer)",
        ));
    }
    match has_pip() || runs("cmake") {
        true => Ok(()),
        false => Err(Failure::new("neither cmake nor python3 with pip was found").remedy("run: brew install cmake")),
    }
}

/// The Rust WASM target, in the toolchain that builds `project`.
fn wasm_target(project: &Path) -> Result<()> {
    if has_wasm_target(project) {
        return Ok(());
    }
    eprintln!("  adding Rust's {WASM} target");
    command::output(Command::new("rustup").args(["target", "add", WASM]).current_dir(project)).map_err(|e| {
        Failure::new(format!("Rust's {WASM} target is missing and could not be added: {e}")).remedy(format!(
            "run `rustup target add {WASM}`; a Rust that is not from rustup has it in a package of its own, \
             such as libstd-rust-dev-wasm32 or rust-std-static-{WASM}"
        ))
    })?;
    match has_wasm_target(project) {
        true => Ok(()),
        false => Err(Failure::new(format!("rustup added {WASM}, but `rustc` on PATH does not have it"))
            .remedy("put rustup's proxies (~/.cargo/bin) first on PATH, or unset RUSTC")),
    }
}

fn has_wasm_target(project: &Path) -> bool {
    let ask = ["--print", "target-libdir", "--target", WASM];
    command::output(command::program("RUSTC", "rustc").args(ask).current_dir(project))
        .is_ok_and(|dir| Path::new(dir.trim()).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_in_one_line() {
        let text = ask_for(&[&LINUX[0], &LINUX[4]]).to_string();
        assert!(text.contains("not found: a C++20 compiler, pip"), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with("apt-get install g++ python3-pip"), "{text}");
    }

    #[test]
    fn a_missing_program_is_not_found() {
        assert!(!runs("no-such-program-anywhere"));
        assert!(runs("cargo"));
    }
}
