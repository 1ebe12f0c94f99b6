//! Getting released libraries from the Python package index.
//!
//! pip is that registry's own client: it knows the user's mirrors, proxies and certificates, checks
//! the SHA-256 hashes of `wheels/*.txt`, unpacks and caches. `--target` unpacks into a directory of
//! ours and is allowed where a plain `pip install` is not (PEP 668); nothing of it is run.

use crate::command;
use crate::failure::{Doing, Failure, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A set of pinned wheels.
pub struct Wheels {
    /// What is told to the user, with the size of the download.
    pub title: &'static str,
    /// A pip requirements file with hashes.
    pub requirements: &'static str,
    /// Big enough that pip's own progress bars should be seen.
    pub big: bool,
}

/// libmlx.so and its headers, CPU build.
pub const MLX_CPU: Wheels =
    Wheels { title: "MLX 0.32.2, CPU build (10 MB)", requirements: include_str!("../wheels/cpu.txt"), big: false };
/// The same for CUDA 12, with the CUDA libraries.
pub const MLX_CUDA12: Wheels = Wheels {
    title: "MLX 0.32.2, CUDA 12 build (about 2 GB)",
    requirements: include_str!("../wheels/cuda12.txt"),
    big: true,
};
/// The same for CUDA 13, with the CUDA libraries.
pub const MLX_CUDA13: Wheels = Wheels {
    title: "MLX 0.32.2, CUDA 13 build (about 2 GB)",
    requirements: include_str!("../wheels/cuda13.txt"),
    big: true,
};
/// A BLAS and LAPACK.
pub const OPENBLAS: Wheels =
    Wheels { title: "OpenBLAS 0.3.34 (8 MB)", requirements: include_str!("../wheels/openblas.txt"), big: false };
/// What bindgen parses C headers with.
pub const LIBCLANG: Wheels =
    Wheels { title: "libclang 18.1.1 (24 MB)", requirements: include_str!("../wheels/libclang.txt"), big: false };
/// What mlx-sys builds MLX with on macOS.
pub const CMAKE: Wheels =
    Wheels { title: "cmake 3.31 (48 MB)", requirements: include_str!("../wheels/cmake.txt"), big: false };

/// The python that pip belongs to: `$PYTHON`, else `python3`.
pub fn python() -> Command {
    command::program("PYTHON", "python3")
}

/// Downloads, verifies and unpacks wheels into `target`.
///
/// Fails with what to do where there is no network, no such wheel for this machine, or a wheel with
/// another hash.
pub fn install(wheels: &Wheels, target: &Path) -> Result<()> {
    fs::create_dir_all(target).doing(format_args!("creating {}", target.display()))?;
    let list = target.with_extension("requirements.txt");
    fs::write(&list, wheels.requirements).doing(format_args!("writing {}", list.display()))?;
    let mut pip = python();
    pip.args(["-m", "pip", "install", "--no-deps", "--no-compile", "--upgrade"])
        .args(["--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check", "--no-input"])
        .arg("--target")
        .arg(target)
        .arg("-r")
        .arg(&list)
        // Settings that are right for a user's own packages and refuse --target.
        .env("PIP_USER", "0")
        .env("PIP_REQUIRE_VIRTUALENV", "0");
    let result = match wheels.big {
        true => command::show(&mut pip),
        false => command::output(pip.arg("-q")).map(drop),
    };
    result.map_err(|e| {
        let text = e.to_string();
        let failure = Failure::new(format!("could not install {}: {text}", wheels.title));
        match remedy(&text) {
            Some(r) => failure.remedy(r),
            None => failure,
        }
    })?;
    fs::remove_file(&list).doing(format_args!("removing {}", list.display()))
}

/// What to do about a failure of pip, told from its output.
fn remedy(output: &str) -> Option<&'static str> {
    const NETWORK: &[&str] =
        &["NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError", "ReadTimeoutError"];
    let says = |s: &str| output.contains(s);
    if says("No module named pip") {
        Some("run `make setup`, which installs pip (Debian's package python3-pip)")
    } else if says("DO NOT MATCH THE HASHES") {
        Some(
            "the package index served another file than the one this project was tested with; use the official index (unset PIP_INDEX_URL) or wait",
        )
    } else if NETWORK.iter().any(|s| says(s)) {
        Some(
            "check the network and pip's settings (PIP_INDEX_URL, HTTPS_PROXY), then run the same command again; docs/setup.md says how to set up offline",
        )
    } else if says("SSLError") || says("CERTIFICATE_VERIFY_FAILED") {
        Some("name your certificate bundle in PIP_CERT, then run the same command again")
    } else if says("No matching distribution") {
        Some(
            "the released MLX needs x86_64 or aarch64, glibc 2.35 or newer (Debian 12, Ubuntu 22.04) and pip 20.3 or newer; offline, see docs/setup.md",
        )
    } else if says("No space left") {
        Some("free some disk space (the CPU build needs 300 MB for a moment, the CUDA build 8 GB)")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_with_a_hash_a_machine() {
        for (wheels, hashes) in [(MLX_CPU, 2), (MLX_CUDA12, 16), (MLX_CUDA13, 16), (OPENBLAS, 2), (LIBCLANG, 2)] {
            let found: Vec<&str> = wheels.requirements.split("--hash=sha256:").skip(1).collect();
            assert_eq!(found.len(), hashes, "{}", wheels.title);
            for h in found {
                let hash: String = h.chars().take_while(char::is_ascii_hexdigit).collect();
                assert_eq!(hash.len(), 64, "{}: {hash}", wheels.title);
            }
        }
    }

    #[test]
    fn the_versions_told_are_the_versions_pinned() {
        for (wheels, pin) in [
            (MLX_CPU, format!("mlx-cpu=={}", crate::mlx::MLX)),
            (MLX_CUDA12, format!("mlx-cuda-12=={}", crate::mlx::MLX)),
            (MLX_CUDA13, format!("mlx-cuda-13=={}", crate::mlx::MLX)),
            (OPENBLAS, format!("scipy-openblas32=={}", crate::mlx::OPENBLAS)),
        ] {
            assert!(wheels.requirements.contains(&pin), "{pin}");
        }
    }

    #[test]
    fn pip_failures_have_remedies() {
        for (output, part) in [
            ("/usr/bin/python3: No module named pip", "python3-pip"),
            ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "PIP_INDEX_URL"),
            ("NewConnectionError('<...>: Failed to establish a new connection')\nNo matching distribution", "network"),
            ("ERROR: No matching distribution found for mlx-cpu==0.32.2", "glibc"),
        ] {
            assert!(remedy(output).is_some_and(|r| r.contains(part)), "{output}");
        }
        assert_eq!(remedy("something new"), None);
    }
}
