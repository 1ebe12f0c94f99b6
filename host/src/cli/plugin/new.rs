//! `plastic-host plugin new`.

use crate::cli::{Global, locate};
use crate::plugin::Kind;
use crate::plugin::build::project::Lang;
use crate::plugin::scaffold::{Scaffold, make};
use clap::ValueEnum;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `plugin new`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host plugin new top-heavy --kind policy --lang rust
  plastic-host plugin new my-check --kind evaluator --lang python plugins-of-mine/my-check

The project builds with `plastic-host plugin build` and has a test in its own language.")]
pub struct NewArgs {
    /// Name of the plugin: lower-case letters, digits and `-`
    name: String,
    /// What it does: decide on ranks, or judge the changed model
    #[arg(long, value_enum, default_value = "policy")]
    kind: KindArg,
    /// What it is written in
    #[arg(long, value_enum, default_value = "rust")]
    lang: LangArg,
    /// Where to make it; must not be there or be empty [default: NAME]
    dir: Option<PathBuf>,
    /// Rust: the SDK, directory `plugin-api` of plastic-host's source [default: the one beside this installation]
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArg {
    Policy,
    Evaluator,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LangArg {
    Rust,
    C,
    Python,
    Javascript,
}

/// Runs the verb.
pub fn run(args: &NewArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let kind = match args.kind {
        KindArg::Policy => Kind::Policy,
        KindArg::Evaluator => Kind::Evaluator,
    };
    let lang = match args.lang {
        LangArg::Rust => Lang::Rust,
        LangArg::C => Lang::C,
        LangArg::Python => Lang::Python,
        LangArg::Javascript => Lang::Javascript,
    };
    let shipped = || locate::shipped("plugin-api/Cargo.toml").and_then(|p| p.parent().map(PathBuf::from));
    let sdk = if lang == Lang::Rust { args.sdk.clone().or_else(shipped) } else { None };
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let article = if kind == Kind::Policy { "a" } else { "an" };
    let made = make(&Scaffold { name: args.name.clone(), kind, lang, sdk: sdk.clone() }, &dir)?;
    if g.json {
        say!(
            "{}",
            serde_json::json!({"dir": dir, "kind": kind, "files": made.files, "source": made.source, "test": made.test})
        );
    } else if !g.quiet {
        say!("{}: {article} {kind} in {lang}; begin with {}", dir.display(), dir.join(&made.source).display());
        if let Some(sdk) = sdk {
            say!("  its Cargo.toml takes the SDK from {}", sdk.canonicalize().unwrap_or(sdk).display());
        }
        say!("  plastic-host plugin build {}", dir.display());
        say!("  (cd {} && {})", dir.display(), made.test);
    }
    Ok(ExitCode::SUCCESS)
}
