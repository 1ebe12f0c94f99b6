//! The only room that touches mlx-rs directly: start-up, devices, memory, kernels, linear algebra.
//!
//! MLX streams belong to threads, so one thread owns every lazy array; evaluated arrays and plain
//! vectors may travel. Shapes and indices are checked before they reach MLX, which checks neither
//! gathers nor allocations.

pub mod composed;
pub mod decode;
pub mod device;
#[cfg(target_os = "linux")]
mod ffi;
pub mod files;
#[cfg(test)]
mod kernel_tests;
pub mod kernels;
#[cfg(target_os = "linux")]
pub mod layer;
pub mod memory;
pub mod project;
#[cfg(test)]
mod project_tests;
pub mod quant;
pub mod randomized;
pub mod spectral;
pub mod workers;

pub use mlx_rs::{Array, Dtype};

/// An MLX operation failed; `what` names the operation in the caller's words.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {}", plainly(exception.what()))]
pub struct MlxError {
    /// What was being done.
    pub what: String,
    /// MLX's own text.
    pub exception: mlx_rs::error::Exception,
}

/// MLX's words without the place in its source code.
pub fn plainly(what: &str) -> &str {
    let what = what.trim_matches('"');
    what.find(" at mlx-c/").map_or(what, |end| &what[..end])
}

impl From<mlx_rs::error::Exception> for MlxError {
    fn from(exception: mlx_rs::error::Exception) -> Self {
        MlxError { what: "MLX".into(), exception }
    }
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, MlxError>;

/// Adds the caller's words to an MLX error.
pub trait Context<T> {
    /// Names what was being done.
    fn context(self, what: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, mlx_rs::error::Exception> {
    fn context(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|exception| MlxError { what: what.into(), exception })
    }
}

/// Evaluates arrays now.
///
/// # Errors
/// Whatever MLX reports from the delayed computation, I/O included.
pub fn eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    mlx_rs::transforms::eval(arrays).context("evaluating arrays")
}

/// Whether MLX computes on the CPU here.
pub fn on_cpu() -> bool {
    mlx_rs::Device::default().to_string().contains("cpu")
}
