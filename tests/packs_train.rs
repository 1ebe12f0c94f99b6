//! Training packs from outside: the built program on the real default model.
//!
//! Covers: a pack that learns, a killed training that ends with the bytes of an undisturbed one (with and without
//! a policy that moves ranks, with dropout and accumulation), and every bad input a training can meet.

use plastic_tests::{Ran, Scratch, base, host, ran, root};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A training of seconds.
const SMALL: [&str; 10] = [
    "--layers",
    "blocks.2[6-9].attn.[qv]_proj",
    "--valid-share",
    "0",
    "--batch-size",
    "2",
    "--sequence-length",
    "48",
    "--rank",
    "4",
];

fn packs(dir: &Path, args: &[&str]) -> Command {
    let mut command = host();
    command.env("SOURCE_DATE_EPOCH", "1").arg("packs").arg("--packs").arg(dir).args(args);
    command
}

fn create(dir: &Path, name: &str, more: &[&str]) -> Command {
    let data = root().join("data/plays_train.jsonl");
    let mut command = packs(dir, &["create", "--name", name, "--base", &base(), "--json", "--data"]);
    command.arg(data).args(SMALL).args(more);
    command
}

fn go(mut command: Command) -> Ran {
    ran(&mut command)
}

/// Kills a training at its `nth` update, goes on, and compares the bytes of the pack with one that was not killed.
fn killed_and_resumed_is_undisturbed(more: &[&str]) {
    let scratch = Scratch::new("train");
    let (whole, cut) = (PathBuf::from(scratch.path("whole")), PathBuf::from(scratch.path("cut")));
    let out = go(create(&whole, "p", more));
    assert_eq!(out.code, Some(0), "{}", out.err);
    let mut killed = 0;
    let mut child = create(&cut, "p", more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let metrics = cut.join(".p.training/metrics.jsonl");
    for lines in [3, 7] {
        let begun = Instant::now();
        loop {
            let there = std::fs::read_to_string(&metrics).map_or(0, |t| t.lines().count());
            if there >= lines {
                child.kill().expect("it runs");
                killed += 1;
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "no update {lines}");
            if child.try_wait().expect("can be asked").is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child.wait().expect("it ended");
        if !cut.join(".p.training").exists() {
            break;
        }
        child = packs(&cut, &["resume", "p", "--json"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
    }
    child.wait().expect("it ended");
    assert!(killed >= 1, "it was never killed");
    for file in ["pack.safetensors", "meta.json"] {
        let read = |dir: &Path| std::fs::read(dir.join("p").join(file)).expect("a pack");
        assert!(read(&whole) == read(&cut), "{file} differs");
    }
    let ranks = |dir: &Path| std::fs::read_to_string(dir.join("p/ranks.jsonl")).ok();
    assert_eq!(ranks(&whole), ranks(&cut), "the history of the ranks differs");
}

#[test]
fn a_killed_training_ends_as_an_undisturbed_one() {
    let how = [
        "--steps",
        "10",
        "--checkpoint-every",
        "2",
        "--lora-dropout",
        "0.1",
        "--grad-accumulation",
        "2",
        "--grad-checkpoint",
        "off",
    ];
    killed_and_resumed_is_undisturbed(&how);
}

#[test]
fn ranks_that_a_policy_moves_survive_a_kill() {
    let how = [
        "--steps",
        "10",
        "--checkpoint-every",
        "1",
        "--policy",
        "exchange",
        "--policy-opt",
        "share=0.3",
        "--policy-opt",
        "min_rank=0",
        "--policy-opt",
        "until=1",
        "--rank-interval",
        "2",
        "--rank-warmup",
        "2",
    ];
    killed_and_resumed_is_undisturbed(&how);
}

#[test]
fn a_pack_learns_and_its_metrics_say_so() {
    let scratch = Scratch::new("train");
    let dir = PathBuf::from(scratch.path("packs"));
    let valid = root().join("data/plays_valid.jsonl");
    let valid = valid.to_str().expect("UTF-8");
    let how = [
        "--valid-data",
        valid,
        "--valid-windows",
        "8",
        "--valid-every",
        "10",
        "--steps",
        "20",
        "--learning-rate",
        "3e-3",
        "--layers",
        "attn.*",
        "--dora",
    ];
    let out = go(create(&dir, "p", &how));
    assert_eq!(out.code, Some(0), "{}", out.err);
    let report: Value = serde_json::from_str(&out.out).expect("one document");
    let (base, best) =
        (report["ended"]["base_loss"].as_f64().expect("a loss"), report["ended"]["best"][1].as_f64().expect("a loss"));
    assert!(best < base - 0.02, "{base} → {best}");
    let text = std::fs::read_to_string(dir.join("p/metrics.jsonl")).expect("metrics");
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines.iter().filter(|l| l.get("loss").is_some()).count(), 20);
    assert_eq!(lines.iter().filter(|l| l.get("valid_loss").is_some()).count(), 3);
    let list = go(packs(&dir, &["list", "--json"]));
    let list: Value = serde_json::from_str(&list.out).expect("one document");
    assert_eq!(list["packs"][0]["found"]["adapters"], 120);
}

#[test]
fn a_policy_prunes_to_a_share_and_the_pack_has_the_awake_ones_only() {
    let scratch = Scratch::new("train");
    let dir = PathBuf::from(scratch.path("packs"));
    let how =
        ["--steps", "8", "--policy", "water-fill", "--budget", "0.5", "--rank-interval", "2", "--rank-warmup", "2"];
    let out = go(create(&dir, "p", &how));
    assert_eq!(out.code, Some(0), "{}", out.err);
    let report: Value = serde_json::from_str(&out.out).expect("one document");
    // q of rank 4 and v of rank 2 in four layers.
    let rank = report["total_rank"].as_u64().expect("a number");
    assert!((8..=14).contains(&rank), "{rank} of 24");
    let history = std::fs::read_to_string(dir.join("p/ranks.jsonl")).expect("a history");
    let last: Value = serde_json::from_str(history.lines().last().expect("a line")).expect("JSON");
    let awake: usize = last["awake"].as_array().expect("a list").iter().map(|a| a.as_array().map_or(0, Vec::len)).sum();
    assert_eq!(awake as u64, rank);
    assert!(std::fs::read_to_string(dir.join("p/ranks.svg")).expect("a picture").contains("</svg>"));
}

#[test]
fn bad_input_is_named() {
    let scratch = Scratch::new("train");
    let dir = PathBuf::from(scratch.path("packs"));
    let dir = dir.as_path();
    let says = |more: &[&str], code: i32, text: &str| {
        let out = go(create(dir, "p", more));
        assert_eq!(out.code, Some(code), "{more:?}: {}", out.err);
        assert!(out.err.contains(text), "{more:?}: {}", out.err);
        assert!(!dir.join("p").exists(), "{more:?} left a pack");
    };
    let write = |name: &str, text: &str| scratch.file(name, text.as_bytes());
    says(&["--layers", "attn.x_proj"], 1, "--layers attn.x_proj: no slice is called so");
    says(&["--rank", "0"], 2, "--rank 0: expected at least 1");
    says(&["--rank", "5000"], 1, "rank 5000 is more than the 576");
    says(&["--rank-map", "mlp.up_proj:4"], 1, "--rank-map mlp.up_proj: none of the chosen slices");
    says(&["--learning-rate", "-1"], 2, "--learning-rate -1: expected more than 0");
    says(&["--batch-size", "100000"], 1, "fewer than one batch of 100000");
    says(
        &["--policy", "energy", "--policy-opt", "metric=input"],
        1,
        "needs spectrum:input, which a training cannot compute",
    );
    says(&["--policy", "hysteresis"], 1, "not train");
    says(&["--data", &write("bad.jsonl", "{\"text\": \"a\"}\n{oops\n")], 1, "bad.jsonl:2:");
    says(&["--data", &write("short.txt", "To be")], 1, "short.txt");
    says(&["--learning-rate", "1e30", "--grad-clip", "0", "--steps", "9", "--warmup", "0"], 1, "at a learning rate of");
    says(&["--name", "../x"], 2, "is no name for a pack");
    assert!(!dir.parent().expect("a parent").join("x").exists());
}

#[test]
fn a_name_that_is_taken_or_being_written_is_refused() {
    let scratch = Scratch::new("train");
    let dir = PathBuf::from(scratch.path("packs"));
    let dir = dir.as_path();
    let quick = ["--steps", "1"];
    assert_eq!(go(create(dir, "p", &quick)).code, Some(0));
    let again = go(create(dir, "p", &quick));
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("--force"), "{}", again.err);
    assert_eq!(go(create(dir, "p", &["--steps", "1", "--force"])).code, Some(0));
    let mut first =
        create(dir, "q", &["--steps", "100000"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let begun = Instant::now();
    while !dir.join(".q.training/metrics.jsonl").exists() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = go(create(dir, "q", &quick));
    first.kill().expect("it runs");
    first.wait().expect("it ended");
    assert!(second.err.contains("being written by another process"), "{}", second.err);
    let third = go(create(dir, "q", &quick));
    assert!(third.err.contains("packs resume q"), "{}", third.err);
}

/// A training that was killed after its first checkpoint.
fn unfinished(dir: &Path) {
    let how = ["--steps", "100000", "--checkpoint-every", "1"];
    let mut child = create(dir, "p", &how).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let begun = Instant::now();
    while !dir.join(".p.training/state.safetensors").exists() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("it runs");
    child.wait().expect("it ended");
}

#[test]
fn what_was_changed_under_a_training_is_noticed() {
    let scratch = Scratch::new("train");
    let dir = PathBuf::from(scratch.path("packs"));
    unfinished(&dir);
    let training = dir.join(".p.training");
    let resume = || go(packs(&dir, &["resume", "p"]));
    let file = training.join("training.json");
    let text = std::fs::read_to_string(&file).expect("a record");
    std::fs::write(&file, text.replace("\"batch\": 2", "\"batch\": 3")).expect("written");
    resume().refuses(1, "its options were changed");
    std::fs::write(&file, &text).expect("written");
    // A state of other shapes: the number of a header changes, the bytes stay.
    let state = training.join("state.safetensors");
    let bytes = std::fs::read(&state).expect("a state");
    let header = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let at = 8 + header.find("[4,576]").expect("a matrix B");
    let mut other = bytes.clone();
    other[at..at + 7].copy_from_slice(b"[576,4]");
    std::fs::write(&state, &other).expect("written");
    resume().refuses(1, "begin the training again");
    std::fs::write(&state, &bytes[..bytes.len() - 100]).expect("written");
    resume().refuses(1, "state.safetensors");
    std::fs::write(&state, &bytes).expect("written");
    // Another pack took the name meanwhile.
    assert_eq!(go(create(&dir, "q", &["--steps", "1"])).code, Some(0));
    assert_eq!(go(packs(&dir, &["rename", "q", "p"])).code, Some(0));
    let kept = std::fs::read(dir.join("p/pack.safetensors")).expect("a pack");
    resume().refuses(1, "there is a pack p by now");
    assert_eq!(std::fs::read(dir.join("p/pack.safetensors")).expect("a pack"), kept);
    assert!(training.exists(), "and the training is not lost");
    assert_eq!(go(packs(&dir, &["resume", "p", "--discard"])).code, Some(0));
    assert!(!training.exists());
}
