//! Compiles the CPU kernels against MLX's headers and tells the linker where libmlx lives.
//!
//! `DEP_MLX_*` comes from mlx-sys: from its own build script on macOS, from the links override that
//! `make setup` writes on Linux. Both publish the same keys; only Linux adds `LIBDIR`.

fn main() {
    println!("cargo:rerun-if-changed=native");
    println!("cargo:rerun-if-env-changed=DEP_MLX_INCLUDE");
    if let Ok(dir) = std::env::var("DEP_MLX_LIBDIR") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib/mlx/lib:{dir}");
    }
}
