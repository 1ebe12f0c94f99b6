//! MLX for this checkout.
//!
//! On Linux mlx-sys cannot build itself, so everything it needs is put under `.mlx/<key>/` and
//! `.mlx/cargo.toml`, which the committed `.cargo/config.toml` includes, overrides its build script
//! (Cargo: "overriding build scripts"). On macOS mlx-sys is built as it is published.
//!
//! `<key>` names everything that matters, because Cargo rebuilds mlx-sys when a path changes and not
//! when a file behind it does. A directory of that name is complete: it is filled under another
//! name and renamed, so an interrupted set-up starts over.

use crate::backend::{Blas, Choice};
use crate::failure::{Doing, Failure, Result};
use crate::{bindings, blas, command, mlxc, wheel};
use std::env::consts::{ARCH, OS};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The release of MLX that all builds are pinned to.
pub const MLX: &str = "0.32.2";
/// The release of the OpenBLAS wheel.
pub const OPENBLAS: &str = "0.3.34.481.3";
/// Raised whenever what lies under a key changes.
const RECIPE: u32 = 2;

/// Sets up MLX for the checkout at `project`. Does next to nothing the second time.
pub fn run(project: &Path) -> Result<()> {
    let dir = project.join(".mlx");
    match OS {
        "linux" => linux(project, &dir),
        "macos" => macos(&dir),
        other => Err(Failure::new(format!("MLX is not released for {other}")).remedy("use Linux or macOS")),
    }
}

/// The message for a processor that MLX has no build for.
pub fn unsupported(arch: &str) -> Failure {
    Failure::new(format!("MLX is not released for {arch} on Linux")).remedy("use an x86_64 or aarch64 machine")
}

/// Writes a file unless it already says so, by renaming: other programs see the old text or the new.
pub fn write_if_new(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let tmp = path.with_extension("tmp");
    fs::write(&tmp, text).doing(format_args!("writing {}", tmp.display()))?;
    fs::rename(&tmp, path).doing(format_args!("writing {}", path.display()))
}

fn linux(project: &Path, dir: &Path) -> Result<()> {
    if !matches!(ARCH, "x86_64" | "aarch64") {
        return Err(unsupported(ARCH));
    }
    if cfg!(target_env = "musl") {
        return Err(Failure::new("MLX is released for glibc, and this Rust builds for musl")
            .remedy("use a distribution with glibc 2.35 or newer (Debian 12, Ubuntu 22.04)"));
    }
    fs::create_dir_all(dir).doing(format_args!("creating {}", dir.display()))?;
    let lock = fs::File::create(dir.join("lock")).doing("creating .mlx/lock")?;
    lock.lock().doing("waiting for another set-up to finish")?;

    let choice = Choice::find(dir)?;
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let home = dir.join(key(&choice));
    if !home.is_dir() {
        check_glibc()?;
        let partial = dir.join("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).doing("removing what an interrupted set-up left")?;
        }
        build(&choice, project, &partial, &triple)?;
        fs::rename(&partial, &home).doing(format_args!("moving the result to {}", home.display()))?;
    }
    write_if_new(&dir.join("cargo.toml"), &link_override(&home, &triple)?)?;
    choice.remember(dir)
}

/// Fills `root` with the library, its BLAS, the compiled mlx-c and the bindings.
fn build(choice: &Choice, project: &Path, root: &Path, triple: &str) -> Result<()> {
    let start = Instant::now();
    let step = |text: &str| eprintln!("  [{:5.1} s] {text}", start.elapsed().as_secs_f32());
    let (wheel_dir, tmp) = (root.join("wheel"), root.join("tmp"));
    fs::create_dir_all(&tmp).doing(format_args!("creating {}", tmp.display()))?;

    step("looking for the mlx-sys crate");
    let source = mlxc::sources(project, triple)?;
    step(&format!("downloading {}", choice.backend.wheels().title));
    wheel::install(choice.backend.wheels(), &wheel_dir)?;
    if choice.blas == Blas::Open {
        step(&format!("downloading {}", wheel::OPENBLAS.title));
    }
    blas::install(&choice.blas, &wheel_dir, &tmp)?;
    step("compiling mlx-c");
    mlxc::copy_headers(&source, &root.join("include"))?;
    mlxc::compile(&source, &wheel_dir.join("mlx/include"), &root.join("lib"), &tmp, triple)?;
    step(&format!("generating bindings with {}", wheel::LIBCLANG.title));
    bindings::generate(&source, &root.join("out"), &tmp)?;
    fs::remove_dir_all(&tmp).doing(format_args!("removing {}", tmp.display()))?;
    step("MLX is ready");
    Ok(())
}

/// The directory name of a choice.
fn key(choice: &Choice) -> String {
    format!("{}-{MLX}-{}-r{RECIPE}", choice.backend.name(), choice.blas.key())
}

/// The text of `.mlx/cargo.toml`.
///
/// `include`, `defines` and `version` reach the host's build script as `DEP_MLX_*`, exactly as
/// mlx-sys publishes them on macOS; `libdir` is ours. Paths must be absolute, so moving the
/// checkout changes this text and nothing else.
fn link_override(home: &Path, triple: &str) -> Result<String> {
    let path = |sub: &str| home.join(sub).display().to_string();
    let [lib, mlx_lib, out] = ["lib", "wheel/mlx/lib", "out"].map(path);
    let include = format!("{}:{}", path("wheel/mlx/include"), path("include"));
    Ok(format!(
        "# Written by `make setup`; ignored by git. Delete .mlx to start over.\n\
         [target.{triple}.mlx]\n\
         rustc-link-search = [{}, {}]\n\
         rustc-link-lib = [\"static=mlxc\", \"dylib=mlx\", \"dylib=stdc++\"]\n\
         rustc-env = {{ OUT_DIR = {} }}\n\
         include = {}\n\
         defines = \"\"\n\
         version = \"{MLX}\"\n\
         libdir = {}\n",
        quoted(&format!("native={lib}"))?,
        quoted(&format!("native={mlx_lib}"))?,
        quoted(&out)?,
        quoted(&include)?,
        quoted(&mlx_lib)?,
    ))
}

/// A path as a TOML string.
fn quoted(path: &str) -> Result<String> {
    // The replacement character stands where a path is not UTF-8.
    if path.contains(|c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER) {
        return Err(Failure::new(format!("the path {path:?} cannot be written to Cargo's configuration"))
            .remedy("move the checkout to a directory with a plain name"));
    }
    Ok(format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// The released library wants glibc 2.35; pip's own message does not say so.
fn check_glibc() -> Result<()> {
    let text = command::output(Command::new("getconf").arg("GNU_LIBC_VERSION")).unwrap_or_default();
    match glibc_version(&text) {
        Some(v) if v < (2, 35) => Err(Failure::new(format!("glibc {}.{} is too old for MLX {MLX}", v.0, v.1))
            .remedy("use a distribution with glibc 2.35 or newer (Debian 12, Ubuntu 22.04)")),
        _ => Ok(()),
    }
}

/// Reads "glibc 2.36".
fn glibc_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}

/// mlx-sys builds MLX with cmake, which Xcode does not bring: fetch one where there is none, and
/// name it to the build through Cargo's `[env]`.
fn macos(dir: &Path) -> Result<()> {
    let choice = std::env::var("MLX_BACKEND").unwrap_or_default();
    if !matches!(choice.as_str(), "" | "cpu" | "metal") {
        return Err(Failure::new(format!("MLX_BACKEND={choice} is for Linux"))
            .remedy("unset it: on macOS MLX runs on Metal, or on the CPU where there is no Apple GPU"));
    }
    let own: PathBuf = dir.join("cmake/cmake/data/bin/cmake");
    if !own.is_file() {
        if command::succeeds(command::program("CMAKE", "cmake").arg("--version")) {
            return Ok(());
        }
        eprintln!("  downloading {}", wheel::CMAKE.title);
        wheel::install(&wheel::CMAKE, &dir.join("cmake"))?;
    }
    let text =
        format!("# Written by `make setup`; ignored by git.\n[env]\nCMAKE = {}\n", quoted(&own.display().to_string())?);
    write_if_new(&dir.join("cargo.toml"), &text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::backend::Backend;

    #[test]
    fn the_override_names_every_key() {
        let text = link_override(Path::new("/a b/.mlx/k"), "x86_64-unknown-linux-gnu").unwrap();
        for line in [
            "[target.x86_64-unknown-linux-gnu.mlx]",
            "rustc-link-search = [\"native=/a b/.mlx/k/lib\", \"native=/a b/.mlx/k/wheel/mlx/lib\"]",
            "rustc-env = { OUT_DIR = \"/a b/.mlx/k/out\" }",
            "include = \"/a b/.mlx/k/wheel/mlx/include:/a b/.mlx/k/include\"",
            "libdir = \"/a b/.mlx/k/wheel/mlx/lib\"",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
        }
    }

    #[test]
    fn paths_are_escaped_or_refused() {
        assert_eq!(quoted("/a\"b\\c").unwrap(), "\"/a\\\"b\\\\c\"");
        assert!(quoted("/a\nb").is_err());
        assert!(quoted("/a\u{FFFD}b").is_err());
    }

    #[test]
    fn keys_tell_choices_apart() {
        let of = |backend, blas| key(&Choice { backend, blas });
        assert_eq!(of(Backend::Cpu, Blas::Open), format!("cpu-{MLX}-openblas-{OPENBLAS}-r{RECIPE}"));
        assert_ne!(of(Backend::Cpu, Blas::Open), of(Backend::Cuda13, Blas::Open));
        assert_ne!(of(Backend::Cpu, Blas::Open), of(Backend::Cpu, Blas::Reference));
    }

    #[test]
    fn glibc_versions_are_read() {
        assert_eq!(glibc_version("glibc 2.36\n"), Some((2, 36)));
        assert_eq!(glibc_version("glibc 2.9.1"), Some((2, 9)));
        assert_eq!(glibc_version("musl"), None);
    }
}
