//! Options and rules: a plugin's schema, `name=value` texts, the SDK's reader, rules in TOML, grants.

use plastic_host::plugin::contract::Info;
use plastic_host::plugin::fuzzing::check_info;
use plastic_host::plugin::options::{from_pairs, specs};
use plastic_host::plugin::{Grant, Limits, Rules};
use plastic_plugin::Options as _;
use serde_json::Value;

use super::shown;

plastic_plugin::choices! {
    /// How a spectrum is measured.
    pub enum Metric { Fisher = "fisher", Plain = "plain" }
}

plastic_plugin::options! {
    /// One option of every type.
    pub struct Real {
        /// A choice.
        pub metric: Metric = Metric::Fisher,
        /// A share.
        #[range(0.0..=1.0)]
        pub energy: f64 = 0.99,
        /// A smaller number.
        #[range(-1.0..=1.0)]
        pub tilt: f32 = 0.0,
        /// A count.
        #[range(1..=9)]
        pub min_rank: u32 = 1,
        /// A large count.
        pub seed: u64 = 7,
        /// Signed.
        pub shift: i64 = -1,
        /// Yes or no.
        pub ramp: bool = true,
        /// Words.
        pub word: String = "a".into(),
        /// Lists.
        pub layers: Vec<u32> = vec![1, 2],
    }
}

/// The first byte chooses the reader, the rest is text, its parts divided by zero bytes.
pub fn options(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match kind % 5 {
        0 => schema(&text),
        1 => real(&text),
        2 => {
            if let Ok(options) = plastic_plugin::options::parse::<Real>(&text) {
                assert!((0.0..=1.0).contains(&options.energy) && (1..=9).contains(&options.min_rank));
            }
        }
        3 => rules(&text),
        _ => grant(&text),
    }
}

/// A schema as a plugin describes it, and options given for it.
fn schema(text: &str) {
    let mut parts = text.split('\0');
    let options_schema = parts.next().unwrap_or_default().to_owned();
    let pairs: Vec<&str> = parts.collect();
    let mut info = Info { name: "p".into(), version: "1.0.0".into(), options_schema, ..Info::default() };
    for spec in specs(&info) {
        shown(&spec.name);
        shown(&spec.description);
        let _ = spec.type_text();
    }
    if let Ok(Value::Object(options)) = from_pairs(&info, &pairs) {
        assert!(options.len() <= pairs.len());
    }
    if check_info(&mut info, &Limits::default()).is_ok() {
        assert!(info.options_schema.is_empty() || serde_json::from_str::<Value>(&info.options_schema).is_ok());
    }
}

/// What the host lets through for a real schema is what the plugin reads, within its ranges.
fn real(text: &str) {
    let info = Info { name: "p".into(), options_schema: Real::schema(), ..Info::default() };
    let pairs: Vec<&str> = text.split('\0').collect();
    let Ok(options) = from_pairs(&info, &pairs) else { return };
    if let Ok(read) = plastic_plugin::options::parse::<Real>(&options.to_string()) {
        assert!((0.0..=1.0).contains(&read.energy) && (1..=9).contains(&read.min_rank));
    }
}

/// Rules that pass are written as they are read.
fn rules(text: &str) {
    let Ok(rules) = toml::from_str::<Rules>(text) else { return };
    if rules.check().is_err() {
        return;
    }
    let _ = rules.limits();
    let written = toml::to_string(&rules).expect("rules that pass can be written");
    assert_eq!(toml::from_str::<Rules>(&written).ok(), Some(rules));
}

fn grant(text: &str) {
    match text.parse::<Grant>() {
        Ok(grant) => assert_eq!(grant.to_string().parse(), Ok(grant)),
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}
