//! Puts a training together, drives it, and shows it.

use super::{Global, show, ui};
use crate::cli::base;
use crate::cli::interrupt::Interrupt;
use crate::eval::data::{self, Cutting, Window};
use crate::mlx;
use crate::model::{LoadOptions, Model, Tokenizer, layout};
use crate::pack::train::checkpoint::{Begun, TrainingDir};
use crate::pack::train::drawing::History;
use crate::pack::train::options::Options;
use crate::pack::train::{Decision, Ended, Parts, StepMetrics, Trainer, Validation, Watcher};
use crate::pack::{Meta, Store};
use crate::plastic::policies::{Policies, Seat};
use anyhow::bail;
use indicatif::ProgressBar;
use std::process::ExitCode;
use std::time::Instant;

/// Begins a training.
pub fn begin(options: Options, force: bool, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let dir = TrainingDir::of(store, &options.name)?;
    let lock = store.lock(&options.name)?;
    store.free(&options.name, force)?;
    if dir.is_there() && !force {
        bail!(
            "{}: a training of {name} was begun and not finished; go on with `plastic-host packs resume {name}`, or begin anew with --force",
            dir.path().display(),
            name = options.name
        );
    }
    let mut prepared = prepare(options, store, g)?;
    prepared.begun.time = super::time();
    prepared.begun.force = force;
    dir.create(&prepared.begun)?;
    drive(prepared, &dir, store, &lock, g)
}

/// Goes on with a training.
pub fn resume(name: &str, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let dir = TrainingDir::of(store, name)?;
    let lock = store.lock(name)?;
    if !dir.is_there() {
        bail!(
            "{}: no unfinished training of {name}; begin one with `plastic-host packs create`",
            store.root().display()
        );
    }
    let begun = dir.begun()?;
    if begun.options.name != name {
        bail!("{}: is a training of {}", dir.path().display(), begun.options.name);
    }
    begun.options.check().map_err(|why| anyhow::anyhow!("{}: {why}", dir.path().display()))?;
    if store.has(name) && !begun.force {
        bail!(
            "{}: there is a pack {name} by now, which the training would replace; give it another name with `plastic-host packs rename`, or delete it",
            store.root().display()
        );
    }
    let mut prepared = prepare(begun.options.clone(), store, g)?;
    for (what, then, now) in [
        ("the base", &begun.base_sha256, &prepared.begun.base_sha256),
        ("the text", &begun.rows_sha256, &prepared.begun.rows_sha256),
    ] {
        if then != now {
            bail!(
                "{what} has changed since the training of {name} began; put it back, or begin anew with `packs create --force`"
            );
        }
    }
    prepared.begun = begun;
    prepared.trainer.resume(&dir)?;
    if !g.quiet && !g.json {
        note!("goes on after update {} of {}", prepared.trainer.step(), prepared.begun.options.steps);
    }
    drive(prepared, &dir, store, &lock, g)
}

/// Deletes an unfinished training.
pub fn discard(name: &str, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let dir = TrainingDir::of(store, name)?;
    let _lock = store.lock(name)?;
    if !dir.is_there() {
        bail!("{}: no unfinished training of {name}", store.root().display());
    }
    dir.remove()?;
    match g.json {
        true => say!("{}", serde_json::json!({ "discarded": name })),
        false => say!("deleted the unfinished training of {name}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// A training whose model and texts are loaded.
struct Prepared {
    trainer: Trainer,
    begun: Begun,
    base_id: String,
    text: serde_json::Value,
    interrupt: Interrupt,
    parameters: u64,
}

fn prepare(mut options: Options, store: &Store, g: &Global) -> anyhow::Result<Prepared> {
    // The texts first: they are cheap to read and likely to be wrong.
    let policies = policies(&mut options)?;
    let dataset = data::load(&options.data)?;
    let validation = options.valid.as_ref().map(|v| data::load(v)).transpose()?;
    let from = options.from_pack.as_ref().map(|p| store.read(p)).transpose()?;
    let interrupt = Interrupt::listen()?;
    mlx::device::init()?;
    let base = base::open(&Some(options.base.clone()), g)?;
    let base_sha256 = layout::checkpoint_hash(&base.dir)?;
    if let Some(pack) = &from {
        crate::pack::attach::check_base(pack, &base.dir)?;
    }
    let tokenizer = Tokenizer::load(&base.dir)?;
    let model = Model::load(&base.dir, &LoadOptions::default())?;
    if let Some(limit) = model.config().max_position_embeddings.filter(|limit| options.sequence_length > *limit) {
        bail!(
            "--sequence-length {}: this model has {limit} positions (max_position_embeddings)",
            options.sequence_length
        );
    }
    let cutting = |pack: bool| Cutting { window: options.sequence_length, loss: options.loss, pack, keep_tail: false };
    let mut rows = dataset.cut(&tokenizer, &cutting(options.packing))?.windows;
    let valid = match &validation {
        Some(v) => data::spread(&v.cut(&tokenizer, &cutting(false))?.windows, options.valid_windows),
        None => hold_back(&mut rows, &options),
    };
    let rows_sha256 = data::fingerprint(&rows) + &data::fingerprint(&valid);
    let text = serde_json::json!({
        "file": options.data.file_name().map(|n| n.to_string_lossy()),
        "sha256": dataset.sha256,
        "rows": rows.len(),
        "unusable_rows": dataset.unusable,
        "validation_file": options.valid.as_ref().and_then(|v| v.file_name()).map(|n| n.to_string_lossy()),
        "validation_sha256": validation.as_ref().map(|v| &v.sha256),
        "validation_windows": valid.len(),
    });
    // Kept with the ranks they gave: a resumed training computes nothing again.
    if let Some(auto) = options.auto.take() {
        let mut rules = crate::pack::train::auto::rules(&auto, &options.layers, &model, options.profile)?;
        rules.append(&mut options.ranks);
        options.ranks = rules;
    }
    let trainer = Trainer::new(Parts { model, options: options.clone(), rows, valid, from, policies })?;
    let parameters = trainer.targets().iter().map(|t| (t.rank * (t.rows + t.cols)) as u64).sum();
    if std::path::Path::new(&options.base).exists() {
        // A resumed training may run from another directory.
        options.base = std::path::absolute(&options.base)?.display().to_string();
    }
    let begun = Begun::new(options, base_sha256, rows_sha256);
    Ok(Prepared { trainer, begun, base_id: base.id, text, interrupt, parameters })
}

/// Loads and configures who changes ranks; the files and their hashes go into the options.
fn policies(options: &mut Options) -> anyhow::Result<Option<Policies>> {
    let Some(r) = &mut options.ranks_by else { return Ok(None) };
    let loader = crate::cli::rules::loader(r.rules.clone());
    let mut line = Vec::with_capacity(r.policies.len());
    let mut hashes = Vec::with_capacity(r.policies.len());
    for choice in &mut r.policies {
        choice.file = std::path::absolute(crate::cli::locate::plugin(&choice.file, Some(&loader))?)?;
        let mut policy = loader.policy(&choice.file)?;
        policy.configure(&crate::cli::session::options_for(policy.info(), &choice.options)?)?;
        hashes.push(policy.origin().sha256.clone());
        line.push(Seat::new(policy));
    }
    if !r.sha256.is_empty() && r.sha256 != hashes {
        bail!(
            "a policy has changed since the training began; put its file back, or begin anew with `packs create --force`"
        );
    }
    r.sha256 = hashes;
    Ok(Some(Policies { line, shadows: Vec::new(), fallback: None }))
}

/// Takes a share of the rows, spread evenly, out of the training: at least one where there are twenty.
fn hold_back(rows: &mut Vec<Window>, options: &Options) -> Vec<Window> {
    let n = (rows.len() as f64 * options.valid_share).floor() as usize;
    let n = if rows.len() >= 20 && options.valid_share > 0.0 { n.max(1) } else { n };
    let most = if options.valid_windows == 0 { n } else { n.min(options.valid_windows) };
    if most == 0 {
        return Vec::new();
    }
    let held: Vec<usize> = (0..most).map(|i| i * rows.len() / most).collect();
    let valid = held.iter().filter_map(|&i| rows.get(i).cloned()).collect();
    let mut at = 0;
    rows.retain(|_| {
        at += 1;
        held.binary_search(&(at - 1)).is_err()
    });
    valid
}

fn drive(
    mut p: Prepared,
    dir: &TrainingDir,
    store: &Store,
    lock: &crate::atomic::Lock,
    g: &Global,
) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let o = p.begun.options.clone();
    if !g.quiet && !g.json {
        let targets = p.trainer.targets();
        let ranks: usize = targets.iter().map(|t| t.rank).sum();
        note!(
            "pack {}: {} adapters of {ranks} components in all, {} parameters; {} rows of {} tokens{}",
            o.name,
            targets.len(),
            show::millions(p.parameters),
            p.trainer.rows(),
            o.sequence_length,
            if o.valid.is_some() || p.text["validation_windows"] != 0 {
                ""
            } else {
                "; no validation text (--valid-data)"
            }
        );
    }
    if let Some(r) = o.ranks_by.as_ref().filter(|r| r.warmup.max(1) > o.steps) {
        tracing::warn!(
            "no decision about ranks will be taken: the first comes after update {} (--rank-warmup), and there are {} (--steps)",
            r.warmup.max(1),
            o.steps
        );
    }
    let bar = ui::bar(g, u64::from(o.steps), "training");
    bar.set_position(u64::from(p.trainer.step()));
    bar.reset_eta();
    let mut screen = Screen { g, interrupt: p.interrupt.clone(), bar, rate: 0.0 };
    let ended = p.trainer.run(dir, &mut screen);
    screen.bar.finish_and_clear();
    let Some(ended) = ended? else {
        let resume = format!("interrupted; nothing is lost: go on with `plastic-host packs resume {}`", o.name);
        ui::fail(&anyhow::anyhow!(resume), g);
        return Ok(ExitCode::from(130));
    };
    let mut training_config = serde_json::to_value(&o)?;
    if let Some(map) = training_config.as_object_mut() {
        // A pack travels: no paths of this machine in it.
        for (field, path) in [("data", Some(&o.data)), ("valid", o.valid.as_ref())] {
            let name = path.and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
            map.insert(field.into(), name.into());
        }
        map.insert("base".into(), p.base_id.clone().into());
        map.insert("steps_done".into(), ended.steps.into());
        map.insert("best".into(), serde_json::to_value(ended.best)?);
        map.insert("base_loss".into(), serde_json::to_value(ended.base_loss)?);
    }
    let meta = Meta {
        base_hash: p.begun.base_sha256.clone(),
        base_model: p.base_id.clone(),
        training_data: Some(p.text.clone()),
        training_config,
        created_at: p.begun.time.clone(),
        ..Meta::default_of(&o)
    };
    let pack = p.trainer.finished(&meta)?;
    if pack.adapters.is_empty() {
        bail!(
            "no component of any adapter is awake, so there is nothing to write; the training is kept in {}",
            dir.path().display()
        );
    }
    let keep = |name: &str| dir.path().join(name);
    let history = std::fs::read_to_string(keep("ranks.jsonl")).ok().and_then(|text| History::read(&text));
    if let Some(history) = history {
        crate::atomic::write_file(&keep("ranks.svg"), history.svg().as_bytes())?;
    }
    let path =
        store.put_with(&pack, p.begun.force, lock, &[keep("metrics.jsonl"), keep("ranks.jsonl"), keep("ranks.svg")])?;
    dir.remove()?;
    report(&pack, &path, &ended, begun.elapsed().as_secs_f64(), g)?;
    Ok(ExitCode::SUCCESS)
}

fn report(pack: &crate::pack::Pack, path: &std::path::Path, e: &Ended, wall: f64, g: &Global) -> anyhow::Result<()> {
    let speed = e.tokens as f64 / e.seconds.max(1e-9);
    let (_, peak) = mlx::memory::mlx();
    let rss = mlx::memory::rss().map(|(_, peak)| peak);
    if g.json {
        let document = serde_json::json!({
            "pack": pack.name(), "path": path, "bytes": pack.nbytes(), "adapters": pack.adapters.len(),
            "total_rank": pack.total_rank(), "ended": e, "seconds": wall, "tokens_per_second": speed,
            "peak_mlx_bytes": peak, "peak_process_bytes": rss,
        });
        say!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    if let (Some(base), Some((step, loss))) = (e.base_loss, e.best) {
        say!(
            "validation  perplexity {:.3} → {:.3} ({:+.1} %), best after update {step} of {}",
            base.exp(),
            loss.exp(),
            100.0 * ((loss - base).exp() - 1.0),
            e.steps
        );
    }
    if let Some(why) = &e.stopped {
        say!("ended early {why}");
    }
    say!(
        "pack        {}: {} adapters, {} components, {}",
        path.display(),
        pack.adapters.len(),
        pack.total_rank(),
        show::megabytes(pack.nbytes())
    );
    if !g.quiet {
        say!("speed       {speed:.0} tokens/s, {wall:.1} s in all");
        let process = rss.map_or(String::new(), |b| format!(", {} in the process", show::megabytes(b)));
        say!("peak memory {} in MLX{process}", show::megabytes(peak));
    }
    Ok(())
}

/// Progress on the terminal.
struct Screen<'a> {
    g: &'a Global,
    interrupt: Interrupt,
    bar: ProgressBar,
    /// Tokens a second, smoothed.
    rate: f64,
}

impl Watcher for Screen<'_> {
    fn step(&mut self, m: &StepMetrics, _of: u32) {
        self.rate = if self.rate == 0.0 { m.tokens_per_second } else { 0.9 * self.rate + 0.1 * m.tokens_per_second };
        self.bar.set_position(u64::from(m.step));
        self.bar.set_message("training");
        self.bar.set_prefix(format!("loss {:.4}, {:.0} tokens/s", m.loss, self.rate));
    }

    fn validated(&mut self, v: &Validation) {
        if self.g.quiet || self.g.json {
            return;
        }
        let what = match (v.step, v.best) {
            (0, _) => "the base",
            (_, true) => "best so far",
            (_, false) => "not better",
        };
        self.bar.suspend(|| {
            note!(
                "update {:>5}: validation loss {:.4}, perplexity {:.3} ({what})",
                v.step,
                v.valid_loss,
                v.valid_perplexity
            );
        });
    }

    fn decided(&mut self, d: &Decision) {
        if self.g.quiet || self.g.json {
            return;
        }
        self.bar.suspend(|| note!("update {:>5}: ranks {}: {}", d.step, d.fate, d.reason));
    }

    fn scoring(&mut self, done: usize, of: usize) {
        // The bar counts updates; while windows are scored it has no time left to tell.
        self.bar.set_message(if done == of { "training".to_owned() } else { format!("validating {done}/{of}") });
    }

    fn interrupted(&self) -> bool {
        self.interrupt.raised()
    }
}
