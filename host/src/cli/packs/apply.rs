//! `plastic-host packs apply`.

use super::{Global, base, fused, output, show, table};
use crate::mlx;
use crate::model::registry::Base;
use crate::model::{LoadOptions, Model, Tokenizer, layout};
use crate::pack::attach::{self, Attachment};
use crate::pack::probe::{self, Difference};
use crate::pack::{InUse, Store, Used, Weighted};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Text that shows what packs change, where none is given.
const PROBE: &str = "To be, or not to be, that is the question: whether it is nobler in the mind to";

/// Options of `packs apply`.
#[derive(clap::Args, Debug)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Examples:
  plastic-host packs apply --name shakespeare --base smollm2-135m --dry-run
  plastic-host packs apply shakespeare --probe 'Shall I compare thee to'
  plastic-host packs apply --pack shakespeare:0.7 --pack chess --activate
  plastic-host packs apply shakespeare --fuse fused --fuse-bits 8

With --activate, generate, eval and run use these packs on this base until `packs remove`, or until other packs are
activated. Without it nothing changes: the packs are checked and their effect is shown."
)]
pub struct ApplyArgs {
    /// Pack, with a weight where it is not 1
    #[arg(value_name = "NAME[:W]")]
    names: Vec<Weighted>,
    /// The same, as an option
    #[arg(long, value_name = "NAME[:W]")]
    name: Vec<Weighted>,
    /// The same, for several packs
    #[arg(long, value_name = "NAME[:W]")]
    pack: Vec<Weighted>,
    /// Base model: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short)]
    base: Option<String>,
    /// Check only: name, hash, geometry, types, finiteness, size
    #[arg(long)]
    dry_run: bool,
    /// Use these packs on this base from now on
    #[arg(long, conflicts_with = "dry_run")]
    activate: bool,
    #[command(flatten)]
    fuse: fused::FuseOptions,
    /// Text on which the change is shown
    #[arg(long, value_name = "TEXT", default_value = PROBE)]
    probe: String,
    /// Also write the JSON document to a file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Milliseconds of making packs work on a model.
#[derive(serde::Serialize)]
struct Times {
    /// Reading and checking the files.
    read: f64,
    /// Checking them against the model, and making what they add.
    prepare: f64,
    /// Putting it on the model.
    attach: f64,
    /// All of it.
    total: f64,
}

/// What is reported; the fields before `packs` are those of the Python program's session file.
#[derive(serde::Serialize)]
struct Report {
    pack: String,
    pack_dir: PathBuf,
    base: PathBuf,
    base_hash: String,
    timestamp: String,
    base_id: String,
    packs: Vec<Used>,
    adapters: usize,
    total_rank: usize,
    slices: usize,
    bytes: u64,
    bytes_attached: u64,
    milliseconds: Times,
    dry_run: bool,
    active: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<Difference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fuse: Option<fused::Report>,
}

/// A model with what packs would add to it.
pub(super) struct Fitted {
    pub base: Base,
    hash: String,
    pub model: Model,
    pub tokenizer: Tokenizer,
    packs: InUse,
    pub attachment: Attachment,
    times: Times,
}

/// Checks packs against a base, shows what they change and puts them to use.
///
/// # Errors
/// When a pack is not there, is damaged or does not fit; nothing is changed then.
pub fn run(args: &ApplyArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let names: Vec<Weighted> = args.names.iter().chain(&args.name).chain(&args.pack).cloned().collect();
    if names.is_empty() {
        note!("error: no pack named\n\n  plastic-host packs apply NAME   checks a pack and shows what it changes");
        return Ok(ExitCode::from(2));
    }
    output::check(store, &[("--out", args.out.as_ref())], &[])?;
    args.fuse.check(store)?;
    // A record that cannot be read cannot be changed either.
    store.all_active()?;
    let mut fitted = fit(&names, args, store, g)?;
    let probe = match args.dry_run {
        true => None,
        false => Some(changes(&mut fitted, &args.probe)?),
    };
    let fuse = fused::run(&args.fuse, &mut fitted, &args.probe, args.dry_run, g)?;
    let report = report(&fitted, probe, fuse, args);
    let refused = report.fuse.as_ref().is_some_and(|f| f.refused);
    let document = serde_json::to_string_pretty(&report)?;
    if let Some(path) = &args.out {
        crate::atomic::write_file(path, document.as_bytes())?;
    }
    // Last: what fails leaves the packs in use as they were.
    if args.activate && !refused {
        let weighted = report.packs.iter().map(|u| Weighted { pack: u.pack.clone(), weight: u.weight });
        store.set_active(&layout::weights_hash(&fitted.base.dir)?, weighted.collect())?;
    }
    match g.json {
        true => say!("{document}"),
        false => text(&report, g),
    }
    Ok(if refused { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

/// Reads, checks and prepares; what is likely to be wrong and cheap to see comes first.
fn fit(names: &[Weighted], args: &ApplyArgs, store: &Store, g: &Global) -> anyhow::Result<Fitted> {
    let begun = Instant::now();
    let packs = InUse::read(store, names)?;
    let read = milliseconds(begun);
    mlx::device::init()?;
    let base = base::open(&args.base, g)?;
    packs.check_base(&base.dir)?;
    let hash = layout::checkpoint_hash(&base.dir)?;
    let tokenizer = Tokenizer::load(&base.dir)?;
    let model = Model::load(&base.dir, &LoadOptions::default())?;
    let begun = Instant::now();
    let attachment = packs.prepare(&model)?;
    let prepare = milliseconds(begun);
    let times = Times { read, prepare, attach: 0.0, total: read + prepare };
    Ok(Fitted { base, hash, model, tokenizer, packs, attachment, times })
}

/// Attaches, and compares before and after.
fn changes(f: &mut Fitted, text: &str) -> anyhow::Result<Difference> {
    let ids = f.tokenizer.encode(text, true)?;
    let before = probe::logits(&f.model, &ids)?;
    let begun = Instant::now();
    attach::attach(&mut f.model, &f.attachment);
    f.times.attach = milliseconds(begun);
    f.times.total += f.times.attach;
    let after = probe::logits(&f.model, &ids)?;
    Ok(probe::compare(&before, &after, f.model.config().vocab_size, &f.tokenizer)?)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn report(f: &Fitted, probe: Option<Difference>, fuse: Option<fused::Report>, args: &ApplyArgs) -> Report {
    let packs = f.packs.used();
    Report {
        pack: packs.iter().map(|u| u.pack.as_str()).collect::<Vec<_>>().join(", "),
        pack_dir: packs.first().map(|u| u.dir.clone()).unwrap_or_default(),
        base: f.base.dir.clone(),
        base_hash: f.hash.clone(),
        timestamp: crate::plastic::step::now(),
        base_id: f.base.id.clone(),
        adapters: f.packs.packs().map(|(_, p)| p.adapters.len()).sum(),
        total_rank: f.packs.packs().map(|(_, p)| p.total_rank()).sum(),
        bytes: f.packs.packs().map(|(_, p)| p.nbytes()).sum(),
        packs,
        slices: f.attachment.slices().count(),
        bytes_attached: f.attachment.nbytes(),
        milliseconds: Times { ..f.times },
        dry_run: args.dry_run,
        active: args.activate && !fuse.as_ref().is_some_and(|f| f.refused),
        probe,
        fuse,
    }
}

fn text(r: &Report, g: &Global) {
    let names: Vec<String> = r.packs.iter().map(ToString::to_string).collect();
    say!(
        "{} on {}: {} adapters of rank {} in all on {} slices, {:.2} MB",
        names.join(" + "),
        r.base_id,
        r.adapters,
        r.total_rank,
        r.slices,
        r.bytes as f64 / 1e6
    );
    if !g.quiet {
        let t = &r.milliseconds;
        say!(
            "attached in {:.1} ms (read and check {:.1}, prepare {:.1}, attach {:.2}); {} in memory",
            t.total,
            t.read,
            t.prepare,
            t.attach,
            show::megabytes(r.bytes_attached)
        );
    }
    if let Some(d) = &r.probe {
        shown(d);
    }
    if let Some(f) = &r.fuse {
        fused::text(f, g);
        if f.refused || (f.written.is_some() && !r.active) {
            return;
        }
    }
    match (r.dry_run, r.active) {
        (true, _) => say!("everything fits; nothing was changed (--dry-run)"),
        (_, true) => say!(
            "in use on this base from now on: generate, eval and run take {} along until `plastic-host packs remove`",
            if names.len() == 1 { "it" } else { "them" }
        ),
        _ => say!("nothing was changed; --activate puts this to use"),
    }
}

/// How far two states are apart, and what comes next in each.
pub(super) fn shown(d: &Difference) {
    say!(
        "probe of {} tokens: logits differ by at most {:.4}, KL {:.2e} nats a token, another likeliest token at {} positions",
        d.tokens,
        d.max_logit_difference,
        d.mean_kl,
        d.top_changed
    );
    let mut rows = table::plain(&["next token before", "p", "after", "p"], &[1, 3]);
    for (x, y) in d.before.iter().zip(&d.after) {
        rows.add_row([
            format!("{:?}", x.text),
            format!("{:.3}", x.probability),
            format!("{:?}", y.text),
            format!("{:.3}", y.probability),
        ]);
    }
    say!("{rows}");
}
