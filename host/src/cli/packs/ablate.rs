//! `plastic-host packs ablate` (also `ablation-report`).

use super::named::OnePack;
use super::{Global, figure, output, table};
use crate::cli::interrupt::Interrupt;
use crate::cli::locate::Purpose;
use crate::cli::{base, locate, ui};
use crate::eval::data::{self, Cutting, Loss};
use crate::mlx;
use crate::model::{LoadOptions, Model, Tokenizer};
use crate::pack::ablate::{self, Losses, Part, Unit};
use crate::pack::{Pack, Store, attach};
use anyhow::bail;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Tokens of a batch.
const BATCH_TOKENS: usize = 4096;

/// What is taken out at a time.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum UnitName {
    /// One stored component
    #[value(alias = "channel")]
    Component,
    /// One adapter
    #[value(alias = "adapter")]
    Slice,
    /// All adapters of a layer
    Layer,
    /// All adapters of one kind, such as attn.q_proj
    Target,
    /// All components of an adapter but the first --prefix-rank
    Prefix,
}

/// Options of `packs ablate`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs ablate plays                                   by share of the norm
  plastic-host packs ablate plays --unit layer --base smollm2-135m --data data/plays_valid.jsonl
  plastic-host packs ablate plays --unit target --base smollm2-135m --csv worth.csv --json
  plastic-host packs ablate plays --unit prefix --prefix-rank 4

With a base, each part is taken out while the rest stays, and the rise of the loss is told with its 95 % interval
over windows (paired with the whole pack). Parts that are worth less than nothing hurt.")]
pub struct AblateArgs {
    #[command(flatten)]
    pack: OnePack,
    /// What is taken out at a time
    #[arg(long, value_enum, default_value = "slice")]
    unit: UnitName,
    /// Components that stay, with --unit prefix
    #[arg(long, value_name = "N", default_value_t = 2)]
    prefix_rank: usize,
    /// Measure on this base: an id, a directory, a GGUF file or a hub repository
    #[arg(long, short, value_name = "BASE")]
    base: Option<String>,
    /// Text to measure on: a .jsonl or .txt file, or a data set of the hub as org/name[@revision][:file] [default: data/eval.jsonl]
    #[arg(long, value_name = "FILE", requires = "base")]
    data: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, visible_alias = "sequence-length", value_name = "TOKENS", default_value_t = 256)]
    window: usize,
    /// Windows, spread evenly over the text; 0 takes all
    #[arg(long, value_name = "N", default_value_t = 16)]
    windows: usize,
    /// Tokens that count
    #[arg(long, visible_alias = "loss-mode", value_enum, default_value_t)]
    loss: Loss,
    /// Rows that are shown; 0 shows all
    #[arg(long, visible_alias = "top-k", value_name = "N", default_value_t = 20)]
    top: usize,
    /// Write all parts as JSON into this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write one row a part into this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

/// What was measured on.
#[derive(serde::Serialize)]
struct Text {
    base: String,
    data: PathBuf,
    data_sha256: String,
    windows_sha256: String,
    window: usize,
    #[serde(flatten)]
    losses: Losses,
}

/// The document of --json.
#[derive(serde::Serialize)]
struct Document<'a> {
    kind: &'static str,
    pack: &'a str,
    unit: Unit,
    total_norm: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<&'a Text>,
    interrupted: bool,
    parts: &'a [Part],
}

/// Says what each part of a pack is worth.
///
/// # Errors
/// When the pack, the base or the text cannot be had, they do not go together, or a file cannot be written.
pub fn run(args: &AblateArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    if args.window < 2 {
        note!("error: --window must be at least 2");
        return Ok(ExitCode::from(2));
    }
    let unit = match args.unit {
        UnitName::Component => Unit::Component,
        UnitName::Slice => Unit::Slice,
        UnitName::Layer => Unit::Layer,
        UnitName::Target => Unit::Target,
        UnitName::Prefix => Unit::Prefix(args.prefix_rank),
    };
    let inputs: Vec<&Path> = args.data.iter().map(PathBuf::as_path).collect();
    output::check(store, &[("--out", args.out.as_ref()), ("--csv", args.csv.as_ref())], &inputs)?;
    let pack = store.read(args.pack.get())?;
    let interrupt = Interrupt::listen()?;
    mlx::device::init()?;
    let mut parts = ablate::parts(&pack, unit)?;
    if parts.is_empty() {
        bail!("pack {}: no adapter has more than --prefix-rank {} components", pack.name(), args.prefix_rank);
    }
    let text = match args.base {
        None => None,
        Some(_) => match measure(args, &pack, &mut parts, &interrupt, g)? {
            Some(text) => Some(text),
            None => {
                ui::fail(&anyhow::anyhow!("interrupted; nothing was measured"), g);
                return Ok(ExitCode::from(130));
            }
        },
    };
    if text.is_some() {
        let rise = |p: &Part| p.worth.map_or(f64::NEG_INFINITY, |w| w.loss_rise);
        parts.sort_by(|a, b| rise(b).total_cmp(&rise(a)));
    }
    let unmeasured = text.is_some() && parts.iter().any(|p| p.worth.is_none());
    let total_norm = parts.iter().find(|p| p.share > 0.0).map_or(0.0, |p| p.norm / p.share);
    let document = Document {
        kind: "pack_ablation_report",
        pack: pack.name(),
        unit,
        total_norm,
        measured: text.as_ref(),
        interrupted: unmeasured,
        parts: &parts,
    };
    if let Some(path) = &args.out {
        crate::atomic::write_file(path, &serde_json::to_vec_pretty(&document)?)?;
    }
    if let Some(path) = &args.csv {
        crate::atomic::write_file(path, csv(&parts).as_bytes())?;
    }
    match g.json {
        true => say!("{}", serde_json::to_string_pretty(&document)?),
        false => show(&document, args.top, g),
    }
    if unmeasured {
        note!("interrupted: the parts without a figure were not measured");
        return Ok(ExitCode::from(130));
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(
    args: &AblateArgs,
    pack: &Pack,
    parts: &mut [Part],
    interrupt: &Interrupt,
    g: &Global,
) -> anyhow::Result<Option<Text>> {
    // The text first: it is cheap to read and likely to be wrong.
    let path =
        locate::text(args.data.as_deref().unwrap_or("".as_ref()), "data/eval.jsonl", "--data", Purpose::Judge, g)?;
    let mut dataset = data::load(&path)?;
    dataset.thin(args.windows, args.window);
    let base = base::open(&args.base, g)?;
    attach::check_base(pack, &base.dir)?;
    let tokenizer = Tokenizer::load(&base.dir)?;
    let mut model = Model::load(&base.dir, &LoadOptions::default())?;
    model.config().check_context(args.window)?;
    let cutting = Cutting { window: args.window, loss: args.loss, pack: false, keep_tail: false };
    let cut = dataset.cut(&tokenizer, &cutting)?;
    let windows = data::spread(&cut.windows, args.windows);
    let bar = ui::bar(g, parts.len() as u64, "taking parts out");
    let batch = (BATCH_TOKENS / args.window).max(1);
    let losses = ablate::measure(&mut model, pack, parts, &windows, batch, &mut |done| {
        bar.set_position(done as u64);
        !interrupt.raised()
    });
    bar.finish_and_clear();
    Ok(losses?.map(|losses| Text {
        base: base.id,
        data: path,
        data_sha256: dataset.sha256.clone(),
        windows_sha256: data::fingerprint(&windows),
        window: args.window,
        losses,
    }))
}

fn show(d: &Document, top: usize, g: &Global) {
    if let Some(t) = d.measured.filter(|_| !g.quiet) {
        say!(
            "{} on {}: loss {:.4} without the pack, {:.4} with it ({} windows of {} tokens)",
            t.base,
            t.data.display(),
            t.losses.base,
            t.losses.pack,
            t.losses.windows,
            t.window
        );
    }
    let measured = d.measured.is_some();
    let mut headers = vec!["part", "components", "norm", "share"];
    if measured {
        headers.extend(["loss without it", "95 % interval", ""]);
    }
    let mut rows = table::plain(&headers, &[1, 2, 3, 4, 5]);
    let shown = if top == 0 { d.parts.len() } else { top };
    for p in d.parts.iter().take(shown) {
        let mut row = vec![p.id.clone(), p.count.to_string(), figure(p.norm), format!("{:.1} %", 100.0 * p.share)];
        if measured {
            let interval = |w: ablate::Worth| Some(format!("{:+.5} to {:+.5}", w.low?, w.high?));
            row.push(p.worth.map_or(String::new(), |w| format!("{:+.5}", w.loss_rise)));
            row.push(p.worth.and_then(interval).unwrap_or_default());
            row.push(p.worth.map_or("", verdict).to_owned());
        }
        rows.add_row(row);
    }
    say!("{rows}");
    if d.parts.len() > shown && !g.quiet {
        say!("{} more; --top 0 shows all, --csv FILE writes all", d.parts.len() - shown);
    }
}

/// What an interval says.
fn verdict(w: ablate::Worth) -> &'static str {
    match (w.low, w.high) {
        (Some(low), _) if low > 0.0 => "helps",
        (_, Some(high)) if high < 0.0 => "hurts",
        _ => "not told apart from nothing",
    }
}

fn csv(parts: &[Part]) -> String {
    let mut out = String::from("part,components,norm,share,channel_norm,loss_rise,low,high\n");
    let number = |n: Option<f64>| n.map_or(String::new(), |n| n.to_string());
    for p in parts {
        let w = p.worth;
        out += &format!(
            "{},{},{},{},{},{},{},{}\n",
            p.id,
            p.count,
            p.norm,
            p.share,
            p.channel_norm,
            number(w.map(|w| w.loss_rise)),
            number(w.and_then(|w| w.low)),
            number(w.and_then(|w| w.high))
        );
    }
    out
}
