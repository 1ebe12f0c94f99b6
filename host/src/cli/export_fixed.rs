//! `plastic-host export --materialise` and `--pivoted`: an elastic checkpoint as a fixed one.

use super::export::ExportArgs;
use super::interrupt::Interrupt;
use super::{Global, ui};
use crate::compress::fixed::Fixed;
use crate::compress::manifest::Manifest;
use crate::compress::materialise::{self, Storage, Tally};
use crate::compress::pivoted;
use crate::compress::{Error, Result};
use crate::model::{Level, LoadOptions, Model};
use anyhow::bail;
use indicatif::DecimalBytes;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The document of --json of --materialise.
#[derive(Serialize)]
struct Materialised {
    materialise: PathBuf,
    /// Share of the slices' parameters that was awake; `null` for a checkpoint that is not elastic.
    share: Option<f64>,
    storage: Storage,
    slices: Tally,
    /// Of the weights.
    bytes: u64,
    out: PathBuf,
}

/// The document of --json of --pivoted.
#[derive(Serialize)]
struct Pivoted {
    pivoted: PathBuf,
    /// Share of the slices' parameters.
    share: f64,
    parameters: u64,
    /// Share that as many components would have as factors.
    share_as_factors: f64,
    bits: u32,
    /// Slices that stay dense.
    dense: usize,
    largest_coefficient: f64,
    /// Slices whose rank is as large as what is stored allows.
    capped: usize,
    /// Of the weights.
    bytes: u64,
    out: PathBuf,
    /// The level of each slice.
    levels: crate::model::Levels,
}

/// Writes the fixed checkpoint.
///
/// # Errors
/// When the source is none, a number cannot be used, or the directory cannot be written.
pub fn run(args: &ExportArgs, g: &Global) -> anyhow::Result<ExitCode> {
    if let Some(share) = args.awake_budget.filter(|s| !(*s > 0.0 && *s <= 1.0)) {
        bail!("--awake-budget {share}: a share lies above 0 and up to 1");
    }
    let interrupt = Interrupt::listen()?;
    let done = match (&args.materialise, &args.pivoted) {
        (Some(dir), _) => dense(args, dir, &interrupt, g)?,
        (None, Some(dir)) => larger(args, dir, &interrupt, g)?,
        (None, None) => bail!("name a checkpoint, such as --materialise DIR"),
    };
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Error::Stopped) => {
            ui::fail(&Error::Stopped.into(), g);
            Ok(ExitCode::from(130))
        }
        Err(e) => Err(e.into()),
    }
}

fn storage(args: &ExportArgs) -> anyhow::Result<Storage> {
    match args.bits {
        None | Some(16) => Ok(Storage::Half),
        Some(32) => Ok(Storage::Float),
        Some(bits @ (2..=6 | 8)) => Ok(Storage::Packed { bits, group_size: args.group_size.unwrap_or(64) }),
        Some(bits) => bail!("--bits {bits}: MLX quantises to 2, 3, 4, 5, 6 or 8 bits; 16 and 32 are floats"),
    }
}

/// Runs `work` under a progress bar.
fn watched<T>(
    what: &'static str,
    interrupt: &Interrupt,
    g: &Global,
    work: impl FnOnce(&mut dyn FnMut(usize, usize) -> bool) -> Result<T>,
) -> Result<T> {
    let bar = ui::bar(g, 1, what);
    let result = work(&mut |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        !interrupt.raised()
    });
    bar.finish_and_clear();
    result
}

/// That the new directory loads.
fn loads(interrupt: &Interrupt) -> impl FnOnce(&Path) -> Result<()> {
    let raised = interrupt.raised();
    move |dir| {
        if raised {
            return Err(Error::Stopped);
        }
        Model::load(dir, &LoadOptions::default())?;
        Ok(())
    }
}

fn dense(args: &ExportArgs, dir: &Path, interrupt: &Interrupt, g: &Global) -> anyhow::Result<Result<()>> {
    let storage = storage(args)?;
    let manifest = Manifest::read(dir)?;
    let levels = match (&manifest, args.awake_budget) {
        (None, Some(_)) => bail!("{}: is no elastic checkpoint, so it has no --awake-budget", dir.display()),
        (None, None) => None,
        (Some(m), Some(share)) => Some(m.levels(dir, share)?),
        (Some(m), None) if m.runs_base => bail!(
            "{}: runs its base now; give an --awake-budget, or write the base with `plastic-host elastic wake --all --out`",
            dir.display()
        ),
        (Some(m), None) => Some(m.current()),
    };
    let share = manifest.as_ref().zip(levels.as_deref()).map(|(m, l)| share_of(m, l));
    let levels = manifest.as_ref().zip(levels).map(|(m, l)| m.named(&l));
    crate::pack::fuse::free(&args.out, dir, args.force)?;
    let model = Model::load(dir, &LoadOptions { levels, parked: false })?;
    let names: Vec<String> = model.slices().iter().map(|s| s.name.clone()).collect();
    let make = || -> Result<(Tally, u64)> {
        let mut fixed = Fixed::new(dir, names.iter().map(String::as_str), &args.out, args.force)?;
        let tally = watched("multiplying slices out", interrupt, g, |watch| {
            materialise::materialise(&model, storage, &mut fixed, watch)
        })?;
        drop(model);
        Ok((tally, fixed.finish(loads(interrupt))?))
    };
    let (slices, bytes) = match make() {
        Ok(made) => made,
        Err(e) => return Ok(Err(e)),
    };
    let done = Materialised { materialise: dir.to_owned(), share, storage, slices, bytes, out: args.out.clone() };
    if g.json {
        say!("{}", serde_json::to_string_pretty(&done)?);
        return Ok(Ok(()));
    }
    if let Some(share) = share {
        say!("awake      {:.1} % of the slices' parameters", 100.0 * share);
    }
    say!(
        "slices     {} multiplied out to floats, {} quantised, {} copied as they are",
        slices.floats,
        slices.quantised,
        slices.copied
    );
    written(args, bytes, g);
    Ok(Ok(()))
}

fn larger(args: &ExportArgs, dir: &Path, interrupt: &Interrupt, g: &Global) -> anyhow::Result<Result<()>> {
    let bits = args.bits.unwrap_or(16);
    if ![4, 8, 16].contains(&bits) {
        bail!("--bits {bits}: pivoted slices are stored in 4, 8 or 16");
    }
    let manifest = Manifest::open(dir)?;
    let share = args.awake_budget.unwrap_or_else(|| share_of(&manifest, &manifest.current()));
    let plan = pivoted::plan(&manifest, dir, share)?;
    crate::pack::fuse::free(&args.out, dir, args.force)?;
    if plan.capped > 0 && !g.quiet {
        note!(
            "note: {} slices have the rank of all components that are stored, and {:.1} % of the budget are left; `compress --ladder full` stores all",
            plan.capped,
            100.0 * (plan.budget - plan.parameters) as f64 / plan.budget.max(1) as f64
        );
    }
    let levels = Some(manifest.named(&manifest.planned()));
    let mut model = Model::load(dir, &LoadOptions { levels, parked: true })?;
    let names: Vec<String> = manifest.stored.iter().map(|s| s.name.clone()).collect();
    let make = || -> Result<(f64, u64)> {
        let mut fixed = Fixed::new(dir, names.iter().map(String::as_str), &args.out, args.force)?;
        let largest = watched("choosing rows", interrupt, g, |watch| {
            pivoted::store(&mut model, &names, &plan, bits, &mut fixed, watch)
        })?;
        drop(model);
        Ok((largest, fixed.finish(loads(interrupt))?))
    };
    let (largest, bytes) = match make() {
        Ok(made) => made,
        Err(e) => return Ok(Err(e)),
    };
    let all = manifest.parameters().max(1) as f64;
    let done = Pivoted {
        pivoted: dir.to_owned(),
        share: plan.parameters as f64 / all,
        parameters: plan.parameters,
        share_as_factors: manifest.awake_parameters(&plan.levels) as f64 / all,
        bits,
        dense: plan.levels.iter().filter(|l| **l == Level::Dense).count(),
        largest_coefficient: largest,
        capped: plan.capped,
        bytes,
        out: args.out.clone(),
        levels: manifest.named(&plan.levels),
    };
    if g.json {
        say!("{}", serde_json::to_string_pretty(&done)?);
        return Ok(Ok(()));
    }
    say!("kept       {:.1} % of the slices' parameters", 100.0 * done.share);
    say!("ranks      as many components as factors would be {:.1} %", 100.0 * done.share_as_factors);
    say!("slices     {} pivoted, {} dense", plan.levels.len() - done.dense, done.dense);
    written(args, bytes, g);
    Ok(Ok(()))
}

/// Share of the slices' parameters that levels keep awake.
fn share_of(m: &Manifest, levels: &[Level]) -> f64 {
    m.awake_parameters(levels) as f64 / m.parameters().max(1) as f64
}

fn written(args: &ExportArgs, bytes: u64, g: &Global) {
    if !g.quiet {
        say!("written to {} ({})", args.out.display(), DecimalBytes(bytes));
    }
}
