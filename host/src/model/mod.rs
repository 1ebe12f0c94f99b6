//! From a checkpoint to a model that runs.
//!
//! A base is a directory in MLX layout and is only ever read. [`Model::load`] checks everything a file
//! says before it is used; what it answers runs on the thread that loaded it.

mod arch;
pub mod awake;
pub mod batch;
mod block;
mod cache;
pub mod chat;
pub mod checkpoint;
pub mod config;
mod decoder;
mod divergence;
mod error;
mod fields;
mod finite;
pub mod generate;
pub mod gguf;
pub mod hash;
pub mod hub;
pub mod inspect;
pub mod ladder;
pub mod layout;
mod linear;
pub mod paths;
mod pivot;
pub mod pypi;
pub mod registry;
pub mod rope;
pub mod safetensors;
pub mod sample;
pub mod single;
pub mod slice_timing;
pub mod store;
pub mod tensor_file;
pub mod timing;
pub mod tokenizer;
mod weights;

pub use block::Tap;
pub use cache::{KvCache, LayerCache};
pub use config::Config;
pub use decoder::{LoadOptions, Model, Resident, SliceMeta};
pub use error::{Error, Result};
pub use generate::{Finish, GenerateOptions, Generation, generate};
pub use ladder::{Level, Levels};
pub use linear::{Added, Factors};
pub use sample::Sampling;
pub use tokenizer::Tokenizer;
