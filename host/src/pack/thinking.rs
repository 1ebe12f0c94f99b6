//! What is thought aloud in a text, `<think>…</think>`: kept, taken out, or cut short.
//!
//! The rules are those of mlx-plastic-rank, so that the same file gives the same texts: tags in any case, `think` or
//! `thinking`, `<<think>>` counts as `<think>`; a tag that is never closed is text. Nested spans end at the first
//! closing tag.

/// What happens to thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// Texts stay as they are.
    Keep,
    /// Spans go, and the space they leave.
    Strip,
    /// Spans keep so many words.
    Cap(usize),
}

impl std::str::FromStr for Thinking {
    type Err = String;

    fn from_str(text: &str) -> Result<Thinking, String> {
        let value = text.trim().to_ascii_lowercase();
        match (value.as_str(), value.strip_prefix("cap=")) {
            ("keep", _) => Ok(Thinking::Keep),
            ("strip", _) => Ok(Thinking::Strip),
            (_, Some(n)) => match n.trim().parse::<i64>() {
                Err(_) => Err(format!("Invalid thinking cap value in '{text}'; expected a number of words")),
                Ok(n) if n <= 0 => Err("Thinking cap value must be positive".into()),
                Ok(n) => Ok(Thinking::Cap(n as usize)),
            },
            _ => Err("Thinking option must be one of: keep, strip, cap=N".into()),
        }
    }
}

/// Batch sizes such as `8,16,32`, ascending, each once.
///
/// # Errors
/// A sentence that names what is no batch size.
pub fn parse_batch_sizes(text: &str) -> Result<Vec<usize>, String> {
    let mut sizes = Vec::new();
    for entry in text.split([',', ';']).map(str::trim).filter(|e| !e.is_empty()) {
        match entry.parse::<i64>() {
            Err(_) => return Err(format!("Invalid batch size '{entry}'")),
            Ok(n) if n <= 0 => return Err(format!("Batch size must be positive, got {n}")),
            Ok(n) => sizes.push(n as usize),
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    match sizes.is_empty() {
        true => Err("At least one batch size must be provided".into()),
        false => Ok(sizes),
    }
}

impl Thinking {
    /// A text after it.
    pub fn apply(self, text: &str) -> String {
        if self == Thinking::Keep {
            return text.to_owned();
        }
        let text = plain_tags(text);
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        while let Some(span) = Span::first(rest) {
            out.push_str(&rest[..span.begin]);
            if let Thinking::Cap(most) = self {
                let words: Vec<&str> = rest[span.body.0..span.body.1].split_whitespace().take(most).collect();
                let tag = span.tag;
                out.push_str(&format!("<{tag}>{}</{tag}>", words.join(" ")));
            }
            rest = &rest[span.end..];
        }
        out.push_str(rest);
        if self == Thinking::Strip {
            out = squeezed(&squeezed(&out, |c| c == '\n', 3, "\n\n"), |c| c == ' ' || c == '\t', 2, " ");
        }
        out.trim().to_owned()
    }
}

/// A closed span; places are bytes.
struct Span<'a> {
    begin: usize,
    /// As the opening tag spells it.
    tag: &'a str,
    body: (usize, usize),
    end: usize,
}

impl Span<'_> {
    /// The first span of a text that is closed.
    fn first(text: &str) -> Option<Span<'_>> {
        let lower = text.to_ascii_lowercase();
        let mut from = 0;
        while let Some(at) = lower.get(from..)?.find('<') {
            let begin = from + at;
            for tag in ["think", "thinking"] {
                let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
                let body = begin + open.len();
                if lower[begin..].starts_with(&open)
                    && let Some(length) = lower[body..].find(&close)
                {
                    let tag = &text[begin + 1..body - 1];
                    return Some(Span { begin, tag, body: (body, body + length), end: body + length + close.len() });
                }
            }
            from = begin + 1;
        }
        None
    }
}

/// `<<think>>` and `<</think>>`, with space in them or not, as `<think>` and `</think>`.
fn plain_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("<<") {
        out.push_str(&rest[..at]);
        match double_tag(&rest[at + 2..]) {
            Some((closes, after)) => {
                out.push_str(if closes { "</think>" } else { "<think>" });
                rest = after;
            }
            None => {
                // The second bracket may begin a tag itself.
                out.push('<');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

/// What follows `<<`: whether it is a closing tag, and the text after it.
fn double_tag(text: &str) -> Option<(bool, &str)> {
    let text = text.trim_start();
    let (closes, text) = text.strip_prefix('/').map_or((false, text), |rest| (true, rest.trim_start()));
    let word = text.get(..5).filter(|w| w.eq_ignore_ascii_case("think"))?;
    Some((closes, text[word.len()..].trim_start().strip_prefix(">>")?))
}

/// Runs of `least` characters or more of one kind become `instead`.
fn squeezed(text: &str, kind: fn(char) -> bool, least: usize, instead: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(kind) {
        let (before, run) = rest.split_at(at);
        let end = run.find(|c| !kind(c)).unwrap_or(run.len());
        out.push_str(before);
        // Characters of a kind have one byte each.
        out.push_str(if end >= least { instead } else { &run[..end] });
        rest = &run[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::Value;

    fn golden(section: &str) -> Vec<Value> {
        let all: Value = serde_json::from_str(include_str!("../../../tests/golden/packs/judge.json")).unwrap();
        all[section].as_array().unwrap().clone()
    }

    #[test]
    fn texts_are_those_of_the_python_program() {
        for case in golden("thinking") {
            let text = case["text"].as_str().unwrap();
            for (how, name) in [(Thinking::Keep, "keep"), (Thinking::Strip, "strip"), (Thinking::Cap(2), "cap2")] {
                assert_eq!(how.apply(text), case[name].as_str().unwrap(), "{name} of {text:?}");
            }
        }
    }

    #[test]
    fn options_are_those_of_the_python_program() {
        for case in golden("parse_thinking_option") {
            let raw = case["raw"].as_str().unwrap();
            match (raw.parse::<Thinking>(), case["error"].as_str()) {
                (Err(e), Some(expected)) => assert!(e.starts_with(expected), "{raw}: {e}"),
                (Ok(Thinking::Cap(n)), None) => assert_eq!(case["out"], serde_json::json!(["cap", n])),
                (Ok(Thinking::Keep), None) => assert_eq!(case["out"][0], "keep"),
                (Ok(Thinking::Strip), None) => assert_eq!(case["out"][0], "strip"),
                (got, expected) => panic!("{raw}: {got:?}, expected {expected:?}"),
            }
        }
        for case in golden("parse_batch_sizes") {
            let raw = case["raw"].as_str().unwrap();
            match case["error"].as_str() {
                Some(expected) => assert_eq!(parse_batch_sizes(raw).unwrap_err(), expected),
                None => assert_eq!(serde_json::json!(parse_batch_sizes(raw).unwrap()), case["out"]),
            }
        }
    }

    #[test]
    fn odd_texts_do_not_break_it() {
        for text in ["<", "<<", "<<<think>>a<</think>>b", "é<think>é</think>é", "<<thin", "<think>", "</think><think>"]
        {
            for how in [Thinking::Keep, Thinking::Strip, Thinking::Cap(1)] {
                how.apply(text);
            }
        }
        assert_eq!(Thinking::Strip.apply("<< / THINK >>x<<think >>y<< /think>>z"), "</think>xz");
    }
}
