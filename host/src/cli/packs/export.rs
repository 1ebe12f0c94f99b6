//! `plastic-host packs export`.

use super::{Global, output};
use crate::pack::Store;
use crate::pack::exchange::{self, Format};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `packs export`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs export shakespeare --format mlx-lm --out adapters/shakespeare
  mlx_lm.generate --model MODEL --adapter-path adapters/shakespeare --prompt 'Shall I compare thee'
  plastic-host packs export shakespeare --format peft --out peft/shakespeare

`packs import` of what was exported gives the same pack, to the bit.")]
pub struct ExportArgs {
    /// Name of the pack
    #[arg(value_name = "NAME", required_unless_present = "name", conflicts_with = "name")]
    pack: Option<String>,
    /// The same, as an option
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Layout
    #[arg(long, value_enum)]
    format: Format,
    /// Directory to write
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// Replace an adapter that is there
    #[arg(long)]
    force: bool,
}

/// Writes a pack in another layout.
///
/// # Errors
/// When the pack is not there or damaged, the layout cannot hold it, or the directory cannot be written.
pub fn run(args: &ExportArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let name = args.pack.as_ref().or(args.name.as_ref()).map_or("", String::as_str);
    output::check_directory(store, "--out", &args.out)?;
    let pack = store.read(name)?;
    let made = exchange::export(&pack, args.format, &args.out, args.force)?;
    if g.json {
        say!("{}", serde_json::to_string_pretty(&serde_json::json!({ "pack": name, "exported": made }))?);
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{}: {} as {}: {} adapters of rank {} at most, {:.2} MB",
        made.dir.display(),
        name,
        made.format.name(),
        made.adapters,
        made.rank,
        made.bytes as f64 / 1e6
    );
    if !g.quiet {
        made.notes.iter().for_each(|n| say!("{n}"));
    }
    Ok(ExitCode::SUCCESS)
}
