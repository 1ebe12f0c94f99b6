//! Ranks from the base's own weights, as mlx-plastic-rank's `--rank-strategy` has them: the number of singular
//! values of a target's weight in the first layer that hold a share of the energy, rounded up to a rank of the
//! profile. `stable` counts the energy of W (σ²), `theorem` that of W Wᵀ (σ⁴). The names are the Python program's;
//! its search behind `theorem` never leaves that starting point, so this is its result.

use super::super::error::Result;
use super::super::format::Profile;
use super::super::key;
use super::options::Rule;
use crate::mlx::spectral;
use crate::model::Model;
use serde::{Deserialize, Serialize};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// The energy of W
    Stable,
    /// The energy of W times its transpose
    Theorem,
}

/// A strategy and the share of the energy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Auto {
    /// Strategy.
    pub strategy: Strategy,
    /// Share of the energy to hold.
    pub share: f64,
}

/// Ranks of the chosen targets, by the pattern of each.
///
/// # Errors
/// When a weight cannot be decomposed or a pattern is none.
pub fn rules(auto: &Auto, layers: &[String], model: &Model, profile: Profile) -> Result<Vec<Rule<u32>>> {
    let mut out = Vec::new();
    for (position, s) in model.slices().iter().enumerate().filter(|(_, s)| s.layer == 0) {
        let mut chosen = false;
        // A pattern for a later layer chooses its kind here.
        for other in model.slices().iter().filter(|o| o.kind == s.kind) {
            for pattern in layers {
                chosen |= key::matches(pattern, other).map_err(super::super::error::Error::Other)?;
            }
        }
        if !chosen {
            continue;
        }
        let w = model.dense_weight(position)?;
        let gram = match w.dim(0) <= w.dim(1) {
            true => spectral::matmul(&w, &w.transpose()?)?,
            false => spectral::matmul(&w.transpose()?, &w)?,
        };
        let squares = spectral::to_vec(&spectral::eigenvalues(&gram)?)?;
        let rank = energy_rank(&squares, auto);
        let value = profile.ladder().iter().copied().find(|r| *r >= rank).or(profile.ladder().last().copied());
        out.push(Rule { slices: s.kind.clone(), value: value.unwrap_or(rank) });
    }
    Ok(out)
}

/// The fewest of the largest squares of singular values that hold the share; at least 1.
fn energy_rank(squares: &[f64], auto: &Auto) -> u32 {
    let energy = |x: &f64| match auto.strategy {
        Strategy::Stable => x.max(0.0),
        Strategy::Theorem => x.max(0.0).powi(2),
    };
    let total: f64 = squares.iter().map(energy).sum();
    if total <= 0.0 {
        return 1;
    }
    let mut sum = 0.0;
    for (i, x) in squares.iter().enumerate() {
        sum += energy(x);
        if sum / (total + 1e-12) >= auto.share {
            return i as u32 + 1;
        }
    }
    squares.len().max(1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases of the Python program: exact ties round up, all of the energy is the full dimension, nothing is one.
    #[test]
    fn ranks_are_those_of_the_python_program() {
        let rank = |sigmas: &[f64], strategy, share| {
            energy_rank(&sigmas.iter().map(|s| s * s).collect::<Vec<_>>(), &Auto { strategy, share })
        };
        assert_eq!(rank(&[3.0, 2.0, 0.0, 0.0], Strategy::Stable, 1.0), 4);
        assert_eq!(rank(&[4.0, 3.0], Strategy::Stable, 0.64), 2);
        assert_eq!(rank(&[0.0, 0.0], Strategy::Stable, 0.9), 1);
        let sigmas = [9.0, 7.0, 5.0, 3.0, 2.0, 1.0];
        assert_eq!((rank(&sigmas, Strategy::Stable, 0.9), rank(&sigmas, Strategy::Theorem, 0.9)), (3, 2));
    }
}
