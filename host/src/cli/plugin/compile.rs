//! `plastic-host plugin compile`: not for people. The host starts it to compile a plugin in a process
//! of its own, whose time and memory are limited.

use crate::plugin::{Limits, precompile};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Options of `plugin compile`: what the code must be compiled for, and within what.
#[derive(clap::Args, Debug)]
pub struct CompileArgs {
    /// The plugin
    file: PathBuf,
    /// Where to write the native code
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Stack of the guest
    #[arg(long)]
    stack_bytes: usize,
    /// Code that counts fuel
    #[arg(long)]
    fuel: bool,
    /// Code of deterministic mode
    #[arg(long)]
    deterministic: bool,
    /// Time to compile in
    #[arg(long)]
    seconds: u64,
    /// Memory to compile in
    #[arg(long)]
    bytes: u64,
}

/// Runs the verb. An error is told in the words of the compiler alone: the host reads them.
pub fn run(args: &CompileArgs) -> ExitCode {
    let limits = Limits {
        stack_bytes: args.stack_bytes,
        fuel: args.fuel.then_some(1),
        deterministic: args.deterministic,
        compile_time: Duration::from_secs(args.seconds),
        compile_bytes: args.bytes,
        ..Limits::default()
    };
    match precompile(&args.file, &args.out, &limits) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            note!("{why}");
            ExitCode::FAILURE
        }
    }
}
