//! `plastic-host generate`: text from a prompt, shown as it comes; or a conversation ([`super::chat`]).

use super::Global;
use super::chat::{self, Chat};
use super::generate_many::{self, Many};
use super::interrupt::Interrupt;
use super::subject::{Origin, SubjectArgs};
use crate::mlx;
use crate::model::generate::{self, Finish, GenerateOptions, Generation};
use crate::model::sample::Sampling;
use anyhow::{Context, bail};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Largest prompt that is read, in bytes: more than any context holds.
const MAX_PROMPT: u64 = 64 << 20;

/// Options of `generate`.
#[derive(clap::Args, Debug)]
#[command(
    allow_negative_numbers = true,
    after_help = "\
Examples:
  plastic-host generate --prompt 'Why is the sky blue?'
  plastic-host generate --raw --prompt 'The capital of France is' --max-tokens 20
  plastic-host generate --state runs/small --prompt-file question.txt --temperature 0.7 --top-p 0.9 --seed 1
  plastic-host generate --pack shakespeare --prompt 'Shall I compare thee'
  plastic-host generate                                     a conversation, at a terminal
  plastic-host generate --base small --awake-budget 0.5     with half of an elastic checkpoint awake; /budget changes it
  plastic-host generate --prompts questions.jsonl --batch 16 --json > answers.jsonl
  git log -3 | plastic-host generate --system 'Summarise in one sentence.' --json"
)]
pub struct GenerateArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// The prompt; without it and --prompt-file, standard input, or a conversation where that is a terminal
    #[arg(long, short, value_name = "TEXT", conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// The prompt from a file, `-` for standard input; one line end at its end is left out
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// A file of prompts, `-` for standard input: JSON lines {"prompt": ..} or {"messages": [..]}, each with an `id` and
    /// a `seed` if it likes; with --json a JSON line for each answer, in the order of the prompts
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompt_file", "interactive"])]
    prompts: Option<PathBuf>,
    /// Prompts of --prompts that are answered together, as far as memory allows
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024), requires = "prompts")]
    batch: u16,
    /// A conversation, each line of standard input a turn, even where that is no terminal
    #[arg(long, conflicts_with_all = ["prompt", "prompt_file", "raw"])]
    interactive: bool,
    /// System message for the chat template
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long)]
    raw: bool,
    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// 0 always takes the likeliest token; higher is more varied
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Draw from the likeliest tokens that together have this probability; 1: all
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Draw from this many likeliest tokens; 0: all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Draw from tokens at least this fraction as likely as the likeliest; 0: all
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f64,
    /// Makes the last 20 tokens less likely to come again; 1: no effect
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Seed of the draws: the same seed gives the same text; prompt i of --prompts draws with seed + i, from 0
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Text that ends the answer and is not part of it; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

impl GenerateArgs {
    fn options(&self) -> GenerateOptions {
        let sampling = Sampling {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..Sampling::default()
        };
        GenerateOptions { max_tokens: self.max_tokens, sampling, stop: self.stop.clone() }
    }

    /// The prompt; `None` where there is none and a person sits at the terminal.
    fn text(&self) -> anyhow::Result<Option<String>> {
        match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => Ok(Some(text.clone())),
            (None, Some(path)) if path.as_os_str() != "-" => {
                let file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
                read(file, path).map(Some)
            }
            (None, None) if std::io::stdin().is_terminal() => Ok(None),
            (None, _) => read(std::io::stdin().lock(), Path::new("standard input")).map(Some),
        }
    }
}

/// All of a text, without the line end that editors and `echo` put at its end.
fn read(from: impl Read, name: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_PROMPT + 1).read_to_end(&mut bytes).with_context(|| name.display().to_string())?;
    if bytes.len() as u64 > MAX_PROMPT {
        bail!("{}: the prompt is longer than {} MiB; shorten it", name.display(), MAX_PROMPT >> 20);
    }
    let mut text = String::from_utf8(bytes).with_context(|| format!("{}: is no UTF-8 text", name.display()))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// The document of --json.
#[derive(serde::Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    origin: &'a Origin,
    #[serde(flatten)]
    generation: &'a Generation,
    sampling: &'a Sampling,
}

/// Generates text.
///
/// # Errors
/// When the prompt cannot be read or is too long, or the model cannot be had.
pub fn run(args: &GenerateArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let options = args.options();
    if let Err(e) = options.sampling.check() {
        return Ok(usage(&format!("--{e}")));
    }
    if let Some(file) = &args.prompts {
        let rows = generate_many::read(file)?;
        let interrupt = Interrupt::listen()?;
        mlx::device::init()?;
        let subject = args.subject.open(g)?;
        let system = args.system.as_deref();
        let many = Many { batch: args.batch.into(), system, raw: args.raw, options };
        return generate_many::run(&many, &rows, &subject, &interrupt, g);
    }
    let at_terminal =
        args.prompt.is_none() && args.prompt_file.is_none() && !args.raw && std::io::stdin().is_terminal();
    if args.interactive || at_terminal {
        let interrupt = Interrupt::listen()?;
        mlx::device::init()?;
        let subject = args.subject.open_with(true, g)?;
        let chat = Chat { system: args.system.as_deref(), options: &options, interrupt: &interrupt };
        return chat::run(&chat, subject, g);
    }
    let Some(text) = args.text()? else {
        return Ok(usage(
            "no prompt: give --prompt TEXT, --prompt-file FILE, or pipe a text in\n\n  plastic-host generate --prompt 'Why is the sky blue?'",
        ));
    };
    if text.trim().is_empty() {
        bail!("the prompt is empty; give some text");
    }
    let interrupt = Interrupt::listen()?;
    mlx::device::init()?;
    let subject = args.subject.open(g)?;
    let prompt = match args.raw {
        true => subject.tokenizer.encode(&text, true)?,
        false => subject.tokenizer.question(args.system.as_deref(), &text)?,
    };
    let mut shown = Ok(());
    let mut show = |piece: &str| {
        if !g.json {
            shown = print(piece);
        }
        shown.is_ok() && !interrupt.raised()
    };
    let made = generate::generate(&subject.model, &subject.tokenizer, &prompt, &options, &mut show)?;
    if let Err(e) = shown {
        // The reader of a pipe may have seen enough; that is no failure.
        return if e.kind() == std::io::ErrorKind::BrokenPipe { Ok(ExitCode::SUCCESS) } else { Err(e.into()) };
    }
    if g.json {
        let document = Document { origin: &subject.origin, generation: &made, sampling: &options.sampling };
        say!("{}", serde_json::to_string_pretty(&document)?);
    } else if !made.text.ends_with('\n') {
        // A reader that left after the last word is no failure either.
        let _ = print("\n");
    }
    if !g.quiet && !g.json {
        note!("{}", speed(&made));
    }
    Ok(if made.finish == Finish::Cancelled { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

fn print(piece: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(piece.as_bytes())?;
    out.flush()
}

fn usage(error: &str) -> ExitCode {
    note!("error: {error}");
    ExitCode::from(2)
}

/// What an answer cost, in a sentence.
pub(super) fn speed(made: &Generation) -> String {
    let end = match made.finish {
        Finish::Eos => "the model ended it",
        Finish::Stop => "ended by a stop text",
        Finish::Length => "ended by --max-tokens or the model's context",
        Finish::Cancelled => "interrupted",
    };
    format!(
        "prompt {} tokens, {:.0} tokens/s; first token after {:.0} ms; {} tokens, {:.1} tokens/s; {end}",
        made.prompt_tokens,
        made.prompt_tokens_per_second,
        made.first_token_ms,
        made.tokens.len(),
        made.decode_tokens_per_second
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn one_line_end_is_no_part_of_the_prompt() {
        let of = |text: &str| read(text.as_bytes(), Path::new("p.txt")).unwrap();
        assert_eq!((of("a\n"), of("a\r\n"), of("a\n\n"), of("a")), ("a".into(), "a".into(), "a\n".into(), "a".into()));
        assert!(read(&b"\xff"[..], Path::new("p.txt")).unwrap_err().to_string().contains("p.txt: is no UTF-8"));
    }
}
