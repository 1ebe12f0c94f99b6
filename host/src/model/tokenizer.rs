//! Text to token ids and back: `tokenizer.json`, the special tokens, the chat template.

use super::chat::{ChatTemplate, Message, message};
use super::error::{Error, Result};
use super::fields::{Fields, MAX_JSON, read_json_if_there};
use crate::atomic::read_bounded;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Bytes of a text: start and end.
pub type Span = (usize, usize);

/// The tokeniser of one checkpoint.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    eos: BTreeSet<u32>,
    chat: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` with what `tokenizer_config.json`, `chat_template.jinja`,
    /// `generation_config.json` and `config.json` say about it, where they are there.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing, or one of the files is damaged.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        let bytes = match read_bounded(&path, MAX_JSON) {
            Ok(b) => b,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::file(
                    dir,
                    "no tokenizer.json here; fetch the model again, or convert its tokenizer with transformers (tokenizer.save_pretrained)",
                ));
            }
            Err(e) => return Err(Error::io(&path)(e)),
        };
        let mut inner = calm(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|e| Error::file(&path, format!("not a tokenizer: {e}")))?;
        // Both may be left over from training; here a text is always all of its tokens.
        inner.with_truncation(None).map_err(|e| Error::file(&path, e.to_string()))?;
        inner.with_padding(None);

        let config_path = dir.join("tokenizer_config.json");
        let config = read_json_if_there(&config_path)?.unwrap_or_else(|| Value::Object(Default::default()));
        let config = Fields::new(&config_path, &config)?;
        let tokens = special_tokens(&config);
        let id = |name: &str| tokens.iter().find(|(n, _)| n == name).and_then(|(_, t)| inner.token_to_id(t));
        let mut eos = eos_ids(dir)?;
        eos.extend(id("eos_token"));
        let chat = template(dir, &config)?.map(|(p, source)| ChatTemplate::new(&p, &source, tokens)).transpose()?;
        Ok(Tokenizer { path, inner, eos, chat })
    }

    /// Text to ids; with `special` also what the tokeniser puts around every text (such as a BOS token).
    ///
    /// # Errors
    /// When the tokeniser refuses the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoded = calm(|| self.inner.encode_fast(text, special)).map_err(|e| self.failed(&e))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// Text to ids with the bytes of the text that each stands for.
    ///
    /// # Errors
    /// When the tokeniser refuses the text.
    pub fn encode_with_offsets(&self, text: &str, special: bool) -> Result<(Vec<u32>, Vec<Span>)> {
        let encoded = calm(|| self.inner.encode(text, special)).map_err(|e| self.failed(&e))?;
        Ok((encoded.get_ids().to_vec(), encoded.get_offsets().to_vec()))
    }

    /// Ids to text, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// When the tokeniser's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        calm(|| self.inner.decode(ids, true)).map_err(|e| self.failed(&e))
    }

    /// Ids that end an answer: those of `generation_config.json`, or else `config.json`, and the
    /// tokeniser's own.
    pub fn eos(&self) -> &BTreeSet<u32> {
        &self.eos
    }

    /// The chat template, when the checkpoint has one.
    pub fn chat(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// Ids of a conversation, the assistant's turn opened at the end.
    ///
    /// # Errors
    /// When there is no chat template or it refuses the messages.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let chat = self.chat.as_ref().ok_or_else(|| {
            Error::file(&self.path, "this checkpoint has no chat template; give the prompt as plain text (--raw)")
        })?;
        self.encode(&chat.render(messages, true)?, false)
    }

    /// Ids of a single question with an optional system message.
    ///
    /// # Errors
    /// As [`Tokenizer::prompt`].
    pub fn question(&self, system: Option<&str>, text: &str) -> Result<Vec<u32>> {
        let system = system.map(|s| message("system", s));
        let messages: Vec<Message> = system.into_iter().chain([message("user", text)]).collect();
        self.prompt(&messages)
    }

    /// Decodes ids one at a time.
    pub fn stream(&self) -> Detokenizer<'_> {
        Detokenizer { tokenizer: self, ids: Vec::new(), begin: 0, shown: 0 }
    }

    fn failed(&self, e: &tokenizers::Error) -> Error {
        Error::file(&self.path, format!("the tokenizer failed: {e}"))
    }
}

/// Turns a stream of ids into a stream of text; never shows a part of a character.
#[derive(Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// First id that is decoded: enough context for decoders that treat the first token apart.
    begin: usize,
    /// Ids before this one are shown.
    shown: usize,
}

impl Detokenizer<'_> {
    /// Takes one more id; answers the text that has become certain.
    ///
    /// # Errors
    /// When the tokeniser's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let (before, all) = self.texts()?;
        // An incomplete character decodes to U+FFFD until its last byte is there.
        if all.ends_with('\u{FFFD}') || all.len() <= before.len() {
            return Ok(String::new());
        }
        self.begin = self.shown;
        self.shown = self.ids.len();
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }

    /// What is left at the end, be it a part of a character.
    ///
    /// # Errors
    /// When the tokeniser's decoder fails.
    pub fn finish(mut self) -> Result<String> {
        let (before, all) = self.texts()?;
        self.shown = self.ids.len();
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }

    fn texts(&self) -> Result<(String, String)> {
        let decode = |ids: Option<&[u32]>| self.tokenizer.decode(ids.unwrap_or_default());
        Ok((decode(self.ids.get(self.begin..self.shown))?, decode(self.ids.get(self.begin..))?))
    }
}

/// `bos_token` and its kin with their text: a string, or an object with `content`.
fn special_tokens(config: &Fields) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().or_else(|| v.get("content")?.as_str()).map(str::to_owned);
    let names = ["bos_token", "eos_token", "pad_token", "unk_token"];
    names.iter().filter_map(|n| Some(((*n).to_owned(), text(config.get(n)?)?))).collect()
}

/// The tokenizers crate panics on some damaged files.
fn calm<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    crate::calm::calm(f).unwrap_or_else(|| Err("its rules contradict each other; fetch the model again".into()))
}

/// `eos_token_id` of the generation settings, or else of the model: one id or a list.
fn eos_ids(dir: &Path) -> Result<BTreeSet<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        let Some(value) = read_json_if_there(&path)? else { continue };
        let fields = Fields::new(&path, &value)?;
        let Some(ids) = fields.get("eos_token_id") else { continue };
        let list = ids.as_array().cloned().unwrap_or_else(|| vec![ids.clone()]);
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        return list
            .iter()
            .map(id)
            .collect::<Option<_>>()
            .ok_or_else(|| fields.error("eos_token_id", format!("expected token ids, found {ids}")));
    }
    Ok(BTreeSet::new())
}

/// The chat template and the file it came from: a file of its own, or in `tokenizer_config.json` as one
/// string or a list of named ones.
fn template(dir: &Path, config: &Fields) -> Result<Option<(PathBuf, String)>> {
    let path = dir.join("chat_template.jinja");
    match read_bounded(&path, MAX_JSON) {
        Ok(source) => return Ok(Some((path, String::from_utf8_lossy(&source).into_owned()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(&path)(e)),
    }
    let source = match config.get("chat_template") {
        None => return Ok(None),
        Some(Value::String(s)) => Some(s.clone()),
        Some(Value::Array(list)) => {
            let named = |name: &str| list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some(name));
            named("default").or(list.first()).and_then(|t| t.get("template")?.as_str()).map(str::to_owned)
        }
        Some(_) => None,
    };
    match source {
        Some(s) => Ok(Some((config.path.to_owned(), s))),
        None => Err(config.error("chat_template", "expected a string or a list of {name, template}")),
    }
}
