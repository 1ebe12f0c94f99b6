//! One level for all slices: a rule says how many components a slice keeps at a level, and the level
//! is raised until the budget is spent.
//!
//! The rule must not keep fewer components at a higher level. Where factors would cost no less, a
//! slice stays dense, so that one step of the level costs less than one component more: what the
//! budget leaves unspent is small.

use crate::keep::Keep;
use crate::observation::SliceView;

/// Bisections of the level: enough to reach neighbouring floating-point numbers.
const BISECTIONS: usize = 200;
/// Levels that are tried, from next to nothing to more than anything.
const LEVELS: (f64, f64) = (1e-12, 1e12);

/// What the slices keep at a level; `min_rank` components at least.
pub fn at(slices: &[SliceView], min_rank: usize, level: f64, rule: impl Fn(usize, f64) -> usize) -> Vec<Keep> {
    let one = |(i, s): (usize, &SliceView)| Keep::cheapest(*s, rule(i, level).max(min_rank).min(s.max_rank()));
    slices.iter().enumerate().map(one).collect()
}

/// Parameters of all slices.
pub fn parameters(slices: &[SliceView], keep: &[Keep]) -> u64 {
    slices.iter().zip(keep).map(|(s, k)| k.parameters(*s)).sum()
}

/// The highest level that `budget` parameters suffice for, and what the slices keep there. `rule`
/// is given the place of a slice in `slices`, and the level. None where even the lowest level, or
/// `min_rank`, costs more.
pub fn fill(
    slices: &[SliceView],
    budget: u64,
    min_rank: usize,
    rule: impl Fn(usize, f64) -> usize,
) -> Option<(f64, Vec<Keep>)> {
    let fits = |level: f64| parameters(slices, &at(slices, min_rank, level, &rule)) <= budget;
    let (mut low, mut high) = LEVELS;
    if !fits(low) {
        return None;
    }
    if fits(high) {
        return Some((high, at(slices, min_rank, high, &rule)));
    }
    for _ in 0..BISECTIONS {
        // Levels span many orders of magnitude: halve their logarithm.
        let middle = (low * high).sqrt();
        if middle <= low || middle >= high {
            break;
        }
        if fits(middle) { low = middle } else { high = middle }
    }
    Some((low, at(slices, min_rank, low, &rule)))
}
