#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::Change;
use plastic_plugin::testing::{Model, Session};

/// Two slices: 10 × 10 (20 parameters a component) and 10 × 40 (50 a component).
fn model(budget: f64) -> Model {
    Model::new(budget).steps(3).slice("a", 10, 10, "fisher", [10.0, 4.0, 2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]).slice(
        "b",
        10,
        40,
        "fisher",
        [9.0, 5.0, 3.0, 1.5, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7],
    )
}

fn at_once(model: Model) -> Session<WaterFill> {
    Session::new(model, r#"{"ramp": false}"#).unwrap()
}

#[test]
fn spends_by_hand_computed_worth_per_parameter() {
    // Worth per parameter: a: 5, 0.8, 0.2, 0.05; b: 1.62, 0.5, 0.18, 0.045. Under 175 of the 500
    // parameters: a1 (20), b1 (70), a2 (90), b2 (140), a3 (160); b3 no longer fits, nor does a4.
    let mut session = at_once(model(0.35));
    let plan = session.decide().unwrap();
    let ranks: Vec<_> = plan.actions.iter().map(|a| a.change.clone()).collect();
    assert_eq!(ranks, [Change::SetRank(3), Change::SetRank(2)]);
    let asleep = [1.0f32, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 3.0, 1.5, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7];
    let rise = 0.5 * asleep.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>();
    assert!((plan.predicted.unwrap() - rise).abs() < 1e-12);
    assert_eq!(
        plan.actions[0].reason,
        "97.0 % of this slice's energy in 3 of 10; a parameter of the last is worth 2.0e-1, of the next 5.0e-2"
    );
}

#[test]
fn what_is_left_buys_nothing_more() {
    for budget in 1..=60 {
        let mut session = at_once(model(0.15 + f64::from(budget) / 80.0));
        let plan = session.decide().unwrap();
        session.commit(&plan);
        let model = session.model();
        let left = model.run.budget - model.awake();
        for (state, slice) in model.states.iter().zip(&model.slices).filter(|(s, _)| !s.dense) {
            let next = slice.component_parameters.min(slice.dense_parameters - state.parameters);
            assert!(left < next, "{left} of {} buy {next} more in {}", model.run.budget, slice.name);
        }
    }
}

#[test]
fn ramps_to_the_budget_and_stops() {
    let mut session = Session::<WaterFill>::new(model(0.5), "{}").unwrap();
    let mut before = session.model().awake();
    for step in 1..=3 {
        let plan = session.decide().unwrap();
        assert_eq!(plan, session.decide().unwrap(), "deterministic");
        session.commit(&plan);
        session.resume("{}").unwrap();
        assert!(session.model().awake() < before, "step {step}");
        before = session.model().awake();
    }
    assert!(before <= session.model().run.budget);
    let plan = session.decide().unwrap();
    assert!(plan.actions.is_empty() && plan.stop.unwrap().starts_with("budget reached"));
}

#[test]
fn part_of_the_budget_and_whole_blocks() {
    let mut session = Session::<WaterFill>::new(model(0.8), r#"{"ramp": false, "spend": 0.5, "multiple": 2}"#).unwrap();
    let plan = session.decide().unwrap();
    assert!(plan.actions.iter().all(|a| matches!(a.change, Change::SetRank(r) if r % 2 == 0)), "{plan:?}");
    session.commit(&plan);
    assert!(session.model().awake() <= session.model().run.budget / 2);
}

#[test]
fn frozen_slices_count_but_do_not_change() {
    let mut session = at_once(model(0.7));
    session.model_mut().states[0].frozen = true;
    let plan = session.decide().unwrap();
    assert!(plan.actions.iter().all(|a| a.slice.0 == 1));
    session.commit(&plan);
    assert!(session.model().awake() <= session.model().run.budget);
}

#[test]
fn a_rejection_halves_the_way() {
    let mut session = at_once(model(0.4));
    let plan = session.decide().unwrap();
    session.reject(&plan, "too much", 9.0);
    session.resume(r#"{"ramp": false}"#).unwrap();
    let milder = session.decide().unwrap();
    assert!(milder.predicted.unwrap() < plan.predicted.unwrap());
}

#[test]
fn bad_numbers_and_budgets_are_named() {
    let bad = Model::new(0.5).slice("q", 8, 8, "fisher", [1.0, f32::NAN]);
    assert_eq!(at_once(bad).decide().unwrap_err(), "the fisher spectrum of q contains NaN");
    let none = Model::new(0.5).slice("q", 8, 8, "fisher", []);
    assert_eq!(at_once(none).decide().unwrap_err(), "the host sent no fisher spectrum of q");
    assert!(at_once(model(0.01)).decide().unwrap_err().contains("(min_rank); raise the budget"));
    assert!(at_once(Model::new(0.5)).decide().unwrap().stop.is_some(), "nothing to do without slices");
    assert!(WaterFill::default().restore(b"nonsense").is_err());
}
