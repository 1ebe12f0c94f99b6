//! Water-filling: which components of many slices to keep so that the least energy is lost.
//!
//! A component of a slice W (m × n) costs m + n parameters and holds the energy s². To lose the least
//! energy at a given number of parameters, keep a component iff it holds at least λ per parameter,
//!
//! ```text
//! s² / (m + n) >= λ,
//! ```
//!
//! with one level λ for all slices: the Lagrange multiplier of the budget. A slice that keeps r
//! components loses tail(r), the energy of the others, and costs r (m + n); left dense it loses
//! nothing and costs m n. It is cheaper dense iff
//!
//! ```text
//! λ m n <= tail(r) + λ r (m + n).
//! ```
//!
//! Raising λ never adds parameters, so the level that meets a budget is found by bisection.

use crate::keep::Keep;
use crate::observation::SliceView;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Bisections of the level: enough to reach neighbouring floating-point numbers.
const BISECTIONS: usize = 200;
/// Lowest level that is tried, as a share of the largest energy.
const LOWEST: f64 = 1e-16;

/// One slice: the energies of its components and what they cost.
pub struct Basin {
    /// s² of every component, largest first.
    energies: Vec<f64>,
    /// `tail[r]`: energy lost when r components are kept.
    tail: Vec<f64>,
    /// Parameters of one component, m + n.
    component: u64,
    /// Parameters of the dense slice, m n.
    dense: u64,
    may_be_dense: bool,
}

impl Basin {
    /// A slice `rows` × `cols` with its singular values, largest first.
    pub fn new(values: &[f32], rows: usize, cols: usize, may_be_dense: bool) -> Basin {
        let energies: Vec<f64> = values.iter().map(|&s| f64::from(s) * f64::from(s)).collect();
        let dense = rows as u64 * cols as u64;
        Basin { may_be_dense, ..Basin::priced(energies, 0.0, (rows + cols) as u64, Some(dense)) }
    }

    /// A slice whose components hold these energies, largest first, and cost `component` each, whatever is counted;
    /// `beyond` is lost with all of them awake. `dense` is the cost of the slice's own weight, where it may be had.
    pub fn priced(energies: Vec<f64>, beyond: f64, component: u64, dense: Option<u64>) -> Basin {
        let mut tail = vec![beyond; energies.len() + 1];
        for i in (0..energies.len()).rev() {
            tail[i] = energies[i] + tail[i + 1];
        }
        Basin { energies, tail, component, dense: dense.unwrap_or(0), may_be_dense: dense.is_some() }
    }

    /// A slice as it is observed, in a metric.
    ///
    /// # Errors
    /// As [`spectrum::checked`](crate::spectrum::checked).
    pub fn of(slice: SliceView<'_>, metric: &str) -> Result<Basin, String> {
        let values = crate::spectrum::checked(slice, metric)?;
        Ok(Basin::new(values, slice.rows(), slice.cols(), slice.is_dense() || slice.state().dense_allowed))
    }

    /// The same slice, whose components come in blocks of `size` only: from here on a rank counts
    /// blocks. The last block may be an incomplete one and counts as a whole.
    pub fn in_blocks(&self, size: usize) -> Basin {
        let size = size.max(1);
        let energies: Vec<f64> = self.energies.chunks(size).map(|block| block.iter().sum()).collect();
        let tail = (0..=energies.len()).map(|blocks| self.tail[(blocks * size).min(self.max_rank())]).collect();
        Basin { energies, tail, component: self.component * size as u64, ..*self }
    }

    /// Parameters of a decision.
    pub fn parameters(&self, keep: Keep) -> u64 {
        match keep {
            Keep::Dense => self.dense,
            Keep::Rank(rank) => self.component * rank as u64,
        }
    }

    /// Energy a decision loses.
    pub fn lost(&self, keep: Keep) -> f64 {
        match keep {
            Keep::Dense => 0.0,
            Keep::Rank(rank) => self.tail.get(rank).copied().unwrap_or(0.0),
        }
    }

    /// Energy of all components.
    pub fn energy(&self) -> f64 {
        self.tail[0]
    }

    /// The number of components.
    pub fn max_rank(&self) -> usize {
        self.energies.len()
    }

    /// Whether the base's own weights may be had again.
    pub fn may_be_dense(&self) -> bool {
        self.may_be_dense
    }

    /// What the slice keeps at a level.
    fn at(&self, level: f64, min_rank: usize) -> Keep {
        let cost = self.component as f64;
        let rank = self.energies.partition_point(|e| e / cost >= level).max(min_rank).min(self.max_rank());
        let (dense, factored) = (level * self.dense as f64, self.tail[rank] + level * rank as f64 * cost);
        let is_smaller = self.component * (rank as u64) < self.dense;
        match self.may_be_dense && (!is_smaller || dense <= factored) {
            true => Keep::Dense,
            false => Keep::Rank(rank),
        }
    }
}

/// Parameters of all slices.
pub fn parameters(basins: &[Basin], keep: &[Keep]) -> u64 {
    basins.iter().zip(keep).map(|(b, k)| b.parameters(*k)).sum()
}

/// Energy lost in all slices.
pub fn lost(basins: &[Basin], keep: &[Keep]) -> f64 {
    basins.iter().zip(keep).map(|(b, k)| b.lost(*k)).sum()
}

/// The most energy that `budget` parameters hold; each slice keeps `min_rank` components at least.
/// None where even that is more than the budget.
pub fn fill(basins: &[Basin], budget: u64, min_rank: usize) -> Option<Vec<Keep>> {
    let fits = |keep: &[Keep]| parameters(basins, keep) <= budget;
    let (_, mut keep) = bisect(basins, min_rank, fits);
    if !fits(&keep) {
        return None;
    }
    spend_slack(basins, &mut keep, budget);
    Some(keep)
}

/// The fewest parameters that hold `share` of the energy of all slices together.
pub fn hold(basins: &[Basin], share: f64, min_rank: usize) -> Vec<Keep> {
    let may_lose = (1.0 - share) * basins.iter().map(Basin::energy).sum::<f64>();
    bisect(basins, min_rank, |keep| lost(basins, keep) > may_lose).0
}

/// Bisects the level. `is_above` is false at low levels (much is kept) and true at high ones; the
/// answer is what is kept just below and just above the turn.
fn bisect(basins: &[Basin], min_rank: usize, is_above: impl Fn(&[Keep]) -> bool) -> (Vec<Keep>, Vec<Keep>) {
    let at = |level: f64| -> Vec<Keep> { basins.iter().map(|b| b.at(level, min_rank)).collect() };
    let largest = basins.iter().filter_map(|b| b.energies.first()).fold(f64::MIN_POSITIVE, |a, &b| a.max(b));
    let (mut low, mut high) = (largest * LOWEST, largest);
    for _ in 0..BISECTIONS {
        // Levels span many orders of magnitude: halve their logarithm.
        let middle = (low * high).sqrt();
        if middle <= low || middle >= high {
            break;
        }
        match is_above(&at(middle)) {
            true => high = middle,
            false => low = middle,
        }
    }
    (at(low), at(high))
}

/// The jumps between dense and factored leave some budget unused: spend it on the best next
/// components that fit.
fn spend_slack(basins: &[Basin], keep: &mut [Keep], budget: u64) {
    let mut used = parameters(basins, keep);
    let next = |slice: usize, rank: usize| {
        let gain = *basins[slice].energies.get(rank)?;
        Some(Next { gain: gain / basins[slice].component as f64, slice })
    };
    let mut queue: BinaryHeap<Next> = BinaryHeap::new();
    for (slice, k) in keep.iter().enumerate() {
        if let Keep::Rank(rank) = *k {
            queue.extend(next(slice, rank));
        }
    }
    while let Some(Next { slice, .. }) = queue.pop() {
        let Keep::Rank(rank) = keep[slice] else { continue };
        let basin = &basins[slice];
        let is_smaller = (rank as u64 + 1) * basin.component < basin.dense;
        if used + basin.component > budget || (basin.may_be_dense && !is_smaller) {
            continue;
        }
        used += basin.component;
        keep[slice] = Keep::Rank(rank + 1);
        queue.extend(next(slice, rank + 1));
    }
}

/// The next component of a slice; the largest gain per parameter comes first, then the first slice.
struct Next {
    gain: f64,
    slice: usize,
}

impl Ord for Next {
    fn cmp(&self, other: &Next) -> Ordering {
        self.gain.total_cmp(&other.gain).then(other.slice.cmp(&self.slice))
    }
}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Next) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Next {
    fn eq(&self, other: &Next) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Next {}
