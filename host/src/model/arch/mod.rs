//! The architectures: what each `model_type` sets apart in the shared decoder block.

pub(crate) mod llama;
pub(crate) mod qwen2;
pub(crate) mod qwen3;
