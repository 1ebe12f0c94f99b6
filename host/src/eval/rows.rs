//! Reading a data file: JSON lines or plain text, into rows of known kind.

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line and largest plain text that are read.
const MAX_TEXT: u64 = 1 << 30;

/// A data file is missing, damaged, empty or too short. Messages name the file and, where there is one, the line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file as a whole is wrong.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        reason: String,
    },
    /// One line is wrong.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What was found and what was expected.
        reason: String,
    },
    /// The tokeniser or its chat template failed.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// One document of a data file.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// Running text.
    Text(String),
    /// A question and the answer to it.
    Answer {
        /// `prompt`.
        prompt: String,
        /// `completion`.
        completion: String,
    },
    /// A conversation: objects with `role` and `content`.
    Messages(Vec<Value>),
    /// Text that is tokenised already: ids of the model's own vocabulary.
    Tokens(Vec<u32>),
}

/// What a data file holds.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Rows with the line each stands on.
    pub rows: Vec<(usize, Row)>,
    /// Rows that have none of the known fields.
    pub unusable: usize,
    /// The first of those: its line and the fields it has.
    pub first_unusable: Option<(usize, String)>,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
}

/// Reads a data file: JSON lines, or plain text when the name ends in `.txt`, `.text` or `.md`.
///
/// # Errors
/// When the file cannot be read, is empty, or a line is no JSON object or has a field of the wrong type.
pub fn read(path: &Path) -> Result<Rows> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = |reason: String| Error::File { path: path.to_owned(), reason };
    let opened = crate::atomic::open_regular(path).map_err(io)?;
    if opened.metadata().map_err(io)?.is_dir() {
        return Err(file("is a directory; expected a .jsonl or .txt file".into()));
    }
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    let plain = matches!(extension.as_deref(), Some("txt" | "text" | "md"));
    let mut reader = Hashing { inner: BufReader::new(opened), sha: Sha256::new() };
    let mut out = Rows { rows: Vec::new(), unusable: 0, first_unusable: None, sha256: String::new() };
    let mut bytes = Vec::new();
    for number in 1.. {
        bytes.clear();
        let n = reader.next(plain, &mut bytes).map_err(io)?;
        if n == 0 {
            break;
        }
        let at = |reason: String| match plain {
            true => file(reason),
            false => Error::Line { path: path.to_owned(), line: number, reason },
        };
        if n as u64 > MAX_TEXT {
            return Err(at(format!("is longer than {MAX_TEXT} bytes; split it")));
        }
        let text =
            std::str::from_utf8(&bytes).map_err(|e| at(format!("is no UTF-8 text (byte {})", e.valid_up_to() + 1)))?;
        // A byte order mark is no part of the text.
        let text = if number == 1 { text.trim_start_matches('\u{FEFF}') } else { text };
        if text.trim().is_empty() {
            continue;
        }
        match if plain { Ok(Some(Row::Text(text.to_owned()))) } else { row(text) } {
            Ok(Some(row)) => out.rows.push((number, row)),
            Ok(None) => {
                out.unusable += 1;
                out.first_unusable.get_or_insert_with(|| (number, fields(text)));
            }
            Err(reason) => return Err(at(reason)),
        }
    }
    out.sha256 = reader.hex();
    match (&out.first_unusable, out.rows.is_empty()) {
        (None, true) => Err(file("is empty: no text to work on".into())),
        (Some((line, has)), true) => Err(file(format!(
            "none of its {} rows has text: expected `text`, `prompt` and `completion`, or `messages`; line {line} has {has}",
            out.unusable
        ))),
        _ => Ok(out),
    }
}

/// A reader that hashes what goes through it.
struct Hashing {
    inner: BufReader<File>,
    sha: Sha256,
}

impl Hashing {
    /// The next line (or, for plain text, all of it), at most a little over the limit.
    fn next(&mut self, all: bool, into: &mut Vec<u8>) -> std::io::Result<usize> {
        let mut limited = (&mut self.inner).take(MAX_TEXT + 1);
        let n = if all { limited.read_to_end(into)? } else { limited.read_until(b'\n', into)? };
        self.sha.update(&into[..n]);
        Ok(n)
    }

    fn hex(self) -> String {
        crate::model::hash::hex(&self.sha.finalize())
    }
}

/// One line of JSON: `None` when it has none of the known fields.
fn row(line: &str) -> std::result::Result<Option<Row>, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| format!("not valid JSON: {}", without_line(&e)))?;
    let object = value.as_object().ok_or_else(|| format!("expected a JSON object, found {}", kind(&value)))?;
    let text = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(other) => Err(format!("`{name}` is {}; expected a string", kind(other))),
    };
    if let Some(messages) = object.get("messages").filter(|m| !m.is_null()) {
        return messages_row(messages).map(Some);
    }
    if let (Some(prompt), Some(completion)) = (text("prompt")?, text("completion")?) {
        return Ok(Some(Row::Answer { prompt, completion }));
    }
    if let Some(ids) = object.get("tokens").filter(|t| !t.is_null()) {
        let ids: Option<Vec<u32>> =
            ids.as_array().and_then(|l| l.iter().map(|i| i.as_u64().and_then(|i| u32::try_from(i).ok())).collect());
        return ids.map(|ids| Some(Row::Tokens(ids))).ok_or_else(|| "`tokens` is no list of token ids".into());
    }
    Ok(text("text")?.map(Row::Text))
}

fn messages_row(messages: &Value) -> std::result::Result<Row, String> {
    let list = messages.as_array().ok_or_else(|| format!("`messages` is {}; expected a list", kind(messages)))?;
    if list.is_empty() {
        return Err("`messages` is empty".into());
    }
    let turn = |(i, m): (usize, &Value)| -> std::result::Result<Value, String> {
        let mut m = m
            .as_object()
            .cloned()
            .ok_or_else(|| format!("`messages[{i}]` is {}; expected an object with role and content", kind(m)))?;
        if !m.get("role").is_some_and(Value::is_string) {
            return Err(format!("`messages[{i}]` has no `role`"));
        }
        // Content in parts, as some APIs write it, is joined: templates want one string.
        if let Some(Value::Array(parts)) = m.get("content") {
            let texts: Option<Vec<&str>> =
                parts.iter().map(|p| p.as_str().or_else(|| p.get("text")?.as_str())).collect();
            let joined = texts.ok_or_else(|| format!("`messages[{i}].content` has a part without text"))?.concat();
            m.insert("content".into(), Value::from(joined));
        }
        match m.get("content") {
            Some(Value::String(_) | Value::Null) => Ok(Value::Object(m)),
            None if m.contains_key("tool_calls") => Ok(Value::Object(m)),
            other => Err(format!("`messages[{i}].content` is {}; expected a string", other.map_or("missing", kind))),
        }
    };
    list.iter().enumerate().map(turn).collect::<std::result::Result<_, _>>().map(Row::Messages)
}

/// serde_json's text with its "line 1", which would contradict the file's.
fn without_line(e: &serde_json::Error) -> String {
    e.to_string()
        .replace(&format!(" at line {} column {}", e.line(), e.column()), &format!(" at column {}", e.column()))
}

fn kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn fields(line: &str) -> String {
    let names: Vec<String> = serde_json::from_str::<serde_json::Map<String, Value>>(line)
        .map(|m| m.keys().take(8).map(|k| format!("`{k}`")).collect())
        .unwrap_or_default();
    if names.is_empty() { "no fields".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn of(name: &str, text: &[u8]) -> Result<Rows> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    fn error(name: &str, text: &[u8]) -> String {
        let e = of(name, text).unwrap_err().to_string();
        e[e.find(name).unwrap()..].to_owned()
    }

    #[test]
    fn all_kinds_of_rows() {
        let text = "\u{FEFF}{\"text\": \"a\"}\n\n{\"prompt\": \"p\", \"completion\": \"c\"}\r\n{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"x\"}, {\"text\": \"y\"}]}]}\n{\"id\": 3}";
        let got = of("d.jsonl", text.as_bytes()).unwrap();
        let rows: Vec<Row> = got.rows.iter().map(|r| r.1.clone()).collect();
        assert_eq!(rows[0], Row::Text("a".into()));
        assert_eq!(rows[1], Row::Answer { prompt: "p".into(), completion: "c".into() });
        assert_eq!(rows[2], Row::Messages(vec![serde_json::json!({"role": "user", "content": "xy"})]));
        assert_eq!(got.rows.iter().map(|r| r.0).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!((got.unusable, got.first_unusable), (1, Some((5, "`id`".into()))));
        assert_eq!(got.sha256, crate::model::hash::hex(&Sha256::digest(text.as_bytes())));
    }

    #[test]
    fn plain_text_is_one_row() {
        assert_eq!(of("d.txt", b"{\"text\": 1}\nx\n").unwrap().rows, [(1, Row::Text("{\"text\": 1}\nx\n".into()))]);
    }

    #[test]
    fn what_is_wrong_is_said_with_file_and_line() {
        assert_eq!(
            error("d.jsonl", b"{\"text\": \"a\"}\n{\"text\": \n"),
            "d.jsonl:2: not valid JSON: EOF while parsing a value at column 0"
        );
        assert_eq!(error("d.jsonl", b"[1]\n"), "d.jsonl:1: expected a JSON object, found a list");
        assert_eq!(error("d.jsonl", b"{\"text\": 1}\n"), "d.jsonl:1: `text` is a number; expected a string");
        assert_eq!(error("d.jsonl", b"{\"messages\": []}"), "d.jsonl:1: `messages` is empty");
        assert_eq!(
            error("d.jsonl", b"{\"messages\": [{\"content\": \"x\"}]}"),
            "d.jsonl:1: `messages[0]` has no `role`"
        );
        assert_eq!(
            error("d.jsonl", b"{\"messages\": [{\"role\": \"user\"}]}"),
            "d.jsonl:1: `messages[0].content` is missing; expected a string"
        );
        assert_eq!(error("d.jsonl", b"{\"text\": \"\xff\"}\n"), "d.jsonl:1: is no UTF-8 text (byte 11)");
        assert_eq!(error("d.jsonl", b"\n \n"), "d.jsonl: is empty: no text to work on");
        assert_eq!(error("d.txt", b""), "d.txt: is empty: no text to work on");
        assert!(error("d.jsonl", b"{\"id\": 1, \"x\": 2}\n").contains("none of its 1 rows has text: expected `text`"));
        assert!(
            read(Path::new("/nowhere/d.jsonl")).unwrap_err().to_string().starts_with("/nowhere/d.jsonl: No such file")
        );
    }
}
