//! Rust declarations of mlx-c, generated as mlx-sys's own build script does.

use crate::command;
use crate::failure::{Doing, Failure, Result};
use crate::{mlxc, wheel};
use std::fs;
use std::path::{Path, PathBuf};

/// What mlx-rs uses and mlx-c declares on Arm only, unless our `half.h` did its work.
const MUST_HAVE: &[&str] = &["fn mlx_array_item_float16", "struct __BindgenFloat16", "fn mlx_array_data_bfloat16"];

/// Writes `out/bindings.rs` for the mlx-c in `source`.
pub fn generate(source: &Path, out: &Path, tmp: &Path) -> Result<()> {
    let py = tmp.join("libclang");
    wheel::install(&wheel::LIBCLANG, &py)?;
    // SAFETY: this program has one thread.
    unsafe { std::env::set_var("LIBCLANG_PATH", py.join("clang/native")) };

    let [_, half] = mlxc::write_shims(tmp)?;
    let mut builder = bindgen::Builder::default()
        .rust_target("1.73.0".parse().doing("choosing bindgen's Rust version")?)
        .clang_args(["-include", &half.to_string_lossy()])
        .clang_arg(format!("-I{}", source.display()))
        .clang_args(["-idirafter", &compiler_headers()?.to_string_lossy()])
        .blocklist_function("malloc")
        .blocklist_function("realloc");
    for header in mlxc::files(source, "h")? {
        builder = builder.header(header.to_string_lossy());
    }
    let text = builder.generate().doing("generating the bindings of mlx-c")?.to_string();
    if let Some(missing) = MUST_HAVE.iter().find(|m| !text.contains(**m)) {
        return Err(Failure::new(format!("the generated bindings lack `{missing}`"))
            .remedy("this recipe and mlx-sys disagree: please report it with the output of `cc --version`"));
    }
    fs::create_dir_all(out).doing(format_args!("creating {}", out.display()))?;
    fs::write(out.join("bindings.rs"), text).doing("writing bindings.rs")
}

/// Where the C compiler keeps stddef.h and its like, which the libclang wheel does not bring.
fn compiler_headers() -> Result<PathBuf> {
    let ask = |option: &str| command::output(command::program("CC", "cc").arg(option));
    let gcc = PathBuf::from(ask("-print-file-name=include")?.trim());
    if gcc.join("stddef.h").is_file() {
        return Ok(gcc);
    }
    let clang = PathBuf::from(ask("-print-resource-dir")?.trim()).join("include");
    match clang.join("stddef.h").is_file() {
        true => Ok(clang),
        false => Err(Failure::new("the C compiler does not say where its stddef.h lies")
            .remedy("install gcc, or name it with CC=gcc")),
    }
}
