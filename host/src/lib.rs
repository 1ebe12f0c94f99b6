//! Runs language models on MLX with rank that can sleep and wake, decided by plugins.
//!
//! Imports run one way: `cli → {pack, plastic, eval, report} → {model, plugin} → mlx`.

pub mod cli;
pub mod eval;
pub mod mlx;
pub mod model;
pub mod plastic;
pub mod plugin;
pub mod report;
