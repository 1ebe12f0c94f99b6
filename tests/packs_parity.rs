//! Packs against the real mlx-lm 0.32.2.
//!
//! Covers, on small random checkpoints in float32 and 4 bits:
//! - a pack of this program, exported, is loaded by `mlx_lm.load(adapter_path=...)` and gives the same logits (equal
//!   and unequal ranks and scales, DoRA);
//! - an adapter that mlx-lm itself made and saved (random lora_b) is imported and gives the same logits;
//! - a fused checkpoint is loaded by mlx-lm and gives the logits this program computes for it.
//!
//! mlx-lm is installed from PyPI, once, into the user's cache. Without it the tests fail and say so.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "packs_support.rs"]
mod support;

use plastic_host::model::{LoadOptions, Model, paths};
use plastic_host::pack::{InUse, attach, probe};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use support::{Bench, PLAIN, Spec, gap, ids};

/// Everything that decides what mlx-lm computes.
const PINNED: [&str; 4] = ["mlx-lm==0.32.2", "mlx[cpu]==0.32.2", "transformers==5.23.0", "numpy==2.4.6"];

/// The Python that has mlx-lm.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let dir = paths::cache_dir().expect("a cache directory").join("tools/mlx-lm-0.32.2");
        // Another test process may be at it.
        let _lock = plastic_host::atomic::Lock::of_directory(&dir, || eprintln!("waiting for mlx-lm")).unwrap();
        let (python, stamp) = (dir.join("bin/python"), dir.join("installed"));
        if std::fs::read_to_string(&stamp).is_ok_and(|s| s == PINNED.join("\n")) && python.is_file() {
            return python;
        }
        let step = |command: &mut Command, remedy: &str| {
            let o = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; {remedy}"));
            assert!(o.status.success(), "{command:?}: {}\n{remedy}", String::from_utf8_lossy(&o.stderr));
        };
        let _ = std::fs::remove_dir_all(&dir);
        step(Command::new("python3").args(["-m", "venv"]).arg(&dir), "install Python 3.10 or newer with its venv module");
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        let packages: Vec<&str> =
            PINNED.into_iter().map(|p| if cfg!(target_os = "macos") && p.starts_with("mlx[") { "mlx==0.32.2" } else { p }).collect();
        step(
            Command::new(&python).args(pip).args(packages),
            "mlx-lm 0.32.2 could not be installed from PyPI, which this test needs; connect to the network (or set pip's index), and run it again",
        );
        std::fs::write(stamp, PINNED.join("\n")).unwrap();
        python
    })
}

/// Runs a script that prints one JSON document.
fn script(text: &str, args: &[&Path]) -> Value {
    let o = Command::new(python()).args(["-c", text]).args(args).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let err = String::from_utf8_lossy(&o.stderr);
    assert!(o.status.success(), "{err}");
    let out = String::from_utf8_lossy(&o.stdout);
    serde_json::from_str(out.lines().last().unwrap_or_default()).unwrap_or_else(|e| panic!("{e}: {out}\n{err}"))
}

/// Logits of mlx-lm for a base, with an adapter or without.
const LOGITS: &str = r#"
import json, sys
import mlx.core as mx
from mlx_lm import load
base, ids = sys.argv[1], json.loads(sys.argv[2])
model, _ = load(base, adapter_path=sys.argv[3] if len(sys.argv) > 3 else None)
print(json.dumps(model(mx.array([ids])).astype(mx.float32).reshape(-1).tolist()))
"#;

fn of_mlx_lm(base: &Path, adapter: Option<&Path>) -> Vec<f32> {
    let ids = PathBuf::from(serde_json::to_string(&ids(40)).unwrap());
    let args: Vec<&Path> = [base, &ids].into_iter().chain(adapter).collect();
    let all = script(LOGITS, &args);
    all.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// Logits of this program, with a pack or without.
fn of_ours(b: &Bench, base: &Path, pack: Option<&str>) -> Vec<f32> {
    let mut model = Model::load(base, &LoadOptions::default()).unwrap();
    if let Some(name) = pack {
        let packs = InUse::read(&b.store(), &[name.parse().unwrap()]).unwrap();
        let attachment = packs.prepare(&model).unwrap();
        attach::attach(&mut model, &attachment);
    }
    probe::logits(&model, &ids(40)).unwrap()
}

/// Both compute in float32, sums in another order: logits of size 1 to 10 agree to a few units of 1e-5. The pack
/// itself moves them by much more, so that a wrong scale, order or transposition cannot hide.
const SAME: f32 = 2e-4;
const MOVED: f32 = 0.05;

const UNEQUAL: Spec = Spec {
    kinds: &[("q_proj", 2, 8.0), ("v_proj", 3, 1.5), ("o_proj", 1, 3.0), ("gate_proj", 4, 7.0), ("down_proj", 2, 2.0)],
    growing: true,
    strength: 0.3,
    dora: false,
    seed: 5,
};

#[test]
fn packs_of_ours_give_the_same_logits_in_mlx_lm() {
    for (tiny, spec) in
        [("llama", PLAIN), ("qwen3", UNEQUAL), ("llama", Spec { dora: true, ..UNEQUAL }), ("qwen3_q4g64", UNEQUAL)]
    {
        let b = Bench::new(tiny);
        b.pack("p", &spec);
        b.run(&["packs", "export", "p", "--format", "mlx-lm", "--out", "adapter"]).done();
        let (plain, ours) = (of_ours(&b, &b.base(), None), of_ours(&b, &b.base(), Some("p")));
        let theirs = of_mlx_lm(&b.base(), Some(&b.path("adapter")));
        assert!(gap(&plain, &ours) > MOVED, "{tiny}: the pack moves logits by {}", gap(&plain, &ours));
        let d = gap(&ours, &theirs);
        eprintln!(
            "{tiny}{}: moved by {:.3}, apart by {d:.2e}",
            if spec.dora { " DoRA" } else { "" },
            gap(&plain, &ours)
        );
        assert!(d < SAME, "{tiny}: mlx-lm's logits differ by {d}");
        // Back again: the same pack.
        b.run(&["packs", "import", "adapter", "--name", "q", "--base", "base"]).done();
        let bytes = |name: &str| std::fs::read(b.path("packs").join(name).join("pack.safetensors")).unwrap();
        assert!(bytes("p") == bytes("q"));
    }
}

/// mlx-lm makes an adapter, gives it random numbers, saves it its own way and says its logits.
const MAKE: &str = r#"
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx.utils import tree_flatten, tree_map
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers
base, ids, out, kind = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
model, _ = load(base)
mx.random.seed(7)
parameters = {"rank": 6, "scale": 3.7, "dropout": 0.0, "keys": ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]}
model.freeze()
linear_to_lora_layers(model, 1, parameters, use_dora=kind == "dora")
random = lambda path, x: x + 0.05 * mx.random.normal(x.shape)
weights = {name: random(name, x) for name, x in tree_flatten(model.trainable_parameters())}
model.load_weights(list(weights.items()), strict=False)
out.mkdir()
mx.save_safetensors(str(out / "adapters.safetensors"), weights)
config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": parameters, "model": base}
(out / "adapter_config.json").write_text(json.dumps(config))
print(json.dumps(model(mx.array([ids])).astype(mx.float32).reshape(-1).tolist()))
"#;

#[test]
fn adapters_of_mlx_lm_give_the_same_logits_here() {
    for (tiny, kind) in [("llama", "lora"), ("llama", "dora"), ("qwen3_q8g32", "lora")] {
        let b = Bench::new(tiny);
        let text = PathBuf::from(serde_json::to_string(&ids(40)).unwrap());
        let all = script(MAKE, &[&b.base(), &text, &b.path("theirs"), Path::new(kind)]);
        let theirs: Vec<f32> = all.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        let ran = b.run(&["packs", "import", "theirs", "--name", "t", "--base", "base", "--json"]).done().json();
        // Only the last layer is adapted; float32 numbers were rounded, and it is said.
        assert_eq!(ran["adapters"], 3);
        assert_eq!((&ran["imported"]["format"], &ran["imported"]["native"]), (&json!("mlx-lm"), &json!(false)));
        let rounding = ran["imported"]["rounding"].as_f64().unwrap();
        assert!(rounding > 0.0 && rounding < 1.0 / 2048.0, "{rounding}");
        let (plain, ours) = (of_ours(&b, &b.base(), None), of_ours(&b, &b.base(), Some("t")));
        let (moved, d) = (gap(&plain, &ours), gap(&ours, &theirs));
        eprintln!("{tiny} {kind}: moved by {moved:.3}, apart by {d:.2e}");
        assert!(moved > MOVED, "{moved}");
        // Rounding to float16 (2^-11 of each number) takes part in what the adapter moved.
        assert!(d < SAME + moved / 500.0, "{tiny} {kind}: logits differ by {d}");
    }
}

#[test]
fn fused_checkpoints_give_the_same_logits_in_mlx_lm() {
    for (tiny, bits) in [("llama", "keep"), ("qwen3_q4g64", "8"), ("qwen3_q4g64", "dense")] {
        let b = Bench::new(tiny);
        b.pack("p", &UNEQUAL);
        b.run(&["packs", "apply", "p", "--base", "base", "--fuse", "fused", "--fuse-bits", bits]).done();
        let (ours, theirs) = (of_ours(&b, &b.path("fused"), None), of_mlx_lm(&b.path("fused"), None));
        let d = gap(&ours, &theirs);
        eprintln!("{tiny} fused, {bits}: apart by {d:.2e}");
        assert!(d < SAME, "{tiny} {bits}: {d}");
        let pack = gap(&of_ours(&b, &b.base(), Some("p")), &theirs);
        let moved = gap(&of_ours(&b, &b.base(), None), &theirs);
        assert!(pack < 0.2 * moved, "{tiny} {bits}: {pack} from the pack, {moved} from the base");
    }
}
