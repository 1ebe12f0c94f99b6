//! mlx-c, the C face of MLX that mlx-sys binds: found inside the mlx-sys crate, compiled here.

use crate::command;
use crate::failure::{Doing, Failure, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The release of mlx-sys whose sources this recipe knows.
const MLX_SYS: &str = "0.7.0";

/// Force-included before everything, see the comments in the files.
const HALF: &str = include_str!("../native/half.h");
const FORMAT: &str = include_str!("../native/format_compat.h");
/// What mlx-rs expects from Apple's libc.
const COMPAT: &str = include_str!("../native/linux_compat.cpp");

/// The mlx-c sources that travel inside the mlx-sys crate; Cargo downloads it if need be.
pub fn sources(project: &Path, triple: &str) -> Result<PathBuf> {
    let text = command::output(
        command::program("CARGO", "cargo")
            .args(["metadata", "--format-version", "1", "--filter-platform", triple])
            .current_dir(project),
    )
    .map_err(|e| {
        Failure::new(format!("looking for the mlx-sys crate: {e}"))
            .remedy("where Cargo could not download, check the network (`cargo fetch` does the same) and try again")
    })?;
    let json: serde_json::Value = serde_json::from_str(&text).doing("reading cargo's metadata")?;
    let packages = json["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let package = packages
        .iter()
        .find(|p| p["name"] == "mlx-sys")
        .ok_or_else(|| Failure::new("this workspace does not depend on mlx-sys"))?;
    if package["version"] != MLX_SYS {
        return Err(Failure::new(format!("mlx-sys {} is in use, this recipe is for {MLX_SYS}", package["version"]))
            .remedy("raise mlx-sys, the pinned wheels and RECIPE in host/setup together"));
    }
    let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
    let root = manifest.with_file_name("src").join("mlx-c");
    match root.join("mlx/c").is_dir() {
        true => Ok(root),
        false => Err(Failure::new(format!("{} is missing from the mlx-sys crate", root.display()))
            .remedy("delete that crate's directory from Cargo's registry and try again")),
    }
}

/// mlx-c's files with one extension, in a fixed order.
pub fn files(source: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let dir = source.join("mlx/c");
    let entries = fs::read_dir(&dir).doing(format_args!("reading {}", dir.display()))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == extension)).collect();
    files.sort();
    Ok(files)
}

/// Copies the headers to `include`, so that nothing points into Cargo's registry afterwards.
pub fn copy_headers(source: &Path, include: &Path) -> Result<()> {
    let to = include.join("mlx/c");
    fs::create_dir_all(&to).doing(format_args!("creating {}", to.display()))?;
    for header in files(source, "h")? {
        let name = header.file_name().unwrap_or_default();
        fs::copy(&header, to.join(name)).doing(format_args!("copying {}", header.display()))?;
    }
    Ok(())
}

/// Writes the headers of ours that are force-included, and names them.
pub fn write_shims(tmp: &Path) -> Result<[PathBuf; 2]> {
    let (format, half) = (tmp.join("format_compat.h"), tmp.join("half.h"));
    fs::write(&format, FORMAT).doing(format_args!("writing {}", format.display()))?;
    fs::write(&half, HALF).doing(format_args!("writing {}", half.display()))?;
    Ok([format, half])
}

/// Compiles mlx-c into `lib/libmlxc.a`, against the MLX headers in `mlx_include`.
///
/// All files in one translation unit: 7 s instead of 34 s on two cores, since parsing MLX's headers
/// is nearly all the work. No cmake is needed.
pub fn compile(source: &Path, mlx_include: &Path, lib: &Path, tmp: &Path, triple: &str) -> Result<()> {
    let unit = tmp.join("mlxc_unity.cpp");
    let mut text: String = files(source, "cpp")?.iter().map(|f| format!("#include \"{}\"\n", f.display())).collect();
    text += COMPAT;
    fs::write(&unit, text).doing(format_args!("writing {}", unit.display()))?;
    let [format, half] = write_shims(tmp)?;
    fs::create_dir_all(lib).doing(format_args!("creating {}", lib.display()))?;
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .target(triple)
        .host(triple)
        .opt_level(1)
        .debug(false)
        .warnings(false)
        .pic(true)
        .cpp_link_stdlib(None)
        .cargo_metadata(false)
        .out_dir(tmp)
        .include(source)
        .include(mlx_include)
        .flag("-Wno-psabi")
        // MLX's error texts name the mlx-c source line: short, and the same on every machine.
        .flag(format!("-ffile-prefix-map={}=mlx-c", source.display()))
        .flag(format!("-ffile-prefix-map={}=mlx", mlx_include.display()))
        .flag(format!("-ffile-prefix-map={}=setup", tmp.display()))
        .file(&unit);
    for shim in [format, half] {
        build.flag("-include").flag(shim);
    }
    build.try_compile("mlxc").map_err(|e| {
        Failure::new(format!("compiling mlx-c: {e}"))
            .remedy("run `make setup`, which checks the compiler; it must know C++20 (g++ 10, clang 12 or newer)")
    })?;
    fs::rename(tmp.join("libmlxc.a"), lib.join("libmlxc.a")).doing("moving libmlxc.a")
}
