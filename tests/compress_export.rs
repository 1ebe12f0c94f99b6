//! `plastic-host export --materialise` and `--pivoted` on the default base: a few slices only.
//!
//! Covers: a materialised checkpoint computes what was awake, in floats and quantised, from both modes; pivoted slices
//! compute what as many components compute, in fewer parameters; what is refused, and that nothing is left then.

use plastic_tests::{Ran, Scratch, base, run};
use serde_json::Value;
use std::path::Path;

/// A compression of two layers with little calibration text.
fn compress(out: &str, more: &[&str]) -> Value {
    let base = base();
    let fixed =
        ["compress", "--out", out, "--base", &base, "--layers", "model.layers.{3,4}.*", "--calibration-windows", "8"];
    let short = ["--gradient-windows", "4", "--window", "128", "--no-eval", "--json"];
    let ran = run(&[&fixed[..], &short[..], more].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ran.json()
}

fn export(more: &[&str]) -> Ran {
    run(&[&["export", "--json"], more].concat())
}

fn made(more: &[&str]) -> Value {
    let ran = export(more);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ran.json()
}

fn loss(base: &str, more: &[&str]) -> f64 {
    let args = ["eval", "--base", base, "--windows", "4", "--window", "128", "--json"];
    let ran = run(&[&args, more].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ran.json()["mean_nll"].as_f64().unwrap()
}

fn config(dir: &str) -> Value {
    serde_json::from_slice(&std::fs::read(Path::new(dir).join("config.json")).unwrap()).unwrap()
}

fn files(dir: &str) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn what_is_awake_becomes_a_dense_checkpoint() {
    let s = Scratch::new("materialise");
    let (small, dense) = (s.path("small"), s.path("dense"));
    compress(&small, &["--budget", "0.6"]);
    let told = made(&["--materialise", &small, "--awake-budget", "0.5", "--out", &dense]);
    assert!(told["share"].as_f64().unwrap() <= 0.5, "{told}");
    let count = |of: &str| told["slices"][of].as_u64().unwrap();
    assert_eq!(count("floats") + count("copied"), 210, "{told}");
    assert!(count("floats") > 8 && count("quantised") == 0, "{told}");
    let there = files(&dense);
    assert!(there.contains(&"tokenizer.json".to_owned()) && !there.contains(&"elastic.json".to_owned()), "{there:?}");
    assert!(!there.iter().any(|f| f.contains("parts") || f.contains("spectra")), "{there:?}");
    // float16 rounds to 11 bits.
    let (awake, own) = (loss(&small, &["--awake-budget", "0.5"]), loss(&dense, &[]));
    assert!((awake - own).abs() < 2e-3, "{awake} {own}");
    // Modules that are floats now are named so, for mlx-lm.
    let changed = config(&dense)["quantization"].as_object().unwrap().values().filter(|v| **v == false).count();
    assert_eq!(changed as u64, count("floats"));
    // Every other module is as it was: a checkpoint of nothing awake less is the base's but for those.
    export(&["--materialise", &small, "--out", &dense]).refuses(1, "--force");
    let again = made(&["--materialise", &small, "--out", &dense, "--force", "--bits", "8", "--group-size", "32"]);
    assert_eq!(again["slices"]["floats"], 0, "{again}");
    let eight = loss(&dense, &[]);
    assert!((loss(&small, &[]) - eight).abs() < 0.02, "{eight}");
    assert!(loss(&dense, &[]) < own + 0.05, "more awake loses less");
    let scheme = config(&dense)["quantization"].as_object().unwrap().values().find(|v| v["bits"] == 8).cloned();
    assert_eq!(scheme.unwrap()["group_size"], 32);
}

#[test]
fn repairs_are_added_to_what_they_repair() {
    let s = Scratch::new("materialise");
    let (small, dense) = (s.path("small"), s.path("dense"));
    compress(&small, &["--mode", "residual", "--bits", "3"]);
    let told = made(&["--materialise", &small, "--out", &dense]);
    let rebuilt = told["slices"]["floats"].as_u64().unwrap();
    assert!(rebuilt > 0 && rebuilt <= 14, "{told}");
    let (awake, own) = (loss(&small, &[]), loss(&dense, &[]));
    assert!((awake - own).abs() < 2e-3, "{awake} {own}");
    export(&["--pivoted", &small, "--out", &s.path("fixed")]).refuses(1, "--mode factor");
}

#[test]
fn pivoted_slices_compute_what_as_many_components_do() {
    let s = Scratch::new("pivoted");
    let (full, fixed) = (s.path("full"), s.path("fixed"));
    let told = compress(&full, &["--budget", "1", "--ladder", "full", "--factor-bits", "16"]);
    for slice in told["stored"].as_array().unwrap() {
        let side = |k: &str| slice[k].as_u64().unwrap();
        assert_eq!(side("stored"), side("rows").min(side("cols")), "{slice}");
    }
    let told = made(&["--pivoted", &full, "--awake-budget", "0.6", "--out", &fixed]);
    let number = |k: &str| told[k].as_f64().unwrap();
    assert!(number("share") <= 0.6 && number("share") > 0.595, "{told}");
    assert!(number("share_as_factors") > 1.1 * number("share"), "{told}");
    assert!(number("largest_coefficient") <= 1.5 + 1e-9, "{told}");
    assert_eq!(told["capped"], 0);
    // The same ranks awake as factors.
    let path = Path::new(&full).join("elastic.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    manifest["awake"] = told["levels"].clone();
    std::fs::write(&path, manifest.to_string()).unwrap();
    let (awake, own) = (loss(&full, &[]), loss(&fixed, &[]));
    assert!((awake - own).abs() < 2e-3, "{awake} {own}");
    // It generates, and becomes a dense one.
    let said = run(&["generate", "--base", &fixed, "--prompt", "Hello", "--max-tokens", "3", "--json"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let dense = s.path("dense");
    let told = made(&["--materialise", &fixed, "--out", &dense]);
    assert!(told["share"].is_null() && told["slices"]["floats"].as_u64().unwrap() > 8, "{told}");
    let multiplied = loss(&dense, &[]);
    assert!((multiplied - own).abs() < 2e-3, "{multiplied} {own}");
    // Fewer bits a value.
    made(&["--pivoted", &full, "--awake-budget", "0.6", "--bits", "8", "--out", &fixed, "--force"]);
    let eight = loss(&fixed, &[]);
    assert!((eight - own).abs() < 0.05, "{eight} {own}");
}

#[test]
fn what_cannot_be_exported_is_said_and_leaves_nothing() {
    let s = Scratch::new("fixed");
    let out = s.path("out");
    let b = run(&["model", "inspect", &base(), "--json"]).json()["dir"].as_str().unwrap().to_owned();
    export(&["--pivoted", &b, "--out", &out]).refuses(1, "no elastic checkpoint");
    export(&["--materialise", &b, "--awake-budget", "0.5", "--out", &out]).refuses(1, "no elastic checkpoint");
    export(&["--materialise", &b, "--bits", "7", "--out", &out]).refuses(1, "--bits 7");
    export(&["--materialise", &b, "--awake-budget", "1.5", "--out", &out]).refuses(1, "--awake-budget 1.5");
    export(&["--materialise", &b, "--rank", "4", "--out", &out]).refuses(2, "cannot be used with");
    export(&["--materialise", &s.path("nothing"), "--out", &out]).refuses(1, "nothing");
    assert!(!Path::new(&out).exists());
}
