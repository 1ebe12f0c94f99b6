//! `plastic-host compress`: from a base to an elastic checkpoint.

use super::interrupt::Interrupt;
use super::locate::Purpose;
use super::rules::RuleArgs;
use super::run::set_options;
use super::table;
use super::{Global, base, locate, session, show, ui};
use crate::compress::job::{Job, Stage};
use crate::compress::manifest::{Manifest, Measured, SliceRecord};
use crate::compress::residual;
use crate::compress::settings::{BaseRecord, Calibration, Chooser, Coarse, Mode, Reach, Refinement, Settings, Svd};
use crate::compress::work::{self, Work};
use crate::eval::data::{self, Window};
use crate::eval::perplexity::{self, Perplexity};
use crate::eval::stats;
use crate::mlx;
use crate::model::{Level, LoadOptions, Model, Tokenizer, layout, paths};
use crate::plastic::config::{Choice, RunConfig};
use crate::plastic::elastic::Elastic;
use crate::plastic::factor::Metric;
use crate::plastic::journal::{FileRecord, Role};
use crate::plastic::moments;
use crate::plastic::policies::Policies;
use crate::plastic::statistic::Statistic;
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Options of `compress`.
#[derive(clap::Args, Debug)]
#[command(
    allow_negative_numbers = true,
    args_override_self = true,
    after_help = "\
Examples:
  plastic-host compress --out small                          the default model at 80 % of its parameters
  plastic-host compress --budget 0.6 --factor-bits 16 --out small
  plastic-host compress --policy uniform --policy-opt metric=input --budget 0.9 --out even
  plastic-host compress --out small --resume                 goes on where it was interrupted
  plastic-host generate --base small --awake-budget 0.5 --prompt 'Why is the sky blue?'"
)]
pub struct CompressArgs {
    /// Base model: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short)]
    base: Option<String>,
    /// Directory to make
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
    /// Policy that chooses the ranks: a file, or a name on the plugin path [default: water-fill]
    #[arg(long, short, value_name = "FILE", conflicts_with = "ranks")]
    policy: Vec<PathBuf>,
    /// Option of a policy, `name=value`
    #[arg(long, value_name = "NAME=VALUE")]
    policy_opt: Vec<String>,
    /// Ranks instead of a policy: a JSON file with a rank or \"dense\" for each slice name or glob, or such pairs as 'q_proj:64,*:dense'
    #[arg(long, value_name = "MAP")]
    ranks: Option<String>,
    /// Share of the slices' parameters that stays; with --mode residual of their bytes in float16 [default: 0.8, or 0.05 more than the coarse weights take]
    #[arg(long, value_name = "SHARE")]
    budget: Option<f64>,
    /// Instead of a budget: the smallest one whose perplexity on --data is at most this
    #[arg(long, value_name = "PERPLEXITY", conflicts_with_all = ["budget", "ranks", "no_eval", "refine"])]
    target_ppl: Option<f64>,
    /// Bits of the coarse weights of --mode residual
    #[arg(long, value_name = "BITS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=8))]
    bits: u32,
    /// Weights of those that share a scale: 32, 64 or 128
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = group)]
    group_size: u32,
    /// Calibration text: a .jsonl or .txt file, or a data set of the hub [default: data/calibration.jsonl]
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Windows of calibration text; 0 takes all
    #[arg(long, value_name = "N", default_value_t = 128)]
    calibration_windows: usize,
    /// Of those, how many also give gradients for the fisher metric
    #[arg(long, value_name = "N", default_value_t = 32)]
    gradient_windows: usize,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    window: usize,
    /// Text that perplexity before and after is measured on [default: data/eval.jsonl]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Windows of it, spread evenly; 0 takes all
    #[arg(long, value_name = "N", default_value_t = 12)]
    windows: usize,
    /// Do not measure perplexity
    #[arg(long)]
    no_eval: bool,
    /// How slices are stored
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Bits of a value of a component
    #[arg(long, value_name = "BITS", default_value_t = 8, value_parser = bits)]
    factor_bits: u32,
    /// Steps of distilling the base into the components on the calibration text; better, and some seconds a step
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    refine: u32,
    /// Windows in each of those
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    refine_batch: u32,
    /// Their learning rate
    #[arg(long, value_name = "RATE", default_value_t = 5e-4)]
    refine_rate: f64,
    /// How components are found
    #[arg(long, value_enum, default_value_t = Finder::Exact)]
    svd: Finder,
    /// Columns that --svd randomized draws beyond the rank
    #[arg(long, value_name = "N", default_value_t = 16)]
    oversamples: u32,
    /// Power iterations of --svd randomized
    #[arg(long, value_name = "N", default_value_t = 2)]
    power_iterations: u32,
    /// Weigh components by what they do to activations and loss; off: by size of the weights alone
    #[arg(long, value_enum, default_value_t = Switch::On)]
    whitening: Switch,
    /// Only slices whose name matches, such as 'model.layers.1?.mlp.*'; may be repeated
    #[arg(long, value_name = "GLOB")]
    layers: Vec<String>,
    /// How many components of each slice are stored; all of them make a larger directory, for exports and every budget
    #[arg(long, value_enum, default_value_t)]
    ladder: Reach,
    /// Smallest awake budget that slices left dense must still be able to shrink for
    #[arg(long, value_name = "SHARE", default_value_t = 0.3)]
    floor: f64,
    /// Keep the base's own weights of the slices too, parked, so that the base can be had back without its directory
    #[arg(long)]
    self_contained: bool,
    /// Windows that run through the model together
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Seed of every random draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Go on with a compression that was interrupted
    #[arg(long)]
    resume: bool,
    /// Replace an elastic checkpoint at --out
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    rules: RuleArgs,
}

/// 32, 64 or 128.
pub(super) fn group(text: &str) -> Result<u32, String> {
    match text {
        "32" | "64" | "128" => text.parse().map_err(|e| format!("{e}")),
        _ => Err("32, 64 or 128".into()),
    }
}

/// 16, 8 or 4.
fn bits(text: &str) -> Result<u32, String> {
    match text {
        "16" | "8" | "4" => text.parse().map_err(|e| format!("{e}")),
        _ => Err("16, 8 or 4".into()),
    }
}

/// How components are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Finder {
    /// All of them, by eigendecomposition
    Exact,
    /// The leading ones, by a seeded random range finder
    Randomized,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    /// Yes
    On,
    /// No
    Off,
}

impl CompressArgs {
    /// What is wrong with a number.
    fn check(&self) -> Result<(), String> {
        let share = |name: &str, x: f64| match x > 0.0 && x <= 1.0 {
            true => Ok(()),
            false => Err(format!("--{name} {x}: a share lies above 0 and up to 1")),
        };
        share("budget", self.share())?;
        if self.mode == Mode::Residual && self.refine > 0 {
            return Err("--refine goes with --mode factor".into());
        }
        if !(self.refine_rate > 0.0 && self.refine_rate < 1.0) {
            return Err(format!("--refine-rate {}: a rate lies above 0 and below 1", self.refine_rate));
        }
        if self.mode == Mode::Residual && self.bits == 7 {
            return Err("--bits 7: MLX quantises to 2, 3, 4, 5, 6 or 8 bits".into());
        }
        share("floor", self.floor)?;
        if let Some(t) = self.target_ppl {
            if self.mode == Mode::Residual {
                return Err("--target-ppl goes with --mode factor".into());
            }
            if !(t >= 1.0 && t.is_finite()) {
                return Err(format!("--target-ppl {t}: a perplexity is at least 1"));
            }
        }
        if self.window < 2 || self.batch_size == Some(0) {
            return Err("--window must be at least 2 and --batch-size at least 1".into());
        }
        Ok(())
    }

    /// The coarse quantisation of mode residual.
    fn coarse(&self) -> Option<Coarse> {
        (self.mode == Mode::Residual).then_some(Coarse { bits: self.bits, group_size: self.group_size })
    }

    /// The distillation: the budget itself, and smaller ones down to the floor, so that those get better too.
    fn refinement(&self) -> Option<Refinement> {
        let mut budgets = vec![(self.share(), 1.0)];
        let smaller = [(0.8, 0.6), (0.6, 1.0), (0.4, 0.9)];
        budgets.extend(smaller.into_iter().filter(|(b, _)| *b < self.share() - 0.05 && *b >= self.floor));
        let (steps, batch, learning_rate) = (self.refine, self.refine_batch, self.refine_rate);
        (steps > 0).then_some(Refinement { steps, batch, learning_rate, seed: self.seed, budgets })
    }

    /// The budget.
    fn share(&self) -> f64 {
        let coarse = |c: Coarse| (f64::from(c.bits) + 32.0 / f64::from(c.group_size)) / 16.0 + 0.05;
        self.budget.unwrap_or_else(|| self.coarse().map_or(0.8, coarse).min(1.0))
    }

    /// The same as options of a run, for what both share.
    fn as_run(&self) -> anyhow::Result<RunConfig> {
        let mut policy: Vec<Choice> = match (self.policy.is_empty(), &self.ranks) {
            (true, None) => vec![Choice::new("water-fill")],
            (true, Some(_)) => Vec::new(),
            (false, _) => self.policy.iter().map(Choice::new).collect(),
        };
        set_options("--policy-opt", &self.policy_opt, &mut policy.iter_mut().collect::<Vec<_>>())?;
        Ok(RunConfig {
            policy,
            budget: self.share(),
            layers: self.layers.clone(),
            steps: 1,
            seed: self.seed,
            window: self.window,
            windows: self.windows,
            calibration_windows: self.calibration_windows,
            gradient_windows: self.gradient_windows,
            data: self.data.clone().unwrap_or_default(),
            calibration: self.calibration.clone().unwrap_or_default(),
            plugins: self.rules.over(RunConfig::default().plugins)?,
            ..RunConfig::default()
        })
    }
}

/// Compresses a base.
///
/// # Errors
/// When the base, a text or a plugin cannot be had, a slice cannot be decomposed, or the directory not be written.
pub fn run(args: &CompressArgs, g: &Global) -> anyhow::Result<ExitCode> {
    if let Err(e) = args.check() {
        note!("error: {e}");
        return Ok(ExitCode::from(2));
    }
    let begun = Instant::now();
    let mut config = args.as_run()?;
    let interrupt = Interrupt::listen()?;
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
    let mut notes = Vec::new();
    let moments = match &calibration {
        None => None,
        Some((_, windows)) => {
            let lost = |i: usize| lost(&model, i, args.coarse());
            let of = args.coarse().map(|_| &lost as &moments::Substitute);
            let pass = moments::Pass { of, ..session::pass(&config, windows) };
            let mut id = session::identity(&sha256, &[]);
            if let Some(c) = args.coarse() {
                id += &format!("\nlost in {} bits, group {}", c.bits, c.group_size);
            }
            let cache = paths::cache_dir();
            notes = session::too_little(&model, &pass);
            Some(session::calibrate(&model, &id, &pass, cache.as_deref(), &interrupt, g)?)
        }
    };
    let before =
        if args.no_eval { None } else { Some(score(&model, &windows, args, &interrupt, g, "scoring the base")?) };
    // As it scores, with the copies that makes.
    if !args.no_eval {
        model.warm()?;
    }
    let memory_before = model.resident().total();
    let elastic = Elastic::new(model, chosen);
    let settings = Settings {
        base: BaseRecord { id: base.id.clone(), sha256, bytes: weight_bytes(&dir)?, dir },
        mode: args.mode,
        coarse: args.coarse(),
        budget: args.share(),
        target_perplexity: args.target_ppl,
        chooser: chooser(args, &config, &policies, &elastic)?,
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
    let work = Work::open(&args.out, &settings, args.resume)?;
    let probe: Vec<Vec<u32>> = windows.iter().map(|w| w.tokens.clone()).collect();
    let policies = (!policies.line.is_empty()).then_some(policies);
    let learn = calibration.map(|(_, windows)| windows).unwrap_or_default();
    let mut job = Job { settings: &settings, elastic, moments, policies, windows: probe, learn, work };
    let mut bars: Option<(Stage, indicatif::ProgressBar)> = None;
    let mut watch = |stage: Stage, done: usize, total: usize, slice: &str| {
        if bars.as_ref().is_none_or(|(s, _)| *s != stage) {
            if let Some((_, old)) = bars.take() {
                old.finish_and_clear();
            }
            let what = match stage {
                Stage::Statistics => "measuring slices",
                Stage::Slices => "decomposing slices",
                Stage::Refine => "distilling the base",
                Stage::Search => "trying budgets",
            };
            bars = Some((stage, ui::bar(g, total as u64, what)));
        }
        if let Some((_, bar)) = &bars {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(slice.to_owned());
        }
        !interrupt.raised()
    };
    let mut perplexity = |model: &Model| -> crate::compress::Result<f64> {
        let stopped = || crate::compress::Error::Interrupted(work::place(&args.out));
        let batch = args.batch_size.unwrap_or((4096 / args.window).max(1));
        let measured = perplexity::measure(model, &windows, batch, &mut |_| !interrupt.raised())?;
        measured.map(|p| p.perplexity).ok_or_else(stopped)
    };
    let found = match args.target_ppl {
        Some(target) => job.search(target, &mut perplexity, &mut watch),
        None => Ok(()),
    };
    let decided = found.and_then(|()| job.run(&mut watch));
    if let Some((_, bar)) = bars {
        bar.finish_and_clear();
    }
    let decided = match decided {
        Err(e @ crate::compress::Error::Interrupted(_)) => {
            ui::fail(&e.into(), g);
            return Ok(ExitCode::from(130));
        }
        d => d?,
    };
    let mut memory_after = 0;
    let mut stopped = None;
    let manifest = job.assemble(&args.out, &decided, |staged, manifest| {
        let model = Model::load(staged, &LoadOptions::default())?;
        manifest.notes = notes;
        if !args.no_eval {
            model.warm()?;
        }
        memory_after = model.resident().total();
        if let Some(before) = &before {
            let after = match score(&model, &windows, args, &interrupt, g, "scoring the compressed model") {
                Ok(p) => p,
                Err(e) => {
                    stopped = Some(e);
                    return Err(crate::compress::Error::Interrupted(work::place(&args.out)));
                }
            };
            manifest.measured = Some(measured(&text, args, before, &after));
        }
        Ok(())
    });
    let manifest = match (manifest, stopped) {
        (Err(_), Some(e)) if !interrupt.raised() => return Err(e),
        (Err(e), _) if interrupt.raised() => {
            ui::fail(&e.into(), g);
            return Ok(ExitCode::from(130));
        }
        (manifest, _) => manifest?,
    };
    let report = Report {
        out: &args.out,
        manifest: &manifest,
        disk: [manifest.settings.base.bytes, manifest.files.values().map(|f| f.bytes).sum()],
        memory: [memory_before, memory_after],
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

/// The document of --json.
#[derive(serde::Serialize)]
struct Report<'a> {
    out: &'a Path,
    /// Bytes of weight files, before and after.
    disk: [u64; 2],
    /// Bytes in memory as loaded, before and after.
    memory: [u64; 2],
    /// Most bytes that MLX held at once.
    peak_mlx: u64,
    /// Slices that were decomposed at once.
    workers: usize,
    seconds: f64,
    #[serde(flatten)]
    manifest: &'a Manifest,
}

impl Report<'_> {
    fn show(&self, g: &Global) {
        let m = self.manifest;
        if !g.quiet {
            say!("{}", kinds(m));
        }
        let parameters = m.parameters();
        let kept = m.awake_parameters(&m.stored.iter().map(|s| s.planned).collect::<Vec<_>>());
        say!(
            "kept        {:.1} % of the {} parameters of {} slices",
            100.0 * kept as f64 / parameters as f64,
            show::millions(parameters),
            m.stored.len()
        );
        say!("on disk     {} -> {}", show::megabytes(self.disk[0]), show::megabytes(self.disk[1]));
        say!("in memory   {} -> {} as loaded", show::megabytes(self.memory[0]), show::megabytes(self.memory[1]));
        if let Some(x) = &m.measured {
            let error = |i: usize| x.errors.map_or(String::new(), |e| format!(" ± {:.2}", e[i]));
            let interval = x.interval.map_or(String::new(), |[l, h]| format!(" (95 %: {l:+.4} to {h:+.4})"));
            say!(
                "perplexity  {:.2}{} -> {:.2}{}; loss {:+.4} nats per token{interval}",
                x.before,
                error(0),
                x.after,
                error(1),
                x.rise
            );
        }
        say!("written to  {} in {:.1} s", self.out.display(), self.seconds);
        if !g.quiet {
            say!("\n  plastic-host generate --base {0} --prompt 'Why is the sky blue?'", self.out.display());
        }
    }
}

/// One line a kind of slice.
fn kinds(m: &Manifest) -> comfy_table::Table {
    let headers = ["slices", "number", "dense", "rank of the others", "kept", "kept by layer"];
    let mut table = table::plain(&headers, &[1, 2, 3, 4]);
    let kind = |name: &str| name.rsplit_once('.').map_or(name, |(_, k)| k).to_owned();
    let mut order: Vec<String> = Vec::new();
    for s in &m.stored {
        if !order.contains(&kind(&s.name)) {
            order.push(kind(&s.name));
        }
    }
    for k in order {
        let all: Vec<_> = m.stored.iter().filter(|s| kind(&s.name) == k).collect();
        let mut ranks: Vec<f64> = Vec::new();
        let (mut kept, mut whole) = (0, 0);
        for s in &all {
            let dense = u64::from(s.rows) * u64::from(s.cols);
            whole += dense;
            kept += match s.planned {
                Level::Dense => dense,
                Level::Rank(r) => {
                    ranks.push(f64::from(r));
                    u64::from(r) * (u64::from(s.rows) + u64::from(s.cols))
                }
            };
        }
        ranks.sort_by(f64::total_cmp);
        let spread = match (ranks.first(), ranks.last()) {
            (Some(l), Some(h)) => format!("{l:.0} to {h:.0}, median {:.0}", stats::median(&ranks)),
            _ => "-".into(),
        };
        table.add_row([
            k,
            all.len().to_string(),
            (all.len() - ranks.len()).to_string(),
            spread,
            format!("{:.1} %", 100.0 * kept as f64 / whole.max(1) as f64),
            all.iter().map(|s| bar(m, s)).collect(),
        ]);
    }
    table
}

/// The share of a slice that is kept, as a bar one character wide; in mode residual that of the largest repair.
fn bar(m: &Manifest, s: &SliceRecord) -> char {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let rank = |s: &SliceRecord| if let Level::Rank(r) = s.planned { r } else { 0 };
    let share = match (s.planned, s.coarse) {
        (Level::Dense, _) => 1.0,
        (Level::Rank(r), 0) => {
            f64::from(r) * (f64::from(s.rows) + f64::from(s.cols)) / (f64::from(s.rows) * f64::from(s.cols))
        }
        (Level::Rank(r), _) => f64::from(r) / f64::from(m.stored.iter().map(rank).max().unwrap_or(1).max(1)),
    };
    BARS[((share * 8.0).ceil() as usize).min(8)]
}

fn chooser(args: &CompressArgs, config: &RunConfig, policies: &Policies, elastic: &Elastic) -> anyhow::Result<Chooser> {
    if let Some(text) = &args.ranks {
        return Ok(Chooser::Ranks(super::ranks::read(text, elastic.slices())?));
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
    let batch = args.batch_size.unwrap_or((4096 / args.window).max(1));
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
