//! `plastic-host plugin serve`: the child of `--isolate`. Not for people: it speaks with its parent
//! over the socket it is given as standard input.

use crate::plugin::Kind;
use crate::plugin::native::isolate::{Served, serve};
use anyhow::Context;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `plugin serve`.
#[derive(clap::Args, Debug)]
pub struct ServeArgs {
    /// The library
    file: PathBuf,
    /// What it is: policy or evaluator
    #[arg(long, value_parser = kind)]
    kind: Kind,
    /// Bytes it may use
    #[arg(long, value_name = "BYTES")]
    memory: usize,
    /// Bytes it may hand over at once
    #[arg(long, value_name = "BYTES")]
    transfer: usize,
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "policy" => Ok(Kind::Policy),
        "evaluator" => Ok(Kind::Evaluator),
        _ => Err("expected policy or evaluator".into()),
    }
}

/// Runs the verb.
pub fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let (library, kind) = (args.file.clone(), args.kind);
    let served = Served { library, kind, memory_bytes: args.memory, transfer_bytes: args.transfer };
    serve(&served).context("`plugin serve` is started by plastic-host itself, for --isolate")?;
    Ok(ExitCode::SUCCESS)
}
