//! Elastic checkpoints: how much of one is awake, and its base again.
//!
//! Covers: that levels decide the outputs to the bit, whatever was awake before; that what is refused changes nothing;
//! `elastic inspect`, `set` and `wake`, with and without `--self-contained`; `--awake-budget` on generate, eval and run,
//! and runs that go on with it; conversations and `/budget`, its time and memory; packs of the base; damaged, missing
//! and contradictory files.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "packs_support.rs"]
mod support;

use plastic_host::compress::{Manifest, inspect};
use plastic_host::model::{Level, LoadOptions, Model, layout};
use plastic_host::pack::probe;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::{Bench, PLAIN, Ran, ids, root};

/// Words in an order that a model can learn nothing from.
fn text(words: usize, seed: u64) -> String {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..words).map(|_| format!("w{}", rng.random_range(1..128))).collect::<Vec<_>>().join(" ")
}

/// A tiny base and an elastic checkpoint of it, `small`, of seven tenths.
fn bench(tiny: &str, sharded: bool, more: &[&str]) -> Bench {
    let b = Bench::new(tiny);
    if sharded {
        support::shard(&b.base());
    }
    let template = "{% for m in messages %}{{ m.content }} {% endfor %}";
    std::fs::write(b.base().join("chat_template.jinja"), template).unwrap();
    std::fs::write(b.path("learn.txt"), text(1200, 1)).unwrap();
    std::fs::write(b.path("judge.txt"), text(400, 2)).unwrap();
    let policy = root().join("plugins/water-fill.wasm").display().to_string();
    let mut args = vec!["compress", "--base", "base", "--out", "small", "--budget", "0.7", "--policy", &policy];
    args.extend(["--calibration", "learn.txt", "--data", "judge.txt", "--window", "64", "--no-eval"]);
    args.extend(more);
    b.run(&args).done();
    b
}

fn small(b: &Bench) -> PathBuf {
    b.path("small")
}

fn logits(m: &Model) -> Vec<f32> {
    probe::logits(m, &ids(40)).unwrap()
}

fn loaded(dir: &Path) -> Vec<f32> {
    logits(&Model::load(dir, &LoadOptions::default()).unwrap())
}

fn eval(b: &Bench, more: &[&str]) -> Ran {
    let mut args = vec!["eval", "--data", "judge.txt", "--window", "32", "--json"];
    args.extend(more);
    b.run(&args)
}

fn loss(r: Ran) -> f64 {
    r.done().json()["mean_nll"].as_f64().unwrap()
}

/// Lines said to `generate --interactive`.
fn talk(b: &Bench, base: &str, lines: &str, more: &[&str]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_plastic-host"))
        .current_dir(b.dir.path())
        .env("NO_COLOR", "1")
        .args(["generate", "--base", base, "--interactive", "--max-tokens", "4"])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let o = child.wait_with_output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    Ran { code: o.status.code(), out: text(&o.stdout), err: text(&o.stderr) }
}

fn documents(r: &Ran) -> Vec<Value> {
    r.out.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

#[test]
fn levels_decide_the_outputs_to_the_bit_whatever_was_awake_before() {
    for tiny in ["llama", "qwen3_q4g64"] {
        let b = bench(tiny, false, &[]);
        let dir = small(&b);
        let m = Manifest::open(&dir).unwrap();
        let rungs = m.rungs(&dir).unwrap();
        let shares = [0.12, 0.2, 0.35, 0.5, 0.65, 1.0];
        let mut model = Model::load(&dir, &LoadOptions { parked: true, ..LoadOptions::default() }).unwrap();
        let mut known: Vec<Option<Vec<f32>>> = vec![None; shares.len()];
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..40 {
            let at = rng.random_range(0..shares.len());
            let mut levels = m.named(&m.levels_of(&rungs, shares[at]).unwrap());
            levels.retain(|name, _| model.levels().contains_key(name));
            model.set_levels(&levels).unwrap();
            assert_eq!(model.levels(), levels);
            let now = logits(&model);
            // One slice of many asks for what is not there: nothing changes.
            let mut wrong = levels.clone();
            *wrong.values_mut().last().unwrap() = Level::Rank(u32::MAX);
            wrong.values_mut().take(1).for_each(|l| *l = Level::Rank(1));
            let refused = model.set_levels(&wrong).unwrap_err().to_string();
            assert!(refused.contains("not in memory"), "{refused}");
            assert_eq!(model.levels(), levels);
            assert_eq!(logits(&model), now);
            match &known[at] {
                None => {
                    // Only what is awake in memory computes the same.
                    let all = m.named(&m.levels_of(&rungs, shares[at]).unwrap());
                    let options = LoadOptions { levels: Some(all), ..LoadOptions::default() };
                    assert_eq!(logits(&Model::load(&dir, &options).unwrap()), now, "{tiny} {}", shares[at]);
                    known[at] = Some(now);
                }
                Some(before) => assert_eq!(*before, now, "{tiny} {}", shares[at]),
            }
        }
        let distinct: std::collections::BTreeSet<Vec<u32>> =
            known.iter().flatten().map(|l| l.iter().map(|x| x.to_bits()).collect()).collect();
        assert_eq!(distinct.len(), shares.len(), "budgets that change nothing prove nothing");
    }
}

#[test]
fn set_wakes_less_and_more_and_inspect_says_what() {
    let b = bench("llama", false, &["--floor", "0.1"]);
    let dir = small(&b);
    let files = || ["model.safetensors", "spectra.safetensors"].map(|f| std::fs::read(dir.join(f)).unwrap());
    let (first, written) = (loaded(&dir), files());
    let mut losses = Vec::new();
    for share in ["0.7", "0.5", "0.3"] {
        let set = b.run(&["elastic", "set", "small", "--awake-budget", share, "--json"]).done().json();
        let of = |name: &str| set[name].as_u64().unwrap() as f64;
        let got = of("parameters_awake") / of("parameters");
        let asked: f64 = share.parse().unwrap();
        assert!(got <= asked + 1e-9 && got > asked - 0.05, "{set}");
        losses.push(set["loss"].as_f64().unwrap());
        let doc = counts_what_a_model_takes(&b);
        assert_eq!(doc["loss"], set["loss"]);
        assert_eq!(doc["awake_budget"], asked);
    }
    assert!(losses[0] < losses[1] && losses[1] < losses[2], "{losses:?}");
    let before = loaded(&dir);
    assert_ne!(before, first);
    // A budget that is too small or no share changes nothing.
    b.run(&["elastic", "set", "small", "--awake-budget", "0.0001"]).refuses(1, "the least that runs is");
    for wrong in ["0", "1.1", "nan", "much"] {
        b.run(&["elastic", "set", "small", "--awake-budget", wrong]).refuses(2, "a share lies above 0 and up to 1");
    }
    assert_eq!(loaded(&dir), before);
    b.run(&["elastic", "set", "small", "--awake-budget", "1"]).done();
    assert_eq!(loaded(&dir), first);
    assert_eq!(files(), written);
    let shown = b.run(&["elastic", "inspect", "small", "--svg", "curve.svg", "--verify"]).done().out;
    for part in ["q_proj", "down_proj", "nats per token", "every file is what was written", "as it was compressed"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let svg = std::fs::read_to_string(b.path("curve.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && svg.contains("<polyline"), "{svg}");
    // More awake never loses more.
    let curve = b.run(&["elastic", "inspect", "small", "--json"]).done().json();
    let curve: Vec<f64> = curve["curve"].as_array().unwrap().iter().map(|p| p["loss"].as_f64().unwrap()).collect();
    assert!(curve.len() > 5 && curve.windows(2).all(|w| w[0] >= w[1]), "{curve:?}");
}

#[test]
fn the_base_wakes_bit_for_bit_from_its_directory() {
    let b = bench("qwen3_q4g64", false, &[]);
    let (dir, base) = (small(&b), loaded(&b.base()));
    let of_base = layout::checkpoint_hash(&b.base()).unwrap();
    let elastic = loaded(&dir);
    assert_ne!(elastic, base);
    let woken = b.run(&["elastic", "wake", "small", "--all", "--json"]).done().json();
    assert_eq!(woken["sha256"], of_base);
    assert_eq!(loaded(&dir), base);
    assert_eq!(layout::checkpoint_hash(&dir).unwrap(), of_base);
    let same = |dir: &str| loss(eval(&b, &["--base", dir]));
    assert_eq!(same("small"), same("base"));
    let doc = b.run(&["elastic", "inspect", "small", "--json"]).done().json();
    assert_eq!((&doc["runs_base"], &doc["awake_budget"]), (&true.into(), &Value::Null));
    // Written out, and back again.
    b.run(&["elastic", "wake", "small", "--all", "--out", "base2"]).done();
    for file in ["config.json", "model.safetensors"] {
        let read = |dir: PathBuf| std::fs::read(dir.join(file)).unwrap();
        assert_eq!(read(b.path("base2")), read(b.base()), "{file}");
    }
    assert_eq!(layout::checkpoint_hash(&b.path("base2")).unwrap(), of_base);
    b.run(&["elastic", "wake", "small", "--all", "--out", "base2"]).refuses(1, "replace it with --force");
    b.run(&["elastic", "wake", "small", "--all", "--out", "base2", "--force"]).done();
    b.run(&["elastic", "wake", "small", "--all", "--out", "base", "--force"]).refuses(1, "is the base itself");
    b.run(&["elastic", "wake", "small", "--all", "--out", "small", "--force"]).refuses(1, "elastic checkpoint itself");
    b.run(&["elastic", "wake", "small"]).refuses(2, "--all");
    b.run(&["elastic", "set", "small", "--awake-budget", "1"]).done();
    assert_eq!(loaded(&dir), elastic);
}

#[test]
fn a_base_that_changed_or_is_gone_cannot_be_woken() {
    let b = bench("llama", false, &[]);
    let dir = small(&b);
    let before = std::fs::read(dir.join("elastic.json")).unwrap();
    let weights = b.base().join("model.safetensors");
    let original = std::fs::read(&weights).unwrap();
    let mut changed = original.clone();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &changed).unwrap();
    for more in [&[][..], &["--out", "base2"]] {
        let args = [&["elastic", "wake", "small", "--all"], more].concat();
        b.run(&args).refuses(1, "the base has changed");
    }
    assert!(!b.path("base2").exists());
    b.run(&["elastic", "inspect", "small", "--verify"]).refuses(1, "the base has changed");
    assert!(b.run(&["elastic", "inspect", "small"]).done().out.contains("the base has changed"));
    assert_eq!(std::fs::read(dir.join("elastic.json")).unwrap(), before);
    // The checkpoint itself needs no base.
    let own = loaded(&dir);
    std::fs::write(&weights, &original).unwrap();
    b.run(&["elastic", "wake", "small", "--all"]).done();
    // One that runs its base says so where that is no longer what it was.
    std::fs::write(&weights, &changed).unwrap();
    eval(&b, &["--base", "small"]).refuses(1, "the base has changed");
    std::fs::rename(b.base(), b.path("elsewhere")).unwrap();
    eval(&b, &["--base", "small"]).refuses(1, "the base cannot be read");
    b.run(&["elastic", "set", "small", "--awake-budget", "1"]).done();
    assert_eq!(loaded(&dir), own);
}

#[test]
fn a_self_contained_checkpoint_needs_no_base() {
    let residual: &[&str] = &["--mode", "residual", "--bits", "3", "--group-size", "32"];
    let cases: [(&str, bool, &[&str]); 5] = [
        ("llama", false, &[]),
        ("qwen3_q4g64", true, &[]),
        ("llama_tied_bias", false, &[]),
        ("llama", true, residual),
        ("qwen3_q4g64", false, residual),
    ];
    for (tiny, sharded, more) in cases {
        let b = bench(tiny, sharded, &[&["--self-contained"], more].concat());
        let (dir, base) = (small(&b), loaded(&b.base()));
        let of_base = layout::checkpoint_hash(&b.base()).unwrap();
        let original = weights(&b.base());
        assert_eq!(original.len(), if sharded { 4 } else { 2 });
        assert_ne!(loaded(&dir), base);
        counts_what_a_model_takes(&b);
        std::fs::remove_dir_all(b.base()).unwrap();
        b.run(&["elastic", "wake", "small", "--all"]).done();
        assert_eq!(loaded(&dir), base, "{tiny} {more:?}");
        assert_eq!(layout::checkpoint_hash(&dir).unwrap(), of_base);
        b.run(&["model", "inspect", "small"]).done();
        b.run(&["elastic", "wake", "small", "--all", "--out", "base"]).done();
        assert_eq!(weights(&b.base()), original);
        assert_eq!(loaded(&b.base()), base);
        b.run(&["elastic", "inspect", "small", "--verify"]).done();
        // A byte of what is parked.
        b.run(&["elastic", "set", "small", "--awake-budget", "1"]).done();
        let parked = dir.join("parked.safetensors");
        let mut bytes = std::fs::read(&parked).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(&parked, &bytes).unwrap();
        b.run(&["elastic", "inspect", "small", "--verify"]).refuses(1, "has changed since it was written");
        let refused = b.run(&["elastic", "wake", "small", "--all", "--out", "base3"]);
        assert_eq!(refused.code, Some(1), "{}", refused.out);
        assert!(!b.path("base3").exists() && !refused.err.contains("panicked"), "{}", refused.err);
        assert_ne!(b.run(&["elastic", "wake", "small", "--all"]).code, Some(0));
        // Nothing changed by that: components run.
        assert!(!Manifest::open(&dir).unwrap().runs_base);
        eval(&b, &["--base", "small"]).done();
    }
}

/// The configuration, the weight files and their index, by name.
fn weights(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |e: std::fs::DirEntry| e.file_name().into_string().unwrap();
    let all = std::fs::read_dir(dir).unwrap().map(|e| name(e.unwrap()));
    let ours = all.filter(|n| n == "config.json" || n.starts_with("model"));
    ours.map(|n| (n.clone(), std::fs::read(dir.join(n)).unwrap())).collect()
}

/// What inspect counts is what a model takes.
fn counts_what_a_model_takes(b: &Bench) -> Value {
    let r = Model::load(&small(b), &LoadOptions::default()).unwrap().resident();
    let doc = b.run(&["elastic", "inspect", "small", "--json"]).done().json();
    assert_eq!(doc["bytes"]["memory"].as_u64().unwrap(), r.packed + r.factors + r.other, "{doc}");
    let disk = doc["bytes"]["disk_awake"].as_u64().unwrap() + doc["bytes"]["disk_parked"].as_u64().unwrap();
    let total = doc["disk"].as_u64().unwrap();
    // All but headers.
    assert!(disk <= total && disk + 32_768 > total, "{doc}");
    doc
}

#[test]
fn the_awake_budget_of_a_command_stands_above_the_record() {
    let b = bench("llama", false, &[]);
    let base = ["--base", "small"];
    let at = |share: &str| loss(eval(&b, &[&base[..], &["--awake-budget", share]].concat()));
    let recorded = loss(eval(&b, &base));
    let (half, all) = (at("0.5"), at("1"));
    assert_eq!(all, recorded);
    assert_ne!(half, recorded);
    b.run(&["elastic", "set", "small", "--awake-budget", "0.5"]).done();
    assert_eq!(loss(eval(&b, &base)), half);
    assert_eq!(at("0.7"), recorded);
    let doc = eval(&b, &["--base", "small", "--awake-budget", "0.4"]).done().json();
    assert_eq!(doc["awake_budget"], 0.4);
    // Also where the base runs.
    b.run(&["elastic", "wake", "small", "--all"]).done();
    assert_eq!(at("0.5"), half);
    eval(&b, &["--base", "base", "--awake-budget", "0.5"]).refuses(1, "is no elastic checkpoint");
    eval(&b, &["--base", "small", "--awake-budget", "0.0001"]).refuses(1, "the least that runs is");
    eval(&b, &["--base", "small", "--awake-budget", "2"]).refuses(2, "a share lies above 0 and up to 1");
    let args = ["generate", "--base", "small", "--raw", "--prompt", "w5 w6", "--max-tokens", "3", "--json"];
    let said = |more: &[&str]| b.run(&[&args[..], more].concat()).done().json();
    assert_eq!(said(&["--awake-budget", "0.6"])["awake_budget"], 0.6);
    assert_eq!(said(&[])["awake_budget"], Value::Null);
    // Nothing that is an elastic checkpoint is compressed or fused again.
    b.run(&["compress", "--base", "small", "--out", "smaller", "--data", "judge.txt", "--calibration", "learn.txt"])
        .refuses(1, "is an elastic checkpoint already");
    // Only what is awake is in memory.
    let manifest = Manifest::open(&small(&b)).unwrap();
    let resident = |share: f64| {
        let levels = Some(manifest.named(&manifest.levels(&small(&b), share).unwrap()));
        Model::load(&small(&b), &LoadOptions { levels, ..LoadOptions::default() }).unwrap().resident().total()
    };
    assert!(resident(0.3) < resident(0.5) && resident(0.5) < resident(0.7));
}

#[test]
fn a_run_goes_on_with_what_was_awake_when_it_began() {
    let b = bench("llama", false, &[]);
    let policy = root().join("plugins/energy.wasm").display().to_string();
    let mut args = vec!["run", "--policy", &policy, "--base", "small", "--awake-budget", "0.5", "--out", "r"];
    args.extend(["--data", "judge.txt", "--calibration", "learn.txt", "--window", "32", "--steps", "1"]);
    args.extend(["--max-loss-increase", "5", "--json", "--budget", "0.6"]);
    let began = b.run(&args);
    assert_eq!(began.code, Some(0), "{}\n{}", began.out, began.err);
    let replay = || b.run(&["replay", "r", "--json"]).done().json();
    let run = replay()["run"].clone();
    assert_eq!(run["awake_budget"], 0.5);
    let m = Manifest::open(&small(&b)).unwrap();
    let levels = m.named(&m.levels(&small(&b), 0.5).unwrap());
    assert_eq!(run["awake"], serde_json::to_value(&levels).unwrap());
    assert_eq!(run["base_sha256"], layout::state_hash(&small(&b), Some(&levels)).unwrap());
    let state = loss(eval(&b, &["--state", "r"]));
    // What is recorded in the checkpoint since then is no matter to the run.
    b.run(&["elastic", "set", "small", "--awake-budget", "0.3"]).done();
    assert_eq!(loss(eval(&b, &["--state", "r"])), state);
    b.run(&["resume", "r", "--steps", "2"]).done();
    assert_eq!(eval(&b, &["--state", "r"]).done().json()["awake_budget"], 0.5);
    assert!(b.run(&["replay", "r"]).done().out.contains("awake budget 0.5"));
    eval(&b, &["--state", "r", "--awake-budget", "0.3"]).refuses(2, "cannot be used with");
    b.run(&[&args[..5], &["--awake-budget", "0"]].concat()).refuses(2, "a share lies above 0 and up to 1");
    // Without the option a run keeps what the checkpoint recorded.
    args.splice(5..9, ["--out", "r2"]);
    b.run(&args);
    let now = b.run(&["replay", "r2", "--json"]).done().json();
    assert_eq!(now["run"]["awake_budget"], Value::Null);
    let m = Manifest::open(&small(&b)).unwrap();
    assert_eq!(now["run"]["awake"], serde_json::to_value(&m.awake).unwrap());
}

#[test]
fn states_of_one_directory_have_names_of_their_own() {
    let b = bench("llama", false, &[]);
    let dir = small(&b);
    let mut hashes = Vec::new();
    for share in ["0.7", "0.5", "0.3"] {
        b.run(&["elastic", "set", "small", "--awake-budget", share]).done();
        let hash = layout::checkpoint_hash(&dir).unwrap();
        assert!(!hashes.contains(&hash), "{share}");
        hashes.push(hash);
    }
    b.run(&["elastic", "set", "small", "--awake-budget", "0.5"]).done();
    assert_eq!(layout::checkpoint_hash(&dir).unwrap(), hashes[1]);
    let m = Manifest::open(&dir).unwrap();
    let levels = m.named(&m.levels(&dir, 0.3).unwrap());
    assert_eq!(layout::state_hash(&dir, Some(&levels)).unwrap(), hashes[2]);
}

#[test]
fn packs_of_the_base_go_onto_its_elastic_checkpoints() {
    let b = bench("llama", false, &[]);
    b.pack("p", &PLAIN);
    let with = |more: &[&str]| loss(eval(&b, &[&["--base", "small"], more].concat()));
    let plain = with(&[]);
    let packed = with(&["--pack", "p"]);
    assert_ne!(plain, packed);
    // In use on the checkpoint, whatever of it is awake.
    b.run(&["packs", "apply", "p", "--base", "small", "--activate"]).done();
    assert_eq!(with(&[]), packed);
    b.run(&["elastic", "set", "small", "--awake-budget", "0.4"]).done();
    assert_ne!(with(&[]), with(&["--no-packs"]));
    assert_eq!(with(&[]), with(&["--pack", "p"]));
    // Not on the base by that.
    assert_eq!(loss(eval(&b, &["--base", "base"])), loss(eval(&b, &["--base", "base", "--no-packs"])));
    // A pack of one state is not for another.
    let model = Model::load(&small(&b), &LoadOptions::default()).unwrap();
    let own = support::random("own", &small(&b), &model, &PLAIN);
    b.store().put(&own, true, &b.store().lock("own").unwrap()).unwrap();
    with(&["--pack", "own"]);
    b.run(&["elastic", "set", "small", "--awake-budget", "0.6"]).done();
    eval(&b, &["--base", "small", "--pack", "own"]).refuses(1, "plastic-host elastic set");
    b.run(&["packs", "apply", "p", "--base", "small", "--fuse", "fused"]).refuses(1, "cannot be folded into");
}

#[test]
fn a_conversation_changes_what_is_awake_between_turns() {
    let b = bench("llama", false, &["--floor", "0.1"]);
    let lines =
        "w1 w2 w3\n/reset\n/budget 0.3\nw1 w2 w3\n/reset\n/budget 1\nw1 w2 w3\n/budget 0.0001\n/budget x\n/budget\n";
    let r = talk(&b, "small", lines, &["--json"]);
    assert_eq!(r.code, Some(0), "{}\n{}", r.out, r.err);
    let said = documents(&r);
    assert_eq!(said.len(), 6, "{}", r.out);
    let tokens: Vec<&Value> = [0, 2, 4].iter().map(|i| &said[*i]["tokens"]).collect();
    assert_eq!(tokens[0], tokens[2]);
    // Each is what one question to that state answers.
    for (share, tokens) in [("1", tokens[0]), ("0.3", tokens[1])] {
        let one = b.run(&[
            "generate",
            "--base",
            "small",
            "--awake-budget",
            share,
            "--prompt",
            "w1 w2 w3",
            "--max-tokens",
            "4",
            "--json",
        ]);
        assert_eq!(one.done().json()["tokens"], *tokens, "{share}");
    }
    assert!(said[1]["parameters_awake"].as_u64() < said[3]["parameters_awake"].as_u64(), "{}", r.out);
    assert!(said[1]["milliseconds"].as_f64().unwrap() < 500.0);
    // What was refused changed nothing.
    assert_eq!(said[5]["parameters_awake"], said[3]["parameters_awake"]);
    assert!(r.err.contains("the least that runs is") && r.err.contains("a share lies above 0"), "{}", r.err);
    // The conversation is kept, and forgotten on request.
    let r =
        talk(&b, "small", "w1 w2\nw3\n/reset\nw1 w2\n/help\n/what\n//w4\n/quit\nw9\n", &["--json", "--system", "w7"]);
    let said = documents(&r);
    let prompts: Vec<u64> = said.iter().map(|d| d["prompt_tokens"].as_u64().unwrap()).collect();
    let answered = said[0]["tokens"].as_array().unwrap().len() as u64;
    assert_eq!(prompts[..3], [3, 4 + answered, 3], "{prompts:?}");
    assert_eq!(prompts.len(), 4);
    assert!(r.err.contains("/budget SHARE") && r.err.contains("/what: no such command"), "{}", r.err);
    // The text of answers alone goes to standard output.
    let r = talk(&b, "small", "w1 w2 w3\n/budget\n", &[]);
    assert_eq!(r.out.lines().count(), 1, "{}", r.out);
    assert!(r.err.contains("awake budget 0.69"), "{}", r.err);
}

#[test]
#[cfg(unix)]
fn ctrl_c_ends_a_conversation_that_waits() {
    let b = bench("llama", false, &[]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_plastic-host"))
        .current_dir(b.dir.path())
        .args(["generate", "--base", "small", "--interactive", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = child.stdin.take().unwrap();
    said.write_all(b"/budget 0.5\n").unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    assert!(line.contains("parameters_awake"), "{line}");
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(said);
}

#[test]
fn what_has_no_capacity_to_change_says_so() {
    let b = bench("llama", false, &[]);
    assert!(talk(&b, "base", "/budget 0.5\n", &[]).err.contains("is no elastic checkpoint"));
    b.run(&["elastic", "wake", "small", "--all"]).done();
    assert!(talk(&b, "small", "/budget 0.5\n", &[]).err.contains("runs its base"));
    std::fs::remove_file(b.base().join("chat_template.jinja")).unwrap();
    talk(&b, "base", "hello\n", &[]).refuses(1, "has no chat template");
    let both = ["generate", "--base", "base", "--interactive", "--prompt", "x"];
    b.run(&both).refuses(2, "cannot be used with");
    // A line that is more than the model's context is not said, and the conversation goes on.
    std::fs::write(b.base().join("chat_template.jinja"), "{{ messages[-1].content }}").unwrap();
    let r = talk(&b, "base", &format!("{}\nw1\n", text(600, 3)), &["--json"]);
    assert_eq!((r.code, documents(&r).len()), (Some(0), 1), "{}\n{}", r.out, r.err);
    assert!(r.err.contains("that was not said"), "{}", r.err);
}

#[test]
fn damaged_directories_are_named() {
    let b = bench("llama", false, &["--self-contained"]);
    let dir = small(&b);
    let good = std::fs::read_to_string(dir.join("elastic.json")).unwrap();
    let verbs: [&[&str]; 3] = [
        &["elastic", "inspect", "small"],
        &["elastic", "set", "small", "--awake-budget", "0.5"],
        &["eval", "--base", "small", "--data", "judge.txt", "--window", "32"],
    ];
    let each = |text: &str| verbs.iter().for_each(|v| b.run(v).refuses(1, text));
    let write = |text: &str| std::fs::write(dir.join("elastic.json"), text).unwrap();
    write(&good[..good.len() / 2]);
    each("not valid JSON");
    write("{}");
    each("has no `schema`");
    write(&good.replacen("\"schema\": 1", "\"schema\": 9", 1));
    each("has format 9");
    write(&good.replacen("\"model.safetensors\": {", "\"../model.safetensors\": {", 1));
    each("elastic.json");
    write(&good.replacen("\"awake\":", "\"awoke\":", 1));
    each("cannot be read");
    // More than there is: the file and the weights do not belong together.
    let mut doc: Value = serde_json::from_str(&good).unwrap();
    for level in doc["awake"].as_object_mut().unwrap().values_mut() {
        *level = serde_json::json!({ "rank": 4_000_000_000u32 });
    }
    write(&doc.to_string());
    b.run(verbs[2]).refuses(1, "do not belong together");
    let mut doc: Value = serde_json::from_str(&good).unwrap();
    doc["stored"][0]["stored"] = 4_000_000_000u32.into();
    write(&doc.to_string());
    b.run(verbs[0]).refuses(1, "contradict each other");
    write(&good);
    for name in ["model.safetensors", "spectra.safetensors", "parked.safetensors"] {
        let file = dir.join(name);
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
        each(&format!("{name}: has {} bytes, and elastic.json says {}", bytes.len() - 5, bytes.len()));
        std::fs::remove_file(&file).unwrap();
        each(&format!("{name}: is missing"));
        std::fs::write(&file, &bytes).unwrap();
    }
    // As long as it was, and damaged: the budget cannot be found, and what is recorded runs.
    let file = dir.join("spectra.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let mut nan = bytes.clone();
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, &nan).unwrap();
    verbs[..2].iter().for_each(|v| b.run(v).refuses(1, "that are no energies"));
    b.run(verbs[2]).done();
    std::fs::write(&file, vec![0; bytes.len()]).unwrap();
    verbs[..2].iter().for_each(|v| b.run(v).refuses(1, "spectra.safetensors"));
    std::fs::write(&file, &bytes).unwrap();
    b.run(&["elastic", "inspect", "base"]).refuses(1, "is no elastic checkpoint");
    b.run(&["elastic", "set", "nowhere", "--awake-budget", "0.5"]).refuses(1, "is no elastic checkpoint");
    // After all that it is what it was.
    b.run(&["elastic", "inspect", "small", "--verify"]).done();
}

/// Two layers of the default model.
fn of_default(b: &Bench) {
    let data = |name: &str| root().join("data").join(name).display().to_string();
    let policy = root().join("plugins/water-fill.wasm").display().to_string();
    let (learn, judge) = (data("calibration.jsonl"), data("eval.jsonl"));
    let mut args = vec!["compress", "--base", "smollm2-135m", "--out", "some", "--budget", "0.7", "--policy", &policy];
    args.extend(["--layers", "model.layers.{0,1}.*", "--calibration-windows", "8", "--gradient-windows", "4"]);
    args.extend(["--calibration", &learn, "--data", &judge, "--window", "128", "--no-eval", "--self-contained"]);
    b.run(&args).done();
}

#[test]
fn the_default_model_shrinks_and_regrows_in_milliseconds_without_memory() {
    let b = Bench::new("llama");
    of_default(&b);
    let lines = "/budget 1\n/budget 0.3\n/budget 0.6\n/budget 0.3\n/budget 1\nName a colour.\n";
    let r = talk(&b, "some", lines, &["--json"]);
    assert_eq!(r.code, Some(0), "{}\n{}", r.out, r.err);
    let said = documents(&r);
    let number = |i: usize, name: &str| said[i][name].as_u64().unwrap();
    for (i, change) in said.iter().take(5).enumerate() {
        assert!(change["milliseconds"].as_f64().unwrap() < 500.0, "{}", r.out);
        assert_eq!(number(i, "mlx_active_bytes"), number(0, "mlx_active_bytes"), "{}", r.out);
        assert_eq!(number(i, "mlx_grew_bytes"), 0, "{}", r.out);
    }
    assert!(number(1, "parameters_awake") < number(2, "parameters_awake"));
    assert!(said[5]["tokens"].as_array().is_some_and(|t| !t.is_empty()), "{}", r.out);
    b.run(&["elastic", "wake", "some", "--all", "--out", "again"]).done();
    let m = Manifest::open(&b.path("some")).unwrap();
    assert_eq!(layout::checkpoint_hash(&b.path("again")).unwrap(), m.settings.base.sha256);
    assert!(inspect::inspect(&b.path("some"), &m).unwrap().base_problem.is_none());
}
