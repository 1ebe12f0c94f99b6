//! C: bindings made from the contract, one call of a C compiler, then the component encoding.
//!
//! The compiler is Zig's (clang with a libc for WASI), installed once; `PLASTIC_WASI_CC` names
//! another one, such as `clang --target=wasm32-wasi --sysroot=/usr` with Debian's wasi-libc.

use super::project::Project;
use super::sdk::{DIRECTORY, WIT, world};
use super::{BuildError, compile, read, scratch, tools, write};
use crate::plugin::Kind;
use crate::plugin::component::{API_VERSION, encode};
use std::path::Path;
use std::process::Command;
use wit_bindgen_core::{Files, wit_parser::Resolve};

/// The environment variable that names another C compiler for WASI.
const COMPILER: &str = "PLASTIC_WASI_CC";

/// What speaks the canonical ABI on behalf of a plugin in C.
pub(super) struct Bindings {
    pub header: String,
    pub source: String,
    /// An object file with nothing but the description of the world.
    pub world: Vec<u8>,
}

/// Makes the bindings of one kind of plugin. Both kinds use the same names, which the SDK's C
/// files rely on: `plastic_string_t`, `plastic_policy_...`, `plastic_judge_...`, `plastic_measure_...`.
pub(super) fn bindings(kind: Kind) -> Result<Bindings, BuildError> {
    let failed = |e: &dyn std::fmt::Display| BuildError::Encode { path: "rank.wit".into(), why: format!("{e:#}") };
    let mut resolve = Resolve::default();
    let package = resolve.push_str("rank.wit", WIT).map_err(|e| failed(&e))?;
    let world = resolve.select_world(&[package], Some(world(kind))).map_err(|e| failed(&e))?;
    let interfaces: &[&str] = match kind {
        Kind::Policy => &["types", "host", "policy"],
        Kind::Evaluator => &["types", "host", "measure", "judge"],
    };
    let rename = interfaces.iter().map(|i| (format!("plastic:rank/{i}@{API_VERSION}"), format!("plastic_{i}")));
    let options = wit_bindgen_c::Opts {
        rename: rename.collect(),
        rename_world: Some("plastic".into()),
        ..wit_bindgen_c::Opts::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files).map_err(|e| failed(&e))?;
    let mut bindings = Bindings { header: String::new(), source: String::new(), world: Vec::new() };
    for (name, bytes) in files.iter() {
        let text = || String::from_utf8_lossy(bytes).into_owned();
        match name {
            "plastic.h" => bindings.header = text(),
            "plastic.c" => bindings.source = text(),
            _ => bindings.world = bytes.to_vec(),
        }
    }
    Ok(bindings)
}

/// Builds the project in `dir`, whose SDK is in place.
pub(super) fn build(dir: &Path, project: &Project, progress: &mut dyn FnMut(&str)) -> Result<Vec<u8>, BuildError> {
    let scratch = scratch()?;
    let (world, module) = (scratch.path().join("world.o"), scratch.path().join("module.wasm"));
    write(&world, &bindings(project.kind)?.world)?;
    let sdk = match project.kind {
        Kind::Policy => "policy.c",
        Kind::Evaluator => "evaluator.c",
    };
    let mut cc = compiler(progress)?;
    cc.args(["-std=c11", "-O3", "-msimd128", "-Wall", "-Wextra", "-s", "-mexec-model=reactor"]).arg("-I").arg(dir);
    for (name, value) in
        [("PLASTIC_NAME", &project.name), ("PLASTIC_VERSION", &project.version), ("PLASTIC_SUMMARY", &project.summary)]
    {
        cc.arg(format!("-D{name}={}", literal(value)));
    }
    cc.arg(dir.join(&project.source));
    cc.args([sdk, "common.c", "plastic.c"].map(|file| dir.join(DIRECTORY).join(file)));
    cc.arg(&world).arg("-o").arg(&module);
    compile(&mut cc, dir, "the C compiler", "install it, or correct PLASTIC_WASI_CC")?;
    encode(&read(&module)?).map_err(|why| BuildError::Encode { path: dir.to_owned(), why })
}

/// The C compiler, up to its flags.
fn compiler(progress: &mut dyn FnMut(&str)) -> Result<Command, BuildError> {
    if let Ok(named) = std::env::var(COMPILER) {
        let mut words = named.split_whitespace();
        if let Some(program) = words.next() {
            let mut cc = Command::new(program);
            cc.args(words);
            return Ok(cc);
        }
    }
    let mut zig = tools::ZIG.command(progress)?;
    let cache = tools::directory().join("zig-cache");
    if !cache.is_dir() {
        progress("compiling the C library for WebAssembly (20 s, once)");
    }
    zig.env("ZIG_GLOBAL_CACHE_DIR", &cache).env("ZIG_LOCAL_CACHE_DIR", &cache);
    zig.args(["-m", "ziglang", "cc", "-target", "wasm32-wasi"]);
    Ok(zig)
}

/// A C string literal. The manifest allows no control characters.
fn literal(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
