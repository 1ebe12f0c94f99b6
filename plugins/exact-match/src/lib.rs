//! The evaluator `exact-match`: asks questions that have a right answer, and rejects a candidate that
//! answers fewer of them right than the base by more than allowed.
//!
//! With `mode = "answers"` both models decode the answer greedily, and it is right where it equals
//! the right one after trimming, collapsing white space and, unless `case`, lower-casing
//! ([`plastic_plugin::answers`]). Accuracy comes with Wilson's interval, the difference with
//! McNemar's exact test ([`stats`]): with few questions a difference may be chance.
//!
//! With `mode = "likelihood"` nothing is decoded: the right answer's own tokens are scored, and the
//! mean loss of them must not rise by more than `max_loss_increase` nats. That moves before a single
//! answer changes, and serves models too small to answer well.
//!
//! A base that answers nothing right could lose nothing, and every candidate would pass: an error.

pub mod stats;

use plastic_plugin::Example;
use plastic_plugin::answers::{self, Answers, Matching};
use plastic_plugin::prelude::*;
use plastic_plugin::stats::{self as shared, Cluster};

/// Questions scored in one call.
const BATCH: usize = 32;

plastic_plugin::choices! {
    /// How answers are judged.
    pub enum Mode {
        /// Decoded, and compared with the right one.
        Answers = "answers",
        /// The right one is scored.
        Likelihood = "likelihood",
    }
}

plastic_plugin::options! {
    /// Options of the exact-match evaluator.
    pub struct Options {
        /// Whether answers are decoded and compared (answers), or the right ones scored (likelihood).
        pub mode: Mode = Mode::Answers,
        /// Highest fall of the share of right answers that is accepted (mode answers).
        #[range(0.0..=1.0)]
        pub max_drop: f64 = 0.1,
        /// Highest rise of the mean loss of the answers' tokens that is accepted, nats per token (mode likelihood).
        #[range(0.0..=100.0)]
        pub max_loss_increase: f64 = 0.2,
        /// Whether A is another letter than a.
        pub case: bool = false,
        /// Whether the right answer may stand anywhere in the text.
        pub contains: bool = false,
        /// Tokens to decode; 0: as many as the right answer has, and 16 more with contains.
        #[range(0..=4096)]
        pub max_tokens: u32 = 0,
        /// Questions to ask, from the first; 0 for all.
        pub questions: u32 = 0,
        /// Confidence of the intervals.
        #[range(0.5..=0.9999)]
        pub confidence: f64 = 0.95,
        /// Draws of the bootstrap (mode likelihood).
        #[range(100..=1000000)]
        pub resamples: u32 = 2000,
    }
}

/// The evaluator, and what the base answered: it always answers the same.
#[derive(Default)]
pub struct ExactMatch {
    options: Options,
    answers: Answers,
    base: Vec<Cluster>,
}

impl Evaluator for ExactMatch {
    type Options = Options;

    const METRICS: &'static [&'static str] = &[
        "exact-match",
        "exact-match-base",
        "exact-match-drop",
        "mcnemar-p",
        "answer-loss",
        "answer-loss-base",
        "answer-loss-increase",
        "questions",
    ];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn evaluate(&mut self, task: &Task, host: &dyn Measure) -> Result<Verdict, String> {
        let questions = answers::questions(host, self.options.questions)?;
        let verdict = match self.options.mode {
            Mode::Answers => self.by_answers(host, &questions)?,
            Mode::Likelihood => self.by_likelihood(task.seed, host, &questions)?,
        };
        Ok(verdict.metric(Metric::new("questions", questions.len() as f64, "").higher_is_better()))
    }
}

impl ExactMatch {
    fn by_answers(&mut self, host: &dyn Measure, questions: &[Example]) -> Result<Verdict, String> {
        let o = &self.options;
        let how = Matching { case: o.case, contains: o.contains, max_tokens: o.max_tokens };
        let pairs = self.answers.of(host, questions, &how)?;
        let n = pairs.len() as u64;
        let count = |of: fn(&(bool, bool)) -> bool| pairs.iter().filter(|p| of(p)).count() as u64;
        let (base, candidate) = (count(|p| p.0), count(|p| p.1));
        if base == 0 {
            return Err(format!(
                "the base answers none of the {n} questions right, so no candidate could do worse: ask easier ones, or use mode=likelihood"
            ));
        }
        let (lost, won) = (count(|p| p.0 && !p.1), count(|p| !p.0 && p.1));
        let p = stats::mcnemar(lost, won);
        let drop = (base as f64 - candidate as f64) / n as f64;
        let (low, high) = stats::wilson(candidate, n, o.confidence);
        let is_good = drop <= o.max_drop;
        let reason = format!(
            "{candidate} of {n} answers right ({} % between {:.1} % and {:.1} %), {base} under the base; lost {lost}, won {won}, p = {p:.3}: a fall of {:.1} % {} the limit of {:.1} %",
            shared::percent(o.confidence),
            100.0 * low,
            100.0 * high,
            100.0 * drop,
            if is_good { "is within" } else { "exceeds" },
            100.0 * o.max_drop
        );
        let share = |name: &str, right: u64| {
            let (low, high) = stats::wilson(right, n, o.confidence);
            Metric::new(name, right as f64 / n as f64, "").higher_is_better().interval(low, high)
        };
        let verdict = if is_good { Verdict::accept(reason) } else { Verdict::reject(reason) };
        Ok(verdict
            .metric(share("exact-match", candidate))
            .metric(share("exact-match-base", base))
            .metric(Metric::new("exact-match-drop", drop, ""))
            .metric(Metric::new("mcnemar-p", p, "").higher_is_better()))
    }

    fn by_likelihood(&mut self, seed: u64, host: &dyn Measure, questions: &[Example]) -> Result<Verdict, String> {
        let o = &self.options;
        if self.base.len() != questions.len() {
            self.base = losses(host, Subject::Base, questions)?;
        }
        let candidate = losses(host, Subject::Candidate, questions)?;
        let rise = |(b, c): (&Cluster, &Cluster)| Cluster { sum: c.sum - b.sum, tokens: c.tokens };
        let rises: Vec<Cluster> = self.base.iter().zip(&candidate).map(rise).collect();
        let [base, loss, increase] = [&self.base, &candidate, &rises].map(|c| shared::mean(c));
        if !base.is_finite() {
            return Err("the base's loss on the answers is not finite: the checkpoint or the data is broken".into());
        }
        if !loss.is_finite() {
            let why = format!("the candidate's loss on the answers is not finite ({loss}); the base has {base:.4}");
            return Ok(Verdict::reject(why).metric(Metric::new("answer-loss-base", base, "nats")));
        }
        let interval = shared::bootstrap(&rises, o.confidence, o.resamples, seed);
        let is_good = increase <= o.max_loss_increase;
        let mut reason =
            format!("loss of the {} right answers {base:.4} → {loss:.4} nats/token ({increase:+.4}", questions.len());
        let mut metric = Metric::new("answer-loss-increase", increase, "nats");
        if let Some((low, high)) = interval {
            reason += &format!(", {} % between {low:+.4} and {high:+.4}", shared::percent(o.confidence));
            metric = metric.interval(low, high);
        }
        let sign = if is_good { "is within" } else { "exceeds" };
        reason += &format!("): the rise {sign} the limit of {}", o.max_loss_increase);
        let verdict = if is_good { Verdict::accept(reason) } else { Verdict::reject(reason) };
        Ok(verdict
            .metric(Metric::new("answer-loss", loss, "nats"))
            .metric(Metric::new("answer-loss-base", base, "nats"))
            .metric(metric))
    }
}

/// Loss of each right answer: the answer's own tokens, given the prompt.
fn losses(host: &dyn Measure, subject: Subject, questions: &[Example]) -> Result<Vec<Cluster>, String> {
    let mut out = Vec::with_capacity(questions.len());
    for part in questions.chunks(BATCH) {
        let asked = part.iter().map(|q| answers::tokens(host, q)).collect::<Result<Vec<_>, _>>()?;
        let sequences: Vec<Vec<u32>> = asked.iter().map(|(ids, _)| ids.clone()).collect();
        for ((ids, prompt), scores) in asked.iter().zip(host.score(subject, &sequences)?) {
            // The first token has no score: nothing comes before it.
            let own = scores.get(prompt - 1..).filter(|_| scores.len() + 1 == ids.len());
            let own = own.ok_or_else(|| format!("the host scored {} of {} tokens", scores.len(), ids.len() - 1))?;
            let scored = Cluster::of(own);
            out.push(Cluster { sum: -scored.sum, ..scored });
        }
    }
    match out.len() == questions.len() {
        true => Ok(out),
        false => Err(format!("asked for {} answers, the host scored {}", questions.len(), out.len())),
    }
}

export_evaluator!(ExactMatch, name: "exact-match");

#[cfg(test)]
mod tests;
