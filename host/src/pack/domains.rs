//! Texts by domain: JSON lines with `text` (or `prompt`) and `domain`.
//!
//! A line that is no object, or a field of the wrong type, is an error with its line; rows without text are counted.

use super::error::{Error, Result};
use super::thinking::Thinking;
use crate::atomic::FileError;
use crate::eval::data::{self, Window};
use crate::model::Tokenizer;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Domain of rows that name none.
pub const DEFAULT: &str = "default";
/// Most bytes of a file that are read.
const MAX_FILE: u64 = 1 << 30;

/// A file of requests or texts, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Domain, where one is named, and text.
    pub rows: Vec<(Option<String>, String)>,
    /// Rows without text.
    pub unusable: usize,
}

/// Reads a file. Rows have the text of `text`, or where that is not there of `prompt`.
///
/// # Errors
/// When it cannot be read, or a line is not what it should be.
pub fn read(path: &Path) -> Result<Rows> {
    let bytes = crate::atomic::read_bounded(path, MAX_FILE).map_err(FileError::at("reading", path))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes().iter().take(at).filter(|b| **b == b'\n').count();
        Error::file(path, format!("is no UTF-8 text (line {line}, byte {})", at + 1))
    })?;
    let mut out = Rows { rows: Vec::new(), unusable: 0 };
    for (i, line) in text.trim_start_matches('\u{FEFF}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |reason: String| Error::Data(data::Error::Line { path: path.to_owned(), line: i + 1, reason });
        let Value::Object(fields) =
            serde_json::from_str::<Value>(line).map_err(|e| wrong(format!("not valid JSON: {e}")))?
        else {
            return Err(wrong("expected a JSON object with `text` or `prompt`, and `domain`".into()));
        };
        let string = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.clone()).filter(|s| !s.trim().is_empty())),
            Some(_) => Err(wrong(format!("`{name}` is no string"))),
        };
        match (string("text")?, string("prompt")?) {
            (Some(text), _) | (None, Some(text)) => out.rows.push((string("domain")?, text)),
            (None, None) => out.unusable += 1,
        }
    }
    match out.rows.is_empty() {
        true => Err(Error::file(path, "none of its rows has text: expected `text` or `prompt`, and `domain`")),
        false => Ok(out),
    }
}

impl Rows {
    /// Texts by domain, thinking handled; texts that are empty then are left out.
    pub fn by_domain(&self, thinking: Thinking) -> BTreeMap<String, Vec<String>> {
        let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (domain, text) in &self.rows {
            let texts = out.entry(domain.clone().unwrap_or_else(|| DEFAULT.into())).or_default();
            let text = thinking.apply(text);
            if !text.is_empty() {
                texts.push(text);
            }
        }
        out
    }
}

/// Texts in a row, with the end-of-text token between them, cut into full windows; and the tokens there are.
///
/// # Errors
/// When the tokeniser fails.
pub fn windows(texts: &[String], tokenizer: &Tokenizer, length: usize) -> Result<(Vec<Window>, usize)> {
    let mut tokens: Vec<u32> = Vec::new();
    for text in texts {
        if let Some(end) = tokenizer.eos().first().filter(|_| !tokens.is_empty()) {
            tokens.push(*end);
        }
        tokens.extend(tokenizer.encode(text, true)?);
    }
    let windows = tokens.chunks_exact(length.max(2)).map(|t| Window { tokens: t.to_vec(), mask: None }).collect();
    Ok((windows, tokens.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn of(text: &str) -> Result<Rows> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.jsonl");
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn domains_are_those_of_the_python_program() {
        let text = "{\"domain\": \"taxi\", \"text\": \"a <think>x</think> b\"}\n\n{\"prompt\": \" p \", \"domain\": \"taxi\"}\n{\"text\": \"no domain\"}\n{\"id\": 1}\n";
        let rows = of(text).unwrap();
        assert_eq!(rows.unusable, 1);
        let golden: Value = serde_json::from_str(include_str!("../../../tests/golden/packs/judge.json")).unwrap();
        assert_eq!(serde_json::to_value(rows.by_domain(Thinking::Strip)).unwrap(), {
            let mut expected = golden["domain_prompts_strip"].clone();
            expected.sort_all_objects();
            expected
        });
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let error = |text: &str| of(text).unwrap_err().to_string();
        assert!(error("{\"text\": \"a\"}\n{\"text\": \n").contains("d.jsonl:2: not valid JSON"));
        assert!(error("[1]").contains("d.jsonl:1: expected a JSON object"));
        assert!(error("{\"text\": \"a\", \"domain\": 3}").contains("d.jsonl:1: `domain` is no string"));
        assert!(error("{\"text\": 7}").contains("`text` is no string"));
        assert!(error("{\"x\": \"a\"}").contains("none of its rows has text"));
        assert!(error("").contains("none of its rows has text"));
    }
}
