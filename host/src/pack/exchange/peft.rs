//! The layout of Hugging Face PEFT: `base_model.model.<module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r],
//! `.lora_magnitude_vector` [out] for DoRA; ranks and alphas of single modules in `rank_pattern` and `alpha_pattern`.
//!
//! Matrices go out in float16, as they are. Only settings that every version of PEFT knows are written. Coming in,
//! settings that change the base, or add something that is no low-rank matrix, are refused by name.

use super::adapters::{Module, TensorFile, check, key_of};
use super::{Config, Files, short};
use crate::model::tensor_file::Tensor;
use crate::pack::error::{Error, Result};
use crate::pack::format::{Adapter, Pack};
use crate::pack::key;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Before the name of a module.
const PREFIX: &str = "base_model.model.";

pub(super) fn export(pack: &Pack) -> Result<Files> {
    let dora = pack.adapters.values().filter(|a| a.magnitude.is_some()).count();
    if dora != 0 && dora != pack.adapters.len() {
        return Err(Error::fit(
            pack.name(),
            "some adapters have a magnitude (DoRA) and some not; PEFT says it once for all: train all alike",
        ));
    }
    let rank = commonest(pack.adapters.values().map(Adapter::rank)).unwrap_or(0);
    let alphas = || pack.adapters.values().map(|a| a.alpha.to_bits());
    let alpha = f32::from_bits(commonest(alphas()).unwrap_or(0));
    let (mut tensors, mut ranks, mut patterns) = (Vec::new(), Map::new(), Map::new());
    let mut slices = Vec::new();
    for name in pack.keys() {
        let (Some(a), Some(slice)) = (pack.adapters.get(name), key::to_slice(name)) else { continue };
        let module = format!("{PREFIX}{slice}");
        tensors.push(Tensor::f16(format!("{module}.lora_A.weight"), vec![a.rank(), a.b.cols], &a.b.data));
        tensors.push(Tensor::f16(format!("{module}.lora_B.weight"), vec![a.a.rows, a.rank()], &a.a.data));
        if let Some(m) = &a.magnitude {
            tensors.push(Tensor::f32(format!("{module}.lora_magnitude_vector"), vec![m.len()], m));
        }
        if a.rank() != rank {
            ranks.insert(slice.clone(), a.rank().into());
        }
        if a.alpha.to_bits() != alpha.to_bits() {
            patterns.insert(slice.clone(), number(a.alpha));
        }
        slices.push(slice);
    }
    let mut notes = Vec::new();
    if !ranks.is_empty() || !patterns.is_empty() {
        notes.push(format!(
            "ranks or alphas differ: {} in rank_pattern, {} in alpha_pattern (llama.cpp's converter passes over both)",
            ranks.len(),
            patterns.len()
        ));
    }
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": pack.meta.base_model,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": number(alpha),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "target_modules": targets(&slices),
        "rank_pattern": ranks,
        "alpha_pattern": patterns,
        "use_rslora": false,
        "use_dora": dora > 0,
    });
    let most = pack.adapters.values().map(Adapter::rank).max().unwrap_or(0);
    Ok(Files { tensors, config, rank: most, notes })
}

/// A whole number without a point, as PEFT types them; others exactly.
fn number(x: f32) -> Value {
    match x.fract() == 0.0 && x.abs() < 1e15 {
        true => (x as i64).into(),
        false => f64::from(x).into(),
    }
}

/// A number without 300 digits.
fn plain(x: f64) -> String {
    if x.abs() < 1e15 { x.to_string() } else { format!("{x:e}") }
}

fn commonest<T: Ord + Copy>(all: impl Iterator<Item = T>) -> Option<T> {
    let mut counts = BTreeMap::new();
    all.for_each(|x| *counts.entry(x).or_insert(0usize) += 1);
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(x, _)| x)
}

/// The names of projections where every layer has the same, else every module by its full name.
fn targets(slices: &[String]) -> Vec<String> {
    let kind = |s: &String| s.rsplit('.').next().unwrap_or(s).to_owned();
    let layer = |s: &String| s.split('.').nth(2).and_then(|l| l.parse::<usize>().ok()).unwrap_or(0);
    let kinds: BTreeSet<String> = slices.iter().map(kind).collect();
    let layers = slices.iter().map(layer).max().map_or(0, |l| l + 1);
    match slices.len() == kinds.len() * layers {
        true => kinds.into_iter().collect(),
        false => slices.to_vec(),
    }
}

/// Settings that would make the adapter something else than low-rank matrices on an unchanged base, and why.
const REFUSED: [(&str, &str); 16] = [
    ("modules_to_save", "whole modules were trained beside the adapter, which a pack cannot hold"),
    ("trainable_token_indices", "embeddings were trained beside the adapter, which a pack cannot hold"),
    ("target_parameters", "parameters without a linear layer are adapted, which a pack cannot do"),
    ("layer_replication", "layers of the base are repeated, which makes another base of it"),
    ("alora_invocation_tokens", "the adapter acts from a token on, and a pack always"),
    ("lora_bias", "biases were trained, which a pack cannot hold"),
    ("fan_in_fan_out", "weights of the base are transposed, which no supported base has"),
    ("use_qalora", "inputs are pooled before the adapter, which a pack cannot do"),
    ("use_bdlora", "matrices are block-diagonal in a layout of its own"),
    ("arrow_config", "several adapters are routed, which a pack cannot do"),
    ("velora_config", "projections are compressed in a way of its own"),
    ("kasa_config", "the update is parametrised in a way of its own"),
    ("monteclora_config", "the update is sampled in a way of its own"),
    ("megatron_config", "layers of Megatron are adapted"),
    ("use_lily", "matrices are shared between layers"),
    ("ensure_weight_tying", "the embedding is adapted, which a pack does not reach"),
];

/// Ways to begin the training that change the base, so that the adapter alone does not say what was learnt.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

fn refuse(c: &Config) -> Result<()> {
    match c.text("peft_type")? {
        Some("LORA") => {}
        Some(other) => return Err(c.bad("peft_type", format!("is {other:?}; supported: \"LORA\""))),
        None => return Err(c.bad("peft_type", "is missing; expected \"LORA\"")),
    }
    match c.text("bias")?.unwrap_or("none") {
        "none" => {}
        other => return Err(c.bad("bias", format!("is {other:?}: biases were trained too, which a pack cannot hold"))),
    }
    let empty = |v: &Value| match v {
        Value::Bool(b) => !b,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    };
    for (field, why) in REFUSED {
        if let Some(v) = c.get(field).filter(|v| !empty(v)) {
            let shown = short(&v.to_string());
            return Err(
                c.bad(field, format!("is {shown}: {why}; merge the adapter with PEFT and use the result as a base"))
            );
        }
    }
    let init = c.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default().to_lowercase();
    if CHANGES_BASE.iter().any(|name| init.starts_with(name)) {
        let reason = format!(
            "is {init:?}: training began with a changed base, so the adapter does not fit the original; save it with PEFT's path_initial_model_for_weight_conversion first"
        );
        return Err(c.bad("init_lora_weights", reason));
    }
    Ok(())
}

/// Settings that are taken over, or that change nothing of an adapter that is trained already.
pub(super) const KNOWN: [&str; 36] = [
    "peft_type",
    "bias",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "target_modules",
    "exclude_modules",
    "init_lora_weights",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "lora_bias",
    "fan_in_fan_out",
    "use_qalora",
    "ensure_weight_tying",
];

/// Which modules have adapters, as the settings say.
struct Targets<'a> {
    config: &'a Config,
    wanted: Option<Modules>,
    excluded: Option<Modules>,
}

/// Names of modules, or one regular expression that matches them whole.
enum Modules {
    Names(Vec<String>),
    Whole(regex::Regex),
    All,
}

impl Modules {
    fn read(c: &Config, field: &str) -> Result<Option<Modules>> {
        let bad = |v: &Value| c.bad(field, format!("is {}; expected names of modules", short(&v.to_string())));
        match c.get(field) {
            None => Ok(None),
            Some(Value::String(text)) if text == "all-linear" => Ok(Some(Modules::All)),
            Some(v @ Value::String(text)) => {
                let rule = regex::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(1 << 20).build();
                Ok(Some(Modules::Whole(rule.map_err(|_| bad(v))?)))
            }
            Some(v @ Value::Array(list)) => {
                let names = list.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(|| bad(v)));
                Ok(Some(Modules::Names(names.collect::<Result<_>>()?)))
            }
            Some(v) => Err(bad(v)),
        }
    }

    fn has(&self, module: &str) -> bool {
        match self {
            Modules::All => true,
            Modules::Whole(rule) => rule.is_match(module),
            Modules::Names(names) => names.iter().any(|n| {
                module.strip_suffix(n.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }),
        }
    }
}

impl Targets<'_> {
    fn read(config: &Config) -> Result<Targets<'_>> {
        let (wanted, excluded) = (Modules::read(config, "target_modules")?, Modules::read(config, "exclude_modules")?);
        Ok(Targets { config, wanted, excluded })
    }

    /// That a module for which there are tensors may have an adapter.
    fn check(&self, module: &str) -> Result<()> {
        if self.wanted.as_ref().is_some_and(|w| !w.has(module)) {
            return Err(self
                .config
                .bad("target_modules", format!("does not name {module}, which the file has an adapter for")));
        }
        // An empty list excludes nothing.
        if self.excluded.as_ref().is_some_and(|e| e.has(module)) {
            return Err(self
                .config
                .bad("exclude_modules", format!("names {module}, which the file has an adapter for")));
        }
        Ok(())
    }
}

/// A pattern of PEFT: names of modules, or regular expressions that the end of one matches.
struct Pattern {
    rules: Vec<(regex::Regex, f64)>,
}

impl Pattern {
    fn read(c: &Config, field: &str) -> Result<Pattern> {
        let mut rules = Vec::new();
        let map = match c.get(field) {
            None => return Ok(Pattern { rules }),
            Some(Value::Object(map)) => map,
            Some(v) => return Err(c.bad(field, format!("is {}; expected modules and numbers", short(&v.to_string())))),
        };
        for (name, value) in map {
            let value = value.as_f64().filter(|x| x.is_finite());
            let value = value.ok_or_else(|| c.bad(field, format!("gives {:?} no number", short(name))))?;
            let rule = regex::RegexBuilder::new(&format!("^(?:.*\\.)?(?:{name})$")).size_limit(1 << 20).build();
            let rule = rule.map_err(|_| {
                c.bad(field, format!("names {:?}, which is no name and no regular expression", short(name)))
            })?;
            rules.push((rule, value));
        }
        Ok(Pattern { rules })
    }

    /// The first rule counts.
    fn of(&self, module: &str) -> Option<f64> {
        self.rules.iter().find(|(rule, _)| rule.is_match(module)).map(|(_, x)| *x)
    }
}

pub(super) fn import(c: &Config, file: &mut TensorFile) -> Result<Vec<Module>> {
    refuse(c)?;
    let rank = c.number("r")?.ok_or_else(|| c.bad("r", "is missing; expected the rank"))?;
    let alpha = c.number("lora_alpha")?.ok_or_else(|| c.bad("lora_alpha", "is missing; expected a number"))?;
    let (rs, dora) = (c.flag("use_rslora")?, c.flag("use_dora")?);
    let (ranks, alphas) = (Pattern::read(c, "rank_pattern")?, Pattern::read(c, "alpha_pattern")?);
    let layers = layers(c)?;
    let targets = Targets::read(c)?;
    let mut modules = Vec::new();
    for name in file.names() {
        let Some(stem) = name.strip_suffix(".lora_A.weight") else { continue };
        let module = stem.strip_prefix(PREFIX).ok_or_else(|| {
            file.bad(
                &name,
                format!("does not begin with {PREFIX}; the adapter was not saved by PEFT's save_pretrained"),
            )
        })?;
        // A model without a head has its layers one level up.
        let full = if module.starts_with("layers.") { format!("model.{module}") } else { module.to_owned() };
        let key = key_of(&full).ok_or_else(|| {
            file.bad(
                &name,
                "adapts a part of the model that a pack does not reach: packs are for the seven projections of a layer",
            )
        })?;
        if let Some(layers) = layers.as_ref().filter(|l| !key::layer(&key).is_some_and(|k| l.contains(&u64::from(k)))) {
            return Err(c.bad("layers_to_transform", format!("is {layers:?}, but the file has an adapter for {full}")));
        }
        targets.check(module)?;
        let b = file.take(&name, 2)?;
        let a = file.take(&format!("{stem}.lora_B.weight"), 2)?;
        let m = format!("{stem}.lora_magnitude_vector");
        let m = if file.has(&format!("{m}.weight")) { format!("{m}.weight") } else { m };
        let magnitude = if dora { Some(file.take(&m, 1)?.data) } else { None };
        check(file, stem, &a, &b, magnitude.as_ref())?;
        let found = b.shape[0] as f64;
        let stated = ranks.of(module).unwrap_or(rank);
        if found != stated {
            return Err(file.bad(&name, format!("has rank {found}; adapter_config.json says {}", plain(stated))));
        }
        let alpha = alphas.of(module).unwrap_or(alpha);
        let scale = if rs { alpha / found.sqrt() } else { alpha / found };
        modules.push(Module { key, a, b, scale, magnitude, path: file.path.clone() });
    }
    Ok(modules)
}

/// `layers_to_transform`: one number or a list; the tensors must keep to it.
fn layers(c: &Config) -> Result<Option<BTreeSet<u64>>> {
    let bad = |v: &Value| c.bad("layers_to_transform", format!("is {v}; expected numbers of layers"));
    match c.get("layers_to_transform") {
        None => Ok(None),
        Some(Value::Array(list)) => {
            list.iter().map(|v| v.as_u64().ok_or_else(|| bad(v))).collect::<Result<BTreeSet<u64>>>().map(Some)
        }
        Some(v) => Ok(Some(BTreeSet::from([v.as_u64().ok_or_else(|| bad(v))?]))),
    }
}
