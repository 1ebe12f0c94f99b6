//! Rust: `cargo build` for wasm32-unknown-unknown, then the component encoding. Needs nothing beyond
//! cargo and the target.

use super::{BuildError, Built, read, run as run_program};
use crate::plugin::component::encode;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(super) const TARGET: &str = "wasm32-unknown-unknown";

/// Builds the crate in `dir`. Its workspace may have a profile named `plugin`; else `release` is
/// taken. Cargo's messages go to standard error.
pub(super) fn build(dir: &Path) -> Result<Built, BuildError> {
    let manifest = dir.join("Cargo.toml");
    let manifest = manifest.canonicalize().map_err(|_| BuildError::NoProject(dir.to_owned()))?;
    let package = Package::of(dir, &manifest)?;
    check_target(dir)?;
    let module = compile(dir, &manifest, &package)?;
    let component = encode(&read(&module)?).map_err(|why| BuildError::Encode { path: module, why })?;
    Ok(Built { name: package.name, component })
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
            return Err(BuildError::Compile(dir.to_owned(), "cargo"));
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
        return Err(BuildError::Compile(dir.to_owned(), "cargo"));
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
    run_program(command, "install Rust from https://rustup.rs")
}
