//! `plastic-host demo` on the default model.
//!
//! Covers: ranks fall under load and rise after it, the base comes back bit for bit, the log of events,
//! the picture, loads from files, the controller of mlx-plastic-rank, wrong usage.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use plastic_tests::{Ran, Scratch, base, host, ran};
use serde_json::Value;
use std::sync::{Mutex, PoisonError};

/// One at a time: each is a load on the machine whose speed the others measure.
static ALONE: Mutex<()> = Mutex::new(());

fn demo(args: &[&str]) -> Ran {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    ran(host().args(["demo", "--base", &base()]).args(args))
}

/// Slices enough to see ranks move, few enough for a test.
const FEW: [&str; 2] = ["--layers", "model.layers.1?.mlp.*"];

#[test]
fn ranks_follow_the_load_and_the_base_comes_back() {
    let dir = Scratch::new("demo");
    let (log, svg) = (dir.path("out/plasticity.jsonl"), dir.path("demo.svg"));
    // A high peak and a low target, far apart: neighbours may slow the machine down several times over.
    let shape = ["--steps", "6", "--peak", "32", "--target", "0.25", "--rounds", "1"];
    let args = [&shape[..], &["--windows", "2", "--json"]].concat();
    let r = demo(&[&args[..], &FEW, &["--log", &log, "--svg", &svg]].concat());
    assert_eq!(r.code, Some(0), "{r:?}");
    let d = r.json();
    assert_eq!((d["ranks_fell"].as_bool(), d["ranks_rose"].as_bool()), (Some(true), Some(true)), "{d}");
    assert_eq!(d["load"], serde_json::json!([1, 15, 32, 20, 2, 1]));
    assert_eq!(d["wake"]["identical"], true, "{d}");
    assert_eq!(d["wake"]["base_sha256"], d["wake"]["woken_sha256"]);
    assert_eq!(d["wake"]["loss"].as_f64().unwrap().to_bits(), d["base_loss"].as_f64().unwrap().to_bits());

    let steps = d["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 6);
    let number = |s: &Value, name: &str| s[name].as_f64().unwrap_or_else(|| panic!("{name}: {s}"));
    for s in steps {
        let requests = number(&s["served"], "requests");
        assert_eq!(number(&s["served"], "tokens"), 64.0 * requests);
        // Whoever waits for others sees less than the model gives.
        let (seen, model) = (number(&s["served"], "tokens_per_second"), number(&s["served"], "throughput"));
        assert!(seen > 0.0 && if requests > 1.0 { seen < model } else { seen <= model }, "{s}");
        let changed = number(s, "parameters") != number(s, "parameters_before");
        assert_eq!(changed, s["fate"] == "committed", "{s}");
    }
    let top = steps.iter().find(|s| number(s, "parameters") < number(s, "parameters_before")).unwrap();
    assert!(number(&top["served"], "requests") > 1.0, "{top}");
    let lowest = steps.iter().map(|s| number(s, "awake")).fold(1.0, f64::min);
    assert_eq!(d["lowest_awake"].as_f64(), Some(lowest));

    // Each change of each slice is a line, in order, and their ranks are a chain.
    let text = std::fs::read_to_string(&log).unwrap();
    let events: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let moved: f64 = steps.iter().map(|s| number(s, "slept") + number(s, "woke")).sum();
    assert_eq!(events.len() as f64, moved);
    let mut ranks = std::collections::HashMap::new();
    for e in &events {
        let (r0, now) = (e["r0"].as_u64().unwrap(), e["r_star"].as_u64().unwrap());
        assert_eq!(e["action"], if now < r0 { "shrink" } else { "wake" }, "{e}");
        assert!(e["val_loss_before"].is_f64() && e["val_loss_after"].is_f64() && e["ts"].is_f64(), "{e}");
        assert!((0.0..=1.0).contains(&e["residual"].as_f64().unwrap()), "{e}");
        assert_eq!(e["strategy"], "guardrail");
        let before = ranks.insert(e["layer"].as_str().unwrap().to_owned(), now);
        assert!(before.is_none_or(|b| b == r0), "{e}");
    }
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("bit for bit"));
}

#[test]
fn a_load_from_a_file_in_plain_lines() {
    let dir = Scratch::new("demo");
    let load = dir.file("load.txt", b"0 # nobody\n1, 1\n");
    let args = ["--load", &load, "--windows", "1", "--rounds", "1"];
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let r = ran(host().args(["demo", "--base", &base()]).args(args).args(FEW).env("LC_ALL", "C"));
    drop(alone);
    assert_eq!(r.code, Some(0), "{r:?}");
    assert!(r.out.contains("step 1/3: load 0, ") && r.out.contains("step 3/3: load 1, "), "{r:?}");
    assert!(r.out.contains("every logit and every loss is the base's, bit for bit"), "{r:?}");
    assert!(r.out.is_ascii() && !r.out.contains('\u{1b}'), "{r:?}");
    let quiet = demo(&[&args[..], &FEW, &["--quiet", "--steps", "1"]].concat());
    assert_eq!((quiet.code, quiet.out.lines().count(), quiet.err.as_str()), (Some(0), 1, ""), "{quiet:?}");
}

#[test]
fn the_controller_of_mlx_plastic_rank_follows_the_loss() {
    let args = ["--strategy", "stable", "--compress", "0.999", "--delta", "0.05", "--steps", "2", "--peak", "1"];
    let r = demo(&[&args[..], &FEW, &["--windows", "1", "--rounds", "1", "--json"]].concat());
    assert_eq!(r.code, Some(0), "{r:?}");
    let d = r.json();
    assert!(d["policies"][0].as_str().unwrap().starts_with("plateau ") && d["phase"] == "compress", "{d}");
    assert_eq!((d["ranks_fell"].as_bool(), d["wake"]["identical"].as_bool()), (Some(true), Some(true)), "{d}");
}

#[test]
fn wrong_usage_is_said_before_anything_runs() {
    demo(&["--load", "flood"]).refuses(1, "flood");
    demo(&["--steps", "0"]).refuses(2, "--steps");
    demo(&["--budget", "0"]).refuses(2, "--budget is 0");
    demo(&["--target", "2"]).refuses(2, "--target is 2");
    demo(&["--pause", "-1"]).refuses(2, "--pause is -1");
    demo(&["--strategy", "random"]).refuses(2, "random");
    demo(&["--strategy", "stable", "--policy", "guardrail"]).refuses(2, "--policy");
    demo(&["--policy", "dynamic-rank"]).refuses(1, "needs `serve` or `compress`");
    demo(&["--policy-opt", "speed=1"]).refuses(1, "speed");
    demo(&["--strategy", "stable", "--compress", "7"]).refuses(1, "energy");
    let dir = Scratch::new("demo");
    let load = dir.file("load.txt", b"1\nmany\n");
    demo(&["--load", &load]).refuses(1, "line 2: \"many\" is no number of requests");
}
