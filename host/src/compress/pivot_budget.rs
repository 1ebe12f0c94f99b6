//! Which ranks a budget buys where a slice of rank r costs r (m + n − r) parameters.
//!
//! One level λ for all slices, the price of a parameter, as in water-filling ([`plastic_plugin::water`]):
//!
//! ```text
//! rank of a slice = the r that minimises tail(r) + λ r (m + n − r).
//! ```
//!
//! The next component costs the less the more there are, so the minimum is looked for among all ranks; at the full
//! rank a slice costs m n and loses nothing: it is dense. Raising λ never adds parameters, so the level that meets a
//! budget is found by bisection; what it leaves goes to the best components that still fit.

use crate::model::Level;

/// Bisections of the level: enough to reach neighbouring floating-point numbers.
const BISECTIONS: usize = 200;
/// Lowest level that is tried, as a share of the largest energy.
const LOWEST: f64 = 1e-16;

/// One slice.
#[derive(Clone, Debug)]
pub struct Shaft {
    /// Rows of the slice.
    pub rows: u32,
    /// Columns of it.
    pub cols: u32,
    /// `tail[r]`: energy lost at rank r, for every rank that can be had, from 0.
    tail: Vec<f64>,
    /// Whether the slice can be dense.
    dense: bool,
}

impl Shaft {
    /// A slice [rows, cols] whose components at hand hold `energies`, the most first, and whose others hold `beyond`.
    /// With all its components at hand, or with its own weight (`dense`), it can be dense.
    pub fn new(rows: u32, cols: u32, energies: &[f64], beyond: f64, dense: bool) -> Shaft {
        let full = rows.min(cols) as usize;
        let mut tail = vec![beyond; energies.len().min(full) + 1];
        for r in (0..tail.len() - 1).rev() {
            tail[r] = tail[r + 1] + energies[r];
        }
        let dense = dense || tail.len() > full;
        // The full rank is the dense slice.
        tail.truncate(full);
        Shaft { rows, cols, tail, dense }
    }

    /// Parameters at a level.
    pub fn cost(&self, level: Level) -> u64 {
        let (m, n) = (u64::from(self.rows), u64::from(self.cols));
        match level {
            Level::Dense => m * n,
            Level::Rank(r) => u64::from(r) * (m + n - u64::from(r)),
        }
    }

    /// Energy lost at a level.
    pub fn lost(&self, level: Level) -> f64 {
        match level {
            Level::Dense => 0.0,
            Level::Rank(r) => self.tail.get(r as usize).copied().unwrap_or(0.0),
        }
    }

    /// The levels that can be had, rank 1 at least.
    fn levels(&self) -> impl Iterator<Item = Level> {
        (1..self.tail.len() as u32).map(Level::Rank).chain(self.dense.then_some(Level::Dense))
    }

    fn at(&self, price: f64) -> Level {
        let total = |l: &Level| self.lost(*l) + price * self.cost(*l) as f64;
        self.levels().min_by(|a, b| total(a).total_cmp(&total(b))).unwrap_or(Level::Rank(0))
    }

    /// The next larger level.
    fn next(&self, level: Level) -> Option<Level> {
        match level {
            Level::Rank(r) if (r as usize) + 1 < self.tail.len() => Some(Level::Rank(r + 1)),
            Level::Rank(_) => self.dense.then_some(Level::Dense),
            Level::Dense => None,
        }
    }
}

/// Parameters of all slices.
pub fn cost(slices: &[Shaft], levels: &[Level]) -> u64 {
    slices.iter().zip(levels).map(|(s, l)| s.cost(*l)).sum()
}

/// The levels that lose the least at a cost of at most `budget`; `None` where one component of each slice is more.
pub fn levels(slices: &[Shaft], budget: u64) -> Option<Vec<Level>> {
    let at = |price: f64| -> Vec<Level> { slices.iter().map(|s| s.at(price)).collect() };
    let largest = slices.iter().filter_map(|s| s.tail.first()).fold(f64::MIN_POSITIVE, |a, &b| a.max(b));
    let (mut low, mut high) = (largest * LOWEST, largest);
    for _ in 0..BISECTIONS {
        // Levels span many orders of magnitude: halve their logarithm.
        let middle = (low * high).sqrt();
        if middle <= low || middle >= high {
            break;
        }
        match cost(slices, &at(middle)) > budget {
            true => low = middle,
            false => high = middle,
        }
    }
    let cheap = at(low);
    let mut chosen = if cost(slices, &cheap) <= budget { cheap } else { at(high) };
    let mut used = cost(slices, &chosen);
    if used > budget {
        return None;
    }
    // Jumps over ranks that are never the cheapest leave some: the best next component that fits, until none does.
    loop {
        let worth = |(i, l): (usize, &Level)| {
            let next = slices[i].next(*l)?;
            let more = slices[i].cost(next) - slices[i].cost(*l);
            let gain = slices[i].lost(*l) - slices[i].lost(next);
            (used + more <= budget).then(|| (gain / more.max(1) as f64, i, next, more))
        };
        let best = chosen.iter().enumerate().filter_map(worth).max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let Some((_, i, next, more)) = best else { return Some(chosen) };
        (chosen[i], used) = (next, used + more);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_best_of_all_by_trying_them() {
        let shafts = [
            Shaft::new(3, 4, &[9.0, 4.0, 1.0], 0.0, false),
            Shaft::new(5, 3, &[20.0, 2.0, 0.5], 0.0, false),
            Shaft::new(2, 2, &[3.0, 2.5], 0.0, false),
        ];
        // Full ranks are the dense slices.
        assert_eq!(shafts[0].levels().collect::<Vec<_>>(), [Level::Rank(1), Level::Rank(2), Level::Dense]);
        assert_eq!(shafts[0].cost(Level::Rank(2)), 10);
        let least: u64 = shafts.iter().map(|s| s.cost(Level::Rank(1))).sum();
        assert!(levels(&shafts, least - 1).is_none());
        let (mut exact, mut before) = (0, f64::INFINITY);
        for budget in least..=shafts.iter().map(|s| s.cost(Level::Dense)).sum() {
            let found = levels(&shafts, budget).unwrap();
            assert!(cost(&shafts, &found) <= budget);
            let lost = |ls: &[Level]| shafts.iter().zip(ls).map(|(s, l)| s.lost(*l)).sum::<f64>();
            let mut best = f64::INFINITY;
            for a in shafts[0].levels() {
                for b in shafts[1].levels() {
                    for c in shafts[2].levels() {
                        if cost(&shafts, &[a, b, c]) <= budget {
                            best = best.min(lost(&[a, b, c]));
                        }
                    }
                }
            }
            // Where pieces do not fit, one price for all misses the best, by less than the smallest piece holds.
            assert!(lost(&found) - best < 2.0, "{budget}: {found:?}");
            assert!(lost(&found) <= before, "{budget}: more loses no more");
            exact += usize::from(lost(&found) == best);
            before = lost(&found);
        }
        assert!(exact >= 13, "{exact} of 16 budgets");
    }

    #[test]
    fn what_is_not_stored_is_not_chosen() {
        let short = Shaft::new(4, 4, &[5.0], 3.0, false);
        assert_eq!(short.levels().collect::<Vec<_>>(), [Level::Rank(1)]);
        assert_eq!(levels(std::slice::from_ref(&short), 1000).unwrap(), [Level::Rank(1)]);
        assert_eq!((short.lost(Level::Rank(1)), short.lost(Level::Rank(0))), (3.0, 8.0));
        let own = Shaft::new(4, 4, &[5.0], 3.0, true);
        assert_eq!(levels(&[own], 16).unwrap(), [Level::Dense]);
    }
}
