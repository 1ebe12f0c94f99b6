//! What singular values tell. All sums are in double precision, values come largest first.

use crate::observation::SliceView;

crate::choices! {
    /// How singular values are measured; the option of a policy that lets its user choose.
    pub enum Spectrum {
        /// Whitened on both sides: in units of loss.
        Fisher = "fisher",
        /// Whitened by the covariance of the inputs: in units of the slice's output.
        Input = "input",
        /// The weights themselves.
        Plain = "plain",
    }
}

/// The spectrum of a slice, where it can be used.
///
/// # Errors
/// The host sent none, or a value is no number; the text names the slice.
pub fn checked<'a>(slice: SliceView<'a>, metric: &str) -> Result<&'a [f32], String> {
    let values = slice.spectrum(metric);
    if values.is_empty() {
        return Err(format!("the host sent no {metric} spectrum of {}", slice.name()));
    }
    match values.iter().find(|v| !v.is_finite()) {
        Some(bad) => Err(format!("the {metric} spectrum of {} contains {bad}", slice.name())),
        None => Ok(values),
    }
}

/// The energy of one component: its singular value squared.
pub fn square(value: f32) -> f64 {
    f64::from(value) * f64::from(value)
}

/// The energy of all components but the `rank` largest. Adds the smallest first, to lose no digits.
pub fn tail(values: &[f32], rank: usize) -> f64 {
    values.iter().skip(rank).rev().map(|s| square(*s)).sum()
}

/// The share of the energy that the `rank` largest components hold, in percent; 100 where there is none.
pub fn held_percent(values: &[f32], rank: usize) -> f64 {
    let total = tail(values, 0);
    if total > 0.0 { 100.0 * (1.0 - tail(values, rank) / total) } else { 100.0 }
}

/// The fewest components that hold `share` of the energy; at least one where there is one.
pub fn energy_rank(values: &[f32], share: f64) -> usize {
    let may_lose = (1.0 - share) * tail(values, 0);
    let mut lost = 0.0;
    let mut rank = values.len();
    while rank > 1 {
        lost += square(values[rank - 1]);
        if lost > may_lose {
            break;
        }
        rank -= 1;
    }
    rank
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Energies 16, 9, 4, 1: 30 in all.
    const VALUES: [f32; 4] = [4.0, 3.0, 2.0, 1.0];

    #[test]
    fn energies_by_hand() {
        assert_eq!((0..6).map(|r| tail(&VALUES, r)).collect::<Vec<_>>(), [30.0, 14.0, 5.0, 1.0, 0.0, 0.0]);
        assert_eq!(held_percent(&VALUES, 2), 100.0 * (1.0 - 5.0 / 30.0));
        assert_eq!(held_percent(&[0.0, 0.0], 1), 100.0);
    }

    #[test]
    fn energy_ranks_by_hand() {
        let rank = |share| energy_rank(&VALUES, share);
        assert_eq!((rank(0.0), rank(0.5), rank(0.6), rank(0.8), rank(0.9), rank(1.0)), (1, 1, 2, 2, 3, 4));
        assert_eq!((energy_rank(&[], 0.5), energy_rank(&[0.0, 0.0], 0.5)), (0, 1));
    }
}
