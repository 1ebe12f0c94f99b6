//! From a data file to windows of tokens.
//!
//! A window is a run of tokens that is scored on its own, its first token as context. Windows do not cross
//! documents unless packed. What is left out (short tails, rows without text) is counted and told.

use super::rows::{self, Row};
pub use super::rows::{Error, Result};
use super::thin;
pub use super::thin::Thinned;
use crate::model::{Tokenizer, chat};
use crate::plugin::contract::Example;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Which tokens count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// All tokens
    #[default]
    Full,
    /// Only completions and the assistant's turns; all tokens of plain text
    Answer,
    /// Only completions and the assistant's last turn; all tokens of plain text
    LastTurn,
}

/// How documents are cut into windows.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Cutting {
    /// Tokens of a window.
    pub window: usize,
    /// Which tokens count.
    pub loss: Loss,
    /// Join all documents into one before cutting.
    pub pack: bool,
    /// Keep the end of a document that does not fill a window.
    pub keep_tail: bool,
}

impl Default for Cutting {
    fn default() -> Self {
        Cutting { window: 512, loss: Loss::Full, pack: false, keep_tail: false }
    }
}

/// A data file.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Rows without any field that holds text.
    pub unusable: usize,
    rows: Vec<(usize, Row)>,
}

/// Tokens that are scored on their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// At least two token ids.
    pub tokens: Vec<u32>,
    /// Which of tokens 1.. count; `None`: all.
    pub mask: Option<Vec<bool>>,
}

impl Window {
    /// Number of tokens that count.
    pub fn scored(&self) -> usize {
        self.mask.as_ref().map_or(self.tokens.len() - 1, |m| m.iter().filter(|x| **x).count())
    }
}

/// The windows of a data set, and what was left out.
#[derive(Clone, Debug)]
pub struct Cut {
    /// At least one window.
    pub windows: Vec<Window>,
    /// Tokens in the file.
    pub tokens: usize,
    /// Tokens in ends of documents that do not fill a window.
    pub tail_tokens: usize,
}

/// Reads a data file; see [`rows::read`].
///
/// # Errors
/// When it is missing, damaged or empty, with the line where there is one.
pub fn load(path: &Path) -> Result<Dataset> {
    let read = rows::read(path)?;
    if let Some((line, has)) = &read.first_unusable {
        tracing::warn!(
            "{}: {} rows without text are left out (line {line} has {has}; expected `text`, `prompt` and `completion`, or `messages`)",
            path.display(),
            read.unusable
        );
    }
    Ok(Dataset { path: path.to_owned(), sha256: read.sha256, unusable: read.unusable, rows: read.rows })
}

/// `n` of `items`, evenly spread and in order; all of them for 0 or more than there are.
pub fn spread<T: Clone>(items: &[T], n: usize) -> Vec<T> {
    match n {
        0 => items.to_vec(),
        n if n >= items.len() => items.to_vec(),
        n => (0..n).filter_map(|i| items.get(i * items.len() / n).cloned()).collect(),
    }
}

/// SHA-256 over the tokens and masks of windows: what identifies an evaluation.
pub fn fingerprint(windows: &[Window]) -> String {
    let mut sha = Sha256::new();
    for w in windows {
        sha.update((w.tokens.len() as u64).to_le_bytes());
        w.tokens.iter().for_each(|t| sha.update(t.to_le_bytes()));
        if let Some(mask) = &w.mask {
            sha.update(mask.iter().map(|m| u8::from(*m)).collect::<Vec<_>>());
        }
    }
    crate::model::hash::hex(&sha.finalize())
}

impl Dataset {
    /// Keeps of a large text as much as `windows` windows (0: all) of `window` tokens need, evenly spread; see [`thin`].
    pub fn thin(&mut self, windows: usize, window: usize) -> Option<Thinned> {
        thin::thin(&mut self.rows, windows, window)
    }

    /// What the rows say, with the line each stands on.
    pub fn texts(&self) -> Vec<(usize, String)> {
        let text = |row: &Row| match row {
            Row::Text(text) => text.clone(),
            Row::Tokens(_) => String::new(),
            Row::Answer { prompt, completion } => format!("{prompt} {completion}"),
            Row::Messages(turns) => {
                let content = |turn: &Value| turn.get("content").and_then(Value::as_str).unwrap_or_default().to_owned();
                turns.iter().map(content).collect::<Vec<_>>().join(" ")
            }
        };
        self.rows.iter().map(|(line, row)| (*line, text(row))).collect()
    }

    /// Full windows of `window` tokens, documents apart, every token counting.
    ///
    /// # Errors
    /// As [`Dataset::cut`].
    pub fn windows(&self, tokenizer: &Tokenizer, window: usize) -> Result<Vec<Vec<u32>>> {
        let cut = self.cut(tokenizer, &Cutting { window, ..Cutting::default() })?;
        let full: Vec<Vec<u32>> = cut.windows.into_iter().map(|w| w.tokens).filter(|t| t.len() == window).collect();
        match full.is_empty() {
            true => Err(self.too_short(window, cut.tokens)),
            false => Ok(full),
        }
    }

    /// What evaluators score: full windows as [`Dataset::windows`], or where the file has none, because it
    /// holds short questions and conversations only, those as they are.
    ///
    /// # Errors
    /// As [`Dataset::cut`].
    pub fn evaluation_windows(&self, tokenizer: &Tokenizer, window: usize) -> Result<Vec<Vec<u32>>> {
        let cut = self.cut(tokenizer, &Cutting { window, ..Cutting::default() })?;
        let all: Vec<Vec<u32>> = cut.windows.into_iter().map(|w| w.tokens).collect();
        match all.iter().any(|t| t.len() == window) {
            true => Ok(all.into_iter().filter(|t| t.len() == window).collect()),
            false => Ok(all),
        }
    }

    /// Prompts with the answers to them, evenly spread, at most `most` (0: all): rows with a prompt and a
    /// completion as they are, conversations that end in the assistant's turn as the chat template writes
    /// them up to that turn.
    ///
    /// # Errors
    /// When a conversation needs a chat template that is not there, or the template refuses it.
    pub fn examples(&self, tokenizer: &Tokenizer, most: usize) -> Result<Vec<Example>> {
        let asked: Vec<&(usize, Row)> = self.rows.iter().filter(|(_, row)| question(row).is_some()).collect();
        let chosen = spread(&asked, most);
        chosen
            .into_iter()
            .map(|(line, row)| example(row, tokenizer).map_err(|reason| self.wrong_line(*line, reason)))
            .collect()
    }

    /// Cuts the documents into windows.
    ///
    /// Ends of texts that do not fill a window are left out unless `keep_tail`; conversations and answers that
    /// are shorter than a window are always kept, each as a window of its own.
    ///
    /// # Errors
    /// When no document fills a window (with the counts), nothing in it counts, or the chat template
    /// refuses a conversation (with its line).
    pub fn cut(&self, tokenizer: &Tokenizer, how: &Cutting) -> Result<Cut> {
        if how.window < 2 {
            return Err(self.wrong(format!("windows of {} tokens: at least 2 are needed", how.window)));
        }
        let mut documents = Vec::with_capacity(self.rows.len());
        for (line, row) in &self.rows {
            documents.push(Document::of(row, tokenizer, how.loss).map_err(|reason| self.wrong_line(*line, reason))?);
        }
        if how.pack {
            documents = vec![Document::join(documents, tokenizer)];
        }
        let mut out = Cut { windows: Vec::new(), tokens: 0, tail_tokens: 0 };
        for d in &documents {
            out.tokens += d.tokens.len();
            for (i, tokens) in d.tokens.chunks(how.window).enumerate() {
                let whole = d.unit && i == 0;
                if tokens.len() < how.window && !(how.keep_tail || whole) || tokens.len() < 2 {
                    out.tail_tokens += tokens.len();
                    continue;
                }
                let from = i * how.window + 1;
                let mask = d.mask.as_ref().and_then(|m| m.get(from..from + tokens.len() - 1)).map(<[bool]>::to_vec);
                let window = Window { tokens: tokens.to_vec(), mask };
                if window.scored() > 0 {
                    out.windows.push(window);
                }
            }
        }
        match out.windows.is_empty() {
            true if out.tail_tokens == out.tokens => Err(self.too_short(how.window, out.tokens)),
            true => Err(self.wrong(
                "no token in it counts: no answer lies within a window; use --loss full or longer windows (--window, with packs --sequence-length)".into(),
            )),
            false => Ok(out),
        }
    }

    fn too_short(&self, window: usize, tokens: usize) -> Error {
        let n = self.rows.len();
        let advice = match tokens >= window {
            true => "use shorter windows (--window, with packs --sequence-length) or join documents (eval --pack)",
            false => {
                "use shorter windows (--window, with packs --sequence-length) or more text (eval can also --keep-tail)"
            }
        };
        self.wrong(format!(
            "none of its {n} document{} has {window} tokens ({tokens} in all), so there is no full window: {advice}",
            if n == 1 { "" } else { "s" }
        ))
    }

    fn wrong(&self, reason: String) -> Error {
        Error::File { path: self.path.clone(), reason }
    }

    fn wrong_line(&self, line: usize, reason: String) -> Error {
        Error::Line { path: self.path.clone(), line, reason }
    }
}

/// What comes before the answer, where a row has one.
fn question(row: &Row) -> Option<(&[Value], &str)> {
    match row {
        Row::Text(_) | Row::Tokens(_) => None,
        Row::Answer { completion, .. } => Some((&[], completion)),
        Row::Messages(messages) => {
            let (last, before) = messages.split_last()?;
            let is_answer = last.get("role").and_then(Value::as_str) == Some("assistant") && !before.is_empty();
            let answer = last.get("content").and_then(Value::as_str)?;
            is_answer.then_some((before, answer))
        }
    }
}

fn example(row: &Row, tokenizer: &Tokenizer) -> std::result::Result<Example, String> {
    let (before, answer) = question(row).unwrap_or_default();
    let prompt = match row {
        Row::Answer { prompt, .. } => prompt.clone(),
        _ => {
            let chat = tokenizer.chat().ok_or("`messages` need a chat template, which this model does not have")?;
            chat.render(before, true).map_err(|e| e.to_string())?
        }
    };
    Ok(Example { prompt, answer: answer.to_owned() })
}

/// A tokenised row.
struct Document {
    tokens: Vec<u32>,
    /// Which tokens count; `None`: all.
    mask: Option<Vec<bool>>,
    /// A conversation, kept whole even when short.
    unit: bool,
}

impl Document {
    fn of(row: &Row, tokenizer: &Tokenizer, loss: Loss) -> std::result::Result<Document, String> {
        match row {
            Row::Text(text) => {
                let tokens = tokenizer.encode(text, true).map_err(|e| e.to_string())?;
                Ok(Document { tokens, mask: None, unit: false })
            }
            Row::Tokens(tokens) => Ok(Document { tokens: tokens.clone(), mask: None, unit: false }),
            Row::Messages(messages) => Document::conversation(messages, tokenizer, loss),
            Row::Answer { prompt, completion } if tokenizer.chat().is_some() => {
                let messages = [chat::message("user", prompt), chat::message("assistant", completion)];
                Document::conversation(&messages, tokenizer, loss)
            }
            Row::Answer { prompt, completion } => {
                let text = format!("{prompt}{completion}");
                Document::marked(&text, &[(prompt.len(), text.len())], tokenizer, loss, true)
            }
        }
    }

    /// A conversation as its template writes it; the assistant's turns are the answers.
    fn conversation(messages: &[Value], tokenizer: &Tokenizer, loss: Loss) -> std::result::Result<Document, String> {
        let chat = tokenizer.chat().ok_or("`messages` need a chat template, which this model does not have")?;
        let render = |n: usize, prompt: bool| {
            chat.render(messages.get(..n).unwrap_or_default(), prompt).map_err(|e| e.to_string())
        };
        let text = render(messages.len(), false)?;
        let mut answers = Vec::new();
        if loss != Loss::Full {
            let assistant = |m: &Value| m.get("role").and_then(Value::as_str) == Some("assistant");
            let turns: Vec<usize> = (0..messages.len()).filter(|&i| assistant(&messages[i])).collect();
            let first = if loss == Loss::LastTurn { turns.len().saturating_sub(1) } else { 0 };
            for &i in &turns[first..] {
                let (before, after) = (render(i, true)?, render(i + 1, false)?);
                // Some templates rewrite earlier turns; then the place of this one is not known.
                if !text.starts_with(&before) || !text.starts_with(&after) || after.len() < before.len() {
                    if i + 1 == messages.len() {
                        return Err(
                            "the chat template does not tell where the last answer begins; use --loss full".into()
                        );
                    }
                    continue;
                }
                answers.push((before.len(), after.len()));
            }
            if answers.is_empty() {
                return Err("no assistant turn to score; use --loss full".into());
            }
        }
        Document::marked(&text, &answers, tokenizer, loss, false)
    }

    /// `text` with the parts of it (in bytes) that count under [`Loss::Answer`].
    fn marked(
        text: &str,
        answers: &[(usize, usize)],
        tokenizer: &Tokenizer,
        loss: Loss,
        special: bool,
    ) -> std::result::Result<Document, String> {
        if loss == Loss::Full {
            let tokens = tokenizer.encode(text, special).map_err(|e| e.to_string())?;
            return Ok(Document { tokens, mask: None, unit: true });
        }
        let (tokens, spans) = tokenizer.encode_with_offsets(text, special).map_err(|e| e.to_string())?;
        // A token that begins in the prompt belongs to it.
        let counts = |(from, to): &(usize, usize)| to > from && answers.iter().any(|(a, b)| from >= a && from < b);
        let mask = spans.iter().map(counts).collect();
        Ok(Document { tokens, mask: Some(mask), unit: true })
    }

    /// All documents in a row, with the end-of-text token between them where there is one.
    fn join(documents: Vec<Document>, tokenizer: &Tokenizer) -> Document {
        let between = tokenizer.eos().first().copied();
        let masked = documents.iter().any(|d| d.mask.is_some());
        let mut all = Document { tokens: Vec::new(), mask: masked.then(Vec::new), unit: false };
        for d in documents {
            if let Some(id) = between.filter(|id| all.tokens.last().is_some_and(|last| last != id)) {
                all.tokens.push(id);
                all.mask.iter_mut().for_each(|m| m.push(false));
            }
            if let Some(mask) = &mut all.mask {
                mask.extend(d.mask.unwrap_or_else(|| vec![true; d.tokens.len()]));
            }
            all.tokens.extend(d.tokens);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Words are tokens; the chat template is as short as one can be.
    fn tokenizer(chat: bool) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        let words = r#"{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": {"?": 0, "a": 1, "b": 2}, "unk_token": "?"}}"#;
        std::fs::write(dir.path().join("tokenizer.json"), words).unwrap();
        if chat {
            let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
            std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        }
        Tokenizer::load(dir.path()).unwrap()
    }

    fn set(text: &str) -> Dataset {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        std::fs::write(&path, text).unwrap();
        load(&path).unwrap()
    }

    const MIXED: &str = r#"{"text": "a b a b a b"}
{"prompt": "a b", "completion": " a"}
{"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}]}
{"messages": [{"role": "user", "content": "b"}]}
"#;

    #[test]
    fn examples_are_prompts_as_the_model_is_given_them() {
        let examples = set(MIXED).examples(&tokenizer(true), 0).unwrap();
        let of = |prompt: &str, answer: &str| Example { prompt: prompt.into(), answer: answer.into() };
        assert_eq!(examples, [of("a b", " a"), of("<user>b<assistant>", "a")]);
        let line = set(MIXED).examples(&tokenizer(false), 0).unwrap_err().to_string();
        assert!(line.contains("d.jsonl:3: `messages` need a chat template"), "{line}");
        assert!(set("{\"text\": \"a b\"}\n").examples(&tokenizer(true), 0).unwrap().is_empty());
    }

    #[test]
    fn many_examples_are_spread() {
        let rows: String = (0..10).map(|i| format!("{{\"prompt\": \"{i}\", \"completion\": \"a\"}}\n")).collect();
        let some = set(&rows).examples(&tokenizer(false), 3).unwrap();
        assert_eq!(some.iter().map(|e| e.prompt.as_str()).collect::<Vec<_>>(), ["0", "3", "6"]);
    }

    #[test]
    fn short_rows_are_windows_only_where_no_text_fills_one() {
        let of = |text: &str, window| set(text).evaluation_windows(&tokenizer(false), window).map(|w| w.len());
        let answers = "{\"prompt\": \"a b\", \"completion\": \" a\"}\n{\"prompt\": \"b\", \"completion\": \" a\"}\n";
        assert_eq!(of(answers, 8).unwrap(), 2);
        assert_eq!(of(&format!("{answers}{{\"text\": \"a b a b\"}}\n"), 4).unwrap(), 1);
        assert!(of("{\"text\": \"a b a\"}\n", 4).unwrap_err().to_string().contains("no full window"));
    }
}
