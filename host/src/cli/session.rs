//! Puts a run together from its options, drives it, and shows it.

use super::interrupt::Interrupt;
use super::locate::Purpose;
use super::packs::using;
use super::show::Screen;
use super::watched::Watched;
use super::{Global, locate, ui};
use super::{awake, base};
use crate::eval::data::{self, Dataset};
use crate::mlx;
use crate::model::registry::{self, Base};
use crate::model::{Levels, LoadOptions, Model, Tokenizer, hash, paths};
use crate::pack::{InUse, Store, Weighted};
use crate::plastic::config::{Choice, RunConfig};
use crate::plastic::elastic::Elastic;
use crate::plastic::journal::{Event, Fate, FileRecord, History, Journal, PluginRecord, Role, RunRecord, SCHEMA};
use crate::plastic::moments::{self, Moments};
use crate::plastic::policies::{Policies, Seat};
use crate::plastic::rundir::{self, RunDir};
use crate::plastic::statistic::Statistic;
use crate::plastic::step::{self, Parts, Runner};
use crate::plugin::{self, Evaluator, Loader, contract};
use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Prompts with answers an evaluator is offered at most.
const EXAMPLES: usize = 64;
/// Tokens scored in one batch.
const BATCH_TOKENS: usize = 4096;

/// A run whose plugins, texts and model are loaded.
struct Prepared {
    config: RunConfig,
    base: Base,
    base_sha256: String,
    /// What of an elastic checkpoint is awake.
    awake: Option<Levels>,
    packs: InUse,
    loader: Loader,
    policies: Policies,
    evaluators: Vec<Box<dyn Evaluator>>,
    data: FileRecord,
    calibration: Option<FileRecord>,
    moments: Option<Moments>,
    tokenizer: Tokenizer,
    windows: Vec<Vec<u32>>,
    examples: Vec<contract::Example>,
    elastic: Elastic,
}

/// Begins a new run.
pub fn begin(config: RunConfig, store: &Store, out: Option<&Path>, g: &Global) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let interrupt = Interrupt::listen()?;
    let path = out.map_or_else(|| default_out(&config), Path::to_path_buf);
    if path.to_str().is_none() {
        bail!("--out {}: the path is not UTF-8; name another directory", path.display());
    }
    let dir = RunDir::create(&path)?;
    let prepared = match prepare(config, From::New(store), &interrupt, g) {
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
    let policies = &prepared.policies;
    let seats = |seats: &[Seat], choices: &[Choice]| -> Vec<PluginRecord> {
        seats.iter().zip(choices).map(|(s, c)| plugin_record(s.policy.origin(), s.policy.info(), &c.options)).collect()
    };
    let evaluators = prepared.evaluators.iter().zip(&config.evaluator);
    let record = RunRecord {
        schema: SCHEMA,
        program: env!("CARGO_PKG_VERSION").into(),
        time: step::now(),
        base: prepared.base.dir.clone(),
        base_id: prepared.base.id.clone(),
        base_sha256: prepared.base_sha256.clone(),
        awake_budget: config.awake_budget,
        awake: prepared.awake.clone(),
        packs: prepared.packs.used(),
        policies: seats(&policies.line, &config.policy),
        shadows: seats(&policies.shadows, &config.shadow),
        fallback: seats(policies.fallback.as_slice(), &config.fallback).pop(),
        evaluators: evaluators.map(|(e, c)| plugin_record(e.origin(), e.info(), &c.options)).collect(),
        told: told(&prepared, budget),
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
    let bytes =
        crate::atomic::read_bounded(&dir.config(), 1 << 20).with_context(|| dir.config().display().to_string())?;
    let text = String::from_utf8(bytes).with_context(|| dir.config().display().to_string())?;
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
    let mut prepared = match prepare(config, From::Old(journal.events()), &interrupt, g) {
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
    journal.append(Event::Resume { time: step::now(), steps: prepared.config.steps })?;
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

/// The run as policies are told of it.
fn told(prepared: &Prepared, budget: u64) -> contract::Run {
    let mut metrics: Vec<String> = Vec::new();
    for e in &prepared.evaluators {
        if let Some(contract::Value::Texts(names)) = contract::attribute(&e.info().attributes, "metrics") {
            metrics.extend(names.iter().filter(|n| !metrics.contains(n)).cloned().collect::<Vec<_>>());
        }
    }
    let attribute = |metrics| contract::Attribute { name: "metrics".into(), value: contract::Value::Texts(metrics) };
    contract::Run {
        phase: "compress".into(),
        seed: prepared.config.seed,
        steps: prepared.config.steps,
        parameters: prepared.elastic.slices().iter().map(|s| s.dense_parameters).sum(),
        budget,
        attributes: if metrics.is_empty() { Vec::new() } else { vec![attribute(metrics)] },
    }
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
    let run = told(&prepared, budget);
    let next = journal.events().steps().map(|s| s.step + 1).max().unwrap_or(1);
    let mut screen = Screen::new(g, interrupt, prepared.elastic.slices().to_vec(), next, config.steps);
    screen.opening(journal.events().run(), &path, begun.elapsed());
    let parts = Parts {
        elastic: prepared.elastic,
        watch: config.watch.then(|| Box::new(Watched::new(&config, prepared.loader)) as Box<dyn step::Watch>),
        policies: prepared.policies,
        evaluators: prepared.evaluators,
        on_fault: config.on_fault,
        record: config.record.clone(),
        moments: prepared.moments,
        tokenizer: prepared.tokenizer,
        windows: prepared.windows,
        examples: prepared.examples,
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

/// Where a run begins.
enum From<'a> {
    /// Anew, with packs from here.
    New(&'a Store),
    /// Where an earlier one was interrupted.
    Old(&'a [Event]),
}

/// Loads everything; for an earlier run, checks that nothing it depends on has changed.
fn prepare(mut config: RunConfig, from: From, interrupt: &Interrupt, g: &Global) -> anyhow::Result<Prepared> {
    let plugins = config.policy.iter().chain(&config.shadow).chain(&config.fallback).chain(&config.evaluator);
    for path in plugins.map(|c| &c.file).chain([&config.data, &config.calibration]) {
        if path.to_str().is_none() {
            bail!("{}: the path is not UTF-8, so no option file can hold it; rename it", path.display());
        }
    }
    let earlier = match from {
        From::New(_) => None,
        From::Old(events) => Some(events),
    };
    // What is cheap and likely to be wrong comes first.
    let loader = super::rules::loader(config.plugins.clone());
    let policies = Policies {
        line: policies(&loader, &mut config.policy, Role::Policy, earlier)?,
        shadows: policies(&loader, &mut config.shadow, Role::Shadow, earlier)?,
        fallback: policies(&loader, &mut config.fallback, Role::Fallback, earlier)?.pop(),
    };
    policies.check_order().map_err(step::StepError::Order)?;
    let mut evaluators = Vec::new();
    for (place, choice) in config.evaluator.iter_mut().enumerate() {
        choice.file = absolute(locate::plugin(&choice.file, Some(&loader))?)?;
        let mut e = loader.evaluator(&choice.file)?;
        let known = earlier.and_then(|events| events.plugin(Role::Evaluator, place));
        unchanged("evaluator", &choice.file, e.origin(), known)?;
        if let Some(limit) = config.max_loss_increase
            && plugin::options::specs(e.info()).iter().any(|o| o.name == "max_loss_increase")
        {
            choice.options.entry("max_loss_increase").or_insert(toml::Value::Float(limit));
        }
        e.configure(&options_for(e.info(), &choice.options)?)?;
        evaluators.push(e);
    }
    if config.max_loss_increase.is_some()
        && !config.evaluator.iter().any(|c| c.options.contains_key("max_loss_increase"))
    {
        bail!("--max-loss-increase: none of the evaluators has the option max_loss_increase");
    }
    config.data = in_place(locate::text(&config.data, "data/eval.jsonl", "--data", Purpose::Judge, g)?)?;
    for (name, needs) in
        policies.infos().iter().map(|i| (i.name.as_str(), &i.needs)).chain([("--record", &config.record)])
    {
        if let Some(need) = needs.iter().find(|n| Statistic::parse(n).is_none()) {
            return Err(step::StepError::UnknownNeed { plugin: name.into(), need: need.clone() }.into());
        }
    }
    let wanted = policies.needs();
    let needs_text =
        wanted.iter().chain(&config.record).any(|n| Statistic::parse(n).is_some_and(Statistic::needs_moments));
    if needs_text {
        let named = &config.calibration;
        let found = locate::text(named, "data/calibration.jsonl", "--calibration", Purpose::Learn, g)?;
        config.calibration = in_place(found)?;
    }

    let events = earlier;
    let earlier = events.and_then(|e| e.run());
    mlx::device::init()?;
    let base = match earlier {
        Some(r) => Base { id: r.base_id.clone(), dir: r.base.clone() },
        None => base::open(&Some(config.base.clone()), g)?,
    };
    let awake = match earlier {
        Some(r) => r.awake.clone(),
        None => awake::levels(config.awake_budget, &base.dir)?,
    };
    let base_sha256 = registry::state_hash(&base.dir, awake.as_ref())?;
    if let Some(r) = earlier {
        rundir::check_base(&base.dir, r.awake.as_ref(), &r.base_sha256)?;
    }
    let packs = match (from, earlier, &config.packs) {
        (_, Some(r), _) => InUse::recorded(&r.packs)?,
        (From::New(store), _, Some(named)) => InUse::read(store, named)?,
        (From::New(store), _, None) => InUse::active(store, &base.dir)?,
        (From::Old(_), None, _) => InUse::default(),
    };
    if earlier.is_none() {
        let weighted = |u: crate::pack::Used| Weighted { pack: u.pack, weight: u.weight };
        config.packs = Some(packs.used().into_iter().map(weighted).collect());
    }
    let tokenizer = Tokenizer::load(&base.dir)?;
    let (data, windows, examples) = evaluation_text(&config, &tokenizer)?;
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
    let mut model = Model::load(&base.dir, &LoadOptions { levels: awake.clone(), ..LoadOptions::default() })?;
    packs.attach(&mut model, &base.dir)?;
    using::tell(&packs, g);
    if let Some(limit) = model.config().max_position_embeddings.filter(|l| config.window > *l) {
        bail!("--window {}: this model has {limit} positions; use shorter windows", config.window);
    }
    let chosen = match earlier {
        Some(r) => rundir::positions(&r.slices, &model)?,
        None => choose(&model, &config.layers)?,
    };
    let moments = match &calibration {
        None => None,
        Some((_, windows)) => Some(calibrate(
            &model,
            &identity(&base_sha256, &packs.used()),
            &pass(&config, windows),
            paths::cache_dir().as_deref(),
            interrupt,
            g,
        )?),
    };
    Ok(Prepared {
        base,
        base_sha256,
        awake,
        packs,
        loader,
        policies,
        evaluators,
        data,
        calibration: calibration.map(|(f, _)| f),
        moments,
        tokenizer,
        windows,
        examples,
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
pub(super) fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    std::fs::canonicalize(&path).with_context(|| path.display().to_string())
}

/// The same for a text, whose own name is kept: in the hub's cache it is a link to contents without an ending.
pub(super) fn in_place(path: PathBuf) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => Ok(absolute(dir.to_owned())?.join(name)),
        _ => Ok(path),
    }
}

/// Loads and configures the policies of one role; paths become absolute.
pub(super) fn policies(
    loader: &Loader,
    choices: &mut [Choice],
    role: Role,
    earlier: Option<&[Event]>,
) -> anyhow::Result<Vec<Seat>> {
    let mut out = Vec::with_capacity(choices.len());
    for (place, choice) in choices.iter_mut().enumerate() {
        choice.file = absolute(locate::plugin(&choice.file, Some(loader))?)?;
        let mut p = loader.policy(&choice.file)?;
        unchanged("policy", &choice.file, p.origin(), earlier.and_then(|events| events.plugin(role, place)))?;
        p.configure(&options_for(p.info(), &choice.options)?)?;
        out.push(Seat::new(p));
    }
    Ok(out)
}

/// A resumed run goes on with the plugins it had.
fn unchanged(what: &str, file: &Path, found: &plugin::Origin, known: Option<&PluginRecord>) -> anyhow::Result<()> {
    known.map_or(Ok(()), |k| same(what, file, &found.sha256, &k.origin.sha256))
}

pub(super) fn plugin_record(origin: &plugin::Origin, info: &contract::Info, options: &toml::Table) -> PluginRecord {
    let options = options_for(info, options).unwrap_or_default();
    PluginRecord { origin: origin.clone(), info: info.clone(), options }
}

/// Options as the plugin they are meant for takes them.
pub(super) fn options_for(info: &contract::Info, options: &toml::Table) -> anyhow::Result<serde_json::Value> {
    let options = serde_json::to_value(options).context("options of a plugin")?;
    Ok(plugin::options::as_texts(info, options))
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

/// Windows and examples of the evaluation text, spread evenly, and its hash.
pub(super) fn evaluation_text(
    config: &RunConfig,
    tokenizer: &Tokenizer,
) -> anyhow::Result<(FileRecord, Vec<Vec<u32>>, Vec<contract::Example>)> {
    let mut set = data::load(&config.data)?;
    set.thin(config.windows, config.window);
    let windows = set.evaluation_windows(tokenizer, config.window).context("evaluation text")?;
    let examples = set.examples(tokenizer, EXAMPLES)?;
    let record = FileRecord { path: config.data.clone(), sha256: set.sha256.clone() };
    Ok((record, data::spread(&windows, config.windows), examples))
}

/// Windows of a text, spread evenly, and its hash.
pub(super) fn text_windows(
    path: &Path,
    windows: usize,
    config: &RunConfig,
    tokenizer: &Tokenizer,
    what: &str,
) -> anyhow::Result<(FileRecord, Vec<Vec<u32>>)> {
    let mut set: Dataset = data::load(path)?;
    set.thin(windows, config.window);
    let cut = set.windows(tokenizer, config.window).with_context(|| format!("{what} text"))?;
    let chosen = data::spread(&cut, windows);
    Ok((FileRecord { path: path.to_owned(), sha256: set.sha256.clone() }, chosen))
}

/// Positions of the slices whose names match a glob; all without globs.
pub(super) fn choose(model: &Model, globs: &[String]) -> anyhow::Result<Vec<usize>> {
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

/// Where calibration text has fewer tokens than its statistics need: a covariance of fewer tokens than it has rows
/// takes every other direction for worthless.
pub(super) fn too_little(model: &Model, pass: &moments::Pass) -> Vec<String> {
    let needed = model.slices().iter().map(|s| s.rows.min(s.cols) as usize).max().unwrap_or(0);
    let length = pass.windows.first().map_or(0, Vec::len);
    let say = |(what, count): (&str, usize)| {
        format!(
            "{} tokens of calibration text ({what} {count}) cannot tell {needed} directions apart: what is predicted to cost nothing may cost a lot; use {} windows or more",
            count * length,
            (2 * needed).div_ceil(length.max(1))
        )
    };
    let gradients = pass.gradient_windows.clamp(1, pass.windows.len().max(1));
    [("--calibration-windows", pass.windows.len()), ("--gradient-windows", gradients)]
        .into_iter()
        .filter(|(_, count)| count * length < 2 * needed)
        .map(say)
        .chain(monotonous(pass.windows))
        .collect()
}

/// A text of few different tokens shows few directions, however long it is.
fn monotonous(windows: &[Vec<u32>]) -> Option<String> {
    const ENOUGH: usize = 64;
    let different: std::collections::BTreeSet<u32> = windows.iter().flatten().copied().collect();
    (different.len() < ENOUGH).then(|| {
        format!(
            "the calibration text has {} different tokens only: what it never shows is taken for worthless, and the model may be ruined; use ordinary text",
            different.len()
        )
    })
}

/// A pass over calibration text, as the options have it.
pub(super) fn pass<'a>(config: &RunConfig, windows: &'a [Vec<u32>]) -> moments::Pass<'a> {
    moments::Pass { windows, gradient_windows: config.gradient_windows.max(1), seed: config.seed, of: None }
}

/// Calibration statistics from the cache, or gathered now and put there.
pub(super) fn calibrate(
    model: &Model,
    model_id: &str,
    pass: &moments::Pass,
    cache: Option<&Path>,
    interrupt: &Interrupt,
    g: &Global,
) -> anyhow::Result<Moments> {
    for warning in too_little(model, pass) {
        tracing::warn!("{warning}");
    }
    let file = cache.map(|c| c.join("moments").join(format!("{}.safetensors", moments_key(model_id, pass))));
    if let Some(found) = file.as_ref().and_then(|f| Moments::open(f, model.slices())) {
        return Ok(found);
    }
    let bar = ui::bar(g, 1, "calibrating");
    let gathered = moments::gather(model, pass, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        !interrupt.raised()
    });
    bar.finish_and_clear();
    let gathered = gathered?;
    if let Some(file) = file {
        match gathered.save(&file) {
            // From here on they are read from there, one after the other.
            Ok(()) => return Ok(Moments::open(&file, model.slices()).unwrap_or(gathered)),
            // The statistics are at hand whether or not they can be kept.
            Err(e) => tracing::warn!("calibration statistics are not kept for the next run: {e}"),
        }
    }
    Ok(gathered)
}

/// What model calibration text runs through: the base, and packs to the byte. The name of a pack is not part of it.
pub(super) fn identity(base_sha256: &str, packs: &[crate::pack::Used]) -> String {
    let pack = |u: &crate::pack::Used| format!("\npack {} {:08x}", u.sha256, u.weight.to_bits());
    base_sha256.to_owned() + &packs.iter().map(pack).collect::<String>()
}

/// Everything the statistics depend on.
fn moments_key(model_id: &str, pass: &moments::Pass) -> String {
    let mut sha = Sha256::new();
    sha.update(b"moments 2\n");
    sha.update(model_id);
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
    let policy = config.policy.first().map_or_else(|| "run".into(), Choice::stem);
    let stamp: String = step::now().chars().filter(char::is_ascii_alphanumeric).collect();
    let name = format!("{stamp}-{policy}");
    let taken = |n: &u32| !PathBuf::from("runs").join(suffixed(&name, *n)).exists();
    let n = (0..).find(taken).unwrap_or(0);
    PathBuf::from("runs").join(suffixed(&name, n))
}

fn suffixed(name: &str, n: u32) -> String {
    if n == 0 { name.to_owned() } else { format!("{name}-{n}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn statistics_are_kept_apart_by_packs_and_weights() {
        let windows = [vec![1, 2, 3]];
        let pass = moments::Pass { windows: &windows, gradient_windows: 1, seed: 0, of: None };
        let used = |sha256: &str, weight: f32| crate::pack::Used {
            pack: "a".into(),
            weight,
            sha256: sha256.into(),
            dir: PathBuf::new(),
        };
        let key = |packs: &[crate::pack::Used]| moments_key(&identity("base", packs), &pass);
        let keys = [
            key(&[]),
            key(&[used("x", 1.0)]),
            key(&[used("y", 1.0)]),
            key(&[used("x", 0.5)]),
            key(&[used("x", 1.0), used("y", 1.0)]),
        ];
        for (i, k) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(k), "{i}");
        }
        // What was gathered before there were packs is found again.
        assert_eq!(keys[0], moments_key("base", &pass));
    }
}
