//! How long decoding takes: a prompt, then one token at a time through the cache, as [`generate`] does it.
//!
//! Nothing ends the answer early, so that two models are timed at the same work.
//!
//! [`generate`]: super::generate::generate

use super::decoder::Model;
use super::error::{Error, Result};
use super::generate::{context, next_logits, read, sample};
use super::sample::{Sampler, Sampling};
use std::time::Instant;

/// Milliseconds from the call to the first of `new_tokens` tokens after `prompt`, then from each to the
/// next. `go_on` is asked before each token; `None` when it answered no.
///
/// # Errors
/// When prompt and answer do not fit the model's context, an id is not in the vocabulary, or the outputs
/// are not finite.
pub fn decode(
    model: &Model,
    prompt: &[u32],
    new_tokens: usize,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Vec<f64>>> {
    let limit = context(model, prompt.len())?;
    if new_tokens > limit - prompt.len() {
        return Err(Error::Request(format!(
            "a prompt of {} tokens and {new_tokens} more: this model has {limit} positions",
            prompt.len()
        )));
    }
    let mut cache = model.new_cache();
    cache.reserve(prompt.len() + new_tokens);
    let mut sampler = Sampler::new(Sampling::default());
    let mut all = prompt.to_vec();
    let mut times = Vec::with_capacity(new_tokens);
    let (mut from, mut last) = (0, Instant::now());
    while times.len() < new_tokens {
        if !go_on() {
            return Ok(None);
        }
        let logits = next_logits(model, all.get(from..).unwrap_or_default(), &mut cache)?;
        from = all.len();
        let id = read(&logits, |logits| sample(&mut sampler, logits, &all))?;
        all.push(id);
        let now = Instant::now();
        times.push((now - last).as_secs_f64() * 1e3);
        last = now;
    }
    Ok(Some(times))
}
