//! `plastic-host bench …`: measurements of what the program is made of.

mod memory;
mod speed;
mod speed_view;

use super::Global;
use std::process::ExitCode;

/// Options of `bench`.
#[derive(clap::Args, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Bytes, error and time of one weight: float32, quantised, and factored at several ranks
    Memory(Box<memory::MemoryArgs>),
    /// Speed and memory of a model: scoring, first token, decoding, factored slices
    Speed(Box<speed::SpeedArgs>),
}

/// Runs a benchmark.
///
/// # Errors
/// When what it measures cannot be had.
pub fn run(args: &BenchArgs, g: &Global) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Memory(args) => memory::run(args, g),
        What::Speed(args) => speed::run(args, g),
    }
}
