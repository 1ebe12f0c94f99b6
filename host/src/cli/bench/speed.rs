//! `plastic-host bench speed`: how fast a model scores, answers and decodes, and what memory that takes.

use super::speed_view;
use crate::cli::interrupt::Interrupt;
use crate::cli::locate::{self, Purpose};
use crate::cli::subject::{Origin, Subject, SubjectArgs};
use crate::cli::{Global, ui};
use crate::eval::data::{self, Dataset, Window};
use crate::eval::perplexity;
use crate::mlx::device::{self, DeviceInfo};
use crate::mlx::memory;
use crate::model::timing::{self, Decoded};
use crate::model::{layout, slice_timing};
use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Rounds of the slices in one repeat: their products are short.
const SLICE_ROUNDS: u32 = 5;
/// Tokens of the uncounted answer before decoding is timed.
const WARM_UP: usize = 4;

/// Options of `bench speed`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host bench speed                                   everything, on the default model
  plastic-host bench speed --work decode --prompt 40 --tokens 64 --batch 1,4,8 -r 5
  plastic-host bench speed --work score --score 8x512 --data mine.jsonl --json
  plastic-host bench speed --base small --awake-budget 0.5 --work score,prefill
  plastic-host bench speed --work slice --share 0.5 --rows 1,16,256

Work is done in the order decode, prefill, score, slice, each kind once uncounted and then -r times; speeds are the
median and the range. Decoding is greedy and stops at no token, so that every model does the same work. `prefill` is
the time from a prompt to its first token. `slice` times the model's slices as two thin factors beside the same slices
dense, both in float32 or both in 8 bits, and as the checkpoint has them. Peaks of the process are those so far; for the peak of one kind
alone, name only that one. PLASTIC_THREADS sets the threads. Run it on a calm machine.")]
pub(super) struct SpeedArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// What to measure, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Work::Score, Work::Prefill, Work::Decode, Work::Slice])]
    work: Vec<Work>,
    /// Text for windows and prompts: a .jsonl or .txt file, or a data set of the hub [default: data/eval.jsonl]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Windows scored together, and tokens of each
    #[arg(long, value_name = "BxT", default_value = "8x512", value_parser = windows)]
    score: (usize, usize),
    /// Tokens of the prompt whose first token is timed
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    prefill: u32,
    /// Tokens of the prompts before decoding
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    prompt: u32,
    /// Tokens decoded after each
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    tokens: u32,
    /// Prompts decoded together, each number measured
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8], value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: Vec<u32>,
    /// Parameters of a factored slice, as a share of the slice's own
    #[arg(long, value_name = "SHARE", default_value_t = 0.6, value_parser = crate::cli::awake::share)]
    share: f64,
    /// Rows of the slices' input, each number measured
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 256], value_parser = clap::value_parser!(u32).range(1..=65536))]
    rows: Vec<u32>,
    /// Repeats of each kind of work
    #[arg(long, short, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
}

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Work {
    /// The loss of many tokens at once
    Score,
    /// A prompt up to its first token
    Prefill,
    /// One token after another
    Decode,
    /// Slices in factors beside the same slices dense
    Slice,
}

/// `BxT`: windows and their tokens.
fn windows(text: &str) -> Result<(usize, usize), String> {
    let parsed = text.split_once(['x', '×']).and_then(|(b, t)| Some((b.parse().ok()?, t.parse().ok()?)));
    match parsed {
        Some((b, t)) if (1..=4096).contains(&b) && (2..=1 << 20).contains(&t) => Ok((b, t)),
        _ => Err("give windows x tokens, such as 8x512: 1 to 4096 windows of 2 tokens or more".into()),
    }
}

/// Median and range of some repeats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// Every repeat, in order.
    repeats: Vec<f64>,
}

impl Spread {
    /// `None` of no numbers.
    pub(super) fn of(repeats: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let repeats: Vec<f64> = repeats.into_iter().collect();
        let mut sorted = repeats.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let upper = *sorted.get(half)?;
        let median = if sorted.len() % 2 == 1 { upper } else { (sorted.get(half - 1)? + upper) / 2.0 };
        Some(Spread { median, min, max, repeats })
    }
}

/// Bytes held at most.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Peak {
    /// By MLX, during this work.
    pub(super) mlx_bytes: u64,
    /// By the process, up to its end; `None` where the system does not say.
    pub(super) process_bytes: Option<u64>,
}

impl Peak {
    fn now() -> Peak {
        Peak { mlx_bytes: memory::mlx().1, process_bytes: memory::rss().map(|(_, peak)| peak) }
    }
}

/// Scoring.
#[derive(Debug, Serialize)]
pub(super) struct Score {
    pub(super) windows: usize,
    pub(super) window_tokens: usize,
    /// SHA-256 of the windows.
    windows_sha256: String,
    /// Mean loss, nats a token, exact.
    pub(super) loss: f64,
    /// Tokens that get a loss, a second: all but the first of each window.
    pub(super) tokens_per_second: Spread,
    pub(super) peak: Peak,
}

/// A prompt up to its first token.
#[derive(Debug, Serialize)]
pub(super) struct Prefill {
    pub(super) tokens: usize,
    prompts_sha256: String,
    pub(super) first_token_ms: Spread,
    pub(super) tokens_per_second: Spread,
    /// The first token.
    answer: Vec<Vec<u32>>,
    pub(super) peak: Peak,
}

/// Decoding.
#[derive(Debug, Serialize)]
pub(super) struct Decode {
    pub(super) batch: usize,
    pub(super) prompt: usize,
    pub(super) tokens: usize,
    prompts_sha256: String,
    pub(super) first_token_ms: Spread,
    /// Of all prompts together, after the first token of each.
    pub(super) tokens_per_second: Spread,
    /// The greedy answers.
    answer: Vec<Vec<u32>>,
    pub(super) peak: Peak,
}

/// Slices.
#[derive(Debug, Serialize)]
pub(super) struct Slices {
    /// Parameters of the factors, as a share of the slice's own, at most.
    pub(super) share: f64,
    pub(super) shapes: Vec<slice_timing::Shape>,
    pub(super) peak: Peak,
}

/// The document of --json.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    #[serde(flatten)]
    pub(super) origin: &'a Origin,
    pub(super) device: DeviceInfo,
    data: PathBuf,
    data_sha256: String,
    repeats: u32,
    /// Bytes of the checkpoint's weights on disk.
    pub(super) checkpoint_bytes: u64,
    /// Bytes the process holds before the model is loaded: the program, MLX, the text.
    pub(super) baseline_process_bytes: Option<u64>,
    /// Those it holds once the model is loaded.
    pub(super) loaded_process_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) decode: Vec<Decode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) prefill: Option<Prefill>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) score: Option<Score>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) slices: Option<Slices>,
}

/// Measures a model.
///
/// # Errors
/// When the text or the model cannot be had, or the text is too short.
pub(super) fn run(args: &SpeedArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let named = args.data.as_deref().unwrap_or(Path::new(""));
    let path = locate::text(named, "data/eval.jsonl", "--data", Purpose::Judge, g)?;
    let dataset = data::load(&path)?;
    let interrupt = Interrupt::listen()?;
    let device = device::init()?;
    let held = || memory::rss().map(|(now, _)| now);
    let baseline_process_bytes = held();
    let subject = args.subject.open(g)?;
    let mut document = Document {
        origin: &subject.origin,
        device,
        data: path,
        data_sha256: dataset.sha256.clone(),
        repeats: args.repeats,
        checkpoint_bytes: weight_bytes(&subject.dir)?,
        baseline_process_bytes,
        loaded_process_bytes: held(),
        decode: Vec::new(),
        prefill: None,
        score: None,
        slices: None,
    };
    let bar = ui::bar(g, args.rounds(), "measuring");
    let bench = Bench { args, subject: &subject, dataset: &dataset, interrupt: &interrupt, bar: &bar };
    let whole = bench.fill(&mut document);
    bar.finish_and_clear();
    if !whole? {
        ui::fail(&anyhow::anyhow!("interrupted; nothing was measured"), g);
        return Ok(ExitCode::from(130));
    }
    match g.json {
        true => say!("{}", serde_json::to_string_pretty(&document)?),
        false => speed_view::show(&document, g),
    }
    Ok(ExitCode::SUCCESS)
}

impl SpeedArgs {
    fn wants(&self, work: Work) -> bool {
        self.work.contains(&work)
    }

    /// Steps of the progress bar.
    fn rounds(&self) -> u64 {
        let each = u64::from(self.repeats) + 1;
        let score = if self.wants(Work::Score) { each } else { 0 };
        let prefill = if self.wants(Work::Prefill) { each } else { 0 };
        let decode = if self.wants(Work::Decode) { each * self.batch.len() as u64 } else { 0 };
        score + prefill + decode + u64::from(self.wants(Work::Slice))
    }
}

/// Bytes of the weight files.
fn weight_bytes(dir: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for file in layout::shards(dir)? {
        sum += file.metadata().with_context(|| file.display().to_string())?.len();
    }
    Ok(sum)
}

/// A measurement under way.
struct Bench<'a> {
    args: &'a SpeedArgs,
    subject: &'a Subject,
    dataset: &'a Dataset,
    interrupt: &'a Interrupt,
    bar: &'a ProgressBar,
}

impl Bench<'_> {
    /// Does all the work; whether it came to its end.
    fn fill(&self, document: &mut Document) -> anyhow::Result<bool> {
        if self.args.wants(Work::Decode) {
            for batch in &self.args.batch {
                let Some(decode) = self.decode(*batch as usize)? else { return Ok(false) };
                document.decode.push(decode);
            }
        }
        if self.args.wants(Work::Prefill) {
            document.prefill = self.prefill()?;
        }
        if self.args.wants(Work::Score) && self.goes_on() {
            document.score = self.score()?;
        }
        if self.args.wants(Work::Slice) && self.goes_on() {
            document.slices = self.slices()?;
        }
        Ok(self.goes_on())
    }

    fn goes_on(&self) -> bool {
        !self.interrupt.raised()
    }

    /// `count` windows of `length` tokens, spread over the text.
    fn windows(&self, count: usize, length: usize) -> anyhow::Result<Vec<Vec<u32>>> {
        if let Some(limit) = self.subject.model.config().max_position_embeddings.filter(|limit| length > *limit) {
            bail!("{length} tokens: this model has {limit} positions (max_position_embeddings)");
        }
        let all = self.dataset.windows(&self.subject.tokenizer, length.max(2))?;
        if all.len() < count {
            bail!(
                "{}: {} windows of {length} tokens, {count} are needed; give more text with --data",
                self.dataset.path.display(),
                all.len()
            );
        }
        Ok(data::spread(&all, count).into_iter().map(|w| w.into_iter().take(length).collect()).collect())
    }

    /// Repeats `once`, at first uncounted; `None` when it was interrupted.
    fn repeat<T>(&self, mut once: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<Option<Vec<T>>> {
        memory::reset_peak();
        let mut found = Vec::new();
        for round in 0..=self.args.repeats {
            let Some(one) = once()? else { return Ok(None) };
            if round > 0 {
                found.push(one);
            }
            self.bar.inc(1);
        }
        Ok(Some(found))
    }

    fn score(&self) -> anyhow::Result<Option<Score>> {
        let (count, length) = self.args.score;
        let windows = self.windows(count, length)?;
        let masked: Vec<Window> = windows.iter().map(|w| Window { tokens: w.clone(), mask: None }).collect();
        let runs = self.repeat(|| {
            let start = Instant::now();
            let found = perplexity::measure(&self.subject.model, &masked, count, &mut |_| self.goes_on())?;
            Ok(found.map(|p| (p.mean_nll, start.elapsed().as_secs_f64())))
        })?;
        let Some(runs) = runs else { return Ok(None) };
        let scored = (count * (length - 1)) as f64;
        let loss = runs.first().map_or(f64::NAN, |r| r.0);
        if !loss.is_finite() {
            bail!("the mean loss is {loss}: the model computes values that are not finite; its weights may be damaged");
        }
        let Some(tokens_per_second) = Spread::of(runs.iter().map(|r| scored / r.1)) else { return Ok(None) };
        Ok(Some(Score {
            windows: count,
            window_tokens: length,
            windows_sha256: data::fingerprint(&masked),
            loss,
            tokens_per_second,
            peak: Peak::now(),
        }))
    }

    /// Decodes `new` tokens after `prompts`; `None` when it was interrupted.
    fn decoded(&self, prompts: &[Vec<u32>], new: usize) -> anyhow::Result<Option<Decoded>> {
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        Ok(timing::decode(&self.subject.model, &prompts, new, &mut || self.goes_on())?)
    }

    fn prefill(&self) -> anyhow::Result<Option<Prefill>> {
        let length = self.args.prefill as usize;
        let prompts = self.windows(1, length)?;
        let Some(runs) = self.repeat(|| self.decoded(&prompts, 1))? else { return Ok(None) };
        let first = || runs.iter().filter_map(|r| r.milliseconds.first().copied());
        let speeds = Spread::of(first().map(|ms| 1e3 * length as f64 / ms));
        let (Some(first_token_ms), Some(tokens_per_second)) = (Spread::of(first()), speeds) else { return Ok(None) };
        Ok(Some(Prefill {
            tokens: length,
            prompts_sha256: fingerprint(&prompts),
            first_token_ms,
            tokens_per_second,
            answer: runs.into_iter().next().map(|r| r.tokens).unwrap_or_default(),
            peak: Peak::now(),
        }))
    }

    fn decode(&self, batch: usize) -> anyhow::Result<Option<Decode>> {
        let (prompt, tokens) = (self.args.prompt as usize, self.args.tokens as usize);
        let prompts = self.windows(batch, prompt)?;
        let mut warm = false;
        let runs = self.repeat(|| {
            let new = if std::mem::replace(&mut warm, true) { tokens } else { tokens.min(WARM_UP) };
            self.decoded(&prompts, new)
        })?;
        let Some(runs) = runs else { return Ok(None) };
        let first = Spread::of(runs.iter().filter_map(|r| r.milliseconds.first().copied()));
        let speed = |r: &Decoded| 1e3 * (batch * (tokens - 1)) as f64 / r.milliseconds.iter().skip(1).sum::<f64>();
        let (Some(first_token_ms), Some(tokens_per_second)) = (first, Spread::of(runs.iter().map(speed))) else {
            return Ok(None);
        };
        Ok(Some(Decode {
            batch,
            prompt,
            tokens,
            prompts_sha256: fingerprint(&prompts),
            first_token_ms,
            tokens_per_second,
            answer: runs.into_iter().next().map(|r| r.tokens).unwrap_or_default(),
            peak: Peak::now(),
        }))
    }

    fn slices(&self) -> anyhow::Result<Option<Slices>> {
        let (share, rows) = (self.args.share, self.args.rows.clone());
        let plan = slice_timing::Plan { share, rows, rounds: (self.args.repeats * SLICE_ROUNDS) as usize };
        memory::reset_peak();
        let shapes = slice_timing::measure(&self.subject.model, &plan, &mut || self.goes_on())?;
        Ok(shapes.map(|shapes| Slices { share, shapes, peak: Peak::now() }))
    }
}

/// Identity of prompts, as of windows.
fn fingerprint(prompts: &[Vec<u32>]) -> String {
    let windows: Vec<Window> = prompts.iter().map(|p| Window { tokens: p.clone(), mask: None }).collect();
    data::fingerprint(&windows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn windows_are_a_number_and_a_length() {
        assert_eq!((windows("8x512"), windows("1×2")), (Ok((8, 512)), Ok((1, 2))));
        for wrong in ["", "8", "x", "8x", "0x512", "8x1", "8x512x2", "-1x5", "99999999999999999999x5"] {
            assert!(windows(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_spread_is_the_median_and_the_range() {
        let s = Spread::of([3.0, 1.0, 2.0, 10.0]).unwrap();
        assert_eq!((s.median, s.min, s.max, s.repeats), (2.5, 1.0, 10.0, vec![3.0, 1.0, 2.0, 10.0]));
        assert_eq!(Spread::of([7.0]).unwrap().median, 7.0);
        assert!(Spread::of([]).is_none());
    }
}
