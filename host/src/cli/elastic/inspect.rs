//! `plastic-host elastic inspect`.

use super::figure;
use crate::cli::{Global, show, table, ui};
use crate::compress::inspect::{Inspection, Point};
use crate::compress::{Manifest, inspect, picture, restore};
use crate::model::hash;
use crate::plastic::factor::Metric;
use anyhow::bail;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `elastic inspect`.
#[derive(clap::Args, Debug)]
pub struct InspectArgs {
    /// The elastic checkpoint
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Draw what smaller budgets cost, as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Compare every file with what was written, and the base with what was compressed
    #[arg(long)]
    verify: bool,
}

/// The document of --json.
#[derive(serde::Serialize)]
struct Document<'a> {
    dir: &'a Path,
    base: &'a crate::compress::settings::BaseRecord,
    self_contained: bool,
    factor_bits: u32,
    share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<&'a crate::compress::manifest::Measured>,
    /// Whether files and base were compared; anything else than equal is an error.
    verified: bool,
    #[serde(flatten)]
    facts: &'a Inspection,
}

/// Inspects.
///
/// # Errors
/// When the directory is no elastic checkpoint, is damaged, or --verify finds a difference.
pub fn run(args: &InspectArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let m = Manifest::open(&args.dir)?;
    let facts = inspect::inspect(&args.dir, &m)?;
    if args.verify {
        verify(&args.dir, &m, g)?;
    }
    if let Some(file) = &args.svg
        && let Some(name) = file.file_name()
        && args.dir.join(name).is_file()
        && file.canonicalize().ok() == args.dir.join(name).canonicalize().ok()
        && file.extension().is_none_or(|e| e != "svg")
    {
        bail!("--svg {}: is a file of the checkpoint; name another", file.display());
    }
    if let Some(file) = &args.svg {
        let name = args.dir.canonicalize().unwrap_or_else(|_| args.dir.clone());
        let name = name.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        crate::atomic::write_file(file, picture::svg(&name, &facts).as_bytes())?;
    }
    if g.json {
        let document = Document {
            dir: &args.dir,
            base: &m.settings.base,
            self_contained: m.settings.self_contained,
            factor_bits: m.settings.factor_bits,
            share: m.share,
            measured: m.measured.as_ref(),
            verified: args.verify,
            facts: &facts,
        };
        say!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(ExitCode::SUCCESS);
    }
    if !g.quiet {
        say!("{}", kinds(&facts));
    }
    summary(args, &m, &facts);
    if !g.quiet {
        curve(&facts);
        if let Some(file) = &args.svg {
            say!("drawn to    {}", file.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Hashes every file; of a self-contained checkpoint also the base that it parks.
fn verify(dir: &Path, m: &Manifest, g: &Global) -> anyhow::Result<()> {
    let bar = ui::byte_bar(g, m.files.values().map(|f| f.bytes).sum(), "hashing");
    for (name, part) in &m.files {
        let path = dir.join(name);
        let found = hash::sha256_file(&path, &mut |n| bar.inc(n))?;
        if found != part.sha256 {
            bar.finish_and_clear();
            bail!(
                "{}: has changed since it was written (SHA-256 {found}, elastic.json says {}); compress the base again, or copy the directory anew",
                path.display(),
                part.sha256
            );
        }
    }
    bar.finish_and_clear();
    match m.settings.self_contained {
        true => Ok(restore::verify(dir, m)?),
        false => Ok(m.check_base()?),
    }
}

fn kinds(facts: &Inspection) -> comfy_table::Table {
    let headers = ["slices", "number", "dense now", "components stored", "awake", "stored", "awake now"];
    let mut rows = table::plain(&headers, &[1, 2, 3, 4, 5, 6]);
    for k in &facts.kinds {
        let percent = |n: u64| format!("{:.1} %", 100.0 * n as f64 / k.parameters.max(1) as f64);
        rows.add_row([
            k.kind.clone(),
            k.slices.to_string(),
            k.dense.to_string(),
            k.components.to_string(),
            k.components_awake.to_string(),
            percent(k.parameters_planned),
            percent(k.parameters_awake),
        ]);
    }
    rows
}

fn summary(args: &InspectArgs, m: &Manifest, facts: &Inspection) {
    let awake: u64 = facts.kinds.iter().map(|k| k.parameters_awake).sum();
    let all = m.parameters();
    let percent = 100.0 * awake as f64 / all.max(1) as f64;
    match facts.awake_budget {
        Some(budget) => say!(
            "awake       {percent:.1} % of {} parameters (budget {}; {} are stored)",
            show::millions(all),
            figure(budget),
            figure(m.share)
        ),
        None => say!("awake       the base itself, bit for bit; `plastic-host elastic set` goes back"),
    }
    match &facts.bytes {
        Some(b) => {
            say!(
                "on disk     {}: {} awake, {} parked",
                show::megabytes(facts.disk),
                show::megabytes(b.disk_awake),
                show::megabytes(b.disk_parked)
            );
            say!("in memory   {} as loaded", show::megabytes(b.memory));
        }
        None => say!("on disk     {}", show::megabytes(facts.disk)),
    }
    let base = &m.settings.base;
    match (&facts.base_problem, m.settings.self_contained) {
        (None, _) => say!("base        {} in {}, as it was compressed", base.id, base.dir.display()),
        (Some(_), true) => {
            say!("base        {}, parked here in full (not in {} any more)", base.id, base.dir.display())
        }
        (Some(problem), false) => say!("base        {}: {problem}", base.id),
    }
    if args.verify {
        say!("verified    every file is what was written");
    }
    if let Some(x) = &m.measured {
        say!("measured    perplexity {:.2} -> {:.2} with all that is stored awake", x.before, x.after);
    }
}

/// The curve in the terminal.
fn curve(facts: &Inspection) {
    const WIDTH: f64 = 40.0;
    let unit = match facts.order {
        Metric::Fisher => "predicted rise of the loss, nats per token",
        _ => "half the energy that sleeps",
    };
    say!("\n budget   awake   {unit}");
    let most = facts.curve.iter().map(|p| p.loss).fold(f64::MIN_POSITIVE, f64::max);
    for p in &facts.curve {
        let Point { budget, parameters, loss } = *p;
        let bar = "█".repeat((WIDTH * loss / most).ceil().max(1.0) as usize);
        say!("{budget:7.3} {:>9}  {bar} {}", show::millions(parameters), picture::short(loss));
    }
}
