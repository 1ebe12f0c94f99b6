//! The statistics a policy can ask for, by name, and how each is computed. Nothing is computed that
//! nobody asked for, and everything once a run: the base does not change.

use super::elastic::{Elastic, ElasticError};
use super::factor::Metric;
use super::moments::Moments;
use crate::model::Error as ModelError;
use crate::plugin::contract::{Observation, Series};
use std::collections::BTreeMap;

/// A statistic of every slice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    /// Singular values in one metric, largest first.
    Spectrum(Metric),
    /// Trace of the covariance of the slice's inputs, per token: one value.
    InputTrace,
    /// Trace of the covariance of the loss gradients at its outputs, per token: one value.
    OutputTrace,
    /// Measured rise of the loss while the slice alone keeps this share of its components, and its
    /// standard error: two values, nats per token.
    Sensitivity(f64),
}

/// What this host offers in phase `compress`, for messages.
pub const OFFERED: &str = "spectrum:plain, spectrum:input, spectrum:fisher, trace:input, trace:output and sensitivity:SHARE such as sensitivity:0.5";

/// Statistics by name, slice by slice.
pub type Computed = BTreeMap<String, Vec<Vec<f32>>>;

/// The statistics a policy is shown, in the order of `needs`: where they lie, and their values.
pub fn series(needs: &[String], computed: &Computed) -> (Vec<Series>, Vec<f32>) {
    let (mut series, mut values) = (Vec::new(), Vec::new());
    for (need, name) in (0u32..).zip(needs) {
        for (slice, s) in (0u32..).zip(computed.get(name).into_iter().flatten()) {
            series.push(Series { slice, need, offset: values.len() as u32, len: s.len() as u32 });
            values.extend_from_slice(s);
        }
    }
    (series, values)
}

/// Finds a statistic of a slice in an observation.
pub fn spectra_of<'a>(observation: &'a Observation) -> impl Fn(u32, u32) -> Option<&'a [f32]> {
    |slice, need| {
        let s = observation.series.iter().find(|s| s.slice == slice && s.need == need)?;
        observation.values.get(s.offset as usize..(s.offset + s.len) as usize)
    }
}

impl Statistic {
    /// From its name in the contract; `None` where this host does not offer it.
    pub fn parse(need: &str) -> Option<Statistic> {
        match need {
            "trace:input" => Some(Statistic::InputTrace),
            "trace:output" => Some(Statistic::OutputTrace),
            _ => match need.strip_prefix("sensitivity:") {
                Some(share) => {
                    let share: f64 = share.parse().ok()?;
                    (share > 0.0 && share < 1.0).then_some(Statistic::Sensitivity(share))
                }
                None => Metric::from_need(need).map(Statistic::Spectrum),
            },
        }
    }

    /// Whether calibration text must be at hand.
    pub fn needs_moments(self) -> bool {
        match self {
            Statistic::Spectrum(metric) => metric.needs_moments(),
            Statistic::InputTrace | Statistic::OutputTrace => true,
            // Components are put to sleep in the order of what they cost.
            Statistic::Sensitivity(_) => true,
        }
    }

    /// Its values, slice by slice.
    ///
    /// # Errors
    /// When a slice cannot be decomposed or scored, or on interruption.
    pub fn compute(
        self,
        elastic: &mut Elastic,
        moments: Option<&Moments>,
        windows: &[Vec<u32>],
        progress: &mut dyn FnMut(usize, usize, &str) -> bool,
    ) -> Result<Vec<Vec<f32>>, ElasticError> {
        match self {
            Statistic::Spectrum(metric) => elastic.spectra(metric, moments, progress),
            Statistic::InputTrace => elastic.traces(moments, false),
            Statistic::OutputTrace => elastic.traces(moments, true),
            Statistic::Sensitivity(share) => sensitivities(elastic, share, moments, windows, progress),
        }
    }
}

/// Windows a sensitivity is measured on: enough for its sign, few enough for hundreds of slices.
const PROBE_WINDOWS: usize = 4;

/// Puts each slice in turn to sleep down to a share of its components, and scores.
fn sensitivities(
    elastic: &mut Elastic,
    share: f64,
    moments: Option<&Moments>,
    windows: &[Vec<u32>],
    progress: &mut dyn FnMut(usize, usize, &str) -> bool,
) -> Result<Vec<Vec<f32>>, ElasticError> {
    let probes = crate::eval::data::spread(windows, PROBE_WINDOWS);
    let before = elastic.snapshot();
    let out = elastic.each_alone(share, moments, progress, &mut |model| {
        let rows = model.score(&probes)?;
        // Sums in f64: differences of losses are small beside the losses.
        Ok(rows.iter().map(|w| w.iter().map(|l| f64::from(*l)).sum::<f64>() / w.len().max(1) as f64).collect())
    });
    elastic.restore(&before);
    let (base, alone): (Vec<f64>, Vec<Vec<f64>>) = out?;
    Ok(alone.iter().map(|slice| rise(&base, slice)).collect())
}

/// Mean of the paired differences and its standard error.
fn rise(base: &[f64], now: &[f64]) -> Vec<f32> {
    let differences: Vec<f64> = now.iter().zip(base).map(|(n, b)| n - b).collect();
    let n = differences.len().max(1) as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    vec![mean as f32, (variance / n).sqrt() as f32]
}

/// A model's losses on the probes, one a window.
pub type Probe<'a> = dyn FnMut(&crate::model::Model) -> Result<Vec<f64>, ModelError> + 'a;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_are_not() {
        assert_eq!(Statistic::parse("spectrum:fisher"), Some(Statistic::Spectrum(Metric::Fisher)));
        assert_eq!(Statistic::parse("trace:output"), Some(Statistic::OutputTrace));
        assert_eq!(Statistic::parse("sensitivity:0.5"), Some(Statistic::Sensitivity(0.5)));
        for unknown in ["sensitivity:0", "sensitivity:1", "sensitivity:nan", "sensitivity:", "spectrum:best", "trace"] {
            assert_eq!(Statistic::parse(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_rise_is_paired() {
        let rise = rise(&[1.0, 3.0], &[1.5, 3.1]);
        assert!((rise[0] - 0.3).abs() < 1e-6 && (rise[1] - 0.2).abs() < 1e-6, "{rise:?}");
    }
}
