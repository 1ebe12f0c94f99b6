//! Qwen3, dense: Llama (see [`super::llama`]) with an RMS norm over each head of q and k before the
//! rotation, weights [d] shared by all heads, and a `head_dim` of its own: H·d need not be D.

use crate::model::config::Family;
use crate::model::error::Result;
use crate::model::fields::Fields;

pub(crate) fn family(f: &Fields) -> Result<Family> {
    let attention_bias = f.flag("attention_bias")?.unwrap_or(false);
    Ok(Family {
        qk_norm: true,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: false,
        rope_theta: 1_000_000.0,
    })
}
