//! Text from a prompt: prefill in chunks, then one token at a time through the cache.

use super::decoder::Model;
use super::error::{Error, Result};
use super::sample::{Sampler, Sampling};
use super::tokenizer::{Detokenizer, Tokenizer};
use crate::mlx::{self, Array};
use mlx_rs::ops::indexing::TryIndexOp;
use std::collections::BTreeSet;
use std::time::Instant;

/// Prompt tokens that run together; bounds the memory of activations.
const PREFILL: usize = 512;

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { max_tokens: 256, sampling: Sampling::default(), stop: Vec::new() }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finish {
    /// The model ended it.
    Eos,
    /// A stop string.
    Stop,
    /// `max_tokens`, or the end of the model's context.
    Length,
    /// The caller had enough.
    Cancelled,
}

/// An answer and what it cost.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Generation {
    /// The text.
    pub text: String,
    /// Its tokens; the one that ended it left out.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Prompt tokens a second, first token included.
    pub prompt_tokens_per_second: f64,
    /// Milliseconds from the call to the first token.
    pub first_token_ms: f64,
    /// Tokens a second after the first; 0 for fewer than two.
    pub decode_tokens_per_second: f64,
}

/// Continues `prompt`. `show` gets each piece of text as it becomes certain and answers whether to go on.
///
/// # Errors
/// When the prompt is empty, longer than the model's context, or has ids that are not in the vocabulary.
pub fn generate(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    show: &mut dyn FnMut(&str) -> bool,
) -> Result<Generation> {
    options.sampling.check().map_err(Error::Request)?;
    let mut answer = Answer::new(model, tokenizer, prompt, options)?;
    let mut cache = model.new_cache();
    cache.reserve(prompt.len() + answer.max);
    while !answer.ended() {
        let logits = match answer.new_tokens() {
            0 => next_logits(model, prompt, &mut cache)?,
            _ => next_logits(model, &[answer.last()], &mut cache)?,
        };
        read(&logits, |logits| answer.take(logits, show))?;
    }
    answer.end(show)
}

/// An answer that is being made.
pub(super) struct Answer<'a> {
    eos: &'a BTreeSet<u32>,
    sampler: Sampler,
    /// Prompt and answer.
    all: Vec<u32>,
    prompt: usize,
    /// Most tokens to come.
    max: usize,
    stream: Detokenizer<'a>,
    output: Output<'a>,
    finish: Option<Finish>,
    start: Instant,
    first: Option<Instant>,
    last: Instant,
}

impl<'a> Answer<'a> {
    /// The clock begins to run.
    ///
    /// # Errors
    /// When the prompt does not fit the model.
    pub(super) fn new(
        model: &Model,
        tokenizer: &'a Tokenizer,
        prompt: &[u32],
        options: &'a GenerateOptions,
    ) -> Result<Answer<'a>> {
        let start = Instant::now();
        let limit = context(model, prompt.len())?;
        Ok(Answer {
            eos: tokenizer.eos(),
            sampler: Sampler::new(options.sampling.clone()),
            all: prompt.to_vec(),
            prompt: prompt.len(),
            max: options.max_tokens.min(limit - prompt.len()),
            stream: tokenizer.stream(),
            output: Output { text: String::new(), held: String::new(), stop: &options.stop },
            finish: None,
            start,
            first: None,
            last: start,
        })
    }

    /// Whether no more tokens are wanted.
    pub(super) fn ended(&self) -> bool {
        self.finish.is_some() || self.new_tokens() >= self.max
    }

    fn new_tokens(&self) -> usize {
        self.all.len() - self.prompt
    }

    /// The token that the next one follows.
    pub(super) fn last(&self) -> u32 {
        self.all.last().copied().unwrap_or(0)
    }

    /// Chooses the next token from its logits [V].
    ///
    /// # Errors
    /// When none is finite, or the tokeniser fails.
    pub(super) fn take(&mut self, logits: &[f32], show: Show) -> Result<()> {
        let id = sample(&mut self.sampler, logits, &self.all)?;
        self.last = Instant::now();
        self.first.get_or_insert(self.last);
        if self.eos.contains(&id) {
            self.finish = Some(Finish::Eos);
            return Ok(());
        }
        self.all.push(id);
        self.finish = self.output.push(&self.stream.push(id)?, show);
        Ok(())
    }

    /// The whole answer; shows what was held back.
    ///
    /// # Errors
    /// When the tokeniser fails.
    pub(super) fn end(mut self, show: Show) -> Result<Generation> {
        let mut finish = self.finish.unwrap_or(Finish::Length);
        if matches!(finish, Finish::Length | Finish::Eos) {
            let rest = self.stream.finish()?;
            finish = self.output.finish(&rest, show).unwrap_or(finish);
        }
        let first = self.first.unwrap_or(self.start);
        let (before, after) = ((first - self.start).as_secs_f64(), (self.last.max(first) - first).as_secs_f64());
        let tokens = self.all.split_off(self.prompt);
        // The token that ended the answer took its time too.
        let decoded = (tokens.len() + usize::from(finish == Finish::Eos)).saturating_sub(1) as f64;
        Ok(Generation {
            text: self.output.text,
            tokens,
            finish,
            prompt_tokens: self.prompt,
            prompt_tokens_per_second: if before > 0.0 { self.prompt as f64 / before } else { 0.0 },
            first_token_ms: before * 1e3,
            decode_tokens_per_second: if after > 0.0 { decoded / after } else { 0.0 },
        })
    }
}

/// Positions the model has; the prompt must leave room for one token.
pub(super) fn context(model: &Model, prompt: usize) -> Result<usize> {
    if prompt == 0 {
        return Err(Error::Request("the prompt has no tokens; give some text".into()));
    }
    let c = model.config();
    model.config().check_context(prompt + 1)?;
    let limit = [c.max_position_embeddings, c.sliding_window].into_iter().flatten().min().unwrap_or(usize::MAX);
    match prompt < limit {
        true => Ok(limit),
        false => Err(Error::Request(format!(
            "the prompt has {prompt} tokens; this model has {limit} positions (max_position_embeddings): shorten the prompt"
        ))),
    }
}

/// Runs `tokens` through the cache; logits [V] after the last.
pub(super) fn next_logits(model: &Model, tokens: &[u32], cache: &mut super::KvCache) -> Result<Array> {
    let mut last = None;
    for chunk in tokens.chunks(PREFILL) {
        if last.take().is_some() {
            // Of the chunks before the last only keys and values are wanted.
            cache.eval()?;
        }
        last = Some(model.hidden_of(chunk, 1, Some(cache))?);
    }
    let h = last.ok_or_else(|| Error::Request("no tokens to run".into()))?;
    Ok(model.logits(&h.try_index((.., -1, ..))?)?.reshape(&[-1])?)
}

/// Evaluates logits and hands them to `f` where they lie.
pub(super) fn read<T>(logits: &Array, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    mlx::eval([logits])?;
    f(logits.try_as_slice::<f32>().map_err(|e| Error::Request(format!("logits cannot be read: {e}")))?)
}

/// What to say when a model computes nothing that is a number.
pub const NOT_FINITE: &str =
    "the model's outputs are not finite: its weights, scales or rope settings are damaged; fetch or convert it again";

/// The next token by its logits [V]; `all` are the tokens so far.
pub(super) fn sample(sampler: &mut Sampler, logits: &[f32], all: &[u32]) -> Result<u32> {
    match logits.iter().any(|x| x.is_finite()) {
        true => Ok(sampler.next(logits, all)),
        false => Err(Error::Request(NOT_FINITE.into())),
    }
}

/// Shows text as it comes but holds back what may be the beginning of a stop string.
struct Output<'a> {
    text: String,
    held: String,
    stop: &'a [String],
}

type Show<'a> = &'a mut dyn FnMut(&str) -> bool;

impl Output<'_> {
    /// Takes a piece of text; answers why to end, if so.
    fn push(&mut self, piece: &str, show: Show) -> Option<Finish> {
        self.held.push_str(piece);
        let found = self.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return Some(self.release(at, show).unwrap_or(Finish::Stop));
        }
        let begun = |s: &String| {
            (1..s.len()).rev().find(|n| s.is_char_boundary(*n) && self.held.ends_with(&s[..*n])).unwrap_or(0)
        };
        let hold = self.stop.iter().map(begun).max().unwrap_or(0);
        self.release(self.held.len() - hold, show)
    }

    /// Takes the last piece and shows all that was held back.
    fn finish(&mut self, piece: &str, show: Show) -> Option<Finish> {
        self.push(piece, show).or_else(|| self.release(self.held.len(), show))
    }

    fn release(&mut self, n: usize, show: Show) -> Option<Finish> {
        let rest = self.held.split_off(n);
        let shown = std::mem::replace(&mut self.held, rest);
        self.text.push_str(&shown);
        (!shown.is_empty() && !show(&shown)).then_some(Finish::Cancelled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (String, Vec<String>, Option<Finish>) {
        let stop: Vec<String> = stop.iter().map(|s| (*s).to_owned()).collect();
        let mut seen = Vec::new();
        let mut show = |s: &str| {
            seen.push(s.to_owned());
            true
        };
        let mut o = Output { text: String::new(), held: String::new(), stop: &stop };
        let end = pieces.iter().find_map(|p| o.push(p, &mut show)).or_else(|| o.finish("", &mut show));
        let text = std::mem::take(&mut o.text);
        (text, seen, end)
    }

    #[test]
    fn a_stop_string_across_tokens_is_not_shown() {
        let (text, seen, end) = run(&["\n\nQ:"], &["one\n", "\n", "Q", ": two"]);
        assert_eq!((text.as_str(), end), ("one", Some(Finish::Stop)));
        assert_eq!(seen.concat(), "one");
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_shown_late_but_whole() {
        let (text, seen, end) = run(&["END", "→→"], &["a E", "N", "x →", " E"]);
        assert_eq!((text.as_str(), end), ("a ENx → E", None));
        assert_eq!(seen, ["a ", "ENx ", "→ ", "E"]);
    }

    #[test]
    fn the_earliest_stop_string_wins() {
        assert_eq!(run(&["bb", "a"], &["xxabb"]).0, "xx");
        assert_eq!(run(&[""], &["xx"]).0, "xx");
    }

    #[test]
    fn the_caller_can_end_it() {
        let mut show = |_: &str| false;
        let mut o = Output { text: String::new(), held: String::new(), stop: &[] };
        assert_eq!(o.push("x", &mut show), Some(Finish::Cancelled));
    }
}
