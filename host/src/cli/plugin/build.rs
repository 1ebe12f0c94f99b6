//! `plastic-host plugin build`.

use super::inspect::Report;
use super::kib;
use crate::cli::Global;
use crate::model::paths;
use crate::plugin::{Loader, Rules, build};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `plugin build`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host plugin build examples/top-heavy
  plastic-host plugin build plugins/energy -o plugins/energy.wasm

A Rust crate is built for wasm32-unknown-unknown, with the profile `plugin` where its workspace has one.
C, Python and JavaScript are built as plugin.toml says; what that needs is fetched once into the cache.")]
pub struct BuildArgs {
    /// Directory of the plugin's project
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Where to write the component [default: <package>.wasm in DIR]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the verb.
pub fn run(args: &BuildArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let mut progress = |text: &str| {
        if !g.quiet {
            note!("{text}");
        }
    };
    let artifact = build::build_with(&args.dir, args.out.as_deref(), &mut progress)?;
    let report = Report::of(artifact, &Loader::new(Rules::default(), paths::cache_dir()))?;
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
