//! Compression: from a base to an elastic checkpoint, and what can be done with one.
//!
//! What flows through: calibration statistics → spectra of the slices → a policy's plan ([`plan`]) → the components of
//! every slice, ordered by what they are worth and rounded ([`encode`]), one part file a slice ([`work`]) → a
//! directory ([`assemble`]) with a [`manifest`] that names the base, the plan and what is awake. [`budget`] says which
//! components a smaller budget wakes. [`job`] drives it and can go on after an interruption with the same bytes.
//! [`inspect`] says what such a directory holds and what less of it would cost, [`picture`] draws that, and [`restore`]
//! has the base back bit for bit.
//!
//! From an elastic checkpoint fixed ones are made ([`fixed`]): dense ([`materialise`]) or with larger ranks in the same
//! bytes ([`pivoted`]).
//!
//! The base is only read. The new directory appears whole or not at all; errors name the file or the slice.

pub mod assemble;
pub mod budget;
pub mod encode;
pub mod error;
pub mod fixed;
pub mod inspect;
pub mod job;
pub mod manifest;
pub mod materialise;
pub mod picture;
pub mod pivot;
pub mod pivot_budget;
pub mod pivoted;
pub mod plan;
pub mod refine;
pub mod residual;
pub mod restore;
pub mod settings;
pub mod work;

pub use error::{Error, Result};
pub use manifest::Manifest;
pub use settings::Settings;
