#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::Decision;
use plastic_plugin::testing::FakeMeasure;

/// Log-probabilities of 20 windows of 10 tokens, and the same with every loss raised by about `rise`.
fn host(rise: f32) -> FakeMeasure {
    let score = |i: usize, t: usize| -(1.0 + 0.1 * (i % 7) as f32 + 0.05 * (t % 5) as f32);
    let base: Vec<Vec<f32>> = (0..20).map(|i| (0..10).map(|t| score(i, t)).collect()).collect();
    let noise = |i: usize| rise * (0.5 + (i % 11) as f32 / 10.0);
    let candidate: Vec<Vec<f32>> =
        base.iter().enumerate().map(|(i, w)| w.iter().map(|s| s - noise(i)).collect()).collect();
    FakeMeasure::new().scores(Subject::Base, base).scores(Subject::Candidate, candidate)
}

fn configured(options: &str) -> Perplexity {
    let mut evaluator = Perplexity::default();
    evaluator.configure(plastic_plugin::options::parse(options).unwrap()).unwrap();
    evaluator
}

fn task() -> Task {
    Task { step: 1, seed: 5, attributes: vec![] }
}

fn metric(verdict: &Verdict, name: &str) -> Metric {
    verdict.metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no {name}")).clone()
}

#[test]
fn a_small_rise_is_accepted_and_reported() {
    let verdict = configured("{}").evaluate(&task(), &host(0.05)).unwrap();
    assert_eq!(verdict.decision, Decision::Accept, "{}", verdict.reason);
    let rise = metric(&verdict, "loss-increase");
    let (loss, base) = (metric(&verdict, "loss"), metric(&verdict, "loss-base"));
    assert!((rise.value - (loss.value - base.value)).abs() < 1e-12);
    assert!(rise.low.unwrap() < rise.value && rise.value < rise.high.unwrap());
    assert!((metric(&verdict, "perplexity").value - loss.value.exp()).abs() < 1e-12);
    assert!((metric(&verdict, "perplexity-base").value - base.value.exp()).abs() < 1e-12);
    assert_eq!(metric(&verdict, "tokens-scored").value, 200.0);
    // 10 windows of 11 have noise 0.5 ..= 1.5, mean 1; the other 9 have 0.5 ..= 1.3.
    let expected = 0.05 * (0..20).map(|i| 0.5 + f64::from(i % 11) / 10.0).sum::<f64>() / 20.0;
    assert!((rise.value - expected).abs() < 1e-6);
    assert!(verdict.reason.contains("95 % between") && verdict.reason.ends_with("is within the limit of 0.1"));
}

#[test]
fn a_large_rise_is_rejected() {
    let verdict = configured("{}").evaluate(&task(), &host(0.5)).unwrap();
    assert_eq!(verdict.decision, Decision::Reject);
    assert!(verdict.reason.ends_with("the rise exceeds the limit of 0.1"), "{}", verdict.reason);
}

#[test]
fn the_upper_gate_wants_certainty() {
    let rise = metric(&configured("{}").evaluate(&task(), &host(0.1)).unwrap(), "loss-increase");
    let between = (rise.value + rise.high.unwrap()) / 2.0;
    let options = |gate: &str| format!(r#"{{"max_loss_increase": {between}, "gate": "{gate}"}}"#);
    let decision = |o: String| configured(&o).evaluate(&task(), &host(0.1)).unwrap().decision;
    assert_eq!(decision(options("mean")), Decision::Accept);
    assert_eq!(decision(options("upper")), Decision::Reject);
}

#[test]
fn losses_that_are_not_finite_are_rejected() {
    for bad in [f32::NAN, f32::NEG_INFINITY] {
        let base = vec![vec![-1.0; 4]; 3];
        let mut candidate = base.clone();
        candidate[1][2] = bad;
        let host = FakeMeasure::new().scores(Subject::Base, base).scores(Subject::Candidate, candidate);
        let verdict = configured("{}").evaluate(&task(), &host).unwrap();
        assert_eq!(verdict.decision, Decision::Reject);
        assert!(verdict.reason.contains("not finite"), "{}", verdict.reason);
        assert!(verdict.metrics.iter().all(|m| m.value.is_finite()));
    }
    let broken = vec![vec![f32::NAN; 4]];
    let host = FakeMeasure::new().scores(Subject::Base, broken.clone()).scores(Subject::Candidate, broken);
    assert!(configured("{}").evaluate(&task(), &host).unwrap().reason.contains("base itself"));
}

#[test]
fn the_base_is_scored_once_and_in_batches() {
    let host = host(0.05);
    let mut evaluator = configured(r#"{"windows": 12}"#);
    evaluator.evaluate(&task(), &host).unwrap();
    evaluator.evaluate(&task(), &host).unwrap();
    let base: Vec<_> = host.asked().into_iter().filter(|q| q.contains("base")).collect();
    assert_eq!(base, ["score-windows base 0..8", "score-windows base 8..12"]);
    let candidate = host.asked().iter().filter(|q| q.contains("candidate")).count();
    assert_eq!(candidate, 4);
}

#[test]
fn the_same_task_gives_the_same_verdict() {
    let verdict = || configured("{}").evaluate(&task(), &host(0.07)).unwrap();
    assert_eq!(verdict(), verdict());
}

#[test]
fn unusable_measurements_are_named() {
    let none = FakeMeasure::new();
    assert!(configured("{}").evaluate(&task(), &none).unwrap_err().contains("no evaluation text"));
    let host =
        FakeMeasure::new().scores(Subject::Base, vec![vec![-1.0; 4]]).scores(Subject::Candidate, vec![vec![-1.0; 3]]);
    assert!(configured("{}").evaluate(&task(), &host).unwrap_err().contains("different tokens of window 0"));
}

#[test]
fn one_window_has_no_interval() {
    let verdict = configured(r#"{"windows": 1, "gate": "upper"}"#).evaluate(&task(), &host(0.05)).unwrap();
    assert_eq!(metric(&verdict, "loss-increase").low, None);
    assert_eq!(verdict.decision, Decision::Accept);
}
