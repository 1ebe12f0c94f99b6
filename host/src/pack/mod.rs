//! Skill packs: small LoRA adapters that add a domain to a base.

pub mod attach;
pub mod bakeoff;
pub mod compare;
pub mod domains;
pub mod error;
pub mod format;
pub mod guard;
pub mod judge;
pub mod key;
pub mod parked;
pub mod route;
pub mod store;
pub mod thinking;
pub mod train;

pub use error::{Error, Result};
pub use format::{Adapter, Matrix, Meta, Pack, Profile};
pub use store::{Store, Weighted};
