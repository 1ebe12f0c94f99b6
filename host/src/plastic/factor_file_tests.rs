//! Files of factors against those of mlx-plastic-rank, and damaged ones.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::factor_file::{Factors, Ranged, bytes_of};
use super::matrix_file::to_f32;
use crate::mlx::Array;
use crate::mlx::randomized::Svd;
use ct_codecs::{Base64, Decoder};
use serde_json::Value;
use std::path::Path;

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/factors.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The numbers of an array, however deep, or of a number.
fn numbers(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(all) => all.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

fn floats(v: &Value) -> Vec<f32> {
    numbers(v).into_iter().map(|x| x as f32).collect()
}

fn steps(v: &Value) -> Vec<u8> {
    numbers(v).into_iter().map(|x| x as u8).collect()
}

/// A matrix given by its generator: shape and numbers.
fn generated(v: &Value) -> (i32, i32, Vec<f32>) {
    if v["gen"] == "full" {
        let rows = v["v"].as_array().unwrap();
        return (rows.len() as i32, rows[0].as_array().unwrap().len() as i32, floats(&v["v"]));
    }
    assert_eq!(v["gen"], "sin");
    let (m, n) = (v["m"].as_i64().unwrap() as i32, v["n"].as_i64().unwrap() as i32);
    let [a, b, c] = ["a", "b", "c"].map(|k| v[k].as_f64().unwrap());
    let at = |i: i32, j: i32| (a * f64::from(i * j) + b * f64::from(i - j) + c).sin() as f32;
    (m, n, (0..m).flat_map(|i| (0..n).map(move |j| at(i, j))).collect())
}

fn quantised(case: &Value) -> Factors {
    let array = |key: &str| {
        let (m, n, x) = generated(&case[key]);
        Array::from_slice(&x, &[m, n])
    };
    let s = floats(&case["S"]);
    let svd = Svd { u: array("U"), s: Array::from_slice(&s, &[s.len() as i32]), vt: array("Vh") };
    Factors::quantise(&svd, case["bits"].as_u64().unwrap() as u32).unwrap()
}

#[test]
fn vectors_are_quantised_as_upstream_does() {
    for case in golden()["quantise_vector"]["cases"].as_array().unwrap() {
        let x = floats(&case["x"]);
        let got = Ranged::quantise(&x, x.len(), case["bits"].as_u64().unwrap() as u32);
        let want = Ranged { q: steps(&case["q"]), min: floats(&case["min"]), scale: floats(&case["scale"]) };
        assert_eq!(got, want, "{}", case["name"]);
        assert_eq!(got.dequantise(), floats(&case["dequant"]), "{}", case["name"]);
    }
}

#[test]
fn factors_are_quantised_as_upstream_does() {
    for case in golden()["quantize_factors"]["cases"].as_array().unwrap() {
        let got = quantised(case);
        for (name, ranged) in [("U", &got.u), ("S", &got.s), ("Vh", &got.vh)] {
            let want = |part: &str| &case[format!("{name}.{part}")];
            assert_eq!(ranged.q, steps(want("q")), "{name}.q of {}", case["name"]);
            // Upstream's sine and ours may differ in the last bit, where a golden minimum is a rounding of zero.
            let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 1e-7 * y.abs() + 1e-12);
            assert!(near(&ranged.min, &floats(want("min"))), "{name}.min of {}", case["name"]);
            assert!(near(&ranged.scale, &floats(want("scale"))), "{name}.scale of {}", case["name"]);
        }
    }
}

#[test]
fn bytes_are_those_of_upstream() {
    for case in golden()["qlr_bytes"].as_array().unwrap() {
        let [m, n, r] = ["m", "n", "r"].map(|k| case[k].as_u64().unwrap());
        assert_eq!(bytes_of(m, n, r), case["qlr"].as_u64().unwrap());
    }
}

/// Upstream's own file: read, and written again from the same factors byte by byte.
#[test]
fn the_file_is_upstreams_bit_by_bit() {
    let case = &golden()["export_safetensors_file"];
    let theirs = Base64::decode_to_vec(case["file_base64"].as_str().unwrap(), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("theirs.safetensors");
    std::fs::write(&path, &theirs).unwrap();
    let read = Factors::read(&path).unwrap();
    assert_eq!((read.rows, read.cols, read.rank, read.bits), (5, 4, 3, 8));
    for (ranged, key) in [(&read.u, "U_dequant"), (&read.s, "S_dequant"), (&read.vh, "Vh_dequant")] {
        assert_eq!(ranged.dequantise(), floats(&case[key]), "{key}");
    }
    assert_eq!(read, quantised(case));
    let ours = dir.path().join("ours.safetensors");
    assert_eq!(read.write(&ours).unwrap(), theirs.len() as u64);
    assert_eq!(std::fs::read(&ours).unwrap(), theirs);
    let (u, s, vh) = (read.u.dequantise(), read.s.dequantise(), read.vh.dequantise());
    for (at, got) in to_f32(&read.reconstruct().unwrap()).unwrap().into_iter().enumerate() {
        let (i, j) = (at / 4, at % 4);
        let want: f32 = (0..3).map(|k| u[3 * i + k] * s[k] * vh[4 * k + j]).sum();
        assert!((got - want).abs() < 1e-6, "{i} {j}: {got} {want}");
    }
}

/// Where upstream answers nonsense without a word.
#[test]
fn what_cannot_be_quantised_is_refused_in_words() {
    let svd = |x: [f32; 2]| Svd {
        u: Array::from_slice(&x, &[1, 2]),
        s: Array::from_slice(&[1.0f32, 1.0], &[2]),
        vt: Array::from_slice(&[1.0f32, 0.0, 0.0, 1.0], &[2, 2]),
    };
    assert!(Factors::quantise(&svd([1.0, 2.0]), 10).unwrap_err().to_string().contains("expected 1 to 8"));
    assert!(Factors::quantise(&svd([-3e38, 3e38]), 8).unwrap_err().to_string().contains("span more than"));
    assert!(Factors::quantise(&svd([f32::INFINITY, 1.0]), 8).is_err());
    let most = Factors::quantise(&svd([-1.0, 1.0]), 4).unwrap().u.q;
    assert_eq!(most, [0, 15]);
}

/// One change to a good file, and what must be said about it.
#[test]
fn damaged_files_are_refused_in_words() {
    let case = &golden()["export_safetensors_file"];
    let good = Base64::decode_to_vec(case["file_base64"].as_str().unwrap(), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let refused = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let text = Factors::read(&path).unwrap_err().to_string();
        assert!(text.contains("w.safetensors"), "{text}");
        text
    };
    let swapped = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = good.windows(from.len()).rposition(|w| w == from.as_bytes()).unwrap();
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    for (bytes, why) in [
        (good[..100].to_vec(), "truncated"),
        (good[..good.len() - 1].to_vec(), "truncated"),
        (swapped("0.1.0", "9.1.0"), "states version 9.1.0; version 0.1.0 is read"),
        (swapped("[5, 4]", "[6, 4]"), "calls for F32 [6]"),
        (swapped("[5, 4]", "[5, 9]"), "calls for U8 [3, 9]"),
        (swapped("[5, 4]", "[0, 4]"), "expected 1 to"),
        (swapped("\"rank\": 3", "\"rank\": 4"), "calls for U8 [5, 4]"),
        (swapped("\"rank\": 3", "\"rank\": 9"), "has ranks 1 to 4"),
        (swapped("\"rank\": 3", "\"rank\": 0"), "has ranks 1 to 4"),
        (swapped("\"rank\": 3", "\"rank\":-3"), "is not as expected"),
        (swapped("\"bits\": 8", "\"bits\": 9"), "expected 1 to 8"),
        (swapped("\"bits\": 8", "\"bits\": 4"), "4 bits reach to 15"),
        (swapped("\"bits\": 8", "\"bits\": {"), "is not valid JSON"),
        (swapped("\"bits\": 8", "\"tibs\": 8"), "is not as expected"),
        (swapped("\"Vh.scale\"", "\"Vh.scald\""), "is no file of factors: it has no `Vh.scale`; it holds S.min"),
    ] {
        let text = refused(&bytes);
        assert!(text.contains(why), "{why:?} in {text}");
    }
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize + 8;
    for (value, why) in [(f32::NAN, "holds NaN at 0"), (-1.0, "holds -1 at 0"), (0.0, "holds 0 at 0")] {
        let mut bytes = good.clone();
        // S.scale is the second tensor.
        bytes[header + 4..header + 8].copy_from_slice(&value.to_le_bytes());
        let text = refused(&bytes);
        assert!(text.contains("`S.scale`") && text.contains(why), "{why:?} in {text}");
    }
}
