//! Data sets, perplexity, and what measurements are worth.

pub mod data;
pub mod perplexity;
mod rows;
pub mod stats;
mod thin;
