//! `plastic-host packs import`.

use super::{Global, base};
use crate::mlx;
use crate::model::{LoadOptions, Model, layout};
use crate::pack::attach;
use crate::pack::exchange::{self, Format};
use crate::pack::format::VERSION;
use crate::pack::{Meta, Profile, Store};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `packs import`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs import adapters --name sql --base smollm2-135m
  plastic-host packs import ./peft-adapter --format peft --name sql --base ./model --profile heavy

Adapters of other programs are usually float32; a pack holds float16. What rounding costs is said.")]
pub struct ImportArgs {
    /// Directory of the adapter: its tensors and adapter_config.json
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Name of the new pack
    #[arg(long)]
    name: String,
    /// Base model it was made for: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short)]
    base: Option<String>,
    /// Layout [default: by the files that are there]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// How large it may be
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Free text to keep with it
    #[arg(long, default_value = "")]
    notes: String,
    /// Replace a pack of this name
    #[arg(long)]
    force: bool,
}

/// Makes a pack of an adapter.
///
/// # Errors
/// When the adapter is damaged or holds what a pack cannot, does not fit the base, or the pack cannot be written.
pub fn run(args: &ImportArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    store.free(&args.name, args.force)?;
    let meta = Meta {
        pack_name: args.name.clone(),
        base_hash: String::new(),
        base_model: String::new(),
        profile: args.profile,
        rank_map: Default::default(),
        alpha_map: Default::default(),
        target_layers: Vec::new(),
        training_data: None,
        training_config: serde_json::Value::Null,
        created_at: crate::plastic::step::now(),
        notes: args.notes.clone(),
        version: VERSION.into(),
    };
    // The files first: they are cheap to read and likely to be wrong.
    let mut made = exchange::import(&args.dir, args.format, &meta)?;
    mlx::device::init()?;
    let base = base::open(&args.base, g)?;
    match made.pack.meta.base_hash.is_empty() {
        true => {
            made.pack.meta.base_hash = layout::checkpoint_hash(&base.dir)?;
            made.pack.meta.base_model = base.id.clone();
        }
        // What this program exported says what it was made for.
        false => attach::check_base(&made.pack, &base.dir)?,
    }
    let model = Model::load(&base.dir, &LoadOptions::default())?;
    attach::prepare(&model, &[(&made.pack, 1.0)])?;
    let dir = store.put(&made.pack, args.force, &store.lock(&args.name)?)?;
    if g.json {
        let document = serde_json::json!({
            "pack": args.name, "dir": dir, "base": base.id, "adapters": made.pack.adapters.len(),
            "total_rank": made.pack.total_rank(), "bytes": made.pack.nbytes(), "imported": made,
        });
        say!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "{}: made of an adapter of {}: {} adapters of rank {} in all, {:.2} MB, for {}",
        args.name,
        made.format.name(),
        made.pack.adapters.len(),
        made.pack.total_rank(),
        made.pack.nbytes() as f64 / 1e6,
        base.id
    );
    if !g.quiet {
        match (made.native, made.rounded) {
            (true, _) => say!("the same pack that was exported, to the bit"),
            (false, 0) => say!("every number fits float16: nothing was lost"),
            _ => {}
        }
        made.notes.iter().for_each(|n| say!("{n}"));
    }
    Ok(ExitCode::SUCCESS)
}
