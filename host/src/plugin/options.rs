//! Options of plugins: what their schema says, and texts from the command line as typed JSON.
//!
//! The schema is an object schema whose properties have a `type`, perhaps an `enum`, `minimum` and
//! `maximum`, a `default` and a `description`: what the SDK makes. The plugin checks its options
//! itself; what is checked here gives better messages, earlier.

use super::contract::Info;
use serde::Serialize;
use serde_json::{Map, Value};

/// One option a plugin takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OptionSpec {
    /// Its name.
    pub name: String,
    /// Type in JSON Schema: `number`, `integer`, `boolean`, `string`, `array`, or empty for any.
    #[serde(rename = "type")]
    pub kind: String,
    /// The only values it takes; empty for any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// Lowest value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    /// Highest value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maximum: Option<f64>,
    /// Value where nothing is said.
    pub default: Value,
    /// What it does.
    pub description: String,
}

/// The options in a plugin's schema, in the schema's order.
pub fn specs(info: &Info) -> Vec<OptionSpec> {
    let schema: Value = serde_json::from_str(&info.options_schema).unwrap_or_default();
    let text = |v: &Value| super::text::clean(v.as_str().unwrap_or_default(), 1000);
    let spec = |(name, s): (&String, &Value)| OptionSpec {
        name: super::text::clean(name, 100),
        kind: text(&s["type"]),
        choices: s["enum"].as_array().map(|list| list.iter().map(text).collect()).unwrap_or_default(),
        minimum: s["minimum"].as_f64(),
        maximum: s["maximum"].as_f64(),
        default: s["default"].clone(),
        description: text(&s["description"]),
    };
    schema["properties"].as_object().map(|p| p.iter().map(spec).collect()).unwrap_or_default()
}

impl OptionSpec {
    /// Its type for people: `number from 0 to 1`, `fisher|input|plain`.
    pub fn type_text(&self) -> String {
        if !self.choices.is_empty() {
            return self.choices.join("|");
        }
        match (self.minimum, self.maximum) {
            (Some(low), Some(high)) => format!("{} from {low} to {high}", self.kind),
            (Some(low), None) => format!("{} from {low}", self.kind),
            (None, Some(high)) => format!("{} up to {high}", self.kind),
            (None, None) => self.kind.clone(),
        }
    }

    /// Whether a value has the type of this option.
    fn has_type(&self, value: &Value) -> bool {
        match self.kind.as_str() {
            "number" => value.is_number(),
            "integer" => value.is_i64() || value.is_u64(),
            "boolean" => value.is_boolean(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            _ => true,
        }
    }

    /// A text as a value of this option.
    fn read(&self, text: &str) -> Result<Value, String> {
        let wrong = || format!("option {} is `{text}`, expected {}", self.name, self.type_text());
        let json = || serde_json::from_str::<Value>(text).map_err(|_| wrong());
        let value = match self.kind.as_str() {
            "string" => Value::from(text),
            "" => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)),
            _ => json()?,
        };
        let fits = self.has_type(&value);
        let listed = self.choices.is_empty() || value.as_str().is_some_and(|v| self.choices.iter().any(|c| c == v));
        let within = value
            .as_f64()
            .is_none_or(|v| self.minimum.is_none_or(|low| v >= low) && self.maximum.is_none_or(|high| v <= high));
        match fits && listed && within {
            true => Ok(value),
            false => Err(wrong()),
        }
    }
}

/// Whether these are options the plugin takes: known names, values of the right type. Ranges and what
/// else a schema cannot say are the plugin's own to check.
///
/// # Errors
/// A sentence that names the option and what the plugin takes.
pub(super) fn check(info: &Info, options: &Value) -> Result<(), String> {
    let Some(given) = options.as_object() else {
        return Err("options are no JSON object".into());
    };
    let schema: Value = serde_json::from_str(&info.options_schema).unwrap_or_default();
    let closed = schema["additionalProperties"] == Value::Bool(false);
    let specs = specs(info);
    for (name, value) in given {
        match specs.iter().find(|s| s.name == *name) {
            Some(spec) if !spec.has_type(value) => {
                let value = super::text::clean(&value.to_string(), 100);
                return Err(format!("option {name} is {value}, expected {}", spec.type_text()));
            }
            Some(spec) if !spec.choices.is_empty() && !spec.choices.iter().any(|c| value.as_str() == Some(c)) => {
                let value = super::text::clean(value.as_str().unwrap_or_default(), 100);
                return Err(format!("option {name} is `{value}`, expected {}", spec.type_text()));
            }
            None if closed => return Err(unknown(info, &specs, name)),
            _ => {}
        }
    }
    Ok(())
}

/// Options as a plugin wants them, where a command line or an option file took a text for a number.
pub fn as_texts(info: &Info, mut options: Value) -> Value {
    let specs = specs(info);
    for (name, value) in options.as_object_mut().into_iter().flatten() {
        let is_text = specs.iter().any(|s| s.name == *name && s.kind == "string");
        if is_text && (value.is_number() || value.is_boolean()) {
            *value = Value::from(value.to_string());
        }
    }
    options
}

/// A sentence about an option that there is not.
fn unknown(info: &Info, specs: &[OptionSpec], name: &str) -> String {
    let (name, known) = (super::text::clean(name, 100), specs.iter().map(|s| s.name.as_str()).collect::<Vec<_>>());
    match known.is_empty() {
        true => format!("{} takes no options, `{name}` was given", info.name),
        false => format!("{} has no option `{name}`; it takes {}", info.name, known.join(", ")),
    }
}

/// Texts `name=value`, as typed on a command line, as the JSON object `configure` takes. Later ones
/// win. `-` in a name may stand for `_`.
///
/// # Errors
/// A sentence that names the option and what the plugin takes.
pub fn from_pairs<S: AsRef<str>>(info: &Info, pairs: &[S]) -> Result<Value, String> {
    let specs = specs(info);
    let mut options = Map::new();
    for pair in pairs {
        let pair = pair.as_ref();
        let Some((name, value)) = pair.split_once('=') else {
            return Err(format!("`{pair}` is no option: write name=value"));
        };
        let same = |s: &&OptionSpec| s.name == name || s.name == name.replace('-', "_");
        let Some(spec) = specs.iter().find(same) else {
            return Err(unknown(info, &specs, name));
        };
        options.insert(spec.name.clone(), spec.read(value)?);
    }
    Ok(Value::Object(options))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn info() -> Info {
        let schema = json!({"type": "object", "properties": {
            "metric": {"type": "string", "enum": ["fisher", "plain"], "default": "fisher", "description": "How."},
            "energy": {"type": "number", "minimum": 0.0, "maximum": 1.0, "default": 0.99},
            "min_rank": {"type": "integer", "minimum": 1, "default": 1},
            "ramp": {"type": "boolean", "default": true},
            "layers": {"type": "array", "default": []},
        }});
        Info { name: "energy".into(), options_schema: schema.to_string(), ..Info::default() }
    }

    #[test]
    fn texts_become_typed_values() {
        let pairs = ["metric=plain", "energy=1", "min-rank=4", "ramp=false", "layers=[1,2]", "energy=0.5"];
        let expected = json!({"metric": "plain", "energy": 0.5, "min_rank": 4, "ramp": false, "layers": [1, 2]});
        assert_eq!(from_pairs(&info(), &pairs).unwrap(), expected);
        assert_eq!(from_pairs::<&str>(&info(), &[]).unwrap(), json!({}));
    }

    #[test]
    fn wrong_texts_are_named() {
        let text = |pair: &str| from_pairs(&info(), &[pair]).unwrap_err();
        assert_eq!(text("energy"), "`energy` is no option: write name=value");
        assert_eq!(text("enrgy=1"), "energy has no option `enrgy`; it takes metric, energy, min_rank, ramp, layers");
        assert_eq!(text("metric=best"), "option metric is `best`, expected fisher|plain");
        assert_eq!(text("energy=2"), "option energy is `2`, expected number from 0 to 1");
        assert_eq!(text("energy=much"), "option energy is `much`, expected number from 0 to 1");
        assert_eq!(text("min_rank=0"), "option min_rank is `0`, expected integer from 1");
        assert_eq!(text("min_rank=1.5"), "option min_rank is `1.5`, expected integer from 1");
        assert_eq!(text("ramp=yes"), "option ramp is `yes`, expected boolean");
    }

    #[test]
    fn texts_stay_texts() {
        let info = info();
        assert_eq!(as_texts(&info, json!({"metric": 1, "energy": 1})), json!({"metric": "1", "energy": 1}));
        assert_eq!(
            check(&info, &json!({"metric": "best"})).unwrap_err(),
            "option metric is `best`, expected fisher|plain"
        );
    }

    #[test]
    fn names_and_types_are_checked_before_a_plugin_sees_them() {
        let mut info = info();
        assert_eq!(check(&info, &json!({"metric": "plain", "energy": 7, "anything": 1})), Ok(()));
        assert_eq!(
            check(&info, &json!({"min_rank": 1.5})).unwrap_err(),
            "option min_rank is 1.5, expected integer from 1"
        );
        assert_eq!(check(&info, &json!([])).unwrap_err(), "options are no JSON object");
        info.options_schema = r#"{"type":"object","additionalProperties":false,"properties":{}}"#.into();
        assert_eq!(check(&info, &json!({"a": 1})).unwrap_err(), "energy takes no options, `a` was given");
    }

    #[test]
    fn specs_keep_the_order_of_the_schema() {
        let names: Vec<String> = specs(&info()).into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["metric", "energy", "min_rank", "ramp", "layers"]);
        assert!(specs(&Info { options_schema: "nonsense".into(), ..Info::default() }).is_empty());
    }
}
