#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::testing::{Model, Session};
use plastic_plugin::water::{fill, hold, lost, parameters};

const SHAPES: [(usize, usize); 8] = [(48, 64), (64, 64), (16, 64), (96, 40), (40, 96), (64, 24), (7, 5), (80, 80)];
const SCALES: [f64; 8] = [1.0, 0.25, 4.0, 0.5, 1.5, 0.125, 2.0, 0.75];

/// Noisy power laws: the same numbers, bit for bit, as in the numpy program the expected ranks come
/// from.
fn spectra(seed: u64) -> Vec<Vec<f32>> {
    let mut x = seed;
    let mut one = |j: usize, (m, n): (usize, usize)| {
        let mut values: Vec<f32> = (0..m.min(n))
            .map(|i| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let noise = (x >> 40) as f64 / (1u64 << 24) as f64;
                (SCALES[j] * (0.25 + noise) / (1.0 + i as f64 * (0.125 * (1 + j % 3) as f64))) as f32
            })
            .collect();
        values.sort_by(|a, b| b.total_cmp(a));
        values
    };
    SHAPES.iter().enumerate().map(|(j, shape)| one(j, *shape)).collect()
}

fn basins(seed: u64) -> Vec<Basin> {
    spectra(seed).iter().zip(SHAPES).map(|(s, (m, n))| Basin::new(s, m, n, true)).collect()
}

fn ranks(keep: &[Keep]) -> Vec<i64> {
    keep.iter().map(|k| if let Keep::Rank(r) = k { *r as i64 } else { -1 }).collect()
}

/// Ranks (-1: dense) by an independent implementation in numpy.
#[test]
fn water_filling_agrees_with_an_independent_implementation() {
    let expected: [(u64, u64, [i64; 8]); 18] = [
        (1, 22650, [-1, 25, -1, -1, -1, 14, -1, -1]),
        (1, 21458, [-1, 19, -1, -1, -1, 9, -1, -1]),
        (1, 19074, [-1, 11, -1, -1, -1, 4, -1, 34]),
        (1, 14305, [-1, 3, -1, 23, -1, 1, -1, 17]),
        (1, 9537, [-1, 1, -1, 10, 18, 2, -1, 8]),
        (1, 4768, [14, 1, -1, 1, 9, 1, -1, 3]),
        (2, 22650, [-1, 26, -1, -1, -1, 12, -1, -1]),
        (2, 21458, [-1, 19, -1, -1, -1, 9, -1, -1]),
        (2, 19074, [-1, 3, -1, -1, -1, 5, -1, -1]),
        (2, 14305, [-1, 1, -1, -1, -1, 1, -1, 14]),
        (2, 9537, [-1, 1, -1, 8, 20, 2, -1, 8]),
        (2, 4768, [11, 1, -1, 3, 11, 1, -1, 2]),
        (3, 22650, [-1, 27, -1, -1, -1, 11, -1, -1]),
        (3, 21458, [-1, 19, -1, -1, -1, 9, -1, -1]),
        (3, 19074, [-1, 10, -1, -1, -1, 4, -1, 35]),
        (3, 14305, [-1, 5, -1, -1, -1, 2, -1, 10]),
        (3, 9537, [-1, 2, -1, 8, 22, 1, -1, 6]),
        (3, 4768, [15, 1, -1, 2, 7, 2, -1, 3]),
    ];
    for (seed, budget, expected) in expected {
        let basins = basins(seed);
        let keep = fill(&basins, budget, 1).unwrap();
        assert_eq!(ranks(&keep), expected, "seed {seed}, budget {budget}");
        assert!(parameters(&basins, &keep) <= budget);
    }
    for (seed, expected) in [(1, [-1, 9, -1, 10, 22, 9, -1, 9]), (3, [-1, 9, -1, 10, 22, 9, -1, 9])] {
        assert_eq!(ranks(&fill(&basins(seed), 11921, 9).unwrap()), expected, "seed {seed}, min_rank 9");
    }
}

#[test]
fn water_filling_loses_less_than_even_cuts() {
    for seed in 1..=5 {
        let basins = basins(seed);
        let even: Vec<Keep> = SHAPES.iter().map(|(m, n)| Keep::Rank((m * n / 2 / (m + n)).max(1))).collect();
        let best = fill(&basins, parameters(&basins, &even), 1).unwrap();
        assert!(lost(&basins, &best) < lost(&basins, &even));
    }
}

#[test]
fn holding_energy_takes_the_fewest_parameters_that_do() {
    let basins = basins(4);
    let total: f64 = basins.iter().map(Basin::energy).sum();
    let mut before = 0;
    for share in [0.5, 0.9, 0.99, 0.999, 1.0] {
        let keep = hold(&basins, share, 1);
        assert!(lost(&basins, &keep) <= (1.0 - share) * total + 1e-12 * total, "{share}");
        assert!(parameters(&basins, &keep) > before, "{share}");
        before = parameters(&basins, &keep);
        // One parameter less does not hold it, however it is spent.
        if share < 1.0 {
            let cut = fill(&basins, before - before / 20, 1).unwrap();
            assert!(lost(&basins, &cut) > (1.0 - share) * total, "{share}");
        }
    }
}

#[test]
fn impossible_budgets_and_forced_factors() {
    assert!(fill(&basins(1), 100, 1).is_none());
    let (m, n) = SHAPES[0];
    let spectrum = spectra(1).swap_remove(0);
    let forced = [Basin::new(&spectrum, m, n, false)];
    assert_eq!(ranks(&fill(&forced, 1 << 20, 1).unwrap()), [48], "no dense weights to go back to");
    assert!(fill(&[], 0, 1).unwrap().is_empty());
}

/// A model of the eight slices, of which `share` may stay awake.
fn model(share: f64, metric: &str) -> Model {
    let mut model = Model::new(share).steps(4);
    for (i, (s, (m, n))) in spectra(1).into_iter().zip(SHAPES).enumerate() {
        model = model.slice(&format!("layers.{i}.proj"), m as u32, n as u32, metric, s);
    }
    model
}

#[test]
fn ramps_to_the_budget_then_stops() {
    let mut session = Session::<Energy>::new(model(0.6, "fisher"), "{}").unwrap();
    let total = session.model().awake();
    let mut before = total;
    for step in 1..=4 {
        let plan = session.decide().unwrap();
        assert_eq!(plan.stop, None, "step {step}");
        assert!(plan.predicted.unwrap() > 0.0);
        session.commit(&plan);
        let awake = session.model().awake();
        let aim = total - (total - session.model().run.budget) * step / 4;
        assert!(awake <= aim && awake < before, "step {step}: {awake} of {aim}");
        before = awake;
    }
    assert!(before <= session.model().run.budget && before > session.model().run.budget * 98 / 100);
    let plan = session.decide().unwrap();
    assert!(plan.actions.is_empty());
    assert!(plan.stop.unwrap().starts_with("budget reached: 59."));
}

#[test]
fn reasons_and_prediction_come_from_the_spectra() {
    let mut session = Session::<Energy>::new(model(0.6, "fisher"), r#"{"ramp": false}"#).unwrap();
    let plan = session.decide().unwrap();
    let basins = basins(1);
    let keep = fill(&basins, 14305, 1).unwrap();
    assert_eq!(plan.actions.len(), ranks(&keep).iter().filter(|r| **r >= 0).count());
    assert_eq!(plan.predicted, Some(0.5 * lost(&basins, &keep)));
    let action = plan.actions.iter().find(|a| a.slice.0 == 3).unwrap();
    assert_eq!(action.change, plastic_plugin::Change::SetRank(23));
    let held = 100.0 * (1.0 - basins[3].lost(Keep::Rank(23)) / basins[3].energy());
    assert_eq!(action.reason, format!("{held:.1} % of this slice's energy in 23 of 40"));
}

#[test]
fn an_energy_goal_above_the_budget_stops_earlier() {
    let options = r#"{"ramp": false, "energy": 0.9}"#;
    let mut session = Session::<Energy>::new(model(0.9, "fisher"), options).unwrap();
    let plan = session.decide().unwrap();
    session.commit(&plan);
    let basins = basins(1);
    assert_eq!(session.model().awake(), parameters(&basins, &hold(&basins, 0.9, 1)));
    assert!(session.model().awake() < session.model().run.budget);
    assert!(session.decide().unwrap().stop.unwrap().contains("hold the wanted energy"));
}

#[test]
fn other_metrics_predict_nothing() {
    for metric in ["plain", "input"] {
        let options = format!(r#"{{"metric": "{metric}"}}"#);
        let mut session = Session::<Energy>::new(model(0.6, metric), &options).unwrap();
        let plan = session.decide().unwrap();
        assert!(plan.predicted.is_none() && !plan.actions.is_empty());
    }
    let error = Session::<Energy>::new(model(0.6, "plain"), "{}").unwrap().decide().unwrap_err();
    assert_eq!(error, "the host sent no fisher spectrum of layers.0.proj");
}

#[test]
fn a_rejection_halves_the_way_and_three_end_it() {
    let mut session = Session::<Energy>::new(model(0.6, "fisher"), r#"{"ramp": false}"#).unwrap();
    let total = session.model().awake();
    let mut rejected = session.model().run.budget;
    for round in 0..4 {
        let plan = session.decide().unwrap();
        assert_eq!(plan.stop, None, "round {round}");
        let mut would_be = session.model().clone();
        would_be.apply(&plan);
        assert!(would_be.awake() <= rejected && would_be.awake() > rejected * 95 / 100, "round {round}");
        rejected += (total - rejected) / 2;
        session.reject(&plan, "too much", 1.0);
    }
    let plan = session.decide().unwrap();
    assert!(plan.actions.is_empty());
    let why = plan.stop.unwrap();
    assert!(why.starts_with("4 plans were rejected, the last one with 95.00 %"), "{why}");
    assert!(why.ends_with("100.00 % stay awake"), "{why}");
}

#[test]
fn after_a_rejection_a_milder_plan_may_be_committed() {
    let mut session = Session::<Energy>::new(model(0.6, "fisher"), r#"{"ramp": false}"#).unwrap();
    let plan = session.decide().unwrap();
    session.reject(&plan, "too much", 1.0);
    let plan = session.decide().unwrap();
    session.commit(&plan);
    let awake = session.model().awake();
    let plan = session.decide().unwrap();
    session.commit(&plan);
    assert!(session.model().awake() < awake, "halfway again");
    assert!(session.model().awake() > session.model().run.budget, "never where it was rejected");
}

#[test]
fn a_refused_plan_ends_the_run() {
    let mut session = Session::<Energy>::new(model(0.6, "fisher"), "{}").unwrap();
    let plan = session.decide().unwrap();
    session.refuse(&plan, "no such slice");
    assert_eq!(session.decide().unwrap().stop.unwrap(), "the last plan was refused: no such slice");
}

#[test]
fn frozen_slices_are_left_alone() {
    let mut session = Session::<Energy>::new(model(0.6, "fisher"), r#"{"ramp": false}"#).unwrap();
    session.model_mut().states[7].frozen = true;
    let plan = session.decide().unwrap();
    assert!(plan.actions.iter().all(|a| a.slice.0 != 7));
    session.commit(&plan);
    assert!(session.model().awake() <= session.model().run.budget);
}

#[test]
fn a_resumed_run_goes_on_where_it_was() {
    let mut straight = Session::<Energy>::new(model(0.6, "fisher"), "{}").unwrap();
    let mut resumed = Session::<Energy>::new(model(0.6, "fisher"), "{}").unwrap();
    for step in 0..4 {
        let (a, b) = (straight.decide().unwrap(), resumed.decide().unwrap());
        assert_eq!(a, b, "step {step}");
        if step == 1 {
            straight.reject(&a, "no", 1.0);
            resumed.reject(&b, "no", 1.0);
        } else {
            straight.commit(&a);
            resumed.commit(&b);
        }
        resumed.resume("{}").unwrap();
    }
    let mut energy = Energy::default();
    assert!(energy.restore(b"nonsense").is_err());
}

#[test]
fn bad_numbers_are_named() {
    let bad = Model::new(0.5).slice("q", 8, 8, "fisher", [1.0, f32::NAN]);
    let error = Session::<Energy>::new(bad, "{}").unwrap().decide().unwrap_err();
    assert_eq!(error, "the fisher spectrum of q contains NaN");
    let error = Session::<Energy>::new(model(0.6, "fisher"), r#"{"energy": 2}"#).err().unwrap();
    assert_eq!(error, "option energy is 2, expected 0 to 1");
    let tiny = Session::<Energy>::new(model(0.001, "fisher"), r#"{"ramp": false}"#).unwrap().decide().unwrap_err();
    assert!(tiny.contains("too few for 1 components (min_rank)"), "{tiny}");
}
