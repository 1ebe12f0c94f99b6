//! `plastic-host plugin verify`.

use crate::atomic;
use crate::cli::{Global, locate, trust};
use crate::plugin::signature::{self, State};
use anyhow::{Context, bail};
use std::path::PathBuf;
use std::process::ExitCode;

/// No plugin is larger.
const MOST_BYTES: u64 = 1 << 30;

/// Options of `plugin verify`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Exit code 0 where a key in question signed exactly this file, 1 otherwise. Nothing of the file is run.

Examples:
  plastic-host plugin verify my-policy.wasm --key alice.pub
  plastic-host plugin verify my-policy.wasm --key RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3
  plastic-host plugin verify my-policy.wasm          with the keys you trust")]
pub struct VerifyArgs {
    /// The plugin: a file, or a name on the plugin path; its signature lies beside it, as FILE.minisig
    file: PathBuf,
    /// Public key: a .pub file of minisign, or the key itself; may be repeated [default: your trusted keys]
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
}

/// Runs the verb.
pub fn run(args: &VerifyArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let file = locate::plugin(&args.file, None)?;
    let keys = match args.key.is_empty() {
        true => trust::users_keys()?,
        false => args.key.iter().map(|k| trust::key(k).context("--key")).collect::<anyhow::Result<_>>()?,
    };
    if keys.is_empty() {
        bail!("{}", trust::no_keys());
    }
    let bytes = atomic::read_bounded(&file, MOST_BYTES).with_context(|| file.display().to_string())?;
    let state = signature::check(&file, &bytes, &keys);
    let good = matches!(state, State::Signed { .. });
    if g.json {
        say!(
            "{}",
            serde_json::json!({ "file": file, "sha256": crate::model::hash::sha256(&bytes), "verified": good, "signature": state })
        );
    } else if let State::Signed { by, comment } = &state {
        say!("{}: signed by {by}", file.display());
        if !g.quiet {
            comment.split('\t').for_each(|part| say!("  {}", part.replacen(':', " ", 1)));
        }
    }
    if good {
        return Ok(ExitCode::SUCCESS);
    }
    let expected: Vec<String> = keys.iter().map(ToString::to_string).collect();
    note!("error: {}: {state}; expected a signature of {}", file.display(), expected.join(" or "));
    Ok(ExitCode::FAILURE)
}
