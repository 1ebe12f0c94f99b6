//! `plastic-host export` and `plastic-host bench memory`, as users run them.
//!
//! Covers: a weight to factors and back in every format; the same bytes for the same command; exact and randomised
//! decompositions; a quantised module of a checkpoint; damaged, hostile and mistaken input, each with a message that
//! names what is wrong; the figures of `bench memory` on synthetic and real weights.

use plastic_tests::{Scratch, base, run};
use serde_json::Value;

/// A `.npy` file with this header and these numbers.
fn npy(header: &str, numbers: &[f32]) -> Vec<u8> {
    let header = format!("{header}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
    out
}

fn header(rows: usize, cols: usize, fortran: bool) -> String {
    let order = if fortran { "True" } else { "False" };
    format!("{{'descr': '<f4', 'fortran_order': {order}, 'shape': ({rows}, {cols}), }}")
}

const ROWS: usize = 24;
const COLS: usize = 40;

/// Entry of a matrix of rank 3 with a little of a fourth direction.
fn entry(i: usize, j: usize) -> f32 {
    let (i, j) = (i as f32, j as f32);
    let wave = |k: f32, size: f32| size * (0.3 * k * i + 0.1).sin() * (0.2 * k * j + 0.5).cos();
    wave(1.0, 3.0) + wave(2.0, 1.0) + wave(3.0, 0.5) + wave(5.0, 0.01)
}

fn weight() -> Vec<u8> {
    let numbers: Vec<f32> = (0..ROWS * COLS).map(|at| entry(at / COLS, at % COLS)).collect();
    npy(&header(ROWS, COLS, false), &numbers)
}

fn number(v: &Value, key: &str) -> f64 {
    v[key].as_f64().unwrap_or_else(|| panic!("no number {key} in {v}"))
}

#[test]
fn a_weight_goes_to_factors_and_back() {
    let dir = Scratch::new("export");
    let w = dir.file("weight.npy", &weight());
    let factors = dir.path("deep/factors.safetensors");
    let made = run(&["export", "--from-weight", &w, "--rank", "3", "--bits", "8", "--out", &factors, "--json"]);
    assert_eq!(made.code, Some(0), "{}", made.err);
    let made = made.json();
    assert_eq!(made["shape"], serde_json::json!([ROWS, COLS]));
    let qlr = 3 * (ROWS + COLS) + 3 + 4 * (2 * ROWS + 2 + 6);
    assert_eq!((number(&made, "qlr_bytes"), number(&made, "dense_bytes")), (qlr as f64, (4 * ROWS * COLS) as f64));
    assert_eq!(number(&made, "file_bytes"), std::fs::metadata(&factors).unwrap().len() as f64);
    // The fourth direction is a hundredth or so; 8 bits add less than that.
    let error = number(&made, "rel_error");
    assert!(number(&made, "rel_error_unquantised") < 0.01 && error < 0.015 && error > 1e-4, "{made}");
    assert!(number(&made, "spectral_error") <= 1.5 * error, "{made}");

    for out in ["back.npy", "back.npz", "back.safetensors"] {
        let out = dir.path(out);
        let back = run(&["export", "--reconstruct", &factors, "--out", &out, "--against", &w, "--json"]);
        assert_eq!(back.code, Some(0), "{}", back.err);
        assert!((number(&back.json(), "rel_error") - error).abs() < 1e-6, "{}", back.out);
        // What was written is read again, and is what the factors say.
        let again = dir.path("again.safetensors");
        let full = run(&["export", "--from-weight", &out, "--rank", "3", "--out", &again, "--json"]);
        assert!(number(&full.json(), "rel_error_unquantised") < 1e-6, "{}", full.out);
        let _ = std::fs::remove_file(&again);
    }
    let text = run(&["export", "--from-weight", &w, "--rank", "3", "--out", &factors]);
    assert!(text.out.contains("24 x 40, F32") && text.out.contains("rank 3, 8 bits"), "{}", text.out);
}

#[test]
fn the_same_command_writes_the_same_bytes() {
    let dir = Scratch::new("export");
    let w = dir.file("weight.npy", &weight());
    let write = |name: &str, more: &[&str]| {
        let out = dir.path(name);
        let done = run(&[&["export", "--from-weight", &w, "--rank", "2", "--out", &out], more].concat());
        assert_eq!(done.code, Some(0), "{}", done.err);
        std::fs::read(&out).unwrap()
    };
    for more in [&["--svd", "exact"][..], &["--svd", "randomized", "--seed", "4"]] {
        assert!(write("a.safetensors", more) == write("b.safetensors", more), "{more:?}");
    }
    // Column after column, the same matrix gives the same factors.
    let whole = write("a.safetensors", &[]);
    let turned: Vec<f32> = (0..ROWS * COLS).map(|at| entry(at % ROWS, at / ROWS)).collect();
    let fortran = dir.file("fortran.npy", &npy(&header(ROWS, COLS, true), &turned));
    let out = dir.path("c.safetensors");
    let done = run(&["export", "--from-weight", &fortran, "--rank", "2", "--out", &out]);
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(whole == std::fs::read(&out).unwrap());
}

#[test]
fn a_randomised_decomposition_is_nearly_as_good() {
    let dir = Scratch::new("export");
    let w = dir.file("weight.npy", &weight());
    let out = dir.path("f.safetensors");
    let error = |more: &[&str]| {
        let done = run(&[&["export", "--from-weight", &w, "--rank", "3", "--out", &out, "--json"], more].concat());
        number(&done.json(), "rel_error_unquantised")
    };
    let exact = error(&[]);
    let near = error(&["--svd", "randomized", "--oversamples", "4", "--power-iterations", "2", "--seed", "9"]);
    assert!(near >= exact * (1.0 - 1e-9) && near < exact * 1.01 + 1e-9, "{near} {exact}");
}

#[test]
fn a_quantised_module_of_a_checkpoint_is_dequantised() {
    let dir = Scratch::new("export");
    let out = dir.path("q.safetensors");
    let name = format!("{}:model.layers.0.self_attn.k_proj", base());
    let made = run(&["export", "--from-weight", &name, "--rank", "192", "--out", &out, "--json"]);
    assert_eq!(made.code, Some(0), "{}", made.err);
    let made = made.json();
    assert_eq!(made["shape"], serde_json::json!([192, 576]));
    assert!(made["stored_as"].as_str().unwrap().starts_with("affine 4 bits"), "{made}");
    assert!(number(&made, "stored_bytes") < number(&made, "dense_bytes") / 4.0);
    assert!(number(&made, "rel_error_unquantised") < 1e-6 && number(&made, "rel_error") < 0.02, "{made}");
    let wrong = format!("{}:model.layers.0.self_attn.kproj", base());
    run(&["export", "--from-weight", &wrong, "--out", &out]).refuses(1, "names alike: model.layers.0.self_attn.k_proj");
}

/// Every input that is wrong in its own way, and what is said about it.
#[test]
fn wrong_input_is_refused_in_words() {
    let dir = Scratch::new("export");
    let good = weight();
    let mut nan = good.clone();
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    let plain = header(ROWS, COLS, false);
    for (name, bytes, why) in [
        ("truncated.npy", good[..good.len() - 8].to_vec(), "it is truncated"),
        ("magic.npy", b"not a numpy file at all".to_vec(), "no .npy data"),
        ("huge.npy", npy(&plain.replace("24", "2000000"), &[]), "it is truncated"),
        ("overflow.npy", npy(&plain.replace("24", "9000000000000000000"), &[]), "elements can be held"),
        ("nan.npy", nan, "NaN in row 23, column 39"),
        ("empty.npy", npy(&header(0, 4, false), &[]), "is empty"),
        ("vector.npy", npy(&plain.replace("(24, 40)", "(960,)"), &[0.0; 960]), "has 1 dimensions"),
        ("object.npy", npy(&plain.replace("<f4", "|O"), &[0.0; 960]), "Python objects"),
        ("integer.npy", npy(&plain.replace("<f4", "<i4"), &[0.0; 960]), "expected float16, float32 or float64"),
        ("no.npz", good.clone(), "no .npz archive"),
        ("no.safetensors", good.clone(), "truncated or no safetensors file"),
    ] {
        let path = dir.file(name, &bytes);
        let out = dir.path("out.safetensors");
        let ended = run(&["export", "--from-weight", &path, "--out", &out]);
        ended.refuses(1, why);
        assert!(ended.err.contains(name), "{}", ended.err);
        assert!(!std::path::Path::new(&out).exists(), "{name}");
    }
    let w = dir.file("weight.npy", &good);
    let (out, missing) = (dir.path("out.safetensors"), dir.path("missing.npy"));
    run(&["export", "--from-weight", &missing, "--out", &out]).refuses(1, "missing.npy");
    run(&["export", "--from-weight", &w, "--rank", "25", "--out", &out]).refuses(1, "whose ranks are 1 to 24");
    run(&["export", "--from-weight", &w, "--out", &dir.path("out.npy")]).refuses(1, "end the name so");
    run(&["export", "--from-weight", "weight.bin", "--out", &out]).refuses(2, "names no matrix");
    run(&["export", "--out", &out]).refuses(2, "--from-weight");
    run(&["export", "--from-weight", &w, "--reconstruct", &w, "--out", &out]).refuses(2, "cannot be used with");
    run(&["export", "--from-weight", &w, "--bits", "9", "--out", &out]).refuses(2, "9");
    run(&["export", "--from-weight", &w, "--against", &w, "--out", &out]).refuses(2, "cannot be used with");
    for more in ["--rank", "--seed", "--oversamples"] {
        let both = ["export", "--reconstruct", &w, more, "3", "--out", &out];
        run(&both).refuses(2, "cannot be used with");
    }
    let zeros = dir.file("zeros.npy", &npy(&header(2, 3, false), &[0.0; 6]));
    assert_eq!(run(&["export", "--from-weight", &zeros, "--out", &out]).code, Some(0));
    run(&["export", "--from-weight", &out, "--out", &out]).refuses(1, "the file it is made from");
}

#[test]
fn wrong_factors_are_refused_in_words() {
    let dir = Scratch::new("export");
    let w = dir.file("weight.npy", &weight());
    let factors = dir.path("f.safetensors");
    assert_eq!(run(&["export", "--from-weight", &w, "--rank", "4", "--out", &factors]).code, Some(0));
    let good = std::fs::read(&factors).unwrap();
    let swapped = |from: &str, to: &str| {
        let at = good.windows(from.len()).rposition(|x| x == from.as_bytes()).expect("in the file");
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let out = dir.path("back.npy");
    for (name, bytes, why) in [
        ("version.safetensors", swapped("0.1.0", "0.2.0"), "states version 0.2.0"),
        ("shape.safetensors", swapped("[24, 40]", "[24, 41]"), "calls for"),
        ("rank.safetensors", swapped("\"rank\": 4", "\"rank\": 5"), "calls for"),
        ("bits.safetensors", swapped("\"bits\": 8", "\"bits\": 3"), "3 bits reach to 7"),
        ("short.safetensors", good[..good.len() - 3].to_vec(), "truncated"),
    ] {
        let path = dir.file(name, &bytes);
        run(&["export", "--reconstruct", &path, "--out", &out]).refuses(1, why);
        assert!(!std::path::Path::new(&out).exists(), "{name}");
    }
    let plain = dir.path("plain.safetensors");
    assert_eq!(run(&["export", "--reconstruct", &factors, "--out", &plain]).code, Some(0));
    run(&["export", "--reconstruct", &plain, "--out", &out]).refuses(1, "is no file of factors");
    run(&["export", "--reconstruct", &factors, "--out", &dir.path("w.txt")]).refuses(1, ".npy, .npz or .safetensors");
    let other = dir.file("other.npy", &npy(&header(2, 3, false), &[1.0; 6]));
    run(&["export", "--reconstruct", &factors, "--out", &out, "--against", &other]).refuses(1, "but ");
    let npz = dir.path("w.npz");
    assert_eq!(run(&["export", "--reconstruct", &factors, "--out", &npz]).code, Some(0));
    let member = format!("{npz}:other");
    run(&["export", "--from-weight", &member, "--out", &plain]).refuses(1, "no member `other`; it holds weight");
}

#[test]
fn bench_memory_counts_and_measures() {
    let args = ["bench", "memory", "--m", "128", "--n", "64", "--ranks", "4", "8", "--rows", "1,16", "--rounds", "3"];
    let ended = run(&[&args[..], &["--json"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let v = ended.json();
    assert_eq!(v["synthetic"], true);
    assert!(v["weight"].as_str().unwrap().contains("synthetic"));
    // 0.7 · 128 · 64 / 192 = 29.87.
    assert_eq!(number(&v, "worth_up_to"), 29.0);
    let ranks = v["ranks"].as_array().unwrap();
    assert_eq!(ranks.iter().map(|r| number(r, "r")).collect::<Vec<_>>(), [4.0, 8.0, 29.0]);
    let first = &ranks[0];
    assert_eq!(number(first, "dense_bytes"), 4.0 * 128.0 * 64.0);
    assert_eq!(number(first, "qlr_bytes"), (4 * 192 + 4 + 4 * (256 + 2 + 8)) as f64);
    assert!((number(first, "savings") - 100.0 * (1.0 - 1836.0 / 32768.0)).abs() < 1e-9, "{first}");
    assert!(number(first, "rel_error") > number(&ranks[1], "rel_error"));
    for times in [&v["dense"]["times"], &v["quantised"]["times"], &first["times"]] {
        assert_eq!(times.as_array().unwrap().len(), 2, "{v}");
        assert!(number(&times[1], "median_us") > 0.0);
    }
    let text = run(&args);
    assert!(text.out.contains("synthetic") && text.out.contains("yes, the last"), "{}", text.out);
    assert!(text.out.contains("up to rank 29"), "{}", text.out);
    run(&["bench", "memory", "--m", "16", "--n", "8", "--ranks", "9"]).refuses(1, "whose ranks are 1 to 8");
    run(&["bench", "memory", "--m", "0"]).refuses(2, "0 is not in");
    run(&["bench", "memory", "--tensor", "x.npy", "--m", "3"]).refuses(2, "cannot be used with");
}

#[test]
fn bench_memory_takes_a_weight_of_a_model() {
    let name = format!("{}:model.layers.3.self_attn.v_proj", base());
    let ended = run(&["bench", "memory", "--tensor", &name, "--ranks", "16", "--rounds", "3", "--rows", "1", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let v = ended.json();
    assert_eq!((number(&v, "m"), number(&v, "n"), &v["synthetic"]), (192.0, 576.0, &Value::Bool(false)));
    // The checkpoint's own codes: the weight is what they say.
    assert_eq!(number(&v["quantised"], "rel_error"), 0.0, "{v}");
    assert_eq!(number(&v["quantised"], "bytes"), number(&v, "stored_bytes"), "{v}");
}
