//! Skill packs: small LoRA adapters that add a domain to a base.

pub mod attach;
pub mod error;
pub mod exchange;
pub mod format;
pub mod fuse;
pub mod in_use;
pub mod key;
pub mod probe;
pub mod store;
pub mod tensor_file;
pub mod train;

pub use error::{Error, Result};
pub use format::{Adapter, Matrix, Meta, Pack, Profile};
pub use in_use::{InUse, Used};
pub use store::{Store, Weighted};
