//! Packs folded into checkpoints.
//!
//! Covers: a float32 base keeps everything; a 4-bit base loses small updates, which is measured, said and refused;
//! 8 bits and floats as remedies, and what config.json says of them; sharded bases; that the base is never written.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "packs_support.rs"]
mod support;

use plastic_host::model::{LoadOptions, Model};
use plastic_host::pack::probe;
use serde_json::Value;
use std::path::Path;
use support::{Bench, PLAIN, Spec, gap, ids};

fn logits(dir: &Path) -> Vec<f32> {
    probe::logits(&Model::load(dir, &LoadOptions::default()).unwrap(), &ids(40)).unwrap()
}

fn apply(b: &Bench, more: &[&str]) -> support::Ran {
    let probe = support::words(40);
    let mut args = vec!["packs", "apply", "p", "--base", "base", "--probe", &probe, "--json"];
    args.extend(more);
    b.run(&args)
}

const SMALL: Spec = Spec { strength: 0.01, ..PLAIN };

#[test]
fn a_float_base_keeps_everything() {
    for dora in [false, true] {
        let b = Bench::new("llama");
        b.pack("p", &Spec { dora, ..PLAIN });
        let before = std::fs::read(b.base().join("model.safetensors")).unwrap();
        let doc = apply(&b, &["--fuse", "fused"]).done().json();
        assert!(doc["fuse"]["probe"]["max_logit_difference"].as_f64().unwrap() < 1e-4, "{doc}");
        assert!(doc["probe"]["max_logit_difference"].as_f64().unwrap() > 0.05);
        let by_hand = gap(&logits(&b.path("fused")), &logits(&b.base()));
        assert!((f64::from(by_hand) - doc["probe"]["max_logit_difference"].as_f64().unwrap()).abs() < 1e-3);
        assert_eq!(std::fs::read(b.base().join("model.safetensors")).unwrap(), before);
        assert!(b.path("fused/tokenizer.json").is_file());
        // Something is in the way, and never the base.
        apply(&b, &["--fuse", "fused"]).refuses(1, "replace it with --force");
        apply(&b, &["--fuse", "fused", "--force"]).done();
        apply(&b, &["--fuse", "base", "--force"]).refuses(1, "is the base itself");
        apply(&b, &["--fuse", ".", "--force"]).refuses(1, "is no checkpoint");
    }
}

#[test]
fn a_small_update_in_four_bits_is_refused_and_more_bits_keep_it() {
    let b = Bench::new("qwen3_q4g64");
    b.pack("p", &SMALL);
    let refused = apply(&b, &["--fuse", "fused", "--activate"]);
    assert_eq!(refused.code, Some(3), "{}\n{}", refused.out, refused.err);
    let doc = refused.json();
    assert_eq!((&doc["fuse"]["refused"], &doc["active"]), (&true.into(), &false.into()));
    let worst = |doc: &Value| {
        let kept = |s: &Value| s["kept"].as_f64().unwrap();
        doc["fuse"]["slices"].as_array().unwrap().iter().map(kept).fold(f64::MAX, f64::min)
    };
    assert!(worst(&doc) < 0.9, "{doc}");
    assert!(!b.path("fused").exists() && !b.path("packs/active.json").exists());
    let plain = b.run(&["packs", "apply", "p", "--base", "base", "--fuse", "fused"]);
    plain.refuses(3, "--fuse-bits 8");
    assert!(plain.out.contains("survives"), "{}", plain.out);
    // Whoever insists gets it, and the figures.
    let doc = apply(&b, &["--fuse", "anyway", "--fuse-anyway"]).done().json();
    let lost = doc["fuse"]["probe"]["max_logit_difference"].as_f64().unwrap();
    let dense = apply(&b, &["--fuse", "dense", "--fuse-bits", "dense"]).done().json();
    let little = dense["fuse"]["probe"]["max_logit_difference"].as_f64().unwrap();
    assert!(worst(&dense) > 0.99 && little < lost / 5.0, "{little} {lost}");
    let config: Value = serde_json::from_slice(&std::fs::read(b.path("dense/config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization"]["model.layers.0.self_attn.q_proj"], false);
    assert!(config["quantization"]["model.layers.0.self_attn.o_proj"].is_null(), "untouched");
    let dry = apply(&b, &["--fuse", "dry", "--fuse-bits", "dense", "--dry-run"]).done().json();
    assert!(!b.path("dry").exists() && dry["fuse"]["written"].is_null() && worst(&dry) == worst(&dense));
}

#[test]
fn eight_bits_are_written_module_by_module() {
    let b = Bench::new("qwen3_q4g64");
    b.pack("p", &PLAIN);
    let doc = apply(&b, &["--fuse", "fused", "--fuse-bits", "8"]).done().json();
    for s in doc["fuse"]["slices"].as_array().unwrap() {
        assert!(s["kept"].as_f64().unwrap() > 0.97 && s["to"].as_str().unwrap().contains("8 bits"), "{s}");
    }
    let config: Value = serde_json::from_slice(&std::fs::read(b.path("fused/config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization"]["model.layers.1.self_attn.v_proj"]["bits"], 8);
    assert_eq!(config["quantization"]["bits"], 4);
    let fused = doc["fuse"]["probe"]["max_logit_difference"].as_f64().unwrap();
    assert!(fused < 0.1 * doc["probe"]["max_logit_difference"].as_f64().unwrap(), "{doc}");
}

#[test]
fn a_sharded_base_gives_a_sharded_model() {
    let b = Bench::new("qwen3_q8g32");
    support::shard(&b.base());
    b.pack("p", &PLAIN);
    let doc = apply(&b, &["--fuse", "fused", "--fuse-bits", "dense"]).done().json();
    // Checked on loading: the index names what lies where, and nothing else is there.
    assert_eq!(logits(&b.path("fused")).len(), 40 * 128);
    assert!(doc["fuse"]["probe"]["max_logit_difference"].as_f64().unwrap() < 1e-2, "{doc}");
    let index = std::fs::read_to_string(b.path("fused/model.safetensors.index.json")).unwrap();
    assert!(!index.contains("layers.0.self_attn.q_proj.scales") && index.contains("layers.0.self_attn.o_proj.scales"));
}
