//! The policy `exchange`, for packs in training: at every decision some components move from where they matter
//! least to where the next one promises most; the total rank stays what the budget says.
//!
//! What a component matters is the moving average of |a · ∂L / ∂a|, which is what the loss changes to first order
//! while it sleeps (Molchanov et al. 2019 prune by it, AdaLoRA by a smoothed form, Zhang et al. 2023). What the next
//! component of a slice promises is not known before it is there; components of a slice fall off, so the guess is
//! what its weakest awake one matters, and a little less for each one that wakes at once:
//!
//! ```text
//! promise of the j-th new one of a slice of rank r  =  (weakest of the slice) * r / (r + j)
//! ```
//!
//! The weakest awake component of all slices sleeps and the best promise wakes, as long as the promise is larger by
//! the factor `gain`, and at most `share` of all components. The share falls to nothing over the first `until` of the
//! training, so that what is awake at the end has time to learn.

use plastic_plugin::Value;
use plastic_plugin::prelude::*;
use plastic_plugin::records::attribute;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

plastic_plugin::options! {
    /// Options of the exchange policy.
    pub struct Options {
        /// Share of all components that may move at the first decision.
        #[range(0.0..=1.0)]
        pub share: f64 = 0.1,
        /// Share of the training after which nothing moves any more.
        #[range(0.0..=1.0)]
        pub until: f64 = 0.6,
        /// How much larger a promise must be than what sleeps for it.
        #[range(1.0..=1000.0)]
        pub gain: f64 = 1.5,
        /// Components every slice keeps at least.
        #[range(0..=65536)]
        pub min_rank: u32 = 1,
    }
}

const ORDER: &str = "spectrum:plain";
const WORTH: &str = "importance:plain";

/// The policy; it needs no memory.
#[derive(Default)]
pub struct Exchange {
    options: Options,
}

/// A slice while a plan is made.
struct Place<'a> {
    slice: SliceView<'a>,
    /// What its awake components matter, weakest last, each with its number.
    awake: Vec<(f64, usize)>,
    /// Those that go to sleep.
    sleeps: Vec<usize>,
    /// How many wake.
    wakes: usize,
}

impl Place<'_> {
    fn of<'a>(slice: SliceView<'a>) -> Result<Place<'a>, String> {
        let worth = slice.statistic(WORTH);
        if worth.len() != slice.max_rank() {
            return Err(format!("{}: the host sent no {WORTH}", slice.name()));
        }
        if let Some(bad) = worth.iter().find(|w| !w.is_finite() || **w < 0.0) {
            return Err(format!("{}: its {WORTH} holds {bad}", slice.name()));
        }
        let mut awake: Vec<(f64, usize)> = worth
            .iter()
            .enumerate()
            .filter(|(i, _)| !slice.is_asleep("plain", *i))
            .map(|(i, w)| (f64::from(*w), i))
            .collect();
        awake.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(Place { slice, awake, sleeps: Vec::new(), wakes: 0 })
    }

    fn rank(&self) -> usize {
        self.awake.len() + self.wakes
    }

    fn parameters(&self) -> u64 {
        match self.rank() {
            _ if self.sleeps.is_empty() && self.wakes == 0 => self.slice.state().parameters,
            rank if rank == self.slice.max_rank() => self.slice.dense_parameters(),
            rank => self.slice.parameters(rank),
        }
    }

    /// What its weakest awake component matters, where one may sleep.
    fn weakest(&self, min_rank: usize) -> Option<f64> {
        // A slice does one thing at a time.
        let may = self.wakes == 0 && self.awake.len() > min_rank && !self.slice.is_frozen();
        self.awake.last().filter(|_| may).map(|(w, _)| *w)
    }

    /// What its next component promises, where there is one.
    fn promise(&self) -> Option<f64> {
        let rank = self.rank();
        let may = self.sleeps.is_empty() && rank < self.slice.max_rank() && !self.slice.is_frozen();
        let least = self.awake.last().map_or(0.0, |(w, _)| *w);
        may.then(|| least * self.awake.len() as f64 / (rank + 1) as f64)
    }
}

impl RankPolicy for Exchange {
    type Options = Options;

    const PHASES: &'static [&'static str] = &["train"];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn needs(&self) -> Vec<String> {
        vec![ORDER.into(), WORTH.into()]
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let places = seen.slices().map(Place::of).collect::<Result<Vec<_>, _>>()?;
        let count = |name: &str| match attribute(&seen.attributes, name) {
            Some(Value::Int(n)) if *n >= 0 => Some(*n as usize),
            _ => None,
        };
        // A budget in components, or else in parameters.
        let (ranks, parameters) = match count("rank-budget") {
            Some(ranks) => (ranks, u64::MAX),
            None => (usize::MAX, seen.run().budget),
        };
        let mut table = Table::new(places, self.options.min_rank as usize, ranks, parameters);
        while table.is_over() && table.sleep_weakest(f64::INFINITY).is_some() {}
        while let Some((at, _)) = table.wake_best() {
            if table.is_over() {
                // What does not fit goes back; the next best may be smaller, but never is by much.
                table.take_back(at);
                break;
            }
        }
        let update = count("update").unwrap_or(seen.step as usize);
        let updates = count("updates").unwrap_or(seen.run().steps as usize);
        let along = update as f64 / (self.options.until * updates as f64).max(1.0);
        let moves = (self.options.share * (1.0 - along).max(0.0) * table.rank as f64).floor() as usize;
        let mut moved = 0;
        while moved < moves && table.exchange(self.options.gain) {
            moved += 1;
        }
        let (places, total) = (table.places, table.total);
        let mut plan = Plan::new();
        // Factors of nearly full rank may be larger than the slice they stand for.
        if total > parameters.max(seen.awake) {
            plan.stop("no exchange fits into the budget");
            return Ok(plan);
        }
        for p in &places {
            if !p.sleeps.is_empty() {
                let n = p.sleeps.len();
                plan.sleep_these(p.slice, p.sleeps.iter().copied(), format!("{n} of the least that matters"));
            } else if p.wakes > 0 {
                let weakest = p.awake.last().map_or(0.0, |w| w.0);
                plan.wake(p.slice, p.wakes, format!("its weakest still matters {weakest:.2e}"));
            }
        }
        if along >= 1.0 && plan.actions.is_empty() {
            plan.stop(format!("nothing moves after {:.0} % of the training", 100.0 * self.options.until));
        }
        Ok(plan)
    }
}

/// All slices while a plan is made, the weakest component and the best promise of each at hand.
struct Table<'a> {
    places: Vec<Place<'a>>,
    min_rank: usize,
    ranks: usize,
    parameters: u64,
    /// Components awake in all slices.
    rank: usize,
    /// Parameters awake in all slices.
    total: u64,
    /// Weakest components and best promises by slice; entries that no longer hold are passed over.
    weakest: BinaryHeap<(Reverse<Worth>, Reverse<usize>)>,
    promises: BinaryHeap<(Worth, Reverse<usize>)>,
}

/// A finite number with an order.
#[derive(Clone, Copy, PartialEq)]
struct Worth(f64);

impl Eq for Worth {}

impl PartialOrd for Worth {
    fn partial_cmp(&self, other: &Worth) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Worth {
    fn cmp(&self, other: &Worth) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl<'a> Table<'a> {
    fn new(places: Vec<Place<'a>>, min_rank: usize, ranks: usize, parameters: u64) -> Table<'a> {
        let rank = places.iter().map(Place::rank).sum();
        let total = places.iter().map(Place::parameters).fold(0, u64::saturating_add);
        let (weakest, promises) = (BinaryHeap::new(), BinaryHeap::new());
        let mut table = Table { places, min_rank, ranks, parameters, rank, total, weakest, promises };
        (0..table.places.len()).for_each(|at| table.note(at));
        table
    }

    fn is_over(&self) -> bool {
        self.rank > self.ranks || self.total > self.parameters
    }

    /// Puts what a slice has to offer on the heaps.
    fn note(&mut self, at: usize) {
        if let Some(w) = self.places[at].weakest(self.min_rank) {
            self.weakest.push((Reverse(Worth(w)), Reverse(at)));
        }
        if let Some(p) = self.places[at].promise() {
            self.promises.push((Worth(p), Reverse(at)));
        }
    }

    /// Changes a slice and keeps the sums.
    fn change(&mut self, at: usize, how: impl FnOnce(&mut Place<'a>)) {
        let (rank, parameters) = (self.places[at].rank(), self.places[at].parameters());
        how(&mut self.places[at]);
        self.rank = self.rank - rank + self.places[at].rank();
        self.total = (self.total - parameters).saturating_add(self.places[at].parameters());
        self.note(at);
    }

    /// Puts the weakest component of all to sleep, if it matters less than `below`: its slice and number.
    fn sleep_weakest(&mut self, below: f64) -> Option<(usize, (f64, usize))> {
        while let Some((Reverse(Worth(w)), Reverse(at))) = self.weakest.peek().copied() {
            if self.places[at].weakest(self.min_rank) != Some(w) {
                self.weakest.pop();
                continue;
            }
            if w >= below {
                return None;
            }
            let last = self.places[at].awake.last().copied()?;
            self.change(at, |p| {
                p.awake.pop();
                p.sleeps.push(last.1);
            });
            return Some((at, last));
        }
        None
    }

    /// Wakes the best promise of all: its slice, and what it promised.
    fn wake_best(&mut self) -> Option<(usize, f64)> {
        while let Some((Worth(p), Reverse(at))) = self.promises.pop() {
            if self.places[at].promise() == Some(p) {
                self.change(at, |p| p.wakes += 1);
                return Some((at, p));
            }
        }
        None
    }

    /// The last waking of a slice did not happen.
    fn take_back(&mut self, at: usize) {
        self.change(at, |p| p.wakes -= 1);
    }

    /// One component sleeps, another wakes elsewhere, where that promises enough and fits.
    fn exchange(&mut self, gain: f64) -> bool {
        // What wakes first cannot be what sleeps.
        let Some((at, promise)) = self.wake_best() else { return false };
        match self.sleep_weakest(promise / gain) {
            Some(_) if !self.is_over() => true,
            Some((from, last)) => {
                self.change(from, |p| {
                    p.sleeps.pop();
                    p.awake.push(last);
                });
                self.take_back(at);
                false
            }
            None => {
                self.take_back(at);
                false
            }
        }
    }
}

export_policy!(Exchange, name: "exchange");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use plastic_plugin::Attribute;
    use plastic_plugin::testing::{Model, Session};

    /// Two slices of four components; the awake ones of the first matter much, those of the second little.
    fn decide(options: &str, awake: [u32; 2], budget: i64, update: i64) -> Plan {
        let mut m = Model::new(1.0)
            .slice("q_proj", 4, 4, "plain", [4.0, 3.0, 2.0, 1.0])
            .spectrum("importance:plain", [9.0, 8.0, 7.0, 0.0])
            .slice("k_proj", 4, 4, "plain", [4.0, 3.0, 2.0, 1.0])
            .spectrum("importance:plain", [0.5, 0.4, 0.3, 0.0]);
        let mut plan = Plan::new();
        plan.set_rank(0usize, awake[0] as usize, "").set_rank(1usize, awake[1] as usize, "");
        m.apply(&plan);
        let int = |name: &str, n| Attribute { name: name.into(), value: Value::Int(n) };
        m.attributes = vec![int("rank-budget", budget), int("update", update), int("updates", 100)];
        Session::<Exchange>::new(m, options).unwrap().decide().unwrap()
    }

    fn changes(plan: &Plan) -> Vec<(u32, plastic_plugin::Change)> {
        plan.actions.iter().map(|a| (a.slice.0, a.change.clone())).collect()
    }

    #[test]
    fn components_move_to_where_they_matter() {
        use plastic_plugin::Change::{Sleep, WakeN};
        let plan = decide(r#"{"share":0.2}"#, [3, 3], 6, 1);
        assert_eq!(changes(&plan), [(0, WakeN(1)), (1, Sleep(vec![2]))]);
    }

    #[test]
    fn nothing_moves_late_and_the_budget_always_counts() {
        use plastic_plugin::Change::{Sleep, WakeN};
        let late = decide("{}", [3, 3], 6, 90);
        assert!(late.actions.is_empty() && late.stop.is_some());
        assert_eq!(changes(&decide("{}", [3, 3], 4, 90)), [(1, Sleep(vec![2, 1]))]);
        assert_eq!(changes(&decide("{}", [3, 2], 6, 90)), [(0, WakeN(1))]);
    }
}
