//! What can be done to packs without training: look at them, check them, cut them, add them up, weigh their parts.
//!
//! Covers: inspect (table, JSON, SVG), verify (good, damaged, wrong base; exit code), rename and remove with packs
//! in use, ledger with comparison, rerank by rank, budget, map and policy, merge exact and cut, rank maps and their
//! controls, ablate by norm and by loss, and the seed spellings of all of these.

use plastic_tests::{Ran, Scratch, base, host, ran, root};
use serde_json::{Value, json};
use std::path::Path;

/// A folder with packs in it.
struct Packs(Scratch);

impl Packs {
    /// With the two packs that mlx-plastic-rank wrote.
    fn fixtures(name: &str) -> Packs {
        let packs = Packs(Scratch::new(name));
        let golden: Value =
            serde_json::from_slice(&std::fs::read(root().join("tests/golden/packs.json")).unwrap()).unwrap();
        for pack in ["alpha", "beta"] {
            let of = &golden["pack_fixture"][pack];
            packs.write(pack, &base64(of["pack.safetensors_base64"].as_str().unwrap()), &of["meta.json"]);
        }
        packs
    }

    fn write(&self, name: &str, tensors: &[u8], meta: &Value) {
        let dir = self.0.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(format!("{dir}/pack.safetensors"), tensors).unwrap();
        std::fs::write(format!("{dir}/meta.json"), meta.to_string()).unwrap();
    }

    fn run(&self, args: &[&str]) -> Ran {
        ran(host().arg("packs").args(args).args(["--packs", &self.0.path("")]))
    }

    fn json(&self, args: &[&str]) -> Value {
        let r = self.run(&[args, &["--json"]].concat());
        assert_eq!(r.code, Some(0), "{args:?}: {}{}", r.out, r.err);
        r.json()
    }

    fn fails(&self, args: &[&str], code: i32, text: &str) {
        self.run(args).refuses(code, text);
    }

    fn there(&self, name: &str) -> bool {
        Path::new(&self.0.path(name)).join("meta.json").is_file()
    }
}

fn base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bits: Vec<u8> = text.bytes().filter(|c| *c != b'=').map(value).collect();
    let group = |g: &[u8]| {
        let n = g.iter().fold(0u32, |n, v| n << 6 | u32::from(*v)) << (6 * (4 - g.len()));
        n.to_be_bytes()[1..g.len()].to_vec()
    };
    bits.chunks(4).flat_map(group).collect()
}

/// A pack for the default base: q_proj of two layers, rank 2, float16 numbers of about 0.02.
fn for_the_base(hash: &str) -> (Vec<u8>, Value) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    let mut add = |name: String, dtype: &str, shape: Value, bytes: Vec<u8>| {
        let begin = data.len();
        data.extend(bytes);
        header.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] }));
    };
    // Half-precision patterns: sign and low bits vary, the exponent stays.
    let halves = |n: usize, seed: usize| -> Vec<u8> {
        let word = |i: usize| 0x2400u16 | ((i * 2_654_435_761 + seed) >> 7 & 0x83ff) as u16;
        (0..n).flat_map(|i| word(i).to_le_bytes()).collect()
    };
    let keys = ["blocks.0.attn.q_proj", "blocks.9.attn.q_proj"];
    for (i, key) in keys.iter().enumerate() {
        add(format!("{key}.lora.A"), "F16", json!([576, 2]), halves(1152, i));
        add(format!("{key}.lora.B"), "F16", json!([2, 576]), halves(1152, i + 9));
        add(format!("{key}.lora.alpha"), "F32", json!([]), 4f32.to_le_bytes().to_vec());
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    let meta = json!({
        "pack_name": "real", "base_hash": hash, "base_model": "smollm2-135m", "version": "0.2.0",
        "rank_map": { keys[0]: 2, keys[1]: 2 }, "alpha_map": { keys[0]: 4.0, keys[1]: 4.0 },
    });
    (file, meta)
}

#[test]
fn packs_are_looked_at_and_checked() {
    let p = Packs::fixtures("pack-look");
    let shown = p.run(&["inspect", "alpha"]);
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    for text in ["blocks.0.attn.k_proj", "schema 0.1.0", "rank 10, effective 9 (slack 1)"] {
        assert!(shown.out.contains(text), "{text}: {}", shown.out);
    }
    let svg = p.0.path("alpha.svg");
    let d = p.json(&["inspect", "--name", "alpha", "--svg", &svg]);
    assert_eq!((&d["summary"]["effective_rank"], &d["metadata"]["base_model"]), (&json!(9), &json!("toy")));
    assert_eq!(d["adapters"][0]["singular_values"].as_array().unwrap().len(), 4);
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg ") && picture.contains("attn.k_proj") && picture.ends_with("</svg>\n"));
    assert_eq!(picture.matches("<text").count(), picture.matches("</text>").count());

    assert_eq!(p.json(&["verify"])["ok"], true);
    // One damaged pack is named, and the others are still checked.
    let tensors = p.0.path("alpha/pack.safetensors");
    let bytes = std::fs::read(&tensors).unwrap();
    std::fs::write(&tensors, &bytes[..bytes.len() - 20]).unwrap();
    let r = p.run(&["verify"]);
    r.refuses(1, "alpha: ");
    assert!(r.err.contains("pack.safetensors") && r.out.contains("beta"), "{}{}", r.out, r.err);
    let d = p.run(&["verify", "--json"]);
    assert_eq!(
        (d.code, &d.json()["packs"][1]["ok"], &d.json()["packs"][0]["ok"]),
        (Some(1), &json!(true), &json!(false))
    );
    p.fails(&["verify", "gamma"], 1, "no pack gamma");
    p.fails(&["inspect", "gamma"], 1, "no pack gamma");
    p.fails(&["inspect", "../alpha"], 2, "is no name for a pack");
    p.fails(&["inspect", "alpha", "--rank-tol", "2"], 2, "is a share");
    p.fails(&["inspect"], 2, "required");
}

#[test]
fn renamed_and_removed_packs_leave_use() {
    let p = Packs::fixtures("pack-names");
    std::fs::write(
        p.0.path("active.json"),
        json!({ "h": [{ "pack": "alpha", "weight": 1.0 }, { "pack": "beta", "weight": 0.5 }] }).to_string(),
    )
    .unwrap();
    assert_eq!(p.json(&["rename", "alpha", "first"])["to"], "first");
    assert!(p.there("first") && !p.there("alpha"));
    assert_eq!(p.json(&["inspect", "first"])["active"], true);
    p.fails(&["rename", "first", "beta"], 1, "there is a pack beta already");
    p.fails(&["rename", "first", "../x"], 2, "is no name for a pack");
    p.fails(&["remove", "first", "nothing"], 1, "no pack nothing");
    assert!(p.there("first"), "none is deleted where one is not there");
    // As in mlx-plastic-rank, `remove` alone takes packs out of use and deletes none.
    assert_eq!(p.json(&["remove"])["out_of_use"], json!(["beta", "first"]));
    assert!(p.there("first") && p.there("beta"));
    assert_eq!(p.json(&["remove"])["out_of_use"], json!([]));
    assert_eq!(p.json(&["remove", "--name", "first", "beta"])["deleted"], json!(["beta", "first"]));
    assert!(!p.there("first") && !p.there("beta"));
}

#[test]
fn outputs_destroy_no_pack() {
    let p = Packs::fixtures("pack-outputs");
    std::fs::write(p.0.path("active.json"), "{}").unwrap();
    let before = |name: &str| std::fs::read(p.0.path(name)).unwrap();
    let kept = ["beta/meta.json", "beta/pack.safetensors", "active.json"].map(|n| (n, before(n)));
    for (name, bytes) in &kept {
        let file = p.0.path(name);
        for verb in [
            &["ledger", "alpha", "--out", &file][..],
            &["ledger", "alpha", "--csv", &file],
            &["inspect", "alpha", "--svg", &file],
            &["rank-map", "extract", "alpha", "--out", &file],
            &["ablate", "alpha", "--out", &file],
            &["ablate", "alpha", "--csv", &file],
            &["apply", "alpha", "--dry-run", "--out", &file],
            &["eval", "--pack", "alpha", "--csv", &file],
            &["eval-batch", "--pack", "alpha", "--out", &file],
        ] {
            p.fails(verb, 1, "name ");
            assert_eq!(before(name), *bytes, "{verb:?}");
        }
    }
    p.fails(&["eval", "--pack", "alpha", "--out", "/dev/null"], 1, "no regular file");
    p.fails(&["apply", "alpha", "--fuse", &p.0.path("beta")], 1, "is a pack");
    p.fails(&["export", "alpha", "--format", "peft", "--out", &p.0.path("beta/x")], 1, "lies in the pack");
    let q = p.0.path("q.jsonl");
    std::fs::write(&q, "{\"prompt\": \"a\"}\n").unwrap();
    p.fails(&["route", "--domain-map", "t=alpha", "--input", &q, "--out", &q], 1, "is what is read");
    for map in ["=b", "t=", "t=a,T=b"] {
        p.fails(&["route", "--domain-map", map, "--input", &q], 2, "domain");
    }
}

#[test]
fn what_fails_leaves_packs_and_their_use_as_they_were() {
    let p = Packs::fixtures("pack-whole");
    let active = json!({ "h": [{ "pack": "alpha", "weight": 1.0 }, { "pack": "beta", "weight": 0.5 }] }).to_string();
    std::fs::write(p.0.path("active.json"), &active).unwrap();
    let lock = std::fs::File::create(p.0.path(".beta.lock")).unwrap();
    lock.lock().unwrap();
    p.fails(&["remove", "alpha", "beta"], 1, "pack beta is being written");
    p.fails(&["remove", "beta"], 1, "pack beta is being written");
    assert!(p.there("alpha") && p.there("beta"));
    assert_eq!(std::fs::read_to_string(p.0.path("active.json")).unwrap(), active);
    drop(lock);
    // With a record that nobody can read, nothing is done either.
    std::fs::write(p.0.path("active.json"), "{").unwrap();
    p.fails(&["rename", "alpha", "gamma"], 1, "active.json");
    p.fails(&["remove", "alpha"], 1, "active.json");
    assert!(p.there("alpha") && !p.there("gamma"));
    std::fs::write(p.0.path("active.json"), "{}").unwrap();
    // A directory that was renamed by hand gets its name back.
    std::fs::rename(p.0.path("alpha"), p.0.path("gamma")).unwrap();
    p.fails(&["inspect", "gamma"], 1, "`packs rename gamma gamma`");
    assert_eq!(p.json(&["rename", "gamma", "gamma"])["to"], "gamma");
    p.json(&["inspect", "gamma"]);
    p.fails(&["rename", "gamma", "gamma"], 1, "is called so already");
    p.fails(&["rename", "gamma", "beta"], 1, "remove it first");
    // What lies in the way of a removal from before does not matter.
    std::fs::write(p.0.path(".gamma.removed"), "").unwrap();
    assert_eq!(p.json(&["remove", "gamma"])["deleted"], json!(["gamma"]));
}

#[test]
fn a_directory_of_packs_that_is_none_is_said() {
    let p = Packs::fixtures("pack-root");
    let file = p.0.path("alpha/meta.json");
    for root in [file.as_str(), "/dev/null", &p.0.path("nowhere")] {
        for verb in [&["list"][..], &["verify"], &["remove"]] {
            let r = ran(host().arg("packs").args(verb).args(["--packs", root]));
            r.refuses(1, "is no directory of packs");
        }
    }
}

#[test]
fn impossible_ranks_are_refused() {
    let p = Packs::fixtures("pack-ranks");
    for verb in ["random", "shuffled", "extract"] {
        p.fails(&["rank-map", verb, "alpha", "--fixed-rank", "4294967295"], 2, "can have");
        p.fails(&["rank-map", verb, "alpha", "--map", "q:4294967295"], 2, "can have");
    }
    p.fails(&["rank-map", "extract", "alpha", "--map", "q"], 2, "neither a file nor a rule");
    p.fails(&["rerank", "alpha", "--rank-map", ",", "--out-name", "x"], 2, "no rule");
}

#[test]
fn ledgers_compare_two_packs() {
    let p = Packs::fixtures("pack-ledger");
    let (out, csv) = (p.0.path("ledger.json"), p.0.path("ledger.csv"));
    let d = p.json(&["rank-ledger", "--name", "alpha", "--compare", "beta", "--out", &out, "--csv", &csv]);
    assert_eq!(d["compare"]["summary"]["composition_rank"], 7);
    assert_eq!(d["compare"]["left_only"], json!(["blocks.1.attn.q_proj"]));
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&out).unwrap()).unwrap(), d);
    let rows = std::fs::read_to_string(&csv).unwrap();
    assert_eq!(rows.lines().count(), 3);
    assert!(rows.starts_with("adapter,target,left_declared_rank"));
    let shown = p.run(&["ledger", "alpha", "--compare", "beta"]);
    assert!(shown.out.contains("together 7 (saves 6, efficiency 0.538)"), "{}", shown.out);
    p.fails(&["ledger", "alpha", "--compare", "nothing"], 1, "no pack nothing");
}

#[test]
fn packs_are_cut_to_budgets() {
    let p = Packs::fixtures("pack-rerank");
    let d = p.json(&["rerank", "alpha", "--out-name", "two", "--rank", "2"]);
    assert_eq!((&d["rank_before"], &d["rank_after"]), (&json!(10), &json!(6)));
    assert!(d["relative"].as_f64().unwrap() > 0.01 && d["relative"].as_f64().unwrap() < 0.6);
    // What is left is what the ledger says of the largest values.
    let l = p.json(&["ledger", "two"]);
    assert_eq!(l["summary"]["declared_rank"], 6);
    let kept = l["summary"]["fro_norm"].as_f64().unwrap();
    let (norm, error) = (d["norm"].as_f64().unwrap(), d["error"].as_f64().unwrap());
    assert!((kept.hypot(error) - norm).abs() < 1e-3 * norm, "{kept} {error} {norm}");

    let d = p.json(&["rerank", "--name", "alpha", "--out-name", "five", "--total-rank", "5"]);
    assert_eq!(d["rank_after"], 5);
    let d = p.json(&["rerank", "alpha", "--out-name", "bytes", "--budget-mb", "0.0003"]);
    assert!(d["bytes_after"].as_u64().unwrap() <= 300);
    let d = p.json(&["rerank", "alpha", "--out-name", "map", "--rank-map", "q:1"]);
    assert_eq!(d["rank_after"], 6);
    let plugins = root().join("plugins/energy.wasm").display().to_string();
    let policy = ["rerank", "alpha", "--out-name", "policy", "--policy", &plugins, "--budget-params", "120"];
    p.fails(&policy, 1, "needs spectrum:fisher, but a pack alone has spectrum:plain");
    let d = p.json(&[&policy[..], &["--policy-opt", "metric=plain"]].concat());
    let kept: u64 = d["slices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| {
            let width = if s["adapter"].as_str().unwrap().ends_with("k_proj") { 16 } else { 22 };
            s["rank_after"].as_u64().unwrap() * width
        })
        .sum();
    assert!(kept <= 120 && kept == d["parameters"].as_u64().unwrap(), "{kept}: {d}");
    assert_eq!(p.json(&["verify"])["ok"], true);

    p.fails(&["rerank", "alpha", "--out-name", "x"], 2, "how much is to be kept");
    p.fails(&["rerank", "alpha", "--out-name", "x", "--rank", "0"], 2, "larger than 0");
    p.fails(&["rerank", "alpha", "--out-name", "x", "--rank", "2", "--total-rank", "3"], 2, "cannot be used with");
    p.fails(&["rerank", "alpha", "--out-name", "two", "--rank", "2"], 1, "--force");
    p.fails(&["rerank", "alpha", "--out-name", "x", "--rank-map", "v:2"], 1, "no adapter is called v");
    p.fails(&["rerank", "alpha", "--out-name", "x", "--budget-mb", "0.000001"], 1, "nothing would be left");
}

#[test]
fn packs_are_added_up() {
    let p = Packs::fixtures("pack-merge");
    let d = p.json(&["merge", "alpha", "beta", "--out-name", "both"]);
    assert_eq!((&d["rank_after"], &d["error"]), (&json!(18), &json!(0.0)));
    let small = p.json(&["merge", "alpha:0.7", "beta:-0.3", "--out-name", "mix", "--rank", "4"]);
    assert!(small["relative"].as_f64().unwrap() < 0.01, "{small}");
    let meta = &p.json(&["inspect", "mix"])["metadata"];
    assert_eq!(meta["training_config"]["merged_from"][1], json!({ "pack": "beta", "weight": -0.3f32 }));
    // A pack less itself is nothing.
    p.fails(&["merge", "alpha", "alpha:-1", "--out-name", "zero", "--rank", "2"], 1, "nothing would be left");
    p.fails(&["merge", "alpha", "beta:x", "--out-name", "y"], 2, "x is no number");
    p.fails(&["merge", "alpha", "beta", "--out-name", "both"], 1, "--force");
    assert_eq!(p.json(&["verify"])["ok"], true);
}

#[test]
fn maps_and_their_controls_keep_the_budget() {
    let p = Packs::fixtures("pack-maps");
    let map = p.0.path("map.json");
    let d = p.json(&["rank-map", "extract", "alpha", "--out", &map]);
    assert_eq!((&d["total_bytes"], &d["total_rank"]), (&json!(404), &json!(10)));
    assert_eq!(p.json(&["rank-map", "validate", &map, "--pack", "alpha"])["ok"], true);
    let r = p.run(&["rank-map", "validate", &map, "--pack", "beta"]);
    r.refuses(1, "blocks.1.attn.q_proj: pack beta has no such slice");
    for (name, control) in [("random", "random-same-budget"), ("shuffled", "shuffled-discovered")] {
        let one = p.json(&["rank-map", name, "alpha", "--seed", "17"]);
        let again = p.json(&["rank-map", control, "--source-pack", "alpha", "--seed", "17"]);
        assert_eq!(one, again);
        assert!(one["total_bytes"].as_u64().unwrap() <= 404, "{one}");
    }
    let fitted = p.json(&[
        "rank-map",
        "normalize-budget",
        "--source-pack",
        "alpha",
        "--target",
        "bytes",
        "--target-bytes",
        "500",
        "--rank-map-out",
        &map,
    ]);
    assert_eq!(fitted["total_bytes"], 492);
    assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&map).unwrap()).unwrap(), fitted);
    // The map that was written is one that can be used.
    let d = p.json(&["rank-map", "budget-report", "alpha", "--rank-map-json", &map]);
    assert_eq!(d["total_bytes"], 492);
    p.fails(&["rank-map", "normalize-budget", "alpha", "--target", "bytes", "--target-bytes", "10"], 1, "smallest map");
    p.fails(&["rank-map", "normalize-budget", "alpha", "--target", "much"], 2, "use fixed-r16");
    p.fails(&["rank-map", "extract"], 2, "required");
}

#[test]
fn parts_are_weighed() {
    let p = Packs::fixtures("pack-ablate");
    let csv = p.0.path("worth.csv");
    let d = p.json(&["ablation-report", "--name", "alpha", "--unit", "channel", "--csv", &csv]);
    assert_eq!(d["parts"][0]["id"], "channel-blocks_0_attn_q_proj-c0001");
    assert_eq!(std::fs::read_to_string(&csv).unwrap().lines().count(), 11);
    let shown = p.run(&["ablate", "alpha", "--unit", "target"]);
    assert!(shown.out.contains("target-attn_q_proj"), "{}", shown.out);
    p.fails(&["ablate", "alpha", "--unit", "prefix", "--prefix-rank", "9"], 1, "no adapter has more than");

    // On a real base, with its hash unknown to the pack.
    let (tensors, meta) = for_the_base("");
    p.write("real", &tensors, &meta);
    let base = base();
    let d = p.json(&["ablate", "real", "--base", &base, "--window", "64", "--windows", "2"]);
    assert_eq!((d["parts"].as_array().unwrap().len(), &d["measured"]["windows"]), (2, &json!(2)));
    let (with, without) = (&d["measured"]["pack"], &d["measured"]["base"]);
    assert!(with.as_f64().unwrap() != without.as_f64().unwrap());
    for part in d["parts"].as_array().unwrap() {
        let n = |k: &str| part[k].as_f64().unwrap();
        assert!(n("low") <= n("loss_rise") && n("loss_rise") <= n("high") && n("loss_rise") != 0.0, "{part}");
    }
    // The geometry fits, and with another base's hash it does not.
    assert_eq!(p.json(&["verify", "real", "--base", &base])["ok"], true);
    let (tensors, meta) = for_the_base(&"0".repeat(64));
    p.write("real", &tensors, &meta);
    p.fails(&["verify", "real", "--base", &base], 1, "was made for another base");
    p.fails(&["verify", "alpha", "--base", &base], 1, "it was made for another base");
}
