//! What the tests of packs share: small bases that every tool loads, packs of random numbers, the built program.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use plastic_host::mlx::{self, Array};
use plastic_host::model::{LoadOptions, Model, layout};
use plastic_host::pack::{Adapter, Matrix, Meta, Pack, Profile, Store};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Root of the checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// How the program ended.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.out, self.err))
    }

    /// Fails unless the program ended well.
    pub fn done(self) -> Ran {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self
    }

    /// Fails unless it ended with this code and this text among its errors.
    pub fn refuses(&self, code: i32, text: &str) {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        assert!(self.err.contains(text), "expected {text:?} in: {}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
    }
}

/// A directory with a base and packs, in which the program runs.
pub struct Bench {
    pub dir: tempfile::TempDir,
}

impl Bench {
    /// With the tiny checkpoint of this name, under `base`, with a tokenizer.
    pub fn new(tiny: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        std::fs::create_dir(&base).unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(root().join("tests/golden/tiny").join(tiny).join(file), base.join(file)).unwrap();
        }
        tokenizer(&base);
        Bench { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn base(&self) -> PathBuf {
        self.path("base")
    }

    pub fn store(&self) -> Store {
        Store::new(Some(self.path("packs")))
    }

    pub fn model(&self) -> Model {
        Model::load(&self.base(), &LoadOptions::default()).unwrap()
    }

    /// Runs the program here.
    pub fn run(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plastic-host"));
        command.current_dir(self.dir.path()).env("NO_COLOR", "1").env_remove("PLASTIC_PACKS").stdin(Stdio::null());
        let o = command.args(args).output().unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Ran { code: o.status.code(), out: text(&o.stdout), err: text(&o.stderr) }
    }

    /// Makes a pack of random numbers and puts it into the store.
    pub fn pack(&self, name: &str, spec: &Spec) -> Pack {
        let pack = random(name, &self.base(), &self.model(), spec);
        let store = self.store();
        store.put(&pack, true, &store.lock(name).unwrap()).unwrap();
        pack
    }
}

/// A tokenizer of 128 words, `w0` to `w127`, that this program and transformers read.
fn tokenizer(dir: &Path) {
    let vocab: serde_json::Map<String, Value> = (0..128).map(|i| (format!("w{i}"), i.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{ "id": 0, "content": "w0", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true }],
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
    });
    let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w0", "unk_token": "w0" });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Makes two files, with an index, of the one with the weights.
pub fn shard(dir: &Path) {
    use plastic_host::model::tensor_file::{Source, Tensor, dtype, write};
    let whole = dir.join("model.safetensors");
    let header = plastic_host::model::safetensors::read_header(&whole).unwrap();
    let bytes = std::fs::read(&whole).unwrap();
    let begin = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let (mut shards, mut map) = ([Vec::new(), Vec::new()], serde_json::Map::new());
    for (i, (name, info)) in header.iter().enumerate() {
        let source = Source::Bytes(bytes[(begin + info.begin) as usize..(begin + info.end) as usize].to_vec());
        let tensor =
            Tensor { name: name.clone(), dtype: dtype(&info.dtype).unwrap(), shape: info.shape.clone(), source };
        shards[i % 2].push(tensor);
        map.insert(name.clone(), format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into());
    }
    for (i, shard) in shards.iter().enumerate() {
        write(&dir.join(format!("model-0000{}-of-00002.safetensors", i + 1)), &[], shard).unwrap();
    }
    std::fs::remove_file(&whole).unwrap();
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// How a random pack looks.
#[derive(Clone, Copy)]
pub struct Spec {
    /// Kinds of slices, and the rank and alpha of each; layers add their number to the rank.
    pub kinds: &'static [(&'static str, usize, f32)],
    /// Whether later layers have higher ranks.
    pub growing: bool,
    /// Size of the numbers in A.
    pub strength: f32,
    pub dora: bool,
    pub seed: u64,
}

/// Rank 4 on q, k and v.
pub const PLAIN: Spec = Spec {
    kinds: &[("q_proj", 4, 8.0), ("k_proj", 4, 8.0), ("v_proj", 4, 8.0)],
    growing: false,
    strength: 0.3,
    dora: false,
    seed: 1,
};

pub fn meta(name: &str, base: &Path) -> Meta {
    Meta {
        pack_name: name.into(),
        base_hash: layout::checkpoint_hash(base).unwrap(),
        base_model: "base".into(),
        profile: Profile::Lite,
        rank_map: Default::default(),
        alpha_map: Default::default(),
        target_layers: Vec::new(),
        training_data: Some(json!("plays.jsonl")),
        training_config: json!({ "steps": 300, "lr": 1e-4 }),
        created_at: "2026-01-02T03:04:05Z".into(),
        notes: "a note".into(),
        version: String::new(),
    }
}

/// A pack of random numbers for a model.
pub fn random(name: &str, base: &Path, model: &Model, spec: &Spec) -> Pack {
    let mut rng = StdRng::seed_from_u64(spec.seed);
    let mut matrix = |rows: usize, cols: usize, size: f32| {
        let data: Vec<f32> = (0..rows * cols).map(|_| size * (rng.random::<f32>() - 0.5)).collect();
        Matrix::from_f32(rows, cols, &data)
    };
    let mut adapters = std::collections::BTreeMap::new();
    for (i, s) in model.slices().iter().enumerate() {
        let Some((_, rank, alpha)) = spec.kinds.iter().find(|(kind, ..)| *kind == s.kind) else { continue };
        let rank = rank + if spec.growing { s.layer as usize } else { 0 };
        let magnitude = spec.dora.then(|| {
            let w = model.dense_weight(i).unwrap();
            let norm = w.square().unwrap().sum_axis(1, false).unwrap().sqrt().unwrap();
            floats(&norm).iter().enumerate().map(|(i, x)| x * (1.0 + 0.1 * ((i % 5) as f32 - 2.0))).collect()
        });
        let (a, b) = (matrix(s.rows as usize, rank, spec.strength), matrix(rank, s.cols as usize, 0.3));
        let key = plastic_host::pack::key::of_slice(&s.name).unwrap();
        adapters.insert(key, Adapter { a, b, alpha: *alpha, magnitude });
    }
    assert!(!adapters.is_empty());
    Pack::new(meta(name, base), adapters)
}

/// The numbers of an array.
pub fn floats(a: &Array) -> Vec<f32> {
    let a = a.reshape(&[-1]).unwrap();
    mlx::eval([&a]).unwrap();
    a.to_vec_exact::<f32>().unwrap()
}

/// Ids of a text of `n` tokens.
pub fn ids(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 37 + 11) % 128).collect()
}

/// The same as words.
pub fn words(n: u32) -> String {
    ids(n).iter().map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ")
}

/// Largest difference.
pub fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}
