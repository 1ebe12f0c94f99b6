//! The policy `dynamic-rank`, for packs in training: the rule of mlx-plastic-rank's `--dynamic-rank`.
//!
//! A slice's signal is the sum of `|a| |b|` over its awake components. Measured by the strongest signal of all
//! slices, a slice at or below the share `prune` goes one step down the ladder of ranks, one at or above the share
//! `grow` one step up, never below `min_rank`, above what the slice can have, or beyond the total budget (the
//! strongest grow first).

use plastic_plugin::Value;
use plastic_plugin::prelude::*;
use plastic_plugin::records::attribute;

plastic_plugin::options! {
    /// Options of the dynamic-rank policy.
    pub struct Options {
        /// Share of the strongest signal at or above which a slice grows.
        #[range(0.0..=1.0)]
        pub grow: f64 = 0.25,
        /// Share of the strongest signal at or below which a slice shrinks.
        #[range(0.0..=1.0)]
        pub prune: f64 = 0.03,
        /// Components every slice keeps at least.
        #[range(1..=65536)]
        pub min_rank: u32 = 2,
    }
}

/// The ranks a slice can have.
const LADDER: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// The policy; it needs no memory.
#[derive(Default)]
pub struct DynamicRank {
    options: Options,
}

fn up(rank: usize, most: usize) -> usize {
    LADDER.iter().copied().find(|r| *r > rank).unwrap_or(2 * rank).min(most)
}

fn down(rank: usize, least: usize) -> usize {
    LADDER.iter().rev().copied().find(|r| *r < rank).unwrap_or(0).max(least).min(rank)
}

impl RankPolicy for DynamicRank {
    type Options = Options;

    const PHASES: &'static [&'static str] = &["train"];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        if options.prune >= options.grow {
            return Err(format!(
                "prune is {} and grow is {}; prune must be the smaller one",
                options.prune, options.grow
            ));
        }
        self.options = options;
        Ok(())
    }

    fn needs(&self) -> Vec<String> {
        vec!["spectrum:plain".into()]
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let Options { grow, prune, min_rank } = self.options;
        let signal = |s: SliceView| -> f64 {
            let values = s.spectrum("plain").iter().enumerate();
            values.filter(|(i, _)| !s.is_asleep("plain", *i)).map(|(_, v)| f64::from(*v)).sum()
        };
        let mut slices: Vec<(f64, SliceView)> =
            seen.slices().filter(|s| !s.is_frozen()).map(|s| (signal(s), s)).collect();
        if let Some((x, s)) = slices.iter().find(|(x, _)| !x.is_finite()) {
            return Err(format!("{}: its signal is {x}", s.name()));
        }
        let strongest = slices.iter().map(|(x, _)| *x).fold(0.0, f64::max);
        let mut plan = Plan::new();
        if strongest <= 0.0 {
            return Ok(plan);
        }
        // A budget in components, or else in parameters.
        let (ranks, parameters) = match attribute(&seen.attributes, "rank-budget") {
            Some(Value::Int(n)) => (*n, u64::MAX),
            _ => (i64::MAX, seen.run().budget.max(seen.awake)),
        };
        let cost = |s: SliceView, rank: usize| match rank == s.max_rank() {
            true => s.dense_parameters(),
            false => s.parameters(rank),
        };
        let mut awake: i64 = seen.slices().map(|s| s.awake() as i64).sum();
        let mut used = seen.awake;
        slices.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.id().cmp(&b.1.id())));
        // The weak first, so that the strong find room.
        for (x, s) in slices.iter().rev().filter(|(x, _)| *x <= prune * strongest) {
            let rank = down(s.awake(), min_rank as usize);
            let after = cost(*s, rank);
            if rank < s.awake() && after <= s.state().parameters {
                awake -= (s.awake() - rank) as i64;
                used = used - s.state().parameters + after;
                plan.set_rank(*s, rank, format!("{:.1} % of the strongest signal", 100.0 * x / strongest));
            }
        }
        for (x, s) in slices.iter().filter(|(x, _)| *x >= grow * strongest) {
            let rank = up(s.awake(), s.max_rank());
            let more = rank.saturating_sub(s.awake()) as i64;
            let after = (used - s.state().parameters.min(used)).saturating_add(cost(*s, rank));
            if more > 0 && awake + more <= ranks && after <= parameters {
                awake += more;
                used = after;
                plan.set_rank(*s, rank, format!("{:.1} % of the strongest signal", 100.0 * x / strongest));
            }
        }
        Ok(plan)
    }
}

export_policy!(DynamicRank, name: "dynamic-rank");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use plastic_plugin::testing::{Model, Session};

    #[test]
    fn the_ladder_has_steps_and_ends() {
        assert_eq!([up(2, 16), up(3, 16), up(8, 8), up(64, 100)], [4, 4, 8, 100]);
        assert_eq!([down(8, 2), down(3, 2), down(2, 2), down(1, 2)], [4, 2, 2, 1]);
    }

    #[test]
    fn strong_slices_grow_and_weak_ones_shrink() {
        let mut model = Model::new(1.0)
            .slice("a", 16, 16, "plain", (0..16).map(|_| 1.0))
            .slice("b", 16, 16, "plain", (0..16).map(|_| 0.01))
            .slice("c", 16, 16, "plain", (0..16).map(|_| 0.1));
        let mut plan = Plan::new();
        for slice in 0..3usize {
            plan.set_rank(slice, 4, "");
        }
        model.apply(&plan);
        let mut session = Session::<DynamicRank>::new(model, "{}").unwrap();
        let plan = session.decide().unwrap();
        session.commit(&plan);
        let ranks: Vec<u32> = session.model().states.iter().map(|s| s.awake).collect();
        assert_eq!(ranks, [8, 2, 4]);
    }

    #[test]
    fn contradictory_limits_are_refused() {
        let model = Model::new(1.0).slice("a", 4, 4, "plain", [1.0; 4]);
        let e = Session::<DynamicRank>::new(model, r#"{"grow":0.1,"prune":0.2}"#).err();
        assert!(e.is_some_and(|e| e.contains("prune must be the smaller")));
    }
}
