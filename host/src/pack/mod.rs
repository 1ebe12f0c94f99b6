//! Skill packs: small LoRA adapters that add a domain to a base.

pub mod ablate;
pub mod attach;
pub mod bakeoff;
pub mod compare;
pub mod consult;
pub mod domains;
pub mod error;
pub mod exchange;
pub mod format;
pub mod fuse;
#[cfg(test)]
mod golden_tests;
pub mod guard;
pub mod in_use;
pub mod judge;
pub mod key;
pub mod ledger;
pub mod merge;
pub mod parked;
pub mod picture;
pub mod probe;
pub mod product;
pub mod ranks;
pub mod rerank;
pub mod route;
pub mod store;
pub mod thinking;
pub mod train;

pub use error::{Error, Result};
pub use format::{Adapter, Matrix, Meta, Pack, Profile};
pub use in_use::{InUse, Used};
pub use store::{Store, Weighted};
