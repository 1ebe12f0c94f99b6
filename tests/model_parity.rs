//! Compares the decoder with independent implementations.
//!
//! Covers:
//! - `golden/tiny`: small random checkpoints of every architecture and quantisation, logits and losses as
//!   mlx-lm 0.32.2 computes them in float32 on a CPU;
//! - `golden/smollm2.json`: the default model, per-window losses and top logits from a float64 forward
//!   pass in numpy that shares no code with MLX;
//! - divergences of two states, against float64 sums over the logits;
//! - that sleeping and waking a slice leaves outputs bit for bit as they were;
//! - that the cached, chunked path (generation) agrees with the whole pass (scoring), for one sequence and for
//!   several of different length.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use plastic_host::mlx::{self, Array};
use plastic_host::model::{self, Factors, LoadOptions, Model, paths};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn tokens(ids: &[u32]) -> Array {
    let ids: Vec<i32> = ids.iter().map(|i| *i as i32).collect();
    Array::from_slice(&ids, &[1, ids.len() as i32])
}

fn to_vec(a: &Array) -> Vec<f32> {
    mlx::eval([a]).unwrap();
    a.reshape(&[-1]).unwrap().to_vec_exact::<f32>().unwrap()
}

/// Logits [T][V] of a whole pass.
fn logits(m: &Model, ids: &[u32]) -> Vec<Vec<f32>> {
    let l = m.logits(&m.hidden(&tokens(ids), None).unwrap()).unwrap();
    to_vec(&l).chunks(m.config().vocab_size).map(<[f32]>::to_vec).collect()
}

fn mean(v: &[f32]) -> f64 {
    v.iter().map(|x| f64::from(*x)).sum::<f64>() / v.len() as f64
}

/// Largest difference between two vectors.
fn gap(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - y).abs()).fold(0.0, f64::max)
}

#[test]
fn tiny_checkpoints_match_mlx_lm() {
    let dir = golden().join("tiny");
    let cases = json(&dir.join("index.json"));
    for name in cases["cases"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()) {
        let m = Model::load(&dir.join(name), &LoadOptions::default()).unwrap();
        let expected = json(&dir.join(name).join("expected.json"));
        let atol = if m.config().quantization.global.is_some() { 5e-4 } else { 2e-4 };
        for tag in ["ids", "long_ids"] {
            let ids = ids(&expected[tag]);
            let got = logits(&m, &ids);
            for (at, row) in [("first", &got[0]), ("last", got.last().unwrap())] {
                let d = gap(row, &floats(&expected[&format!("logits_{at}_{tag}")]));
                assert!(d < atol, "{name} {tag} {at} logits differ by {d}");
            }
            let nll = mean(&m.score(std::slice::from_ref(&ids)).unwrap()[0]);
            let d = (nll - expected[&format!("mean_nll_{tag}")].as_f64().unwrap()).abs();
            assert!(d < 1e-4, "{name} {tag} mean nll {nll} differs by {d}");
        }
    }
}

#[test]
fn chunks_through_the_cache_match_the_whole_pass() {
    let dir = golden().join("tiny");
    for name in ["llama", "qwen3_q4g64", "qwen2_q3g32", "qwen3_yarn"] {
        let m = Model::load(&dir.join(name), &LoadOptions::default()).unwrap();
        let ids: Vec<u32> = (0..600u32).map(|i| (i * 37 + 11) % 128).collect();
        let whole = logits(&m, &ids);
        let mut cache = m.new_cache();
        let mut at = 0;
        // Lengths that fall on, before and beyond the steps in which the cache grows.
        for n in [1, 255, 1, 2, 200, 141] {
            let h = m.hidden(&tokens(&ids[at..at + n]), Some(&mut cache)).unwrap();
            let part = to_vec(&m.logits(&h).unwrap());
            at += n;
            assert_eq!(cache.len(), at);
            let last = &part[part.len() - m.config().vocab_size..];
            let d = gap(last, &whole[at - 1].iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
            assert!(d < 2e-4, "{name}: position {at} differs by {d}");
        }
    }
}

#[test]
fn rows_of_different_length_decode_together_as_each_alone() {
    let dir = golden().join("tiny");
    for name in ["llama", "qwen3_q4g64", "qwen2_q3g32", "qwen3_yarn"] {
        let m = Model::load(&dir.join(name), &LoadOptions::default()).unwrap();
        let text = |k: u32, n: u32| (0..n).map(|i| (i * 37 + 11 * k) % 128).collect::<Vec<u32>>();
        let mut texts = [text(1, 5), text(2, 290), text(3, 64)];
        let mut cache = m.new_cache_of(3);
        let same = |what: &str, got: &[f32], text: &[u32]| {
            let want: Vec<f64> = logits(&m, text).last().unwrap().iter().map(|x| f64::from(*x)).collect();
            let d = gap(got, &want);
            assert!(d < 2e-4, "{name}: {what}, {} positions: differs by {d}", text.len());
        };
        let v = m.config().vocab_size;
        let fill = |cache: &mut model::KvCache, row: usize, ids: &[u32]| {
            cache.clear(row);
            cache.select(&[row]);
            let part = to_vec(&m.logits(&m.hidden_of(ids, 1, Some(cache)).unwrap()).unwrap());
            same("prompt", &part[part.len() - v..], ids);
        };
        for row in [2, 0, 1] {
            fill(&mut cache, row, &texts[row]);
        }
        for step in 0..6u32 {
            if step == 3 {
                // The answer of row 1 ended; another prompt takes its place.
                texts[1] = text(9, 20);
                fill(&mut cache, 1, &texts[1]);
            }
            let rows: &[usize] = if step % 2 == 0 { &[0, 1, 2] } else { &[2, 0] };
            let new: Vec<u32> = rows.iter().map(|r| (*r as u32 * 5 + step * 7) % 128).collect();
            cache.select(rows);
            let got = to_vec(&m.logits(&m.hidden_of(&new, rows.len(), Some(&mut cache)).unwrap()).unwrap());
            for ((row, id), got) in rows.iter().zip(&new).zip(got.chunks(v)) {
                texts[*row].push(*id);
                same("together", got, &texts[*row]);
            }
        }
        cache.select(&[1]);
        assert_eq!(cache.len(), texts[1].len());
        assert!(m.hidden_of(&[1, 2, 3], 2, Some(&mut cache)).is_err());
        assert!(m.hidden_of(&[128], 1, None).unwrap_err().to_string().contains("token id 128"));
    }
}

#[test]
fn divergence_of_two_states_matches_their_logits() {
    let dir = golden().join("tiny");
    for name in ["llama", "qwen3_q4g64"] {
        let mut m = Model::load(&dir.join(name), &LoadOptions::default()).unwrap();
        let windows: Vec<Vec<u32>> = (1..4u32).map(|k| (0..40u32).map(|i| (i * 29 + k) % 128).collect()).collect();
        let rows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let of = |m: &Model| (m.states(&rows).unwrap(), windows.iter().map(|w| logits(m, w)).collect::<Vec<_>>());
        let (before, x) = of(&m);
        mlx::eval([&before]).unwrap();
        let (wide, tall) = (m.slices()[2].cols as i32, m.slices()[2].rows as i32);
        let zeros = |a, b| mlx_rs::ops::zeros::<f32>(&[a, b]).unwrap();
        m.set_factors(2, Some(Factors { a: zeros(tall, 1), b: zeros(1, wide) }));
        let (after, y) = of(&m);
        let got = m.divergence(&before, &after, &mut || true).unwrap().unwrap();
        assert_eq!(got.len(), 3 * 39);
        let softmax = |row: &[f32]| -> Vec<f64> {
            let total: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            row.iter().map(|v| f64::from(*v).exp() / total).collect()
        };
        for (w, t) in [(0, 0), (0, 38), (1, 20), (2, 38)] {
            let (p, q) = (softmax(&x[w][t]), softmax(&y[w][t]));
            let want: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            let d = f64::from(got[w * 39 + t]);
            assert!(want > 0.0 && (d - want).abs() < 1e-5, "{name} window {w}, token {t}: {d}, expected {want}");
        }
        assert!(m.divergence(&after, &after, &mut || true).unwrap().unwrap().iter().all(|d| *d == 0.0), "{name}");
        assert_eq!(m.divergence(&before, &after, &mut || false).unwrap(), None);
    }
}

#[test]
fn waking_restores_every_bit() {
    let dir = golden().join("tiny");
    for name in ["llama", "qwen3_q4g64", "qwen3_mxfp4", "qwen2_q6g64"] {
        let mut m = Model::load(&dir.join(name), &LoadOptions::default()).unwrap();
        let long: Vec<u32> = (0..100u32).map(|i| (i * 29 + 5) % 128).collect();
        let short = long[..7].to_vec();
        let before = (logits(&m, &long), logits(&m, &short), m.resident());
        let plain = m.dense_weight(2).unwrap();
        for slice in 0..m.slices().len() {
            let (rows, cols) = (m.slices()[slice].rows as i32, m.slices()[slice].cols as i32);
            let zeros = |a, b| mlx_rs::ops::zeros::<f32>(&[a, b]).unwrap();
            m.set_factors(slice, Some(Factors { a: zeros(rows, 3), b: zeros(3, cols) }));
            assert!(m.factors(slice).is_some());
        }
        assert_ne!(logits(&m, &long), before.0, "{name}: factors change nothing");
        for slice in 0..m.slices().len() {
            m.set_factors(slice, None);
        }
        assert_eq!(logits(&m, &short), before.1, "{name}: few rows");
        assert_eq!(logits(&m, &long), before.0, "{name}: many rows");
        assert_eq!(m.resident(), before.2, "{name}");
        assert_eq!(to_vec(&m.dense_weight(2).unwrap()), to_vec(&plain), "{name}");
    }
}

#[test]
fn exact_factors_compute_what_the_weight_computes() {
    let dir = golden().join("tiny");
    let mut m = Model::load(&dir.join("qwen2_q6g64"), &LoadOptions::default()).unwrap();
    let ids: Vec<u32> = (0..50u32).map(|i| (i * 29 + 5) % 128).collect();
    let before = logits(&m, &ids);
    for slice in 0..m.slices().len() {
        // W = I W is a factorisation of full rank.
        let rows = m.slices()[slice].rows as i32;
        let a = mlx_rs::ops::eye::<f32>(rows, None, None).unwrap();
        let b = m.dense_weight(slice).unwrap();
        m.set_factors(slice, Some(Factors { a, b }));
    }
    let after = logits(&m, &ids);
    for (x, y) in before.iter().zip(&after) {
        let d = gap(y, &x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        assert!(d < 1e-5, "{d}");
    }
    assert!(m.resident().factors > 0);
}

/// The default model: where `PLASTIC_TEST_MODEL` says, or in the cache.
fn smollm2() -> Model {
    let named = std::env::var_os("PLASTIC_TEST_MODEL").map(PathBuf::from);
    let dir =
        named.or_else(|| Some(paths::models_dir()?.join("smollm2-135m"))).expect("a home directory, for the cache");
    let there = dir.join("config.json").is_file();
    assert!(there, "{} has no model: `make test` sets it up, or PLASTIC_TEST_MODEL names it", dir.display());
    Model::load(&dir, &LoadOptions::default()).unwrap()
}

#[test]
fn the_default_model_matches_a_float64_reference() {
    let golden = json(&golden().join("smollm2.json"));
    let m = smollm2();
    let windows = golden["windows"].as_array().unwrap();
    let all: Vec<Vec<u32>> = windows.iter().map(|w| ids(&w["ids"])).collect();
    let scores = m.score(&all).unwrap();
    for (w, nll) in windows.iter().zip(&scores) {
        let (got, want) = (mean(nll), w["mean_nll"].as_f64().unwrap());
        assert!((got - want).abs() < 2e-5, "{}: {got} against {want}", w["source"]);
    }
    for p in golden["prompts"].as_array().unwrap() {
        let last = logits(&m, &ids(&p["ids"])).pop().unwrap();
        let picked: Vec<f32> = ids(&p["top20"]["ids"]).iter().map(|i| last[*i as usize]).collect();
        let d = gap(&picked, &floats(&p["top20"]["logits"]));
        assert!(d < 5e-5, "{}: logits differ by {d}", p["text"]);
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(best as u32, ids(&p["top20"]["ids"])[0], "{}", p["text"]);
    }
}
