//! SDK for plastic-host plugins.
//!
//! A *policy* is told what a model looks like and answers which of its rank components sleep and
//! wake. An *evaluator* measures the changed model and accepts or rejects the change. Neither holds
//! a tensor, so neither can hurt the model: the host checks every answer and can take it back.
//!
//! A policy is one `impl RankPolicy` and one `export_policy!`:
//!
//! ```
//! use plastic_plugin::prelude::*;
//!
//! #[derive(Default)]
//! struct Halve;
//!
//! impl RankPolicy for Halve {
//!     type Options = NoOptions;
//!
//!     fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
//!         let mut plan = Plan::new();
//!         for slice in seen.slices() {
//!             plan.set_rank(slice, slice.max_rank() / 2, "half of everything");
//!         }
//!         Ok(plan)
//!     }
//! }
//!
//! export_policy!(Halve);
//! ```
//!
//! `plastic-host plugin build` turns the crate (`crate-type = ["cdylib", "rlib"]`) into a component
//! that any 1.x host loads. The same crate also builds natively, so `cargo test` exercises it with
//! the pretend model of [`testing`], without a host and without a checkpoint. With `--native` it
//! becomes a native library instead, for hosts that allow those.
//!
//! | to | see |
//! | --- | --- |
//! | decide on ranks | [`RankPolicy`], [`Observation`], [`Plan`] |
//! | judge a changed model | [`Evaluator`], [`Measure`], [`Verdict`] |
//! | share parameters out over slices | [`water`], [`level`], [`keep`], [`goal`] |
//! | compare candidate and base | [`compare`], [`answers`], [`stats`] |
//! | take typed options | [`options!`], [`choices!`] |
//! | tell the operator something | [`info!`], [`warn!`] and their kin |
//! | test natively | [`testing`] |

// Macros name this crate; here too, where the SDK uses its own.
extern crate self as plastic_plugin;

#[cfg(all(feature = "native", not(target_arch = "wasm32")))]
pub mod abi;
pub mod answers;
#[doc(hidden)]
pub mod bindings;
pub mod compare;
mod convert;
pub mod evaluator;
pub mod goal;
pub mod keep;
pub mod level;
pub mod logging;
#[cfg(all(feature = "native", not(target_arch = "wasm32")))]
#[doc(hidden)]
pub mod native;
pub mod observation;
pub mod options;
pub mod plan;
pub mod policy;
pub mod records;
pub mod spectrum;
pub mod stats;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
pub mod verdict;
pub mod water;

pub use evaluator::{Evaluator, Measure, Subject};
pub use observation::{Observation, SliceView};
pub use options::{NoOptions, Options};
pub use plan::{Action, Change, Plan, SliceId};
pub use policy::RankPolicy;
pub use records::{Attribute, Example, Metric, Outcome, Run, Slice, SliceState, Value};
pub use serde; // for the macros
pub use verdict::{Decision, Task, Verdict};

/// Everything a plugin usually needs.
pub mod prelude {
    pub use crate::{
        Evaluator, Measure, Metric, NoOptions, Observation, Plan, RankPolicy, Run, Slice, SliceView, Subject, Task,
        Verdict, debug, error, export_evaluator, export_policy, info, trace, warn,
    };
}

/// What [`abi`] calls its records.
#[cfg(all(feature = "native", not(target_arch = "wasm32")))]
mod shared {
    pub use crate::plan::Change;
    pub use crate::records::{Attribute, Metric, Value};
}

/// Defines the symbol a native library is known by; the export macros call it.
#[cfg(all(feature = "native", not(target_arch = "wasm32")))]
#[doc(hidden)]
#[macro_export]
macro_rules! __native_entry {
    ($entry:ident, $exported:ty) => {
        #[unsafe(export_name = "plastic_plugin_entry")]
        static ENTRY: $crate::abi::Entry = $crate::__private::native::$entry::<$exported>();
    };
}

/// Without the feature `native` there is none.
#[cfg(not(all(feature = "native", not(target_arch = "wasm32"))))]
#[doc(hidden)]
#[macro_export]
macro_rules! __native_entry {
    ($entry:ident, $exported:ty) => {};
}

/// What the export macros expand to; not part of the interface.
#[doc(hidden)]
pub mod __private {
    pub use crate::bindings::{evaluator, policy};
    pub use crate::evaluator::{EvaluatorAdapter, ExportedEvaluator};
    #[cfg(all(feature = "native", not(target_arch = "wasm32")))]
    pub use crate::native;
    pub use crate::policy::{ExportedPolicy, Identity, PolicyAdapter};
}
