//! How many parameters the next step aims at: on the way to the goal, and after a rejection.
//!
//! A policy that knows how to spend any number of parameters ([`water`](crate::water),
//! [`level`](crate::level)) needs no more than this to become a whole one: [`Goal::step`] is its
//! `decide`.

use crate::keep::{self, Keep};
use crate::level;
use crate::observation::{Observation, SliceView};
use crate::plan::Plan;
use crate::spectrum;

/// How often a rejected aim is halved before the policy gives in.
const HALVINGS: u32 = 3;

/// Shares parameters out over the slices that are not frozen: what each keeps, and why. None where
/// they do not suffice.
pub trait Spend: FnOnce(u64) -> Option<Vec<(Keep, String)>> {}

impl<F: FnOnce(u64) -> Option<Vec<(Keep, String)>>> Spend for F {}

/// Where a policy goes, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Way {
    /// Metric of the spectra; in `fisher` the plan predicts the rise of the loss.
    pub metric: &'static str,
    /// Parameters the rule asks for in slices that are not frozen, where that may be less than the
    /// budget leaves; none to go to the budget.
    pub enough: Option<u64>,
    /// Spread the way over the steps of the run.
    pub ramp: bool,
}

/// How a policy of one level for all slices spends: see [`Goal::step_by_level`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OneLevel {
    /// Metric of the spectra.
    pub metric: &'static str,
    /// The level, or less where the budget is less; 0: as high as the budget allows.
    pub level: f64,
    /// Components every slice keeps at least.
    pub min_rank: usize,
    /// Spread the way over the steps of the run.
    pub ramp: bool,
}

/// What is remembered from step to step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Goal {
    /// Parameters awake at the first step.
    start: Option<u64>,
    /// What the last plan aimed at.
    aimed: Option<u64>,
    /// The largest aim that an evaluator rejected.
    rejected: Option<u64>,
    /// How many aims were rejected.
    rejections: u32,
}

impl Goal {
    /// Learns the fate of the last plan. A text is the reason to stop.
    pub fn learn(&mut self, seen: &Observation) -> Option<String> {
        self.start.get_or_insert(seen.awake);
        let (last, aimed) = (seen.last.as_ref()?, self.aimed?);
        match last.fate.as_str() {
            "rejected" => {
                self.rejections += 1;
                self.rejected = Some(self.rejected.map_or(aimed, |r| r.max(aimed)));
                (self.rejections > HALVINGS).then(|| {
                    let share = |n: u64| 100.0 * n as f64 / seen.run().parameters.max(1) as f64;
                    format!(
                        "{} plans were rejected, the last one with {:.2} % of the parameters awake; {:.2} % stay awake",
                        self.rejections,
                        share(aimed),
                        share(seen.awake)
                    )
                })
            }
            "refused" | "failed" => Some(format!("the last plan was {}: {}", last.fate, last.reason)),
            _ => None,
        }
    }

    /// Parameters to aim at on the way to `end`: straight there, or as far as the share of the run
    /// that this step completes.
    ///
    /// # Errors
    /// The reason to stop: there is no room left between what is and what was rejected.
    pub fn aim(&mut self, seen: &Observation, end: u64, ramp: bool) -> Result<u64, String> {
        let (step, steps) = (u64::from(seen.step), u64::from(seen.run().steps));
        let start = self.start.unwrap_or(seen.awake);
        let mut aim = match ramp && step < steps && end < start {
            // In 128 bits: the product of two counts. Never back up: the run may have been extended.
            true => {
                let on_the_way = start - (u128::from(start - end) * u128::from(step) / u128::from(steps)) as u64;
                on_the_way.min(seen.awake.max(end))
            }
            false => end,
        };
        if let Some(rejected) = self.rejected {
            aim = aim.max(rejected + seen.awake.saturating_sub(rejected) / 2);
            // Less than a thousandth of the model is not worth another evaluation.
            if aim > end && seen.awake.saturating_sub(aim) <= seen.run().parameters / 1000 {
                let share = 100.0 * seen.awake as f64 / seen.run().parameters.max(1) as f64;
                return Err(format!("less than {share:.2} % of the parameters awake was rejected"));
            }
        }
        self.aimed = Some(aim);
        Ok(aim)
    }

    /// One step of a policy whose `rule` says how many components a slice keeps at a level, and `why`.
    /// Both are given the place of a slice in `slices`, the open ones, and the level.
    ///
    /// # Errors
    /// As [`Goal::step`].
    pub fn step_by_level(
        &mut self,
        seen: &Observation,
        how: &OneLevel,
        slices: &[SliceView],
        rule: impl Fn(usize, f64) -> usize,
        why: impl Fn(usize, f64) -> String,
    ) -> Result<Plan, String> {
        let &OneLevel { metric, level, min_rank, ramp } = how;
        let enough = (level > 0.0).then(|| level::parameters(slices, &level::at(slices, min_rank, level, &rule)));
        self.step(seen, &Way { metric, enough, ramp }, |budget| {
            let (level, kept) = level::fill(slices, budget, min_rank, &rule)?;
            let reason =
                |(i, k): (usize, Keep)| (k, keep::reason(slices[i], slices[i].spectrum(metric), k, why(i, level)));
            Some(kept.into_iter().enumerate().map(reason).collect())
        })
    }

    /// One step of a policy that spends parameters: learns the fate of the last plan, aims, lets
    /// `spend` share out that many parameters over the slices that are not frozen, and writes the
    /// plan with its prediction. Stops where the goal is reached, or nothing more is accepted.
    ///
    /// # Errors
    /// The metric's spectra are missing or no numbers, or the parameters do not suffice.
    pub fn step(&mut self, seen: &Observation, way: &Way, spend: impl Spend) -> Result<Plan, String> {
        if let Some(why) = self.learn(seen) {
            return Ok(stopped(why));
        }
        let (slices, fixed) = keep::open(seen);
        for slice in &slices {
            spectrum::checked(*slice, way.metric)?;
        }
        let end = seen.run().budget.min(fixed.saturating_add(way.enough.unwrap_or(u64::MAX)));
        let aim = match self.aim(seen, end, way.ramp) {
            Ok(aim) => aim,
            Err(why) => return Ok(stopped(why)),
        };
        let kept = spend(aim.saturating_sub(fixed)).ok_or_else(|| {
            format!("{aim} parameters are too few for what every slice keeps at least (min_rank); raise the budget")
        })?;
        let mut plan = Plan::new();
        for (slice, (keep, why)) in slices.iter().zip(&kept) {
            keep::put(&mut plan, *slice, *keep, why);
        }
        if way.metric == "fisher" {
            let keep: Vec<Keep> = kept.iter().map(|k| k.0).collect();
            plan.predict(keep::predicted(seen, &keep)?);
        }
        if plan.actions.is_empty() && aim == end {
            let share = 100.0 * seen.awake as f64 / seen.run().parameters.max(1) as f64;
            plan.stop(match end < seen.run().budget {
                true => format!("{share:.2} % of the parameters are all the rule asks for"),
                false => format!("budget reached: {share:.2} % of the parameters are awake"),
            });
        }
        Ok(plan)
    }

    /// For a snapshot.
    pub fn to_bytes(&self) -> Vec<u8> {
        let number = |n: Option<u64>| n.map_or("-".into(), |n| n.to_string());
        let (start, aimed, rejected) = (number(self.start), number(self.aimed), number(self.rejected));
        format!("1 {start} {aimed} {rejected} {}", self.rejections).into_bytes()
    }

    /// From a snapshot.
    ///
    /// # Errors
    /// It is not one of this policy.
    pub fn from_bytes(bytes: &[u8]) -> Result<Goal, String> {
        let bad = || "the snapshot is not one of this version of the policy".to_owned();
        let text = std::str::from_utf8(bytes).map_err(|_| bad())?;
        let fields: Vec<&str> = text.split(' ').collect();
        let ["1", start, aimed, rejected, rejections] = fields[..] else { return Err(bad()) };
        let number = |t: &str| match t {
            "-" => Ok(None),
            t => t.parse().map(Some).map_err(|_| bad()),
        };
        Ok(Goal {
            start: number(start)?,
            aimed: number(aimed)?,
            rejected: number(rejected)?,
            rejections: rejections.parse().map_err(|_| bad())?,
        })
    }
}

/// Nothing changes, and the run ends.
fn stopped(why: String) -> Plan {
    let mut plan = Plan::new();
    plan.stop(why);
    plan
}
