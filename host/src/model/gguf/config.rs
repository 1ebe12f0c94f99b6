//! From GGUF metadata to `config.json`: the widths of a model and what mlx-lm calls them.
//!
//! What a Hugging Face config cannot say (partial rotary dimensions, experts, unusual rope scaling) is
//! refused by name, never dropped: a model that loads must be the model that was converted.

use super::{Header, Reason};
use serde_json::{Map, Value, json};

/// The architectures that can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Llama, SmolLM2, Mistral. llama.cpp interleaves the rotary rows of q and k.
    Llama,
    /// Qwen2, Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3 dense: norms on q and k.
    Qwen3,
}

impl Arch {
    /// The name in GGUF metadata, which is also `model_type` in a config.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Qwen3 => "qwen3",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Arch::Llama => "LlamaForCausalLM",
            Arch::Qwen2 => "Qwen2ForCausalLM",
            Arch::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// The widths of a model, as its metadata claims them.
#[derive(Clone, Debug)]
pub struct Dims {
    /// Which architecture.
    pub arch: Arch,
    /// Number of layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width inside the feed-forward block.
    pub intermediate: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Longest text it was trained for, in tokens.
    pub context: u64,
    /// Added to the mean square in norms.
    pub eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// `rope_scaling` of the config: null or an object.
    pub rope_scaling: Value,
}

impl Dims {
    /// Reads and checks the metadata. `rope_freqs` holds the tensor of that name, if the file has one.
    pub fn read(h: &Header, rope_freqs: Option<&[f32]>) -> Reason<Dims> {
        let arch = match h.string("general.architecture")? {
            Some("llama") => Arch::Llama,
            Some("qwen2") => Arch::Qwen2,
            Some("qwen3") => Arch::Qwen3,
            Some(other) => {
                return Err(format!(
                    "is a model of architecture \"{other}\"; llama, qwen2 and qwen3 are supported: choose another model"
                ));
            }
            None => {
                return Err("has no general.architecture: it is not a language model (a LoRA or a projector?)".into());
            }
        };
        if let Some(kind) = h.string("general.type")?
            && kind != "model"
        {
            return Err(format!("holds a \"{kind}\", not a model"));
        }
        if h.uint("split.count")?.unwrap_or(1) > 1 {
            return Err(
                "is one part of a split model; join the parts first (llama-gguf-split --merge FIRST OUT)".into()
            );
        }
        let key = |k: &str| format!("{}.{k}", arch.name());
        let optional = |k: &str| h.uint(&key(k));
        let need = |k: &str, max: u64| match optional(k)? {
            Some(n) if (1..=max).contains(&n) => Ok(n),
            Some(n) => Err(format!("metadata key {} is {n}; 1 to {max} is expected", key(k))),
            None => Err(format!("has no metadata key {}", key(k))),
        };
        if optional("expert_count")?.unwrap_or(0) > 0 {
            return Err("is a mixture of experts; only dense models are supported".into());
        }
        let hidden = need("embedding_length", 1 << 20)?;
        let heads = need("attention.head_count", 1 << 16)?;
        let kv_heads = optional("attention.head_count_kv")?.unwrap_or(heads);
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(format!("has {heads} attention heads on {kv_heads} key heads, which do not divide them"));
        }
        let head_dim = optional("attention.key_length")?.unwrap_or(hidden / heads);
        let even = |n: u64| n > 0 && n.is_multiple_of(2) && n <= 1 << 16;
        if !even(head_dim) {
            return Err(format!("has heads of width {head_dim}; an even width is expected"));
        }
        for (k, what) in [("attention.value_length", "values"), ("rope.dimension_count", "rotary dimensions")] {
            if let Some(n) = optional(k)?
                && n != head_dim
            {
                return Err(format!("has {n} {what} a head of width {head_dim}; equal numbers are supported"));
            }
        }
        let context = need("context_length", 1 << 32)?;
        let eps = key("attention.layer_norm_rms_epsilon");
        let eps = h.float(&eps)?.ok_or_else(|| format!("has no metadata key {eps}"))?;
        let rope_theta = h.float(&key("rope.freq_base"))?.unwrap_or(10000.0);
        if !(0.0..1.0).contains(&eps) || rope_theta < 1.0 {
            return Err(format!("has a norm epsilon of {eps} and a rope base of {rope_theta}, which no model has"));
        }
        let mut dims = Dims {
            arch,
            layers: need("block_count", 1 << 12)?,
            hidden,
            intermediate: need("feed_forward_length", 1 << 24)?,
            heads,
            kv_heads,
            head_dim,
            context,
            eps,
            rope_theta,
            rope_scaling: Value::Null,
        };
        dims.rope_scaling = match rope_freqs {
            Some(_) if metadata_scaling(h, arch)? != Value::Null => {
                return Err("has both rope factors and rope scaling in its metadata; at most one is supported".into());
            }
            Some(factors) => llama3_scaling(&dims, factors, optional("rope.scaling.original_context_length")?)?,
            None => metadata_scaling(h, arch)?,
        };
        Ok(dims)
    }

    /// The `config.json` of a model with this vocabulary. `quantization` is its entry of that name.
    pub fn config(&self, model: &ConfigFacts) -> Value {
        let mut c = json!({
            "architectures": [self.arch.class()],
            "model_type": self.arch.name(),
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": model.vocab_size,
            "max_position_embeddings": self.context,
            "rms_norm_eps": self.eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "rope_traditional": false,
            "hidden_act": "silu",
            "attention_bias": model.attention_bias,
            "mlp_bias": model.mlp_bias,
            "tie_word_embeddings": model.tied,
            "torch_dtype": model.dtype,
            "bos_token_id": model.bos,
            "eos_token_id": model.eos,
            "pad_token_id": model.pad,
        });
        if let (Some(q), Some(object)) = (&model.quantization, c.as_object_mut()) {
            object.insert("quantization".into(), Value::Object(q.clone()));
            object.insert("quantization_config".into(), Value::Object(q.clone()));
        }
        c
    }
}

/// What a config says that is not in the architecture's metadata.
#[derive(Clone, Debug, Default)]
pub struct ConfigFacts {
    /// Rows of the embedding.
    pub vocab_size: u64,
    /// The head is the embedding.
    pub tied: bool,
    /// The attention projections have biases.
    pub attention_bias: bool,
    /// The feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Type of the unquantised numbers.
    pub dtype: &'static str,
    /// Bits and group sizes, if anything is quantised.
    pub quantization: Option<Map<String, Value>>,
    /// First token of a text.
    pub bos: Option<u64>,
    /// Last token of a text.
    pub eos: Option<u64>,
    /// Fills up batches.
    pub pad: Option<u64>,
}

/// Rope scaling that metadata spells out: none, linear or yarn.
fn metadata_scaling(h: &Header, arch: Arch) -> Reason<Value> {
    let key = |k: &str| format!("{}.rope.{k}", arch.name());
    let factor = match h.float(&key("scaling.factor"))? {
        Some(f) => Some(f),
        None => h.float(&key("scale_linear"))?,
    };
    let kind = h.string(&key("scaling.type"))?.unwrap_or(if factor.is_some() { "linear" } else { "none" });
    let factor = factor.unwrap_or(1.0);
    if !factor.is_finite() || factor <= 0.0 {
        return Err(format!("has the rope scaling factor {factor}; a positive number is expected"));
    }
    match kind {
        "none" => Ok(Value::Null),
        "linear" if factor == 1.0 => Ok(Value::Null),
        "linear" => Ok(json!({ "rope_type": "linear", "type": "linear", "factor": factor })),
        "yarn" => {
            let original = key("scaling.original_context_length");
            let original = h.uint(&original)?.ok_or_else(|| format!("scales rope by yarn and has no {original}"))?;
            for (k, usual) in [
                ("scaling.attn_factor", 1.0),
                ("scaling.yarn_attn_factor", 1.0),
                ("scaling.yarn_ext_factor", 1.0),
                ("scaling.yarn_log_multiplier", 0.1),
            ] {
                if let Some(x) = h.float(&key(k))?
                    && x != usual
                {
                    return Err(format!("has {} = {x}; only {usual} is supported", key(k)));
                }
            }
            let mut yarn = json!({
                "rope_type": "yarn", "type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            });
            for (k, name) in [("scaling.yarn_beta_fast", "beta_fast"), ("scaling.yarn_beta_slow", "beta_slow")] {
                if let (Some(x), Some(object)) = (h.float(&key(k))?, yarn.as_object_mut()) {
                    object.insert(name.into(), json!(x));
                }
            }
            Ok(yarn)
        }
        other => Err(format!("scales rope by \"{other}\"; linear, yarn and Llama 3's are supported")),
    }
}

/// Finds the Llama 3 rope scaling that gives these factors. llama.cpp stores the factors, one for every
/// pair of dimensions, not what they were computed from; of that, only the factor differs between
/// the published models (3.1 and 3.3: 8, 3.2: 32). What does not come out the same is refused.
fn llama3_scaling(dims: &Dims, factors: &[f32], original: Option<u64>) -> Reason<Value> {
    if factors.len() as u64 != dims.head_dim / 2 {
        return Err(format!("has {} rope factors for {} pairs of dimensions", factors.len(), dims.head_dim / 2));
    }
    if factors.iter().all(|f| *f == 1.0) {
        return Ok(Value::Null);
    }
    let factor = factors.iter().fold(0f32, |m, f| m.max(*f));
    let (low, high, original) = (1.0, 4.0, original.unwrap_or(8192));
    let computed = llama3_factors(dims, factor.into(), low, high, original as f64);
    let close = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() <= 1e-5 * b;
    if !factors.iter().zip(&computed).all(close) {
        return Err("has rope factors (tensor rope_freqs.weight) that Llama 3's formula does not give; \
                    use the model's original safetensors files instead"
            .into());
    }
    Ok(json!({
        "rope_type": "llama3", "type": "llama3", "factor": f64::from(factor), "low_freq_factor": low,
        "high_freq_factor": high, "original_max_position_embeddings": original,
    }))
}

/// Divisors of the rotary frequencies (`_compute_llama3_parameters` in transformers).
fn llama3_factors(dims: &Dims, factor: f64, low: f64, high: f64, original: f64) -> Vec<f64> {
    let n = dims.head_dim as f64;
    (0..dims.head_dim / 2)
        .map(|i| {
            let wavelength = 2.0 * std::f64::consts::PI * dims.rope_theta.powf(2.0 * i as f64 / n);
            if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::Value as G;
    use super::*;

    fn header(extra: &[(&str, G)]) -> Header {
        let mut h = Header::default();
        for (k, v) in [
            ("general.architecture", G::String("llama".into())),
            ("llama.block_count", G::Uint(2)),
            ("llama.context_length", G::Uint(128)),
            ("llama.embedding_length", G::Uint(64)),
            ("llama.feed_forward_length", G::Uint(96)),
            ("llama.attention.head_count", G::Uint(4)),
            ("llama.attention.head_count_kv", G::Uint(2)),
            ("llama.attention.layer_norm_rms_epsilon", G::F32(1e-5)),
        ] {
            h.metadata.insert(k.into(), v);
        }
        for (k, v) in extra {
            h.metadata.insert((*k).into(), v.clone());
        }
        h
    }

    #[test]
    fn epsilon_is_the_shortest_decimal() {
        let d = Dims::read(&header(&[]), None).unwrap();
        assert_eq!(d.config(&ConfigFacts::default())["rms_norm_eps"], 1e-5, "not 9.99999974737875e-6");
        assert_eq!((d.head_dim, d.rope_theta), (16, 10000.0));
    }

    #[test]
    fn scaling_that_metadata_spells_out() {
        let read = |extra: &[(&str, G)]| Dims::read(&header(extra), None).map(|d| d.rope_scaling);
        let text = |s: &str| G::String(s.into());
        let linear = read(&[("llama.rope.scaling.type", text("linear")), ("llama.rope.scaling.factor", G::F32(4.0))]);
        assert_eq!(linear.unwrap()["factor"], 4.0);
        let yarn = [
            ("llama.rope.scaling.type", text("yarn")),
            ("llama.rope.scaling.factor", G::F32(4.0)),
            ("llama.rope.scaling.original_context_length", G::Uint(32768)),
            ("llama.rope.scaling.yarn_beta_fast", G::F32(16.0)),
        ];
        let y = read(&yarn).unwrap();
        assert_eq!(
            (y["rope_type"].as_str(), y["original_max_position_embeddings"].as_u64()),
            (Some("yarn"), Some(32768))
        );
        assert_eq!(y["beta_fast"], 16.0);
        assert!(read(&yarn[..2]).unwrap_err().contains("original_context_length"));
        assert!(read(&[("llama.rope.scaling.type", text("longrope"))]).unwrap_err().contains("longrope"));
    }

    #[test]
    fn llama3_scaling_is_recovered_or_refused() {
        // Llama 3.2 1B: head_dim 64, base 500000, factor 32.
        let h = header(&[("llama.attention.key_length", G::Uint(64)), ("llama.rope.freq_base", G::F32(500000.0))]);
        let plain = Dims::read(&h, None).unwrap();
        let mut factors: Vec<f32> = llama3_factors(&plain, 32.0, 1.0, 4.0, 8192.0).iter().map(|f| *f as f32).collect();
        assert!(factors.iter().any(|f| *f > 1.0 && *f < 32.0), "some are in between");
        let s = Dims::read(&h, Some(&factors)).unwrap().rope_scaling;
        assert_eq!((s["rope_type"].as_str(), s["factor"].as_f64()), (Some("llama3"), Some(32.0)));
        factors[16] *= 1.01;
        assert!(Dims::read(&h, Some(&factors)).unwrap_err().contains("rope_freqs.weight"));
        assert!(Dims::read(&h, Some(&factors[1..])).is_err());
        assert_eq!(Dims::read(&h, Some(&[1.0; 32])).unwrap().rope_scaling, Value::Null);
    }

    #[test]
    fn what_a_config_cannot_say_is_refused() {
        for (key, value, message) in [
            ("general.architecture", G::String("gemma".into()), "gemma"),
            ("general.type", G::String("adapter".into()), "adapter"),
            ("llama.expert_count", G::Uint(8), "mixture"),
            ("llama.rope.dimension_count", G::Uint(8), "rotary"),
            ("llama.attention.head_count_kv", G::Uint(3), "divide"),
            ("llama.attention.head_count_kv", G::Ints(vec![1, 2]), "array"),
            ("llama.block_count", G::Uint(0), "block_count"),
            ("llama.attention.layer_norm_rms_epsilon", G::F32(f32::NAN), "finite"),
            ("split.count", G::Uint(2), "--merge"),
        ] {
            let e = Dims::read(&header(&[(key, value)]), None).unwrap_err();
            assert!(e.contains(message), "{key}: {e}");
        }
    }
}
