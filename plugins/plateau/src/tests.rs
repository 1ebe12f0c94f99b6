#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::Change;
use plastic_plugin::testing::{Model, Session};

/// Two slices of 32 × 32 with energies 4^-i, so that 0.9999 of it lie in 7 components.
fn model(budget: f64) -> Model {
    let values = |scale: f32| (0..32).map(move |i| scale * 0.5f32.powi(i));
    Model::new(budget).steps(20).slice("a", 32, 32, "fisher", values(1.0)).slice("b", 32, 32, "fisher", values(0.25))
}

fn measured(session: &mut Session<Plateau>, rise: f64) {
    session.model_mut().metrics = vec![Metric::new("loss-increase", rise, "nats")];
}

fn ranks(session: &Session<Plateau>) -> Vec<u32> {
    session.model().states.iter().map(|s| s.awake).collect()
}

/// Applies a plan the way the host does, which refuses what leaves more awake than budget and now.
fn commit(session: &mut Session<Plateau>, plan: &Plan) {
    let before = session.model().awake();
    session.commit(plan);
    let model = session.model();
    assert!(model.awake() <= before.max(model.run.budget));
}

#[test]
fn flat_goes_a_notch_towards_the_rank_that_holds_the_energy() {
    let mut session = Session::<Plateau>::new(model(1.0), "{}").unwrap();
    // From 16, where factors cost what the dense slice costs, to 7: a quarter of 2 · 9 components, rounded up.
    let plan = session.decide().unwrap();
    let left: u32 = plan.actions.iter().map(|a| if let Change::SetRank(r) = a.change { r } else { 0 }).sum();
    assert_eq!((plan.actions.len(), left), (2, 26), "{plan:?}");
    commit(&mut session, &plan);
    for _ in 0..12 {
        let plan = session.decide().unwrap();
        commit(&mut session, &plan);
    }
    assert_eq!(ranks(&session), [7, 7]);
    assert!(session.decide().unwrap().stop.unwrap().contains("wanted rank"));
}

#[test]
fn a_rise_wakes_half_and_that_stays_awake() {
    let mut session = Session::<Plateau>::new(model(1.0), r#"{"notch": 1.0}"#).unwrap();
    let plan = session.decide().unwrap();
    commit(&mut session, &plan);
    assert_eq!(ranks(&session), [7, 7]);
    measured(&mut session, 0.5);
    let plan = session.decide().unwrap();
    let halves: Vec<_> = plan.actions.iter().map(|a| a.change.clone()).collect();
    assert_eq!(halves, [Change::SetRank(12), Change::SetRank(12)], "7 + 9 / 2, rounded up");
    assert!(plan.actions[0].reason.ends_with("12 of 32: the loss rose (+0.5000)"), "{}", plan.actions[0].reason);
    commit(&mut session, &plan);
    measured(&mut session, 0.3);
    assert!(session.decide().unwrap().actions.is_empty(), "it fell: neither flat nor a rise");
    assert!(session.decide().unwrap().stop.is_some(), "flat, and both had to wake");
}

#[test]
fn between_flat_and_a_rise_it_waits() {
    let mut session = Session::<Plateau>::new(model(1.0), "{}").unwrap();
    let plan = session.decide().unwrap();
    commit(&mut session, &plan);
    measured(&mut session, 0.1);
    let plan = session.decide().unwrap();
    assert!(plan.actions.is_empty() && plan.stop.is_none());
    commit(&mut session, &plan);
    assert!(!session.decide().unwrap().actions.is_empty(), "flat again");
}

#[test]
fn does_not_flap() {
    // The loss follows the ranks: every cut shows, every waking helps.
    let mut session = Session::<Plateau>::new(model(0.8), r#"{"delta": 0.01, "gamma": 0.02}"#).unwrap();
    let (mut turns, mut direction, mut before) = (0, 0i64, session.model().awake() as i64);
    for _ in 0..200 {
        let plan = session.decide().unwrap();
        commit(&mut session, &plan);
        session.resume(r#"{"delta": 0.01, "gamma": 0.02}"#).unwrap();
        let awake = session.model().awake() as i64;
        measured(&mut session, (2048 - awake) as f64 / 4096.0);
        let now = (awake - before).signum();
        if now != 0 && now == -direction {
            turns += 1;
        }
        if now != 0 {
            direction = now;
        }
        before = awake;
        if plan.stop.is_some() {
            break;
        }
    }
    assert!(turns <= 2 * HALVINGS, "{turns} turns");
    assert!(session.decide().unwrap().stop.is_some(), "it comes to rest");
}

#[test]
fn above_the_budget_nothing_wakes() {
    let mut session = Session::<Plateau>::new(model(0.5), "{}").unwrap();
    let plan = session.decide().unwrap();
    commit(&mut session, &plan);
    assert!(session.model().awake() > session.model().run.budget);
    measured(&mut session, 5.0);
    let plan = session.decide().unwrap();
    assert!(plan.actions.is_empty() && plan.stop.is_none());
}

#[test]
fn a_rejected_notch_is_halved_until_it_gives_in() {
    let mut session = Session::<Plateau>::new(model(1.0), "{}").unwrap();
    let mut last = f64::INFINITY;
    for round in 0..20 {
        let plan = session.decide().unwrap();
        if let Some(why) = plan.stop {
            assert!(why.ends_with("7 times"), "{why}");
            assert!(round > 3);
            return;
        }
        assert!(plan.predicted.unwrap() <= last);
        last = plan.predicted.unwrap();
        session.reject(&plan, "too much", 9.0);
    }
    panic!("it never gave in");
}

#[test]
fn frozen_slices_snapshots_and_bad_numbers() {
    let mut session = Session::<Plateau>::new(model(0.5), "{}").unwrap();
    session.model_mut().states[0].frozen = true;
    let plan = session.decide().unwrap();
    assert!(!plan.actions.is_empty() && plan.actions.iter().all(|a| a.slice.0 == 1));
    commit(&mut session, &plan);
    measured(&mut session, 0.01);
    let memory = session.policy().memory.clone();
    session.resume("{}").unwrap();
    assert_eq!(session.policy().memory, memory);
    let mut other = Plateau::default();
    assert!(other.restore(&session.policy().snapshot()).is_err(), "another run's");
    assert!(other.restore(b"nonsense").is_err());
    let bad = Model::new(0.5).slice("q", 8, 8, "fisher", [1.0, f32::NAN]);
    let error = Session::<Plateau>::new(bad, "{}").unwrap().decide().unwrap_err();
    assert_eq!(error, "the fisher spectrum of q contains NaN");
    let error = Session::<Plateau>::new(model(0.5), r#"{"gamma": 0.01}"#).err().unwrap();
    assert!(error.starts_with("option gamma is 0.01"), "{error}");
}
