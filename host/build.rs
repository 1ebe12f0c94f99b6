//! Compiles the CPU kernels against MLX's headers and tells the linker where libmlx lives.
//!
//! `DEP_MLX_*` comes from mlx-sys: from its own build script on macOS, from the links override that
//! `make setup` writes on Linux. Both publish the same keys; only Linux adds `LIBDIR`. On macOS MLX's
//! own kernels are fast, so nothing is compiled.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=native");
    println!("cargo:rerun-if-env-changed=DEP_MLX_INCLUDE");
    if let Ok(dir) = std::env::var("DEP_MLX_LIBDIR") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/mlx/lib:{dir}");
    }
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        kernels();
    }
}

/// The primitives once, their inner loops (`native/isa`) once per instruction set. No `-march=native`:
/// which loops run is decided at run time.
fn kernels() {
    let Some(include) = std::env::var_os("DEP_MLX_INCLUDE") else {
        println!("cargo:warning=MLX's headers are not known: run `make setup` first");
        std::process::exit(1);
    };
    let mut primitives = compiler();
    for dir in std::env::split_paths(&include) {
        primitives.flag("-isystem").flag(dir);
    }
    for define in std::env::var("DEP_MLX_DEFINES").unwrap_or_default().split_whitespace() {
        match define.split_once('=') {
            Some((name, value)) => primitives.define(name, value),
            None => primitives.define(define, None),
        };
    }
    primitives.files(
        [
            "arrays",
            "attention",
            "attention_grad",
            "cached_attention",
            "divergence",
            "gemm",
            "head",
            "layer",
            "norm_rope",
            "pool",
            "product",
            "projection",
            "swiglu",
            "token_nll",
        ]
        .map(|f| format!("native/{f}.cpp")),
    );
    primitives.compile("plastic_kernels");

    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64");
    let sets: &[(&str, &[&str])] = if x86 {
        &[
            ("scalar", &[]),
            ("avx2", &["-march=x86-64-v3"]),
            ("avx512", &["-march=x86-64-v4", "-mprefer-vector-width=512"]),
        ]
    } else {
        &[("scalar", &[])]
    };
    for (name, flags) in sets {
        let mut c = compiler();
        c.flag("-ffp-contract=fast").flag("-fno-exceptions").flag("-Wno-psabi").define("PK_ISA", *name);
        // GCC's own headers of intrinsics begin some results uninitialised
        c.flag("-Wno-uninitialized").flag("-Wno-maybe-uninitialized").flags(*flags);
        // one source, several objects: each in a folder of its own
        c.out_dir(PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join(name));
        c.file("native/isa/table.cpp").compile(&format!("plastic_kernels_{name}"));
    }
}

fn compiler() -> cc::Build {
    let mut c = cc::Build::new();
    c.cpp(true).std("c++20").opt_level(3).debug(false).warnings(true).extra_warnings(true).flag("-fno-math-errno");
    c
}
