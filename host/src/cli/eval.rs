//! `plastic-host eval`: perplexity on a text.

use super::interrupt::Interrupt;
use super::locate::Purpose;
use super::subject::{Origin, Subject, SubjectArgs};
use super::{Global, locate, show, ui};
use crate::eval::data::{self, Cutting, Loss, Thinned};
use crate::eval::perplexity::{self, Perplexity};
use crate::mlx;
use anyhow::bail;
use std::path::PathBuf;
use std::process::ExitCode;

/// Tokens of a batch where --batch is not given.
const BATCH_TOKENS: usize = 4096;

/// Options of `eval`.
#[derive(clap::Args, Debug)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Examples:
  plastic-host eval                                  the default model on the shipped text
  plastic-host eval --state runs/small               the same text on what a run made of it
  plastic-host eval --base ./my-model --data mine.jsonl --window 1024 --windows 50
  plastic-host eval --pack shakespeare:0.7           with a skill pack, at seven tenths of its strength
  plastic-host eval --data chats.jsonl --loss answer --json
  plastic-host eval --data roneneldan/TinyStories --windows 50      a text of the Hugging Face hub

A data file has one JSON object a line, with `text`, `prompt` and `completion`, or `messages`; or is plain .txt."
)]
pub struct EvalArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// Evaluation text: a .jsonl or .txt file, or a data set of the hub as org/name[@revision][:file] [default: data/eval.jsonl]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    window: usize,
    /// Windows, spread evenly over the text; 0 takes all
    #[arg(long, value_name = "N", default_value_t = 0)]
    windows: usize,
    /// Windows scored together [default: as many as make 4096 tokens]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Tokens that count
    #[arg(long, value_enum, default_value_t)]
    loss: Loss,
    /// Join all documents before cutting, so that windows cross from one to the next
    #[arg(long)]
    join: bool,
    /// Also score the ends of documents that do not fill a window
    #[arg(long)]
    keep_tail: bool,
}

/// What was read and how it was cut.
#[derive(serde::Serialize)]
struct Text {
    data: PathBuf,
    data_sha256: String,
    cutting: Cutting,
    /// SHA-256 of the windows scored: equal for measurements that can be compared.
    windows_sha256: String,
    /// Rows without any field that holds text.
    unusable_rows: usize,
    /// What of a large text was kept; `windows_available` are those in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    thinned: Option<Thinned>,
    /// Tokens in ends of documents that do not fill a window.
    tail_tokens: usize,
    /// Windows in the text; `--windows` may have taken fewer.
    windows_available: usize,
    batch: usize,
}

/// The document of --json.
#[derive(serde::Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    origin: &'a Origin,
    #[serde(flatten)]
    text: &'a Text,
    #[serde(flatten)]
    measured: &'a Perplexity,
}

/// Measures perplexity.
///
/// # Errors
/// When the text is missing, damaged or too short, or the model cannot be had.
pub fn run(args: &EvalArgs, g: &Global) -> anyhow::Result<ExitCode> {
    if args.window < 2 || args.batch == Some(0) {
        note!("error: --window must be at least 2 and --batch at least 1");
        return Ok(ExitCode::from(2));
    }
    // The text first: it is cheap to read and likely to be wrong.
    let path =
        locate::text(args.data.as_deref().unwrap_or("".as_ref()), "data/eval.jsonl", "--data", Purpose::Judge, g)?;
    let mut dataset = data::load(&path)?;
    let thinned = dataset.thin(args.windows, args.window);
    let interrupt = Interrupt::listen()?;
    mlx::device::init()?;
    let Subject { model, tokenizer, origin, .. } = args.subject.open(g)?;
    if let Some(limit) = model.config().max_position_embeddings.filter(|limit| args.window > *limit) {
        bail!(
            "--window {}: this model has {limit} positions (max_position_embeddings); use shorter windows",
            args.window
        );
    }
    let cutting = Cutting { window: args.window, loss: args.loss, pack: args.join, keep_tail: args.keep_tail };
    let cut = dataset.cut(&tokenizer, &cutting)?;
    let windows = data::spread(&cut.windows, args.windows);
    let batch = args.batch.unwrap_or((BATCH_TOKENS / args.window).max(1));

    let bar = ui::bar(g, windows.len() as u64, "scoring windows");
    let measured = perplexity::measure(&model, &windows, batch, &mut |done| {
        bar.set_position(done as u64);
        !interrupt.raised()
    });
    bar.finish_and_clear();
    let Some(measured) = measured? else {
        ui::fail(&anyhow::anyhow!("interrupted; nothing was measured"), g);
        return Ok(ExitCode::from(130));
    };
    if !measured.mean_nll.is_finite() {
        bail!(
            "the mean loss is {}: the model computes values that are not finite; its weights may be damaged",
            measured.mean_nll
        );
    }
    let text = Text {
        data: path,
        data_sha256: dataset.sha256.clone(),
        cutting,
        windows_sha256: data::fingerprint(&windows),
        unusable_rows: dataset.unusable,
        thinned,
        tail_tokens: cut.tail_tokens,
        windows_available: cut.windows.len(),
        batch,
    };
    match g.json {
        true => {
            say!("{}", serde_json::to_string_pretty(&Document { origin: &origin, text: &text, measured: &measured })?)
        }
        false => report(&origin, &text, &measured, g),
    }
    Ok(ExitCode::SUCCESS)
}

fn report(origin: &Origin, text: &Text, m: &Perplexity, g: &Global) {
    let error = |se: Option<f64>, digits: usize| se.map_or(String::new(), |se| format!(" ± {se:.digits$}"));
    say!(
        "perplexity  {:.3}{} (mean loss {:.4}{} nats per token)",
        m.perplexity,
        error(m.perplexity_standard_error, 3),
        m.mean_nll,
        error(m.mean_nll_standard_error, 4)
    );
    if g.quiet {
        return;
    }
    if let Some(budget) = origin.awake_budget {
        say!("awake       {budget} of the slices' parameters of {}", origin.base);
    }
    say!(
        "text        {}: {} of {} windows of {} tokens, {} tokens scored",
        text.data.display(),
        m.windows.len(),
        text.windows_available,
        text.cutting.window,
        m.scored_tokens
    );
    if let Some(t) = &text.thinned {
        say!("large text  {}", show::thinned(t));
    }
    if text.tail_tokens > 0 {
        say!(
            "left out    {} tokens in ends of documents that do not fill a window (--keep-tail takes them)",
            text.tail_tokens
        );
    }
    if text.unusable_rows > 0 {
        say!("left out    {} rows without text", text.unusable_rows);
    }
    say!("speed       {:.0} tokens/s, {:.1} s; first batch {:.0} ms", m.tokens_per_second, m.seconds, m.first_batch_ms);
    let process = m.peak_process_bytes.map_or(String::new(), |b| format!(", {} in the process", show::megabytes(b)));
    say!("peak memory {} in MLX{process}", show::megabytes(m.peak_mlx_bytes));
}
