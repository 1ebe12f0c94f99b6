//! One typed configuration for every supported checkpoint, read from `config.json`.
//!
//! Fails with the name of the field when something is missing, out of range or not supported; nothing
//! here is trusted before it was compared with the tensors (see [`super::weights`]).

use super::arch;
use super::error::{Error, Result};
use super::fields::{Fields, read_json, short};
use super::rope::{Rope, Scaling};
use crate::mlx::quant::{Mode, Scheme};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Everything the decoder needs to know, names as in `config.json` where there is one.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    /// D, width of the residual stream.
    pub hidden_size: usize,
    /// F, width inside the MLP.
    pub intermediate_size: usize,
    /// L, number of layers.
    pub num_hidden_layers: usize,
    /// H, query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides H.
    pub num_key_value_heads: usize,
    /// d, width of one head; apart from D / H.
    pub head_dim: usize,
    /// V, number of token ids.
    pub vocab_size: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// What sets the architecture apart.
    pub family: Family,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether the head is the embedding; `None` when the file does not say (then: if there is no `lm_head`).
    pub tie_word_embeddings: Option<bool>,
    /// Longest context the model was made for, scaled rotary positions counted in.
    pub max_position_embeddings: Option<usize>,
    /// Window of local attention. Contexts within it are exact; longer ones are refused.
    pub sliding_window: Option<usize>,
    /// How weights are quantised.
    pub quantization: Quantization,
}

/// What sets one architecture apart from the shared decoder block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Family {
    /// RMS norm over each head's q and k before the rotation.
    pub qk_norm: bool,
    /// Biases of q, k and v.
    pub qkv_bias: bool,
    /// Bias of the attention output.
    pub o_bias: bool,
    /// Biases of gate, up and down.
    pub mlp_bias: bool,
    /// Base of the rotary frequencies when the file does not say.
    pub rope_theta: f64,
}

/// The quantisation that `config.json` states.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantization {
    /// For every module that has scales, unless overridden.
    pub global: Option<Scheme>,
    /// By module name; `None` means: not quantised.
    pub overrides: HashMap<String, Option<Scheme>>,
}

const SUPPORTED: &str = "llama (SmolLM2, Llama 3.x), mistral, qwen2, qwen3";

impl Config {
    /// Reads `dir/config.json`.
    ///
    /// # Errors
    /// When the file is missing, no JSON, or names something unsupported; the message says the field.
    pub fn read(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        let value = read_json(&path).map_err(|e| match e {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Error::file(
                dir,
                "no config.json here; a base is a directory in MLX layout (config.json, *.safetensors, tokenizer.json)",
            ),
            e => e,
        })?;
        Config::parse(&path, &value)
    }

    /// Reads a configuration from parsed JSON; `path` is for messages.
    ///
    /// # Errors
    /// As [`Config::read`].
    pub fn parse(path: &Path, value: &Value) -> Result<Config> {
        let f = Fields::new(path, value)?;
        let model_type =
            f.text("model_type")?.ok_or_else(|| f.error("model_type", format!("missing; supported: {SUPPORTED}")))?;
        let family = match model_type {
            "llama" | "mistral" => arch::llama::family(&f)?,
            "qwen2" => arch::qwen2::family(&f)?,
            "qwen3" => arch::qwen3::family(&f)?,
            other => return Err(f.error("model_type", format!("`{other}` is not supported; supported: {SUPPORTED}"))),
        };
        refuse_unsupported(&f)?;

        let hidden_size = f.need("hidden_size")?;
        let heads = f.need("num_attention_heads")?;
        let kv_heads = f.count("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(f.error(
                "num_key_value_heads",
                format!("is {kv_heads}, which does not divide num_attention_heads {heads}"),
            ));
        }
        let head_dim = match f.count("head_dim")? {
            Some(d) => d,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(f.error(
                    "head_dim",
                    format!("missing, and hidden_size {hidden_size} is no multiple of num_attention_heads {heads}"),
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(f.error("head_dim", format!("is {head_dim}; rotary positions need an even width")));
        }
        let rope = rope(&f, &family, head_dim)?;
        let config = Config {
            path: path.to_owned(),
            model_type: model_type.to_owned(),
            hidden_size,
            intermediate_size: f.need("intermediate_size")?,
            num_hidden_layers: f.need("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: f.need("vocab_size")?,
            rms_norm_eps: f
                .positive("rms_norm_eps")?
                .ok_or_else(|| f.error("rms_norm_eps", "missing; expected a number"))? as f32,
            family,
            tie_word_embeddings: f.flag("tie_word_embeddings")?,
            max_position_embeddings: f.count("max_position_embeddings")?.map(|n| n.max(rope.scaling.reach())),
            rope,
            sliding_window: sliding_window(&f)?,
            quantization: quantization(&f)?,
        };
        config.check_sizes(&f)?;
        Ok(config)
    }

    /// Widths whose products MLX would count in 32 bits.
    fn check_sizes(&self, f: &Fields) -> Result<()> {
        let bound = |name: &str, n: usize, max: usize| match n <= max {
            true => Ok(()),
            false => Err(f.error(name, format!("is {n}; at most {max} is supported"))),
        };
        bound("hidden_size", self.hidden_size, 1 << 20)?;
        bound("intermediate_size", self.intermediate_size, 1 << 22)?;
        bound("num_hidden_layers", self.num_hidden_layers, 4096)?;
        bound("vocab_size", self.vocab_size, 1 << 24)?;
        bound("num_attention_heads", self.num_attention_heads, 1 << 14)?;
        bound("head_dim", self.head_dim, 1 << 14)
    }

    /// Refuses contexts that local attention would make wrong.
    ///
    /// # Errors
    /// When `positions` is beyond the sliding window.
    pub fn check_context(&self, positions: usize) -> Result<()> {
        match self.sliding_window {
            Some(w) if positions > w => Err(Error::field(
                &self.path,
                "sliding_window",
                format!(
                    "is {w} and {positions} positions are asked for; only contexts within the window are supported: use shorter windows or prompts"
                ),
            )),
            _ => Ok(()),
        }
    }
}

fn refuse_unsupported(f: &Fields) -> Result<()> {
    for name in ["num_local_experts", "num_experts", "n_routed_experts"] {
        if let Some(v) = f.get(name).filter(|v| v.as_u64() != Some(0)) {
            return Err(f.error(
                name,
                format!("is {}: mixture-of-experts models are not supported; supported: {SUPPORTED}, dense", short(v)),
            ));
        }
    }
    if let Some(act) =
        f.first(&["hidden_act", "hidden_activation"]).filter(|v| !matches!(v.as_str(), Some("silu" | "swish")))
    {
        return Err(f.error("hidden_act", format!("is {}; supported: \"silu\"", short(act))));
    }
    if let Some(x) = f.number("partial_rotary_factor")?.filter(|x| *x != 1.0) {
        return Err(f.error("partial_rotary_factor", format!("is {x}; supported: 1")));
    }
    if f.flag("quantize_activations")? == Some(true) {
        return Err(f.error("quantize_activations", "is true; activations are computed in float32: set it to false"));
    }
    if let Some(v) = f.get("model_file") {
        return Err(
            f.error("model_file", format!("is {}: checkpoints that bring their own code are not supported", short(v)))
        );
    }
    Ok(())
}

/// The attention window, when some layer uses one.
fn sliding_window(f: &Fields) -> Result<Option<usize>> {
    let window = f.count("sliding_window")?;
    let local = match f.get("layer_types") {
        Some(Value::Array(types)) => {
            if let Some(other) =
                types.iter().find(|t| !matches!(t.as_str(), Some("full_attention" | "sliding_attention")))
            {
                return Err(f.error(
                    "layer_types",
                    format!("holds {}; supported: \"full_attention\", \"sliding_attention\"", short(other)),
                ));
            }
            types.iter().any(|t| t.as_str() == Some("sliding_attention"))
        }
        Some(other) => return Err(f.error("layer_types", format!("expected a list, found {}", short(other)))),
        // Qwen states the window and says apart whether it is used.
        None => f.flag("use_sliding_window")?.unwrap_or(window.is_some()),
    };
    match (local, window) {
        (false, _) => Ok(None),
        (true, Some(w)) => Ok(Some(w)),
        (true, None) => Err(f.error("sliding_window", "missing although some layers use sliding attention")),
    }
}

/// `rope_theta` and `rope_scaling`, or both under `rope_parameters`.
fn rope(f: &Fields, family: &Family, head_dim: usize) -> Result<Rope> {
    let nested = f.object("rope_parameters")?;
    let theta = match (f.positive("rope_theta")?, &nested) {
        (Some(t), _) => Some(t),
        (None, Some(p)) => p.positive("rope_theta")?,
        (None, None) => None,
    };
    let scaling = match f.object("rope_scaling")?.or(nested) {
        Some(s) => scaling(&s)?,
        None => Scaling::Default,
    };
    Ok(Rope {
        dims: head_dim,
        theta: theta.unwrap_or(family.rope_theta),
        traditional: f.flag("rope_traditional")?.unwrap_or(false),
        scaling,
    })
}

fn scaling(s: &Fields) -> Result<Scaling> {
    let kind = match s.text("type")? {
        Some(t) => t,
        None => s.text("rope_type")?.unwrap_or("default"),
    };
    let factor = || s.positive("factor")?.ok_or_else(|| s.error("factor", format!("missing; `{kind}` needs it")));
    let original = |default: usize| Ok::<_, Error>(s.count("original_max_position_embeddings")?.unwrap_or(default));
    Ok(match kind {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: factor()? },
        "llama3" => Scaling::Llama3 {
            factor: factor()?,
            low_freq_factor: s.positive("low_freq_factor")?.unwrap_or(1.0),
            high_freq_factor: s.positive("high_freq_factor")?.unwrap_or(4.0),
            original: original(8192)?,
        },
        "yarn" => Scaling::Yarn {
            factor: factor()?,
            original: original(4096)?,
            beta_fast: s.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: s.positive("beta_slow")?.unwrap_or(1.0),
            mscale: s.number("mscale")?.unwrap_or(1.0),
            mscale_all_dim: s.number("mscale_all_dim")?.unwrap_or(0.0),
            attention_factor: s.positive("attention_factor")?,
        },
        other => {
            return Err(
                s.error("rope_type", format!("`{other}` is not supported; supported: default, linear, llama3, yarn"))
            );
        }
    })
}

/// MLX's `quantization`, or the same under `quantization_config`.
fn quantization(f: &Fields) -> Result<Quantization> {
    let q = match f.object("quantization")? {
        Some(q) => q,
        None => match f.object("quantization_config")? {
            Some(q) => q,
            None => return Ok(Quantization::default()),
        },
    };
    let method = q.text("quant_method")?;
    let global = match method {
        Some("mxfp4") => scheme(&q, Some(Mode::Mxfp4))?,
        Some("mxfp8") => scheme(&q, Some(Mode::Mxfp8))?,
        None => scheme(&q, None)?,
        Some(other) => {
            return Err(q.error("quant_method", format!("`{other}` is not supported; supported: MLX's affine, mxfp4, mxfp8, nvfp4 (convert the model with mlx_lm.convert)")));
        }
    };
    let mut overrides = HashMap::new();
    for (name, value) in q.iter() {
        match value {
            Value::Bool(false) if name.contains('.') => drop(overrides.insert(name.clone(), None)),
            Value::Object(_) => {
                let Some(o) = q.object(name)? else { continue };
                overrides.insert(name.clone(), Some(scheme(&o, None)?));
            }
            _ => {}
        }
    }
    Ok(Quantization { global: Some(global), overrides })
}

/// `group_size`, `bits` and `mode`; what is missing is the mode's default in MLX.
fn scheme(q: &Fields, mode: Option<Mode>) -> Result<Scheme> {
    let mode = match (mode, q.text("mode")?) {
        (Some(m), _) => m,
        (None, None) => Mode::Affine,
        (None, Some(name)) => Mode::from_name(name).ok_or_else(|| {
            q.error("mode", format!("`{name}` is not supported; supported: affine, mxfp4, mxfp8, nvfp4"))
        })?,
    };
    let (group, bits) = match mode {
        Mode::Affine => (64, 4),
        Mode::Mxfp4 => (32, 4),
        Mode::Mxfp8 => (32, 8),
        Mode::Nvfp4 => (16, 4),
    };
    let scheme = Scheme {
        group_size: q.count("group_size")?.unwrap_or(group) as u32,
        bits: q.count("bits")?.unwrap_or(bits) as u32,
        mode,
    };
    check_scheme(scheme)
        .map_err(|reason| q.error(if reason.contains("bits") { "bits" } else { "group_size" }, reason))?;
    Ok(scheme)
}

/// Whether MLX loads this scheme; the reason when not.
pub(crate) fn check_scheme(s: Scheme) -> std::result::Result<(), String> {
    let (groups, bits): (&[u32], &[u32]) = match s.mode {
        Mode::Affine => (&[32, 64, 128], &[2, 3, 4, 5, 6, 8]),
        Mode::Mxfp4 => (&[32], &[4]),
        Mode::Mxfp8 => (&[32], &[8]),
        Mode::Nvfp4 => (&[16], &[4]),
    };
    if !bits.contains(&s.bits) {
        return Err(format!("{} bits are not supported for mode {}; supported: {bits:?}", s.bits, s.mode.name()));
    }
    if !groups.contains(&s.group_size) {
        return Err(format!(
            "groups of {} are not supported for mode {}; supported: {groups:?}",
            s.group_size,
            s.mode.name()
        ));
    }
    Ok(())
}
