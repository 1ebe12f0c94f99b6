//! `plastic-host packs eval`: a base against the base with a pack, on the same windows.

use super::judging::{EvaluatorArgs, GuardArgs, Judged, conclude};
use super::subject::{self, Opened};
use super::{Global, output, show, table};
use crate::cli::interrupt::Interrupt;
use crate::cli::ui;
use crate::eval::data::{self, Cutting, Loss, Thinned, Window};
use crate::mlx;
use crate::pack::compare::{self, Compared, Side, Work};
use crate::pack::guard::{Breach, Costs, Limits};
use crate::pack::{Store, Weighted, judge};
use anyhow::bail;
use std::path::PathBuf;
use std::process::ExitCode;

/// Prompts with answers an evaluator is offered at most.
const EXAMPLES: usize = 64;
/// Times the first token is timed on each side.
const REPEATS: usize = 5;

/// Options of `packs eval`.
#[derive(clap::Args, Debug)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Examples:
  plastic-host packs eval --pack bard                                  default base and text
  plastic-host packs eval --base ./my-model --pack bard --data plays.jsonl --csv results.csv
  plastic-host packs eval --pack bard --data roneneldan/TinyStories    a text of the Hugging Face hub
  plastic-host packs eval --pack bard:0.7 --pack law --max-ppl-increase 0 --max-tps-loss 10
  plastic-host packs eval --pack bard --evaluator plugins/perplexity.wasm --evaluator-opt max_loss_increase=0.01

Both sides score the same windows by turns after a warm-up; the interval of the difference is over windows.
Texts are joined before they are cut; with --loss answer each row stays by itself."
)]
pub struct EvalArgs {
    /// Base model: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short)]
    base: Option<String>,
    /// Pack, or PACK:WEIGHT; given again, all of them together; without one, the base alone
    #[arg(long, visible_alias = "name", value_name = "PACK")]
    pack: Vec<Weighted>,
    /// Evaluation text: a .jsonl or .txt file, or a data set of the hub as org/name[@revision][:file] [default: data/eval.jsonl]
    #[arg(long, visible_alias = "data-path", value_name = "FILE")]
    data: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    sequence_length: usize,
    /// Windows, spread evenly over the text; 0 takes all
    #[arg(long, value_name = "N", default_value_t = 100)]
    num_samples: usize,
    /// Windows that run together
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Tokens that count
    #[arg(long, visible_alias = "loss-mode", value_enum, default_value_t)]
    loss: Loss,
    /// Write the rows as CSV, to a file or without one to standard output
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    csv: Option<Option<PathBuf>>,
    /// Write the JSON document to a file
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Seed that evaluators are given
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Accepted as mlx-plastic-rank writes it; the model says how it is loaded
    #[arg(long, hide = true)]
    loader: Option<String>,
    /// Accepted as mlx-plastic-rank writes it; a chat template is used where the model has one
    #[arg(long, hide = true)]
    chat_template: bool,
    #[command(flatten)]
    guard: GuardArgs,
    #[command(flatten)]
    evaluators: EvaluatorArgs,
}

/// One row: the columns of mlx-plastic-rank, then ours.
#[derive(serde::Serialize)]
struct Row {
    model: String,
    pack: String,
    pack_size_bytes: u64,
    size_mb: f64,
    load_time_ms: f64,
    perplexity: f64,
    perplexity_se: Option<f64>,
    eval_time_s: f64,
    tokens_per_sec: f64,
    peak_memory_gb: f64,
    max_logit_diff: f32,
    token_accuracy: f64,
    ppl_delta_pct: f64,
    domain_metric: f64,
    loss_mode: Loss,
    ppl_delta_low_pct: Option<f64>,
    ppl_delta_high_pct: Option<f64>,
    first_token_ms: f64,
    windows: usize,
    scored_tokens: usize,
}

/// The document of --json and --out.
#[derive(serde::Serialize)]
struct Document<'a> {
    base: &'a str,
    packs: &'a [Weighted],
    data: PathBuf,
    data_sha256: &'a str,
    windows_sha256: String,
    unusable_rows: usize,
    /// What of a large text was kept; `windows_available` are those in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    thinned: Option<Thinned>,
    cutting: &'a Cutting,
    windows_available: usize,
    batch_size: usize,
    rows: &'a [Row],
    measured: &'a Compared,
    /// Of the process since it began, both sides and loading together.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_process_bytes: Option<u64>,
    guardrails: Limits,
    broken: &'a [Breach],
    judged: &'a [Judged],
}

/// Measures.
///
/// # Errors
/// When base, pack, text or an output cannot be had, or the measuring fails.
pub fn run(args: &EvalArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let Some(limits) = args.guard.limits().filter(|_| usable(args, g)) else { return Ok(ExitCode::from(2)) };
    if args.pack.is_empty() && !limits.is_empty() {
        note!("error: a guardrail judges a pack; name one with --pack");
        return Ok(ExitCode::from(2));
    }
    let outputs = [("--csv", args.csv.iter().flatten().next()), ("--out", args.out.as_ref())];
    output::check(store, &outputs, &[args.data.as_deref().unwrap_or("data/eval.jsonl".as_ref())])?;
    let path = subject::data_file("--data", args.data.as_deref(), "data/eval.jsonl", g)?;
    let mut dataset = data::load(&path)?;
    let thinned = dataset.thin(args.num_samples, args.sequence_length);
    let mut evaluators = args.evaluators.open()?;
    let interrupt = Interrupt::listen()?;
    let Opened { id, mut model, tokenizer, base_ms, packs } = subject::open(&args.base, &args.pack, store, g)?;
    if packs.is_none() && !evaluators.is_empty() {
        bail!("--evaluator: an evaluator judges a pack; name one with --pack");
    }
    let limit = model.config().max_position_embeddings;
    if let Some(limit) = limit.filter(|limit| args.sequence_length > *limit) {
        bail!("--sequence-length {}: this model has {limit} positions; use shorter windows", args.sequence_length);
    }
    let join = args.loss == Loss::Full;
    let cutting = Cutting { window: args.sequence_length, loss: args.loss, pack: join, keep_tail: false };
    let cut = dataset.cut(&tokenizer, &cutting)?;
    let windows = data::spread(&cut.windows, args.num_samples);

    let bar = ui::bar(g, 1, "comparing");
    let attachment = packs.as_ref().map(|p| &p.attachment);
    let work = Work { windows: &windows, batch: args.batch_size, fill: false, prompts: 1, repeats: REPEATS };
    let measured = compare::compare(&mut model, attachment, &work, &mut |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
        !interrupt.raised()
    });
    bar.finish_and_clear();
    let Some(measured) = measured? else {
        ui::fail(&anyhow::anyhow!("interrupted; nothing was measured"), g);
        return Ok(ExitCode::from(130));
    };
    let mut judged = Vec::new();
    if let Some(p) = packs.as_ref().filter(|_| !evaluators.is_empty()) {
        let tokens: Vec<Vec<u32>> = windows.iter().map(|w| w.tokens.clone()).collect();
        let examples = dataset.examples(&tokenizer, EXAMPLES)?;
        let bench = judge::Bench {
            tokenizer: &tokenizer,
            windows: &tokens,
            examples: &examples,
            batch: args.batch_size,
            seed: args.seed,
        };
        let bar = ui::bar(g, 1, "judging");
        let said = judge::judge(&mut model, &p.attachment, &mut evaluators, &bench, &mut |_, _| !interrupt.raised());
        bar.finish_and_clear();
        let (verdict, opinions) = said?;
        judged.push(Judged { case: String::new(), verdict, opinions });
    }
    let broken = match (&packs, &measured.pack, &measured.difference) {
        (Some(p), Some(side), Some(d)) => limits.check(
            &Costs {
                ppl_increase_pct: d.ppl_delta_pct,
                tps_loss_pct: measured.tps_loss_pct().unwrap_or(f64::NAN),
                first_token_ms: side.first_token_ms,
                memory: side.peak_bytes,
                pack_bytes: p.bytes,
            },
            "",
        ),
        _ => Vec::new(),
    };
    let row = |side: &Side, pack: bool| row(&id, side, packs.as_ref().filter(|_| pack), base_ms, &measured, args.loss);
    let mut rows = vec![row(&measured.base, false)];
    rows.extend(measured.pack.as_ref().map(|side| row(side, true)));
    let document = Document {
        base: &id,
        packs: &args.pack,
        data: path,
        data_sha256: &dataset.sha256,
        windows_sha256: data::fingerprint(&windows),
        unusable_rows: dataset.unusable,
        thinned,
        cutting: &cutting,
        windows_available: cut.windows.len(),
        batch_size: args.batch_size,
        rows: &rows,
        measured: &measured,
        peak_process_bytes: mlx::memory::rss().map(|(_, peak)| peak),
        guardrails: limits,
        broken: &broken,
        judged: &judged,
    };
    let bare_csv = subject::deliver(&document, &rows, args.out.as_deref(), args.csv.as_ref(), g, || {
        report(&document, &windows, g);
    })?;
    Ok(conclude(&broken, &judged, g.json, bare_csv))
}

fn usable(args: &EvalArgs, g: &Global) -> bool {
    if args.sequence_length < 2 || args.batch_size == 0 {
        note!("error: --sequence-length must be at least 2 and --batch-size at least 1");
        return false;
    }
    if g.json && matches!(args.csv, Some(None)) {
        note!("error: --json and --csv both want standard output; give --csv a file");
        return false;
    }
    true
}

fn row(id: &str, side: &Side, pack: Option<&subject::Packs>, base_ms: f64, m: &Compared, loss: Loss) -> Row {
    let difference = m.difference.as_ref().filter(|_| pack.is_some());
    let [low, high] = difference.and_then(|d| d.ppl_interval_pct).map_or([None; 2], |i| i.map(Some));
    let bytes = pack.map_or(0, |p| p.bytes);
    Row {
        model: id.to_owned(),
        pack: pack.map_or(String::new(), |p| p.label.clone()),
        pack_size_bytes: bytes,
        size_mb: bytes as f64 / 1_048_576.0,
        load_time_ms: pack.map_or(base_ms, |p| p.ms),
        perplexity: side.perplexity,
        perplexity_se: side.perplexity_standard_error,
        eval_time_s: side.seconds,
        tokens_per_sec: side.tokens_per_second,
        peak_memory_gb: side.peak_bytes as f64 / 1_073_741_824.0,
        max_logit_diff: m.max_logit_diff.filter(|_| pack.is_some()).unwrap_or(0.0),
        token_accuracy: side.token_accuracy,
        ppl_delta_pct: difference.map_or(0.0, |d| d.ppl_delta_pct),
        domain_metric: side.token_accuracy,
        loss_mode: loss,
        ppl_delta_low_pct: low,
        ppl_delta_high_pct: high,
        first_token_ms: side.first_token_ms,
        windows: side.windows.len(),
        scored_tokens: m.scored_tokens,
    }
}

fn report(d: &Document, windows: &[Window], g: &Global) {
    let headers = ["", "perplexity", "± se", "accuracy", "tokens/s", "first token", "load", "peak memory", "size"];
    let mut table = table::plain(&headers, &[1, 2, 3, 4, 5, 6, 7, 8]);
    for r in d.rows {
        table.add_row([
            if r.pack.is_empty() { "base".into() } else { r.pack.clone() },
            format!("{:.3}", r.perplexity),
            r.perplexity_se.map_or(String::new(), |se| format!("{se:.3}")),
            format!("{:.2} %", 100.0 * r.token_accuracy),
            format!("{:.0}", r.tokens_per_sec),
            format!("{:.1} ms", r.first_token_ms),
            format!("{:.0} ms", r.load_time_ms),
            format!("{:.2} GiB", r.peak_memory_gb),
            if r.pack.is_empty() { String::new() } else { format!("{:.2} MiB", r.size_mb) },
        ]);
    }
    say!("{table}");
    if let (Some(difference), Some(far)) = (&d.measured.difference, d.measured.max_logit_diff) {
        let interval = difference
            .ppl_interval_pct
            .map_or(String::new(), |[low, high]| format!(" (95 % interval {low:+.2} to {high:+.2} %)"));
        say!("perplexity  {:+.2} %{interval}: {}", difference.ppl_delta_pct, difference.verdict());
        say!(
            "speed       {:+.1} %; largest change of a logit {far:.3}",
            -d.measured.tps_loss_pct().unwrap_or_default()
        );
    }
    if g.quiet {
        return;
    }
    say!(
        "text        {}: {} of {} windows of {} tokens, {} tokens scored",
        d.data.display(),
        windows.len(),
        d.windows_available,
        d.cutting.window,
        d.measured.scored_tokens
    );
    if let Some(t) = &d.thinned {
        say!("large text  {}", show::thinned(t));
    }
    if d.unusable_rows > 0 {
        say!("left out    {} rows without text", d.unusable_rows);
    }
    if let Some(bytes) = d.peak_process_bytes {
        say!("process     {} at its highest, loading included", show::megabytes(bytes));
    }
}
