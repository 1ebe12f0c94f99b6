//! Skill packs: small LoRA adapters that add a domain to a base.

pub mod ablate;
pub mod attach;
pub mod consult;
pub mod error;
pub mod format;
#[cfg(test)]
mod golden_tests;
pub mod key;
pub mod ledger;
pub mod merge;
pub mod picture;
pub mod product;
pub mod ranks;
pub mod rerank;
pub mod store;
pub mod train;

pub use error::{Error, Result};
pub use format::{Adapter, Matrix, Meta, Pack, Profile};
pub use store::{Store, Weighted};
