//! What plugins may do and use, as the operator said: part of a run's options, kept in its directory.

use super::limits::{Limits, MAX_STACK_BYTES};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The operator's word on plugins; every field has the default of the command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Wall-clock seconds of one call.
    pub seconds: u64,
    /// Memory of one instance, MiB.
    pub memory_mib: u64,
    /// Stack of the guest, KiB.
    pub stack_kib: u64,
    /// Elements of one table.
    pub table_elements: u64,
    /// What a plugin may hand to the host at once, MiB.
    pub transfer_mib: u64,
    /// Log lines of one call.
    pub log_lines: u64,
    /// Size of a plugin file, MiB.
    pub file_mib: u64,
    /// Whether native libraries may be loaded, which run with all rights of the user.
    pub allow_native: bool,
    /// Whether native libraries run in a process of their own.
    pub isolate: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            seconds: 10,
            memory_mib: 256,
            stack_kib: 512,
            table_elements: 100_000,
            transfer_mib: 16,
            log_lines: 100,
            file_mib: 64,
            allow_native: false,
            isolate: false,
        }
    }
}

/// A rule is out of range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("plugin limit {name} is {value}; it must be between {low} and {high}")]
pub struct RuleError {
    /// Its name in the option file.
    pub name: &'static str,
    /// What was given.
    pub value: u64,
    /// Least.
    pub low: u64,
    /// Most.
    pub high: u64,
}

impl Rules {
    /// Checks the numbers.
    ///
    /// # Errors
    /// The first that is out of range.
    pub fn check(&self) -> Result<(), RuleError> {
        let within = |name, value, low, high| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(RuleError { name, value, low, high }),
        };
        within("seconds", self.seconds, 1, 86_400)?;
        within("memory_mib", self.memory_mib, 1, 4096)?;
        within("stack_kib", self.stack_kib, 16, (MAX_STACK_BYTES >> 10) as u64)?;
        within("table_elements", self.table_elements, 1, 10_000_000)?;
        within("transfer_mib", self.transfer_mib, 1, 1024)?;
        within("log_lines", self.log_lines, 0, 1_000_000)?;
        within("file_mib", self.file_mib, 1, 1024)
    }

    /// The limits as the sandbox wants them.
    pub fn limits(&self) -> Limits {
        Limits {
            file_bytes: self.file_mib << 20,
            memory_bytes: (self.memory_mib << 20) as usize,
            table_elements: self.table_elements as usize,
            stack_bytes: (self.stack_kib << 10) as usize,
            call_time: Duration::from_secs(self.seconds),
            transfer_bytes: (self.transfer_mib << 20) as usize,
            log_lines: self.log_lines as usize,
            ..Limits::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn defaults_are_the_sandbox_defaults() {
        let rules = Rules::default();
        rules.check().unwrap();
        assert_eq!(rules.limits(), Limits::default());
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let error = Rules { memory_mib: 0, ..Rules::default() }.check().unwrap_err();
        assert_eq!(error.to_string(), "plugin limit memory_mib is 0; it must be between 1 and 4096");
        let error = Rules { stack_kib: 1 << 20, ..Rules::default() }.check().unwrap_err();
        assert_eq!((error.name, error.high), ("stack_kib", 1024));
    }
}
