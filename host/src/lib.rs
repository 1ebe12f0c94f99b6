//! Runs language models on MLX with rank that can sleep and wake, decided by plugins.
//!
//! Imports run one way: `cli → {compress, pack, plastic, eval} → {model, plugin} → mlx`; `atomic` and `calm` serve all.

pub mod atomic;
pub mod calm;
pub mod cli;
pub mod compress;
pub mod eval;
pub mod mlx;
pub mod model;
pub mod pack;
pub mod plastic;
pub mod plugin;
