//! `plastic-host elastic`: what an elastic checkpoint holds, and how much of it is awake.

mod inspect;

use super::awake::share;
use super::{Global, show};
use crate::atomic::Lock;
use crate::compress::{Manifest, inspect as facts, restore};
use crate::model::awake;
use crate::plastic::factor::Metric;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `elastic`.
#[derive(clap::Args, Debug)]
pub struct ElasticArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Debug)]
enum Verb {
    /// Show what is stored, what of it is awake, and what smaller budgets would cost
    #[command(after_help = INSPECT_EXAMPLES)]
    Inspect(inspect::InspectArgs),
    /// Set how much is awake when the checkpoint is loaded
    #[command(after_help = SET_EXAMPLES)]
    Set(SetArgs),
    /// Have the base back, bit for bit
    #[command(after_help = WAKE_EXAMPLES)]
    Wake(WakeArgs),
}

const INSPECT_EXAMPLES: &str = "\
Examples:
  plastic-host elastic inspect small
  plastic-host elastic inspect small --svg curve.svg
  plastic-host elastic inspect small --verify               hashes every file
  plastic-host elastic inspect small --json | jq .curve";

const SET_EXAMPLES: &str = "\
Examples:
  plastic-host elastic set small --awake-budget 0.5         the components that matter least sleep
  plastic-host elastic set small --awake-budget 1           everything that is stored is awake again

Nothing is written but elastic.json. For one command alone, give --awake-budget to generate, eval or run.";

const WAKE_EXAMPLES: &str = "\
Examples:
  plastic-host elastic wake small --all                     small runs its base from now on
  plastic-host elastic wake small --all --out base2         writes the base, byte for byte
  plastic-host elastic set small --awake-budget 0.6         and back

The base is read from its own directory, or from what `compress --self-contained` parked of it.";

/// Options of `elastic set`.
#[derive(clap::Args, Debug)]
struct SetArgs {
    /// The elastic checkpoint
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Share of the slices' parameters that is awake; 1: all that is stored
    #[arg(long, value_name = "SHARE", value_parser = share)]
    awake_budget: f64,
}

/// Options of `elastic wake`.
#[derive(clap::Args, Debug)]
struct WakeArgs {
    /// The elastic checkpoint
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Everything: the base as it was compressed
    #[arg(long, required = true)]
    all: bool,
    /// Write the base to this directory, instead of running it in the place of the checkpoint
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace a checkpoint at --out
    #[arg(long, requires = "out")]
    force: bool,
}

/// Runs the verb.
///
/// # Errors
/// When the directory is no elastic checkpoint or damaged, a budget is too small, or the base cannot be had.
pub fn run(args: &ElasticArgs, g: &Global) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Inspect(a) => inspect::run(a, g),
        Verb::Set(a) => set(a, g),
        Verb::Wake(a) => wake(a, g),
    }
}

/// One process at a time changes a checkpoint.
fn locked(dir: &Path) -> anyhow::Result<Lock> {
    Manifest::open(dir)?;
    let place = dir.canonicalize().with_context(|| dir.display().to_string())?;
    match Lock::try_of_directory(&place)? {
        Some(lock) => Ok(lock),
        None => bail!("{}: is being changed by another process; wait for it to end", dir.display()),
    }
}

/// How a budget reads in a sentence.
fn shown(m: &Manifest) -> String {
    match m.runs_base {
        true => "the base itself".into(),
        false => format!("awake budget {}", figure(m.awake_budget)),
    }
}

/// A share without the digits that say nothing.
pub(super) fn figure(share: f64) -> String {
    let text = format!("{share:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn set(args: &SetArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let _lock = locked(&args.dir)?;
    let mut m = Manifest::open(&args.dir)?;
    let before = shown(&m);
    m.set(&args.dir, args.awake_budget)?;
    let (parameters, all) = (m.awake_parameters(&m.current()), m.parameters());
    let loss = facts::half_lost(&m.rungs(&args.dir)?, &m.current());
    let bytes = facts::bytes(&args.dir, &m)?;
    if g.json {
        say!(
            "{}",
            serde_json::json!({
                "dir": args.dir, "awake_budget": m.awake_budget, "parameters_awake": parameters, "parameters": all,
                "order": m.order, "loss": loss, "bytes": bytes,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{}: awake budget {}: {} of {} parameters of the slices ({:.1} %), {} in memory",
        args.dir.display(),
        figure(m.awake_budget),
        show::millions(parameters),
        show::millions(all),
        100.0 * parameters as f64 / all.max(1) as f64,
        show::megabytes(bytes.memory)
    );
    if !g.quiet {
        if m.order == Metric::Fisher {
            say!("predicted   loss {loss:+.4} nats per token over the base");
        }
        say!("before      {before}");
        if args.awake_budget > m.share + 1e-9 {
            say!(
                "note        {} is all that is stored here; `plastic-host elastic wake {} --all` has the base back",
                figure(m.share),
                args.dir.display()
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn wake(args: &WakeArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let _lock = locked(&args.dir)?;
    let mut m = Manifest::open(&args.dir)?;
    let base = m.settings.base.clone();
    let from = match m.settings.self_contained {
        true => args.dir.join(awake::PARKED),
        false => base.dir.clone(),
    };
    match &args.out {
        None => m.wake(&args.dir)?,
        Some(out) => {
            crate::pack::fuse::free(out, &base.dir, args.force)?;
            if out.canonicalize().is_ok_and(|o| args.dir.canonicalize().is_ok_and(|d| d == o)) {
                bail!(
                    "{}: is the elastic checkpoint itself; name another directory, or leave --out out",
                    out.display()
                );
            }
            let lock = Lock::try_of_directory(out)?;
            let _lock = lock.with_context(|| {
                format!("{}: is being written by another process; wait for it to end", out.display())
            })?;
            restore::restore(&args.dir, &m, out)?;
        }
    }
    if g.json {
        say!(
            "{}",
            serde_json::json!({
                "dir": args.dir, "out": args.out, "base": base.id, "sha256": base.sha256, "from": from,
                "runs_base": m.runs_base,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    match &args.out {
        None => say!("{} runs {} from now on, bit for bit, read from {}", args.dir.display(), base.id, from.display()),
        Some(out) => say!("{} is {}, byte for byte, from {}", out.display(), base.id, from.display()),
    }
    if !g.quiet {
        say!("SHA-256     {} as it was compressed", base.sha256);
        if args.out.is_none() {
            say!("back        plastic-host elastic set {} --awake-budget {}", args.dir.display(), figure(m.share));
        }
    }
    Ok(ExitCode::SUCCESS)
}
