//! How long decoding takes: prompts, then one token each at a time through the cache, as [`generate`] does it for one
//! and [`batch`] for several.
//!
//! Nothing ends an answer early, so that two models are timed at the same work.
//!
//! [`generate`]: super::generate::generate
//! [`batch`]: super::batch::generate

use super::decoder::Model;
use super::error::{Error, Result};
use super::generate::{context, next_logits, read, sample};
use super::sample::{Sampler, Sampling};
use std::time::Instant;

/// Answers and how long they took.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The likeliest tokens, one row a prompt.
    pub tokens: Vec<Vec<u32>>,
    /// Milliseconds from the call to the first token of every prompt, then from each to the next.
    pub milliseconds: Vec<f64>,
}

/// Decodes `new_tokens` tokens after each of `prompts` [B][P], all of them together. `go_on` is asked before each
/// token; `None` when it answered no.
///
/// # Errors
/// When there is no prompt, the prompts differ in length, prompt and answer do not fit the model's context, an id is
/// not in the vocabulary, or the outputs are not finite.
pub fn decode(
    model: &Model,
    prompts: &[&[u32]],
    new_tokens: usize,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Decoded>> {
    let length = prompts.first().map_or(0, |p| p.len());
    if prompts.iter().any(|p| p.len() != length) {
        return Err(Error::Request("prompts of one length are decoded together".into()));
    }
    let limit = context(model, length)?;
    if new_tokens > limit - length {
        return Err(Error::Request(format!(
            "a prompt of {length} tokens and {new_tokens} more: this model has {limit} positions"
        )));
    }
    let rows: Vec<usize> = (0..prompts.len()).collect();
    let mut cache = model.new_cache_of(rows.len());
    cache.reserve(length + new_tokens);
    let mut sampler = Sampler::new(Sampling::default());
    let mut all: Vec<Vec<u32>> = prompts.iter().map(|p| p.to_vec()).collect();
    let mut milliseconds = Vec::with_capacity(new_tokens);
    let mut last = Instant::now();
    while milliseconds.len() < new_tokens {
        if !go_on() {
            return Ok(None);
        }
        if milliseconds.is_empty() {
            for (row, ids) in all.iter_mut().enumerate() {
                cache.select(&[row]);
                let logits = next_logits(model, ids, &mut cache)?;
                let id = read(&logits, |logits| sample(&mut sampler, logits, ids))?;
                ids.push(id);
            }
            cache.select(&rows);
        } else {
            let newest: Vec<u32> = all.iter().filter_map(|ids| ids.last().copied()).collect();
            let h = model.hidden_of(&newest, newest.len(), Some(&mut cache))?;
            read(&model.logits(&h)?, |logits| {
                for (ids, logits) in all.iter_mut().zip(logits.chunks(logits.len() / newest.len())) {
                    let id = sample(&mut sampler, logits, ids)?;
                    ids.push(id);
                }
                Ok(())
            })?;
        }
        let now = Instant::now();
        milliseconds.push((now - last).as_secs_f64() * 1e3);
        last = now;
    }
    let tokens = all.into_iter().map(|mut ids| ids.split_off(length)).collect();
    Ok(Some(Decoded { tokens, milliseconds }))
}
