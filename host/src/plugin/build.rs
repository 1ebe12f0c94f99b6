//! Building a plugin's crate into a component: `cargo build` for wasm32-unknown-unknown, then the
//! component encoding. Needs nothing beyond cargo and the target.

use super::Fault;
use super::component::{Artifact, encode};
use super::limits::Limits;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TARGET: &str = "wasm32-unknown-unknown";

/// Why a plugin was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no crate.
    #[error("{0} has no Cargo.toml; name the directory of a plugin's crate")]
    NoCrate(PathBuf),
    /// The crate does not make a plugin.
    #[error("{0} makes no plugin: its Cargo.toml needs `[lib]` with `crate-type = [\"cdylib\", \"rlib\"]`")]
    NoLibrary(PathBuf),
    /// Cargo is not there.
    #[error("`{program}` does not start ({source}); install Rust from https://rustup.rs")]
    NoCargo {
        /// What was called.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The WASM target is not there.
    #[error("the Rust target {TARGET} is missing; install it with `rustup target add {TARGET}`")]
    NoTarget,
    /// The crate does not compile; cargo said why.
    #[error("{0} does not build; cargo's messages are above")]
    Cargo(PathBuf),
    /// Cargo answered something unexpected.
    #[error("cargo {what}: {why}")]
    Answer {
        /// What it was asked.
        what: &'static str,
        /// What is wrong.
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

/// Builds the crate in `dir` and writes the component to `out`, or to `<package>.wasm` in `dir`.
///
/// The crate's workspace may have a profile named `plugin`; else `release` is taken. Cargo's
/// messages go to standard error.
///
/// # Errors
/// [`BuildError`], each with its remedy.
pub fn build(dir: &Path, out: Option<&Path>) -> Result<Artifact, BuildError> {
    let manifest = dir.join("Cargo.toml");
    let manifest = manifest.canonicalize().map_err(|_| BuildError::NoCrate(dir.to_owned()))?;
    let package = Package::of(dir, &manifest)?;
    check_target(dir)?;
    let module = compile(dir, &manifest, &package)?;
    let bytes = std::fs::read(&module).map_err(|source| BuildError::Io { path: module.clone(), source })?;
    let component = encode(&bytes).map_err(|why| BuildError::Encode { path: module, why })?;
    let out = out.map_or_else(|| dir.join(format!("{}.wasm", package.name)), Path::to_owned);
    write(&out, &component).map_err(|source| BuildError::Io { path: out.clone(), source })?;
    Ok(Artifact::read(&out, &Limits::default())?)
}

/// What `cargo metadata` says about the crate.
struct Package {
    name: String,
    workspace: PathBuf,
    profile: &'static str,
}

impl Package {
    fn of(dir: &Path, manifest: &Path) -> Result<Package, BuildError> {
        let mut metadata = cargo(dir);
        metadata.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]).arg(manifest);
        let output = run(metadata.stderr(Stdio::inherit()))?;
        if !output.status.success() {
            return Err(BuildError::Cargo(dir.to_owned()));
        }
        let bad = |why: &str| BuildError::Answer { what: "metadata", why: why.into() };
        let json: Value = serde_json::from_slice(&output.stdout).map_err(|e| bad(&e.to_string()))?;
        let workspace = PathBuf::from(json["workspace_root"].as_str().ok_or_else(|| bad("no workspace_root"))?);
        let packages = json["packages"].as_array().ok_or_else(|| bad("no packages"))?;
        let is_ours = |p: &&Value| p["manifest_path"].as_str().is_some_and(|m| Path::new(m) == manifest);
        let ours = packages.iter().find(is_ours).ok_or_else(|| BuildError::NoLibrary(dir.to_owned()))?;
        let targets = ours["targets"].as_array().ok_or_else(|| bad("no targets"))?;
        let has = |t: &Value, kind: &str| {
            t["crate_types"].as_array().is_some_and(|types| types.iter().any(|c| c.as_str() == Some(kind)))
        };
        if !targets.iter().any(|t| has(t, "cdylib")) {
            return Err(BuildError::NoLibrary(dir.to_owned()));
        }
        let name = ours["name"].as_str().ok_or_else(|| bad("no name"))?.to_owned();
        let root = std::fs::read_to_string(workspace.join("Cargo.toml")).unwrap_or_default();
        let root: toml::Table = root.parse().unwrap_or_default();
        let has_profile = root.get("profile").and_then(|p| p.get("plugin")).is_some();
        Ok(Package { name, workspace, profile: if has_profile { "plugin" } else { "release" } })
    }
}

/// Compiles the crate; answers where the module lies.
fn compile(dir: &Path, manifest: &Path, package: &Package) -> Result<PathBuf, BuildError> {
    let mut build = cargo(dir);
    build.args(["build", "--lib", "--target", TARGET, "--profile", package.profile]);
    build.args(["--message-format", "json-render-diagnostics", "--manifest-path"]).arg(manifest);
    let variable = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS";
    let mut flags = std::env::var(variable).unwrap_or_default();
    // Vectors, and no path of this machine in the plugin: equal sources make equal files.
    flags.push_str(" -C target-feature=+simd128");
    for (from, to) in [(Some(package.workspace.clone()), "."), (cargo_home(), ".cargo")] {
        if let Some(from) = from.as_deref().and_then(Path::to_str)
            && !from.contains(char::is_whitespace)
        {
            flags.push_str(&format!(" --remap-path-prefix={from}={to}"));
        }
    }
    let output = run(build.env(variable, flags.trim()).stderr(Stdio::inherit()))?;
    if !output.status.success() {
        return Err(BuildError::Cargo(dir.to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_ours = |m: &Value| m["manifest_path"].as_str().is_some_and(|p| Path::new(p) == manifest);
    let files = messages.filter(|m| m["reason"] == "compiler-artifact" && is_ours(m));
    let paths = files.flat_map(|m| m["filenames"].as_array().cloned().unwrap_or_default());
    let module =
        paths.filter_map(|f| f.as_str().map(PathBuf::from)).find(|f| f.extension().is_some_and(|e| e == "wasm"));
    module.ok_or_else(|| BuildError::NoLibrary(dir.to_owned()))
}

/// The target's libraries must be there; cargo's own message about it is long.
fn check_target(dir: &Path) -> Result<(), BuildError> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let rustc = rustc.args(["--print", "target-libdir", "--target", TARGET]).current_dir(dir).stderr(Stdio::null());
    let output = run(rustc)?;
    let libdir = String::from_utf8_lossy(&output.stdout);
    match output.status.success() && Path::new(libdir.trim()).is_dir() {
        true => Ok(()),
        false => Err(BuildError::NoTarget),
    }
}

fn cargo(dir: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(dir);
    cargo
}

fn cargo_home() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cargo")))
}

fn run(command: &mut Command) -> Result<std::process::Output, BuildError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let output = child.and_then(std::process::Child::wait_with_output);
    output.map_err(|source| BuildError::NoCargo { program, source })
}

/// Writes the file in one piece: a run that reads it meanwhile sees the old one or the new one.
fn write(out: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(out)?;
    Ok(())
}
