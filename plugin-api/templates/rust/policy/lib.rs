//! A rank policy: every slice keeps the same share of its components.

use plastic_plugin::prelude::*;

plastic_plugin::options! {
    /// Options of this policy.
    pub struct Options {
        /// Share of its components that a slice keeps.
        #[range(0.0..=1.0)]
        pub keep: f64 = 0.5,
    }
}

/// The policy.
#[derive(Default)]
pub struct @Type@ {
    options: Options,
}

impl RankPolicy for @Type@ {
    type Options = Options;

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    /// Statistics to compute, such as `spectrum:fisher`; this policy looks at none.
    fn needs(&self) -> Vec<String> {
        Vec::new()
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let mut plan = Plan::new();
        for slice in seen.slices() {
            let rank = (self.options.keep * slice.max_rank() as f64) as usize;
            // A frozen slice stays as it is; factors of a high rank are larger than the slice itself.
            if !slice.is_frozen() && slice.saves(rank) && rank < slice.awake() {
                plan.set_rank(slice, rank, format!("{rank} of {}", slice.max_rank()));
            }
        }
        Ok(plan)
    }
}

export_policy!(@Type@);

#[cfg(test)]
mod tests {
    use super::*;
    use plastic_plugin::testing::{Model, Session};

    #[test]
    fn slices_keep_their_share() {
        let falling = (1..=48).map(|i| 1.0 / i as f32);
        let model = Model::new(0.5).slice("q_proj", 64, 48, "fisher", falling);
        let mut session = Session::<@Type@>::new(model, r#"{"keep": 0.25}"#).unwrap();
        let plan = session.decide().unwrap();
        session.commit(&plan);
        assert_eq!(session.model().states[0].awake, 12);
    }
}
