#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use plastic_plugin::Decision;
use plastic_plugin::testing::FakeMeasure;

/// Ten questions of which the base answers eight right, and the candidate `right` of those.
fn host(right: usize) -> FakeMeasure {
    (0..10).fold(FakeMeasure::new(), |host, i| {
        let (prompt, answer) = (format!("Question {i}:"), format!(" Answer {i}"));
        let says = |is_right: bool| if is_right { format!("ANSWER  {i}\n") } else { " something else".into() };
        host.with_example(&prompt, &answer).reply(Subject::Base, &prompt, &says(i < 8)).reply(
            Subject::Candidate,
            &prompt,
            &says(i < right),
        )
    })
}

fn configured(options: &str) -> ExactMatch {
    let mut evaluator = ExactMatch::default();
    evaluator.configure(plastic_plugin::options::parse(options).unwrap()).unwrap();
    evaluator
}

fn judged(options: &str, host: &FakeMeasure) -> Verdict {
    configured(options).evaluate(&Task::default(), host).unwrap()
}

fn metric(verdict: &Verdict, name: &str) -> Metric {
    verdict.metrics.iter().find(|m| m.name == name).unwrap_or_else(|| panic!("no {name}")).clone()
}

#[test]
fn a_fall_within_the_limit_is_accepted_and_reported() {
    let verdict = judged("{}", &host(7));
    assert_eq!(verdict.decision, Decision::Accept, "{}", verdict.reason);
    assert!(verdict.reason.starts_with("7 of 10 answers right"), "{}", verdict.reason);
    assert!(verdict.reason.contains("8 under the base; lost 1, won 0, p = 1.000"), "{}", verdict.reason);
    let share = metric(&verdict, "exact-match");
    assert!(share.value == 0.7 && share.low.unwrap() < 0.7 && share.high.unwrap() > 0.7 && share.higher_is_better);
    assert_eq!(metric(&verdict, "exact-match-base").value, 0.8);
    assert!((metric(&verdict, "exact-match-drop").value - 0.1).abs() < 1e-12);
    assert_eq!((metric(&verdict, "mcnemar-p").value, metric(&verdict, "questions").value), (1.0, 10.0));
    for m in &verdict.metrics {
        assert!(ExactMatch::METRICS.contains(&m.name.as_str()), "{} is not announced", m.name);
    }
}

#[test]
fn a_larger_fall_is_rejected_and_a_gain_accepted() {
    let verdict = judged("{}", &host(6));
    assert_eq!(verdict.decision, Decision::Reject);
    assert!(verdict.reason.ends_with("a fall of 20.0 % exceeds the limit of 10.0 %"), "{}", verdict.reason);
    assert_eq!(judged(r#"{"max_drop": 0.25}"#, &host(6)).decision, Decision::Accept);
    let gain = judged(r#"{"max_drop": 0}"#, &host(10));
    assert_eq!(gain.decision, Decision::Accept);
    assert!((metric(&gain, "exact-match-drop").value + 0.2).abs() < 1e-12);
}

#[test]
fn the_base_is_asked_once() {
    let (host, mut evaluator) = (host(8), configured("{}"));
    evaluator.evaluate(&Task::default(), &host).unwrap();
    evaluator.evaluate(&Task::default(), &host).unwrap();
    let of = |name: &str| host.asked().iter().filter(|a| a.starts_with(&format!("generate {name}"))).count();
    assert_eq!((of("base"), of("candidate")), (10, 20));
}

#[test]
fn options_change_what_is_right() {
    assert!(configured(r#"{"case": true}"#).evaluate(&Task::default(), &host(8)).is_err(), "ANSWER is not Answer");
    let talkative = FakeMeasure::new()
        .with_example("2 + 2 =", " 4")
        .text(Subject::Base, " 4, of course")
        .text(Subject::Candidate, " 4, of course");
    let error = configured("{}").evaluate(&Task::default(), &talkative).unwrap_err();
    assert!(error.contains("the base answers none of the 1 questions right"), "{error}");
    assert_eq!(judged(r#"{"contains": true}"#, &talkative).decision, Decision::Accept);
    assert_eq!(metric(&judged(r#"{"questions": 4}"#, &host(8)), "questions").value, 4.0);
}

#[test]
fn data_without_questions_is_an_error_that_says_what_is_needed() {
    let error = configured("{}").evaluate(&Task::default(), &FakeMeasure::new()).unwrap_err();
    assert!(error.contains("rows with `prompt` and `completion`") && error.contains("data/questions.jsonl"), "{error}");
    let empty = FakeMeasure::new().with_example("Say nothing:", " ");
    let error = configured("{}").evaluate(&Task::default(), &empty).unwrap_err();
    assert!(error.contains("question 0 has an empty answer"), "{error}");
}

/// Two questions; the pretend tokeniser makes a token of a byte. Prompt tokens have the score −9.
fn scored(first: f32, second: f32) -> FakeMeasure {
    let rows = |a: f32, b: f32| vec![vec![-9.0, -9.0, a, a], vec![-9.0, b]];
    FakeMeasure::new()
        .with_example("abc", "de")
        .with_example("ab", "c")
        .scores(Subject::Base, rows(-1.0, -2.0))
        .scores(Subject::Candidate, rows(first, second))
}

#[test]
fn likelihood_scores_the_answers_own_tokens() {
    let verdict = judged(r#"{"mode": "likelihood"}"#, &scored(-1.1, -2.1));
    assert_eq!(verdict.decision, Decision::Accept, "{}", verdict.reason);
    assert!((metric(&verdict, "answer-loss-base").value - 4.0 / 3.0).abs() < 1e-6);
    let rise = metric(&verdict, "answer-loss-increase");
    assert!((rise.value - 0.1).abs() < 1e-6 && rise.low.is_some());
    let worse = judged(r#"{"mode": "likelihood", "max_loss_increase": 0.05}"#, &scored(-1.1, -2.1));
    assert_eq!(worse.decision, Decision::Reject);
    assert!(worse.reason.ends_with("the rise exceeds the limit of 0.05"), "{}", worse.reason);
    let broken = judged(r#"{"mode": "likelihood"}"#, &scored(f32::NAN, -2.0));
    assert_eq!(broken.decision, Decision::Reject);
    assert!(broken.reason.contains("is not finite"), "{}", broken.reason);
}

#[test]
fn likelihood_asks_the_base_once() {
    let (host, mut evaluator) = (scored(-1.0, -2.0), configured(r#"{"mode": "likelihood"}"#));
    evaluator.evaluate(&Task::default(), &host).unwrap();
    evaluator.evaluate(&Task::default(), &host).unwrap();
    assert_eq!(host.asked(), ["score base 2", "score candidate 2", "score candidate 2"]);
}
