#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::Decision;
use plastic_plugin::testing::FakeMeasure;

/// 20 windows of 10 tokens whose divergences are 0, 0.01 … 0.09 times `scale`, windows slightly apart.
fn host(scale: f32) -> FakeMeasure {
    let token = |w: usize, t: usize| scale * (0.01 * t as f32) * (0.9 + 0.01 * w as f32);
    FakeMeasure::new().divergences((0..20).map(|w| (0..10).map(|t| token(w, t)).collect()).collect())
}

fn judged(options: &str, host: &FakeMeasure) -> Verdict {
    let mut evaluator = Kl::default();
    evaluator.configure(plastic_plugin::options::parse(options).unwrap()).unwrap();
    evaluator.evaluate(&Task { step: 1, seed: 5, attributes: vec![] }, host).unwrap()
}

fn metric(verdict: &Verdict, name: &str) -> Metric {
    verdict.metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no {name}")).clone()
}

#[test]
fn a_small_divergence_is_accepted_and_reported() {
    let host = host(1.0);
    let verdict = judged("{}", &host);
    assert_eq!(verdict.decision, Decision::Accept, "{}", verdict.reason);
    let kl = metric(&verdict, "kl");
    // 0.045 times the windows' mean factor, 0.9 + 0.01 · 9.5.
    assert!((kl.value - 0.045 * 0.995).abs() < 1e-6, "{}", kl.value);
    assert!(kl.low.unwrap() < kl.value && kl.value < kl.high.unwrap());
    assert!((metric(&verdict, "kl-max").value - 0.09 * 1.09).abs() < 1e-6);
    assert!(metric(&verdict, "kl-median").value < metric(&verdict, "kl-p95").value);
    assert_eq!(metric(&verdict, "tokens-compared").value, 200.0);
    assert_eq!(host.asked(), ["divergence base candidate 20"]);
    let reported: Vec<&str> = verdict.metrics.iter().map(|m| m.name.as_str()).collect();
    assert_eq!(reported, Kl::METRICS);
}

#[test]
fn nothing_diverges_from_itself() {
    let verdict = judged(r#"{"max_kl": 0}"#, &host(0.0));
    assert_eq!(verdict.decision, Decision::Accept, "{}", verdict.reason);
    assert_eq!(metric(&verdict, "kl").value, 0.0);
}

#[test]
fn the_upper_end_decides_unless_told_otherwise() {
    let measured = metric(&judged("{}", &host(1.0)), "kl");
    let between = (measured.value + measured.high.unwrap()) / 2.0;
    let limit = |gate: &str| judged(&format!(r#"{{"max_kl": {between}, "gate": "{gate}"}}"#), &host(1.0));
    let upper = limit("upper");
    assert_eq!(upper.decision, Decision::Reject);
    assert!(upper.reason.contains("the upper end exceeds the limit"), "{}", upper.reason);
    assert_eq!(limit("mean").decision, Decision::Accept);
}

#[test]
fn the_worst_tokens_have_their_own_limit() {
    let verdict = judged(r#"{"max_p95": 0.05}"#, &host(1.0));
    assert_eq!(verdict.decision, Decision::Reject);
    assert!(verdict.reason.contains("is within the limit of 0.15, but the 95th percentile"), "{}", verdict.reason);
    assert_eq!(judged(r#"{"max_p95": 0.5}"#, &host(1.0)).decision, Decision::Accept);
}

#[test]
fn what_is_no_number_is_rejected() {
    let broken = FakeMeasure::new().divergences(vec![vec![0.1, f32::NAN], vec![0.1, 0.1]]);
    let verdict = judged(r#"{"max_kl": 100}"#, &broken);
    assert_eq!(verdict.decision, Decision::Reject);
    assert_eq!(verdict.reason, "the candidate's outputs are not finite at 1 of 4 tokens");
    assert!(verdict.metrics.iter().all(|m| m.value.is_finite()));
}

#[test]
fn one_window_has_no_interval_and_none_is_an_error() {
    let one = judged("{}", &FakeMeasure::new().divergences(vec![vec![0.1, 0.1]]));
    assert!(one.reason.contains("one window has no interval"), "{}", one.reason);
    assert_eq!(metric(&one, "kl").low, None);
    let error = Kl::default().evaluate(&Task::default(), &FakeMeasure::new()).unwrap_err();
    assert!(error.starts_with("there is no evaluation text"), "{error}");
}

#[test]
fn asked_for_fewer_windows_it_takes_the_first() {
    let host = host(1.0);
    judged(r#"{"windows": 3}"#, &host);
    assert_eq!(host.asked(), ["divergence base candidate 3"]);
}
