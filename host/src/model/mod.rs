//! From a checkpoint to a model that runs.

pub mod atomic;
pub mod hash;
pub mod paths;
pub mod registry;
