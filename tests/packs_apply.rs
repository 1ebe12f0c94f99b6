//! Packs in use, from outside.
//!
//! Covers: what `packs apply` checks and shows; that nothing changes without --activate; active packs in `eval`,
//! `generate` and `run`, until they are taken out of use; --pack and --no-packs; that a resumed run goes on with the
//! packs it began with, and refuses changed ones; that calibration statistics are not shared; how fast a pack of
//! 10 MB is attached; what export and import say.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "packs_support.rs"]
mod support;

use plastic_host::pack::{InUse, Pack, attach, probe};
use serde_json::{Value, json};
use std::fs;
use support::{Bench, PLAIN, Spec, gap, ids, root, words};

/// Text for perplexity and runs.
fn text(b: &Bench) -> String {
    let path = b.path("text.txt");
    fs::write(&path, words(700)).unwrap();
    path.display().to_string()
}

fn perplexity(b: &Bench, more: &[&str]) -> (f64, Value, String) {
    let text = text(b);
    let mut args = vec!["eval", "--base", "base", "--data", &text, "--window", "64", "--json"];
    args.extend(more);
    let ran = b.run(&args).done();
    (ran.json()["perplexity"].as_f64().unwrap(), ran.json()["packs"].clone(), ran.err)
}

#[test]
fn apply_shows_the_change_and_changes_nothing() {
    let b = Bench::new("llama");
    let pack = b.pack("a", &PLAIN);
    let probe = words(12);
    let ran = b.run(&["packs", "apply", "--name", "a", "--base", "base", "--probe", &probe, "--json"]).done();
    let doc = ran.json();
    // The same by hand.
    let mut model = b.model();
    let before = probe::logits(&model, &ids(12)).unwrap();
    let packs = InUse::read(&b.store(), &["a".parse().unwrap()]).unwrap();
    let attachment = packs.prepare(&model).unwrap();
    attach::attach(&mut model, &attachment);
    let after = probe::logits(&model, &ids(12)).unwrap();
    let shown = doc["probe"]["max_logit_difference"].as_f64().unwrap();
    assert!((shown - f64::from(gap(&before, &after))).abs() < 1e-4 && shown > 0.01, "{shown}");
    assert!(doc["probe"]["mean_kl"].as_f64().unwrap() > 0.0);
    assert_eq!(doc["probe"]["before"].as_array().unwrap().len(), 5);
    assert_eq!(doc["bytes"], pack.nbytes());
    assert_eq!(doc["adapters"], 6);
    assert_eq!((&doc["dry_run"], &doc["active"]), (&false.into(), &false.into()));
    assert!(!b.path("packs/active.json").exists());
    // Detaching leaves no trace.
    attach::detach(&mut model);
    assert_eq!(probe::logits(&model, &ids(12)).unwrap(), before);

    let dry = b.run(&["packs", "apply", "a", "--base", "base", "--dry-run", "--out", "run/state.json"]).done();
    assert!(dry.out.contains("nothing was changed"), "{}", dry.out);
    let session: Value = serde_json::from_slice(&fs::read(b.path("run/state.json")).unwrap()).unwrap();
    for field in ["pack", "pack_dir", "base", "base_hash", "timestamp"] {
        assert!(session[field].is_string(), "{field}: {session}");
    }
    assert!(session["probe"].is_null());
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let b = Bench::new("llama");
    b.pack("a", &PLAIN);
    b.run(&["packs", "apply"]).refuses(2, "no pack named");
    b.run(&["packs", "apply", "b", "--base", "base"]).refuses(1, "no pack b");
    b.run(&["packs", "apply", "../a", "--base", "base"]).refuses(2, "is no name for a pack");
    b.run(&["packs", "apply", "a", "--base", "base", "--out", "/dev/null", "--activate"]).refuses(1, "no regular file");
    b.run(&["packs", "apply", "a", "--base", "base", "--fuse", "base", "--force"]).refuses(1, "is the base itself");
    assert!(b.store().all_active().unwrap().is_empty());
    b.run(&["packs", "apply", "a", "a:0.5", "--base", "base"]).refuses(1, "named twice");
    b.run(&["packs", "apply", "a:1e39", "--base", "base"]).refuses(2, "finite number");
    b.run(&["packs", "apply", "a:3e38", "--base", "base", "--activate"]).refuses(1, "not finite");
    b.pack("dora", &Spec { dora: true, ..PLAIN });
    b.run(&["packs", "apply", "a", "dora", "--base", "base"]).refuses(1, "cannot share a slice");
    b.run(&["packs", "apply", "dora:0.5", "--base", "base"]).refuses(1, "cannot be weighted");
    b.run(&["packs", "apply", "dora", "--base", "base", "--probe", "w3 w4"]).done();
    // Another base.
    let other = Bench::new("llama3_rope");
    let base = other.base().display().to_string();
    b.run(&["packs", "apply", "a", "--base", &base, "--activate"]).refuses(1, "was made for another base");
    // The same without a hash: the geometry speaks.
    let mut pack: Pack = b.store().read("a").unwrap();
    pack.meta.base_hash = String::new();
    let wide = pack.adapters.get_mut("blocks.0.attn.q_proj").unwrap();
    wide.b.cols -= 1;
    wide.b.data.truncate(wide.b.rows * wide.b.cols);
    b.store().put(&pack, true, &b.store().lock("a").unwrap()).unwrap();
    b.run(&["packs", "apply", "a", "--base", "base", "--activate"]).refuses(1, "blocks.0.attn.q_proj maps 63 inputs");
    assert!(!b.path("packs/active.json").exists());
}

#[test]
fn active_packs_are_used_until_they_are_taken_out_of_use() {
    let b = Bench::new("qwen3_q4g64");
    b.pack("a", &PLAIN);
    b.pack("b", &Spec { seed: 2, ..PLAIN });
    let (plain, packs, err) = perplexity(&b, &[]);
    assert!(packs.is_null() && err.is_empty(), "{packs} {err}");
    let (named, packs, err) = perplexity(&b, &["--pack", "a:0.5", "--pack", "b"]);
    assert_ne!(named, plain);
    assert_eq!(packs[0]["weight"], 0.5);
    assert_eq!(packs[1]["sha256"].as_str().unwrap().len(), 64);
    assert!(err.contains("packs in use: a × 0.5, b"), "{err}");
    let on = b.run(&["packs", "apply", "--pack", "a:0.5", "--pack", "b", "--base", "base", "--activate"]).done();
    assert!(on.out.contains("in use on this base"), "{}", on.out);
    assert_eq!(perplexity(&b, &[]).0, named);
    assert_eq!(perplexity(&b, &["--no-packs"]).0, plain);
    let (one, packs, _) = perplexity(&b, &["--pack", "b"]);
    assert!(one != named && one != plain && packs.as_array().unwrap().len() == 1);
    let said =
        b.run(&["generate", "--base", "base", "--raw", "--prompt", "w1 w2", "--max-tokens", "3", "--json"]).done();
    assert_eq!(said.json()["packs"][0]["pack"], "a");
    assert!(b.run(&["eval", "--base", "base", "--pack", "a", "--no-packs"]).code == Some(2));
    // Another base has its own.
    let other = Bench::new("llama");
    let ran = b.run(&[
        "eval",
        "--base",
        &other.base().display().to_string(),
        "--data",
        &text(&b),
        "--window",
        "64",
        "--json",
    ]);
    assert!(ran.done().json()["packs"].is_null());
    // Gone from the disk, but active.
    fs::remove_dir_all(b.path("packs/b")).unwrap();
    b.run(&["eval", "--base", "base", "--data", "text.txt"]).refuses(1, "--no-packs");
    b.store().deactivate(None).unwrap();
    assert_eq!(perplexity(&b, &[]).0, plain);
}

#[test]
fn a_run_keeps_the_packs_it_began_with() {
    let b = Bench::new("llama");
    b.pack("a", &PLAIN);
    let text = text(&b);
    let policy = root().join("plugins/energy.wasm").display().to_string();
    let judge = root().join("plugins/perplexity.wasm").display().to_string();
    let go = |out: &str, more: &[&str]| {
        let mut args = vec!["run", "--policy", &policy, "--evaluator", &judge, "--base", "base", "--data", &text];
        args.extend(["--calibration", &text, "--window", "64", "--steps", "1", "--budget", "0.9", "--json"]);
        args.extend(["--max-loss-increase", "9", "--out", out]);
        args.extend(more);
        b.run(&args).done().json()
    };
    b.run(&["packs", "apply", "a", "--base", "base", "--activate"]).done();
    let with = go("with", &[]);
    let without = go("without", &["--no-packs"]);
    assert_eq!(with["packs"][0]["pack"], "a");
    assert!(without["packs"].as_array().unwrap().is_empty());
    assert_eq!(with["wake"]["identical"], true);
    let loss = |doc: &Value| doc["steps"][0]["verdict"]["metrics"].to_string();
    assert_ne!(loss(&with), loss(&without), "the pack makes a difference");
    // The state of the run has its packs, whatever is active later.
    b.store().deactivate(None).unwrap();
    let state = b.run(&["eval", "--state", "with", "--data", &text, "--window", "64", "--json"]).done().json();
    assert_eq!(state["packs"][0]["pack"], "a");
    assert_eq!(b.run(&["eval", "--state", "with", "--no-packs"]).code, Some(2));
    // Its options, as a file, name the same packs; those of a run without packs name none.
    let again = go("again", &["--config", "with/config.toml"]);
    assert_eq!(again["packs"][0]["sha256"], with["packs"][0]["sha256"]);
    assert_eq!(loss(&again), loss(&with));
    b.run(&["packs", "apply", "a", "--base", "base", "--activate"]).done();
    assert_eq!(loss(&go("bare", &["--config", "without/config.toml"])), loss(&without));
    b.store().deactivate(None).unwrap();
    let more = b.run(&["resume", "with", "--steps", "2", "--json"]).done().json();
    assert_eq!(more["packs"][0]["pack"], "a");
    // A pack of the same name with other numbers is another pack.
    b.pack("a", &Spec { seed: 9, ..PLAIN });
    b.run(&["resume", "with", "--steps", "3"]).refuses(1, "has changed since the run began");
    b.run(&["eval", "--state", "with", "--data", &text]).refuses(1, "has changed since the run began");
    b.run(&["resume", "without", "--steps", "2"]).done();
}

#[test]
fn statistics_of_the_base_do_not_depend_on_packs_that_change_nothing() {
    use plastic_host::plastic::moments::{self, Pass};
    // A pack whose last slice is the only one: what flows into and through every slice is as without it, and so must
    // the statistics of the base's weights be, although the outputs of that slice change.
    let b = Bench::new("qwen3_q4g64");
    let mut model = b.model();
    let windows = [ids(40), ids(40).into_iter().rev().collect()];
    let pass = Pass { windows: &windows, gradient_windows: 1, seed: 3, of: None };
    let last = model.slices().iter().rposition(|s| s.rows <= s.cols).unwrap();
    let of = |m: &plastic_host::model::Model| {
        let all = moments::gather(m, &pass, &mut |_, _| true).unwrap();
        support::floats(&all.of(last, &m.slices()[last]).unwrap().input)
    };
    let plain = of(&model);
    let mut pack =
        support::random("z", &b.base(), &model, &Spec { dora: true, kinds: &[("down_proj", 4, 8.0)], ..PLAIN });
    let key = plastic_host::pack::key::of_slice(&model.slices()[last].name).unwrap();
    pack.adapters.retain(|k, _| *k == key);
    assert_eq!(pack.adapters.len(), 1, "{key}");
    let attachment = attach::prepare(&model, &[(&pack, 1.0)]).unwrap();
    attach::attach(&mut model, &attachment);
    let with = of(&model);
    let scale = plain.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(gap(&plain, &with) < 1e-4 * scale, "{} of {scale}", gap(&plain, &with));
}

#[test]
fn a_pack_of_ten_megabytes_is_attached_in_50_ms() {
    let dir = std::env::var_os("PLASTIC_TEST_MODEL").map(Into::into);
    let dir: std::path::PathBuf =
        dir.unwrap_or_else(|| plastic_host::model::paths::models_dir().unwrap().join("smollm2-135m"));
    let mut model =
        plastic_host::model::Model::load(&dir, &Default::default()).expect("the default model: `make test` sets it up");
    let kinds: &[(&str, usize, f32)] = &[
        ("q_proj", 17, 16.0),
        ("k_proj", 17, 16.0),
        ("v_proj", 17, 16.0),
        ("o_proj", 17, 16.0),
        ("gate_proj", 17, 16.0),
        ("up_proj", 17, 16.0),
        ("down_proj", 17, 16.0),
    ];
    let pack = support::random("big", &dir, &model, &Spec { kinds, ..PLAIN });
    assert!((9 << 20..10 << 20).contains(&pack.nbytes()), "{}", pack.nbytes());
    let home = tempfile::tempdir().unwrap();
    let store = plastic_host::pack::Store::new(Some(home.path().join("packs")));
    store.put(&pack, false, &store.lock("big").unwrap()).unwrap();
    // The best of several, more of them on a busy machine: other tests run beside this one.
    let once = || {
        let begun = std::time::Instant::now();
        let packs = InUse::read(&store, &["big".parse().unwrap()]).unwrap();
        let read = begun.elapsed();
        let attachment = packs.prepare(&model).unwrap();
        let prepared = begun.elapsed();
        (begun.elapsed(), read, prepared - read, attachment)
    };
    let mut best = once();
    for i in 0..60 {
        if i >= 4 && best.0.as_millis() < 45 {
            break;
        }
        let other = once();
        if other.0 < best.0 {
            best = other;
        }
    }
    let begun = std::time::Instant::now();
    attach::attach(&mut model, &best.3);
    let total = best.0 + begun.elapsed();
    eprintln!("10 MB: read {:?}, prepare {:?}, attach {:?}, in all {total:?}", best.1, best.2, begun.elapsed());
    assert!(total.as_millis() < 50, "{total:?}");
}

#[test]
fn adapters_go_out_and_come_in() {
    let b = Bench::new("llama");
    let pack = b.pack("a", &PLAIN);
    let bytes = |name: &str| fs::read(b.path("packs").join(name).join("pack.safetensors")).unwrap();
    for format in ["mlx-lm", "peft"] {
        let out = b.run(&["packs", "export", "a", "--format", format, "--out", format, "--json"]).done().json();
        assert_eq!(out["exported"]["adapters"], 6);
        let back = b.run(&["packs", "import", format, "--name", format, "--base", "base"]).done();
        assert!(back.out.contains("to the bit"), "{}", back.out);
        assert!(bytes("a") == bytes(format));
        assert_eq!(b.store().read(format).unwrap().meta.training_config, pack.meta.training_config);
    }
    b.run(&["packs", "export", "a", "--format", "peft", "--out", "peft"]).refuses(1, "--force");
    b.run(&["packs", "export", "nobody", "--format", "peft", "--out", "x"]).refuses(1, "no pack nobody");
    b.run(&["packs", "export", "a", "--format", "gguf", "--out", "x"]).refuses(2, "mlx-lm");
    b.run(&["packs", "import", "peft", "--name", "a", "--base", "base"]).refuses(1, "there is a pack a already");
    b.run(&["packs", "import", "nowhere", "--name", "x", "--base", "base"]).refuses(1, "is no directory");
    b.run(&["packs", "import", "packs/a", "--name", "x", "--base", "base"]).refuses(1, "is a pack already");
    b.run(&["packs", "import", "mlx-lm", "--format", "peft", "--name", "x", "--base", "base"])
        .refuses(1, "is an adapter of mlx-lm");
    let other = Bench::new("qwen3");
    let ran = b.run(&["packs", "import", "peft", "--name", "x", "--base", &other.base().display().to_string()]);
    ran.refuses(1, "was made for another base");
    assert!(!b.path("packs/x").exists());
    // An adapter of somebody else on a base that it does not fit.
    let mut config: Value = serde_json::from_slice(&fs::read(b.path("peft/adapter_config.json")).unwrap()).unwrap();
    for (field, value, why) in [
        ("target_modules", json!(5), "target_modules"),
        ("target_modules", json!(["none_proj"]), "does not name"),
        ("exclude_modules", json!(["q_proj"]), "exclude_modules"),
    ] {
        let mut wrong = config.clone();
        wrong[field] = value;
        fs::write(b.path("peft/adapter_config.json"), wrong.to_string()).unwrap();
        b.run(&["packs", "import", "peft", "--name", "x", "--base", "base"]).refuses(1, why);
    }
    let mlx: Value = serde_json::from_slice(&fs::read(b.path("mlx-lm/adapter_config.json")).unwrap()).unwrap();
    for (num_layers, keys, why) in [
        (json!(1), json!(null), "num_layers"),
        (json!(0), json!(null), "num_layers"),
        (json!("x"), json!(null), "num_layers"),
        (json!(-1), json!(["self_attn.none"]), "lora_parameters.keys"),
        (json!(-1), json!(5), "lora_parameters.keys"),
    ] {
        let mut wrong = mlx.clone();
        (wrong["num_layers"], wrong["lora_parameters"]["keys"]) = (num_layers, keys);
        fs::write(b.path("mlx-lm/adapter_config.json"), wrong.to_string()).unwrap();
        b.run(&["packs", "import", "mlx-lm", "--name", "x", "--base", "base"]).refuses(1, why);
    }
    let mut odd = mlx.clone();
    odd["what_is_this"] = json!(7);
    fs::write(b.path("mlx-lm/adapter_config.json"), odd.to_string()).unwrap();
    let said = b.run(&["packs", "import", "mlx-lm", "--name", "odd", "--base", "base"]).done();
    assert!(said.out.contains("passed over: what_is_this"), "{}", said.out);
    config["modules_to_save"] = "lm_head".into();
    fs::write(b.path("peft/adapter_config.json"), config.to_string()).unwrap();
    b.run(&["packs", "import", "peft", "--name", "x", "--base", "base"]).refuses(1, "modules_to_save");
}
