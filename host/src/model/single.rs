//! One matrix of a checkpoint, dequantised, without loading the model around it.
//!
//! The same checks as for a whole model hold for the tensors of this one module. Fails where the directory is no
//! supported checkpoint, has no such module, or the module is no matrix or damaged.

use super::checkpoint::Checkpoint;
use super::config::Config;
use super::error::{Error, Result};
use super::weights::Weights;
use crate::mlx::quant::Packed;
use crate::mlx::{self, Array};
use std::path::Path;

/// A matrix of a checkpoint.
#[derive(Clone, Debug)]
pub struct Single {
    /// float32 [rows, cols].
    pub weight: Array,
    /// Its type (`BF16`), or how it is quantised (`affine 4 bits, group 64`).
    pub stored_as: String,
    /// As it is, where it is quantised; scales and biases of affine ones widened to float32.
    pub packed: Option<Packed>,
    /// Bytes in the checkpoint: codes, scales and biases.
    pub stored_bytes: u64,
}

/// Reads the weight of `module`, such as `model.layers.0.self_attn.q_proj`.
///
/// # Errors
/// When the checkpoint or the module is not as it should be; a module that is not there is answered with names alike.
pub fn read(dir: &Path, module: &str) -> Result<Single> {
    let config = Config::read(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    let name = format!("{module}.weight");
    let info = checkpoint.info(&name).ok_or_else(|| {
        Error::tensor(dir, module, format!("is no module of this checkpoint{}", alike(&checkpoint, module)))
    })?;
    let (rows, expected) = match info.shape.as_slice() {
        [rows, _] => (*rows, columns(&config, module)),
        other => {
            return Err(Error::tensor(
                checkpoint.file_of(&name),
                name,
                format!("has shape {other:?}; expected a matrix, two dimensions"),
            ));
        }
    };
    let weight = Weights::new(&checkpoint, &config)?.matrix(module, rows, expected)?;
    let dense = weight.widened()?;
    mlx::eval([&dense])?;
    let parts = ["weight", "scales", "biases"].map(|p| checkpoint.info(&format!("{module}.{p}")));
    Ok(Single {
        weight: dense,
        stored_as: weight.scheme().map_or_else(|| info.dtype.clone(), |s| s.to_string()),
        packed: weight.packed().cloned(),
        stored_bytes: parts.into_iter().flatten().map(|t| t.end - t.begin).sum(),
    })
}

/// Inputs of a projection, which the packed codes alone do not tell.
fn columns(config: &Config, module: &str) -> usize {
    match module.rsplit('.').next() {
        Some("down_proj") => config.intermediate_size,
        Some("o_proj") => config.num_attention_heads * config.head_dim,
        _ => config.hidden_size,
    }
}

/// The modules whose names resemble this one most, as the end of a sentence.
fn alike(checkpoint: &Checkpoint, module: &str) -> String {
    let mut near: Vec<(f64, &str)> = checkpoint
        .names()
        .filter_map(|n| n.strip_suffix(".weight"))
        .map(|n| (strsim::normalized_levenshtein(n, module), n))
        .filter(|(score, _)| *score > 0.5)
        .collect();
    near.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(y.1)));
    let near: Vec<&str> = near.into_iter().take(3).map(|(_, n)| n).collect();
    match near.is_empty() {
        true => "; `plastic-host model inspect` says what it is made of".into(),
        false => format!("; names alike: {}", near.join(", ")),
    }
}
