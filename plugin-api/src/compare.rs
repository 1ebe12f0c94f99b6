//! Questions that several evaluators ask of the host: base and candidate on the same text, the same
//! prompts, the same work. Each answer is checked for being complete; what the base says never
//! changes and is remembered.

use crate::evaluator::{Measure, Subject};
use crate::records::Metric;
use crate::stats::Cluster;
use std::collections::HashMap;

/// Windows asked for at once: the host batches them, progress stays visible.
const BATCH: usize = 8;

/// The windows an evaluator looks at: the first `most`, all for 0.
///
/// # Errors
/// There is no evaluation text.
pub fn windows(host: &dyn Measure, most: u32) -> Result<Vec<u32>, String> {
    let available = host.windows();
    match if most == 0 { available } else { most.min(available) } {
        0 => Err("there is no evaluation text: the data is shorter than one window".into()),
        count => Ok((0..count).collect()),
    }
}

/// Losses of one window under both models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Summed negative log-likelihood under the base, nats.
    pub base: f64,
    /// The same under the candidate.
    pub candidate: f64,
    /// Tokens scored.
    pub tokens: u32,
}

impl Pair {
    /// The rise of the loss, for [`crate::stats`].
    pub fn rise(&self) -> Cluster {
        Cluster { sum: self.candidate - self.base, tokens: self.tokens }
    }

    /// The base's own loss.
    pub fn of_base(&self) -> Cluster {
        Cluster { sum: self.base, tokens: self.tokens }
    }

    /// The candidate's own loss.
    pub fn of_candidate(&self) -> Cluster {
        Cluster { sum: self.candidate, tokens: self.tokens }
    }
}

/// Losses on windows of the evaluation text; those of the base are asked for once.
#[derive(Clone, Debug, Default)]
pub struct Losses {
    base: HashMap<u32, Cluster>,
}

impl Losses {
    /// Losses of the windows under base and candidate.
    ///
    /// # Errors
    /// The host's, or it scored different tokens under the two.
    pub fn of(&mut self, host: &dyn Measure, windows: &[u32]) -> Result<Vec<Pair>, String> {
        let mut pairs = Vec::with_capacity(windows.len());
        for batch in windows.chunks(BATCH) {
            let unknown: Vec<u32> = batch.iter().copied().filter(|i| !self.base.contains_key(i)).collect();
            for (index, loss) in unknown.iter().zip(losses(host, Subject::Base, &unknown)?) {
                self.base.insert(*index, loss);
            }
            for (index, of_candidate) in batch.iter().zip(losses(host, Subject::Candidate, batch)?) {
                match self.base.get(index) {
                    Some(&b) if b.tokens == of_candidate.tokens => {
                        pairs.push(Pair { base: b.sum, candidate: of_candidate.sum, tokens: b.tokens });
                    }
                    _ => {
                        return Err(format!(
                            "the host scored different tokens of window {index} under base and candidate"
                        ));
                    }
                }
            }
        }
        Ok(pairs)
    }
}

fn losses(host: &dyn Measure, subject: Subject, indices: &[u32]) -> Result<Vec<Cluster>, String> {
    if indices.is_empty() {
        return Ok(Vec::new());
    }
    let scores = complete(host.score_windows(subject, indices)?, indices.len(), "windows")?;
    let loss = |logprobs: &Vec<f32>| {
        let c = Cluster::of(logprobs);
        Cluster { sum: -c.sum, ..c }
    };
    Ok(scores.iter().map(loss).collect())
}

/// Divergence of the candidate from the base at every token of the windows.
///
/// # Errors
/// The host's.
pub fn divergences(host: &dyn Measure, windows: &[u32]) -> Result<Vec<Vec<f32>>, String> {
    complete(host.divergence(Subject::Base, Subject::Candidate, windows)?, windows.len(), "windows")
}

fn complete<T>(answers: Vec<T>, asked: usize, what: &str) -> Result<Vec<T>, String> {
    match answers.len() == asked {
        true => Ok(answers),
        false => Err(format!("asked for {asked} {what}, the host answered {}", answers.len())),
    }
}

/// A figure by its name.
///
/// # Errors
/// The host did not measure it.
pub fn figure<'a>(metrics: &'a [Metric], name: &str) -> Result<&'a Metric, String> {
    metrics.iter().find(|m| m.name == name).ok_or_else(|| format!("the host does not measure {name}"))
}
