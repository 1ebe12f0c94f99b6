//! The command line: one file a verb; parsing and printing only.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by an evaluator or guardrail.

/// `println!` that survives a closed or full standard output.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::ui::write_out(format_args!($($text)*)) };
}
/// `eprintln!` that survives a closed standard error.
macro_rules! note {
    ($($text:tt)*) => { $crate::cli::ui::write_note(format_args!($($text)*)) };
}

mod again;
mod awake;
mod base;
mod bench;
mod chat;
mod completions;
mod compress;
mod demo;
mod demo_view;
mod doctor;
mod elastic;
mod eval;
mod export;
mod export_fixed;
mod fetching;
mod generate;
mod generate_many;
mod interrupt;
mod locate;
mod matrix;
mod model;
mod packs;
mod plugin;
mod ranks;
mod replay;
mod resume;
mod rules;
mod run;
mod session;
mod show;
mod subject;
mod table;
mod trust;
mod ui;
mod undo;
mod watched;

use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;

/// Options every verb takes.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// Print one JSON document on standard output instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress, no notes; errors and results only
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Use what is on this machine and fetch nothing; HF_HUB_OFFLINE=1 does the same
    #[arg(long, global = true)]
    pub offline: bool,
    /// More detail on standard error (-v, -vv); RUST_LOG overrides
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Runs language models on MLX with rank that can sleep and wake, decided by plugins.
#[derive(Parser, Debug)]
#[command(name = "plastic-host", version, about, args_conflicts_with_subcommands = true, args_override_self = true, after_help = run::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: run::RunArgs,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Run the sleep/wake loop of a policy on a model (what the program does with no verb)
    Run(Box<run::RunArgs>),
    /// Continue a run that was interrupted
    Resume(resume::ResumeArgs),
    /// Take a run back to the state after an earlier step
    Undo(undo::UndoArgs),
    /// Show what happened in a run
    Replay(replay::ReplayArgs),
    /// Generate text
    Generate(Box<generate::GenerateArgs>),
    /// Watch rank follow a load that rises and falls, on a real model
    Demo(Box<demo::DemoArgs>),
    /// Measure perplexity on a text
    Eval(Box<eval::EvalArgs>),
    /// Compress a model into an elastic checkpoint, whose capacity can shrink and regrow
    Compress(Box<compress::CompressArgs>),
    /// Inspect an elastic checkpoint, set how much of it is awake, wake its base
    Elastic(elastic::ElasticArgs),
    /// Fetch, import, inspect and list models
    Model(model::ModelArgs),
    /// Train, inspect, apply, evaluate and exchange skill packs
    Packs(Box<packs::PacksArgs>),
    /// Write one weight as a file of quantised low-rank factors, and back
    Export(Box<export::ExportArgs>),
    /// Measure bytes, error and time of a weight in each of its forms
    Bench(bench::BenchArgs),
    /// Build, inspect, list, lock and sign plugins
    Plugin(plugin::PluginArgs),
    /// Check this machine: MLX, BLAS, memory, models, tools
    Doctor(doctor::DoctorArgs),
    /// Print shell completions
    Completions(completions::CompletionsArgs),
}

/// Entry point of the program.
pub fn main() -> ExitCode {
    crate::calm::install();
    let cli = Cli::parse();
    ui::init(&cli.global);
    let g = &cli.global;
    if g.offline {
        crate::model::hub::switch_off();
    }
    let result = match &cli.verb {
        None => run::run(&cli.run, g),
        Some(Verb::Run(a)) => run::run(a, g),
        Some(Verb::Resume(a)) => resume::run(a, g),
        Some(Verb::Undo(a)) => undo::run(a, g),
        Some(Verb::Replay(a)) => replay::run(a, g),
        Some(Verb::Generate(a)) => generate::run(a, g),
        Some(Verb::Demo(a)) => demo::run(a, g),
        Some(Verb::Eval(a)) => eval::run(a, g),
        Some(Verb::Compress(a)) => compress::run(a, g),
        Some(Verb::Elastic(a)) => elastic::run(a, g),
        Some(Verb::Model(a)) => model::run(a, g),
        Some(Verb::Packs(a)) => packs::run(a, g),
        Some(Verb::Export(a)) => export::run(a, g),
        Some(Verb::Bench(a)) => bench::run(a, g),
        Some(Verb::Plugin(a)) => plugin::run(a, g),
        Some(Verb::Doctor(a)) => doctor::run(a, g),
        Some(Verb::Completions(a)) => completions::run(a, g),
    };
    ui::finish(match result {
        Ok(code) => code,
        Err(e) => ui::fail(&e, g),
    })
}
