//! `plastic-host plugin build`.

use super::inspect::Report;
use super::kib;
use crate::cli::Global;
use crate::model::paths;
use crate::plugin::{Loader, Rules, build, build_native};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `plugin build`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host plugin build examples/top-heavy
  plastic-host plugin build plugins/energy -o plugins/energy.wasm
  plastic-host plugin build plugins/energy --native -o energy.so

A Rust crate is built for wasm32-unknown-unknown, with the profile `plugin` where its workspace has one.
C, Python and JavaScript are built as plugin.toml says; what that needs is fetched once into the cache.")]
pub struct BuildArgs {
    /// Directory of the plugin's project
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where to write the component [default: <package>.wasm in DIR]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Build a native library (.so, .dylib) instead, for hosts that load it with --allow-native
    #[arg(long)]
    native: bool,
}

/// Runs the verb.
pub fn run(args: &BuildArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let mut progress = |text: &str| {
        if !g.quiet {
            note!("{text}");
        }
    };
    let artifact = match args.native {
        true => build_native::build_native(&args.dir, args.out.as_deref())?,
        false => build::build_with(&args.dir, args.out.as_deref(), &mut progress)?,
    };
    // Whoever builds it runs it: the compiler ran the crate's build scripts and macros already.
    let rules = Rules { allow_native: args.native, ..Rules::default() };
    let report = Report::of(artifact, &Loader::new(rules, paths::cache_dir()))?;
    match g.json {
        true => say!("{}", report.json()),
        false if g.quiet => {}
        false => say!(
            "{}: {} {} ({}), {}",
            report.artifact.path.display(),
            report.info.name,
            report.info.version,
            report.artifact.kind,
            kib(report.artifact.size)
        ),
    }
    Ok(ExitCode::SUCCESS)
}
