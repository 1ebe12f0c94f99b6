//! What plugins may do and use, as the operator said: part of a run's options, kept in its directory.

use super::Grant;
use super::limits::{Limits, MAX_STACK_BYTES};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
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
    /// Core instances, memories and tables, each.
    pub instances: u64,
    /// What a plugin may hand to the host at once, MiB.
    pub transfer_mib: u64,
    /// Log lines of one call.
    pub log_lines: u64,
    /// Log text of one call, KiB.
    pub log_kib: u64,
    /// Actions of one plan.
    pub plan_actions: u64,
    /// One text in an answer, KiB.
    pub text_kib: u64,
    /// Size of a plugin file, MiB.
    pub file_mib: u64,
    /// The lock that has to hold every plugin, as an absolute path; none where anything may be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked: Option<PathBuf>,
    /// Public keys, as minisign writes them, one of which must have signed every plugin; none where unsigned ones may be loaded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trust: Vec<String>,
    /// Wall-clock seconds of compiling a plugin.
    pub compile_seconds: u64,
    /// Memory of compiling a plugin, MiB.
    pub compile_mib: u64,
    /// Units of fuel (instructions, about) of one call; not counted without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuel: Option<u64>,
    /// The same input gives the same plan on every machine.
    pub deterministic: bool,
    /// What plugins are given beyond the contract.
    pub grants: Vec<Grant>,
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
            instances: 64,
            transfer_mib: 16,
            log_lines: 100,
            log_kib: 64,
            plan_actions: 65_536,
            text_kib: 4,
            file_mib: 64,
            locked: None,
            trust: Vec::new(),
            compile_seconds: 120,
            compile_mib: 2048,
            fuel: None,
            deterministic: false,
            grants: Vec::new(),
            allow_native: false,
            isolate: false,
        }
    }
}

/// A rule that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuleError {
    /// A limit is out of range.
    #[error("plugin limit {name} is {value}; it must be between {low} and {high}")]
    Range {
        /// Its name in the option file.
        name: &'static str,
        /// What was given.
        value: u64,
        /// Least.
        low: u64,
        /// Most.
        high: u64,
    },
    /// Rules that exclude each other.
    #[error("deterministic and the grant {0} exclude each other: what it tells differs from run to run; leave one out")]
    Unrepeatable(Grant),
}

/// Most of a limit that wasmtime and option files hold: both count in signed numbers.
const MOST: u64 = u64::MAX / 2;

/// The limits that are one number always: name, least, most, and where it is kept.
type Number = (&'static str, u64, u64, fn(&mut Rules) -> &mut u64);
const NUMBERS: [Number; 13] = [
    ("seconds", 1, 86_400, |r| &mut r.seconds),
    ("memory_mib", 1, 4096, |r| &mut r.memory_mib),
    ("stack_kib", 16, (MAX_STACK_BYTES >> 10) as u64, |r| &mut r.stack_kib),
    ("table_elements", 1, 10_000_000, |r| &mut r.table_elements),
    ("instances", 1, 10_000, |r| &mut r.instances),
    ("transfer_mib", 1, 1024, |r| &mut r.transfer_mib),
    ("log_lines", 0, 1_000_000, |r| &mut r.log_lines),
    ("log_kib", 0, 1 << 20, |r| &mut r.log_kib),
    ("plan_actions", 0, 100_000_000, |r| &mut r.plan_actions),
    ("text_kib", 1, 1 << 20, |r| &mut r.text_kib),
    ("file_mib", 1, 1024, |r| &mut r.file_mib),
    ("compile_seconds", 1, 86_400, |r| &mut r.compile_seconds),
    ("compile_mib", 256, 1 << 20, |r| &mut r.compile_mib),
];

impl Rules {
    /// Checks the numbers, and that the rules go together.
    ///
    /// # Errors
    /// The first that is out of range, or two that exclude each other.
    pub fn check(&self) -> Result<(), RuleError> {
        let within = |name, value, low, high| match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(RuleError::Range { name, value, low, high }),
        };
        let mut copy = self.clone();
        for (name, low, high, field) in NUMBERS {
            within(name, *field(&mut copy), low, high)?;
        }
        within("fuel", self.fuel.unwrap_or(1), 1, MOST)?;
        match self.grants.iter().find(|g| g.is_unrepeatable()) {
            Some(grant) if self.deterministic => Err(RuleError::Unrepeatable(grant.clone())),
            _ => Ok(()),
        }
    }

    /// The limit of that name, to be set.
    pub fn limit(&mut self, name: &str) -> Option<&mut u64> {
        NUMBERS.iter().find(|(n, ..)| *n == name).map(|(.., field)| field(self))
    }

    /// The names [`Rules::limit`] knows.
    pub fn limit_names() -> impl Iterator<Item = &'static str> {
        NUMBERS.iter().map(|(name, ..)| *name)
    }

    /// The limits as the sandbox wants them.
    pub fn limits(&self) -> Limits {
        Limits {
            file_bytes: self.file_mib << 20,
            memory_bytes: (self.memory_mib << 20) as usize,
            table_elements: self.table_elements as usize,
            instances: self.instances as usize,
            stack_bytes: (self.stack_kib << 10) as usize,
            call_time: Duration::from_secs(self.seconds),
            transfer_bytes: (self.transfer_mib << 20) as usize,
            log_lines: self.log_lines as usize,
            log_bytes: (self.log_kib << 10) as usize,
            plan_actions: self.plan_actions as usize,
            text_bytes: (self.text_kib << 10) as usize,
            fuel: self.fuel,
            deterministic: self.deterministic,
            compile_time: Duration::from_secs(self.compile_seconds),
            compile_bytes: self.compile_mib << 20,
            grants: self.grants.clone(),
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
        assert_eq!(error, RuleError::Range { name: "stack_kib", value: 1 << 20, low: 16, high: 1024 });
        let error = Rules { fuel: Some(0), ..Rules::default() }.check().unwrap_err();
        assert!(error.to_string().starts_with("plugin limit fuel is 0; it must be between 1 and"), "{error}");
    }

    #[test]
    fn every_number_is_found_by_its_name_in_the_option_file() {
        let mut rules = Rules::default();
        for (i, name) in (1000..).zip(Rules::limit_names()) {
            *rules.limit(name).unwrap() = i;
        }
        let kept = serde_json::to_value(&rules).unwrap();
        for (i, name) in (1000..).zip(Rules::limit_names()) {
            assert_eq!(kept[name], i, "{name}");
        }
        let numbers = kept.as_object().unwrap().values().filter(|v| v.is_number()).count();
        assert_eq!(numbers, Rules::limit_names().count(), "every number of {kept}");
        assert!(rules.limit("fun").is_none());
    }

    #[test]
    fn what_cannot_be_repeated_is_not_deterministic() {
        let grants = vec![Grant::Read("data".into()), Grant::Random];
        let rules = Rules { deterministic: true, grants, ..Rules::default() };
        let error = rules.check().unwrap_err().to_string();
        assert!(error.starts_with("deterministic and the grant random exclude each other"), "{error}");
        Rules { deterministic: false, ..rules }.check().unwrap();
    }

    #[test]
    fn grants_are_kept_as_they_are_written() {
        let rules = Rules { grants: vec![Grant::Clock, Grant::Env("HOME".into())], ..Rules::default() };
        let text = serde_json::to_string(&rules).unwrap();
        assert!(text.contains(r#""grants":["clock","env=HOME"]"#), "{text}");
        assert_eq!(serde_json::from_str::<Rules>(&text).unwrap(), rules);
        let error = serde_json::from_str::<Rules>(r#"{"grants": ["network"]}"#).unwrap_err().to_string();
        assert!(error.contains("there is no such grant"), "{error}");
    }
}
