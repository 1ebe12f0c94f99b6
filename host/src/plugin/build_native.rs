//! Building a plugin's crate into a native library: `cargo rustc` with the SDK's feature `native`,
//! under the profile that a component would get, but with unwinding, so that a panic is an answer
//! and not the end of the host.
//!
//! Fails with a [`NativeBuildError`] that names the remedy. The library is written in one piece.

use super::Fault;
use super::component::Artifact;
use super::limits::Limits;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a native library's file name ends on this system.
pub const EXTENSION: &str = std::env::consts::DLL_EXTENSION;

/// Why a native library was not built.
#[derive(Debug, thiserror::Error)]
pub enum NativeBuildError {
    /// There is no crate.
    #[error(
        "{0} has no Cargo.toml; name the directory of a plugin's crate (one in C is built with `cc -shared`: docs/native.md)"
    )]
    NoCrate(PathBuf),
    /// Cargo is not there.
    #[error("`{program}` does not start ({source}); install Rust from https://rustup.rs")]
    NoCargo {
        /// What was called.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The crate does not compile; cargo said why.
    #[error("{0} does not build; cargo's messages are above")]
    Cargo(PathBuf),
    /// The crate compiled to something else.
    #[error("{0} makes no library: its Cargo.toml needs `[lib]`")]
    NoLibrary(PathBuf),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The result is no plugin.
    #[error("{0}; is there an `export_policy!` or `export_evaluator!` in the crate?")]
    Fault(Fault),
}

/// Builds the crate in `dir` and writes the library to `out`, or to `<package>.so` (`.dylib` on
/// macOS) in `dir`. Cargo's messages go to standard error. The library is not loaded.
///
/// # Errors
/// [`NativeBuildError`], each with its remedy.
pub fn build_native(dir: &Path, out: Option<&Path>) -> Result<Artifact, NativeBuildError> {
    let manifest = dir.join("Cargo.toml");
    let manifest = manifest.canonicalize().map_err(|_| NativeBuildError::NoCrate(dir.to_owned()))?;
    let workspace = workspace(dir, &manifest)?;
    let profile = if table(&workspace)?.contains_key("plugin") { "plugin" } else { "release" };
    let mut cargo = cargo(dir);
    cargo.args(["rustc", "--lib", "--crate-type", "cdylib", "--features", "plastic-plugin/native"]);
    cargo.args(["--profile", profile, "--config", &format!("profile.{profile}.panic=\"unwind\"")]);
    cargo.args(["--message-format", "json-render-diagnostics", "--manifest-path"]).arg(&manifest);
    if let Some(root) = workspace.parent().and_then(Path::to_str) {
        // No path of this machine in the plugin's own panics.
        cargo.args(["--", &format!("--remap-path-prefix={root}=.")]);
    }
    let output = run(cargo.stderr(Stdio::inherit()))?;
    if !output.status.success() {
        return Err(NativeBuildError::Cargo(dir.to_owned()));
    }
    let (name, library) = library(&output.stdout, &manifest).ok_or_else(|| NativeBuildError::NoLibrary(dir.into()))?;
    let bytes = std::fs::read(&library).map_err(|source| NativeBuildError::Io { path: library, source })?;
    let out = out.map_or_else(|| dir.join(format!("{name}.{EXTENSION}")), Path::to_owned);
    crate::atomic::write_file(&out, &bytes).map_err(|e| NativeBuildError::Io { path: e.path, source: e.source })?;
    Artifact::read(&out, &Limits::default()).map_err(NativeBuildError::Fault)
}

/// Where the workspace's manifest lies.
fn workspace(dir: &Path, manifest: &Path) -> Result<PathBuf, NativeBuildError> {
    let mut locate = cargo(dir);
    locate.args(["locate-project", "--workspace", "--message-format", "plain", "--manifest-path"]).arg(manifest);
    let output = run(locate.stderr(Stdio::inherit()))?;
    match output.status.success() {
        true => Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())),
        false => Err(NativeBuildError::Cargo(dir.to_owned())),
    }
}

/// The profiles of a manifest.
fn table(manifest: &Path) -> Result<toml::Table, NativeBuildError> {
    let text = std::fs::read_to_string(manifest)
        .map_err(|source| NativeBuildError::Io { path: manifest.to_owned(), source })?;
    let table: toml::Table = text.parse().unwrap_or_default();
    Ok(table.get("profile").and_then(|p| p.as_table()).cloned().unwrap_or_default())
}

/// Name of the package and its library, from cargo's messages.
fn library(messages: &[u8], manifest: &Path) -> Option<(String, PathBuf)> {
    let text = String::from_utf8_lossy(messages);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_ours = |m: &Value| {
        m["reason"] == "compiler-artifact" && m["manifest_path"].as_str().is_some_and(|p| Path::new(p) == manifest)
    };
    for message in messages.filter(is_ours) {
        let files = message["filenames"].as_array()?.iter().filter_map(Value::as_str).map(PathBuf::from);
        let library = files.into_iter().find(|f| f.extension().is_some_and(|e| e == EXTENSION));
        if let Some(library) = library {
            let package = std::fs::read_to_string(manifest).ok()?.parse::<toml::Table>().ok()?;
            return Some((package.get("package")?.get("name")?.as_str()?.to_owned(), library));
        }
    }
    None
}

fn cargo(dir: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(dir);
    cargo
}

fn run(command: &mut Command) -> Result<std::process::Output, NativeBuildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let output = child.and_then(std::process::Child::wait_with_output);
    output.map_err(|source| NativeBuildError::NoCargo { program, source })
}
