//! Answers to many prompts at once: as many as there are rows run together, and a row whose answer ended takes the
//! next prompt.
//!
//! A token of one answer reads all weights of the model; a token of eight answers reads them once too. The answers
//! are those that [`generate`](super::generate::generate) gives, up to the rounding of products of other sizes.

use super::decoder::Model;
use super::error::{Error, Result};
use super::generate::{Answer, GenerateOptions, Generation, context, next_logits, read};
use super::tokenizer::Tokenizer;

/// A prompt and what is wanted of it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// What to generate.
    pub options: GenerateOptions,
}

impl Request {
    /// Whether the model can take it.
    ///
    /// # Errors
    /// When the prompt is empty, too long or of another model, or an option is out of range.
    pub fn check(&self, model: &Model) -> Result<()> {
        self.options.sampling.check().map_err(Error::Request)?;
        context(model, self.prompt.len())?;
        model.check_ids(&self.prompt)
    }

    /// Positions that prompt and answer take at most.
    ///
    /// # Errors
    /// As [`Request::check`].
    pub fn positions(&self, model: &Model) -> Result<usize> {
        let limit = context(model, self.prompt.len())?;
        Ok(limit.min(self.prompt.len().saturating_add(self.options.max_tokens)))
    }
}

/// What happened; see [`generate`].
#[derive(Debug)]
pub enum Event<'a> {
    /// This many more tokens.
    Tokens(usize),
    /// The answer to the request of this index.
    Done(usize, &'a Generation),
}

/// Bytes of the keys and values of one sequence of so many positions.
pub fn cache_bytes(model: &Model, positions: usize) -> u64 {
    let c = model.config();
    let position = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * size_of::<f32>();
    positions as u64 * position as u64
}

/// Answers every request, at most `rows` together; answers in the order of the requests.
///
/// `watch` hears of every step and answers whether to go on. When it does not, answers that have ended are kept and
/// the others are `None`. Times in an answer are its own, from when its prompt began to run.
///
/// # Errors
/// When a request cannot be taken ([`Request::check`]; its index is named) or the model's outputs are not finite.
pub fn generate(
    model: &Model,
    tokenizer: &Tokenizer,
    requests: &[Request],
    rows: usize,
    watch: &mut dyn FnMut(Event) -> bool,
) -> Result<Vec<Option<Generation>>> {
    let mut reserve = 0;
    for (i, r) in requests.iter().enumerate() {
        let of = |e: Error| Error::Request(format!("prompt {i}: {e}"));
        r.check(model).map_err(of)?;
        reserve = reserve.max(r.positions(model).map_err(of)?);
    }
    let rows = rows.clamp(1, requests.len().max(1));
    let mut cache = model.new_cache_of(rows);
    cache.reserve(reserve);
    let mut out: Vec<Option<Generation>> = requests.iter().map(|_| None).collect();
    let mut done = |i: usize, a: Answer, watch: &mut dyn FnMut(Event) -> bool| -> Result<bool> {
        let made = a.end(&mut |_| true)?;
        let go_on = watch(Event::Done(i, &made));
        if let Some(place) = out.get_mut(i) {
            *place = Some(made);
        }
        Ok(go_on)
    };
    let mut waiting = requests.iter().enumerate();
    let mut running: Vec<Option<(usize, Answer)>> = (0..rows).map(|_| None).collect();
    'all: loop {
        for (row, place) in running.iter_mut().enumerate() {
            while place.is_none() {
                let Some((i, r)) = waiting.next() else { break };
                let mut answer = Answer::new(model, tokenizer, &r.prompt, &r.options)?;
                if !answer.ended() {
                    cache.clear(row);
                    cache.select(&[row]);
                    let logits = next_logits(model, &r.prompt, &mut cache)?;
                    read(&logits, |all| answer.take(all, &mut |_| true))?;
                    if !watch(Event::Tokens(1)) {
                        break 'all;
                    }
                }
                match answer.ended() {
                    false => *place = Some((i, answer)),
                    true if !done(i, answer, watch)? => break 'all,
                    true => {}
                }
            }
        }
        let active: Vec<usize> = (0..rows).filter(|r| running.get(*r).is_some_and(Option::is_some)).collect();
        if active.is_empty() {
            break;
        }
        cache.select(&active);
        let last: Vec<u32> = running.iter().flatten().map(|(_, a)| a.last()).collect();
        let h = model.hidden_of(&last, last.len(), Some(&mut cache))?;
        read(&model.logits(&h)?, |all| {
            let each = all.chunks(all.len() / last.len());
            running.iter_mut().flatten().zip(each).try_for_each(|((_, a), logits)| a.take(logits, &mut |_| true))
        })?;
        let go_on = watch(Event::Tokens(last.len()));
        for place in &mut running {
            if let Some((i, answer)) = place.take_if(|(_, a)| a.ended())
                && !done(i, answer, watch)?
            {
                break 'all;
            }
        }
        if !go_on {
            break;
        }
    }
    Ok(out)
}
