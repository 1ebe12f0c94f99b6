//! Load shapes: how many requests arrive at each step.
//!
//! A shape is a pure function of the number of steps and the peak, so that a picture of it can be
//! drawn before anything runs. A file gives the numbers themselves. Fails on a file that is too
//! large, has no numbers, or one that is none.

use std::path::Path;

/// Requests at one step at most.
pub const MOST_REQUESTS: u32 = 10_000;
/// Steps at most.
pub const MOST_STEPS: u32 = 10_000;
/// Bytes of a load file at most.
const MOST_BYTES: u64 = 1 << 20;

/// A load that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{path}: {source}; name wave, ramp, spike or a file with a number of requests a line")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Something in the file is no number of requests.
    #[error(
        "{path}, line {line}: {found:?} is no number of requests; expected a whole number from 0 to {MOST_REQUESTS}"
    )]
    Number {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// What stands there.
        found: String,
    },
    /// The file holds no or too many numbers.
    #[error(
        "{path}: has {found} numbers of requests; expected from 1 to {MOST_STEPS}, separated by spaces, commas or line ends"
    )]
    Count {
        /// The file.
        path: String,
        /// How many.
        found: usize,
    },
}

/// How a load goes up and down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One smooth hill in the first seven tenths of the steps, then quiet.
    Wave,
    /// Up evenly to the middle, then down evenly.
    Ramp,
    /// All at once after a fifth of the steps, for three tenths of them, and gone as suddenly.
    Spike,
}

impl Shape {
    /// From its name.
    pub fn parse(name: &str) -> Option<Shape> {
        match name {
            "wave" => Some(Shape::Wave),
            "ramp" => Some(Shape::Ramp),
            "spike" => Some(Shape::Spike),
            _ => None,
        }
    }

    /// Height of the load at a step `at` of `steps` (from 0), between 0 and 1.
    fn height(self, at: u32, steps: u32) -> f64 {
        let (at, steps) = (f64::from(at), f64::from(steps.max(1)));
        match self {
            Shape::Wave => {
                let along = at / (0.7 * steps);
                if along < 1.0 { (std::f64::consts::PI * along).sin().powi(2) } else { 0.0 }
            }
            Shape::Ramp => {
                let middle = 0.5 * (steps - 1.0).max(1.0);
                1.0 - (at - middle).abs() / middle
            }
            Shape::Spike => f64::from(at >= (0.2 * steps).floor() && at < (0.5 * steps).ceil()),
        }
    }

    /// Requests at each of `steps` steps: 1 where it is quiet, `peak` at the top.
    pub fn requests(self, steps: u32, peak: u32) -> Vec<u32> {
        let over = f64::from(peak.saturating_sub(1));
        (0..steps).map(|at| 1 + (over * self.height(at, steps)).round() as u32).collect()
    }
}

/// Requests from a file: whole numbers separated by spaces, commas or line ends; `#` begins a comment.
///
/// # Errors
/// As [`LoadError`] says.
pub fn read(path: &Path) -> Result<Vec<u32>, LoadError> {
    let name = || path.display().to_string();
    let failed = |source| LoadError::Read { path: name(), source };
    let bytes = crate::atomic::read_bounded(path, MOST_BYTES).map_err(failed)?;
    let text = String::from_utf8(bytes)
        .map_err(|e| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, e.utf8_error())))?;
    let mut out = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let said = line.split('#').next().unwrap_or_default();
        for word in said.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty()) {
            let number = word.parse().ok().filter(|n| *n <= MOST_REQUESTS);
            let found: String = word.chars().take(40).collect();
            out.push(number.ok_or_else(|| LoadError::Number { path: name(), line: n + 1, found })?);
        }
    }
    if out.is_empty() || out.len() > MOST_STEPS as usize {
        return Err(LoadError::Count { path: name(), found: out.len() });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_wave_rises_falls_and_leaves_time_to_wake() {
        assert_eq!(Shape::Wave.requests(10, 8), [1, 2, 5, 8, 8, 5, 2, 1, 1, 1]);
        assert_eq!(Shape::Wave.requests(6, 8), [1, 4, 8, 5, 1, 1]);
    }

    #[test]
    fn a_ramp_is_even_and_a_spike_sudden() {
        assert_eq!(Shape::Ramp.requests(9, 9), [1, 3, 5, 7, 9, 7, 5, 3, 1]);
        assert_eq!(Shape::Spike.requests(10, 8), [1, 1, 8, 8, 8, 1, 1, 1, 1, 1]);
    }

    proptest! {
        #[test]
        fn every_load_is_between_one_and_the_peak(steps in 1u32..200, peak in 1u32..500) {
            for shape in [Shape::Wave, Shape::Ramp, Shape::Spike] {
                let load = shape.requests(steps, peak);
                prop_assert_eq!(load.len(), steps as usize);
                prop_assert!(load.iter().all(|n| (1..=peak).contains(n)), "{:?} {:?}", shape, load);
                if steps >= 10 {
                    let top = *load.iter().max().unwrap();
                    prop_assert!(top > peak - peak / 4 - 1, "{:?} {:?}", shape, load);
                    prop_assert!(load[0] <= 1 + peak / 4 && *load.last().unwrap() <= 1 + peak / 4);
                }
            }
        }
    }

    #[test]
    fn files_are_read_and_their_faults_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = |text: &str| {
            let path = dir.path().join("load.txt");
            std::fs::write(&path, text).unwrap();
            path
        };
        assert_eq!(read(&file("# quiet\n1, 2\n5 # busy\n\n0\n")).unwrap(), [1, 2, 5, 0]);
        for (text, expected) in [
            ("1\n2.5\n", "line 2: \"2.5\" is no number"),
            ("-1", "line 1: \"-1\" is no number"),
            ("10001", "from 0 to 10000"),
            ("# nothing\n", "has 0 numbers"),
        ] {
            let e = read(&file(text)).unwrap_err().to_string();
            assert!(e.contains(expected) && e.contains("load.txt"), "{e}");
        }
        let e = read(&dir.path().join("none")).unwrap_err().to_string();
        assert!(e.contains("wave, ramp, spike"), "{e}");
    }
}
