//! Prepares a checkout of plastic-host: `make` calls this program, and so can you.
//!
//! It is compiled before anything else, so it depends on nothing that needs preparing. Every verb
//! can be run again at any time: what is done is left alone. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod backend;
mod bindings;
mod blas;
mod command;
mod failure;
mod mlx;
mod mlxc;
mod plugins;
mod suite;
mod system;
mod wheel;

use failure::{Doing, Failure, Result};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
Prepares a checkout of plastic-host.

Usage: plastic-setup VERB

  system        Check compilers, python and the Rust WASM target; install what is missing
  mlx           Put MLX, a BLAS and their Rust bindings into .mlx (Linux)
                  MLX_BACKEND=cpu|cuda|cuda12|cuda13   build of MLX, kept until changed (cpu)
                  MLX_BLAS=openblas|reference|FILE     its BLAS, kept until changed (openblas)
  plugins       Build the plugins whose sources changed, with target/release/plastic-host
  test [ARG]... Run all tests and print one total; arguments go to `cargo test`

docs/setup.md says more.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let verb = arguments.first().map_or("", String::as_str);
    let rest = arguments.get(1..).unwrap_or_default();
    let result = match (verb, rest) {
        ("system", []) => project().and_then(|p| system::run(&p)).map(|()| true),
        ("mlx", []) => project().and_then(|p| mlx::run(&p)).map(|()| true),
        ("plugins", []) => project().and_then(|p| plugins::run(&p)).map(|()| true),
        ("test", _) => project().and_then(|p| suite::run(&p, rest)),
        ("help" | "-h" | "--help", _) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// The checkout that the current directory lies in.
fn project() -> Result<PathBuf> {
    let here = std::env::current_dir().doing("finding the current directory")?;
    here.ancestors()
        .find(|d| d.join("host/setup/Cargo.toml").is_file())
        .map(PathBuf::from)
        .ok_or_else(|| Failure::new(format!("{} is not in a checkout of plastic-host", here.display())))
}
