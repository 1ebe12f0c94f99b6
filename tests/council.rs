//! Several plugins in one run, from outside: pipelines, several evaluators, shadows, a fallback,
//! plugins that change while the run goes on, and decisions made again from the record.

use plastic_tests::{Ran, Scratch, base, host, root, run};
use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A small run: two layers, little text.
const SMALL: [&str; 14] = [
    "--layers",
    "model.layers.[0-1].*",
    "--window",
    "128",
    "--windows",
    "4",
    "--calibration-windows",
    "6",
    "--gradient-windows",
    "3",
    "--budget",
    "0.9",
    "--max-loss-increase",
    "2",
];

fn small(out: &str, more: &[&str]) -> Vec<String> {
    let model = base();
    let mut args: Vec<String> = ["--base", &model, "--out", out].map(String::from).into();
    args.extend(SMALL.map(String::from));
    args.extend(more.iter().map(|s| s.to_string()));
    args
}

fn go(out: &str, more: &[&str]) -> Ran {
    run(&small(out, more).iter().map(String::as_str).collect::<Vec<_>>())
}

fn journal(out: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{out}/journal.jsonl")).expect("a journal");
    // A line that is being written is not there yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|l| serde_json::from_str(l).expect("a JSON line")).collect()
}

fn steps(out: &str) -> Vec<Value> {
    journal(out).into_iter().filter(|e| e["event"] == "step").collect()
}

/// The policy that misbehaves on purpose, built once.
fn hostile() -> String {
    static BUILT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let build = || {
        let out = root().join("target/test-plugins/council-hostile.wasm").display().to_string();
        std::fs::create_dir_all(root().join("target/test-plugins")).expect("a folder");
        let built = run(&["plugin", "build", "tests/hostile/policy", "-o", &out, "-q"]);
        assert_eq!(built.code, Some(0), "{}", built.err);
        out
    };
    BUILT.get_or_init(build).clone()
}

#[test]
fn a_pipeline_a_shadow_and_the_record() {
    let s = Scratch::new("pipeline");
    let out = s.path("run");
    let ran = go(
        &out,
        &[
            "--policy",
            "energy",
            "--policy",
            "hysteresis",
            "--policy-opt",
            "hysteresis:smoothing=0.5",
            "--shadow",
            "water-fill",
            "--steps",
            "2",
            "--json",
        ],
    );
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let report = ran.json();
    assert_eq!(report["policies"], serde_json::json!(["energy", "hysteresis"]));
    let taken = steps(&out);
    for step in &taken {
        assert_eq!(step["proposals"].as_array().unwrap().len(), 2, "{}", step["reason"]);
        assert_eq!(step["proposals"][0]["policy"], "energy");
        assert_eq!(step["proposals"][1]["plan"], step["plan"], "the last word is the plan");
        assert_eq!(step["shadows"][0]["policy"], "water-fill");
        assert!(step["shadows"][0]["parameters"].as_u64().unwrap() > 0);
    }
    // Half of the way that the first policy proposed.
    let all = report["parameters"].as_u64().unwrap();
    let after = taken[0]["after"]["parameters"].as_u64().unwrap();
    assert!(after < all, "{after} of {all}");

    // The same policies decide the same again, to the last bit.
    let again = run(&["replay", &out, "--policy", "energy", "--policy", "hysteresis", "--json"]).json();
    assert_eq!((&again["own"], &again["identical"]), (&true.into(), &2.into()), "{again}");
    // Another one decides otherwise, and that is no error.
    let other = run(&["replay", &out, "--policy", "water-fill", "--json"]);
    assert_eq!(other.code, Some(0), "{}", other.err);
    assert_eq!(other.json()["own"], false);
    assert_eq!(other.json()["steps"][0]["again"]["parameters"], taken[0]["shadows"][0]["parameters"]);
    run(&["replay", &out, "--policy", "energy", "--policy-opt", "metric=plain"]).refuses(1, "--record spectrum:plain");
    run(&["replay", &out, "--policy", "perplexity"]).refuses(1, "evaluator");

    // What was seen, as one file, is enough to work with a policy.
    let (recording, plans) = (s.path("seen.json"), s.path("plans.json"));
    let recorded = run(&["plugin", "record", &out, "-o", &recording, "--json"]).json();
    assert_eq!(recorded["steps"], 2);
    assert_eq!(run(&["plugin", "replay", "energy", &recording, "--write", &plans]).code, Some(0));
    assert_eq!(run(&["plugin", "replay", "energy", &recording, "--expect", &plans]).code, Some(0));
    run(&["plugin", "replay", "energy", &recording, "--opt", "min_rank=200", "--expect", &plans])
        .refuses(1, "are not the expected ones");
    run(&["plugin", "replay", "energy", &plans]).refuses(1, "plugin record RUN -o FILE");

    // A changed observation is noticed.
    let file = std::path::Path::new(&out).join("observations.jsonl");
    let text = std::fs::read_to_string(&file).unwrap().replacen("\"dwell\":", "\"dwell\":7", 1);
    std::fs::write(&file, text).unwrap();
    run(&["replay", &out, "--policy", "energy"]).refuses(1, "the run was changed");
}

#[test]
fn all_evaluators_are_asked_and_one_no_is_enough() {
    let s = Scratch::new("panel");
    let out = s.path("run");
    let copy = s.path("strict.wasm");
    std::fs::copy(root().join("plugins/perplexity.wasm"), &copy).unwrap();
    let ran = go(
        &out,
        &[
            "--policy",
            "energy",
            "--steps",
            "1",
            "-e",
            "perplexity",
            "-e",
            &copy,
            "--evaluator-opt",
            "strict:max_loss_increase=0",
            "--json",
        ],
    );
    assert_eq!(ran.code, Some(3), "{}", ran.err);
    let step = &steps(&out)[0];
    let decisions: Vec<&Value> =
        step["opinions"].as_array().unwrap().iter().map(|o| &o["verdict"]["decision"]).collect();
    assert_eq!(decisions, ["accept", "reject"]);
    assert_eq!(step["fate"], "rejected");
    go(
        &s.path("no"),
        &["--policy", "energy", "-e", "perplexity", "-e", &copy, "--evaluator-opt", "max_loss_increase=1"],
    )
    .refuses(1, "which one is meant?");
}

#[test]
fn what_a_failing_policy_costs_is_the_operators_choice() {
    let s = Scratch::new("on-fault");
    let hostile = hostile();
    let trap = ["--policy-opt", "council-hostile:attack=panic"];
    let fallback = s.path("fallback");
    let ran = go(
        &fallback,
        &[&["--policy", &hostile, "--on-fault", "fallback=energy", "--steps", "2", "--json"], &trap[..]].concat(),
    );
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    for step in steps(&fallback) {
        assert_eq!((&step["fallback"], &step["fate"]), (&true.into(), &"committed".into()), "{}", step["reason"]);
        assert_eq!(step["fault"]["class"], "trap");
    }
    let stop = s.path("stop");
    let ran = go(&stop, &["--policy", &hostile, "--policy-opt", "attack=panic", "--on-fault", "stop", "--steps", "3"]);
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert_eq!(steps(&stop).len(), 1);
    go(&s.path("x"), &["--policy", "energy", "--on-fault", "panic"]).refuses(1, "use keep, stop or fallback=FILE");
    go(&s.path("y"), &["--policy", "hysteresis", "--policy", "energy"]).refuses(1, "put it first");
}

#[test]
fn a_changed_plugin_takes_over_and_a_broken_one_does_not() {
    let s = Scratch::new("watch");
    let (out, policy) = (s.path("run"), s.path("policy.wasm"));
    std::fs::copy(root().join("plugins/energy.wasm"), &policy).unwrap();
    let args = small(&out, &["--policy", &policy, "--watch", "--steps", "40", "--policy-opt", "ramp=true"]);
    let mut child = host().args(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    let begun = Instant::now();
    let wait = |kind: &str, more: &dyn Fn(&Value) -> bool| {
        while !(std::path::Path::new(&out).join("journal.jsonl").is_file()
            && journal(&out).iter().any(|e| e["event"] == kind && more(e)))
        {
            assert!(begun.elapsed() < Duration::from_secs(240), "no {kind} event came");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let put = |bytes: &[u8]| {
        let new = format!("{policy}.new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(&new, &policy).unwrap();
    };
    wait("step", &|_| true);
    put(b"\0asm broken");
    wait("swap", &|e| e["plugin"].is_null() && e["problem"].as_str().is_some_and(|p| p.contains("damaged")));
    put(&std::fs::read(root().join("plugins/water-fill.wasm")).unwrap());
    wait("swap", &|e| e["plugin"]["info"]["name"] == "water-fill");
    let at = steps(&out).len();
    wait("step", &|e| e["step"].as_u64() > Some(at as u64));
    child.kill().ok();
    child.wait().ok();
}
