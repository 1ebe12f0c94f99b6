//! A policy's plan, checked before any tensor is touched and resolved to what shall be awake.
//!
//! One bad action refuses the whole plan; the message names the slice and the rule.

use super::state::{Awake, DENSE};
use crate::plugin::contract::{Action, Change, Plan, Slice, Threshold};

/// A spectrum of one slice as the policy saw it: values, largest first.
pub type Spectra<'a> = dyn Fn(u32, u32) -> Option<&'a [f32]> + 'a;

/// What plan checking needs to know of a slice.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What is awake now.
    pub awake: Awake,
    /// No change is accepted.
    pub frozen: bool,
}

/// The outcome of a plan: the new state of every slice, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// New state, one a slice.
    pub awake: Vec<Awake>,
    /// Frozen flags after the plan.
    pub frozen: Vec<bool>,
    /// Slices whose awake set changes, ascending.
    pub changed: Vec<usize>,
    /// Parameters awake after the plan.
    pub parameters: u64,
}

/// Why a plan was refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum Refusal {
    /// A statistic the host does not offer, or not in this run.
    #[error(
        "the statistic {name} is requested, which this run cannot compute; without calibration text, which a need calls for, there is spectrum:plain only, with it {offered}",
        offered = super::statistic::OFFERED
    )]
    Request {
        /// Its name.
        name: String,
    },
    /// A slice number beyond the run's slices.
    #[error("action {action} names slice {slice}, but this run has slices 0 to {last}")]
    UnknownSlice {
        /// Position in the plan.
        action: usize,
        /// The number.
        slice: u32,
        /// The highest valid number.
        last: u32,
    },
    /// Two actions on one slice.
    #[error("{slice}: more than one change in one plan; merge them into one action")]
    Repeated {
        /// Name of the slice.
        slice: String,
    },
    /// A change of a frozen slice.
    #[error("{slice}: frozen, so its rank cannot change; send `thaw` in an earlier plan first")]
    Frozen {
        /// Name of the slice.
        slice: String,
    },
    /// A rank above the number of components.
    #[error("{slice}: rank {rank} asked for, but it has {max} components")]
    RankTooHigh {
        /// Name of the slice.
        slice: String,
        /// What was asked.
        rank: u32,
        /// What there is.
        max: u32,
    },
    /// More components to sleep or wake than there are.
    #[error("{slice}: {asked} components to {verb}, but only {available} are {state}")]
    TooMany {
        /// Name of the slice.
        slice: String,
        /// What was asked.
        asked: u32,
        /// `sleep` or `wake`.
        verb: &'static str,
        /// How many there are.
        available: u32,
        /// `awake` or `asleep`.
        state: &'static str,
    },
    /// A component number that does not exist, repeats, or is already in the wanted state.
    #[error("{slice}: component {component} cannot {verb}: {why}")]
    Component {
        /// Name of the slice.
        slice: String,
        /// The number.
        component: u32,
        /// `sleep` or `wake`.
        verb: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// A number that is no number.
    #[error("{field} is {value}, which is not a finite number")]
    NotFinite {
        /// Which field of the plan.
        field: &'static str,
        /// Its text.
        value: String,
    },
    /// A threshold in a spectrum that was not delivered.
    #[error("the threshold names need {need}, whose spectra the policy did not receive; list it in `needs`")]
    NoSpectrum {
        /// Index into the needs.
        need: u32,
    },
    /// More components awake than the rank budget allows.
    #[error(
        "{components} components would be awake, but the rank budget is {budget} and {now} are awake now; sleep more or raise --rank-budget"
    )]
    OverRankBudget {
        /// After the plan.
        components: u32,
        /// Allowed.
        budget: u32,
        /// Before the plan.
        now: u32,
    },
    /// More awake than the budget allows.
    #[error(
        "{parameters} parameters would be awake, but the budget is {budget} and {now} are awake now; sleep more or raise --budget"
    )]
    OverBudget {
        /// After the plan.
        parameters: u64,
        /// Allowed.
        budget: u64,
        /// Before the plan.
        now: u64,
    },
}

/// Checks a plan against the slices and resolves it.
///
/// A plan may leave more awake than `budget` only while it wakes nothing in sum: a policy may
/// approach the budget over several steps, never move away from it.
///
/// # Errors
/// The first rule the plan breaks; nothing has changed then.
pub fn resolve(
    plan: &Plan,
    slices: &[Slice],
    now: &[Subject],
    budget: u64,
    spectra: &Spectra,
) -> Result<Resolved, Refusal> {
    if let Some(p) = plan.predicted.filter(|p| !p.is_finite()) {
        return Err(Refusal::NotFinite { field: "predicted", value: p.to_string() });
    }
    let mut awake: Vec<Awake> = now.iter().map(|s| s.awake.clone()).collect();
    let mut frozen: Vec<bool> = now.iter().map(|s| s.frozen).collect();
    if let Some(t) = &plan.threshold {
        apply_threshold(t, slices, now, spectra, &mut awake)?;
    }
    let mut seen = vec![false; slices.len()];
    for (number, action) in plan.actions.iter().enumerate() {
        let index = action.slice as usize;
        let Some(slice) = slices.get(index) else {
            let last = slices.len().saturating_sub(1) as u32;
            return Err(Refusal::UnknownSlice { action: number, slice: action.slice, last });
        };
        if std::mem::replace(&mut seen[index], true) {
            return Err(Refusal::Repeated { slice: slice.name.clone() });
        }
        match &action.change {
            Change::Freeze => frozen[index] = true,
            Change::Thaw => frozen[index] = false,
            _ if now[index].frozen => return Err(Refusal::Frozen { slice: slice.name.clone() }),
            _ => awake[index] = changed(action, slice, &awake[index])?,
        }
    }
    // All components awake are the slice itself.
    for (a, _) in awake.iter_mut().zip(slices).filter(|(a, s)| a.rank(s.max_rank) == s.max_rank) {
        *a = DENSE;
    }
    let of_one = |(a, s): (&Awake, &Slice)| match a.is_dense() {
        true => s.dense_parameters,
        false => u64::from(a.rank(s.max_rank)) * s.component_parameters,
    };
    let parameters = |a: &[Awake]| -> u64 { a.iter().zip(slices).map(of_one).sum() };
    let before: Vec<Awake> = now.iter().map(|s| s.awake.clone()).collect();
    let (after, current) = (parameters(&awake), parameters(&before));
    if after > budget.max(current) {
        return Err(Refusal::OverBudget { parameters: after, budget, now: current });
    }
    let changed = (0..slices.len()).filter(|&i| awake[i] != before[i]).collect();
    Ok(Resolved { awake, frozen, changed, parameters: after })
}

/// The state of one slice after one action.
fn changed(action: &Action, slice: &Slice, now: &Awake) -> Result<Awake, Refusal> {
    let max = slice.max_rank;
    let name = || slice.name.clone();
    let awake = now.rank(max);
    Ok(match &action.change {
        Change::SetRank(rank) if *rank > max => return Err(Refusal::RankTooHigh { slice: name(), rank: *rank, max }),
        Change::SetRank(rank) => Awake::First(*rank),
        Change::Dense => DENSE,
        Change::SleepN(n) => {
            if *n > awake {
                return Err(Refusal::TooMany {
                    slice: name(),
                    asked: *n,
                    verb: "sleep",
                    available: awake,
                    state: "awake",
                });
            }
            let mut list = now.components(max);
            list.truncate((awake - n) as usize);
            Awake::from_components(list)
        }
        Change::WakeN(n) => {
            let asleep = max - awake;
            if *n > asleep {
                return Err(Refusal::TooMany {
                    slice: name(),
                    asked: *n,
                    verb: "wake",
                    available: asleep,
                    state: "asleep",
                });
            }
            let mut mask = mask(now, max);
            for bit in mask.iter_mut().filter(|b| !**b).take(*n as usize) {
                *bit = true;
            }
            from_mask(&mask)
        }
        Change::Sleep(list) => flip(list, slice, now, "sleep", false, "it is asleep already")?,
        Change::Wake(list) => flip(list, slice, now, "wake", true, "it is awake already")?,
        Change::Freeze | Change::Thaw => now.clone(),
    })
}

fn mask(awake: &Awake, max: u32) -> Vec<bool> {
    let mut mask = vec![false; max as usize];
    for c in awake.components(max) {
        if let Some(bit) = mask.get_mut(c as usize) {
            *bit = true;
        }
    }
    mask
}

fn from_mask(mask: &[bool]) -> Awake {
    Awake::from_components((0u32..).zip(mask).filter(|(_, awake)| **awake).map(|(c, _)| c).collect())
}

fn flip(
    list: &[u32],
    slice: &Slice,
    now: &Awake,
    verb: &'static str,
    to: bool,
    already: &'static str,
) -> Result<Awake, Refusal> {
    let mut mask = mask(now, slice.max_rank);
    for &component in list {
        let refuse = |why| Err(Refusal::Component { slice: slice.name.clone(), component, verb, why });
        match mask.get_mut(component as usize) {
            None => return refuse("there is no such component"),
            Some(bit) if *bit == to => return refuse(already),
            Some(bit) => *bit = to,
        }
    }
    Ok(from_mask(&mask))
}

/// Components with value² per parameter at or above the level stay awake; a slice whose factors
/// would cost as much as its dense weights stays dense. Frozen slices stay as they are.
fn apply_threshold(
    t: &Threshold,
    slices: &[Slice],
    now: &[Subject],
    spectra: &Spectra,
    awake: &mut [Awake],
) -> Result<(), Refusal> {
    if !t.level.is_finite() {
        return Err(Refusal::NotFinite { field: "threshold.level", value: t.level.to_string() });
    }
    for (index, slice) in slices.iter().enumerate().filter(|(i, _)| !now[*i].frozen) {
        let values = spectra(index as u32, t.need).ok_or(Refusal::NoSpectrum { need: t.need })?;
        let cost = slice.component_parameters.max(1);
        let rank = values.iter().take_while(|v| f64::from(**v).powi(2) / cost as f64 >= t.level).count() as u32;
        let rank = rank.clamp(1, slice.max_rank);
        awake[index] = match u64::from(rank) * cost >= slice.dense_parameters {
            true => DENSE,
            false => Awake::First(rank),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn slice(name: &str, rows: u32, cols: u32) -> Slice {
        Slice {
            name: name.into(),
            layer: 0,
            kind: "q_proj".into(),
            group: 0,
            rows,
            cols,
            max_rank: rows.min(cols),
            dense_parameters: u64::from(rows) * u64::from(cols),
            component_parameters: u64::from(rows) + u64::from(cols),
            attributes: vec![],
        }
    }

    fn subject(awake: Awake) -> Subject {
        Subject { awake, frozen: false }
    }

    fn act(slice: u32, change: Change) -> Action {
        Action { slice, change, reason: String::new() }
    }

    fn plan(actions: Vec<Action>) -> Plan {
        Plan { actions, ..Plan::default() }
    }

    fn one(change: Change, now: Awake) -> Result<Awake, Refusal> {
        let slices = [slice("a", 8, 6)];
        resolve(&plan(vec![act(0, change)]), &slices, &[subject(now)], u64::MAX, &|_, _| None)
            .map(|r| r.awake[0].clone())
    }

    #[test]
    fn every_change_does_what_it_says() {
        assert_eq!(one(Change::SetRank(3), DENSE), Ok(Awake::First(3)));
        assert_eq!(one(Change::Dense, Awake::First(2)), Ok(DENSE));
        assert_eq!(one(Change::WakeN(4), Awake::First(2)), Ok(DENSE));
        assert_eq!(one(Change::SetRank(6), Awake::First(2)), Ok(DENSE));
        assert_eq!(one(Change::SleepN(2), Awake::These(vec![0, 2, 4])), Ok(Awake::First(1)));
        assert_eq!(one(Change::WakeN(2), Awake::These(vec![0, 4])), Ok(Awake::These(vec![0, 1, 2, 4])));
        assert_eq!(one(Change::Sleep(vec![0]), Awake::First(3)), Ok(Awake::These(vec![1, 2])));
        assert_eq!(one(Change::Wake(vec![1]), Awake::These(vec![0, 2])), Ok(Awake::First(3)));
    }

    #[test]
    fn refusals_name_slice_and_rule() {
        let text = |r: Result<Awake, Refusal>| r.unwrap_err().to_string();
        assert_eq!(text(one(Change::SetRank(7), DENSE)), "a: rank 7 asked for, but it has 6 components");
        assert_eq!(text(one(Change::SleepN(4), Awake::First(3))), "a: 4 components to sleep, but only 3 are awake");
        assert_eq!(text(one(Change::WakeN(4), Awake::First(3))), "a: 4 components to wake, but only 3 are asleep");
        assert_eq!(
            text(one(Change::Wake(vec![9]), Awake::First(1))),
            "a: component 9 cannot wake: there is no such component"
        );
        assert_eq!(
            text(one(Change::Sleep(vec![1, 1]), Awake::First(2))),
            "a: component 1 cannot sleep: it is asleep already"
        );
        let slices = [slice("a", 8, 6)];
        let now = [subject(DENSE)];
        let none = |_, _| None;
        let twice = plan(vec![act(0, Change::SetRank(2)), act(0, Change::Freeze)]);
        assert_eq!(resolve(&twice, &slices, &now, 48, &none), Err(Refusal::Repeated { slice: "a".into() }));
        let unknown = plan(vec![act(3, Change::Dense)]);
        assert!(resolve(&unknown, &slices, &now, 48, &none).unwrap_err().to_string().contains("slices 0 to 0"));
        let nan = Plan { predicted: Some(f64::NAN), ..Plan::default() };
        assert!(resolve(&nan, &slices, &now, 48, &none).unwrap_err().to_string().contains("predicted is NaN"));
        let frozen = [Subject { awake: DENSE, frozen: true }];
        let thaw_and_change = plan(vec![act(0, Change::SetRank(1))]);
        assert!(matches!(resolve(&thaw_and_change, &slices, &frozen, 48, &none), Err(Refusal::Frozen { .. })));
    }

    #[test]
    fn the_budget_may_be_approached_but_not_left() {
        let slices = [slice("a", 8, 6)];
        let none = |_, _| None;
        let to = |rank, now: Awake| {
            resolve(&plan(vec![act(0, Change::SetRank(rank))]), &slices, &[subject(now)], 14, &none)
                .map(|r| r.parameters)
        };
        assert_eq!(to(3, DENSE), Ok(42));
        assert!(matches!(to(3, Awake::First(2)), Err(Refusal::OverBudget { .. })));
        assert_eq!(to(1, Awake::First(2)), Ok(14));
    }

    #[test]
    fn a_threshold_is_resolved_by_the_host() {
        let slices = [slice("a", 8, 6), slice("b", 8, 6)];
        let now = [subject(DENSE), subject(DENSE)];
        let a = [4.0f32, 3.0, 1.0, 0.5, 0.1, 0.0];
        let b = [9.0f32; 6];
        let spectra = |s: u32, need: u32| (need == 0).then_some(if s == 0 { &a[..] } else { &b[..] });
        let t =
            |need, level| Plan { threshold: Some(Threshold { need, level, reason: String::new() }), ..Plan::default() };
        let got = resolve(&t(0, 9.0 / 14.0), &slices, &now, 96, &spectra).unwrap();
        assert_eq!(got.awake, vec![Awake::First(2), DENSE]);
        assert_eq!(got.changed, vec![0]);
        assert_eq!(resolve(&t(1, 1.0), &slices, &now, 96, &spectra), Err(Refusal::NoSpectrum { need: 1 }));
    }

    fn any_change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (0u32..9).prop_map(Change::SetRank),
            (0u32..9).prop_map(Change::SleepN),
            (0u32..9).prop_map(Change::WakeN),
            proptest::collection::vec(0u32..9, 0..5).prop_map(Change::Sleep),
            proptest::collection::vec(0u32..9, 0..5).prop_map(Change::Wake),
            Just(Change::Dense),
            Just(Change::Freeze),
            Just(Change::Thaw),
        ]
    }

    proptest! {
        #[test]
        fn whatever_resolves_is_valid_and_within_budget(
            changes in proptest::collection::vec((0u32..4, any_change()), 0..6),
            budget in 0u64..200,
        ) {
            let slices: Vec<Slice> = (0..3).map(|i| slice(&format!("s{i}"), 8, 6)).collect();
            let now: Vec<Subject> = vec![subject(DENSE), subject(Awake::First(2)), subject(Awake::These(vec![1, 3]))];
            let p = plan(changes.into_iter().map(|(s, c)| act(s, c)).collect());
            if let Ok(r) = resolve(&p, &slices, &now, budget, &|_, _| None) {
                prop_assert!(r.awake.iter().all(|a| a.is_valid(6)));
                prop_assert!(r.parameters <= budget.max(48 + 28 + 28));
            }
        }

        #[test]
        fn sleep_then_wake_is_identity(n in 0u32..4, start in proptest::collection::btree_set(0u32..6, 4..6)) {
            let start = Awake::from_components(start.into_iter().collect());
            let list: Vec<u32> = start.components(6).into_iter().rev().take(n as usize).collect();
            let slept = one(Change::Sleep(list.clone()), start.clone()).unwrap();
            prop_assert_eq!(one(Change::Wake(list), slept).unwrap(), start);
        }
    }
}
