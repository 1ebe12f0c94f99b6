//! `plastic-host packs bakeoff`: several ways to train, over several seeds, compared on held-out text.

use super::{Global, locate, output, table};
use crate::cli::Cli;
use crate::cli::base;
use crate::cli::interrupt::Interrupt;
use crate::cli::locate::Purpose;
use crate::cli::rules::RuleArgs;
use crate::cli::ui;
use crate::eval::data::{self, Cutting, Loss};
use crate::eval::perplexity;
use crate::mlx;
use crate::model::{LoadOptions, Model, Tokenizer, layout};
use crate::pack::Store;
use crate::pack::bakeoff::trial::{Kitchen, Trial};
use crate::pack::bakeoff::verdict::{self, ArmResult};
use crate::pack::bakeoff::{Arm, Spec, overlap, picture};
use anyhow::{Context, bail};
use clap::{CommandFactory, FromArgMatches};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `packs bakeoff`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs bakeoff examples/bakeoff.toml --dry-run
  plastic-host packs bakeoff examples/bakeoff.toml --svg bakeoff.svg
  plastic-host packs bakeoff examples/bakeoff.toml          again: finished trials are kept, failed ones tried again

Each arm is trained once a seed with `packs create` and measured on held-out text that must share no passage with the
training text. Exit code 1 where a trial failed, 3 where the budgets of the arms differ.")]
pub struct BakeoffArgs {
    /// The bake-off, a TOML file
    #[arg(value_name = "SPEC", required_unless_present = "spec_option")]
    spec: Option<PathBuf>,
    /// The same, as mlx-plastic-rank writes it
    #[arg(long = "spec", hide = true, conflicts_with = "spec")]
    spec_option: Option<PathBuf>,
    /// Directory of results, logs and packs [default: bakeoffs/NAME]
    #[arg(long, short, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Show what would run, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Train everything again
    #[arg(long)]
    force: bool,
    /// Draw the result to a file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// A trial that failed.
#[derive(serde::Serialize)]
struct Failed {
    arm: String,
    seed: u64,
    reason: String,
}

/// The document of --json.
#[derive(serde::Serialize)]
struct Document<'a> {
    spec: &'a Spec,
    base_perplexity: f64,
    windows: usize,
    windows_sha256: String,
    reference: &'a str,
    arms: &'a [ArmResult],
    failed: &'a [Failed],
    /// Arms whose budget is another than the reference's; where there are any, no verdict holds.
    unequal_budgets: &'a [String],
    kept: usize,
}

/// Runs a bake-off.
///
/// # Errors
/// When the spec, a text or the base is wrong, or the texts overlap. A failed trial is none.
pub fn run(args: &BakeoffArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let path = args.spec.as_ref().or(args.spec_option.as_ref()).context("name a spec")?;
    let spec = Spec::read(path)?;
    let dir = args.out.clone().unwrap_or_else(|| Path::new("bakeoffs").join(&spec.name));
    if !args.dry_run || dir.exists() {
        output::check_directory(store, "--out", &dir)?;
    }
    if !args.dry_run {
        let results = dir.join("results.json");
        let outputs = [("--out", Some(&results)), ("--svg", args.svg.as_ref())];
        output::check(store, &outputs, &[path, &spec.data, &spec.eval])?;
    }
    let data = data::load(&locate::text(&spec.data, "", "data in the spec", Purpose::Learn, g)?)?;
    let mut eval = data::load(&locate::text(&spec.eval, "", "eval in the spec", Purpose::Judge, g)?)?;
    if let Some(o) = overlap::find(&data.texts(), &eval.texts()) {
        bail!(
            "{}:{}: {} rows of the evaluation text share a passage with the training text {} (\"{}…\"); take them out of one of the two",
            spec.eval.display(),
            o.line,
            o.rows,
            spec.data.display(),
            o.passage
        );
    }
    let program = std::env::current_exe().context("finding this program")?;
    let mut kitchen = Kitchen { spec: &spec, dir: &dir, program: &program, fingerprint: String::new() };
    for arm in &spec.arm {
        check_arm(&kitchen, arm).with_context(|| format!("{}: arm {}", path.display(), arm.name))?;
    }
    if args.dry_run {
        // A base that would have to be fetched is not looked at.
        if Path::new(&spec.base).exists() {
            base::open(&Some(spec.base.clone()), g)?;
        }
        return plan(&kitchen, g);
    }
    let lock = crate::atomic::Lock::try_of_directory(&dir)?;
    let _lock = lock.with_context(|| format!("{}: another bake-off is at work there", dir.display()))?;
    let interrupt = Interrupt::listen()?;
    mlx::device::init()?;
    let base = base::open(&Some(spec.base.clone()), g)?;
    let tokenizer = Tokenizer::load(&base.dir)?;
    let join = spec.loss == Loss::Full;
    let cutting = Cutting { window: spec.sequence_length, loss: spec.loss, pack: join, keep_tail: false };
    eval.thin(spec.num_samples, spec.sequence_length);
    let windows = data::spread(&eval.cut(&tokenizer, &cutting)?.windows, spec.num_samples);
    let windows_sha256 = data::fingerprint(&windows);
    kitchen.fingerprint = format!("{} {} {windows_sha256}", layout::checkpoint_hash(&base.dir)?, data.sha256);
    let mut model = Model::load(&base.dir, &LoadOptions::default())?;
    let alone = perplexity::measure(&model, &windows, spec.batch_size, &mut |_| !interrupt.raised())?;
    let alone = alone.context("interrupted; nothing was trained")?;

    let (mut trials, mut failed, mut kept): (Vec<Trial>, Vec<Failed>, usize) = (Vec::new(), Vec::new(), 0);
    let bar = ui::bar(g, (spec.arm.len() * spec.seeds.len()) as u64, "trials");
    // Seed by seed, so that an interrupted bake-off has pairs.
    for &seed in &spec.seeds {
        for arm in &spec.arm {
            if interrupt.raised() {
                break;
            }
            bar.set_message(Kitchen::pack(arm, seed));
            let known = if args.force { None } else { kitchen.kept(arm, seed)? };
            kept += usize::from(known.is_some());
            match known.map_or_else(|| kitchen.run(arm, seed, &mut model, &windows), Ok) {
                Ok(trial) => trials.push(trial),
                Err(e) => failed.push(Failed { arm: arm.name.clone(), seed, reason: e.to_string() }),
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if interrupt.raised() {
        ui::fail(&anyhow::anyhow!("interrupted; {} trials are kept in {}", trials.len(), dir.display()), g);
        return Ok(ExitCode::from(130));
    }
    let unequal = match spec.equal_budgets {
        true => verdict::unequal(&trials, spec.reference(), spec.budget_tolerance),
        false => Vec::new(),
    };
    let of = |name: &str| trials.iter().filter(|t| t.arm == name).collect::<Vec<_>>();
    let reference = of(spec.reference());
    let arms: Vec<ArmResult> = (spec.arm.iter())
        .map(|arm| {
            let failures = failed.iter().filter(|f| f.arm == arm.name).count();
            let comparable = (arm.name != spec.reference() && unequal.is_empty()).then_some(reference.as_slice());
            verdict::sum_up(&arm.name, &of(&arm.name), failures, alone.mean_nll, comparable)
        })
        .collect();
    let document = Document {
        spec: &spec,
        base_perplexity: alone.perplexity,
        windows: windows.len(),
        windows_sha256,
        reference: spec.reference(),
        arms: &arms,
        failed: &failed,
        unequal_budgets: &unequal,
        kept,
    };
    let json = serde_json::to_string_pretty(&document)?;
    crate::atomic::write_file(&dir.join("results.json"), format!("{json}\n").as_bytes())?;
    if let Some(svg) = &args.svg {
        crate::atomic::write_file(svg, picture::draw(&spec.name, alone.perplexity, &arms).as_bytes())?;
    }
    match g.json {
        true => say!("{json}"),
        false => report(&document, &dir, g),
    }
    Ok(match (failed.is_empty(), unequal.is_empty()) {
        (false, _) => ExitCode::FAILURE,
        (true, false) => ExitCode::from(3),
        (true, true) => ExitCode::SUCCESS,
    })
}

/// That `packs create` takes the options of an arm, before hours go into the others.
fn check_arm(kitchen: &Kitchen, arm: &Arm) -> anyhow::Result<()> {
    let plain = |key: &str| key.starts_with(|c: char| c.is_ascii_lowercase()) && !key.contains([' ', '=']);
    if let Some(key) = kitchen.spec.options(arm).keys().find(|key| !plain(key)) {
        bail!("`create.{key}` is no option of packs create");
    }
    let line = kitchen.command(arm, kitchen.spec.seeds.first().copied().unwrap_or_default())?;
    let parsed = Cli::command().try_get_matches_from(std::iter::once("plastic-host".to_owned()).chain(line));
    let parsed = parsed.map_err(|e| {
        let text = e.render().to_string();
        let first = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        anyhow::anyhow!("{}", first.split_whitespace().collect::<Vec<_>>().join(" "))
    })?;
    let create = parsed.subcommand_matches("packs").and_then(|m| m.subcommand_matches("create"));
    let create = create.context("is no training")?;
    if create.get_one::<u32>("steps").is_some_and(|n| *n == 0) {
        bail!("`steps` is 1 or more");
    }
    for key in ["batch_size", "grad_accumulation"] {
        if create.get_one::<usize>(key).is_some_and(|n| *n == 0) {
            bail!("`{key}` is 1 or more");
        }
    }
    if let Some(x) = create.get_one::<f64>("learning_rate").filter(|x| !x.is_finite() || **x <= 0.0) {
        bail!("`learning_rate` is {x}; expected a finite number above 0");
    }
    let loader = RuleArgs::from_arg_matches(create)?.loader()?;
    for file in create.get_many::<PathBuf>("policy").into_iter().flatten() {
        loader.policy(&locate::plugin(file, Some(&loader))?)?;
    }
    Ok(())
}

fn plan(kitchen: &Kitchen, g: &Global) -> anyhow::Result<ExitCode> {
    let mut commands = Vec::new();
    for &seed in &kitchen.spec.seeds {
        for arm in &kitchen.spec.arm {
            commands.push(kitchen.command(arm, seed)?);
        }
    }
    match g.json {
        true => say!(
            "{}",
            serde_json::to_string_pretty(&serde_json::json!({ "spec": kitchen.spec, "commands": commands }))?
        ),
        false => {
            for command in &commands {
                say!("plastic-host {}", command.join(" "));
            }
            say!("{} trials; nothing was run", commands.len());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn report(d: &Document, dir: &Path, g: &Global) {
    let headers = ["arm", "seeds", "perplexity", "± sd", "against base", "total rank", "size", "training"];
    let mut rows = table::plain(&headers, &(1..8).collect::<Vec<_>>());
    for a in d.arms {
        let (mean, error) = crate::eval::stats::mean(&a.perplexities);
        let spread = error.map(|e| e * (a.perplexities.len() as f64).sqrt());
        rows.add_row([
            a.arm.clone(),
            format!("{}{}", a.seeds, if a.failed > 0 { format!(" ({} failed)", a.failed) } else { String::new() }),
            if a.seeds > 0 { format!("{mean:.3}") } else { String::new() },
            spread.map_or(String::new(), |s| format!("{s:.3}")),
            a.against_base_pct.map_or(String::new(), |p| format!("{p:+.2} %")),
            format!("{:.0}", a.total_rank),
            format!("{:.2} MiB", a.bytes / 1_048_576.0),
            format!("{:.0} s", a.seconds),
        ]);
    }
    say!("{rows}");
    say!("base        perplexity {:.3} on {} windows of {}", d.base_perplexity, d.windows, d.spec.eval.display());
    let span = |i: Option<[f64; 2]>| i.map_or("none".into(), |[low, high]| format!("{low:+.2} to {high:+.2} %"));
    for a in d.arms {
        if let Some(x) = &a.against_reference {
            say!(
                "{} against {}: {:+.2} % ({} seeds; 95 % interval over seeds {}, seeds and windows {}): {}",
                a.arm,
                d.reference,
                x.ppl_delta_pct,
                x.seeds,
                span(x.over_seeds_pct),
                span(x.resampled_pct),
                x.verdict
            );
        }
    }
    for line in d.unequal_budgets {
        note!("unequal budget: {line}");
    }
    if !d.unequal_budgets.is_empty() {
        note!("no verdict: the budgets differ; make them equal, or say budget_tolerance or equal_budgets in the spec");
    }
    for f in d.failed {
        note!("failed: {} (seed {}): {}", f.arm, f.seed, f.reason);
    }
    if !g.quiet {
        say!("results     {} ({} of the trials were there already)", dir.join("results.json").display(), d.kept);
    }
}
