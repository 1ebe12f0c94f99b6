//! Chat templates: messages to the text a model was trained on.
//!
//! Templates are Jinja, written for the environment that transformers gives them; this is that
//! environment. A template comes from the checkpoint and is not trusted: it has no loader, no file
//! access, and a bound on the work it may do.

use super::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as Jinja, ValueKind};
use minijinja::{Environment, Error as JinjaError, ErrorKind};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Instructions a template may use; a long conversation takes thousands.
const FUEL: u64 = 2_000_000;
/// Time one rendering may take; work inside a filter uses no fuel.
const DEADLINE: Duration = Duration::from_secs(10);
/// Stack of a rendering: values nest as deeply as fuel lets them.
const STACK: usize = 256 << 20;
/// How deeply a value that is written out may nest, and how many parts it may have.
const DEPTH: usize = 64;
const PARTS: usize = 1_000_000;

/// One turn of a conversation: an object with `role`, `content` and whatever else the template knows.
pub type Message = Value;

/// A message with role and content.
pub fn message(role: &str, content: &str) -> Message {
    serde_json::json!({ "role": role, "content": content })
}

/// A chat template with the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    env: Arc<Environment<'static>>,
    /// `bos_token` and its kin, as text.
    tokens: Vec<(String, String)>,
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles the template `source`, read from `path`.
    ///
    /// # Errors
    /// When it is no valid Jinja; the message has the line.
    pub fn new(path: &Path, source: &str, tokens: Vec<(String, String)>) -> Result<ChatTemplate> {
        let mut env = Environment::new();
        env.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|e| Error::file(path, e.to_string()))?,
        );
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |text: String| -> std::result::Result<Jinja, JinjaError> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, text))
        });
        env.add_function("strftime_now", |format: String| strftime(&format, now()));
        env.add_filter("tojson", tojson);
        env.set_formatter(|out, state, value| {
            bounded(value)?;
            minijinja::escape_formatter(out, state, value)
        });
        env.add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| Error::file(path, format!("the chat template is not valid: {e}")))?;
        Ok(ChatTemplate { path: path.to_owned(), env: Arc::new(env), tokens })
    }

    /// The conversation as text; with `prompt` the opening of the assistant's next turn at the end.
    ///
    /// # Errors
    /// When the template refuses the messages, with its own words.
    pub fn render(&self, messages: &[Message], prompt: bool) -> Result<String> {
        let mut context = serde_json::Map::new();
        for (name, text) in &self.tokens {
            context.insert(name.clone(), Value::from(text.clone()));
        }
        context.insert("messages".into(), Value::from(messages.to_vec()));
        context.insert("add_generation_prompt".into(), Value::from(prompt));
        let (env, (send, rendered)) = (self.env.clone(), channel());
        // On a thread of its own, so that a template that does not end can be left behind.
        let render = move || {
            let context = Jinja::from(Serde(&context));
            let text = crate::calm::calm(|| env.get_template(NAME).and_then(|t| t.render(context)));
            let _ = send.send(text);
        };
        let thread = std::thread::Builder::new().name("chat-template".into()).stack_size(STACK).spawn(render);
        thread.map_err(|e| Error::file(&self.path, format!("the chat template cannot be run: {e}")))?;
        match rendered.recv_timeout(DEADLINE) {
            Ok(Some(Ok(text))) => Ok(text),
            Ok(Some(Err(e))) => Err(self.failed(&format!("refuses these messages: {e}"))),
            Ok(None) | Err(RecvTimeoutError::Disconnected) => Err(self.failed("crashes; use another one")),
            Err(RecvTimeoutError::Timeout) => {
                Err(self.failed(&format!("does not end within {DEADLINE:?}; use another one")))
            }
        }
    }

    fn failed(&self, what: &str) -> Error {
        Error::file(&self.path, format!("the chat template {what}"))
    }
}

/// `{% generation %}` marks answers for training in transformers; here it becomes a block without effect.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(len) = rest[open..].find("%}") else { break };
        let tag = &rest[open..open + len];
        out.push_str(&rest[..open]);
        match tag.trim_start_matches("{%").trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[open + len..];
    }
    out.push_str(rest);
    out
}

/// Refuses a value that nests without end or has too many parts to be written out.
fn bounded(value: &Jinja) -> std::result::Result<(), JinjaError> {
    fn walk(value: &Jinja, depth: usize, parts: &mut usize) -> bool {
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain) {
            return true;
        }
        let Ok(items) = value.try_iter() else { return true };
        if depth == 0 {
            return false;
        }
        for item in items {
            *parts += 1;
            let inner = if value.kind() == ValueKind::Map { value.get_item(&item).unwrap_or_default() } else { item };
            if *parts > PARTS || !walk(&inner, depth - 1, parts) {
                return false;
            }
        }
        true
    }
    match walk(value, DEPTH, &mut 0) {
        true => Ok(()),
        false => {
            Err(JinjaError::new(ErrorKind::InvalidOperation, "it writes out a value that is too deep or too large"))
        }
    }
}

/// Jinja's own `tojson` escapes for HTML; transformers' does not.
fn tojson(value: Jinja, kwargs: Kwargs) -> std::result::Result<String, JinjaError> {
    bounded(&value)?;
    let bad = |e: serde_json::Error| JinjaError::new(ErrorKind::InvalidOperation, e.to_string());
    let indent: Option<usize> = kwargs.get("indent")?;
    // Both change nothing here, but templates pass them.
    let (_, _): (Option<bool>, Option<bool>) = (kwargs.get("ensure_ascii")?, kwargs.get("sort_keys")?);
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    match indent {
        Some(n) => {
            let spaces = " ".repeat(n.min(16));
            let format = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, format))
                .map_err(bad)?;
        }
        None => serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, Spaced))
            .map_err(bad)?,
    }
    String::from_utf8(out).map_err(|e| JinjaError::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// Python's separators: `", "` and `": "`.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The part of Python's `strftime` that templates use, in UTC.
fn strftime(format: &str, seconds: u64) -> String {
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    let weekday = DAYS[(days % 7) as usize];
    let name = MONTHS[(month - 1) as usize];
    let (h, m, s) = (clock / 3600, clock / 60 % 60, clock % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &format!("{year:04}"),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += name,
            Some('b') => out += &name[..3],
            Some('A') => out += weekday,
            Some('a') => out += &weekday[..3],
            Some('H') => out += &format!("{h:02}"),
            Some('M') => out += &format!("{m:02}"),
            Some('S') => out += &format!("{s:02}"),
            Some('I') => out += &format!("{:02}", (h + 11) % 12 + 1),
            Some('p') => out += if h < 12 { "AM" } else { "PM" },
            Some('F') => out += &format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => out += &format!("{h:02}:{m:02}:{s:02}"),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Days since 1970-01-01 to year, month, day (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn render(source: &str, messages: &[Message], prompt: bool) -> Result<String> {
        let tokens = vec![("bos_token".to_owned(), "<s>".to_owned())];
        ChatTemplate::new(Path::new("chat_template.jinja"), source, tokens)?.render(messages, prompt)
    }

    #[test]
    fn renders_like_transformers() {
        let source = "{{ bos_token }}{% for message in messages %}\n    {%- if message['role'] == 'user' %}\n{{ '[' + message['content'].strip() + ']' }}\n    {% else %}\n{{- message.role.upper() }}\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}A:{% endif %}";
        // The expected text is what jinja2 gives with trim_blocks and lstrip_blocks.
        let got = render(source, &[message("user", " hi "), message("assistant", "yo")], true).unwrap();
        assert_eq!(got, "<s>[hi]\nASSISTANT\nA:");
    }

    #[test]
    fn a_template_that_refuses_says_why() {
        let source = "{{ raise_exception('roles must alternate') }}";
        let error = render(source, &[], false).unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja") && error.contains("roles must alternate"), "{error}");
        assert!(render("{% if %}", &[], false).unwrap_err().to_string().contains("not valid"));
    }

    #[test]
    fn a_template_cannot_run_for_ever() {
        let nested = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
        assert!(render(nested, &[], false).unwrap_err().to_string().contains("fuel"));
    }

    #[test]
    fn a_value_without_end_is_not_written_out() {
        for source in [
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | tojson }}",
            "{% set ns = namespace(l=[1]) %}{% for i in range(9000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
            "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        ] {
            let text = render(source, &[], false).unwrap_err().to_string();
            assert!(text.contains("too deep or too large"), "{text}");
        }
        assert_eq!(render("{{ [1, {'a': [2]}] | tojson }}", &[], false).unwrap(), r#"[1, {"a": [2]}]"#);
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let m = [serde_json::json!({"role": "user", "content": {"b": [1, 2], "a": "<&'é"}})];
        assert_eq!(render("{{ messages[0].content | tojson }}", &m, false).unwrap(), r#"{"b": [1, 2], "a": "<&'é"}"#);
        assert_eq!(render("{{ messages[0].content.b | tojson(indent=2) }}", &m, false).unwrap(), "[\n  1,\n  2\n]");
    }

    #[test]
    fn generation_tags_change_nothing() {
        let source =
            "{% for m in messages %}{%- generation -%} {{ m.content }} {% endgeneration %}{% break %}{% endfor %}";
        assert_eq!(render(source, &[message("assistant", "x"), message("user", "y")], false).unwrap(), "x ");
    }

    #[test]
    fn dates() {
        assert_eq!(strftime("%d %b %Y, %A %H:%M:%S %I%p 100%% %q", 0), "01 Jan 1970, Thursday 00:00:00 12AM 100% %q");
        assert_eq!(strftime("%F %T %B %a", 1_709_208_000), "2024-02-29 12:00:00 February Thu");
        assert_eq!(strftime("%F", 951_782_400), "2000-02-29");
        assert_eq!(strftime("%F", 4_107_542_400), "2100-03-01");
    }
}
