//! Puts a run together from its options, drives it, and shows it.

use super::base;
use super::interrupt::Interrupt;
use super::show::Screen;
use super::{Global, locate, ui};
use crate::eval::data::{self, Dataset};
use crate::mlx;
use crate::model::registry::{self, Base};
use crate::model::{LoadOptions, Model, Tokenizer, hash, paths};
use crate::plastic::config::RunConfig;
use crate::plastic::elastic::Elastic;
use crate::plastic::factor::Metric;
use crate::plastic::journal::{Event, Fate, FileRecord, History, Journal, PluginRecord, RunRecord, SCHEMA};
use crate::plastic::moments::{self, Moments};
use crate::plastic::rundir::{self, RunDir};
use crate::plastic::step::{self, Parts, Runner};
use crate::plugin::{self, Evaluator, Loader, Policy, contract};
use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Tokens scored in one batch.
const BATCH_TOKENS: usize = 4096;

/// A run whose plugins, texts and model are loaded.
struct Prepared {
    config: RunConfig,
    base: Base,
    base_sha256: String,
    policy: Box<dyn Policy>,
    evaluator: Box<dyn Evaluator>,
    data: FileRecord,
    calibration: Option<FileRecord>,
    moments: Option<Moments>,
    tokenizer: Tokenizer,
    windows: Vec<Vec<u32>>,
    elastic: Elastic,
}

/// Begins a new run.
pub fn begin(config: RunConfig, out: Option<&Path>, g: &Global) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let interrupt = Interrupt::listen()?;
    let path = out.map_or_else(|| default_out(&config), Path::to_path_buf);
    if path.to_str().is_none() {
        bail!("--out {}: the path is not UTF-8; name another directory", path.display());
    }
    let dir = RunDir::create(&path)?;
    let prepared = match prepare(config, None, &interrupt, g) {
        Ok(p) => p,
        Err(e) => {
            // Nothing ran: leave no empty directory behind.
            let _ = std::fs::remove_file(path.join(".lock"));
            let _ = std::fs::remove_dir(&path);
            return stopped(e, &interrupt, g);
        }
    };
    let parameters: u64 = prepared.elastic.slices().iter().map(|s| s.dense_parameters).sum();
    let config = &prepared.config;
    let budget = (parameters as f64 * config.budget).floor() as u64;
    let record = RunRecord {
        schema: SCHEMA,
        program: env!("CARGO_PKG_VERSION").into(),
        time: step::now(),
        base: prepared.base.dir.clone(),
        base_id: prepared.base.id.clone(),
        base_sha256: prepared.base_sha256.clone(),
        policy: plugin_record(prepared.policy.origin(), prepared.policy.info(), &config.policy_options),
        evaluator: plugin_record(prepared.evaluator.origin(), prepared.evaluator.info(), &evaluator_options(config)),
        data: prepared.data.clone(),
        calibration: prepared.calibration.clone(),
        slices: prepared.elastic.slices().to_vec(),
        parameters,
        budget,
        options_sha256: options_hash(config)?,
    };
    let text = toml::to_string(config).context("writing the resolved options")?;
    let files = [dir.config(), dir.journal(), path.join(".lock")];
    let begin = || -> anyhow::Result<Ready> {
        crate::atomic::write_file(&dir.config(), text.as_bytes())?;
        let journal = Journal::create(&dir.journal(), record)?;
        ready(prepared, dir, journal, budget, interrupt, begun, g)
    };
    let ready = match begin() {
        Ok(ready) => ready,
        Err(e) => {
            // A second try may use the same directory.
            files.iter().for_each(|f| drop(std::fs::remove_file(f)));
            let _ = std::fs::remove_dir(&path);
            return Err(e);
        }
    };
    ready.drive(begun, g)
}

/// Goes on with an interrupted run; `steps` extends it.
pub fn resume(path: &Path, steps: Option<u32>, g: &Global) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let interrupt = Interrupt::listen()?;
    let dir = RunDir::open(path)?;
    let mut journal = Journal::open(&dir.journal())?;
    let record = journal.events().run().cloned().context("the journal has no run")?;
    let text = std::fs::read_to_string(dir.config()).with_context(|| dir.config().display().to_string())?;
    let mut config: RunConfig =
        toml::from_str(&text).with_context(|| format!("{}: options cannot be read", dir.config().display()))?;
    if options_hash(&config)? != record.options_sha256 {
        bail!(
            "{}: the options have changed since the run began; put them back, or start a new run with --config",
            dir.config().display()
        );
    }
    if let Some(steps) = steps {
        config.steps = steps;
    }
    config.check()?;
    let taken = journal.events().steps().map(|s| s.step).max().unwrap_or(0);
    if taken >= config.steps && journal.events().ended().is_some() {
        bail!(
            "{}: all {} steps are taken; extend the run with `plastic-host resume {} --steps {}`",
            path.display(),
            config.steps,
            path.display(),
            taken + 3
        );
    }
    let mut prepared = match prepare(config, Some(&record), &interrupt, g) {
        Ok(p) => p,
        Err(e) => return stopped(e, &interrupt, g),
    };
    rundir::apply_state(
        dir.path(),
        journal.events(),
        journal.events().current(),
        &mut prepared.elastic,
        &mut |_, _, _| !interrupt.raised(),
    )?;
    if steps.is_some() {
        let text = toml::to_string(&prepared.config).context("writing the resolved options")?;
        crate::atomic::write_file(&dir.config(), text.as_bytes())?;
    }
    journal.append(Event::Resume { time: step::now() })?;
    ready(prepared, dir, journal, record.budget, interrupt, begun, g)?.drive(begun, g)
}

/// An error before the first step: an exit code of its own where Ctrl-C caused it.
fn stopped(e: anyhow::Error, interrupt: &Interrupt, g: &Global) -> anyhow::Result<ExitCode> {
    if !interrupt.raised() {
        return Err(e);
    }
    ui::fail(&e, g);
    Ok(ExitCode::from(130))
}

/// A run whose policy has been started.
struct Ready {
    runner: Runner,
    screen: Screen,
    path: PathBuf,
}

/// Starts the policy and shows what runs on what.
fn ready(
    prepared: Prepared,
    dir: RunDir,
    journal: Journal,
    budget: u64,
    interrupt: Interrupt,
    begun: Instant,
    g: &Global,
) -> anyhow::Result<Ready> {
    let path = dir.path().to_owned();
    let config = prepared.config.clone();
    let run = contract::Run {
        phase: "compress".into(),
        seed: config.seed,
        steps: config.steps,
        parameters: prepared.elastic.slices().iter().map(|s| s.dense_parameters).sum(),
        budget,
        attributes: Vec::new(),
    };
    let next = journal.events().steps().map(|s| s.step + 1).max().unwrap_or(1);
    let mut screen = Screen::new(g, interrupt, prepared.elastic.slices().to_vec(), next, config.steps);
    screen.opening(journal.events().run(), &path, begun.elapsed());
    let parts = Parts {
        elastic: prepared.elastic,
        policy: prepared.policy,
        evaluator: prepared.evaluator,
        moments: prepared.moments,
        tokenizer: prepared.tokenizer,
        windows: prepared.windows,
        batch: (BATCH_TOKENS / config.window).max(1),
        dir,
        run,
        parking: config.parking,
        max_faults: config.max_faults,
    };
    Ok(Ready { runner: Runner::new(parts, journal)?, screen, path })
}

impl Ready {
    /// Runs the loop, proves that everything can be woken, and shows the end.
    fn drive(self, begun: Instant, g: &Global) -> anyhow::Result<ExitCode> {
        let Ready { mut runner, mut screen, path } = self;
        let ended = match runner.run(&mut screen) {
            Ok(ended) => ended,
            Err(e @ step::StepError::Interrupted(_)) => {
                ui::fail(&e.into(), g);
                return Ok(ExitCode::from(130));
            }
            Err(e) => return Err(e.into()),
        };
        let wake = runner.prove_waking()?;
        screen.closing(runner.events(), &ended, &wake, &path, begun.elapsed());
        if !wake.identical {
            bail!("waking everything did not restore the base's outputs; please report this");
        }
        let events = runner.events();
        if g.quiet && !g.json {
            let of_last = events.steps().last().map_or_else(String::new, |s| format!(": {}", s.reason));
            let state = events
                .current()
                .map_or_else(|| "nothing was accepted".into(), |s| format!("step {} is current", s.step));
            say!("{}; {state}{of_last}", ended.reason);
        }
        let tried = events.steps().map(|s| s.fate).filter(|f| *f != Fate::Held).last();
        Ok(match (events.current(), tried) {
            _ if ended.benched => ExitCode::FAILURE,
            (None, Some(Fate::Rejected)) => ExitCode::from(3),
            (None, Some(Fate::Failed | Fate::Refused)) => ExitCode::FAILURE,
            _ => ExitCode::SUCCESS,
        })
    }
}

/// Loads everything; with `earlier`, checks that nothing the run depends on has changed.
fn prepare(
    mut config: RunConfig,
    earlier: Option<&RunRecord>,
    interrupt: &Interrupt,
    g: &Global,
) -> anyhow::Result<Prepared> {
    for path in [&config.policy, &config.evaluator, &config.data, &config.calibration] {
        if path.to_str().is_none() {
            bail!("{}: the path is not UTF-8, so no option file can hold it; rename it", path.display());
        }
    }
    // What is cheap and likely to be wrong comes first.
    let cache = paths::cache_dir();
    let loader = Loader::new(config.plugins.clone(), cache.clone());
    config.policy = absolute(locate::plugin(&config.policy, Some(&loader))?)?;
    if config.evaluator.as_os_str().is_empty() {
        config.evaluator = "perplexity".into();
    }
    config.evaluator = absolute(locate::plugin(&config.evaluator, Some(&loader))?)?;
    config.data = absolute(locate::text(&config.data, "data/eval.jsonl", "--data")?)?;
    let mut policy = loader.policy(&config.policy)?;
    let mut evaluator = loader.evaluator(&config.evaluator)?;
    if let Some(r) = earlier {
        same("policy", &config.policy, &policy.origin().sha256, &r.policy.origin.sha256)?;
        same("evaluator", &config.evaluator, &evaluator.origin().sha256, &r.evaluator.origin.sha256)?;
    }
    policy.configure(&json(&config.policy_options)?)?;
    evaluator.configure(&json(&evaluator_options(&config))?)?;
    if let Some(need) = policy.info().needs.iter().find(|n| Metric::from_need(n).is_none()) {
        return Err(step::StepError::UnknownNeed { plugin: policy.info().name.clone(), need: need.clone() }.into());
    }
    let needs_text = policy.info().needs.iter().any(|n| Metric::from_need(n).is_some_and(Metric::needs_moments));
    if needs_text {
        config.calibration = absolute(locate::text(&config.calibration, "data/calibration.jsonl", "--calibration")?)?;
    }

    mlx::device::init()?;
    let base = match earlier {
        Some(r) => Base { id: r.base_id.clone(), dir: r.base.clone() },
        None => base::open(&Some(config.base.clone()), g)?,
    };
    let base_sha256 = registry::checkpoint_hash(&base.dir)?;
    if let Some(r) = earlier {
        rundir::check_base(&base.dir, &r.base_sha256)?;
    }
    let tokenizer = Tokenizer::load(&base.dir)?;
    let (data, windows) = text_windows(&config.data, config.windows, &config, &tokenizer, "evaluation")?;
    if let Some(r) = earlier {
        same("evaluation text", &config.data, &data.sha256, &r.data.sha256)?;
    }
    let calibration = match needs_text {
        false => None,
        true => {
            let of = text_windows(&config.calibration, config.calibration_windows, &config, &tokenizer, "calibration")?;
            if let Some(expected) = earlier.and_then(|r| r.calibration.as_ref()) {
                same("calibration text", &config.calibration, &of.0.sha256, &expected.sha256)?;
            }
            Some(of)
        }
    };
    let model = Model::load(&base.dir, &LoadOptions::default())?;
    if let Some(limit) = model.config().max_position_embeddings.filter(|l| config.window > *l) {
        bail!("--window {}: this model has {limit} positions; use shorter windows", config.window);
    }
    let chosen = match earlier {
        Some(r) => rundir::positions(&r.slices, &model)?,
        None => choose(&model, &config.layers)?,
    };
    let moments = match &calibration {
        None => None,
        Some((_, windows)) => Some(calibrate(&model, &base_sha256, windows, &config, cache.as_deref(), interrupt, g)?),
    };
    Ok(Prepared {
        base,
        base_sha256,
        policy,
        evaluator,
        data,
        calibration: calibration.map(|(f, _)| f),
        moments,
        tokenizer,
        windows,
        elastic: Elastic::new(model, chosen),
        config,
    })
}

/// SHA-256 of the options that decide what a run does; it may be extended, so not the steps.
fn options_hash(config: &RunConfig) -> anyhow::Result<String> {
    let fixed = RunConfig { steps: 0, ..config.clone() };
    Ok(hash::sha256(toml::to_string(&fixed).context("writing the resolved options")?.as_bytes()))
}

/// A run can be resumed from any directory.
fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::fs::canonicalize(&path).with_context(|| path.display().to_string())
}

/// Options the evaluator gets: the user's, and `max_loss_increase` where it was given.
fn evaluator_options(config: &RunConfig) -> toml::Table {
    let mut options = config.evaluator_options.clone();
    if let Some(limit) = config.max_loss_increase {
        options.entry("max_loss_increase").or_insert(toml::Value::Float(limit));
    }
    options
}

fn plugin_record(origin: &plugin::Origin, info: &contract::Info, options: &toml::Table) -> PluginRecord {
    let options = json(options).unwrap_or_default();
    PluginRecord { origin: origin.clone(), info: info.clone(), options }
}

fn json(options: &toml::Table) -> anyhow::Result<serde_json::Value> {
    serde_json::to_value(options).context("options of a plugin")
}

fn same(what: &str, path: &Path, found: &str, expected: &str) -> anyhow::Result<()> {
    if found != expected {
        bail!(
            "{}: the {what} has changed since the run began (SHA-256 {found}, the run has {expected}); put it back, or start a new run",
            path.display()
        );
    }
    Ok(())
}

/// Windows of a text, spread evenly, and its hash.
fn text_windows(
    path: &Path,
    windows: usize,
    config: &RunConfig,
    tokenizer: &Tokenizer,
    what: &str,
) -> anyhow::Result<(FileRecord, Vec<Vec<u32>>)> {
    let set: Dataset = data::load(path)?;
    let cut = set.windows(tokenizer, config.window).with_context(|| format!("{what} text"))?;
    let chosen = data::spread(&cut, windows);
    Ok((FileRecord { path: path.to_owned(), sha256: set.sha256.clone() }, chosen))
}

/// Positions of the slices whose names match a glob; all without globs.
fn choose(model: &Model, globs: &[String]) -> anyhow::Result<Vec<usize>> {
    if globs.is_empty() {
        return Ok((0..model.slices().len()).collect());
    }
    let mut set = globset::GlobSetBuilder::new();
    for text in globs {
        set.add(globset::Glob::new(text).with_context(|| format!("--layers {text:?} is no glob"))?);
    }
    let set = set.build().context("--layers")?;
    let chosen: Vec<usize> =
        model.slices().iter().enumerate().filter(|(_, s)| set.is_match(&s.name)).map(|(i, _)| i).collect();
    if chosen.is_empty() {
        let example = model.slices().first().map_or("", |s| &s.name);
        bail!("--layers {} matches no slice; names look like {example}", globs.join(" "));
    }
    Ok(chosen)
}

/// Calibration statistics from the cache, or gathered now and put there.
fn calibrate(
    model: &Model,
    base_sha256: &str,
    windows: &[Vec<u32>],
    config: &RunConfig,
    cache: Option<&Path>,
    interrupt: &Interrupt,
    g: &Global,
) -> anyhow::Result<Moments> {
    let pass = moments::Pass { windows, gradient_windows: config.gradient_windows.max(1), seed: config.seed };
    let file = cache.map(|c| c.join("moments").join(format!("{}.safetensors", moments_key(base_sha256, &pass))));
    if let Some(found) = file.as_ref().and_then(|f| Moments::open(f, model.slices())) {
        return Ok(found);
    }
    // A covariance of fewer tokens than it has rows takes every other direction for worthless.
    let needed = model.slices().iter().map(|s| s.rows.min(s.cols) as usize).max().unwrap_or(0);
    let length = windows.first().map_or(0, Vec::len);
    for (what, count) in [
        ("--calibration-windows", windows.len()),
        ("--gradient-windows", config.gradient_windows.clamp(1, windows.len())),
    ] {
        if count * length < 2 * needed {
            tracing::warn!(
                "{} tokens of calibration text ({what} {count}) cannot tell {needed} directions apart: what is predicted to cost nothing may cost a lot; use {} windows or more",
                count * length,
                (2 * needed).div_ceil(length.max(1))
            );
        }
    }
    let bar = ui::bar(g, 1, "calibrating");
    let gathered = moments::gather(model, &pass, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        !interrupt.raised()
    });
    bar.finish_and_clear();
    let gathered = gathered?;
    if let Some(file) = file {
        // The statistics are at hand whether or not they can be kept.
        if let Err(e) = gathered.save(&file) {
            tracing::warn!("calibration statistics are not kept for the next run: {e}");
        }
    }
    Ok(gathered)
}

/// Everything the statistics depend on.
fn moments_key(base_sha256: &str, pass: &moments::Pass) -> String {
    let mut sha = Sha256::new();
    sha.update(b"moments 1\n");
    sha.update(base_sha256);
    sha.update((pass.gradient_windows as u64).to_le_bytes());
    sha.update(pass.seed.to_le_bytes());
    for w in pass.windows {
        sha.update((w.len() as u64).to_le_bytes());
        for t in w {
            sha.update(t.to_le_bytes());
        }
    }
    hash::hex(&sha.finalize())
}

fn default_out(config: &RunConfig) -> PathBuf {
    let policy = config.policy.file_stem().map_or_else(|| "run".into(), |s| s.to_string_lossy().into_owned());
    let stamp: String = step::now().chars().filter(char::is_ascii_alphanumeric).collect();
    let name = format!("{stamp}-{policy}");
    let taken = |n: &u32| !PathBuf::from("runs").join(suffixed(&name, *n)).exists();
    let n = (0..).find(taken).unwrap_or(0);
    PathBuf::from("runs").join(suffixed(&name, n))
}

fn suffixed(name: &str, n: u32) -> String {
    if n == 0 { name.to_owned() } else { format!("{name}-{n}") }
}
