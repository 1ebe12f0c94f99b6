//! Skill packs: small LoRA adapters that add a domain to a base.

pub mod ablate;
pub mod attach;
pub mod consult;
pub mod error;
pub mod exchange;
pub mod format;
pub mod fuse;
#[cfg(test)]
mod golden_tests;
pub mod in_use;
pub mod key;
pub mod ledger;
pub mod merge;
pub mod picture;
pub mod probe;
pub mod product;
pub mod ranks;
pub mod rerank;
pub mod store;
pub mod tensor_file;
pub mod train;

pub use error::{Error, Result};
pub use format::{Adapter, Matrix, Meta, Pack, Profile};
pub use in_use::{InUse, Used};
pub use store::{Store, Weighted};
