//! Fetching, importing, inspecting and listing models with the built program: the real default model, GGUF
//! files sound and damaged, and a hub that drops, lies and refuses.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "hub_support.rs"]
mod hub_support;

use hub_support::{COMMIT, Hub, Mood, Seen, done, host, json_of, sha256};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Names in a directory that are not hidden (locks are).
fn visible(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    names.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| !n.starts_with('.')).collect()
}

/// `make test` fetches the model first; without it this test does.
#[test]
fn the_default_model_is_what_was_published() {
    let fetched = json_of(host(None).args(["model", "fetch"]));
    assert_eq!(fetched["id"], "smollm2-135m");
    let m = json_of(host(None).args(["model", "inspect", "--offline"]));
    assert_eq!(m["dir"], fetched["dir"]);
    assert!(Path::new(m["dir"].as_str().unwrap()).join("config.json").is_file());
    let want = json!({
        "architecture": "llama", "layers": 30, "hidden_size": 576, "intermediate_size": 1536, "heads": 9,
        "kv_heads": 3, "head_dim": 64, "vocab_size": 49152, "tied_head": true, "context": 8192,
        "quantization": "affine 4 bits, group 32",
        "overrides": {"model.embed_tokens": "affine 8 bits, group 32"},
        "parameters": 134_515_008, "slices": 210, "slice_parameters": 106_168_320, "chat_template": true,
        "sha256": "3053edb01e857c0a154931a065d714ebae39d53fee2f0e526d0a488e9354c813",
    });
    for (key, value) in want.as_object().unwrap() {
        assert_eq!(&m[key], value, "{key}");
    }
    let listed = json_of(host(None).args(["model", "list"]));
    let default = listed["models"].as_array().unwrap().iter().find(|l| l["default"] == true).unwrap();
    assert_eq!((&default["dir"], &default["bytes"]), (&m["dir"], &m["bytes"]));
}

// ---- GGUF ----

/// The smallest GGUF file of a llama: one layer, width 8, a byte-level vocabulary. Also where its tensor
/// table and its data begin.
fn tiny_gguf() -> (Vec<u8>, usize, usize) {
    let (number, float, string, list_of) = (4u32, 6u32, 8u32, 9u32);
    fn text(out: &mut Vec<u8>, s: &str) {
        out.extend((s.len() as u64).to_le_bytes());
        out.extend(s.as_bytes());
    }
    // GPT-2's letters for the 256 bytes: printable ones stand for themselves.
    let plain = |b: &u32| (33..=126).contains(b) || (161..=172).contains(b) || (174..=255).contains(b);
    let letters = (0..256u32).filter(plain).chain((0..(0..256).filter(|b| !plain(b)).count() as u32).map(|i| 256 + i));
    let tokens: Vec<String> = ["<s>".to_owned(), "</s>".to_owned()]
        .into_iter()
        .chain(letters.map(|c| char::from_u32(c).unwrap().into()))
        .collect();
    let numbers = [
        ("llama.embedding_length", 8),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.context_length", 64),
        ("llama.block_count", 1),
        ("llama.feed_forward_length", 16),
        ("tokenizer.ggml.bos_token_id", 0),
        ("tokenizer.ggml.eos_token_id", 1),
    ];
    let words = [("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "smollm")];
    let tensors: [(&str, &[u64]); 11] = [
        ("token_embd.weight", &[8, 258]),
        ("output_norm.weight", &[8]),
        ("blk.0.attn_norm.weight", &[8]),
        ("blk.0.ffn_norm.weight", &[8]),
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[8, 4]),
        ("blk.0.attn_v.weight", &[8, 4]),
        ("blk.0.attn_output.weight", &[8, 8]),
        ("blk.0.ffn_gate.weight", &[8, 16]),
        ("blk.0.ffn_up.weight", &[8, 16]),
        ("blk.0.ffn_down.weight", &[16, 8]),
    ];
    let mut b = b"GGUF".to_vec();
    b.extend(3u32.to_le_bytes());
    b.extend((tensors.len() as u64).to_le_bytes());
    b.extend((numbers.len() as u64 + words.len() as u64 + 4).to_le_bytes());
    for (key, n) in numbers {
        text(&mut b, key);
        b.extend([number.to_le_bytes(), (n as u32).to_le_bytes()].concat());
    }
    for (key, s) in words {
        text(&mut b, key);
        b.extend(string.to_le_bytes());
        text(&mut b, s);
    }
    text(&mut b, "llama.attention.layer_norm_rms_epsilon");
    b.extend([float.to_le_bytes(), 1e-5f32.to_le_bytes()].concat());
    for (key, list) in [("tokens", &tokens), ("merges", &Vec::new())] {
        text(&mut b, &format!("tokenizer.ggml.{key}"));
        b.extend([list_of.to_le_bytes(), string.to_le_bytes()].concat());
        b.extend((list.len() as u64).to_le_bytes());
        list.iter().for_each(|t| text(&mut b, t));
    }
    text(&mut b, "tokenizer.ggml.token_type");
    b.extend([list_of.to_le_bytes(), number.to_le_bytes()].concat());
    b.extend((tokens.len() as u64).to_le_bytes());
    (0..tokens.len()).for_each(|i| b.extend(if i < 2 { 3u32 } else { 1 }.to_le_bytes()));
    let table = b.len();
    let mut at = 0u64;
    for (name, dims) in tensors {
        text(&mut b, name);
        b.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| b.extend(d.to_le_bytes()));
        b.extend(0u32.to_le_bytes());
        b.extend(at.to_le_bytes());
        at += (4 * dims.iter().product::<u64>()).next_multiple_of(32);
    }
    b.resize(b.len().next_multiple_of(32), 0);
    let data = b.len();
    b.extend((0..at / 4).flat_map(|i| (i as f32 / 4096.0).to_le_bytes()));
    (b, table, data)
}

#[test]
fn a_gguf_file_is_imported_once_and_never_over_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, file) = (dir.path().join("cache"), dir.path().join("tiny.gguf"));
    std::fs::write(&file, tiny_gguf().0).unwrap();
    let import = |more: &[&str]| {
        let mut c = host(Some(&cache));
        c.args(["model", "import"]).arg(&file).args(more);
        c
    };
    let first = json_of(&mut import(&[]));
    assert!(first["id"].as_str().unwrap().starts_with("tiny-"), "{first}");
    let weights = Path::new(first["dir"].as_str().unwrap()).join("model.safetensors");
    let made = weights.metadata().unwrap().modified().unwrap();
    assert_eq!(json_of(&mut import(&[])), first);
    assert_eq!(weights.metadata().unwrap().modified().unwrap(), made, "not imported twice");
    assert_eq!(json_of(&mut import(&["--name", "mine"]))["id"], "mine");

    let m = json_of(host(Some(&cache)).args(["model", "inspect", "mine"]));
    let numbers = ["layers", "hidden_size", "heads", "kv_heads", "vocab_size", "context", "slices", "parameters"];
    let found: Vec<u64> = numbers.iter().map(|k| m[k].as_u64().unwrap()).collect();
    assert_eq!(found, [1, 8, 2, 1, 258, 64, 7, 2064 + 24 + 2 * 64 + 2 * 32 + 3 * 128]);
    assert!(m["quantization"].is_null());
    let listed = json_of(host(Some(&cache)).args(["model", "list"]));
    let specs: Vec<&str> = listed["models"].as_array().unwrap().iter().map(|l| l["spec"].as_str().unwrap()).collect();
    assert_eq!(specs, ["smollm2-135m", "mine", first["id"].as_str().unwrap()]);
    assert!(listed["models"][0]["dir"].is_null(), "not fetched into this cache");

    let taken = dir.path().join("taken");
    std::fs::create_dir(&taken).unwrap();
    std::fs::write(taken.join("letter.txt"), "dear").unwrap();
    for more in [&["--out", taken.to_str().unwrap()][..], &["--out", taken.to_str().unwrap(), "--force"]] {
        let (code, _, err) = done(&mut import(more));
        assert!(code == 1 && err.contains("not empty") && err.contains("--out"), "{code} {err}");
    }
    assert_eq!(visible(&taken), ["letter.txt"]);
    for bad in ["../x", "a/b", ""] {
        let (code, _, err) = done(&mut import(&["--name", bad]));
        assert!(code == 1 && err.contains("cannot be a model's name"), "{bad}: {code} {err}");
    }
    assert_eq!(done(&mut import(&["--name", "a", "--out", "b"])).0, 2);
    let both = ["model", "fetch", "org/name@v1", "--revision", "v2"];
    assert_eq!(done(host(Some(&cache)).args(both)).0, 2);
}

#[test]
fn a_damaged_gguf_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (sound, table, data) = tiny_gguf();
    let with = |at: usize, bytes: &[u8]| {
        let mut b = sound.clone();
        b[at..at + bytes.len()].copy_from_slice(bytes);
        b
    };
    let mut cases: Vec<(String, Vec<u8>)> =
        [0, 3, 7, 20, 40, table / 2, table + 5, data - 40, data, data + 100, sound.len() - 1]
            .map(|n| (format!("cut to {n}"), sound[..n].to_vec()))
            .into();
    cases.extend([
        ("bad magic".to_owned(), with(0, b"LGGU")),
        ("version 9".to_owned(), with(4, &9u32.to_le_bytes())),
        ("many tensors".to_owned(), with(8, &u64::MAX.to_le_bytes())),
        ("many keys".to_owned(), with(16, &(1u64 << 60).to_le_bytes())),
        ("long key".to_owned(), with(24, &(1u64 << 40).to_le_bytes())),
        ("not a number".to_owned(), with(data + 64, &f32::NAN.to_le_bytes())),
    ]);
    for (i, (what, bytes)) in cases.iter().enumerate() {
        let (cache, out) = (dir.path().join(format!("c{i}")), dir.path().join(format!("o{i}")));
        let file = dir.path().join(format!("f{i}.gguf"));
        std::fs::write(&file, bytes).unwrap();
        for more in [&[][..], &["--out", out.to_str().unwrap()]] {
            let (code, said, err) = done(host(Some(&cache)).args(["model", "import"]).arg(&file).args(more));
            assert_eq!((code, said.as_str()), (1, ""), "{what}: {err}");
            assert!(err.contains(&format!("f{i}.gguf: ")) && !err.contains("panicked"), "{what}: {err}");
        }
        assert!(!out.exists() && visible(&cache.join("models")).is_empty(), "{what}");
        let left = |d: &Path| {
            std::fs::read_dir(d)
                .into_iter()
                .flatten()
                .flatten()
                .any(|e| e.file_name().to_string_lossy().contains(".partial-"))
        };
        assert!(!left(&cache.join("models")) && !left(dir.path()), "{what}");
    }
}

// ---- the hub ----

/// The snapshot of a complete fetch, equal to what the hub has.
fn whole(hub: &Hub, fetched: &Value) -> PathBuf {
    let dir = PathBuf::from(fetched["dir"].as_str().unwrap());
    assert_eq!(fetched["id"], "org/tiny");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(std::fs::read(dir.join(name)).unwrap() == hub.files[name], "{name}");
    }
    assert!(!dir.join("README.md").exists(), "only what a model needs");
    dir
}

fn incomplete(cache: &Path, hub: &Hub) -> PathBuf {
    let blobs = cache.join("hub/models--org--tiny/blobs");
    blobs.join(format!("{}.incomplete", sha256(&hub.files["model.safetensors"])))
}

#[test]
fn a_repository_is_fetched_once_and_then_there_offline() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(Mood::default()));
    let fetched = json_of(&mut hub.fetch(dir.path()));
    let snapshot = whole(&hub, &fetched);
    assert!(snapshot.ends_with(format!("models--org--tiny/snapshots/{COMMIT}")), "the hub's own layout");
    let requests = hub.seen().len();
    assert_eq!(json_of(&mut hub.fetch(dir.path())), fetched);
    assert_eq!(hub.seen().len(), requests + 1, "only the state of the branch is asked for");
    assert_eq!(json_of(hub.fetch(dir.path()).arg("--offline")), fetched);
    assert_eq!(json_of(hub.fetch(dir.path()).env("HF_HUB_OFFLINE", "1")), fetched);
    let inspected =
        json_of(host(Some(dir.path())).env("HF_ENDPOINT", &hub.address).args(["model", "inspect", "org/tiny"]));
    assert_eq!((&inspected["layers"], &inspected["dir"]), (&json!(2), &fetched["dir"]));
    assert_eq!(hub.seen().len(), requests + 1, "what is cached is used without asking");
    let listed = json_of(host(Some(dir.path())).args(["model", "list"]));
    assert_eq!(listed["models"][1]["spec"], "org/tiny");
}

#[test]
fn a_dropped_connection_is_continued() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(Mood { drop_after: Some(30_000), ..Mood::default() }));
    whole(&hub, &json_of(&mut hub.fetch(dir.path())));
    let ranges: Vec<Option<String>> = hub
        .seen()
        .into_iter()
        .filter(|s| s.line.starts_with("GET") && s.line.ends_with("model.safetensors"))
        .map(|s| s.range)
        .collect();
    assert_eq!(ranges, [None, Some("bytes=30000-".to_owned())]);
}

#[test]
fn an_earlier_attempt_is_continued_or_found_wrong() {
    for (damaged, transfers) in [(false, 1), (true, 2)] {
        let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(Mood::default()));
        let part = incomplete(dir.path(), &hub);
        std::fs::create_dir_all(part.parent().unwrap()).unwrap();
        let mut bytes = hub.files["model.safetensors"][..20_000].to_vec();
        bytes[7_000] ^= u8::from(damaged);
        std::fs::write(&part, bytes).unwrap();
        whole(&hub, &json_of(&mut hub.fetch(dir.path())));
        let gets: Vec<Seen> = hub
            .seen()
            .into_iter()
            .filter(|s| s.line.starts_with("GET") && s.line.ends_with("model.safetensors"))
            .collect();
        assert_eq!(gets.len(), transfers);
        assert_eq!(gets[0].range.as_deref(), Some("bytes=20000-"));
        assert!(!part.exists());
    }
}

#[test]
fn what_a_hub_does_wrong_ends_in_a_clear_message() {
    let status = |s: u16| Mood { status: Some(s), ..Mood::default() };
    let named = |n: &'static str| Mood { extra_name: Some(n), ..Mood::default() };
    for (mood, message) in [
        (status(404), "check the name"),
        (status(401), "HF_TOKEN"),
        (status(403), "accept their terms"),
        (Mood { lie: true, ..Mood::default() }, "SHA-256"),
        (named("../../evil.json"), "outside of the repository"),
        (named("/etc/evil.json"), "outside of the repository"),
        (named("a/../../../evil.json"), "outside of the repository"),
        (named("..\\evil.json"), "outside of the repository"),
    ] {
        let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(mood));
        let (code, out, err) = done(&mut hub.fetch(dir.path()));
        assert!(code == 1 && out.is_empty() && err.contains(message), "{message}: {code} {out}{err}");
        assert!(err.contains("org/tiny"), "{err}");
        let (code, _, err) = done(hub.fetch(dir.path()).arg("--offline"));
        assert!(code == 1 && err.contains("switched off"), "nothing half-fetched is taken for a model: {err}");
        assert!(!incomplete(dir.path(), &hub).exists());
        assert!(!dir.path().join("evil.json").exists() && !dir.path().join("hub/evil.json").exists());
    }
}

#[test]
fn offline_asks_nobody() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(Mood::default()));
    for (id, remedy) in [("org/tiny", "model fetch org/tiny"), ("smollm2-135m", "model fetch smollm2-135m")] {
        let mut c = host(Some(dir.path()));
        let (code, _, err) =
            done(c.env("HF_ENDPOINT", &hub.address).env("HF_HUB_OFFLINE", "1").args(["model", "fetch", id]));
        assert!(code == 1 && err.contains("switched off") && err.contains(remedy), "{code} {err}");
    }
    assert_eq!(hub.seen(), []);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (dir, other) = (tempfile::tempdir().unwrap(), Hub::start(Mood::default()));
    let hub = Hub::start(Mood { elsewhere: Some(other.address.clone()), ..Mood::default() });
    whole(&hub, &json_of(hub.fetch(dir.path()).env("HF_TOKEN", "hf_secret")));
    assert!(hub.seen().iter().all(|s| s.token.as_deref() == Some("Bearer hf_secret")));
    let there = other.seen();
    assert!(there.len() == 1 && there[0].token.is_none(), "{there:?}");
}
