//! Building a plugin's project into a component, in any of four languages.
//!
//! A project with a `Cargo.toml` is built by cargo; any other has a `plugin.toml` that names its
//! language. Each builder needs its language's own tools and nothing else: what turns a program
//! into a component is in this program, or is fetched once, pinned, into the user's cache
//! ([`tools`]). Fails with a [`BuildError`] that names the remedy; the component is written in one
//! piece, so a failed build leaves the old file.

mod c;
mod javascript;
pub mod project;
mod python;
mod rust;
pub mod sdk;
mod tools;

use super::Fault;
use super::component::Artifact;
use super::limits::Limits;
use project::{Lang, MANIFEST, Project};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why a plugin was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no project.
    #[error(
        "{0} has neither Cargo.toml nor {MANIFEST}; name the directory of a plugin, or begin one with `plastic-host plugin new`"
    )]
    NoProject(PathBuf),
    /// The crate does not make a plugin.
    #[error("{0} makes no plugin: its Cargo.toml needs `[lib]` with `crate-type = [\"cdylib\", \"rlib\"]`")]
    NoLibrary(PathBuf),
    /// The manifest is wrong.
    #[error("{path}: {why}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong, and what is expected.
        why: String,
    },
    /// A program is not there.
    #[error("`{program}` does not start ({source}); {remedy}")]
    NoProgram {
        /// What was called.
        program: String,
        /// Why.
        source: std::io::Error,
        /// What to install.
        remedy: &'static str,
    },
    /// The WASM target is not there.
    #[error("the Rust target {} is missing; install it with `rustup target add {}`", rust::TARGET, rust::TARGET)]
    NoTarget,
    /// The project does not compile; its compiler said why.
    #[error("{0} does not build; the messages of {1} are above")]
    Compile(PathBuf, &'static str),
    /// Cargo answered something unexpected.
    #[error("cargo {what}: {why}")]
    Answer {
        /// What it was asked.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A tool could not be installed.
    #[error("{tool} could not be installed into {dir}: {why}")]
    Install {
        /// Name and version.
        tool: String,
        /// Where to.
        dir: PathBuf,
        /// What the installer said last, and a remedy.
        why: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The module is no plugin.
    #[error("{path}: {why}")]
    Encode {
        /// The module.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The result would not load.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// What a builder hands back: the component, and the name of its file.
struct Built {
    name: String,
    component: Vec<u8>,
}

/// Builds the project in `dir` and writes the component to `out`, or to `<name>.wasm` in `dir`.
/// Messages of compilers go to standard error.
///
/// # Errors
/// [`BuildError`], each with its remedy.
pub fn build(dir: &Path, out: Option<&Path>) -> Result<Artifact, BuildError> {
    build_with(dir, out, &mut |_| {})
}

/// [`build`] that tells what takes long: a line before each tool is installed.
///
/// # Errors
/// [`BuildError`], each with its remedy.
pub fn build_with(dir: &Path, out: Option<&Path>, progress: &mut dyn FnMut(&str)) -> Result<Artifact, BuildError> {
    let built = if dir.join("Cargo.toml").is_file() {
        rust::build(dir)?
    } else {
        let project = Project::read(dir)?;
        sdk::refresh(dir, project.lang, project.kind)?;
        let component = match project.lang {
            Lang::C => c::build(dir, &project, progress)?,
            Lang::Python => python::build(dir, &project, progress)?,
            Lang::Javascript => javascript::build(dir, &project, progress)?,
            Lang::Rust => return Err(BuildError::NoProject(dir.to_owned())),
        };
        Built { name: project.name, component }
    };
    let out = out.map_or_else(|| dir.join(format!("{}.wasm", built.name)), Path::to_owned);
    crate::atomic::write_file(&out, &built.component).map_err(|e| BuildError::Io { path: e.path, source: e.source })?;
    Ok(Artifact::read(&out, &Limits::default())?)
}

/// Runs a program to its end with nothing on standard input; what it prints is the answer's.
fn run(command: &mut Command, remedy: &'static str) -> Result<std::process::Output, BuildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let output = child.and_then(std::process::Child::wait_with_output);
    output.map_err(|source| BuildError::NoProgram { program, source, remedy })
}

/// Runs a compiler whose messages, on either stream, go to standard error.
fn compile(command: &mut Command, dir: &Path, name: &'static str, remedy: &'static str) -> Result<(), BuildError> {
    // The compiler's own backtrace says nothing to the author of a plugin.
    let output = run(command.env("RUST_BACKTRACE", "0").stderr(Stdio::inherit()), remedy)?;
    if output.status.success() {
        return Ok(());
    }
    use std::io::Write;
    // What is lost here was said on a closed stream.
    let _ = std::io::stderr().write_all(&output.stdout);
    Err(BuildError::Compile(dir.to_owned(), name))
}

/// A directory for what a build leaves behind.
fn scratch() -> Result<tempfile::TempDir, BuildError> {
    tempfile::TempDir::with_prefix("plastic-build-")
        .map_err(|source| BuildError::Io { path: std::env::temp_dir(), source })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    std::fs::write(path, bytes).map_err(|source| BuildError::Io { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    std::fs::read(path).map_err(|source| BuildError::Io { path: path.to_owned(), source })
}
