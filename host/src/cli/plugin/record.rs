//! `plastic-host plugin record`: what a run's policies saw, as one file.

use crate::cli::Global;
use crate::plastic::journal::Journal;
use crate::plastic::portable::Portable;
use crate::plastic::rundir::RunError;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `plugin record`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host plugin record runs/small -o small.json
  plastic-host plugin replay my-policy.wasm small.json

The file holds everything the policies of that run saw; neither the model nor the run is needed any more.")]
pub struct RecordArgs {
    /// Directory of the run
    run: PathBuf,
    /// Where to write the recording
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
}

/// Runs the verb.
pub fn run(args: &RecordArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let journal = args.run.join("journal.jsonl");
    if !journal.is_file() {
        return Err(RunError::NoRun { path: args.run.clone() }.into());
    }
    let recording = Portable::of_run(&args.run, &Journal::read(&journal)?)?;
    let bytes = serde_json::to_vec(&recording)?;
    crate::atomic::write_file(&args.out, &bytes)?;
    let (steps, slices) = (recording.steps.len(), recording.slices.len());
    match g.json {
        true => {
            say!("{}", serde_json::json!({ "file": args.out, "steps": steps, "slices": slices, "bytes": bytes.len() }))
        }
        false if g.quiet => {}
        false => say!("{}: {steps} steps, {slices} slices, {}", args.out.display(), super::kib(bytes.len() as u64)),
    }
    Ok(ExitCode::SUCCESS)
}
