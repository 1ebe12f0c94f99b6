//! A native library in a process of its own: its crash, its exit and its endless loop are a
//! [`Fault`](crate::plugin::Fault), not ours.
//!
//! The process is this program again (`plugin serve`), with a cleared environment, nothing on
//! standard input, and what the plugin prints on either output taken as log lines. It speaks over
//! one socket ([`message`], [`wire`]): the parent asks, the child answers, an evaluator's questions
//! come back the same way. The child ends when its parent does. It is no sandbox: the library still
//! has the rights of the user.

pub(in super::super) mod message;
mod process;
mod serve;
pub(in super::super) mod wire;

pub use process::Isolation;
pub use serve::{Served, serve};
