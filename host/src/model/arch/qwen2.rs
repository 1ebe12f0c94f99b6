//! Qwen2 and Qwen2.5, dense: Llama (see [`super::llama`]) with biases on q, k and v and on nothing else.

use crate::model::config::Family;
use crate::model::error::Result;
use crate::model::fields::Fields;

pub(crate) fn family(_f: &Fields) -> Result<Family> {
    Ok(Family { qk_norm: false, qkv_bias: true, o_bias: false, mlp_bias: false, rope_theta: 1_000_000.0 })
}
