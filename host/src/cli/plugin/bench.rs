//! `plastic-host plugin bench`.

use super::{kib, kind_of};
use crate::cli::{Global, locate, rules::RuleArgs, table};
use crate::plugin::bench::{self, Candidate, Effort, Figures, Stage};
use crate::plugin::check::span;
use crate::plugin::{Kind, Loader, Rules, options};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Options of `plugin bench`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host plugin bench plugins/entropy.wasm
  plastic-host plugin bench my-policy.wasm --against my-policy-before.wasm --seconds 20
  valgrind --tool=callgrind plastic-host plugin bench my-policy.wasm --calls 2000 --shape 210x576

Shown beside the shipped reference plugin (energy, or perplexity). `the call` is the time of the plugin's
`decide` with its data going in and out; `all of it` adds what the host does around it: checking the plan
and taking the snapshot. The time limit is on.")]
pub struct BenchArgs {
    /// The plugin: a file, or a name on the plugin path
    file: PathBuf,
    /// Another plugin of the same kind to show beside it
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// An option of the plugin, as in a run; one it does not have is left out for the others
    #[arg(long = "opt", value_name = "NAME=VALUE")]
    opts: Vec<String>,
    /// Seconds to measure each plugin
    #[arg(long, default_value_t = 5.0, value_name = "S")]
    seconds: f64,
    /// One load and exactly so many calls, of this plugin alone: the same work every time, to count instructions of
    #[arg(long, value_name = "N", conflicts_with_all = ["seconds", "against"], value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    calls: Option<u32>,
    /// Policies decide on a made-up model of so many slices of such a rank, in place of the three usual ones
    #[arg(long, value_name = "SLICESxRANK", value_parser = shape)]
    shape: Option<(u32, u32)>,
    #[command(flatten)]
    rules: RuleArgs,
}

/// `SLICESxRANK`, as many values at most as the largest of the usual models.
fn shape(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once(['x', '×']).and_then(|(n, r)| Some((n.parse().ok()?, r.parse().ok()?)));
    match parsed {
        Some((n @ 1..=10_000, r @ 1..=65_536)) if n * r <= 640_000 => Ok((n, r)),
        _ => Err("give slices x rank, such as 210x576: 1 to 10000 slices and 640000 values at most".into()),
    }
}

/// Runs the verb.
pub fn run(args: &BenchArgs, g: &Global) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        (0.01..=3600.0).contains(&args.seconds),
        "--seconds is {}; it must be between 0.01 and 3600",
        args.seconds
    );
    let rules = args.rules.over(Rules::default())?;
    let scratch = tempfile::tempdir().context("no place for compiled code while it is measured")?;
    let loader = Loader::new(rules.clone(), Some(scratch.path().to_owned()));
    let file = locate::plugin(&args.file, Some(&loader))?;
    let kind = kind_of(&loader, &file)?;
    let mut candidates = vec![candidate(&loader, &file, kind, &args.opts, true)?];
    if let Some(other) = &args.against {
        candidates.push(candidate(&loader, &locate::plugin(other, Some(&loader))?, kind, &args.opts, false)?);
    }
    let reference = match kind {
        Kind::Policy => "energy",
        Kind::Evaluator => "perplexity",
    };
    let reference = locate::plugin(Path::new(reference), None);
    // Without the shipped plugins there is nothing to stand beside; the rest is measured all the same.
    if let Ok(reference) = reference
        && args.calls.is_none()
        && !candidates.iter().any(|c| same_file(&c.path, &reference))
    {
        candidates.push(Candidate { path: reference, options: serde_json::json!({}) });
    }
    let effort = match args.calls {
        Some(calls) => Effort::Calls(calls as usize),
        None => Effort::Time(Duration::from_secs_f64(args.seconds)),
    };
    let shapes = args.shape.map_or(bench::SHAPES.to_vec(), |shape| vec![shape]);
    let figures = bench::run(&candidates, kind, &rules, scratch.path(), &shapes, effort)?;
    match g.json {
        true => say!("{}", serde_json::json!({"kind": kind, "machine": machine(), "plugins": figures})),
        false => say!("{}", text(&figures)),
    }
    Ok(ExitCode::SUCCESS)
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// A plugin with the options it takes; `strictly` refuses those it does not.
fn candidate(loader: &Loader, path: &Path, kind: Kind, opts: &[String], strictly: bool) -> anyhow::Result<Candidate> {
    let info = match kind {
        Kind::Policy => loader.policy(path)?.info().clone(),
        Kind::Evaluator => loader.evaluator(path)?.info().clone(),
    };
    let fits = |o: &&String| strictly || options::from_pairs(&info, &[o]).is_ok();
    let opts: Vec<&String> = opts.iter().filter(fits).collect();
    let options = options::from_pairs(&info, &opts).map_err(|m| anyhow::anyhow!("{}: {m}", path.display()))?;
    Ok(Candidate { path: path.to_owned(), options })
}

fn text(figures: &[Figures]) -> String {
    let mut headers = vec![String::new()];
    headers.extend(figures.iter().map(|f| format!("{}\n{}", f.name, f.file.display())));
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let right: Vec<usize> = (1..headers.len()).collect();
    let mut table = table::plain(&headers, &right);
    let stages = figures.first().map_or(&[][..], |f| &f.stages);
    for (i, stage) in stages.iter().enumerate() {
        let mut row = vec![stage.name.clone()];
        row.extend(figures.iter().map(|f| f.stages.get(i).map_or_else(String::new, cell)));
        table.add_row(row);
    }
    let mut row = vec!["peak memory".to_owned()];
    row.extend(figures.iter().map(|f| f.peak_memory.map_or_else(|| "-".into(), kib)));
    table.add_row(row);
    format!("{table}\nmedian, in brackets the least and what 95 of 100 stay below; {}", machine())
}

fn cell(stage: &Stage) -> String {
    let at = |seconds: f64| span(Duration::from_secs_f64(seconds));
    match (&stage.time, &stage.refused) {
        (Some(t), _) => format!("{} ({} .. {})", at(t.median), at(t.min), at(t.p95)),
        (None, Some(why)) => format!("refused: {}", why.chars().take(40).collect::<String>()),
        (None, None) => "-".into(),
    }
}

/// The machine the figures are from.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    let noun = if cores == 1 { "core" } else { "cores" };
    format!("{model}, {cores} {noun}, {}", std::env::consts::OS)
}
