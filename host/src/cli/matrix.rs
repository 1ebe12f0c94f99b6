//! Options that name a matrix and say how to decompose it, shared by `export` and `bench`.

use super::{Global, base};
use crate::mlx::randomized;
use crate::plastic::compactness::Method;
use crate::plastic::matrix_file::{Matrix, Source};

/// Reads the matrix that a source names; a module's base is found, fetched or imported first.
///
/// # Errors
/// When it cannot be had; the message names the file and the remedy.
pub fn open(source: &Source, g: &Global) -> anyhow::Result<Matrix> {
    source.read(|spec| Ok(base::open(&Some(spec.to_owned()), g)?.dir))
}

/// How to decompose.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Svd {
    /// The whole decomposition, in float64
    #[default]
    Exact,
    /// The leading part only, from a few products with a seeded random matrix; for large matrices
    #[value(alias = "randomised")]
    Randomized,
}

/// Options of a decomposition.
#[derive(clap::Args, Clone, Debug)]
#[group(id = "SvdOptions", multiple = true)]
pub struct SvdOptions {
    /// How to decompose the weight
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub svd: Svd,
    /// With --svd randomized: columns drawn beyond the rank
    #[arg(long, value_name = "N", default_value_t = randomized::OVERSAMPLES)]
    pub oversamples: u32,
    /// With --svd randomized: power iterations; more for spectra that fall slowly
    #[arg(long, value_name = "N", default_value_t = randomized::POWER_ITERATIONS, value_parser = clap::value_parser!(u32).range(..=100))]
    pub power_iterations: u32,
}

impl SvdOptions {
    /// The method, with this seed.
    pub fn method(&self, seed: u64) -> Method {
        match self.svd {
            Svd::Exact => Method::Exact,
            Svd::Randomized => {
                Method::Randomized { oversamples: self.oversamples, power_iterations: self.power_iterations, seed }
            }
        }
    }
}
