//! `plugin check` and `plugin bench` from outside, with the built program and built plugins.
//!
//! Covers: the shipped plugins pass; a plugin that misbehaves fails the check that is about it, with a
//! command that repeats the case; the same seed finds the same; options, wrong usage, JSON; bench figures
//! are there, in order, and beside the reference plugin.

use plastic_tests::{Scratch, root, run};
use serde_json::Value;
use std::path::Path;

/// Builds a plugin of this repository into a scratch folder.
fn built(s: &Scratch, dir: &str) -> String {
    let out = s.path(&format!("{}.wasm", dir.replace('/', "-")));
    let ran = run(&["plugin", "build", dir, "-o", &out, "-q"]);
    assert_eq!(ran.code, Some(0), "{dir}: {}", ran.err);
    out
}

fn finding<'a>(report: &'a Value, check: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("findings");
    findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("no check {check} in {report}"))
}

#[test]
fn the_shipped_plugins_pass() {
    let shipped = std::fs::read_dir(root().join("plugins")).expect("plugins/").map(|f| f.expect("an entry").path());
    let crates: Vec<_> = shipped.filter(|p| p.join("Cargo.toml").is_file()).collect();
    assert!(crates.len() >= 9, "{crates:?}");
    for dir in crates {
        let name = dir.file_name().expect("a name").to_string_lossy().into_owned();
        let file = format!("plugins/{name}.wasm");
        assert!(Path::new(&root().join(&file)).is_file(), "{file} is missing: run `make plugins`");
        let ran = run(&["plugin", "check", &file, "--cases", "6", "--json"]);
        assert_eq!(ran.code, Some(0), "{name}: {}{}", ran.out, ran.err);
        let report = ran.json();
        assert_eq!((&report["passed"], &report["failed"]), (&Value::from(true), &Value::from(0)), "{name}");
        assert!(report["checks"].as_u64().expect("a number") >= 16, "{name}");
        assert!(report["longest"]["micros"].as_f64().expect("a time") > 0.0, "{name}");
        assert!(report["peak_memory"].as_u64().expect("bytes") >= 65_536, "{name}");
    }
}

#[test]
fn what_misbehaves_fails_with_a_way_to_repeat_it() {
    let s = Scratch::new("check");
    let hostile = built(&s, "tests/hostile/policy");
    let check = |attack: &str, more: &[&str]| {
        let attack = format!("attack={attack}");
        let mut args = vec!["plugin", "check", &hostile, "--opt", &attack, "--json", "--plugin-seconds", "1"];
        args.extend(more);
        run(&args)
    };
    for (attack, name, words) in [
        ("panic", "runs", "looked at me funny"),
        ("abort", "determinism", "unreachable"),
        ("unknown-slice", "runs", "slice 123456"),
        ("infinite", "runs", "threshold's level is inf"),
        ("big-snapshot", "runs", "transfer_bytes"),
    ] {
        let ran = check(attack, &["--case", "0"]);
        assert_eq!(ran.code, Some(1), "{attack}: {}{}", ran.out, ran.err);
        let report = ran.json();
        let found = finding(&report, name);
        assert_eq!(found["level"], "failed", "{attack}: {found}");
        assert!(found["came_back"].as_str().expect("text").contains(words), "{attack}: {found}");
        assert!(!found["fix"].as_str().expect("text").is_empty(), "{attack}: {found}");
        assert!(!found["sent"].as_str().expect("text").is_empty(), "{attack}: {found}");
    }
    // The edges are tried too.
    let ran = check("nan", &["--cases", "1"]);
    let report = ran.json();
    for name in ["empty", "rank-1", "huge", "damaged-spectra", "budget-0", "fates"] {
        assert_eq!(finding(&report, name)["level"], "failed", "{name}");
    }
    // A plain refusal is a note, and the text report says how to see it again.
    let ran = run(&["plugin", "check", &hostile, "--opt", "attack=refuse", "--seed", "7", "--cases", "3"]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("no, thank you"), "{}", ran.out);
    assert!(ran.out.contains("--opt attack=refuse --seed 7 --case 0"), "{}", ran.out);
    // So the case comes back, alone.
    let ran = check("unknown-slice", &["--case", "5"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert_eq!(finding(&ran.json(), "runs")["case"], 5);
    assert!(!ran.out.contains("\"huge\""), "{}", ran.out);
}

#[test]
fn what_loops_is_ended_and_named() {
    let s = Scratch::new("check-loop");
    let hostile = built(&s, "tests/hostile/policy");
    let args = ["--opt", "attack=loop", "--opt", "at=restore", "--plugin-seconds", "1", "--case", "0"];
    let ran = run(&[&["plugin", "check", &hostile, "--json"][..], &args].concat());
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    let report = ran.json();
    assert_eq!(finding(&report, "runs")["level"], "ok");
    let found = finding(&report, "snapshot-garbage");
    assert!(found["came_back"].as_str().expect("text").contains("took too long"), "{found}");
}

#[test]
fn the_same_seed_finds_the_same() {
    let check = |seed: &str| {
        let mut report =
            run(&["plugin", "check", "plugins/water-fill.wasm", "--cases", "4", "--seed", seed, "--json"]).json();
        let longest = report["longest"].take();
        assert!(longest.is_object());
        report
    };
    assert_eq!(check("3"), check("3"));
    assert_ne!(finding(&check("3"), "runs")["found"], finding(&check("4"), "runs")["found"]);
}

#[test]
fn an_evaluator_that_misbehaves_fails() {
    let s = Scratch::new("check-evaluator");
    let hostile = built(&s, "tests/hostile/evaluator");
    for (attack, words) in [("panic", "too good"), ("nan", "NaN"), ("metrics", "10001 metrics")] {
        let opt = format!("attack={attack}");
        let ran = run(&["plugin", "check", &hostile, "--opt", &opt, "--cases", "2", "--json"]);
        assert_eq!(ran.code, Some(1), "{attack}: {}{}", ran.out, ran.err);
        let report = ran.json();
        let found = finding(&report, "verdicts");
        assert!(found["came_back"].as_str().expect("text").contains(words), "{attack}: {found}");
    }
}

#[test]
fn wrong_usage_is_named() {
    run(&["plugin", "check", "plugins/energy.wasm", "--opt", "enrgy=1"]).refuses(1, "has no option `enrgy`");
    run(&["plugin", "check", "plugins/energy.wasm", "--cases", "0"]).refuses(2, "--cases");
    run(&["plugin", "check", "no-such-plugin"]).refuses(1, "no such plugin");
    run(&["plugin", "bench", "plugins/energy.wasm", "--seconds", "0"]).refuses(1, "--seconds is 0");
    let s = Scratch::new("check-usage");
    let junk = s.file("junk.wasm", b"not a plugin");
    run(&["plugin", "check", &junk]).refuses(1, "is not WebAssembly");
    run(&["plugin", "bench", &junk]).refuses(1, "is not WebAssembly");
    // A policy cannot be measured beside an evaluator.
    let against = ["plugin", "bench", "plugins/energy.wasm", "--against", "plugins/perplexity.wasm"];
    run(&against).refuses(1, "is an evaluator where a policy is expected");
}

#[test]
fn bench_measures_beside_the_reference() {
    let s = Scratch::new("bench");
    let sum = built(&s, "tests/guests/sum");
    let ran = run(&["plugin", "bench", &sum, "--against", "plugins/stable-rank.wasm", "--seconds", "0.3", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let report = ran.json();
    assert!(report["machine"].as_str().expect("text").contains("core"), "{report}");
    let plugins = report["plugins"].as_array().expect("plugins");
    let names: Vec<_> = plugins.iter().map(|p| p["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["sum", "stable-rank", "energy"]);
    for plugin in plugins {
        let stages = plugin["stages"].as_array().expect("stages");
        assert_eq!(stages.len(), 8, "{plugin}");
        let median = |i: usize| stages[i]["time"]["median"].as_f64().expect("a time");
        for stage in stages {
            let time = &stage["time"];
            let at = |name: &str| time[name].as_f64().expect("a time");
            assert!(at("min") > 0.0 && at("min") <= at("median") && at("median") <= at("p95"), "{stage}");
        }
        // Compiling takes longer than not; all of it longer than a part; more longer than less.
        assert!(median(0) > median(1), "{plugin}");
        assert!(median(3) >= median(2) && median(4) > median(2) && median(6) > median(2), "{plugin}");
    }
    let text = run(&["plugin", "bench", "plugins/perplexity.wasm", "--seconds", "0.1"]);
    assert!(text.code == Some(0) && text.out.contains("evaluate 32 × 512 tokens"), "{}{}", text.out, text.err);
    assert_eq!(text.out.matches("perplexity.wasm").count(), 1, "not beside itself: {}", text.out);
}
