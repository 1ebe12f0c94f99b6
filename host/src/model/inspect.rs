//! What a checkpoint is, from its configuration and the headers of its files; no weight is read
//! except for the hash. Fails as reading the configuration, the headers or the tokenizer does.

use super::awake;
use super::registry::{self, Base};
use super::tokenizer::Tokenizer;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A checkpoint could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is damaged or not supported.
    #[error(transparent)]
    Model(#[from] super::Error),
    /// Its hash could not be computed.
    #[error(transparent)]
    Registry(#[from] registry::Error),
}

/// What a checkpoint is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Inspection {
    /// Short name.
    pub id: String,
    /// The directory.
    pub dir: PathBuf,
    /// `model_type` in `config.json`.
    pub architecture: String,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// Longest context in tokens, where stated.
    pub context: Option<usize>,
    /// How weights are quantised unless overridden; `None`: they are not.
    pub quantization: Option<String>,
    /// Modules for which `config.json` says something else.
    pub overrides: BTreeMap<String, String>,
    /// What is stored in which form, largest first.
    pub stored: Vec<Stored>,
    /// All parameters; a tied head counts once.
    pub parameters: u64,
    /// Projections that can sleep.
    pub slices: u64,
    /// Parameters in them.
    pub slice_parameters: u64,
    /// Bytes of the weight files.
    pub bytes: u64,
    /// Number of weight files.
    pub files: usize,
    /// Whether the tokenizer has a chat template.
    pub chat_template: bool,
    /// [`registry::checkpoint_hash`].
    pub sha256: String,
}

/// Tensors stored in one form.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Stored {
    /// Quantisation or float type.
    pub form: String,
    /// Number of tensors.
    pub tensors: u64,
    /// Their parameters; scales and biases of groups do not count.
    pub parameters: u64,
    /// Their bytes, with scales and biases of groups.
    pub bytes: u64,
}

/// The modules of a layer that are slices.
const SLICES: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// Looks at a checkpoint.
///
/// # Errors
/// [`Error`], naming file and field or tensor.
pub fn inspect(base: &Base) -> Result<Inspection, Error> {
    let (config, checkpoint, _) = awake::opened(&base.dir, None)?;
    let chat_template = Tokenizer::load(&base.dir)?.chat().is_some();
    let named = |s: &Option<crate::mlx::quant::Scheme>| s.map_or_else(|| "not quantised".to_owned(), |s| s.to_string());
    let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
    let (mut parameters, mut slices, mut slice_parameters) = (0u64, 0u64, 0u64);
    for name in checkpoint.names() {
        let Some(info) = checkpoint.info(name) else { continue };
        let mut elements = info.shape.iter().map(|d| *d as u64).product::<u64>();
        let mut bytes = info.end - info.begin;
        let mut form = info.dtype.clone();
        let (module, leaf) = name.rsplit_once('.').unwrap_or((name, ""));
        let part = |leaf: &str| checkpoint.info(&format!("{module}.{leaf}"));
        let scales = part("scales");
        if scales.is_some() && matches!(leaf, "scales" | "biases") {
            continue;
        }
        let scheme = config.quantization.overrides.get(module).copied().unwrap_or(config.quantization.global);
        if let (Some(scales), Some(scheme), "weight") = (scales, scheme, leaf) {
            // Codes are packed into words of 32 bits.
            elements = elements * 32 / u64::from(scheme.bits);
            bytes += scales.end - scales.begin + part("biases").map_or(0, |b| b.end - b.begin);
            form = scheme.to_string();
        }
        let s = stored.entry(form.clone()).or_insert(Stored { form, tensors: 0, parameters: 0, bytes: 0 });
        s.tensors += 1;
        s.parameters += elements;
        s.bytes += bytes;
        parameters += elements;
        if leaf == "weight" && module.rsplit('.').next().is_some_and(|m| SLICES.contains(&m)) {
            slices += 1;
            slice_parameters += elements;
        }
    }
    let mut stored: Vec<Stored> = stored.into_values().collect();
    stored.sort_by_key(|s| std::cmp::Reverse(s.parameters));
    let sizes = checkpoint.files().iter().filter_map(|f| f.metadata().ok());
    Ok(Inspection {
        id: base.id.clone(),
        dir: base.dir.clone(),
        architecture: config.model_type.clone(),
        layers: config.num_hidden_layers,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        tied_head: config.tie_word_embeddings.unwrap_or(checkpoint.info("lm_head.weight").is_none()),
        context: config.max_position_embeddings,
        quantization: config.quantization.global.map(|s| s.to_string()),
        overrides: config.quantization.overrides.iter().map(|(name, s)| (name.clone(), named(s))).collect(),
        stored,
        parameters,
        slices,
        slice_parameters,
        bytes: sizes.map(|m| m.len()).sum(),
        files: checkpoint.files().len(),
        chat_template,
        sha256: registry::checkpoint_hash(&base.dir)?,
    })
}
