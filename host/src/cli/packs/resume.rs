//! `plastic-host packs resume`: goes on with an unfinished training.

use super::{Global, training};
use crate::pack::Store;
use std::process::ExitCode;

/// Options of `packs resume`.
#[derive(clap::Args, Debug)]
#[command(override_usage = "plastic-host packs resume [OPTIONS] <NAME>")]
pub struct ResumeArgs {
    /// Name of the pack
    #[arg(value_name = "NAME", required_unless_present = "named", conflicts_with = "named")]
    name: Option<String>,
    /// Name of the pack
    #[arg(long = "name", value_name = "NAME", id = "named", hide = true)]
    named: Option<String>,
    /// Delete the unfinished training in the place of going on
    #[arg(long)]
    discard: bool,
}

/// Goes on with a training; it ends as if it had never stopped.
///
/// # Errors
/// When there is none, or what it depends on has changed.
pub fn run(a: &ResumeArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let name = a.name.as_ref().or(a.named.as_ref()).map_or("", String::as_str);
    match a.discard {
        true => training::discard(name, store, g),
        false => training::resume(name, store, g),
    }
}
