//! `plastic-host packs eval-batch`: a base against the base with a pack, domain by domain and batch size by batch size.

use super::judging::{EvaluatorArgs, GuardArgs, Judged, conclude};
use super::subject::{self, Opened};
use super::{Global, output, table};
use crate::cli::interrupt::Interrupt;
use crate::cli::ui;
use crate::eval::data::Window;
use crate::pack::compare::{self, Compared, Difference, Work};
use crate::pack::guard::{Breach, Costs, Limits};
use crate::pack::thinking::{Thinking, parse_batch_sizes};
use crate::pack::{Store, Weighted, domains, judge};
use anyhow::{Context, bail};
use std::path::PathBuf;
use std::process::ExitCode;

/// Times the first token is timed on each side.
const REPEATS: usize = 3;

/// Options of `packs eval-batch`.
#[derive(clap::Args, Debug)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Examples:
  plastic-host packs eval-batch --pack bard                                    data/domain_prompts.jsonl
  plastic-host packs eval-batch --base ./my-model --pack bard --input prompts.jsonl --batch-size 8,16,32 \\
      --sequence-length 256 --thinking strip --csv results.csv
  plastic-host packs eval-batch --pack bard --batch-size 1 --max-first-token-ms 200 --max-tps-loss 15

The texts of a domain are joined and cut into sequences. Perplexity counts each of them once; a batch that the
domain cannot fill is filled by repeating sequences, for the timing only. Memory is in GiB."
)]
pub struct EvalBatchArgs {
    /// Base model: an id, a directory, a GGUF file or a hub repository [default: smollm2-135m]
    #[arg(long, short)]
    base: Option<String>,
    /// Pack, or PACK:WEIGHT; given again, all of them together; without one, the base alone
    #[arg(long, visible_alias = "name", value_name = "PACK")]
    pack: Vec<Weighted>,
    /// Texts: JSON lines with `text` or `prompt`, and `domain`, or a data set of the hub [default: data/domain_prompts.jsonl]
    #[arg(long, visible_aliases = ["data", "data-path"], value_name = "FILE")]
    input: Option<PathBuf>,
    /// Sequences that run together, such as 8,16,32
    #[arg(long, value_name = "LIST", default_value = "8,16,32")]
    batch_size: String,
    /// Tokens of a sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    sequence_length: usize,
    /// What happens to <think>…</think> in texts: keep, strip, or cap=N words
    #[arg(long, value_name = "HOW", default_value = "strip")]
    thinking: String,
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
    #[command(flatten)]
    guard: GuardArgs,
    #[command(flatten)]
    evaluators: EvaluatorArgs,
}

/// One row: the columns of mlx-plastic-rank.
#[derive(Debug, serde::Serialize)]
struct Row {
    domain: String,
    batch_size: usize,
    num_sequences: usize,
    sequence_length: usize,
    thinking: String,
    ppl_base: f64,
    ppl_pack: Option<f64>,
    ppl_delta_pct: Option<f64>,
    tps_base: f64,
    tps_pack: Option<f64>,
    tps_loss_pct: Option<f64>,
    first_token_ms_base: f64,
    first_token_ms_pack: Option<f64>,
    vram_peak_base: f64,
    vram_peak_pack: Option<f64>,
    pack_size_mb: f64,
    tokens_evaluated: usize,
    eval_time_s_base: f64,
    eval_time_s_pack: Option<f64>,
    pack: String,
}

/// A domain that was left out.
#[derive(serde::Serialize)]
struct Skipped {
    domain: String,
    tokens: usize,
    reason: String,
}

/// What the pack does to one domain, at the first batch size.
#[derive(serde::Serialize)]
struct OfDomain {
    domain: String,
    difference: Difference,
    token_accuracy_base: f64,
    token_accuracy_pack: f64,
    max_logit_diff: Option<f32>,
}

/// The document of --json and --out.
#[derive(serde::Serialize)]
struct Document<'a> {
    base: &'a str,
    packs: &'a [Weighted],
    input: PathBuf,
    unusable_rows: usize,
    rows: &'a [Row],
    domains: &'a [OfDomain],
    skipped: &'a [Skipped],
    guardrails: Limits,
    broken: &'a [Breach],
    judged: &'a [Judged],
}

/// Measures.
///
/// # Errors
/// When base, pack, text or an output cannot be had, no domain is long enough, or the measuring fails.
pub fn run(args: &EvalBatchArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let (sizes, thinking, limits) =
        match (parse_batch_sizes(&args.batch_size), args.thinking.parse(), args.guard.limits()) {
            (Ok(sizes), Ok(thinking), Some(limits)) if usable(args, limits, g) => (sizes, thinking, limits),
            (sizes, thinking, _) => {
                let thinking: Result<Thinking, String> = thinking;
                sizes.err().iter().for_each(|e| note!("error: --batch-size {}: {e}", args.batch_size));
                thinking.err().iter().for_each(|e| note!("error: --thinking {}: {e}", args.thinking));
                return Ok(ExitCode::from(2));
            }
        };
    let outputs = [("--csv", args.csv.iter().flatten().next()), ("--out", args.out.as_ref())];
    output::check(store, &outputs, &[args.input.as_deref().unwrap_or("data/domain_prompts.jsonl".as_ref())])?;
    let path = subject::data_file("--input", args.input.as_deref(), "data/domain_prompts.jsonl", g)?;
    let texts = domains::read(&path)?;
    let mut evaluators = args.evaluators.open()?;
    let interrupt = Interrupt::listen()?;
    let Opened { id, mut model, tokenizer, packs, .. } = subject::open(&args.base, &args.pack, store, g)?;
    if packs.is_none() && !evaluators.is_empty() {
        bail!("--evaluator: an evaluator judges a pack; name one with --pack");
    }
    if let Some(limit) = model.config().max_position_embeddings.filter(|limit| args.sequence_length > *limit) {
        bail!("--sequence-length {}: this model has {limit} positions; use shorter sequences", args.sequence_length);
    }
    let (mut cases, mut skipped) = (Vec::new(), Vec::new());
    for (domain, texts) in texts.by_domain(thinking) {
        let (windows, tokens) = domains::windows(&texts, &tokenizer, args.sequence_length)?;
        if windows.is_empty() {
            let reason = format!("{tokens} tokens, less than one sequence of {}", args.sequence_length);
            note!("{domain}: skipped: {reason}; use a shorter --sequence-length or more text");
            skipped.push(Skipped { domain, tokens, reason });
            continue;
        }
        cases.push((domain, windows));
    }
    if cases.is_empty() {
        bail!(
            "{}: no domain has one sequence of {} tokens; use a shorter --sequence-length",
            path.display(),
            args.sequence_length
        );
    }

    let attachment = packs.as_ref().map(|p| &p.attachment);
    let (mut rows, mut of_domains, mut broken, mut judged) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut stopped = false;
    'cases: for (domain, windows) in &cases {
        for (n, size) in sizes.iter().enumerate() {
            let bar = ui::bar(g, 1, &format!("{domain}, batch {size}"));
            let work = Work { windows, batch: *size, fill: true, prompts: *size, repeats: REPEATS };
            let measured = compare::compare(&mut model, attachment, &work, &mut |done, of| {
                bar.set_length(of as u64);
                bar.set_position(done as u64);
                !interrupt.raised()
            });
            bar.finish_and_clear();
            let Some(m) = measured.with_context(|| format!("{domain}, batch {size}"))? else {
                stopped = true;
                break 'cases;
            };
            rows.push(row(args, domain, *size, windows, &m, packs.as_ref()));
            if let (Some(p), Some(pack), Some(d)) = (&packs, &m.pack, &m.difference) {
                let costs = Costs {
                    ppl_increase_pct: d.ppl_delta_pct,
                    tps_loss_pct: m.tps_loss_pct().unwrap_or(f64::NAN),
                    first_token_ms: pack.first_token_ms,
                    memory: pack.peak_bytes,
                    pack_bytes: p.bytes,
                };
                broken.extend(limits.check(&costs, &format!("{domain}, batch {size}")));
                if n == 0 {
                    of_domains.push(OfDomain {
                        domain: domain.clone(),
                        difference: d.clone(),
                        token_accuracy_base: m.base.token_accuracy,
                        token_accuracy_pack: pack.token_accuracy,
                        max_logit_diff: m.max_logit_diff,
                    });
                }
            }
        }
        if let Some(p) = packs.as_ref().filter(|_| !evaluators.is_empty()) {
            let tokens: Vec<Vec<u32>> = windows.iter().map(|w| w.tokens.clone()).collect();
            let batch = sizes.first().copied().unwrap_or(1);
            let bench = judge::Bench { tokenizer: &tokenizer, windows: &tokens, examples: &[], batch, seed: args.seed };
            let said =
                judge::judge(&mut model, &p.attachment, &mut evaluators, &bench, &mut |_, _| !interrupt.raised());
            let (verdict, opinions) = said.with_context(|| format!("judging {domain}"))?;
            judged.push(Judged { case: domain.clone(), verdict, opinions });
        }
    }
    if stopped && rows.is_empty() {
        ui::fail(&anyhow::anyhow!("interrupted; nothing was measured"), g);
        return Ok(ExitCode::from(130));
    }
    let document = Document {
        base: &id,
        packs: &args.pack,
        input: path,
        unusable_rows: texts.unusable,
        rows: &rows,
        domains: &of_domains,
        skipped: &skipped,
        guardrails: limits,
        broken: &broken,
        judged: &judged,
    };
    let bare_csv = subject::deliver(&document, &rows, args.out.as_deref(), args.csv.as_ref(), g, || {
        report(&document, g);
    })?;
    let code = conclude(&broken, &judged, g.json, bare_csv);
    if stopped {
        note!("interrupted; {} row(s) were measured before", rows.len());
        return Ok(ExitCode::from(130));
    }
    Ok(code)
}

fn usable(args: &EvalBatchArgs, limits: Limits, g: &Global) -> bool {
    let wrong = match () {
        () if args.sequence_length < 2 => "--sequence-length must be at least 2",
        () if args.pack.is_empty() && !limits.is_empty() => "a guardrail judges a pack; name one with --pack",
        () if g.json && matches!(args.csv, Some(None)) => {
            "--json and --csv both want standard output; give --csv a file"
        }
        () => return true,
    };
    note!("error: {wrong}");
    false
}

fn row(
    args: &EvalBatchArgs,
    domain: &str,
    size: usize,
    windows: &[Window],
    m: &Compared,
    packs: Option<&subject::Packs>,
) -> Row {
    let gib = |bytes: u64| bytes as f64 / 1_073_741_824.0;
    let pack = m.pack.as_ref();
    Row {
        domain: domain.to_owned(),
        batch_size: size,
        num_sequences: windows.len(),
        sequence_length: args.sequence_length,
        thinking: args.thinking.clone(),
        ppl_base: m.base.perplexity,
        ppl_pack: pack.map(|p| p.perplexity),
        ppl_delta_pct: m.difference.as_ref().map(|d| d.ppl_delta_pct),
        tps_base: m.base.tokens_per_second,
        tps_pack: pack.map(|p| p.tokens_per_second),
        tps_loss_pct: m.tps_loss_pct(),
        first_token_ms_base: m.base.first_token_ms,
        first_token_ms_pack: pack.map(|p| p.first_token_ms),
        vram_peak_base: gib(m.base.peak_bytes),
        vram_peak_pack: pack.map(|p| gib(p.peak_bytes)),
        pack_size_mb: packs.map_or(0.0, |p| p.bytes as f64 / 1_048_576.0),
        tokens_evaluated: m.scored_tokens,
        eval_time_s_base: m.base.seconds,
        eval_time_s_pack: pack.map(|p| p.seconds),
        pack: packs.map_or(String::new(), |p| p.label.clone()),
    }
}

fn report(d: &Document, g: &Global) {
    let headers = [
        "domain",
        "batch",
        "sequences",
        "ppl",
        "with pack",
        "change",
        "tokens/s",
        "with pack",
        "first token",
        "with pack",
        "memory",
        "with pack",
    ];
    let mut table = table::plain(&headers, &(1..12).collect::<Vec<_>>());
    let or_none = |x: Option<f64>, f: fn(f64) -> String| x.map_or(String::new(), f);
    for r in d.rows {
        table.add_row([
            r.domain.clone(),
            r.batch_size.to_string(),
            r.num_sequences.to_string(),
            format!("{:.3}", r.ppl_base),
            or_none(r.ppl_pack, |x| format!("{x:.3}")),
            or_none(r.ppl_delta_pct, |x| format!("{x:+.2} %")),
            format!("{:.0}", r.tps_base),
            or_none(r.tps_pack, |x| format!("{x:.0}")),
            format!("{:.0} ms", r.first_token_ms_base),
            or_none(r.first_token_ms_pack, |x| format!("{x:.0} ms")),
            format!("{:.2} GiB", r.vram_peak_base),
            or_none(r.vram_peak_pack, |x| format!("{x:.2} GiB")),
        ]);
    }
    say!("{table}");
    for o in d.domains {
        let interval = (o.difference.ppl_interval_pct)
            .map_or(String::new(), |[low, high]| format!(" (95 % interval {low:+.2} to {high:+.2} %)"));
        say!("{:11} {:+.2} %{interval}: {}", o.domain, o.difference.ppl_delta_pct, o.difference.verdict());
    }
    if d.unusable_rows > 0 && !g.quiet {
        say!("left out    {} rows without text", d.unusable_rows);
    }
}
