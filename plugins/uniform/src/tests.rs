#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::Change;
use plastic_plugin::testing::{Model, Session};

/// 10 × 10 (20 parameters a component) and 10 × 40 (50 a component), with spectra that could not differ more.
fn model(budget: f64) -> Model {
    let flat = [1.0; 10];
    let steep = [100.0, 1.0, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01];
    Model::new(budget).steps(2).slice("a", 10, 10, "fisher", flat).slice("b", 10, 40, "fisher", steep)
}

fn ranks(plan: &Plan) -> Vec<Change> {
    plan.actions.iter().map(|a| a.change.clone()).collect()
}

#[test]
fn the_share_by_hand_whatever_the_spectra() {
    // 0.6 · 100 / 20 = 3, and 0.6 · 400 / 50 = 4.8.
    let mut session = Session::<Uniform>::new(model(0.6), r#"{"ramp": false}"#).unwrap();
    let plan = session.decide().unwrap();
    assert_eq!(ranks(&plan), [Change::SetRank(3), Change::SetRank(4)]);
    assert!(plan.actions[0].reason.contains("60.0 % of every slice"), "{}", plan.actions[0].reason);
    let rise = 0.5 * (7.0 + 6.0 * 1e-4);
    assert!((plan.predicted.unwrap() - rise).abs() < 1e-4, "{:?}", plan.predicted);
    session.commit(&plan);
    assert!(session.decide().unwrap().stop.unwrap().starts_with("budget reached"));
}

#[test]
fn halfway_after_one_of_two_steps() {
    let mut session = Session::<Uniform>::new(model(0.5), "{}").unwrap();
    let plan = session.decide().unwrap();
    // 0.75 · 100 / 20 = 3.75, and 0.75 · 400 / 50 = 6.
    assert_eq!(ranks(&plan), [Change::SetRank(3), Change::SetRank(6)]);
    assert_eq!(plan, session.decide().unwrap(), "deterministic");
    session.commit(&plan);
    session.resume("{}").unwrap();
    assert_eq!(ranks(&session.decide().unwrap()), [Change::SetRank(2), Change::SetRank(4)]);
}

#[test]
fn a_whole_budget_changes_nothing_and_a_tiny_one_is_refused() {
    let mut session = Session::<Uniform>::new(model(1.0), "{}").unwrap();
    assert!(session.decide().unwrap().actions.is_empty());
    let mut session = Session::<Uniform>::new(model(0.05), r#"{"ramp": false}"#).unwrap();
    assert!(session.decide().unwrap_err().contains("(min_rank); raise the budget"));
}
