//! The policy `energy`: over all slices together, keep the components that hold the most energy per
//! parameter, as few as hold the wanted share of the energy, and no more than the budget allows.
//!
//! The energy of a component is the square of its singular value in the chosen metric. In `fisher`
//! (singular values of G^½ W C^½, with the covariances C of the inputs and G of the output
//! gradients) half the energy that sleeps predicts the rise of the loss in nats per token, so
//! energies of different slices compare; that is why one level for all slices works there. In
//! `plain` (singular values of W itself) they do not compare, and the model is ruined: it is here so
//! that this can be seen.
//!
//! The way to the goal is spread over the steps of the run. When an evaluator rejects a step, the
//! next one aims halfway between the model as it is and what was rejected.

use plastic_plugin::goal::Goal;
use plastic_plugin::keep::Keep;
use plastic_plugin::prelude::*;
use plastic_plugin::spectrum::Spectrum;
use plastic_plugin::water::{self, Basin};

plastic_plugin::options! {
    /// Options of the energy policy.
    pub struct Options {
        /// Metric the energy is counted in: fisher (predicts the loss), input, or plain.
        pub metric: Spectrum = Spectrum::Fisher,
        /// Share of the energy of all slices together to hold, if the budget allows; 1 leaves it to the budget.
        #[range(0.0..=1.0)]
        pub energy: f64 = 0.99999,
        /// Spread the way to the goal over the steps of the run, instead of taking it at once.
        pub ramp: bool = true,
        /// Components every slice keeps at least.
        #[range(1..=65536)]
        pub min_rank: u32 = 1,
    }
}

/// The policy and what it remembers from step to step.
#[derive(Default)]
pub struct Energy {
    options: Options,
    goal: Goal,
}

impl RankPolicy for Energy {
    type Options = Options;

    const PHASES: &'static [&'static str] = &["compress", "train"];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn needs(&self) -> Vec<String> {
        vec![format!("spectrum:{}", self.options.metric)]
    }

    fn start(&mut self, _: &Run, _: &[Slice]) -> Result<(), String> {
        self.goal = Goal::default();
        Ok(())
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        if let Some(why) = self.goal.learn(seen) {
            return Ok(hold(why));
        }
        let slices: Vec<SliceView> = seen.slices().filter(|s| !s.is_frozen()).collect();
        let basins = self.basins(&slices)?;
        let min_rank = self.options.min_rank as usize;
        let frozen: u64 = seen.slices().filter(|s| s.is_frozen()).map(|s| s.state().parameters).sum();

        // The fewest parameters that hold the energy, or as many as the budget leaves.
        let enough = water::hold(&basins, self.options.energy, min_rank);
        let end = seen.run().budget.min(frozen + water::parameters(&basins, &enough));
        let (aim, is_last) = match self.goal.aim(seen, end, self.options.ramp) {
            Ok(aim) => (aim, aim == end),
            Err(why) => return Ok(hold(why)),
        };
        let keep = match is_last && end < seen.run().budget {
            true => enough,
            false => water::fill(&basins, aim.saturating_sub(frozen), min_rank).ok_or_else(|| {
                format!(
                    "{aim} parameters are too few for {min_rank} components (min_rank) in every slice; raise the budget"
                )
            })?,
        };

        let mut plan = self.plan(&slices, &basins, &keep);
        if self.options.metric == Spectrum::Fisher {
            let asleep: f64 = self.asleep_in_frozen(seen)?;
            plan.predict(0.5 * (water::lost(&basins, &keep) + asleep));
        }
        if plan.actions.is_empty() && is_last {
            let share = 100.0 * seen.awake as f64 / seen.run().parameters.max(1) as f64;
            plan.stop(match end < seen.run().budget {
                true => format!("{share:.2} % of the parameters hold the wanted energy"),
                false => format!("budget reached: {share:.2} % of the parameters are awake"),
            });
        }
        Ok(plan)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.goal.to_bytes()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.goal = Goal::from_bytes(state)?;
        Ok(())
    }
}

impl Energy {
    /// The slices as the water-filling sees them.
    fn basins(&self, slices: &[SliceView]) -> Result<Vec<Basin>, String> {
        slices.iter().map(|s| self.basin(*s)).collect()
    }

    fn basin(&self, slice: SliceView) -> Result<Basin, String> {
        Basin::of(slice, self.options.metric.as_str())
    }

    /// An action for every slice that changes.
    fn plan(&self, slices: &[SliceView], basins: &[Basin], keep: &[Keep]) -> Plan {
        let mut plan = Plan::new();
        for ((slice, basin), keep) in slices.iter().zip(basins).zip(keep) {
            match *keep {
                Keep::Dense if slice.is_dense() => {}
                Keep::Dense => {
                    plan.dense(*slice, "factors that hold enough of it would save too little");
                }
                Keep::Rank(rank) if !slice.is_dense() && slice.awake() == rank => {}
                Keep::Rank(rank) => {
                    let held = 100.0 * (1.0 - basin.lost(*keep) / basin.energy().max(f64::MIN_POSITIVE));
                    plan.set_rank(
                        *slice,
                        rank,
                        format!("{held:.1} % of this slice's energy in {rank} of {}", basin.max_rank()),
                    );
                }
            }
        }
        plan
    }

    /// Energy that sleeps in slices this policy may not touch.
    fn asleep_in_frozen(&self, seen: &Observation) -> Result<f64, String> {
        let factored = seen.slices().filter(|s| s.is_frozen() && !s.is_dense());
        factored.map(|s| Ok(self.basin(s)?.lost(Keep::Rank(s.awake())))).sum()
    }
}

/// Nothing changes, and the run ends.
fn hold(why: String) -> Plan {
    let mut plan = Plan::new();
    plan.stop(why);
    plan
}

export_policy!(Energy, name: "energy");

#[cfg(test)]
mod tests;
