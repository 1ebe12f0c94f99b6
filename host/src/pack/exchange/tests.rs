//! Round trips, what others write, and what is refused.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::pack::format::{Adapter, Matrix, VERSION};
use half::f16;
use std::collections::BTreeMap;

fn meta(name: &str) -> Meta {
    Meta {
        pack_name: name.into(),
        base_hash: "abc".into(),
        base_model: "tiny".into(),
        profile: Profile::Lite,
        rank_map: BTreeMap::new(),
        alpha_map: BTreeMap::new(),
        target_layers: Vec::new(),
        training_data: None,
        training_config: serde_json::json!({ "steps": 3 }),
        created_at: "2026-01-01T00:00:00Z".into(),
        notes: "n".into(),
        version: VERSION.into(),
    }
}

/// Numbers of every size float16 has, subnormal ones and both zeros among them.
fn numbers(rows: usize, cols: usize, seed: u16) -> Matrix {
    let bits = |i: usize| (i as u16).wrapping_mul(40_503).wrapping_add(seed);
    let all = (0..).map(bits).map(f16::from_bits).filter(|x| x.is_finite());
    let special = [f16::NEG_ZERO, f16::ZERO, f16::from_bits(1), f16::MAX].into_iter();
    Matrix { rows, cols, data: special.chain(all).take(rows * cols).collect() }
}

fn adapter(rank: usize, alpha: f32, dora: bool) -> Adapter {
    let magnitude = dora.then(|| (0..6).map(|i| 0.1 + i as f32 / 3.0).collect());
    Adapter { a: numbers(6, rank, 7), b: numbers(rank, 5, 1234), alpha, magnitude }
}

/// Ranks and alphas that differ, scales of every kind.
fn mixed(dora: bool) -> Pack {
    let keys = ["blocks.0.attn.q_proj", "blocks.0.mlp.down_proj", "blocks.1.attn.q_proj", "blocks.11.attn.k_proj"];
    let shapes = [(2, 4.0), (3, 0.1), (8, 100.0), (1, 1e-3)];
    let of = |(k, (r, alpha)): (&str, (usize, f32))| (k.to_owned(), adapter(r, alpha, dora));
    Pack::new(meta("p"), keys.into_iter().zip(shapes).map(of).collect())
}

fn again(pack: &Pack, format: Format) -> (Imported, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    export(pack, format, &out, false).unwrap();
    (import(&out, None, &meta("q")).unwrap(), out, dir)
}

#[test]
fn what_goes_out_comes_back_to_the_bit() {
    for format in [Format::MlxLm, Format::Peft] {
        for dora in [false, true] {
            let pack = mixed(dora);
            let (made, ..) = again(&pack, format);
            assert!(made.native && made.format == format);
            assert_eq!(made.pack.tensor_bytes().unwrap(), pack.tensor_bytes().unwrap(), "{format:?} {dora}");
            let mut meta = made.pack.meta.clone();
            assert_eq!(meta.pack_name, "q");
            meta.pack_name = "p".into();
            assert_eq!(meta, pack.meta);
        }
    }
}

#[test]
fn without_the_note_the_update_is_the_same() {
    // As if another program had written the file: every product scale · A B must be that of the pack.
    for format in [Format::MlxLm, Format::Peft] {
        let mut pack = mixed(false);
        for a in pack.adapters.values_mut() {
            // Numbers that a sum in float64 tells apart.
            a.a.data.iter_mut().chain(&mut a.b.data).for_each(|x| *x = f16::from_f32(x.to_f32().clamp(-4.0, 4.0)));
        }
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("x");
        export(&pack, format, &out, false).unwrap();
        let path = out.join(format.tensors());
        let bytes = std::fs::read(&path).unwrap();
        let text = bytes.iter().map(|b| *b as char).collect::<String>().replacen(NOTE, "plastic.note", 1);
        std::fs::write(&path, text.chars().map(|c| c as u8).collect::<Vec<u8>>()).unwrap();
        let made = import(&out, Some(format), &meta("q")).unwrap();
        assert!(!made.native);
        for (key, a) in &pack.adapters {
            let b = &made.pack.adapters[key];
            let product = |x: &Adapter, i: usize, j: usize| -> f64 {
                let sum: f64 =
                    (0..x.rank()).map(|k| x.a.data[i * x.rank() + k].to_f64() * x.b.data[k * 5 + j].to_f64()).sum();
                sum * f64::from(x.scale())
            };
            for (i, j) in (0..6).flat_map(|i| (0..5).map(move |j| (i, j))) {
                let (x, y) = (product(a, i, j), product(b, i, j));
                assert!((x - y).abs() <= 2e-3 * x.abs().max(f64::from(a.scale())), "{format:?} {key}: {x} {y}");
            }
        }
    }
}

#[test]
fn foreign_numbers_are_rounded_and_the_loss_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let config = serde_json::json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": true });
    std::fs::write(d.join(CONFIG), config.to_string()).unwrap();
    let m = "base_model.model.model.layers.0.self_attn.q_proj";
    let write = |a: &[f32], b: &[f32]| {
        let tensors = [
            Tensor::f32(format!("{m}.lora_A.weight"), vec![2, 3], b),
            Tensor::f32(format!("{m}.lora_B.weight"), vec![1, 2], a),
        ];
        tensor_file::write(&d.join("adapter_model.safetensors"), &[], &tensors).unwrap();
    };
    let fits = [0.5, -0.25, 3.0, 1.0, 0.0, 2.0];
    write(&[0.125, 2.0], &fits);
    let made = import(d, None, &meta("q")).unwrap();
    assert_eq!((made.rounded, made.rounding, made.native), (0, 0.0, false));
    let a = &made.pack.adapters["blocks.0.attn.q_proj"];
    // Rank-stabilised: alpha / sqrt(r).
    assert!((a.scale() - 3.0 / 2f32.sqrt()).abs() < 1e-6);
    assert_eq!(a.b.to_f32(), fits);
    // Numbers below what float16 tells apart, and above its range.
    for size in [1e-9f32, 1e9] {
        let tiny: Vec<f32> = [1.0f32 / 3.0, -0.7].iter().map(|x| x * size).collect();
        write(&tiny, &fits);
        let made = import(d, None, &meta("q")).unwrap();
        assert!(made.rounded == 1 && made.rounding > 0.0 && made.rounding < 1e-3, "{}", made.rounding);
        assert_eq!(made.notes.len(), 2, "{:?}", made.notes);
        let a = &made.pack.adapters["blocks.0.attn.q_proj"];
        let (got, want) = (a.scale() * a.a.data[0].to_f32(), 3.0 / 2f32.sqrt() * tiny[0]);
        assert!((got / want - 1.0).abs() < 1e-3, "{got} {want}");
    }
    write(&[f32::NAN, 0.0], &fits);
    assert!(import(d, None, &meta("q")).unwrap_err().to_string().contains("holds NaN at element 0"));
    let huge = serde_json::json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 1e30 });
    std::fs::write(d.join(CONFIG), huge.to_string()).unwrap();
    write(&[1e30, 1e29], &fits);
    assert!(import(d, None, &meta("q")).unwrap_err().to_string().contains("beyond float32"));
}

#[test]
fn patterns_are_those_of_peft() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let tensor = |layer: usize, rank: usize| {
        let m = format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
        [
            Tensor::f32(format!("{m}.lora_A.weight"), vec![rank, 3], &vec![1.0; 3 * rank]),
            Tensor::f32(format!("{m}.lora_B.weight"), vec![2, rank], &vec![1.0; 2 * rank]),
        ]
    };
    let tensors: Vec<Tensor> = [(1, 4), (11, 2), (2, 3)].into_iter().flat_map(|(l, r)| tensor(l, r)).collect();
    tensor_file::write(&d.join("adapter_model.safetensors"), &[], &tensors).unwrap();
    let config = serde_json::json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 8,
        "rank_pattern": { "layers.1.self_attn.q_proj": 4, "model\\.layers\\.[2-9]\\..*": 3 },
        "alpha_pattern": { "layers.1.self_attn.q_proj": 1.5, ".*": 6 },
    });
    std::fs::write(d.join(CONFIG), config.to_string()).unwrap();
    let made = import(d, None, &meta("q")).unwrap().pack;
    let alpha = |key: &str| made.adapters[key].alpha;
    assert_eq!(alpha("blocks.1.attn.q_proj"), 1.5);
    assert_eq!(alpha("blocks.11.attn.q_proj"), 6.0, "the first match counts");
    assert_eq!(made.meta.rank_map["blocks.2.attn.q_proj"], 3);
}

#[test]
fn settings_that_cannot_be_taken_over_are_named() {
    let (_, out, _dir) = again(&mixed(false), Format::Peft);
    let path = out.join(CONFIG);
    let good: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let says = |field: &str, value: serde_json::Value, text: &str| {
        let mut config = good.clone();
        config[field] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let e = import(&out, None, &meta("q")).unwrap_err().to_string();
        assert!(e.contains(text) && e.contains(field) && e.contains("adapter_config.json"), "{e}");
    };
    use serde_json::json;
    says("peft_type", json!("ADALORA"), "supported: \"LORA\"");
    says("peft_type", json!(null), "is missing");
    says("bias", json!("all"), "biases were trained");
    says("modules_to_save", json!(["lm_head"]), "whole modules were trained");
    says("layers_to_transform", json!([0, 1]), "the file has an adapter for model.layers.11");
    says("layers_to_transform", json!("x"), "expected numbers of layers");
    says("init_lora_weights", json!("pissa_niter_4"), "changed base");
    says("rank_pattern", json!({ "(": 3 }), "no regular expression");
    says("rank_pattern", json!([]), "expected modules and numbers");
    says("use_dora", json!("yes"), "expected true or false");
    says("r", json!("8"), "expected a number");
    says("target_parameters", json!(["x"]), "without a linear layer");
    // What changes nothing is taken.
    let mut config = good.clone();
    config["layers_to_transform"] = json!([0, 1, 11]);
    config["modules_to_save"] = json!(null);
    config["lora_dropout"] = json!(0.1);
    config["init_lora_weights"] = json!("gaussian");
    std::fs::write(&path, config.to_string()).unwrap();
    assert!(import(&out, None, &meta("q")).unwrap().native);
    std::fs::write(&path, "[]").unwrap();
    assert!(import(&out, None, &meta("q")).unwrap_err().to_string().contains("no JSON object"));
    std::fs::remove_file(&path).unwrap();
    assert!(import(&out, None, &meta("q")).unwrap_err().to_string().contains("is missing; an adapter is"));
}

#[test]
fn damaged_files_are_named() {
    for format in [Format::MlxLm, Format::Peft] {
        let (_, out, _dir) = again(&mixed(true), format);
        let path = out.join(format.tensors());
        let whole = std::fs::read(&path).unwrap();
        let says = |bytes: &[u8], text: &str| {
            std::fs::write(&path, bytes).unwrap();
            let e = import(&out, None, &meta("q")).unwrap_err().to_string();
            assert!(e.contains(text) && e.contains(format.tensors()), "{e}");
        };
        says(&whole[..whole.len() - 9], "truncated");
        says(b"", "truncated or no safetensors");
        // One name for another of the same length.
        let renamed = |from: &str, to: &str| {
            let text: String = whole.iter().map(|b| *b as char).collect::<String>().replacen(from, to, 1);
            text.chars().map(|c| c as u8).collect::<Vec<u8>>()
        };
        says(&renamed("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_pro/"), "does not reach");
        says(&renamed("model.layers.1.self_attn.q_proj", "model.lm_head.xxxxxxxxxxxxxxxxx"), "does not reach");
        match format {
            Format::MlxLm => says(&renamed("q_proj.lora_b", "q_proj.lora_c"), "q_proj.lora_b"),
            Format::Peft => says(&renamed("q_proj.lora_B.weight", "q_proj.lora_C.weight"), "q_proj.lora_B.weight"),
        }
        std::fs::write(&path, &whole).unwrap();
        // A tensor more than the settings ask for: a magnitude without DoRA.
        let config = out.join(CONFIG);
        let text = std::fs::read_to_string(&config).unwrap();
        let plain = text.replace("\"use_dora\": true", "\"use_dora\": false").replace("\"dora\"", "\"lora\"");
        std::fs::write(&config, plain).unwrap();
        says(&whole, "is no part of a LoRA");
    }
    let dir = tempfile::tempdir().unwrap();
    let says = |text: &str| assert!(import(dir.path(), None, &meta("q")).unwrap_err().to_string().contains(text));
    says("has no adapters.safetensors");
    std::fs::write(dir.path().join("adapter_model.bin"), "").unwrap();
    says("a pickle");
    let wrong = import(dir.path(), Some(Format::Peft), &meta("q")).unwrap_err().to_string();
    assert!(wrong.contains("a pickle"), "{wrong}");
}

#[test]
fn an_export_replaces_adapters_only() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("x");
    let pack = mixed(false);
    export(&pack, Format::Peft, &out, false).unwrap();
    assert!(export(&pack, Format::Peft, &out, false).unwrap_err().to_string().contains("--force"));
    let one = std::fs::read(out.join("adapter_model.safetensors")).unwrap();
    export(&pack, Format::Peft, &out, true).unwrap();
    assert_eq!(std::fs::read(out.join("adapter_model.safetensors")).unwrap(), one, "the same bytes each time");
    std::fs::create_dir(dir.path().join("mine")).unwrap();
    std::fs::write(dir.path().join("mine/thesis.txt"), "x").unwrap();
    let e = export(&pack, Format::MlxLm, &dir.path().join("mine"), true).unwrap_err().to_string();
    assert!(e.contains("is no adapter"), "{e}");
}
