//! Data sets and perplexity.

pub mod data;
pub mod perplexity;
mod rows;
