//! The layout of `mlx_lm.lora`: `y = W x + scale · (x lora_a) lora_b`, lora_a [in, r], lora_b [r, out], `m` [out] for
//! DoRA; one rank and one scale for all slices.
//!
//! Going out, ranks are padded with zeros to the largest and the scales that differ are folded into lora_b; the
//! numbers are float32, as mlx-lm's own are. Slices of the base that the pack leaves alone have no tensors, which
//! mlx-lm takes for an update of zero.

use super::adapters::{Floats, Module, TensorFile, check, folding, key_of, transposed};
use super::{Config, Files, short};
use crate::model::tensor_file::Tensor;
use crate::pack::error::{Error, Result};
use crate::pack::format::{Adapter, Pack};
use crate::pack::key;
use serde_json::json;
use std::collections::BTreeSet;

pub(super) fn export(pack: &Pack) -> Result<Files> {
    let dora = pack.adapters.values().filter(|a| a.magnitude.is_some()).count();
    if dora != 0 && dora != pack.adapters.len() {
        return Err(Error::fit(
            pack.name(),
            "some adapters have a magnitude (DoRA) and some not; mlx-lm holds one kind only: use --format peft for one of them, or train all alike",
        ));
    }
    let rank = pack.adapters.values().map(Adapter::rank).max().unwrap_or(0);
    let scale = pack.adapters.values().map(Adapter::scale).fold(0f32, f32::max);
    let (mut tensors, mut modules, mut notes) = (Vec::new(), BTreeSet::new(), Vec::new());
    let (mut padded, mut folded, mut silent) = (0, 0, 0);
    for name in pack.keys() {
        let (Some(a), Some(slice)) = (pack.adapters.get(name), key::to_slice(name)) else { continue };
        let factor = folding(a.scale(), scale);
        padded += usize::from(a.rank() < rank);
        folded += usize::from(factor != 1.0 && factor != 0.0);
        silent += usize::from(factor == 0.0);
        let (rows, cols) = (a.a.rows, a.b.cols);
        // lora_a [in, rank]: B transposed, columns of zeros behind.
        let mut down = a.b.to_f32();
        down.resize(rank * cols, 0.0);
        // lora_b [rank, out]: A transposed, rows of zeros behind.
        let mut up: Vec<f32> =
            transposed(rows, a.rank(), &a.a.data).iter().map(|x| (x.to_f64() * factor) as f32).collect();
        up.resize(rank * rows, 0.0);
        if let Some(x) = up.iter().find(|x| !x.is_finite()) {
            return Err(Error::fit(
                pack.name(),
                format!("{name}: its scale folded in gives {x}; its alpha is damaged"),
            ));
        }
        tensors.push(Tensor::f32(format!("{slice}.lora_a"), vec![cols, rank], &transposed(rank, cols, &down)));
        tensors.push(Tensor::f32(format!("{slice}.lora_b"), vec![rank, rows], &up));
        if let Some(m) = &a.magnitude {
            tensors.push(Tensor::f32(format!("{slice}.m"), vec![rows], m));
        }
        modules.insert(slice.splitn(4, '.').nth(3).unwrap_or(&slice).to_owned());
    }
    if padded > 0 {
        notes.push(format!(
            "mlx-lm has one rank: {padded} of {} adapters are padded with zeros to rank {rank}",
            pack.adapters.len()
        ));
    }
    if folded > 0 {
        notes.push(format!(
            "mlx-lm has one scale: those of {folded} adapters that differ from {scale} are folded into lora_b"
        ));
    }
    if silent > 0 {
        notes.push(format!(
            "{silent} adapters have an alpha of 0: their lora_b is zero, so their numbers do not come back"
        ));
    }
    let config = json!({
        "fine_tune_type": if dora > 0 { "dora" } else { "lora" },
        "lora_parameters": { "dropout": 0.0, "keys": modules, "rank": rank, "scale": scale },
        "model": pack.meta.base_model,
        // All layers.
        "num_layers": -1,
    });
    Ok(Files { tensors, config, rank, notes })
}

pub(super) fn import(config: &Config, file: &mut TensorFile) -> Result<Vec<Module>> {
    let kind = config.text("fine_tune_type")?.unwrap_or("lora");
    let dora = match kind {
        "lora" => false,
        "dora" => true,
        "full" => {
            return Err(config.bad(
                "fine_tune_type",
                "is \"full\": whole layers were trained, and a pack holds adapters; use the fused model as a base",
            ));
        }
        other => return Err(config.bad("fine_tune_type", format!("is {other:?}; supported: \"lora\", \"dora\""))),
    };
    let parameters = config.get("lora_parameters").and_then(|p| p.as_object());
    let parameters = parameters.ok_or_else(|| config.bad("lora_parameters", "is missing; expected rank and scale"))?;
    let within = Config { path: config.path.clone(), value: parameters.clone() };
    let missing = |name: &str| config.bad(&format!("lora_parameters.{name}"), "is missing; expected a number");
    let scale = within.number("scale")?.ok_or_else(|| missing("scale"))?;
    let rank = within.number("rank")?.ok_or_else(|| missing("rank"))?;
    let count = match config.get("num_layers") {
        None => None,
        Some(v) => match v.as_i64() {
            Some(n) if n >= 1 => Some(n),
            Some(-1) => None,
            _ => {
                let reason =
                    format!("is {}; expected the number of layers trained, or -1 for all", short(&v.to_string()));
                return Err(config.bad("num_layers", reason));
            }
        },
    };
    let keys = keys(config, &within)?;
    let mut modules: Vec<Module> = Vec::new();
    for name in file.names() {
        let Some(module) = name.strip_suffix(".lora_a") else { continue };
        let key = key_of(module).ok_or_else(|| {
            file.bad(
                &name,
                "adapts a part of the model that a pack does not reach: packs are for the seven projections of a layer",
            )
        })?;
        let place = module.split_once("layers.").and_then(|(_, rest)| rest.split_once('.')).map_or(module, |(_, p)| p);
        if keys.as_ref().is_some_and(|keys| !keys.iter().any(|k| k == place)) {
            let reason = format!("does not name {place}, which the file has an adapter for");
            return Err(config.bad("lora_parameters.keys", reason));
        }
        let b = file.take(&name, 2)?.transposed();
        let a = file.take(&format!("{module}.lora_b"), 2)?.transposed();
        let m = format!("{module}.m");
        let magnitude: Option<Floats> = if dora { Some(file.take(&m, 1)?) } else { None };
        let magnitude = magnitude.map(|m| m.data);
        check(file, module, &a, &b, magnitude.as_ref())?;
        if b.shape[0] as f64 != rank {
            return Err(file.bad(&name, format!("has rank {}; adapter_config.json says {rank}", b.shape[0])));
        }
        modules.push(Module { key, a, b, scale, magnitude, path: file.path.clone() });
    }
    // The last layers are trained, without a gap.
    let layers = || modules.iter().filter_map(|m| key::layer(&m.key)).map(i64::from);
    if let (Some(n), Some(first), Some(last)) = (count, layers().min(), layers().max())
        && last - first + 1 > n
    {
        let reason = format!("is {n}, but the file has adapters for layers {first} to {last}");
        return Err(config.bad("num_layers", reason));
    }
    Ok(modules)
}

/// `lora_parameters.keys`: places in a layer.
fn keys(config: &Config, within: &Config) -> Result<Option<Vec<String>>> {
    let Some(v) = within.get("keys") else { return Ok(None) };
    let names = v.as_array().and_then(|list| list.iter().map(|n| n.as_str().map(str::to_owned)).collect());
    let bad = || {
        let reason = format!("is {}; expected names such as self_attn.q_proj", short(&v.to_string()));
        config.bad("lora_parameters.keys", reason)
    };
    names.map(Some).ok_or_else(bad)
}

/// Settings that are taken over, or that change nothing of an adapter that is trained already.
pub(super) const KNOWN: [&str; 38] = [
    "fine_tune_type",
    "lora_parameters",
    "num_layers",
    "model",
    "train",
    "test",
    "data",
    "seed",
    "optimizer",
    "optimizer_config",
    "mask_prompt",
    "batch_size",
    "iters",
    "val_batches",
    "learning_rate",
    "steps_per_report",
    "steps_per_eval",
    "resume_adapter_file",
    "adapter_path",
    "save_every",
    "test_batches",
    "max_seq_length",
    "config",
    "grad_checkpoint",
    "grad_accumulation_steps",
    "lr_schedule",
    "report_to",
    "project_name",
    "wandb",
    "hf_dataset",
    "use_dora",
    "lora_layers",
    "lora_rank",
    "prompt_feature",
    "completion_feature",
    "chat_feature",
    "text_feature",
    "clear_cache_threshold",
];
