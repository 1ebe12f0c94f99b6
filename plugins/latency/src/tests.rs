#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::Decision;
use plastic_plugin::testing::FakeMeasure;

fn timings(first: f64, token: f64) -> Vec<Metric> {
    vec![
        Metric::new("first-token-ms", first, "ms").interval(first, first),
        Metric::new("token-ms", token, "ms").interval(0.9 * token, 1.1 * token),
        Metric::new("decode-tokens-per-second", 1e3 / token, "tokens/s").higher_is_better(),
    ]
}

/// A base of 10 ms per token and 500 MB; a candidate of 8 ms and 400 MB.
fn host() -> FakeMeasure {
    FakeMeasure::new()
        .timings(Subject::Base, timings(100.0, 10.0))
        .timings(Subject::Candidate, timings(90.0, 8.0))
        .scores(Subject::Candidate, vec![vec![-1.0; 4]; 3])
        .counter(Metric::new("peak-bytes", 9e8, "bytes"))
        .counter_of(Subject::Base, Metric::new("resident-bytes", 5e8, "bytes"))
        .counter_of(Subject::Candidate, Metric::new("resident-bytes", 4e8, "bytes"))
}

fn judged(options: &str, host: &FakeMeasure) -> Verdict {
    let mut evaluator = Latency::default();
    evaluator.configure(plastic_plugin::options::parse(options).unwrap()).unwrap();
    evaluator.evaluate(&Task::default(), host).unwrap()
}

fn value(verdict: &Verdict, name: &str) -> f64 {
    verdict.metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no {name}")).value
}

#[test]
fn without_limits_everything_is_accepted_and_reported() {
    let host = host();
    let verdict = judged(r#"{"prompt_tokens": 64, "new_tokens": 16}"#, &host);
    assert_eq!(verdict.decision, Decision::Accept);
    assert!(verdict.reason.ends_with("no limit is set"), "{}", verdict.reason);
    assert!(verdict.reason.contains("8.00 ms per token (base 10.00, 0.80 times; noise 20 %)"), "{}", verdict.reason);
    assert_eq!((value(&verdict, "token-ms"), value(&verdict, "token-ms-base")), (8.0, 10.0));
    assert_eq!((value(&verdict, "slowdown"), value(&verdict, "resident-bytes")), (0.8, 4e8));
    assert!((value(&verdict, "token-noise") - 0.2).abs() < 1e-9);
    for m in &verdict.metrics {
        assert!(Latency::METRICS.contains(&m.name.as_str()), "{} is not announced", m.name);
    }
    // Nothing was scored yet, so a little is: once for the copies, then for the speed.
    let asked = host.asked();
    assert_eq!(asked[..2], ["timing base 64 16", "timing candidate 64 16"]);
    assert_eq!(asked[2..], ["score-windows candidate 0..1", "score-windows candidate 1..3"]);
}

#[test]
fn what_was_scored_by_another_evaluator_is_not_scored_again() {
    let host = host()
        .counter_of(Subject::Candidate, Metric::new("scored-tokens-per-second", 4000.0, "tokens/s").higher_is_better());
    assert_eq!(value(&judged("{}", &host), "scored-tokens-per-second"), 4000.0);
    assert_eq!(host.asked().len(), 2);
}

#[test]
fn each_limit_rejects_by_name() {
    for (option, text) in [
        (r#"{"max_first_token_ms": 89}"#, "90.0000 ms to the first token (limit 89)"),
        (r#"{"max_token_ms": 7.9}"#, "8.0000 ms per token (limit 7.9)"),
        (r#"{"max_slowdown": 0.7}"#, "0.8000 times the base's ms per token (limit 0.7)"),
        (r#"{"max_resident_mb": 399}"#, "400.0000 MB in memory (limit 399)"),
    ] {
        let verdict = judged(option, &host());
        assert_eq!(verdict.decision, Decision::Reject, "{option}");
        assert!(verdict.reason.contains(text), "{}", verdict.reason);
    }
    let wide = r#"{"max_first_token_ms": 90, "max_token_ms": 8, "max_slowdown": 0.8, "max_resident_mb": 400}"#;
    let verdict = judged(wide, &host());
    assert_eq!(verdict.decision, Decision::Accept);
    assert!(verdict.reason.ends_with("within the limits"), "{}", verdict.reason);
}

#[test]
fn a_host_that_cannot_measure_says_so() {
    let error = Latency::default().evaluate(&Task::default(), &FakeMeasure::new()).unwrap_err();
    assert_eq!(error, "no timings were prepared for base");
    let bare = host().timings(Subject::Candidate, vec![]);
    let error = Latency::default().evaluate(&Task::default(), &bare).unwrap_err();
    assert_eq!(error, "the host does not measure token-ms");
}
