//! Made-up statistics: families of spectra such as trained layers have, and ways to damage them.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Shapes of a spectrum, largest value first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// k to the power of -a.
    PowerLaw,
    /// A few large values, then small ones.
    Step,
    /// A power law over a floor of noise.
    NoiseFloor,
    /// All alike.
    Flat,
    /// One value, then nothing.
    OneValue,
    /// Falls by a constant factor.
    Geometric,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 6] =
        [Family::PowerLaw, Family::Step, Family::NoiseFloor, Family::Flat, Family::OneValue, Family::Geometric];

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Family::PowerLaw => "power law",
            Family::Step => "step",
            Family::NoiseFloor => "noise floor",
            Family::Flat => "flat",
            Family::OneValue => "one value",
            Family::Geometric => "geometric",
        }
    }

    /// `len` values, largest first, finite, not negative.
    fn draw(self, len: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let scale: f32 = rng.random_range(0.5..2.0);
        let slope: f32 = rng.random_range(0.3..2.0);
        let knee = rng.random_range(0..len.max(1)) / 4 + 1;
        let value = |k: usize| match self {
            Family::PowerLaw => (k as f32 + 1.0).powf(-slope),
            Family::Step => {
                if k < knee {
                    1.0
                } else {
                    0.01
                }
            }
            Family::NoiseFloor => ((k as f32 + 1.0).powf(-1.0 - slope)).hypot(0.02),
            Family::Flat => 1.0,
            Family::OneValue => f32::from(u8::from(k == 0)),
            Family::Geometric => (-(k as f32) * slope * 8.0 / len.max(1) as f32).exp(),
        };
        (0..len).map(|k| scale * value(k)).collect()
    }
}

/// What is done to spectra that a careful policy survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// Nothing.
    None,
    /// The largest value is no number.
    NanFirst,
    /// No value is a number.
    NanAll,
    /// The largest value is infinite.
    Infinite,
    /// Values below zero.
    Negative,
    /// Values too small for full precision.
    Denormal,
    /// The largest finite numbers: their squares overflow in 32 bits.
    Largest,
    /// Zeros.
    Zero,
    /// Smallest first.
    Unsorted,
    /// Half as many values as components.
    Short,
    /// No value at all.
    Empty,
    /// No series at all.
    Missing,
}

impl Damage {
    pub(super) const ALL: [Damage; 11] = [
        Damage::NanFirst,
        Damage::NanAll,
        Damage::Infinite,
        Damage::Negative,
        Damage::Denormal,
        Damage::Largest,
        Damage::Zero,
        Damage::Unsorted,
        Damage::Short,
        Damage::Empty,
        Damage::Missing,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Damage::None => "sound values",
            Damage::NanFirst => "a NaN first",
            Damage::NanAll => "NaN only",
            Damage::Infinite => "an infinite value",
            Damage::Negative => "negative values",
            Damage::Denormal => "denormal values",
            Damage::Largest => "the largest finite values",
            Damage::Zero => "zeros",
            Damage::Unsorted => "values smallest first",
            Damage::Short => "half of the values",
            Damage::Empty => "no values",
            Damage::Missing => "no series",
        }
    }

    pub(super) fn apply(self, values: &mut Vec<f32>) {
        match self {
            Damage::None => {}
            Damage::NanFirst => values.iter_mut().take(1).for_each(|v| *v = f32::NAN),
            Damage::NanAll => values.fill(f32::NAN),
            Damage::Infinite => values.iter_mut().take(1).for_each(|v| *v = f32::INFINITY),
            Damage::Negative => values.iter_mut().for_each(|v| *v = -*v),
            Damage::Denormal => values.iter_mut().for_each(|v| *v *= 1e-42),
            Damage::Largest => values.fill(f32::MAX),
            Damage::Zero => values.fill(0.0),
            Damage::Unsorted => values.reverse(),
            Damage::Short => values.truncate(values.len() / 2),
            Damage::Empty | Damage::Missing => values.clear(),
        }
    }
}

/// A generator for one purpose of one case.
pub(super) fn rng(seed: u64, purpose: impl Hash) -> ChaCha8Rng {
    // DefaultHasher::new() has fixed keys: the same on every machine and run.
    let mut hasher = DefaultHasher::new();
    (seed, purpose).hash(&mut hasher);
    ChaCha8Rng::seed_from_u64(hasher.finish())
}

/// The statistic `need` of a slice with `rank` components; none where the contract knows no such one.
pub(super) fn statistic(need: &str, family: Family, rank: usize, seed: u64, slice: u64) -> Option<Vec<f32>> {
    let (kind, detail) = need.split_once(':')?;
    // The shape belongs to the slice, its noise to the statistic.
    let mut shape = rng(seed, slice);
    let mut own = rng(seed, (slice, need));
    Some(match kind {
        "spectrum" => {
            let gain: f32 = if detail == "plain" { own.random_range(1.0..30.0) } else { 1.0 };
            family.draw(rank, &mut shape).into_iter().map(|v| gain * v).collect()
        }
        "trace" => vec![own.random_range(0.1..10.0)],
        "sensitivity" => vec![own.random_range(0.0..0.2), own.random_range(0.0..0.02)],
        "gradient" | "importance" => (0..rank).map(|_| own.random_range(0.0..1.0)).collect(),
        _ => return None,
    })
}

/// Whether the contract names this statistic; what is wrong with the name otherwise.
pub(super) fn check_need(need: &str) -> Result<(), String> {
    let metric = |m: &str| matches!(m, "plain" | "input" | "fisher");
    let good = match need.split_once(':') {
        Some(("spectrum" | "gradient" | "importance", m)) => metric(m),
        Some(("trace", m)) => matches!(m, "input" | "output"),
        Some(("sensitivity", share)) => share.parse::<f64>().is_ok_and(|s| s > 0.0 && s < 1.0),
        _ => false,
    };
    match good {
        true => Ok(()),
        false => Err(format!("`{need}` is no statistic of this contract")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_family_falls_and_is_reproducible() {
        for family in Family::ALL {
            let draw = |seed| statistic("spectrum:fisher", family, 40, seed, 3).unwrap();
            let values = draw(7);
            assert_eq!(values, draw(7));
            assert_eq!(values.len(), 40);
            assert!(values.windows(2).all(|w| w[0] >= w[1]), "{family:?}: {values:?}");
            assert!(values.iter().all(|v| v.is_finite() && *v >= 0.0) && values[0] > 0.0);
        }
        assert_ne!(
            statistic("spectrum:fisher", Family::PowerLaw, 4, 1, 0),
            statistic("spectrum:fisher", Family::PowerLaw, 4, 1, 1)
        );
    }

    #[test]
    fn needs_are_the_contracts() {
        for good in ["spectrum:fisher", "trace:output", "sensitivity:0.25", "importance:plain"] {
            check_need(good).unwrap();
            assert!(statistic(good, Family::Flat, 3, 0, 0).is_some());
        }
        for bad in ["spectrum", "spectrum:best", "trace:plain", "sensitivity:1.5", "colour:red", ""] {
            assert!(check_need(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn damage_does_what_its_name_says() {
        let damaged = |d: Damage| {
            let mut v = vec![3.0, 2.0, 1.0];
            d.apply(&mut v);
            v
        };
        assert!(damaged(Damage::NanFirst)[0].is_nan() && damaged(Damage::NanFirst)[1] == 2.0);
        assert_eq!(damaged(Damage::Unsorted), [1.0, 2.0, 3.0]);
        assert!(damaged(Damage::Denormal).iter().all(|v| *v > 0.0 && !v.is_normal()));
        assert_eq!(damaged(Damage::Short).len(), 1);
    }
}
