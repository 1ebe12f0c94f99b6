//! The evaluators from outside: each one in a short run of the built program on the real default model.
//!
//! Covers: accepted and rejected by each measure, the figures that are reported, data without questions,
//! what a policy can do with what an evaluator reports.

use plastic_tests::{Ran, Scratch, base, run};
use serde_json::Value;

/// One step over four layers with little text: seconds.
const SHORT: [&str; 14] = [
    "--layers",
    "model.layers.[0-3].*",
    "--window",
    "128",
    "--windows",
    "4",
    "--calibration-windows",
    "4",
    "--gradient-windows",
    "2",
    "--budget",
    "0.9",
    "--steps",
    "1",
];

fn judge(evaluator: &str, out: &str, data: &str, options: &[&str]) -> Ran {
    let (base, evaluator) = (base(), format!("plugins/{evaluator}.wasm"));
    let mut args = vec!["--policy", "plugins/energy.wasm", "--evaluator", &evaluator, "--base", &base, "--out", out];
    args.extend(SHORT);
    args.extend(["--data", data, "--json"]);
    args.extend(options.iter().flat_map(|o| ["--evaluator-opt", o]));
    run(&args)
}

/// The only step of a run that ended with this code.
fn step(ran: &Ran, code: i32) -> Value {
    assert_eq!(ran.code, Some(code), "{}\n{}", ran.out, ran.err);
    let report = ran.json();
    assert_eq!(report["wake"]["identical"], true);
    report["steps"][0].clone()
}

fn metric(step: &Value, name: &str) -> f64 {
    let metrics = step["verdict"]["metrics"].as_array().expect("metrics");
    let found = metrics.iter().find(|m| m["name"] == name).and_then(|m| m["value"].as_f64());
    found.unwrap_or_else(|| panic!("no {name} in {metrics:?}"))
}

const EVAL: &str = "data/eval.jsonl";
const QUESTIONS: &str = "data/questions.jsonl";

#[test]
fn kl_measures_how_far_the_predictions_moved() {
    let s = Scratch::new("kl");
    let accepted = step(&judge("kl", &s.path("a"), EVAL, &["max_kl=10"]), 0);
    assert_eq!(accepted["fate"], "committed", "{accepted}");
    let [kl, median, p95, max] = ["kl", "kl-median", "kl-p95", "kl-max"].map(|n| metric(&accepted, n));
    assert!(0.0 < median && median < p95 && p95 < max && kl < max, "{accepted}");
    assert_eq!(metric(&accepted, "tokens-compared"), 4.0 * 127.0);

    // The same change, measured again, is the same figure, and too much for a tighter limit.
    let rejected = step(&judge("kl", &s.path("b"), EVAL, &["max_kl=0.0001"]), 3);
    assert_eq!(rejected["fate"], "rejected");
    assert_eq!(metric(&rejected, "kl"), kl);
}

#[test]
fn exact_match_asks_questions() {
    let s = Scratch::new("match");
    // The file holds short questions only; they are its windows too.
    let asked = step(&judge("exact-match", &s.path("a"), QUESTIONS, &["questions=8", "max_drop=1"]), 0);
    assert_eq!(metric(&asked, "questions"), 8.0);
    assert!(metric(&asked, "exact-match-base") >= 0.5, "the base knows most of these: {asked}");
    let scored = step(
        &judge("exact-match", &s.path("b"), QUESTIONS, &["mode=likelihood", "max_loss_increase=0", "questions=8"]),
        3,
    );
    let rise = metric(&scored, "answer-loss") - metric(&scored, "answer-loss-base");
    assert!(rise > 0.0 && (rise - metric(&scored, "answer-loss-increase")).abs() < 1e-9, "{scored}");

    let without = judge("exact-match", &s.path("c"), EVAL, &[]);
    assert_eq!(without.code, Some(1), "{}\n{}", without.out, without.err);
    assert!(without.out.contains("rows with `prompt` and `completion`"), "{}", without.out);
}

#[test]
fn latency_times_and_weighs() {
    let s = Scratch::new("latency");
    let options = ["prompt_tokens=16", "new_tokens=4"];
    let measured = step(&judge("latency", &s.path("a"), EVAL, &options), 0);
    for name in ["first-token-ms", "token-ms", "decode-tokens-per-second", "scored-tokens-per-second", "slowdown"] {
        assert!(metric(&measured, name) > 0.0, "{name}: {measured}");
    }
    let [resident, of_base] = ["resident-bytes", "resident-bytes-base"].map(|n| metric(&measured, n));
    assert!(resident > of_base, "factors stand beside the weights that wake again: {resident}, {of_base}");
    assert!(metric(&measured, "peak-bytes") >= resident);
    let slow = step(&judge("latency", &s.path("b"), EVAL, &[options.as_slice(), &["max_token_ms=0.0001"]].concat()), 3);
    assert!(slow["reason"].as_str().unwrap_or_default().contains("(limit 0.0001)"), "{slow}");
}

#[test]
fn composite_weighs_everything() {
    let s = Scratch::new("composite");
    let both: Vec<u8> = [EVAL, QUESTIONS]
        .iter()
        .flat_map(|f| std::fs::read(plastic_tests::root().join(f)).expect("the texts"))
        .collect();
    let data = s.file("both.jsonl", &both);
    let all = [
        "weight_kl=1",
        "weight_match=1",
        "weight_speed=0.01",
        "max_loss_increase=10",
        "min_score=-100",
        "questions=4",
        "prompt_tokens=16",
        "new_tokens=4",
    ];
    let weighed = step(&judge("composite", &s.path("a"), &data, &all), 0);
    let [kl, a, a_base, m, m_base, rise, score] =
        ["kl", "exact-match", "exact-match-base", "resident-bytes", "resident-bytes-base", "loss-increase", "score"]
            .map(|n| metric(&weighed, n));
    let without_speed = (1.0 - rise.exp()) + ((-kl).exp() - 1.0) + (a - a_base) + (1.0 - m / m_base);
    // A hundredth of the change of speed remains; a machine at work makes that anything up to a few times.
    assert!((score - without_speed).abs() < 0.1, "{score}, {without_speed}: {weighed}");
    let limited = step(&judge("composite", &s.path("b"), EVAL, &["max_loss_increase=0.000001", "min_score=-100"]), 3);
    assert!(limited["reason"].as_str().unwrap_or_default().starts_with("beyond the limit of loss"), "{limited}");
}

#[test]
fn a_guardrail_finds_its_figures_in_what_latency_reports() {
    let s = Scratch::new("figures");
    let (base, out) = (base(), s.path("run"));
    let mut args = vec!["--policy", "plugins/guardrail.wasm", "--evaluator", "plugins/latency.wasm", "--base", &base];
    args.extend(&SHORT[..12]);
    args.extend(["--steps", "2", "--out", &out, "--json"]);
    args.extend(["--policy-opt", "max_resident_mb=1", "--policy-opt", "min_tokens_per_second=0.001"]);
    args.extend(["--evaluator-opt", "prompt_tokens=16", "--evaluator-opt", "new_tokens=4"]);
    let ran = run(&args);
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.out, ran.err);
    let fates: Vec<Value> = ran.json()["steps"].as_array().expect("steps").iter().map(|s| s["fate"].clone()).collect();
    assert_eq!(fates, ["committed", "committed"], "{}", ran.out);
}
