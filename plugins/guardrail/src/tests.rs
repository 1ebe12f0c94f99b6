#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::testing::{Model, Session};

fn model(budget: f64) -> Model {
    let values = |scale: f32| (0..40).map(move |i| scale / (1.0 + i as f32));
    Model::new(budget)
        .steps(100)
        .slice("a", 40, 40, "fisher", values(1.0))
        .slice("b", 40, 40, "fisher", values(0.5))
        .slice("c", 40, 80, "fisher", values(2.0))
}

/// Applies a plan the way the host does, which refuses what leaves more awake than budget and now.
fn commit(session: &mut Session<Guardrail>, plan: &Plan) {
    let before = session.model().awake();
    session.commit(plan);
    assert!(session.model().awake() <= before.max(session.model().run.budget));
}

fn measure(session: &mut Session<Guardrail>, name: &str, value: f64) {
    session.model_mut().metrics = vec![Metric::new(name, value, "")];
}

#[test]
fn excesses_by_hand() {
    let gauge = |value, limit, more_is_better| Gauge { name: "x", value, limit, more_is_better }.excess();
    assert_eq!(gauge(Some(150.0), 100.0, false), Some(0.5));
    assert_eq!(gauge(Some(50.0), 100.0, false), Some(-0.5));
    assert_eq!(gauge(Some(50.0), 100.0, true), Some(1.0));
    assert_eq!(gauge(Some(0.0), 100.0, true), Some(f64::INFINITY));
    assert_eq!(gauge(None, 100.0, true), None);
}

#[test]
fn without_limits_it_guards_the_budget() {
    let mut session = Session::<Guardrail>::new(model(0.9), "{}").unwrap();
    for step in 0..3 {
        let plan = session.decide().unwrap();
        assert_eq!(plan, session.decide().unwrap(), "deterministic");
        assert_eq!(plan.actions.is_empty(), step == 2, "twice 5 % reach 90 %");
        commit(&mut session, &plan);
    }
    let (awake, budget) = (session.model().awake(), session.model().run.budget);
    assert!(awake <= budget && awake + 120 > budget, "{awake} of {budget}: never more than needed");
}

#[test]
fn sleeps_while_it_is_too_slow_and_says_why() {
    let options = r#"{"min_tokens_per_second": 100}"#;
    let mut session = Session::<Guardrail>::new(model(1.0), options).unwrap();
    let plan = session.decide().unwrap();
    assert!(plan.actions[0].reason.contains("not measured yet, at least 100"), "{}", plan.actions[0].reason);
    commit(&mut session, &plan);
    for _ in 0..4 {
        let before = session.model().awake();
        measure(&mut session, "scored-tokens-per-second", 80.0);
        let plan = session.decide().unwrap();
        assert!(plan.actions[0].reason.contains("scored-tokens-per-second is 80, at least 100"));
        assert!(plan.predicted.unwrap() > 0.0);
        commit(&mut session, &plan);
        assert!(session.model().awake() < before && before - session.model().awake() <= 320 + 120);
    }
    measure(&mut session, "scored-tokens-per-second", 104.0);
    assert!(session.decide().unwrap().actions.is_empty(), "fast enough, but no room");
}

#[test]
fn wakes_with_patience_within_the_budget() {
    let options = r#"{"max_resident_mb": 1, "patience": 3}"#;
    let mut session = Session::<Guardrail>::new(model(0.5), options).unwrap();
    for _ in 0..14 {
        measure(&mut session, "resident-bytes", 2e6);
        let plan = session.decide().unwrap();
        commit(&mut session, &plan);
    }
    let low = session.model().awake();
    assert!(low < session.model().run.budget);
    measure(&mut session, "resident-bytes", 0.5e6);
    for step in 1..=60 {
        let before = session.model().awake();
        let plan = session.decide().unwrap();
        commit(&mut session, &plan);
        assert!(session.model().awake() == before || step % 3 == 0, "step {step}");
    }
    let (awake, budget) = (session.model().awake(), session.model().run.budget);
    assert!(awake > low && awake <= budget && budget - awake <= 120, "{awake} of {budget}");
}

#[test]
fn a_limit_between_two_steps_does_not_make_it_flap() {
    let options = r#"{"max_resident_mb": 1, "patience": 1, "room": 0.0}"#;
    let mut session = Session::<Guardrail>::new(model(1.0), options).unwrap();
    let mut changes = 0;
    for _ in 0..600 {
        // Memory follows what is awake; the limit lies at 4 000 of 6 400 parameters.
        let bytes = session.model().awake() as f64 * 250.0;
        measure(&mut session, "resident-bytes", bytes);
        let plan = session.decide().unwrap();
        changes += u32::from(!plan.actions.is_empty());
        commit(&mut session, &plan);
        session.resume(options).unwrap();
    }
    assert!(changes < 40, "{changes} changes in 600 steps");
}

#[test]
fn memory_of_the_slices_needs_no_evaluator() {
    // 6 400 parameters of 4 bytes: 25 600 bytes. The limit is half of it.
    let mut session = Session::<Guardrail>::new(model(1.0), r#"{"max_slices_mb": 0.0128, "step": 0.2}"#).unwrap();
    let plan = session.decide().unwrap();
    assert!(plan.actions[0].reason.contains("bytes awake in the slices is 25600, at most 12800"));
    session.model_mut().states.iter_mut().for_each(|s| s.bytes = 3000);
    assert!(session.decide().unwrap().actions.is_empty());
}

#[test]
fn gives_in_where_sleep_is_rejected_or_impossible() {
    let options = r#"{"max_slices_mb": 0.001}"#;
    let mut session = Session::<Guardrail>::new(model(1.0), options).unwrap();
    let mut last = f64::INFINITY;
    for _ in 0..=HALVINGS {
        let plan = session.decide().unwrap();
        assert!(plan.predicted.unwrap() <= last);
        last = plan.predicted.unwrap();
        session.reject(&plan, "too much", 1.0);
    }
    assert!(session.decide().unwrap().stop.unwrap().ends_with("but no more sleep is accepted"));
    let options = r#"{"max_slices_mb": 0.001, "min_rank": 40}"#;
    let mut session = Session::<Guardrail>::new(model(1.0), options).unwrap();
    assert!(session.decide().unwrap().stop.unwrap().ends_with("at the least rank (min_rank)"));
}

#[test]
fn frozen_slices_snapshots_missing_figures_and_bad_numbers() {
    let mut session = Session::<Guardrail>::new(model(0.5), "{}").unwrap();
    session.model_mut().states[0].frozen = true;
    let plan = session.decide().unwrap();
    assert!(!plan.actions.is_empty() && plan.actions.iter().all(|a| a.slice.0 != 0));
    let memory = session.policy().memory.clone();
    session.resume("{}").unwrap();
    assert_eq!(session.policy().memory, memory);
    assert!(Guardrail::default().restore(b"nonsense").is_err());
    let mut session = Session::<Guardrail>::new(model(0.5), r#"{"max_resident_mb": 1}"#).unwrap();
    measure(&mut session, "loss", 3.0);
    let error = session.decide().unwrap_err();
    assert!(error.starts_with("resident-bytes has a limit, but the evaluator does not report it"), "{error}");
    let bad = Model::new(0.5).slice("q", 8, 8, "fisher", [1.0, f32::NAN]);
    let error = Session::<Guardrail>::new(bad, "{}").unwrap().decide().unwrap_err();
    assert_eq!(error, "the fisher spectrum of q contains NaN");
}
