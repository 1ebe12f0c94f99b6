//! Where what a plugin sends enters the host, without a plugin around it: for the fuzz targets in
//! `fuzz/` and the test that replays their inputs. Nothing else calls through here.
#![doc(hidden)]

pub use super::answer::{info as check_info, plan as check_plan, verdict as check_verdict};
pub use super::native::isolate::message::{Call, Question, Reply, bytes as frame, receive};
pub use super::native::isolate::wire::{Wire, read as read_frame};
pub use super::native::records::{info as read_info, plan as read_plan, verdict as read_verdict, with_observation};
