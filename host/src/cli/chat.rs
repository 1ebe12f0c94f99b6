//! `plastic-host generate` without a prompt at a terminal: a conversation, line by line.
//!
//! Every turn runs the whole conversation through the model again, so that what is awake at that moment computes all
//! of it. `/budget` changes how much of an elastic checkpoint is awake between turns: another part of the same memory
//! computes, nothing is loaded or copied.

use super::Global;
use super::elastic::figure;
use super::interrupt::Interrupt;
use super::show;
use super::subject::Subject;
use crate::compress::Manifest;
use crate::compress::budget::Rungs;
use crate::mlx;
use crate::model::chat::{Message, message};
use crate::model::generate::{self, Finish, GenerateOptions, Generation};
use crate::model::sample::Sampling;
use anyhow::bail;
use std::io::{BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 16 << 20;

const HELP: &str = "\
/budget SHARE   wake so large a share of an elastic checkpoint, and put the rest to sleep
/budget         show what is awake
/reset          forget the conversation
/quit           leave; the end of input does the same
anything else   is said to the model; a line that begins with // is said with one /";

/// How a conversation goes.
pub struct Chat<'a> {
    /// System message.
    pub system: Option<&'a str>,
    /// How answers are generated.
    pub options: &'a GenerateOptions,
    /// Ctrl-C.
    pub interrupt: &'a Interrupt,
}

/// An elastic checkpoint whose sleeping components are in memory.
struct Capacity {
    manifest: Manifest,
    rungs: Vec<Rungs>,
    /// What was asked for last.
    budget: f64,
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Asked<'a> {
    Say(&'a str),
    Budget(Option<&'a str>),
    Help,
    Reset,
    Quit,
    Nothing,
    Unknown(&'a str),
}

fn parse(line: &str) -> Asked<'_> {
    let line = line.trim();
    if line.is_empty() {
        return Asked::Nothing;
    }
    let Some(command) = line.strip_prefix('/') else { return Asked::Say(line) };
    if command.starts_with('/') {
        return Asked::Say(command);
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    match name {
        "budget" => Asked::Budget((!rest.is_empty()).then_some(rest)),
        "help" | "reset" | "quit" | "exit" if !rest.is_empty() => Asked::Unknown(line),
        "help" => Asked::Help,
        "reset" => Asked::Reset,
        "quit" | "exit" => Asked::Quit,
        _ => Asked::Unknown(line),
    }
}

/// One line of --json: an answer.
#[derive(serde::Serialize)]
struct Turn<'a> {
    turn: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    awake_budget: Option<f64>,
    #[serde(flatten)]
    generation: &'a Generation,
    sampling: &'a Sampling,
}

/// Talks until `/quit` or the end of input. With --json each answer and each change of budget is a line of its own.
///
/// # Errors
/// When the checkpoint has no chat template, is damaged, or standard input or output fails.
pub fn run(chat: &Chat, mut subject: Subject, g: &Global) -> anyhow::Result<ExitCode> {
    if subject.tokenizer.chat().is_none() {
        bail!(
            "{}: this checkpoint has no chat template, so it cannot hold a conversation; give a prompt as plain text (--raw --prompt TEXT)",
            subject.dir.display()
        );
    }
    let mut capacity = capacity(&subject)?;
    let person = std::io::stdin().is_terminal() && !g.json;
    if person && !g.quiet {
        note!("{}; /help lists commands, /quit leaves", subject.origin.base);
    }
    let opening: Vec<Message> = chat.system.map(|s| message("system", s)).into_iter().collect();
    let mut talk = opening.clone();
    let mut turns = 0;
    let lines = lines();
    loop {
        if person {
            print("> ")?;
        }
        let line = match next(&lines, chat.interrupt) {
            Next::Line(line) => line?,
            Next::End => break,
            Next::Interrupted => return Ok(ExitCode::from(130)),
        };
        match parse(&line) {
            Asked::Nothing => {}
            Asked::Quit => return Ok(ExitCode::SUCCESS),
            Asked::Help => note!("{HELP}"),
            Asked::Reset => {
                talk = opening.clone();
                tell(g, "the conversation is forgotten");
            }
            Asked::Unknown(line) => note!("error: {line}: no such command; /help lists them"),
            Asked::Budget(wanted) => {
                if let Err(e) = budget(wanted, &mut capacity, &mut subject, g) {
                    note!("error: {e:#}");
                }
            }
            Asked::Say(text) => {
                talk.push(message("user", text));
                match answer(chat, &subject, &talk, g) {
                    Ok(made) => {
                        turns += 1;
                        if g.json {
                            let awake_budget = capacity.as_ref().map(|c| c.budget);
                            let sampling = &chat.options.sampling;
                            let turn = Turn { turn: turns, awake_budget, generation: &made, sampling };
                            say!("{}", serde_json::to_string(&turn)?);
                        } else if person && !g.quiet {
                            note!("{}", super::generate::speed(&made));
                        }
                        // An answer that was cut short is what was said all the same.
                        talk.push(message("assistant", &made.text));
                        if made.finish == Finish::Cancelled && !person {
                            return Ok(ExitCode::from(130));
                        }
                        chat.interrupt.forget();
                    }
                    Err(e) => {
                        talk.pop();
                        if e.downcast_ref::<std::io::Error>()
                            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
                        {
                            return Ok(ExitCode::SUCCESS);
                        }
                        note!("error: {e:#}; that was not said (/reset forgets the conversation)");
                    }
                }
            }
        }
    }
    if person {
        print("\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is known of the subject's capacity; `None` where it cannot change.
fn capacity(subject: &Subject) -> anyhow::Result<Option<Capacity>> {
    if subject.origin.state.is_some() || subject.model.levels().is_empty() {
        return Ok(None);
    }
    let manifest = Manifest::open(&subject.dir)?;
    let rungs = manifest.rungs(&subject.dir)?;
    let budget = subject.origin.awake_budget.unwrap_or(manifest.awake_budget);
    Ok(Some(Capacity { manifest, rungs, budget }))
}

/// Shows or changes what is awake.
fn budget(wanted: Option<&str>, c: &mut Option<Capacity>, s: &mut Subject, g: &Global) -> anyhow::Result<()> {
    let Some(c) = c else {
        if s.origin.state.is_some() {
            bail!("the state of a run has the ranks that the run gave it; talk to its base to change the budget");
        }
        if crate::model::awake::recorded(&s.dir)?.is_some_and(|r| r.runs_base) {
            bail!("{0} runs its base; `plastic-host elastic set {0} --awake-budget SHARE` goes back", s.dir.display());
        }
        bail!("{} is no elastic checkpoint; make one with `plastic-host compress`", s.origin.base);
    };
    let (mut milliseconds, mut grew) = (None, 0);
    if let Some(text) = wanted {
        let share = super::awake::share(text).map_err(|e| anyhow::anyhow!("/budget {text}: {e}"))?;
        let mut levels = c.manifest.named(&c.manifest.levels_of(&c.rungs, share)?);
        // What has no components is as it is at every budget.
        let able = s.model.levels();
        levels.retain(|name, _| able.contains_key(name));
        mlx::memory::reset_peak();
        let (before, begun) = (mlx::memory::mlx().0, Instant::now());
        s.model.set_levels(&levels)?;
        milliseconds = Some(begun.elapsed().as_secs_f64() * 1e3);
        grew = mlx::memory::mlx().1.saturating_sub(before);
        c.budget = share;
        // A DoRA pack is normed by the weight that it is put on.
        if !s.packs.is_empty() {
            let attachment = s.packs.prepare(&s.model)?;
            crate::pack::attach::attach(&mut s.model, &attachment);
        }
    }
    let levels = s.model.levels();
    let now: Vec<_> = c.manifest.stored.iter().map(|r| levels.get(&r.name).copied().unwrap_or(r.planned)).collect();
    let (awake, all) = (c.manifest.awake_parameters(&now), c.manifest.parameters());
    let (active, _) = mlx::memory::mlx();
    if g.json {
        say!(
            "{}",
            serde_json::json!({
                "awake_budget": c.budget, "parameters_awake": awake, "parameters": all,
                "milliseconds": milliseconds, "mlx_active_bytes": active, "mlx_grew_bytes": grew,
            })
        );
        return Ok(());
    }
    let took = milliseconds.map_or(String::new(), |ms| format!("; changed in {ms:.1} ms"));
    note!(
        "awake budget {}: {} of {} parameters ({:.1} %), {} in MLX{took}",
        figure(c.budget),
        show::millions(awake),
        show::millions(all),
        100.0 * awake as f64 / all.max(1) as f64,
        show::megabytes(active)
    );
    Ok(())
}

/// Says the conversation to the model; the answer is shown as it comes.
fn answer(chat: &Chat, s: &Subject, talk: &[Message], g: &Global) -> anyhow::Result<Generation> {
    let prompt = s.tokenizer.prompt(talk)?;
    let mut shown = Ok(());
    let mut show = |piece: &str| {
        if !g.json {
            shown = print(piece);
        }
        shown.is_ok() && !chat.interrupt.raised()
    };
    let made = generate::generate(&s.model, &s.tokenizer, &prompt, chat.options, &mut show)?;
    shown?;
    if !g.json && !made.text.ends_with('\n') {
        print("\n")?;
    }
    Ok(made)
}

fn tell(g: &Global, text: &str) {
    if !g.quiet {
        note!("{text}");
    }
}

fn print(piece: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(piece.as_bytes())?;
    out.flush()
}

/// Lines of standard input, read on a thread of its own so that Ctrl-C is heard meanwhile.
fn lines() -> Receiver<std::io::Result<String>> {
    let (send, lines) = sync_channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        while let Some(line) = read(&mut input) {
            let failed = line.is_err();
            if send.send(line).is_err() || failed {
                return;
            }
        }
    });
    lines
}

/// The next line; `None` at the end.
fn read(input: &mut impl BufRead) -> Option<std::io::Result<String>> {
    let mut bytes = Vec::new();
    match input.take(MAX_LINE + 1).read_until(b'\n', &mut bytes) {
        Err(e) => Some(Err(e)),
        Ok(0) => None,
        Ok(n) if n as u64 > MAX_LINE => {
            let text = format!("a line is longer than {} MiB; shorten it", MAX_LINE >> 20);
            Some(Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text)))
        }
        // What a terminal or a file in another encoding sends is better seen than refused.
        Ok(_) => Some(Ok(String::from_utf8_lossy(&bytes).into_owned())),
    }
}

enum Next {
    Line(std::io::Result<String>),
    End,
    Interrupted,
}

fn next(lines: &Receiver<std::io::Result<String>>, interrupt: &Interrupt) -> Next {
    loop {
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => return Next::Line(line),
            Err(RecvTimeoutError::Disconnected) => return Next::End,
            Err(RecvTimeoutError::Timeout) if interrupt.raised() => return Next::Interrupted,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn lines_are_commands_or_said() {
        assert_eq!(parse("  hello / there \n"), Asked::Say("hello / there"));
        assert_eq!(parse("//budget"), Asked::Say("/budget"));
        assert_eq!(parse("/budget"), Asked::Budget(None));
        assert_eq!(parse("/budget   0.5\r\n"), Asked::Budget(Some("0.5")));
        assert_eq!(parse("/quit"), Asked::Quit);
        assert_eq!(parse("/quit now"), Asked::Unknown("/quit now"));
        assert_eq!(parse("/budgets 1"), Asked::Unknown("/budgets 1"));
        assert_eq!(parse(" \n"), Asked::Nothing);
    }

    #[test]
    fn the_last_line_needs_no_end_and_a_long_one_is_refused() {
        let mut input = &b"one\ntwo"[..];
        assert_eq!(read(&mut input).unwrap().unwrap(), "one\n");
        assert_eq!(read(&mut input).unwrap().unwrap(), "two");
        assert!(read(&mut input).is_none());
        let mut endless = std::io::BufReader::new(std::io::repeat(b'x'));
        assert!(read(&mut endless).unwrap().unwrap_err().to_string().contains("longer than 16 MiB"));
    }
}
