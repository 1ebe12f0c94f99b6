//! Which tensor of a GGUF file becomes which tensor of a checkpoint, and with which shape.
//!
//! Everything is checked against the metadata before anything is written: a tensor that is missing, has
//! another shape, or has no place in the architecture refuses the file by name.

use super::blocks::Encoding;
use super::config::{Arch, Dims};
use super::{Header, Reason, Tensor};
use std::collections::HashSet;

/// The rope factors: used for the config, not copied.
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// One tensor to import.
#[derive(Clone, Debug)]
pub struct Planned<'a> {
    /// Where it is in the file.
    pub source: &'a Tensor,
    /// Its name in the checkpoint (`model.layers.0.self_attn.q_proj.weight`).
    pub name: String,
    /// Heads whose rotary rows llama.cpp interleaved, to be put back.
    pub heads: Option<u64>,
}

/// What the tensors say about the model.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// All tensors to import.
    pub tensors: Vec<Planned<'a>>,
    /// Rows of the embedding.
    pub vocab_size: u64,
    /// There is no separate head.
    pub tied: bool,
    /// The attention projections have biases.
    pub attention_bias: bool,
    /// The feed-forward projections have biases.
    pub mlp_bias: bool,
}

/// Maps every tensor of a file.
pub fn plan<'a>(h: &'a Header, d: &Dims) -> Reason<Plan<'a>> {
    let vocab_size = match h.tensors.iter().find(|t| t.name == "token_embd.weight") {
        Some(t) if t.shape.len() == 2 => t.rows(),
        Some(t) => return Err(format!("tensor {} has shape {:?}; a matrix is expected", t.name, t.shape)),
        None => return Err("has no tensor token_embd.weight".into()),
    };
    let mut tensors = Vec::new();
    let mut present = HashSet::new();
    for source in h.tensors.iter().filter(|t| t.name != ROPE_FREQS) {
        let place = place(&source.name, d)
            .ok_or_else(|| format!("tensor {} has no place in a {} model", source.name, d.arch.name()))?;
        let expected = place.shape(d, vocab_size);
        if source.shape != expected {
            return Err(format!(
                "tensor {} has shape {:?}; the metadata asks for {expected:?}",
                source.name, source.shape
            ));
        }
        if expected.len() == 1 && !matches!(source.block.encoding(), Encoding::Plain(_)) {
            return Err(format!("tensor {} is stored as {}; floats are expected", source.name, source.block));
        }
        present.insert(source.name.as_str());
        tensors.push(Planned { source, name: place.name(), heads: place.interleaved(d) });
    }

    let has = |name: &str| present.contains(name);
    let all = |kind: &str| (0..d.layers).all(|i| has(&format!("blk.{i}.{kind}.bias")));
    let none = |kind: &str| (0..d.layers).all(|i| !has(&format!("blk.{i}.{kind}.bias")));
    for kind in required(d.arch) {
        for i in 0..d.layers {
            let name = format!("blk.{i}.{kind}");
            if !has(&name) {
                return Err(format!("has no tensor {name}"));
            }
        }
    }
    if !has("output_norm.weight") {
        return Err("has no tensor output_norm.weight".into());
    }
    // A config can only say: all of them or none.
    let bias = |kinds: &[&str]| {
        if kinds.iter().all(|k| none(k)) {
            Ok(false)
        } else if kinds.iter().all(|k| all(k)) {
            Ok(true)
        } else {
            Err(format!("has biases on some of {} only; a {} model has all or none", kinds.join(", "), d.arch.name()))
        }
    };
    let attention_bias = match d.arch {
        Arch::Llama | Arch::Qwen3 => bias(&["attn_q", "attn_k", "attn_v", "attn_output"])?,
        Arch::Qwen2 if none("attn_output") => true,
        Arch::Qwen2 => return Err("has a bias on attn_output, which a qwen2 model has not".into()),
    };
    let mlp_bias = bias(&["ffn_gate", "ffn_up", "ffn_down"])?;
    if mlp_bias && d.arch != Arch::Llama {
        return Err(format!("has feed-forward biases, which a {} model has not", d.arch.name()));
    }
    Ok(Plan { tensors, vocab_size, tied: !has("output.weight"), attention_bias, mlp_bias })
}

/// The tensors that every layer must have.
fn required(arch: Arch) -> Vec<&'static str> {
    let mut names = vec![
        "attn_norm.weight",
        "ffn_norm.weight",
        "attn_q.weight",
        "attn_k.weight",
        "attn_v.weight",
        "attn_output.weight",
        "ffn_gate.weight",
        "ffn_up.weight",
        "ffn_down.weight",
    ];
    match arch {
        Arch::Llama => {}
        Arch::Qwen2 => names.extend(["attn_q.bias", "attn_k.bias", "attn_v.bias"]),
        Arch::Qwen3 => names.extend(["attn_q_norm.weight", "attn_k_norm.weight"]),
    }
    names
}

/// A parsed tensor name.
struct Place<'a> {
    layer: Option<u64>,
    /// llama.cpp's name of the module.
    kind: &'a str,
    /// The module's name in the checkpoint.
    module: &'static str,
    /// `weight` or `bias`.
    part: &'a str,
}

/// Parses llama.cpp's name; `None` where it has no place in the architecture.
fn place<'a>(name: &'a str, d: &Dims) -> Option<Place<'a>> {
    let (layer, rest) = match name.strip_prefix("blk.") {
        Some(rest) => {
            let (n, rest) = rest.split_once('.')?;
            let layer = n.parse::<u64>().ok().filter(|i| *i < d.layers && n == i.to_string())?;
            (Some(layer), rest)
        }
        None => (None, name),
    };
    let (kind, part) = rest.split_once('.')?;
    let module = match (layer.is_some(), kind) {
        (false, "token_embd") => "embed_tokens",
        (false, "output_norm") => "norm",
        (false, "output") => "lm_head",
        (true, "attn_norm") => "input_layernorm",
        (true, "ffn_norm") => "post_attention_layernorm",
        (true, "attn_q") => "self_attn.q_proj",
        (true, "attn_k") => "self_attn.k_proj",
        (true, "attn_v") => "self_attn.v_proj",
        (true, "attn_output") => "self_attn.o_proj",
        (true, "attn_q_norm") if d.arch == Arch::Qwen3 => "self_attn.q_norm",
        (true, "attn_k_norm") if d.arch == Arch::Qwen3 => "self_attn.k_norm",
        (true, "ffn_gate") => "mlp.gate_proj",
        (true, "ffn_up") => "mlp.up_proj",
        (true, "ffn_down") => "mlp.down_proj",
        _ => return None,
    };
    let may_have_bias = module.ends_with("_proj");
    (part == "weight" || (part == "bias" && may_have_bias)).then_some(Place { layer, kind, module, part })
}

impl Place<'_> {
    fn name(&self) -> String {
        match self.layer {
            Some(i) => format!("model.layers.{i}.{}.{}", self.module, self.part),
            None if self.module == "lm_head" => format!("lm_head.{}", self.part),
            None => format!("model.{}.{}", self.module, self.part),
        }
    }

    fn shape(&self, d: &Dims, vocab: u64) -> Vec<u64> {
        let (q, kv) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
        let matrix = match self.kind {
            "token_embd" | "output" => [vocab, d.hidden],
            "attn_q" => [q, d.hidden],
            "attn_k" | "attn_v" => [kv, d.hidden],
            "attn_output" => [d.hidden, q],
            "ffn_gate" | "ffn_up" => [d.intermediate, d.hidden],
            "ffn_down" => [d.hidden, d.intermediate],
            "attn_q_norm" | "attn_k_norm" => return vec![d.head_dim],
            _ => return vec![d.hidden],
        };
        if self.part == "bias" { vec![matrix[0]] } else { matrix.to_vec() }
    }

    fn interleaved(&self, d: &Dims) -> Option<u64> {
        match (d.arch, self.kind) {
            (Arch::Llama, "attn_q") => Some(d.heads),
            (Arch::Llama, "attn_k") => Some(d.kv_heads),
            _ => None,
        }
    }
}

/// Puts interleaved rotary rows back: row `2i + s` of a head becomes row `s·half + i`.
/// Inverse of `permute` in llama.cpp's converter; only rows move.
pub fn deinterleave(data: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (Some(bytes), Some(dim)) = (data.len().checked_div(rows), rows.checked_div(heads)) else {
        return data.to_vec();
    };
    let half = dim / 2;
    let mut out = Vec::with_capacity(data.len());
    for head in 0..heads {
        for s in 0..2 {
            for i in 0..half {
                let at = (head * dim + 2 * i + s) * bytes;
                out.extend_from_slice(&data[at..at + bytes]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_rows_are_put_back() {
        // llama.cpp's permute of rows 0..8 in two heads of width 4: [0, 2, 1, 3] a head.
        let permuted = [0, 2, 1, 3, 4, 6, 5, 7];
        assert_eq!(deinterleave(&permuted, 8, 2), [0, 1, 2, 3, 4, 5, 6, 7]);
        // Head of width 6, rows of two bytes: permute gives 0, 3, 1, 4, 2, 5.
        let permuted = [0, 0, 3, 3, 1, 1, 4, 4, 2, 2, 5, 5];
        assert_eq!(deinterleave(&permuted, 6, 1), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
    }
}
