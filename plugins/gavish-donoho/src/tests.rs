#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::Change;
use plastic_plugin::testing::{Model, Session};

#[test]
fn the_formulas_by_hand() {
    assert!((lambda(1.0) - 4.0 / 3f64.sqrt()).abs() < 1e-12);
    // From the paper's table: λ(0.5) = 1.9786, λ(0.05) = 1.5066; ω(1) = 2.8582, ω(0.5) = 2.1711.
    assert!((lambda(0.5) - 1.9786).abs() < 5e-5 && (lambda(0.05) - 1.5066).abs() < 5e-5);
    assert!((omega(1.0) - 2.8582).abs() < 0.02 && (omega(0.5) - 2.1711).abs() < 0.02);
    assert_eq!((median(&[5.0, 2.0, 1.0]), median(&[5.0, 3.0, 2.0, 1.0]), median(&[])), (2.0, 2.5, 0.0));
    assert!((threshold(&[9.0, 2.0, 1.0], 3, 3, 0.0) - 2.0 * 2.86).abs() < 1e-12);
    assert!((threshold(&[9.0, 2.0, 1.0], 3, 3, 0.5) - 2.0).abs() < 1e-12, "4/√3 · √3 · 0.5");
    assert!(threshold(&[1.0, 0.0, 0.0, 0.0], 4, 4, 0.0) > 0.0);
}

#[test]
fn factor_one_is_the_rule_itself() {
    // Median 1, β = 1: above 2.86 lie two components of a, all but none of the flat b: one at least.
    let noise = [1.0f32; 17];
    let model = Model::new(1.0)
        .slice("a", 20, 20, "fisher", [9.0, 3.0, 2.8].into_iter().chain(noise))
        .slice("b", 20, 20, "fisher", [1.0; 20]);
    let mut session = Session::<GavishDonoho>::new(model, r#"{"factor": 1, "ramp": false}"#).unwrap();
    let plan = session.decide().unwrap();
    let changes: Vec<_> = plan.actions.iter().map(|a| a.change.clone()).collect();
    assert_eq!(changes, [Change::SetRank(2), Change::SetRank(1)]);
    session.commit(&plan);
    assert!(session.decide().unwrap().stop.unwrap().ends_with("are all the rule asks for"));
}

/// Three slices with spectra of different shapes; `share` may stay awake.
fn model(share: f64) -> Model {
    let power = |p: f32| (1..=32).map(move |i| (i as f32).powf(-p));
    Model::new(share)
        .steps(3)
        .slice("steep", 32, 32, "fisher", power(1.5))
        .slice("middle", 32, 48, "fisher", power(0.8))
        .slice("flat", 64, 32, "fisher", power(0.3))
}

#[test]
fn goes_to_the_budget_step_by_step_and_stops() {
    let mut session = Session::<GavishDonoho>::new(model(0.6), "{}").unwrap();
    for step in 1..=3 {
        let before = session.model().awake();
        let plan = session.decide().unwrap();
        assert_eq!(plan, session.decide().unwrap(), "deterministic");
        session.commit(&plan);
        session.resume("{}").unwrap();
        assert!(session.model().awake() < before, "step {step}");
        // Half the squared tail.
        let asleep = |(state, i): (&plastic_plugin::SliceState, usize)| -> f64 {
            let power = [1.5f32, 0.8, 0.3][i];
            (state.awake + 1..=32).map(|c| f64::from((c as f32).powf(-power)).powi(2)).sum()
        };
        let rise = 0.5 * session.model().states.iter().zip(0..).map(asleep).sum::<f64>();
        assert!((plan.predicted.unwrap() - rise).abs() < 1e-9);
    }
    let (awake, budget) = (session.model().awake(), session.model().run.budget);
    assert!(awake <= budget && awake > budget * 9 / 10, "{awake} of {budget}");
    let plan = session.decide().unwrap();
    assert!(plan.actions.is_empty() && plan.stop.unwrap().starts_with("budget reached"));
}

#[test]
fn a_rejection_halves_the_way() {
    let options = r#"{"ramp": false}"#;
    let mut session = Session::<GavishDonoho>::new(model(0.5), options).unwrap();
    let plan = session.decide().unwrap();
    session.reject(&plan, "too much", 9.0);
    session.resume(options).unwrap();
    let milder = session.decide().unwrap();
    assert!(!milder.actions.is_empty() && milder.predicted.unwrap() < plan.predicted.unwrap());
}

#[test]
fn frozen_slices_count_but_do_not_change() {
    let mut session = Session::<GavishDonoho>::new(model(0.7), r#"{"ramp": false}"#).unwrap();
    session.model_mut().states[1].frozen = true;
    let plan = session.decide().unwrap();
    assert!(!plan.actions.is_empty() && plan.actions.iter().all(|a| a.slice.0 != 1));
    session.commit(&plan);
    assert!(session.model().awake() <= session.model().run.budget);
}

#[test]
fn bad_numbers_are_named() {
    let error = |values: &[f32]| {
        let model = Model::new(0.5).slice("q", 8, 8, "fisher", values.iter().copied());
        Session::<GavishDonoho>::new(model, "{}").unwrap().decide().unwrap_err()
    };
    assert_eq!(error(&[1.0, f32::NAN]), "the fisher spectrum of q contains NaN");
    assert_eq!(error(&[]), "the host sent no fisher spectrum of q");
    let zeros = Model::new(0.5).slice("q", 8, 8, "fisher", [0.0; 8]);
    assert!(Session::<GavishDonoho>::new(zeros, "{}").unwrap().decide().is_ok());
    assert!(GavishDonoho::default().restore(b"nonsense").is_err());
}
