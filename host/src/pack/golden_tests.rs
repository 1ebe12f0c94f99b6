//! Packs and figures of mlx-plastic-rank, held against ours.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::format::{META, TENSORS, UPSTREAM_VERSION, VERSION};
use super::{Adapter, Matrix, Pack, attach, ledger};
use crate::model::{LoadOptions, Model};
use ct_codecs::{Base64, Decoder};
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The file with what upstream computed.
pub fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(in_tests("golden/packs.json")).unwrap()).unwrap()
}

fn in_tests(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(name)
}

/// A pack that upstream wrote.
pub fn fixture(name: &str) -> Pack {
    let g = golden();
    let dir = tempfile::tempdir().unwrap();
    let of = &g["pack_fixture"][name];
    let bytes = Base64::decode_to_vec(of["pack.safetensors_base64"].as_str().unwrap(), None).unwrap();
    std::fs::write(dir.path().join(TENSORS), bytes).unwrap();
    std::fs::write(dir.path().join(META), of["meta.json"].to_string()).unwrap();
    Pack::read(dir.path()).unwrap()
}

/// Numbers within a relative tolerance; what is round-off beside `floor` counts as equal.
fn close(path: &str, ours: f64, theirs: f64, floor: f64) {
    assert!((ours - theirs).abs() <= 1e-4 * theirs.abs().max(floor), "{path}: {ours} instead of {theirs}");
}

/// That every field of `theirs` that `ours` has is the same, and that nothing but `except` is missing.
fn same(path: &str, ours: &Value, theirs: &Value, except: &[&str]) {
    match (ours, theirs) {
        (Value::Object(o), Value::Object(t)) => {
            for (k, v) in t.iter().filter(|(k, _)| !except.contains(&k.as_str())) {
                same(&format!("{path}.{k}"), o.get(k).unwrap_or_else(|| panic!("{path}.{k} is missing")), v, except);
            }
        }
        (Value::Array(o), Value::Array(t)) => {
            assert_eq!(o.len(), t.len(), "{path}");
            let floor = t.first().and_then(Value::as_f64).unwrap_or(0.0);
            for (i, (o, t)) in o.iter().zip(t).enumerate() {
                match (o.as_f64(), t.as_f64()) {
                    (Some(o), Some(t)) => close(&format!("{path}[{i}]"), o, t, floor),
                    _ => same(&format!("{path}[{i}]"), o, t, except),
                }
            }
        }
        (Value::Number(o), Value::Number(t)) => close(path, o.as_f64().unwrap(), t.as_f64().unwrap(), 0.0),
        _ => assert_eq!(ours, theirs, "{path}"),
    }
}

#[test]
fn ledgers_are_those_of_upstream() {
    let g = golden();
    let (alpha, beta) = (fixture("alpha"), fixture("beta"));
    for (pack, key) in [(&alpha, "left_alpha"), (&beta, "right_beta")] {
        let ours = serde_json::to_value(ledger::measure(pack, ledger::RANK_TOL).unwrap()).unwrap();
        same(key, &ours, &g["rank_ledger"][key], &["pack_dir"]);
    }
    let ours = serde_json::to_value(ledger::compare(&alpha, &beta, ledger::RANK_TOL).unwrap()).unwrap();
    same("compare", &ours, &g["rank_ledger"]["compare"], &["left_pack_dir", "right_pack_dir"]);
}

#[test]
fn slices_compute_what_upstream_computes() {
    let g = golden();
    let matrix = |of: &Value| -> (usize, usize, Vec<f32>) {
        let n = |k: &str| of[k].as_f64().unwrap();
        let (rows, cols) = (n("m") as usize, n("n") as usize);
        let at = |i: usize, j: usize| (n("a") * (i * j) as f64 + n("b") * (i as f64 - j as f64) + n("c")).sin() as f32;
        (rows, cols, (0..rows * cols).map(|k| at(k / cols, k % cols)).collect())
    };
    for case in g["slice_lora"]["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (rows, r, a) = matrix(&case["A(fp16)"]);
        let (_, cols, b) = matrix(&case["B(fp16)"]);
        let (n, _, x) = matrix(&case["x"]);
        let mut adapter = Adapter {
            a: Matrix::from_f32(rows, r, &a),
            b: Matrix::from_f32(r, cols, &b),
            alpha: case["alpha"].as_f64().unwrap() as f32,
            magnitude: None,
        };
        // A gate leaves the first components awake, with the scale of all of them.
        if let Some(active) = case["active_rank"].as_u64() {
            adapter = adapter.first(active as usize);
            assert_eq!(f64::from(adapter.alpha), case["export"]["alpha"].as_f64().unwrap(), "{name}");
        }
        assert_eq!(json!([adapter.a.rows, adapter.a.cols]), case["export"]["A_shape"], "{name}");
        assert_eq!(json!([adapter.b.rows, adapter.b.cols]), case["export"]["B_shape"], "{name}");
        let x = crate::mlx::Array::from_slice(&x, &[n as i32, cols as i32]);
        let low = x.matmul(adapter.b.array().transpose().unwrap()).unwrap();
        let scale = crate::mlx::Array::from_f32(adapter.scale());
        let y = low.matmul(adapter.a.array().transpose().unwrap()).unwrap().multiply(scale).unwrap();
        let ours = crate::mlx::spectral::to_vec(&y).unwrap();
        let theirs = case["delta"].as_array().unwrap().iter().flat_map(|r| r.as_array().unwrap());
        for (o, t) in ours.iter().zip(theirs) {
            let t = t.as_f64().unwrap();
            // Sums of five products in float32, in another order.
            assert!((o - t).abs() < 2e-6 * (1.0 + t.abs()), "{name}: {o} {t}");
        }
    }
}

/// A pack of one adapter as upstream writes it, to be tampered with.
struct Tampered {
    meta: Value,
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    cut_meta: bool,
    cut_tensors: bool,
}

const KEY: &str = "blocks.0.attn.q_proj";

impl Tampered {
    fn new(rows: usize, cols: usize, base_hash: &str) -> Tampered {
        let halves =
            |n: usize| -> Vec<u8> { (0..n).flat_map(|i| f16::from_f32((i as f32).sin()).to_le_bytes()).collect() };
        Tampered {
            meta: json!({
                "pack_name": "p", "base_hash": base_hash, "base_model": "toy", "profile": "lite",
                "rank_map": { KEY: 4 }, "alpha_map": { KEY: 8.0 }, "target_layers": [KEY], "training_data": null,
                "training_config": {}, "created_at": "", "notes": "", "version": UPSTREAM_VERSION,
            }),
            tensors: vec![
                (format!("{KEY}.lora.A"), Dtype::F16, vec![rows, 4], halves(4 * rows)),
                (format!("{KEY}.lora.B"), Dtype::F16, vec![4, cols], halves(4 * cols)),
                (format!("{KEY}.lora.alpha"), Dtype::F32, vec![], 8f32.to_le_bytes().to_vec()),
            ],
            cut_meta: false,
            cut_tensors: false,
        }
    }

    /// Gives A or B another type, with bytes of that type.
    fn retype(&mut self, which: usize, dtype: Dtype) {
        let (_, d, shape, bytes) = &mut self.tensors[which];
        *bytes = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
        *d = dtype;
    }

    fn write(&self, dir: &Path) {
        let views = self.tensors.iter().map(|(n, d, s, b)| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
        let mut bytes = safetensors::serialize(views, None).unwrap();
        if self.cut_tensors {
            bytes.truncate(bytes.len() - 7);
        }
        let mut meta = self.meta.to_string();
        if self.cut_meta {
            meta.truncate(meta.len() / 2);
        }
        std::fs::write(dir.join(TENSORS), bytes).unwrap();
        std::fs::write(dir.join(META), meta).unwrap();
    }
}

/// Tampers as a case of the golden file says; answers what the message must name.
fn tamper(case: &str, p: &mut Tampered) -> &'static str {
    match case {
        "extra tensor junk.tensor" => {
            p.tensors.push(("junk.tensor".into(), Dtype::F32, vec![1], vec![0; 4]));
            "junk.tensor"
        }
        "A has 2 columns, meta rank 4" => {
            let (_, _, shape, bytes) = &mut p.tensors[0];
            bytes.truncate(bytes.len() / 2);
            shape[1] = 2;
            "has 2 components; meta.json says 4"
        }
        "missing alpha tensor" => {
            p.tensors.pop();
            "lora.alpha`: is missing"
        }
        "rank 3 in meta (lite)" => {
            p.meta["rank_map"][KEY] = json!(3);
            "has rank 3"
        }
        "alpha_map 9.0 for rank 4" => {
            p.meta["alpha_map"][KEY] = json!(9.0);
            "alpha is 0 or twice the rank"
        }
        "alpha_map 0.0" => {
            p.meta["alpha_map"][KEY] = json!(0.0);
            ""
        }
        "base_hash differs" => {
            p.meta["base_hash"] = json!("0".repeat(64));
            "was made for another base"
        }
        "base_hash empty" => {
            p.meta["base_hash"] = json!("");
            ""
        }
        "A,B float32" => {
            p.retype(0, Dtype::F32);
            p.retype(1, Dtype::F32);
            "expected F16"
        }
        "A int64" => {
            p.retype(0, Dtype::I64);
            "is I64"
        }
        "A bfloat16" => {
            p.retype(0, Dtype::BF16);
            "is BF16"
        }
        "alpha tensor 1e6 while alpha_map says 8" => {
            p.tensors[2].3 = 1e6f32.to_le_bytes().to_vec();
            "is 1000000; meta.json says 8"
        }
        "alpha float64 shape [1]" => {
            p.tensors[2] = (p.tensors[2].0.clone(), Dtype::F64, vec![1], 8f64.to_le_bytes().to_vec());
            "is F64 [1]"
        }
        "NaN in A" => {
            p.tensors[0].3[4..6].copy_from_slice(&f16::NAN.to_le_bytes());
            "holds NaN at element 2"
        }
        "empty pack (no tensors, empty rank_map)" => {
            p.tensors.clear();
            p.meta["rank_map"] = json!({});
            p.meta["alpha_map"] = json!({});
            "rank_map is empty"
        }
        "version 99.0" => {
            p.meta["version"] = json!("99.0");
            "version 99.0 of the pack schema"
        }
        "rank 4.9 in meta.json (int() truncation)" => {
            p.meta["rank_map"][KEY] = json!(4.9);
            "4.9"
        }
        "adapter for block 7 of a 1-block model" => {
            let key = "blocks.7.attn.q_proj";
            p.meta["rank_map"] = json!({ KEY: 4, key: 4 });
            p.meta["alpha_map"] = json!({ KEY: 8.0, key: 8.0 });
            for i in 0..3 {
                let (name, d, s, b) = p.tensors[i].clone();
                p.tensors.push((name.replace(KEY, key), d, s, b));
            }
            "made for another base"
        }
        "truncated meta.json" => {
            p.cut_meta = true;
            "meta.json: is no metadata of a pack"
        }
        "truncated safetensors" => {
            p.cut_tensors = true;
            "pack.safetensors"
        }
        other => panic!("a case that this test does not know: {other}"),
    }
}

#[test]
fn every_tampered_pack_gets_the_recommended_answer() {
    let base = in_tests("golden/tiny/qwen3");
    let model = Model::load(&base, &LoadOptions::default()).unwrap();
    let slice = model.slices().iter().find(|s| s.name == "model.layers.0.self_attn.q_proj").unwrap();
    let (rows, cols) = (slice.rows as usize, slice.cols as usize);
    // Version 0.1.0 names the first shard.
    let hash = crate::model::hash::sha256_file(&base.join("model.safetensors"), &mut |_| {}).unwrap();
    let g = golden();
    let cases = g["pack_validation_upstream_behaviour"]["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    for case in cases {
        let name = case["tamper"].as_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut p = Tampered::new(rows, cols, &hash);
        let expected = tamper(name, &mut p);
        p.write(dir.path());
        let answer = Pack::read(dir.path()).and_then(|pack| {
            attach::check_base(&pack, &base)?;
            attach::prepare(&model, &[(&pack, 1.0)]).map(|_| pack)
        });
        match (case["should_reject"].as_bool().unwrap(), answer) {
            (true, Ok(_)) => panic!("{name}: accepted"),
            (false, Err(e)) => panic!("{name}: {e}"),
            (true, Err(e)) => {
                let text = e.to_string();
                assert!(text.contains(expected), "{name}: expected {expected:?} in: {text}");
            }
            (false, Ok(pack)) if name == "alpha_map 0.0" => {
                // What the metadata puts out of work does nothing, whatever the tensor says.
                assert_eq!(pack.adapters[KEY].scale(), 0.0);
            }
            (false, Ok(_)) => {}
        }
    }
    // And the same pack untouched is fine.
    let dir = tempfile::tempdir().unwrap();
    Tampered::new(rows, cols, &hash).write(dir.path());
    let pack = Pack::read(dir.path()).unwrap();
    attach::check_base(&pack, &base).unwrap();
    attach::prepare(&model, &[(&pack, 1.0)]).unwrap();
}

#[test]
fn the_fixtures_come_back_as_ours() {
    for name in ["alpha", "beta"] {
        let read = fixture(name);
        let ours = Pack::new(read.meta.clone(), read.adapters.clone());
        assert_eq!((ours.meta.version.as_str(), ours.nbytes()), (VERSION, read.nbytes()));
        let dir = tempfile::tempdir().unwrap();
        ours.write(dir.path()).unwrap();
        assert_eq!(Pack::read(dir.path()).unwrap(), ours);
    }
    let g = golden();
    let summary = &g["rank_ledger"]["left_alpha"]["summary"];
    assert_eq!(summary["bytes"].as_u64().unwrap(), fixture("alpha").nbytes());
}
