//! What packs change in a model, shown on one text: how far the logits move, and which tokens come next.
//!
//! Every position of the text counts for the differences; the likeliest tokens are those after its end. Fails
//! where the text has no token or the model does.

use super::error::{Error, Result};
use crate::mlx::{self, Array};
use crate::model::{Model, Tokenizer};
use serde::Serialize;

/// Likeliest tokens that are shown.
const TOP: usize = 5;

/// A token that may come next.
#[derive(Clone, Debug, Serialize)]
pub struct Likely {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Its probability.
    pub probability: f64,
}

/// Two states of a model on one text.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// Tokens of the text.
    pub tokens: usize,
    /// Largest difference of a logit, over all positions.
    pub max_logit_difference: f64,
    /// KL(before ‖ after) in nats, the mean over positions.
    pub mean_kl: f64,
    /// Positions at which the likeliest next token is another one.
    pub top_changed: usize,
    /// Likeliest tokens after the text, before.
    pub before: Vec<Likely>,
    /// And after.
    pub after: Vec<Likely>,
}

/// Logits of every position of a text, [tokens · vocabulary].
///
/// # Errors
/// When there is no token, or the model fails.
pub fn logits(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    if ids.is_empty() {
        return Err(Error::Other("the probe has no tokens; give --probe some text".into()));
    }
    let tokens: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let tokens = Array::from_slice(&tokens, &[1, ids.len() as i32]);
    let logits = model.logits(&model.hidden(&tokens, None)?)?.reshape(&[-1])?;
    mlx::eval([&logits])?;
    let all = logits.try_as_slice::<f32>().map_err(|e| Error::Other(format!("logits cannot be read: {e}")))?;
    Ok(all.to_vec())
}

/// Compares two states by their logits.
///
/// # Errors
/// When they are of different texts or models, or a logit is not finite.
pub fn compare(before: &[f32], after: &[f32], vocabulary: usize, tokenizer: &Tokenizer) -> Result<Difference> {
    if before.len() != after.len() || vocabulary == 0 || before.is_empty() {
        return Err(Error::Other("logits of two different texts cannot be compared".into()));
    }
    if let Some(bad) = before.iter().chain(after).find(|x| !x.is_finite()) {
        return Err(Error::Other(format!("the model computes a logit of {bad}; the base or a pack is damaged")));
    }
    let pairs = || before.chunks_exact(vocabulary).zip(after.chunks_exact(vocabulary));
    let tokens = pairs().count();
    let largest = before.iter().zip(after).map(|(x, y)| (f64::from(*x) - f64::from(*y)).abs()).fold(0.0, f64::max);
    let kl: f64 = pairs().map(|(x, y)| divergence(x, y)).sum();
    let last = pairs().next_back();
    Ok(Difference {
        tokens,
        max_logit_difference: largest,
        mean_kl: kl / tokens.max(1) as f64,
        top_changed: pairs().filter(|(x, y)| best(x) != best(y)).count(),
        before: last.map(|(x, _)| top(x, tokenizer)).unwrap_or_default(),
        after: last.map(|(_, y)| top(y, tokenizer)).unwrap_or_default(),
    })
}

/// Largest difference of two rows of logits.
pub fn gap(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).abs()).fold(0.0, f64::max)
}

fn best(row: &[f32]) -> Option<usize> {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]))
}

/// Natural logarithms of the probabilities.
fn log_softmax(row: &[f32]) -> Vec<f64> {
    let most = row.iter().copied().fold(f32::MIN, f32::max);
    let total: f64 = row.iter().map(|x| f64::from(x - most).exp()).sum();
    row.iter().map(|x| f64::from(x - most) - total.ln()).collect()
}

fn divergence(x: &[f32], y: &[f32]) -> f64 {
    let (p, q) = (log_softmax(x), log_softmax(y));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
}

fn top(row: &[f32], tokenizer: &Tokenizer) -> Vec<Likely> {
    let log = log_softmax(row);
    let mut order: Vec<usize> = (0..log.len()).collect();
    order.sort_by(|a, b| log[*b].total_cmp(&log[*a]));
    let likely = |i: &usize| Likely {
        id: *i as u32,
        text: tokenizer.decode(&[*i as u32]).unwrap_or_default(),
        probability: log[*i].exp(),
    };
    order.iter().take(TOP).map(likely).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn divergences_are_those_of_the_textbook() {
        // p = (1/2, 1/2), q = (3/4, 1/4): KL = ln 2 / 2 + ln(4/3)... = 1/2 ln(1/2 / 3/4) + 1/2 ln(1/2 / 1/4).
        let (p, q) = ([0.0, 0.0], [3f32.ln(), 0.0]);
        let want = 0.5 * (2.0f64 / 3.0).ln() + 0.5 * 2.0f64.ln();
        assert!((divergence(&p, &q) - want).abs() < 1e-6);
        assert_eq!(divergence(&p, &p), 0.0);
        assert_eq!(best(&[1.0, 3.0, 2.0]), Some(1));
        assert_eq!(gap(&[1.0, 2.0], &[1.5, 1.0]), 1.0);
    }
}
