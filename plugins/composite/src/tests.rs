#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::Decision;
use plastic_plugin::testing::FakeMeasure;

fn timing(speed: f64) -> Vec<Metric> {
    vec![
        Metric::new("token-ms", 1e3 / speed, "ms"),
        Metric::new("decode-tokens-per-second", speed, "tokens/s").higher_is_better(),
    ]
}

/// Loss 1.0 → 1.05, divergence 0.04, answers 2 → 1 of 2, speed 100 → 120, memory 500 → 400 MB.
fn host() -> FakeMeasure {
    FakeMeasure::new()
        .scores(Subject::Base, vec![vec![-1.0; 10]; 4])
        .scores(Subject::Candidate, vec![vec![-1.05; 10]; 4])
        .divergences(vec![vec![0.04; 10]; 4])
        .with_example("a", "x")
        .with_example("b", "y")
        .reply(Subject::Base, "a", "x")
        .reply(Subject::Base, "b", "y")
        .reply(Subject::Candidate, "a", "x")
        .reply(Subject::Candidate, "b", "z")
        .timings(Subject::Base, timing(100.0))
        .timings(Subject::Candidate, timing(120.0))
        .counter_of(Subject::Base, Metric::new("resident-bytes", 5e8, "bytes"))
        .counter_of(Subject::Candidate, Metric::new("resident-bytes", 4e8, "bytes"))
}

fn configured(options: &str) -> Result<Composite, String> {
    let mut evaluator = Composite::default();
    evaluator.configure(plastic_plugin::options::parse(options)?)?;
    Ok(evaluator)
}

fn judged(options: &str, host: &FakeMeasure) -> Verdict {
    configured(options).unwrap().evaluate(&Task::default(), host).unwrap()
}

fn value(verdict: &Verdict, name: &str) -> f64 {
    verdict.metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no {name}")).value
}

const ALL: &str = r#""weight_loss": 1, "weight_kl": 2, "weight_match": 0.1, "weight_speed": 0.5, "weight_memory": 1"#;

#[test]
fn the_score_is_the_weighted_sum_of_the_gains() {
    let verdict = judged(&format!("{{{ALL}}}"), &host());
    let loss = 1.0 - 0.05f64.exp();
    let kl = (-0.04f64).exp() - 1.0;
    let expected = loss + 2.0 * kl - 0.1 * 0.5 + 0.5 * 0.2 + 0.2;
    assert!((value(&verdict, "score") - expected).abs() < 1e-6, "{}", verdict.reason);
    assert_eq!(verdict.decision, Decision::Accept, "{}", verdict.reason);
    assert!(verdict.reason.contains("memory +0.200 · 1 (500 → 400 MB)"), "{}", verdict.reason);
    for m in &verdict.metrics {
        assert!(Composite::METRICS.contains(&m.name.as_str()), "{} is not announced", m.name);
    }
    let low = judged(&format!(r#"{{{ALL}, "min_score": 0.2}}"#), &host());
    assert_eq!(low.decision, Decision::Reject);
    assert!(low.reason.ends_with("below 0.2"), "{}", low.reason);
}

#[test]
fn only_what_has_weight_or_limit_is_measured() {
    let host = host();
    judged("{}", &host);
    assert_eq!(host.asked(), ["score-windows base 0..4", "score-windows candidate 0..4"]);
    let host = self::host();
    judged(r#"{"weight_loss": 0, "max_loss_increase": 0, "weight_memory": 0, "max_kl": 1}"#, &host);
    assert_eq!(host.asked(), ["divergence base candidate 4"]);
    let nothing = r#"{"weight_loss": 0, "max_loss_increase": 0, "weight_memory": 0}"#;
    let error = configured(nothing).err().unwrap();
    assert!(error.contains("nothing would be measured"), "{error}");
}

#[test]
fn no_gain_pays_for_a_broken_limit() {
    for (option, what) in [
        (r#""max_loss_increase": 0.01"#, "loss"),
        (r#""max_kl": 0.03"#, "kl"),
        (r#""max_drop": 0.4"#, "match"),
        (r#""max_slowdown": 0.8"#, "speed"),
        (r#""max_resident_mb": 399"#, "memory"),
    ] {
        let verdict = judged(&format!(r#"{{"weight_memory": 100, {option}}}"#), &host());
        assert_eq!(verdict.decision, Decision::Reject, "{option}");
        assert!(verdict.reason.starts_with(&format!("beyond the limit of {what}; score +")), "{}", verdict.reason);
    }
    let wide =
        r#"{"max_loss_increase": 0.06, "max_kl": 0.05, "max_drop": 0.5, "max_slowdown": 0.84, "max_resident_mb": 400}"#;
    assert_eq!(judged(wide, &host()).decision, Decision::Accept);
}

#[test]
fn what_is_no_number_is_rejected() {
    let broken = host().scores(Subject::Candidate, vec![vec![f32::NAN; 10]; 4]);
    let verdict = judged("{}", &broken);
    assert_eq!(verdict.decision, Decision::Reject);
    assert!(verdict.reason.contains("not finite"), "{}", verdict.reason);
    assert!(verdict.metrics.iter().all(|m| m.value.is_finite()));
    let broken = host().scores(Subject::Base, vec![vec![f32::NAN; 10]; 4]);
    let error = configured("{}").unwrap().evaluate(&Task::default(), &broken).unwrap_err();
    assert!(error.contains("the base itself"), "{error}");
}

#[test]
fn questions_are_needed_only_for_answers() {
    let without = FakeMeasure::new()
        .counter_of(Subject::Base, Metric::new("resident-bytes", 5e8, "bytes"))
        .counter_of(Subject::Candidate, Metric::new("resident-bytes", 6e8, "bytes"));
    let memory = r#""weight_loss": 0, "max_loss_increase": 0"#;
    let verdict = judged(&format!("{{{memory}}}"), &without);
    assert!((value(&verdict, "score") + 0.2).abs() < 1e-12);
    assert_eq!(verdict.decision, Decision::Reject);
    let error = configured(&format!(r#"{{{memory}, "weight_match": 1}}"#)).unwrap();
    let mut error = error;
    let error = error.evaluate(&Task::default(), &without).unwrap_err();
    assert!(error.contains("there are no questions"), "{error}");
}
