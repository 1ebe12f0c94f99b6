//! `plastic-host compress`: from a base to an elastic checkpoint.

mod args;
mod report;

pub use args::CompressArgs;
pub(super) use args::group;

use super::interrupt::Interrupt;
use super::locate::Purpose;
use super::{Global, base, locate, session, ui};
use crate::compress::Error;
use crate::compress::job::{Job, Stage};
use crate::compress::manifest::Measured;
use crate::compress::residual;
use crate::compress::settings::{BaseRecord, Calibration, Chooser, Coarse, Settings, Svd};
use crate::compress::work::{self, Work};
use crate::eval::data::{self, Window};
use crate::eval::perplexity::{self, Perplexity};
use crate::eval::stats;
use crate::mlx;
use crate::model::{Levels, LoadOptions, Model, Tokenizer, layout, paths};
use crate::plastic::config::RunConfig;
use crate::plastic::elastic::Elastic;
use crate::plastic::factor::Metric;
use crate::plastic::journal::{FileRecord, Role};
use crate::plastic::moments::{self, Moments};
use crate::plastic::policies::Policies;
use crate::plastic::statistic::Statistic;
use anyhow::{Context, bail};
use args::{Finder, Switch};
use indicatif::ProgressBar;
use report::Report;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Tokens scored in one batch.
const BATCH_TOKENS: usize = 4096;

/// Compresses a base.
///
/// # Errors
/// When the base, a text or a plugin cannot be had, a slice cannot be decomposed, or the directory not be written.
pub fn run(args: &CompressArgs, g: &Global) -> anyhow::Result<ExitCode> {
    if let Err(e) = args.check() {
        note!("error: {e}");
        return Ok(ExitCode::from(2));
    }
    let interrupt = Interrupt::listen()?;
    match go(args, &interrupt, g) {
        Err(e) if interrupt.raised() => {
            ui::fail(&e, g);
            Ok(ExitCode::from(130))
        }
        other => other,
    }
}

/// A base whose texts, statistics and plugins are loaded.
struct Prepared {
    settings: Settings,
    elastic: Elastic,
    moments: Option<Moments>,
    policies: Policies,
    text: FileRecord,
    /// What perplexity is measured on.
    windows: Vec<Window>,
    /// What is learned from.
    learn: Vec<Vec<u32>>,
    notes: Vec<String>,
    before: Option<Perplexity>,
    memory: u64,
}

/// Loads everything, cheap and likely mistakes first.
fn prepare(args: &CompressArgs, interrupt: &Interrupt, g: &Global) -> anyhow::Result<Prepared> {
    let mut config = args.as_run()?;
    let loader = super::rules::loader(config.plugins.clone());
    let line = session::policies(&loader, &mut config.policy, Role::Policy, None)?;
    let policies = Policies { line, shadows: Vec::new(), fallback: None };
    let forced = match args.whitening {
        Switch::On => None,
        Switch::Off => Some(Metric::Plain),
    };
    let needs_text = args.refine > 0
        || forced.is_none() && policies.line.is_empty()
        || policies.needs().iter().any(|n| Statistic::parse(n).is_some_and(Statistic::needs_moments));
    if needs_text {
        let found = locate::text(&config.calibration, "data/calibration.jsonl", "--calibration", Purpose::Learn, g)?;
        config.calibration = session::in_place(found)?;
    }
    config.data = session::in_place(locate::text(&config.data, "data/eval.jsonl", "--data", Purpose::Judge, g)?)?;
    mlx::device::init()?;
    let base = base::open(&args.base, g)?;
    let dir = session::absolute(base.dir.clone())?;
    if let Some(r) = crate::model::awake::recorded(&dir)? {
        bail!(
            "{}: is an elastic checkpoint already; compress the base it was made from: --base {}",
            dir.display(),
            r.origin.dir.display()
        );
    }
    if args.resume && args.out.join(crate::model::ladder::MANIFEST).is_file() && !work::place(&args.out).is_dir() {
        bail!("{}: is finished already; nothing to resume", args.out.display());
    }
    crate::pack::fuse::free(&args.out, &dir, args.force)?;
    let sha256 = layout::checkpoint_hash(&dir)?;
    let tokenizer = Tokenizer::load(&dir)?;
    let (text, windows) = text(&config, &tokenizer)?;
    let calibration = match needs_text {
        true => Some(session::text_windows(
            &config.calibration,
            config.calibration_windows,
            &config,
            &tokenizer,
            "calibration",
        )?),
        false => None,
    };
    let model = Model::load(&dir, &LoadOptions::default())?;
    let chosen = session::choose(&model, &config.layers)?;
    let elastic = Elastic::new(model, chosen);
    let model = elastic.model();
    let ranks = match &args.ranks {
        Some(text) => Some(super::ranks::read(text, elastic.slices(), args.coarse().is_some())?),
        None => None,
    };
    let mut notes = Vec::new();
    let moments = match &calibration {
        None => None,
        Some((_, windows)) => {
            // Every batch wants every one of them: kept where there is room.
            let bytes: u64 = model.slices().iter().map(|s| 4 * u64::from(s.rows) * u64::from(s.cols)).sum();
            let room = bytes <= mlx::memory::available().unwrap_or(0) / 4;
            let kept: RefCell<BTreeMap<usize, mlx::Array>> = RefCell::default();
            let lost = |i: usize| {
                if let Some(known) = kept.borrow().get(&i) {
                    return Ok(known.clone());
                }
                let fresh = lost(model, i, args.coarse())?;
                if room {
                    kept.borrow_mut().insert(i, fresh.clone());
                }
                Ok(fresh)
            };
            let of = args.coarse().map(|_| &lost as &moments::Substitute);
            let pass = moments::Pass { of, ..session::pass(&config, windows) };
            let mut id = session::identity(&sha256, &[]);
            if let Some(c) = args.coarse() {
                id += &format!("\nlost in {} bits, group {}", c.bits, c.group_size);
            }
            let cache = paths::cache_dir();
            notes = session::too_little(model, &pass);
            Some(session::calibrate(model, &id, &pass, cache.as_deref(), interrupt, g)?)
        }
    };
    let before =
        if args.no_eval { None } else { Some(score(model, &windows, args, interrupt, g, "scoring the base")?) };
    let memory = model.resident().total();
    let settings = Settings {
        base: BaseRecord { id: base.id.clone(), sha256, bytes: weight_bytes(&dir)?, dir },
        mode: args.mode,
        coarse: args.coarse(),
        budget: args.share(),
        target_perplexity: args.target_ppl,
        chooser: chooser(ranks, &config, &policies)?,
        metric: forced,
        calibration: calibration.as_ref().map(|(file, windows)| Calibration {
            path: file.path.clone(),
            sha256: file.sha256.clone(),
            windows: windows.len(),
            window: config.window,
            gradient_windows: config.gradient_windows.clamp(1, windows.len().max(1)),
            seed: config.seed,
        }),
        svd: match args.svd {
            Finder::Exact => Svd::Exact,
            Finder::Randomized => Svd::Randomized {
                oversamples: args.oversamples,
                power_iterations: args.power_iterations,
                seed: args.seed,
            },
        },
        factor_bits: args.factor_bits,
        refine: args.refinement(),
        ladder: args.ladder,
        floor: args.floor,
        slices: elastic.slices().iter().map(|s| s.name.clone()).collect(),
        self_contained: args.self_contained,
    };
    let learn = calibration.map(|(_, windows)| windows).unwrap_or_default();
    Ok(Prepared { settings, elastic, moments, policies, text, windows, learn, notes, before, memory })
}

/// The progress bar of the stage that runs.
struct Bars<'a> {
    global: &'a Global,
    now: Option<(Stage, ProgressBar)>,
}

impl Bars<'_> {
    fn tell(&mut self, stage: Stage, done: usize, total: usize, slice: &str) {
        if self.now.as_ref().is_none_or(|(s, _)| *s != stage) {
            self.clear();
            let what = match stage {
                Stage::Statistics => "measuring slices",
                Stage::Slices => "decomposing slices",
                Stage::Refine => "distilling the base",
                Stage::Search => "trying budgets",
            };
            self.now = Some((stage, ui::bar(self.global, total as u64, what)));
        }
        if let Some((_, bar)) = &self.now {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(slice.to_owned());
        }
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.now.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Bars<'_> {
    // A stage that failed leaves no bar behind its error.
    fn drop(&mut self) {
        self.clear();
    }
}

/// Prepares, decomposes, puts together and reports.
fn go(args: &CompressArgs, interrupt: &Interrupt, g: &Global) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let Prepared { settings, elastic, moments, policies, text, windows, learn, notes, before, memory } =
        prepare(args, interrupt, g)?;
    let work = Work::open(&args.out, &settings, args.resume)?;
    let probe: Vec<Vec<u32>> = windows.iter().map(|w| w.tokens.clone()).collect();
    let policies = (!policies.line.is_empty()).then_some(policies);
    let mut job = Job { settings: &settings, elastic, moments, policies, windows: probe, learn, work };
    let mut bars = Bars { global: g, now: None };
    let mut watch = |stage: Stage, done: usize, total: usize, slice: &str| {
        bars.tell(stage, done, total, slice);
        !interrupt.raised()
    };
    let found = args.target_ppl.map_or(Ok(()), |target| {
        let mut perplexity = |model: &Model| -> crate::compress::Result<f64> {
            let batch = args.batch_size.unwrap_or((BATCH_TOKENS / args.window).max(1));
            let measured = perplexity::measure(model, &windows, batch, &mut |_| !interrupt.raised())?;
            measured.map(|p| p.perplexity).ok_or_else(|| Error::Interrupted(work::place(&args.out)))
        };
        job.search(target, &mut perplexity, &mut watch)
    });
    let decided = found.and_then(|()| job.run(&mut watch));
    bars.clear();
    let decided = match decided {
        Ok(decided) => decided,
        Err(e @ (Error::Usage(_) | Error::Plan { .. } | Error::Slice { .. })) => {
            // A mistake in the command leaves nothing in the way of the next one.
            job.work.abandon();
            return Err(e.into());
        }
        Err(e) => return Err(e.into()),
    };
    let (mut memory_after, mut failed) = (0, None);
    let manifest = job.assemble(&args.out, &decided, |staged, manifest| {
        let model = Model::load(staged, &LoadOptions::default())?;
        manifest.notes = notes;
        if let Some(before) = &before {
            match score(&model, &windows, args, interrupt, g, "scoring the compressed model") {
                Ok(after) => manifest.measured = Some(measured(&text, args, before, &after)),
                Err(e) => {
                    failed = Some(e);
                    return Err(Error::Interrupted(work::place(&args.out)));
                }
            }
        }
        memory_after = model.resident().total();
        Ok(())
    });
    let manifest = match (manifest, failed) {
        (Err(_), Some(e)) if !interrupt.raised() => return Err(e),
        (manifest, _) => manifest?,
    };
    if args.target_ppl.is_some() && manifest.share <= args.floor + 0.005 && !g.quiet {
        note!("the floor of {} reaches the target already; a smaller --floor looks further", args.floor);
    }
    if args.ranks.is_some() && args.budget.is_some() && !g.quiet {
        note!("--budget is not used: --ranks says of every slice what becomes of it");
    }
    let report = Report {
        out: &args.out,
        manifest: &manifest,
        disk: [manifest.settings.base.bytes, manifest.files.values().map(|f| f.bytes).sum()],
        memory: [memory, memory_after],
        peak_mlx: mlx::memory::mlx().1,
        workers: mlx::workers::count(),
        seconds: begun.elapsed().as_secs_f64(),
    };
    match g.json {
        true => say!("{}", serde_json::to_string_pretty(&report)?),
        false => report.show(g),
    }
    Ok(ExitCode::SUCCESS)
}

fn chooser(ranks: Option<Levels>, config: &RunConfig, policies: &Policies) -> anyhow::Result<Chooser> {
    if let Some(ranks) = ranks {
        return Ok(Chooser::Ranks(ranks));
    }
    let (seat, choice) = policies.line.last().zip(config.policy.last()).context("no policy")?;
    let record = session::plugin_record(seat.policy.origin(), seat.policy.info(), &choice.options);
    Ok(Chooser::Policy(Box::new(record)))
}

/// What a coarse weight loses of a slice.
fn lost(model: &Model, slice: usize, coarse: Option<Coarse>) -> mlx::Result<mlx::Array> {
    let failed = |e: crate::model::Error| mlx::MlxError {
        what: "a weight".into(),
        exception: mlx_rs::error::Exception::custom(e.to_string()),
    };
    let w = model.dense_weight(slice).map_err(failed)?;
    match coarse {
        Some(c) => residual::lost(&w, c),
        None => Ok(w),
    }
}

fn weight_bytes(dir: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for file in layout::shards(dir)? {
        sum += file.metadata().with_context(|| file.display().to_string())?.len();
    }
    Ok(sum)
}

/// The evaluation text in windows.
fn text(config: &RunConfig, tokenizer: &Tokenizer) -> anyhow::Result<(FileRecord, Vec<Window>)> {
    let mut set = data::load(&config.data)?;
    set.thin(config.windows, config.window);
    let windows = set.evaluation_windows(tokenizer, config.window).context("evaluation text")?;
    let chosen = data::spread(&windows, config.windows);
    let record = FileRecord { path: config.data.clone(), sha256: set.sha256.clone() };
    Ok((record, chosen.into_iter().map(|tokens| Window { tokens, mask: None }).collect()))
}

fn score(
    model: &Model,
    windows: &[Window],
    args: &CompressArgs,
    interrupt: &Interrupt,
    g: &Global,
    what: &str,
) -> anyhow::Result<Perplexity> {
    let batch = args.batch_size.unwrap_or((BATCH_TOKENS / args.window).max(1));
    let bar = ui::bar(g, windows.len() as u64, what);
    let measured = perplexity::measure(model, windows, batch, &mut |done| {
        bar.set_position(done as u64);
        !interrupt.raised()
    });
    bar.finish_and_clear();
    match measured? {
        Some(p) => Ok(p),
        None => bail!("interrupted"),
    }
}

fn measured(text: &FileRecord, args: &CompressArgs, before: &Perplexity, after: &Perplexity) -> Measured {
    let pairs = before.windows.iter().zip(&after.windows);
    let rises: Vec<f64> = pairs.map(|(b, a)| (a.nll - b.nll) / b.tokens.max(1) as f64).collect();
    let (rise, error) = stats::mean(&rises);
    let both = before.perplexity_standard_error.zip(after.perplexity_standard_error);
    Measured {
        text: text.clone(),
        windows: before.windows.len(),
        window: args.window,
        before: before.perplexity,
        after: after.perplexity,
        errors: both.map(|(b, a)| [b, a]),
        rise,
        interval: stats::interval(rise, error, rises.len()),
    }
}
