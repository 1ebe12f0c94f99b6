//! The reference plugins: each crate `plugins/<name>` becomes `plugins/<name>.wasm`.

use crate::command;
use crate::failure::{Doing, Failure, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// The host, as `make build` leaves it.
const HOST: &str = "target/release/plastic-host";

/// Builds every plugin of the checkout at `project` whose sources are newer than its component.
pub fn run(project: &Path) -> Result<()> {
    let host = project.join(HOST);
    // What every plugin is made of: the SDK and the build profile.
    let shared = [project.join("plugin-api"), project.join("Cargo.toml")];
    for dir in crates(&project.join("plugins"))? {
        let wasm = dir.with_extension("wasm");
        let sources: Vec<&Path> = shared.iter().chain([&dir]).map(PathBuf::as_path).collect();
        if is_current(&wasm, &sources) {
            continue;
        }
        if !host.is_file() {
            return Err(Failure::new(format!("{HOST} does not exist")).remedy("run `make build` first"));
        }
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        eprintln!("  building plugins/{name}.wasm");
        let mut build = Command::new(&host);
        build.args(["plugin", "build"]).arg(&dir).arg("-o").arg(&wasm).current_dir(project);
        // Flags meant for this machine's processor (-C target-cpu=native) break a WASM build.
        for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"] {
            build.env_remove(flags);
        }
        command::show(&mut build).doing(format_args!("building the plugin {name}"))?;
        if !is_current(&wasm, &sources) {
            return Err(Failure::new(format!("building the plugin {name} left no new {}", wasm.display())));
        }
    }
    Ok(())
}

/// The directories under `dir` that hold a crate, in order of name.
fn crates(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).doing(format_args!("reading {}", dir.display()))?;
    let mut crates: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.join("Cargo.toml").is_file()).collect();
    crates.sort();
    Ok(crates)
}

/// True where `output` exists and nothing under `sources` is newer.
fn is_current(output: &Path, sources: &[&Path]) -> bool {
    let Some(built) = modified(output) else { return false };
    sources.iter().filter_map(|s| newest(s)).all(|t| t <= built)
}

/// The latest change of a file, or of anything in a directory; build output does not count.
fn newest(path: &Path) -> Option<SystemTime> {
    if !path.is_dir() {
        return modified(path);
    }
    let entries = fs::read_dir(path).ok()?.flatten().filter(|e| e.file_name() != "target");
    entries.filter_map(|e| newest(&e.path())).max()
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|m| m.modified()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::time::Duration;

    /// A checkout with one plugin whose host is a shell script that counts its calls.
    fn checkout(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("plastic-setup-{name}-{}", std::process::id()));
        for dir in ["plugins/quiet/src", "plugin-api/src", "target/release"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for file in ["plugins/quiet/Cargo.toml", "plugins/quiet/src/lib.rs", "plugin-api/src/lib.rs", "Cargo.toml"] {
            fs::write(root.join(file), "").unwrap();
        }
        let script =
            "#!/bin/sh\n[ \"$1 $2 $4\" = 'plugin build -o' ] || exit 9\necho x >> calls\ncp \"$3/src/lib.rs\" \"$5\"\n";
        fs::write(root.join(HOST), script).unwrap();
        command::output(Command::new("chmod").arg("+x").arg(root.join(HOST))).unwrap();
        root
    }

    fn calls(root: &Path) -> usize {
        fs::read_to_string(root.join("calls")).unwrap_or_default().lines().count()
    }

    #[test]
    fn a_plugin_is_built_once_and_again_after_a_change() {
        let root = checkout("again");
        run(&root).unwrap();
        assert!(root.join("plugins/quiet.wasm").is_file());
        run(&root).unwrap();
        assert_eq!(calls(&root), 1);
        let past = SystemTime::now() - Duration::from_secs(60);
        fs::File::options().write(true).open(root.join("plugins/quiet.wasm")).unwrap().set_modified(past).unwrap();
        run(&root).unwrap();
        assert_eq!(calls(&root), 2);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_host_that_fails_or_is_missing_is_reported() {
        let root = checkout("fails");
        fs::write(root.join(HOST), "#!/bin/sh\nexit 1\n").unwrap();
        assert!(run(&root).unwrap_err().to_string().contains("quiet"));
        fs::remove_file(root.join(HOST)).unwrap();
        assert!(run(&root).unwrap_err().to_string().contains("make build"));
        fs::remove_dir_all(&root).unwrap();
    }
}
