//! What trials say about arms: paired by seed and window, with an interval that knows both sources of chance.
//!
//! Two intervals are made: Student's t over the seeds' mean differences, which is careful with few seeds, and one by
//! drawing seeds and windows anew. An arm is better or worse only where both leave out zero.

use super::trial::Trial;
use crate::eval::stats;
use serde::Serialize;

/// Times seeds and windows are drawn anew.
const DRAWS: usize = 10_000;

/// One arm over its seeds.
#[derive(Clone, Debug, Serialize)]
pub struct ArmResult {
    /// Name.
    pub arm: String,
    /// Seeds that are done.
    pub seeds: usize,
    /// Trials that failed.
    pub failed: usize,
    /// Perplexity of each seed.
    pub perplexities: Vec<f64>,
    /// exp of the mean loss over seeds.
    pub perplexity: Option<f64>,
    /// Change against the base without pack, percent.
    pub against_base_pct: Option<f64>,
    /// Total rank, mean over seeds.
    pub total_rank: f64,
    /// Bytes of tensors, mean over seeds.
    pub bytes: f64,
    /// Seconds of training, mean over seeds.
    pub seconds: f64,
    /// Against the reference; absent for the reference itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against_reference: Option<Against>,
}

/// One arm against the reference, on the seeds both have.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// Mean difference of the losses, nats a token; below 0 the arm is better.
    pub mean_nll: f64,
    /// Change of the perplexity, percent.
    pub ppl_delta_pct: f64,
    /// Interval of it by Student's t over seeds.
    pub over_seeds_pct: Option<[f64; 2]>,
    /// Interval of it by drawing seeds and windows anew.
    pub resampled_pct: Option<[f64; 2]>,
    /// Seeds paired.
    pub seeds: usize,
    /// `better`, `worse`, `no significant difference`, or why nothing can be said.
    pub verdict: &'static str,
}

/// Compares two arms; `None` where no seed is done in both.
pub fn against(arm: &[&Trial], reference: &[&Trial]) -> Option<Against> {
    let weights: Vec<f64> = reference.first()?.windows.iter().map(|w| w.tokens as f64).collect();
    let tokens: f64 = weights.iter().sum();
    let rows: Vec<Vec<f64>> = arm
        .iter()
        .filter_map(|a| Some((a, reference.iter().find(|r| r.seed == a.seed)?)))
        .map(|(a, r)| a.windows.iter().zip(&r.windows).map(|(a, r)| a.nll - r.nll).collect())
        .collect();
    if rows.is_empty() {
        return None;
    }
    let means: Vec<f64> = rows.iter().map(|r| r.iter().sum::<f64>() / tokens).collect();
    let (mean_nll, error) = stats::mean(&means);
    let percent = |nats: f64| 100.0 * nats.exp_m1();
    let over_seeds = stats::interval(mean_nll, error, means.len());
    let resampled = stats::resampled(&rows, &weights, DRAWS, 0);
    let verdict = match (over_seeds, resampled) {
        (Some(t), Some(b)) if t[1] < 0.0 && b[1] < 0.0 => "better",
        (Some(t), Some(b)) if t[0] > 0.0 && b[0] > 0.0 => "worse",
        (Some(_), Some(_)) => "no significant difference",
        _ => "one seed or one window: nothing can be said about another training",
    };
    Some(Against {
        mean_nll,
        ppl_delta_pct: percent(mean_nll),
        over_seeds_pct: over_seeds.map(|i| i.map(percent)),
        resampled_pct: resampled.map(|i| i.map(percent)),
        seeds: means.len(),
        verdict,
    })
}

/// Sums up an arm.
pub fn sum_up(arm: &str, trials: &[&Trial], failed: usize, base_nll: f64, reference: Option<&[&Trial]>) -> ArmResult {
    let of = |f: fn(&Trial) -> f64| trials.iter().map(|t| f(t)).collect::<Vec<f64>>();
    let nll = of(Trial::mean_nll);
    let mean_nll = (!nll.is_empty()).then(|| stats::mean(&nll).0);
    ArmResult {
        arm: arm.to_owned(),
        seeds: trials.len(),
        failed,
        perplexities: nll.iter().map(|x| x.exp()).collect(),
        perplexity: mean_nll.map(f64::exp),
        against_base_pct: mean_nll.map(|m| 100.0 * (m - base_nll).exp_m1()),
        total_rank: stats::mean(&of(|t| t.total_rank as f64)).0,
        bytes: stats::mean(&of(|t| t.bytes as f64)).0,
        seconds: stats::mean(&of(|t| t.seconds)).0,
        against_reference: reference.and_then(|r| against(trials, r)),
    }
}

/// Trials whose total rank or bytes are further from the reference's, seed by seed, than `tolerance` percent: one
/// sentence each.
pub fn unequal(trials: &[Trial], reference: &str, tolerance: f64) -> Vec<String> {
    let far = |a: f64, b: f64| (a - b).abs() > tolerance / 100.0 * b + 1e-9;
    let mut out = Vec::new();
    for r in trials.iter().filter(|t| t.arm == reference) {
        for t in trials.iter().filter(|t| t.seed == r.seed && t.arm != reference) {
            for (what, a, b) in [("total rank", t.total_rank as u64, r.total_rank as u64), ("bytes", t.bytes, r.bytes)]
            {
                if far(a as f64, b as f64) {
                    out.push(format!("{} (seed {}): {what} {a}; {reference} has {b}", t.arm, t.seed));
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::eval::perplexity::WindowLoss;

    /// A trial whose windows have these losses, ten tokens each.
    fn trial(arm: &str, seed: u64, nll: &[f64]) -> Trial {
        Trial {
            arm: arm.into(),
            seed,
            key: String::new(),
            pack: String::new(),
            total_rank: 8,
            bytes: 100,
            seconds: 1.0,
            windows: nll.iter().map(|n| WindowLoss { nll: *n, tokens: 10 }).collect(),
        }
    }

    /// Four seeds, six windows: `effect` a window, `noise` by seed.
    fn arms(effect: f64, noise: [f64; 4]) -> (Vec<Trial>, Vec<Trial>) {
        let hard = [10.0, 30.0, 50.0, 20.0, 40.0, 60.0];
        let of = |arm: &str, by: &dyn Fn(usize) -> f64| {
            (0..4).map(|s| trial(arm, s as u64, &hard.map(|h| h + by(s)))).collect::<Vec<_>>()
        };
        (of("new", &|s| effect + noise[s]), of("old", &|_| 0.0))
    }

    fn verdict(effect: f64, noise: [f64; 4]) -> Against {
        let (new, old) = arms(effect, noise);
        against(&new.iter().collect::<Vec<_>>(), &old.iter().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_steady_difference_is_one_and_a_shaky_one_is_none() {
        let steady = verdict(-1.0, [0.1, -0.1, 0.05, -0.05]);
        assert_eq!((steady.verdict, steady.seeds), ("better", 4));
        assert!((steady.mean_nll + 0.1).abs() < 1e-9 && steady.over_seeds_pct.unwrap()[1] < 0.0);
        assert_eq!(verdict(1.0, [0.1, -0.1, 0.05, -0.05]).verdict, "worse");
        assert_eq!(verdict(-1.0, [3.0, -3.0, 2.0, -2.0]).verdict, "no significant difference");
    }

    #[test]
    fn one_seed_says_nothing_and_no_common_seed_gives_nothing() {
        let (new, old) = arms(-1.0, [0.0; 4]);
        assert!(against(&[&new[0]], &[&old[0]]).unwrap().verdict.contains("nothing can be said"));
        assert!(against(&[&new[0]], &[&old[1]]).is_none());
    }

    #[test]
    fn budgets_are_compared_seed_by_seed() {
        let (mut new, old) = arms(0.0, [0.0; 4]);
        new[2].total_rank = 9;
        new[3].bytes = 103;
        let all: Vec<Trial> = new.into_iter().chain(old).collect();
        assert_eq!(
            unequal(&all, "old", 0.0),
            ["new (seed 2): total rank 9; old has 8", "new (seed 3): bytes 103; old has 100"]
        );
        assert_eq!(unequal(&all, "old", 5.0), ["new (seed 2): total rank 9; old has 8"]);
        assert!(unequal(&all, "old", 13.0).is_empty());
    }
}
