//! Llama: SmolLM2, Llama 3.x, Mistral.
//!
//! ```text
//! x = embed(tokens)                                             [B, T, D]
//! each layer:
//!   n = rms_norm(x)
//!   q = rope(split(n Wqᵀ))  [B, H, T, d]    k = rope(split(n Wkᵀ)), v = split(n Wvᵀ)  [B, Hkv, T, d]
//!   x = x + join(attention(q, k, v)) Woᵀ
//!   n = rms_norm(x)
//!   x = x + (silu(n Wgᵀ) * (n Wuᵀ)) Wdᵀ                         gate, up [F, D], down [D, F]
//! logits = rms_norm(x) Eᵀ                                       E: lm_head, or the embedding when tied
//! ```
//! `attention_bias` adds biases to q, k, v and o, `mlp_bias` to gate, up and down.

use crate::model::config::Family;
use crate::model::error::Result;
use crate::model::fields::Fields;

pub(crate) fn family(f: &Fields) -> Result<Family> {
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    Ok(Family {
        qk_norm: false,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: f.flag("mlp_bias")?.unwrap_or(false),
        rope_theta: 10_000.0,
    })
}
