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
        let mut awake: Vec<(f64, usize)> = worth
            .iter()
            .enumerate()
            .filter(|(i, _)| !slice.is_asleep("plain", *i))
            .map(|(i, w)| (f64::from(*w), i))
            .collect();
        awake.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        Ok(Place { slice, awake, sleeps: Vec::new(), wakes: 0 })
    }

    /// What its weakest awake component matters, where one may sleep.
    fn weakest(&self, min_rank: usize) -> Option<f64> {
        // A slice does one thing at a time.
        let may = self.wakes == 0 && self.awake.len() > min_rank && !self.slice.is_frozen();
        self.awake.last().filter(|_| may).map(|(w, _)| *w)
    }

    /// What its next component promises, where there is one.
    fn promise(&self) -> Option<f64> {
        let rank = self.awake.len() + self.wakes;
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
        let mut places = seen.slices().map(Place::of).collect::<Result<Vec<_>, _>>()?;
        let min_rank = self.options.min_rank as usize;
        let count = |name: &str| match attribute(&seen.attributes, name) {
            Some(Value::Int(n)) if *n >= 0 => Ok(*n as usize),
            _ => Err(format!("the host does not say the {name}; this policy is for packs in training")),
        };
        let (budget, update, updates) = (count("rank-budget")?, count("update")?, count("updates")?);
        let awake: usize = places.iter().map(|p| p.awake.len()).sum();
        // First the budget, whatever it takes.
        for _ in budget..awake {
            if !sleep_weakest(&mut places, min_rank, f64::INFINITY) {
                break;
            }
        }
        for _ in awake..budget {
            if wake_best(&mut places).is_none() {
                break;
            }
        }
        let along = update as f64 / (self.options.until * updates as f64).max(1.0);
        let moves = (self.options.share * (1.0 - along).max(0.0) * awake as f64).floor() as usize;
        let mut moved = 0;
        while moved < moves && exchange(&mut places, min_rank, self.options.gain) {
            moved += 1;
        }
        let mut plan = Plan::new();
        for p in &places {
            if !p.sleeps.is_empty() {
                let n = p.sleeps.len();
                plan.sleep_these(p.slice, p.sleeps.iter().copied(), format!("{n} of the least that matters"));
            } else if p.wakes > 0 {
                plan.wake(
                    p.slice,
                    p.wakes,
                    format!("its weakest still matters {:.2e}", p.awake.last().map_or(0.0, |w| w.0)),
                );
            }
        }
        if along >= 1.0 && plan.actions.is_empty() {
            plan.stop(format!("nothing moves after {:.0} % of the training", 100.0 * self.options.until));
        }
        Ok(plan)
    }
}

/// The best promise of all slices and its place.
fn best(places: &[Place]) -> Option<(f64, usize)> {
    let promises = places.iter().enumerate().filter_map(|(i, p)| Some((p.promise()?, i)));
    promises.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
}

fn wake_best(places: &mut [Place]) -> Option<f64> {
    let (promise, at) = best(places)?;
    places[at].wakes += 1;
    Some(promise)
}

/// Puts the weakest component of all to sleep, if it matters less than `below`.
fn sleep_weakest(places: &mut [Place], min_rank: usize, below: f64) -> bool {
    let weakest = places.iter().enumerate().filter_map(|(i, p)| Some((p.weakest(min_rank)?, i)));
    let Some((worth, at)) = weakest.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))) else { return false };
    if worth >= below {
        return false;
    }
    if let Some((_, number)) = places[at].awake.pop() {
        places[at].sleeps.push(number);
    }
    true
}

/// One component sleeps, another wakes elsewhere, where that promises enough.
fn exchange(places: &mut [Place], min_rank: usize, gain: f64) -> bool {
    let Some((promise, at)) = best(places) else { return false };
    // What wakes must not be what sleeps.
    places[at].wakes += 1;
    let done = sleep_weakest(places, min_rank, promise / gain);
    if !done {
        places[at].wakes -= 1;
    }
    done
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
