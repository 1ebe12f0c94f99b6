//! `plastic-host undo`.

use super::Global;
use crate::plastic::journal::{Event, History, Journal, JournalError};
use crate::plastic::rundir::RunDir;
use crate::plastic::step;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `undo`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  plastic-host undo runs/small --to 1     the state after step 1 is current again\n  plastic-host undo runs/small --to 0     everything awake: the base itself\n\nNothing is deleted: a later `undo --to 3` goes forward again."
)]
pub struct UndoArgs {
    /// Directory of the run
    pub run: PathBuf,
    /// Committed step to go to; 0 is the base, with everything awake
    #[arg(long, value_name = "STEP")]
    pub to: u32,
}

/// Makes an earlier (or later) committed state current.
pub fn run(args: &UndoArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let dir = RunDir::open(&args.run)?;
    let mut journal = Journal::open(&dir.journal())?;
    if args.to != 0 && journal.events().committed(args.to).is_none() {
        let steps: Vec<String> =
            journal.events().steps().filter(|s| s.state.is_some()).map(|s| s.step.to_string()).collect();
        let committed = if steps.is_empty() { "none".into() } else { format!("0 (the base), {}", steps.join(", ")) };
        return Err(JournalError::NoStep { path: dir.journal(), step: args.to, committed }.into());
    }
    let from = journal.events().current().map_or(0, |s| s.step);
    journal.append(Event::Undo { time: step::now(), to: args.to })?;
    let parameters = match journal.events().committed(args.to) {
        Some(s) => s.after.parameters,
        None => journal.events().run().map_or(0, |r| r.parameters),
    };
    if g.json {
        say!("{}", serde_json::json!({ "run": args.run, "from": from, "to": args.to, "parameters": parameters }));
    } else {
        let what = if args.to == 0 {
            "the base, with everything awake,".into()
        } else {
            format!("the state of step {}", args.to)
        };
        say!("{what} is current in {} ({} parameters awake)", args.run.display(), super::show::millions(parameters));
    }
    Ok(ExitCode::SUCCESS)
}
