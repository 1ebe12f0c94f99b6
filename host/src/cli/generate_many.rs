//! `plastic-host generate --prompts`: answers to a file of prompts, several at a time.
//!
//! Every row is checked before anything is computed. Ctrl-C keeps the answers that have ended.

use super::generate::speed;
use super::interrupt::Interrupt;
use super::subject::Subject;
use super::{Global, ui};
use crate::mlx;
use crate::model::batch::{self, Event, Request};
use crate::model::chat::{Message, message};
use crate::model::{GenerateOptions, Generation};
use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Largest line that is read, in bytes.
const MAX_LINE: u64 = 64 << 20;
/// Most bytes of prompts together.
const MAX_ALL: u64 = 1 << 30;

/// Which prompts and how.
pub(super) struct Many<'a> {
    /// Answers that are made together.
    pub batch: usize,
    /// System message of rows that bring none.
    pub system: Option<&'a str>,
    /// Prompts are plain text, without the chat template.
    pub raw: bool,
    /// What to generate; row `i` draws with this seed plus `i`, unless it names its own.
    pub options: GenerateOptions,
}

/// A row of the file.
struct Row {
    line: usize,
    /// Handed through to the answer.
    id: Option<Value>,
    seed: Option<u64>,
    ask: Ask,
}

enum Ask {
    Prompt(String),
    Messages(Vec<Message>),
}

/// A line of --json.
#[derive(serde::Serialize)]
struct Answer<'a> {
    /// Place of the prompt, counted from 0.
    index: usize,
    /// Line of the file.
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    seed: u64,
    #[serde(flatten)]
    generation: &'a Generation,
}

/// The rows of the file, all of them checked.
///
/// # Errors
/// The first row that is no prompt, with file and line.
pub(super) fn read(file: &Path) -> anyhow::Result<Rows> {
    let name = match file.as_os_str() == "-" {
        true => "standard input".to_owned(),
        false => file.display().to_string(),
    };
    let input: Box<dyn Read> = match file.as_os_str() == "-" {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(crate::atomic::open_regular(file).with_context(|| name.clone())?),
    };
    let mut input = BufReader::new(input);
    let (mut rows, mut bytes, mut total) = (Vec::new(), Vec::new(), 0);
    for line in 1.. {
        bytes.clear();
        let n = (&mut input).take(MAX_LINE + 1).read_until(b'\n', &mut bytes).with_context(|| name.clone())? as u64;
        total += n;
        let at = |what: &dyn Display| anyhow!("{name}:{line}: {what}");
        match n {
            0 => break,
            n if n > MAX_LINE => return Err(at(&format!("is longer than {} MiB; shorten it", MAX_LINE >> 20))),
            _ if total > MAX_ALL => {
                return Err(at(&format!("more than {} GiB of prompts; split the file", MAX_ALL >> 30)));
            }
            _ => {}
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| at(&"is no UTF-8 text"))?;
        let text = text.trim_start_matches('\u{FEFF}').trim();
        if !text.is_empty() {
            rows.push(row(text, line).map_err(|e| at(&e))?);
        }
    }
    match rows.is_empty() {
        true => bail!("{name}: has no prompts; expected lines such as {{\"prompt\": \"Why is the sky blue?\"}}"),
        false => Ok(Rows { name, rows }),
    }
}

/// What [`read`] found.
pub(super) struct Rows {
    name: String,
    rows: Vec<Row>,
}

fn row(text: &str, line: usize) -> Result<Row, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| {
        let e = e.to_string();
        // The place that is told counts within this line.
        format!("not valid JSON: {}", e.split(" at line").next().unwrap_or(&e))
    })?;
    let object = value.as_object().ok_or("expected an object with `prompt` or `messages`")?;
    let field = |name: &str| object.get(name).filter(|v| !v.is_null());
    let seed = match field("seed") {
        None => None,
        Some(s) => Some(s.as_u64().ok_or("`seed` is no whole number from 0")?),
    };
    let ask = match (field("prompt"), field("messages")) {
        (Some(Value::String(p)), None) if p.trim().is_empty() => return Err("`prompt` is empty".into()),
        (Some(Value::String(p)), None) => Ask::Prompt(p.clone()),
        (Some(_), None) => return Err("`prompt` is no text".into()),
        (None, Some(Value::Array(m))) if !m.is_empty() => {
            let role = |m: &Value| m.get("role").is_some_and(Value::is_string) && m.get("content").is_some();
            match m.iter().position(|m| !role(m)) {
                Some(i) => return Err(format!("message {i} has no `role` and `content`")),
                None => Ask::Messages(m.clone()),
            }
        }
        (None, Some(_)) => return Err("`messages` is no list of messages".into()),
        (Some(_), Some(_)) => return Err("has `prompt` and `messages`; expected one of them".into()),
        (None, None) => return Err("has neither `prompt` nor `messages`".into()),
    };
    Ok(Row { line, id: field("id").cloned(), seed, ask })
}

/// Answers all prompts.
///
/// # Errors
/// When a prompt does not fit the model (the line is named), not even one answer fits into memory, or the model's
/// outputs are no numbers.
pub(super) fn run(
    many: &Many,
    rows: &Rows,
    s: &Subject,
    interrupt: &Interrupt,
    g: &Global,
) -> anyhow::Result<ExitCode> {
    let requests = requests(many, rows, s)?;
    let together = fitting(many.batch.min(requests.len()), &requests, s, g)?;
    let bar = ui::bar(g, requests.len() as u64, "answering");
    let (mut tokens, begun) = (0, Instant::now());
    // Answers end in any order and are shown in that of the prompts.
    let mut next = Printer { rows, requests: &requests, ready: requests.iter().map(|_| None).collect(), shown: 0 };
    let made = batch::generate(&s.model, &s.tokenizer, &requests, together, &mut |event| {
        match event {
            Event::Tokens(n) => {
                tokens += n;
                bar.set_prefix(format!("{:.0} tokens/s", tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9)));
            }
            Event::Done(i, made) => {
                bar.inc(1);
                bar.suspend(|| next.done(i, made, g));
            }
        }
        !interrupt.raised()
    });
    bar.finish_and_clear();
    // What waits for an answer before it that will not come.
    next.rest(g);
    let made = made?;
    let ended = made.iter().flatten().count();
    if !g.quiet && !g.json {
        note!(
            "{ended} of {} prompts, {together} together: {tokens} tokens in {:.1} s, {:.1} tokens/s",
            requests.len(),
            begun.elapsed().as_secs_f64(),
            tokens as f64 / begun.elapsed().as_secs_f64().max(1e-9)
        );
    }
    if ended < requests.len() {
        note!("interrupted: {} prompts have no answer", requests.len() - ended);
        return Ok(ExitCode::from(130));
    }
    Ok(ExitCode::SUCCESS)
}

/// The prompts as tokens.
fn requests(many: &Many, rows: &Rows, s: &Subject) -> anyhow::Result<Vec<Request>> {
    let of = |(i, row): (usize, &Row)| {
        let prompt = match &row.ask {
            Ask::Prompt(text) if many.raw => s.tokenizer.encode(text, true)?,
            Ask::Prompt(text) => s.tokenizer.question(many.system, text)?,
            Ask::Messages(_) if many.raw => bail!("has `messages`, which need the chat template; leave --raw out"),
            Ask::Messages(talk) => {
                let opened = talk.first().is_some_and(|m| m.get("role").and_then(Value::as_str) == Some("system"));
                let system = many.system.filter(|_| !opened).map(|text| message("system", text));
                s.tokenizer.prompt(&system.into_iter().chain(talk.iter().cloned()).collect::<Vec<_>>())?
            }
        };
        let mut options = many.options.clone();
        options.sampling.seed = row.seed.unwrap_or_else(|| options.sampling.seed.wrapping_add(i as u64));
        let request = Request { prompt, options };
        request.check(&s.model)?;
        Ok(request)
    };
    let named = |(i, row): (usize, &Row)| of((i, row)).map_err(|e| anyhow!("{}:{}: {e:#}", rows.name, row.line));
    rows.rows.iter().enumerate().map(named).collect()
}

/// How many answers run together: as many as wanted, or as fit into half of the free memory.
fn fitting(wanted: usize, requests: &[Request], s: &Subject, g: &Global) -> anyhow::Result<usize> {
    let mut longest = 0;
    for r in requests {
        longest = longest.max(r.positions(&s.model)?);
    }
    let one = batch::cache_bytes(&s.model, longest).max(1);
    let free = mlx::memory::available().unwrap_or(u64::MAX);
    let fit = usize::try_from(free / 2 / one).unwrap_or(usize::MAX);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    if fit == 0 {
        bail!(
            "an answer of up to {longest} positions needs {} MiB for its keys and values, and {} MiB are free: lower --max-tokens or shorten the prompts",
            mib(one),
            mib(free)
        );
    }
    if fit < wanted && !g.quiet {
        note!(
            "{fit} answers run together, not {wanted}: each may take {} MiB ({longest} positions), and {} MiB are free; lower --max-tokens for more",
            mib(one),
            mib(free)
        );
    }
    Ok(fit.min(wanted).max(1))
}

/// Shows answers in the order of the prompts, each as soon as those before it are shown.
struct Printer<'a> {
    rows: &'a Rows,
    requests: &'a [Request],
    ready: Vec<Option<Generation>>,
    shown: usize,
}

impl Printer<'_> {
    fn done(&mut self, i: usize, made: &Generation, g: &Global) {
        if let Some(place) = self.ready.get_mut(i) {
            *place = Some(made.clone());
        }
        while let Some(made) = self.ready.get_mut(self.shown).and_then(Option::take) {
            self.show(self.shown, &made, g);
            self.shown += 1;
        }
    }

    fn rest(&mut self, g: &Global) {
        for i in self.shown..self.ready.len() {
            if let Some(made) = self.ready.get_mut(i).and_then(Option::take) {
                self.show(i, &made, g);
            }
        }
        self.shown = self.ready.len();
    }

    fn show(&self, i: usize, made: &Generation, g: &Global) {
        let (Some(row), Some(request)) = (self.rows.rows.get(i), self.requests.get(i)) else { return };
        if g.json {
            let seed = request.options.sampling.seed;
            let line = Answer { index: i, line: row.line, id: row.id.as_ref(), seed, generation: made };
            match serde_json::to_string(&line) {
                Ok(text) => say!("{text}"),
                Err(e) => note!("error: answer {i} cannot be written: {e}"),
            }
            return;
        }
        let asked = match &row.ask {
            Ask::Prompt(text) => text.as_str(),
            Ask::Messages(talk) => {
                talk.last().and_then(|m| m.get("content")).and_then(Value::as_str).unwrap_or("a conversation")
            }
        };
        let first = asked.lines().find(|l| !l.trim().is_empty()).unwrap_or_default();
        let short: String = first.chars().take(72).collect();
        let more = if short.len() < asked.trim_end().len() { " …" } else { "" };
        say!("[{}] {short}{more}\n{}\n", i + 1, made.text.trim_end());
        if g.verbose > 0 {
            note!("{}", speed(made));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn rows_are_prompts_or_conversations() {
        let r = row(r#"{"prompt": "x", "id": [1], "seed": 7, "other": 1}"#, 3).unwrap();
        assert!(matches!(&r.ask, Ask::Prompt(p) if p == "x"));
        assert_eq!((r.line, r.id, r.seed), (3, Some(serde_json::json!([1])), Some(7)));
        let r = row(r#"{"messages": [{"role": "user", "content": "x"}], "prompt": null}"#, 1).unwrap();
        assert!(matches!(&r.ask, Ask::Messages(m) if m.len() == 1));
    }

    #[test]
    fn what_is_wrong_with_a_row_is_told() {
        let wrong = |text: &str| row(text, 1).err().unwrap();
        assert!(wrong("{").starts_with("not valid JSON: EOF while parsing"));
        assert!(wrong("[]").contains("expected an object"));
        assert!(wrong("{}").contains("neither"));
        assert!(wrong(r#"{"prompt": 1}"#).contains("no text"));
        assert!(wrong(r#"{"prompt": " "}"#).contains("empty"));
        assert!(wrong(r#"{"prompt": "x", "seed": -1}"#).contains("seed"));
        assert!(wrong(r#"{"messages": []}"#).contains("no list"));
        assert!(wrong(r#"{"messages": [{"role": "user", "content": "x"}, {"role": "user"}]}"#).contains("message 1"));
        assert!(wrong(r#"{"messages": [{}], "prompt": "x"}"#).contains("one of them"));
    }
}
