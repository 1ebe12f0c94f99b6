//! What becomes of a slice, what that costs and loses, and how it gets into a plan.

use crate::observation::{Observation, SliceView};
use crate::plan::{Change, Plan};
use crate::spectrum;

/// What becomes of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The base's own weights.
    Dense,
    /// Factors with this many components.
    Rank(usize),
}

impl Keep {
    /// What a slice is now.
    pub fn now(slice: SliceView<'_>) -> Keep {
        if slice.is_dense() { Keep::Dense } else { Keep::Rank(slice.awake()) }
    }

    /// Factors of this rank, or the dense slice where it may be and costs no more.
    pub fn cheapest(slice: SliceView<'_>, rank: usize) -> Keep {
        let may_be_dense = slice.is_dense() || slice.state().dense_allowed;
        match may_be_dense && !slice.saves(rank) {
            true => Keep::Dense,
            false => Keep::Rank(rank.min(slice.max_rank())),
        }
    }

    /// Parameters awake.
    pub fn parameters(self, slice: SliceView<'_>) -> u64 {
        match self {
            Keep::Dense => slice.dense_parameters(),
            Keep::Rank(rank) => slice.parameters(rank),
        }
    }
}

/// The components whose factors cost as much as the dense slice: where a dense slice stands on the
/// way down.
pub fn break_even(slice: SliceView<'_>) -> usize {
    let rank = slice.dense_parameters() / slice.parameters(1).max(1);
    slice.max_rank().min(rank as usize)
}

/// The components awake; of a dense slice, as many as cost what it costs.
pub fn rank_now(slice: SliceView<'_>) -> usize {
    if slice.is_dense() { break_even(slice) } else { slice.awake() }
}

/// What a plan makes of a slice, as far as ranks go; a slice it does not name stays as it is.
pub fn proposed(plan: &Plan, slice: SliceView<'_>) -> Keep {
    let action = plan.actions.iter().rev().find(|a| a.slice == slice.into());
    let now = slice.awake();
    let rank = match action.map(|a| &a.change) {
        Some(Change::Dense) => return Keep::Dense,
        Some(Change::SetRank(rank)) => *rank as usize,
        Some(Change::SleepN(n)) => now.saturating_sub(*n as usize),
        Some(Change::WakeN(n)) => now + *n as usize,
        Some(Change::Sleep(list)) => now.saturating_sub(list.len()),
        Some(Change::Wake(list)) => now + list.len(),
        Some(Change::Freeze | Change::Thaw) | None => return Keep::now(slice),
    };
    Keep::Rank(rank.min(slice.max_rank()))
}

/// The slices that may change, and the parameters awake in those that may not.
pub fn open(seen: &Observation) -> (Vec<SliceView<'_>>, u64) {
    let (frozen, open): (Vec<_>, Vec<_>) = seen.slices().partition(|s| s.is_frozen());
    (open, frozen.iter().map(|s| s.state().parameters).sum())
}

/// Adds to a plan what makes a slice so; nothing where it is so already.
pub fn put(plan: &mut Plan, slice: SliceView<'_>, keep: Keep, why: &str) {
    match keep {
        _ if keep == Keep::now(slice) => {}
        Keep::Dense => {
            plan.dense(slice, why);
        }
        Keep::Rank(rank) => {
            plan.set_rank(slice, rank, why);
        }
    }
}

/// Why a slice keeps what it keeps, for people: the energy held and the rule behind it.
pub fn reason(slice: SliceView<'_>, values: &[f32], keep: Keep, rule: String) -> String {
    match keep {
        Keep::Dense => format!("factors would save nothing: {rule}"),
        Keep::Rank(rank) => {
            let held = spectrum::held_percent(values, rank);
            format!("{held:.1} % of this slice's energy in {rank} of {}: {rule}", slice.max_rank())
        }
    }
}

/// The rise of the loss over the base, in nats per token, that the fisher spectra predict: half the
/// energy of what sleeps. `keep` is what becomes of the slices that are not frozen, in order.
///
/// # Errors
/// As [`spectrum::checked`].
pub fn predicted(seen: &Observation, keep: &[Keep]) -> Result<f64, String> {
    let mut keep = keep.iter();
    let mut energy = 0.0;
    for slice in seen.slices() {
        match if slice.is_frozen() { Keep::now(slice) } else { *keep.next().unwrap_or(&Keep::now(slice)) } {
            Keep::Dense => {}
            Keep::Rank(_) if slice.is_frozen() => {
                let values = spectrum::checked(slice, "fisher")?.iter().enumerate();
                energy += values
                    .filter(|(i, _)| slice.is_asleep("fisher", *i))
                    .map(|(_, s)| spectrum::square(*s))
                    .sum::<f64>();
            }
            Keep::Rank(rank) => energy += spectrum::tail(spectrum::checked(slice, "fisher")?, rank),
        }
    }
    Ok(0.5 * energy)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::level;
    use crate::testing::Model;
    use crate::water::Basin;
    use std::rc::Rc;

    /// 4 × 4, frozen at rank 2; 4 × 6, dense.
    fn seen() -> Observation {
        let mut model = Model::new(1.0).slice("a", 4, 4, "fisher", [4.0, 3.0, 2.0, 1.0]).slice(
            "b",
            4,
            6,
            "fisher",
            [5.0, 2.0, 1.0, 0.0],
        );
        let mut plan = Plan::new();
        plan.set_rank(0usize, 2, "");
        model.apply(&plan);
        model.states[0].frozen = true;
        let mut seen = model.observe(&["spectrum:fisher".into()]);
        (seen.run, seen.slices) = (Rc::new(model.run.clone()), model.slices.clone().into());
        seen.needs = vec!["spectrum:fisher".to_owned()].into();
        seen
    }

    #[test]
    fn predictions_count_frozen_slices() {
        let seen = seen();
        let (slices, fixed) = open(&seen);
        assert_eq!((slices.len(), slices[0].name(), fixed), (1, "b", 16));
        assert_eq!(predicted(&seen, &[Keep::Dense]).unwrap(), 0.5 * 5.0);
        assert_eq!(predicted(&seen, &[Keep::Rank(1)]).unwrap(), 0.5 * (5.0 + 5.0));
    }

    #[test]
    fn the_cheaper_of_factors_and_dense() {
        let seen = seen();
        let slice = seen.slice(1).unwrap();
        assert_eq!((Keep::cheapest(slice, 2), Keep::cheapest(slice, 3)), (Keep::Rank(2), Keep::Dense));
        assert_eq!((break_even(slice), rank_now(slice), rank_now(seen.slice(0).unwrap())), (2, 2, 2));
        assert_eq!((Keep::Rank(2).parameters(slice), Keep::Dense.parameters(slice)), (20, 24));
        let mut plan = Plan::new();
        put(&mut plan, slice, Keep::Dense, "as it is");
        assert!(plan.actions.is_empty());
        put(&mut plan, slice, Keep::Rank(1), "smaller");
        assert_eq!(plan.actions.len(), 1);
    }

    #[test]
    fn the_highest_level_a_budget_suffices_for() {
        let seen = seen();
        let (slices, _) = open(&seen);
        let rule = |_: usize, level: f64| level.ceil() as usize;
        let (level, keep) = level::fill(&slices, 23, 1, rule).unwrap();
        assert!((level - 2.0).abs() < 1e-9, "{level}");
        assert_eq!(keep, [Keep::Rank(2)]);
        assert_eq!(level::fill(&slices, 24, 1, rule).unwrap().1, [Keep::Dense]);
        assert!(level::fill(&slices, 9, 1, rule).is_none());
        assert_eq!(level::parameters(&slices, &level::at(&slices, 2, 0.0, rule)), 20);
    }

    #[test]
    fn blocks_hold_what_their_components_hold() {
        let blocks = Basin::new(&[4.0, 3.0, 2.0], 4, 6, true).in_blocks(2);
        assert_eq!((blocks.max_rank(), blocks.energy()), (2, 29.0));
        assert_eq!((blocks.lost(Keep::Rank(1)), blocks.parameters(Keep::Rank(1))), (4.0, 20));
    }
}
