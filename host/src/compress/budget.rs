//! Which components an awake budget wakes.
//!
//! Costs are counted in parameters: a component of a slice [rows, cols] costs rows + cols, its dense weight rows · cols.
//! Where components repair a coarser weight, that weight counts with its bytes, two for a parameter (float16), and so
//! do they. One level decides for all slices (reverse water-filling, [`plastic_plugin::water`]), so a smaller budget
//! never wakes what a larger one leaves asleep, but for slices that change between dense and factored.

use crate::model::Level;
use plastic_plugin::keep::Keep;
use plastic_plugin::water::{self, Basin};

/// One slice of an elastic checkpoint.
#[derive(Clone, Debug)]
pub struct Rungs {
    /// Energy of each stored component, the most important first.
    pub energies: Vec<f64>,
    /// Energy that is lost with all of them awake.
    pub beyond: f64,
    /// Cost of one component.
    pub component: u64,
    /// Cost of the dense weight, where it is stored.
    pub dense: Option<u64>,
    /// Cost of what is always awake: the coarse weight that components repair.
    pub fixed: u64,
}

impl Rungs {
    fn basin(&self) -> Basin {
        Basin::priced(self.energies.clone(), self.beyond, self.component, self.dense)
    }

    /// Whether nothing of it can sleep: the dense weight is all that is stored.
    fn is_dense_alone(&self) -> bool {
        self.energies.is_empty() && self.dense.is_some()
    }

    /// Cost of the least that runs: one component, or what is always awake.
    pub fn least(&self) -> u64 {
        match self.dense {
            Some(dense) if self.is_dense_alone() => dense,
            _ if self.fixed > 0 => self.fixed,
            _ => self.component,
        }
    }

    /// Cost of a level.
    pub fn cost(&self, level: Level) -> u64 {
        self.fixed
            + match level {
                Level::Dense => self.dense.unwrap_or(0),
                Level::Rank(r) => u64::from(r) * self.component,
            }
    }

    /// Energy lost at a level.
    pub fn lost(&self, level: Level) -> f64 {
        match level {
            Level::Dense => 0.0,
            Level::Rank(r) => self.beyond + self.energies.iter().skip(r as usize).sum::<f64>(),
        }
    }
}

/// The levels that lose the least energy at a cost of at most `budget`, slice by slice; every slice keeps one
/// component at least, and one that is stored dense alone stays dense. `None` where even that costs more.
pub fn levels(slices: &[Rungs], budget: u64) -> Option<Vec<Level>> {
    let fixed: u64 = slices.iter().map(|s| if s.is_dense_alone() { s.least() } else { s.fixed }).sum();
    let basins: Vec<Basin> = slices.iter().filter(|s| !s.is_dense_alone()).map(Rungs::basin).collect();
    // What repairs may sleep altogether.
    let least = usize::from(slices.iter().all(|s| s.fixed == 0));
    let kept = water::fill(&basins, budget.checked_sub(fixed)?, least)?;
    let level = |k: Keep| match k {
        Keep::Dense => Level::Dense,
        Keep::Rank(r) => Level::Rank(r as u32),
    };
    let mut kept = kept.into_iter().map(level);
    slices.iter().map(|s| if s.is_dense_alone() { Some(Level::Dense) } else { kept.next() }).collect()
}

/// How many components of each slice must be stored so that every budget from `floor` to `budget` finds what it
/// wakes: for each slice the largest rank below any of them.
pub fn reach(slices: &[Rungs], floor: u64, budget: u64) -> Vec<u32> {
    let mut most = vec![0; slices.len()];
    const STEPS: u64 = 64;
    for step in 0..=STEPS {
        let between = floor + (budget - floor.min(budget)) * step / STEPS;
        for (m, level) in most.iter_mut().zip(levels(slices, between).into_iter().flatten()) {
            if let Level::Rank(r) = level {
                *m = (*m).max(r);
            }
        }
    }
    most
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn slice(energies: &[f64], dense: bool) -> Rungs {
        Rungs { energies: energies.to_vec(), beyond: 0.0, component: 10, dense: dense.then_some(24), fixed: 0 }
    }

    #[test]
    fn components_that_are_worth_more_wake_first() {
        let two = [slice(&[9.0, 1.0], false), slice(&[8.0, 6.0], false)];
        let at = |budget| levels(&two, budget).unwrap();
        assert_eq!(at(20), [Level::Rank(1), Level::Rank(1)]);
        assert_eq!(at(30), [Level::Rank(1), Level::Rank(2)]);
        assert_eq!(at(40), [Level::Rank(2), Level::Rank(2)]);
        assert!(levels(&two, 19).is_none());
    }

    #[test]
    fn a_dense_slice_costs_what_it_costs() {
        let two = [slice(&[9.0, 8.0, 7.0], true), slice(&[9.0, 1.0, 0.1], false)];
        let l = levels(&two, 34).unwrap();
        assert_eq!(l, [Level::Dense, Level::Rank(1)]);
        assert_eq!(two.iter().zip(&l).map(|(s, l)| s.cost(*l)).sum::<u64>(), 34);
        assert_eq!(two[0].lost(Level::Dense), 0.0);
        assert!((two[1].lost(Level::Rank(1)) - 1.1).abs() < 1e-12);
    }

    #[test]
    fn what_has_no_components_stays_dense_and_counts() {
        let two = [slice(&[], true), slice(&[8.0, 6.0], false)];
        assert_eq!(levels(&two, 34).unwrap(), [Level::Dense, Level::Rank(1)]);
        assert_eq!(levels(&two, 44).unwrap(), [Level::Dense, Level::Rank(2)]);
        assert_eq!(two.iter().map(Rungs::least).sum::<u64>(), 34);
        assert!(levels(&two, 33).is_none());
    }

    #[test]
    fn what_is_stored_serves_every_smaller_budget() {
        let two = [slice(&[9.0, 8.0, 7.0], true), slice(&[9.0, 1.0, 0.1], false)];
        let stored = reach(&two, 20, 44);
        for budget in 20..=44 {
            for (l, most) in levels(&two, budget).unwrap().iter().zip(&stored) {
                assert!(matches!(l, Level::Dense) || matches!(l, Level::Rank(r) if r <= most), "{budget}");
            }
        }
    }

    #[test]
    fn repairs_may_all_sleep_and_their_coarse_weight_counts() {
        let one = [Rungs { energies: vec![2.0, 1.0], beyond: 0.5, component: 10, dense: None, fixed: 100 }];
        assert_eq!(levels(&one, 100).unwrap(), [Level::Rank(0)]);
        assert_eq!(levels(&one, 115).unwrap(), [Level::Rank(1)]);
        assert_eq!(one[0].cost(Level::Rank(1)), 110);
        assert!(levels(&one, 99).is_none());
    }
}
