//! The options of a run, from a TOML file and the command line, and as kept in the run directory.

use super::bank::Parking;
use crate::plugin::{RuleError, Rules};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Options of a run; every field has the default of the command line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Base: id, directory, GGUF file or hub repository.
    pub base: String,
    /// Evaluation text.
    pub data: PathBuf,
    /// Calibration text.
    pub calibration: PathBuf,
    /// Globs over slice names; empty means all.
    pub layers: Vec<String>,
    /// Steps at most.
    pub steps: u32,
    /// Share of the slices' parameters that may stay awake, above 0 and at most 1.
    pub budget: f64,
    /// Share of an elastic checkpoint that is awake as the run begins; `None` leaves it as the checkpoint records it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub awake_budget: Option<f64>,
    /// Passed to the evaluator as `max_loss_increase`, nats per token; `None` leaves its default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_loss_increase: Option<f64>,
    /// Seed of every random draw.
    pub seed: u64,
    /// Tokens of a window.
    pub window: usize,
    /// Windows of evaluation text, spread evenly; 0 means all.
    pub windows: usize,
    /// Windows of calibration text, spread evenly; 0 means all.
    pub calibration_windows: usize,
    /// Those of them that also give gradients.
    pub gradient_windows: usize,
    /// How sleepers are kept.
    pub parking: Parking,
    /// Failures in a row after which the policy is benched and the run ends.
    pub max_faults: u32,
    /// What happens where a policy fails.
    pub on_fault: OnFault,
    /// Look at the files of the plugins between steps and take changed ones in.
    pub watch: bool,
    /// Statistics to keep beside those the policies need, for later counterfactuals.
    pub record: Vec<String>,
    /// Policies, in the order in which they decide.
    #[serde(deserialize_with = "choices")]
    pub policy: Vec<Choice>,
    /// Policies that are asked and not obeyed.
    #[serde(deserialize_with = "choices", skip_serializing_if = "Vec::is_empty")]
    pub shadow: Vec<Choice>,
    /// The policy that decides where the others fail.
    #[serde(deserialize_with = "choices", skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<Choice>,
    /// Evaluators; all are asked.
    #[serde(deserialize_with = "choices")]
    pub evaluator: Vec<Choice>,
    /// Packs on the base; none where the list is empty, those active on the base where there is no list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packs: Option<Vec<crate::pack::Weighted>>,
    /// What plugins may do and use.
    pub plugins: Rules,
}

/// A plugin and its options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Choice {
    /// The file, or a name on the plugin path.
    pub file: PathBuf,
    /// What it is told.
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub options: toml::Table,
}

impl Choice {
    /// A plugin without options.
    pub fn new(file: impl Into<PathBuf>) -> Choice {
        Choice { file: file.into(), options: toml::Table::new() }
    }

    /// What it is called in options of the command line: the file's name without its extension.
    pub fn stem(&self) -> String {
        self.file.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned())
    }
}

/// One plugin or several, by name or with options.
enum Chosen {
    Name(PathBuf),
    Many(Vec<Chosen>),
    One(Choice),
}

impl<'de> Deserialize<'de> for Chosen {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Chosen, D::Error> {
        // By hand, so that what is wrong in a table is said by name.
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Chosen;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a plugin: a name, a file, or a table with `file` and `options`; or a list of them")
            }

            fn visit_str<E>(self, text: &str) -> Result<Chosen, E> {
                Ok(Chosen::Name(text.into()))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Chosen, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = list.next_element()? {
                    all.push(one);
                }
                Ok(Chosen::Many(all))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, table: A) -> Result<Chosen, A::Error> {
                Choice::deserialize(serde::de::value::MapAccessDeserializer::new(table)).map(Chosen::One)
            }
        }
        from.deserialize_any(Visitor)
    }
}

impl Chosen {
    fn list(self) -> Vec<Choice> {
        match self {
            Chosen::Name(file) if file.as_os_str().is_empty() => Vec::new(),
            Chosen::Name(file) => vec![Choice::new(file)],
            Chosen::One(choice) => vec![choice],
            Chosen::Many(list) => list.into_iter().flat_map(Chosen::list).collect(),
        }
    }
}

fn choices<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Choice>, D::Error> {
    Chosen::deserialize(from).map(Chosen::list)
}

/// What happens where a policy fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFault {
    /// The model stays as it is and the policy is asked again at the next step.
    #[default]
    Keep,
    /// The run ends.
    Stop,
    /// Another policy decides.
    Fallback,
}

impl Default for RunConfig {
    fn default() -> RunConfig {
        RunConfig {
            base: crate::model::registry::DEFAULT_BASE.into(),
            data: PathBuf::new(),
            calibration: PathBuf::new(),
            layers: Vec::new(),
            steps: 3,
            budget: 0.9,
            awake_budget: None,
            max_loss_increase: None,
            seed: 0,
            window: 512,
            windows: 12,
            calibration_windows: 32,
            gradient_windows: 16,
            parking: Parking::EightBit,
            max_faults: 3,
            on_fault: OnFault::Keep,
            watch: false,
            record: Vec::new(),
            policy: Vec::new(),
            shadow: Vec::new(),
            fallback: Vec::new(),
            evaluator: Vec::new(),
            packs: None,
            plugins: Rules::default(),
        }
    }
}

/// A value of a run's options makes no sense.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    /// Out of range.
    #[error("{option} is {value}; it must be {rule}")]
    Range {
        /// The option as the command line spells it.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// A rule on plugins.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A `k=v` without `=`.
    #[error("{option} {text:?} is not of the form name=value")]
    Pair {
        /// The option.
        option: &'static str,
        /// What was given.
        text: String,
    },
}

impl RunConfig {
    /// Checks the numbers.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        let range = |ok: bool, option, value: String, rule| match ok {
            true => Ok(()),
            false => Err(ConfigError::Range { option, value, rule }),
        };
        range(
            self.budget > 0.0 && self.budget <= 1.0,
            "--budget",
            self.budget.to_string(),
            "a share above 0 and at most 1, such as 0.9",
        )?;
        range(
            self.awake_budget.is_none_or(|b| b > 0.0 && b <= 1.0),
            "--awake-budget",
            self.awake_budget.unwrap_or_default().to_string(),
            "a share above 0 and at most 1, such as 0.6",
        )?;
        range(self.steps > 0, "--steps", self.steps.to_string(), "at least 1")?;
        range(
            (2..=1 << 17).contains(&self.window),
            "--window",
            self.window.to_string(),
            "between 2 and 131072 tokens",
        )?;
        let limit = self.max_loss_increase.unwrap_or(0.0);
        range(limit.is_finite(), "--max-loss-increase", limit.to_string(), "a number of nats per token, such as 0.1")?;
        range(self.max_faults > 0, "--max-faults", self.max_faults.to_string(), "at least 1")?;
        Ok(self.plugins.check()?)
    }
}

/// `name=value` with the value read as TOML where it is one (`0.5`, `true`, `[1, 2]`), else as text.
///
/// # Errors
/// Without `=` or a name.
pub fn pair(option: &'static str, text: &str) -> Result<(String, toml::Value), ConfigError> {
    let wrong = || ConfigError::Pair { option, text: text.into() };
    let (name, value) = text.split_once('=').ok_or_else(wrong)?;
    if name.trim().is_empty() {
        return Err(wrong());
    }
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
    Ok((name.trim().into(), parsed.unwrap_or_else(|| toml::Value::String(value.into()))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn options_survive_a_round_trip_and_unknown_ones_are_named() {
        let mut c = RunConfig { steps: 7, layers: vec!["*.q_proj".into()], ..RunConfig::default() };
        c.policy = vec![Choice::new("energy"), Choice::new("guardrail")];
        c.policy[0].options.insert("metric".into(), "plain".into());
        for packs in [None, Some(Vec::new()), Some(vec!["a:0.7".parse().unwrap(), "b".parse().unwrap()])] {
            c.packs = packs;
            let text = toml::to_string(&c).unwrap();
            let again = toml::from_str::<RunConfig>(&text).unwrap();
            assert_eq!(again, c);
            assert_eq!(toml::to_string(&again).unwrap(), text);
        }
        assert!(toml::from_str::<RunConfig>("stepz = 3").unwrap_err().to_string().contains("stepz"));
    }

    #[test]
    fn plugins_are_named_in_many_ways() {
        let of = |text: &str| toml::from_str::<RunConfig>(text).unwrap().policy;
        assert_eq!(of("policy = \"energy\""), [Choice::new("energy")]);
        assert_eq!(of("policy = [\"energy\", { file = \"b.wasm\" }]"), [Choice::new("energy"), Choice::new("b.wasm")]);
        let one = of("[policy]\nfile = \"energy\"\n[policy.options]\nmetric = \"plain\"");
        assert_eq!(one[0].options["metric"], toml::Value::from("plain"));
        assert!(of("policy = \"\"").is_empty());
        let wrong = toml::from_str::<RunConfig>("[[policy]]\nfile = \"a\"\nopts = 1").unwrap_err().to_string();
        assert!(wrong.contains("opts") && wrong.contains("expected `file` or `options`"), "{wrong}");
    }

    #[test]
    fn pairs_are_typed() {
        assert_eq!(pair("-", "a=0.5").unwrap(), ("a".into(), toml::Value::Float(0.5)));
        assert_eq!(pair("-", "a=true").unwrap().1, toml::Value::Boolean(true));
        assert_eq!(pair("-", "metric=plain").unwrap().1, toml::Value::String("plain".into()));
        assert_eq!(pair("-", "a=b=c").unwrap().1, toml::Value::String("b=c".into()));
        assert!(pair("--policy-opt", "metric").unwrap_err().to_string().contains("name=value"));
    }

    #[test]
    fn nonsense_is_refused() {
        for budget in [0.0, -1.0, 1.5, f64::NAN] {
            assert!(RunConfig { budget, ..RunConfig::default() }.check().is_err());
        }
        assert!(RunConfig::default().check().is_ok());
    }
}
