//! Several evaluators as one: each reports, and the candidate stays only if none rejects it and at
//! least one accepts it. One that abstains stands aside.

use crate::plugin::contract::{Decision, Metric, Task, Verdict};
use crate::plugin::{Evaluator, Fault, Measure};
use serde::{Deserialize, Serialize};

/// What one evaluator said.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opinion {
    /// Its name.
    pub evaluator: String,
    /// Its verdict.
    pub verdict: Verdict,
}

/// Asks every evaluator about the candidate. All are asked, whatever the first says.
///
/// # Errors
/// The first fault: a candidate that could not be judged is not accepted.
pub fn judge(
    evaluators: &mut [Box<dyn Evaluator>],
    task: &Task,
    measure: &mut dyn Measure,
) -> Result<(Verdict, Vec<Opinion>), Fault> {
    let mut opinions = Vec::with_capacity(evaluators.len());
    for e in evaluators {
        let verdict = e.evaluate(task, measure)?;
        opinions.push(Opinion { evaluator: e.info().name.clone(), verdict });
    }
    Ok(match opinions.len() {
        1 => (opinions[0].verdict.clone(), Vec::new()),
        _ => (combine(&opinions), opinions),
    })
}

fn combine(opinions: &[Opinion]) -> Verdict {
    let says = |d: Decision| opinions.iter().filter(move |o| o.verdict.decision == d);
    let decision = match (says(Decision::Reject).next(), says(Decision::Accept).next()) {
        (Some(_), _) => Decision::Reject,
        (None, Some(_)) => Decision::Accept,
        (None, None) => Decision::Abstain,
    };
    let reasons: Vec<String> = says(decision).map(|o| format!("{}: {}", o.evaluator, o.verdict.reason)).collect();
    let mut metrics: Vec<Metric> = Vec::new();
    for o in opinions {
        for m in &o.verdict.metrics {
            match metrics.iter().find(|known| known.name == m.name) {
                Some(known) if known.value == m.value => {}
                Some(_) => metrics.push(Metric { name: format!("{}.{}", o.evaluator, m.name), ..m.clone() }),
                None => metrics.push(m.clone()),
            }
        }
    }
    Verdict { decision, reason: reasons.join("; "), metrics, attributes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opinion(evaluator: &str, decision: Decision, name: &str, value: f64) -> Opinion {
        let metric =
            Metric { name: name.into(), value, unit: String::new(), higher_is_better: false, low: None, high: None };
        let verdict = Verdict { decision, reason: "because".into(), metrics: vec![metric], attributes: vec![] };
        Opinion { evaluator: evaluator.into(), verdict }
    }

    #[test]
    fn one_no_is_enough_and_one_yes_is_needed() {
        use Decision::{Abstain, Accept, Reject};
        let of = |decisions: &[Decision]| {
            let opinions: Vec<Opinion> = decisions.iter().map(|d| opinion("e", *d, "m", 1.0)).collect();
            combine(&opinions).decision
        };
        assert_eq!(of(&[Accept, Reject]), Reject);
        assert_eq!(of(&[Accept, Abstain]), Accept);
        assert_eq!(of(&[Abstain, Abstain]), Abstain);
        assert_eq!(of(&[Accept, Accept]), Accept);
    }

    #[test]
    fn who_said_no_is_named_and_figures_keep_apart() {
        let of = combine(&[
            opinion("perplexity", Decision::Accept, "loss-increase", 0.1),
            opinion("kl", Decision::Reject, "loss-increase", 0.2),
            opinion("other", Decision::Accept, "loss-increase", 0.1),
        ]);
        assert_eq!(of.reason, "kl: because");
        assert_eq!(
            of.metrics.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(),
            ["loss-increase", "kl.loss-increase"]
        );
    }
}
