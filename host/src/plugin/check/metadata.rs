//! What a plugin says about itself: name, version, summary, phases, needs, the schema of its options.

use super::{Outcome, Sheet, Trouble, spectra};
use crate::plugin::Kind;
use crate::plugin::contract::{Info, Value as Fact, attribute};
use serde_json::Value;

const PHASES: [&str; 3] = ["compress", "train", "serve"];

pub(super) fn check(info: &Info, kind: Kind, sheet: &mut Sheet) {
    sheet.add("identity", identity(info));
    match kind {
        Kind::Policy => {
            sheet.add("phases", phases(info));
            sheet.add("needs", needs(info));
        }
        Kind::Evaluator => sheet.add("metrics-announced", announced(info)),
    }
    sheet.add("schema", schema(info));
}

fn identity(info: &Info) -> Outcome {
    if !is_semver(&info.version) {
        return Err(Trouble::new(format!("the version `{}` is not of the form 1.2.3", info.version))
            .fix("use a semantic version (https://semver.org)")
            .into());
    }
    if info.summary.trim().is_empty() {
        return Err(Trouble::new("there is no summary")
            .fix("say in one sentence what it does (`description` in Cargo.toml)")
            .into());
    }
    if info.summary.len() > 200 || info.summary.contains('\n') {
        return Err(Trouble::new("the summary is longer than a line of 200 characters")
            .note()
            .fix("say it in one sentence")
            .into());
    }
    Ok(format!("{} {}: {}", info.name, info.version, info.summary))
}

/// major.minor.patch without leading zeros, then perhaps -pre and +build.
fn is_semver(text: &str) -> bool {
    let (text, build) = text.split_once('+').unwrap_or((text, "0"));
    let (core, pre) = text.split_once('-').unwrap_or((text, "0"));
    let number = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) && (n == "0" || !n.starts_with('0'));
    let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.split('.').all(word)
        && build.split('.').all(word)
}

fn phases(info: &Info) -> Outcome {
    let fix = "name the phases it serves: compress, train, serve";
    if info.phases.is_empty() {
        return Err(Trouble::new("it serves no phase, so no run will take it").fix(fix).into());
    }
    match info.phases.iter().find(|p| !PHASES.contains(&p.as_str())) {
        Some(p) => Err(Trouble::new(format!("there is no phase `{p}`")).fix(fix).into()),
        None => Ok(info.phases.join(", ")),
    }
}

fn needs(info: &Info) -> Outcome {
    let fix = "rank.wit lists the statistics at `series`: spectrum:fisher, trace:input, ...";
    for (i, need) in info.needs.iter().enumerate() {
        spectra::check_need(need).map_err(|m| Trouble::new(m).fix(fix))?;
        if info.needs[..i].contains(need) {
            return Err(Trouble::new(format!("`{need}` is needed twice")).fix("name each statistic once").into());
        }
    }
    Ok(if info.needs.is_empty() { "no statistics".into() } else { info.needs.join(", ") })
}

fn announced(info: &Info) -> Outcome {
    match attribute(&info.attributes, "metrics") {
        Some(Fact::Texts(names)) => Ok(names.join(", ")),
        Some(_) => Err(Trouble::new("the attribute `metrics` is no list of texts").into()),
        None => Err(Trouble::new("it does not announce what it reports")
            .note()
            .fix("give `describe` the attribute `metrics`: policies that watch a figure are told whether it will come")
            .into()),
    }
}

fn schema(info: &Info) -> Outcome {
    let schema: Value = serde_json::from_str(&info.options_schema).unwrap_or_default();
    if schema["type"] != "object" {
        return Err(Trouble::new("the options schema is no object schema")
            .back(format!("\"type\": {}", schema["type"]))
            .fix("write {\"type\": \"object\", \"properties\": {...}}")
            .into());
    }
    let empty = serde_json::Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    for (name, p) in properties {
        let wrong = |what: &str, fix: &str| {
            Box::new(Trouble::new(format!("option {name} {what}")).back(p.to_string()).fix(fix))
        };
        let Some(kind) = p["type"].as_str() else { return Err(wrong("has no type", "give it a \"type\"")) };
        let Some(default) = p.get("default") else {
            return Err(wrong("has no default", "give it a \"default\": a run must be possible without options"));
        };
        if p["description"].as_str().is_none_or(|d| d.trim().is_empty()) {
            return Err(wrong("has no description", "say in a \"description\" what it does"));
        }
        if !fits(default, kind, p) {
            return Err(wrong("has a default that its own schema refuses", "correct the default or the schema"));
        }
    }
    if schema["additionalProperties"] != false {
        return Err(Trouble::new("the options schema does not say \"additionalProperties\": false")
            .note()
            .fix("say so: a mistyped option is then refused before the run")
            .into());
    }
    Ok(match properties.len() {
        0 => "no options".into(),
        1 => "1 option, with type, default and description".into(),
        n => format!("{n} options, each with type, default and description"),
    })
}

/// Whether a value is of the type, among the choices and within the range of a property.
fn fits(value: &Value, kind: &str, property: &Value) -> bool {
    let of_type = match kind {
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    };
    let listed = property["enum"].as_array().is_none_or(|list| list.contains(value));
    let above = property["minimum"].as_f64().is_none_or(|low| value.as_f64().is_none_or(|v| v >= low));
    let below = property["maximum"].as_f64().is_none_or(|high| value.as_f64().is_none_or(|v| v <= high));
    of_type && listed && above && below
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn with_schema(schema: Value) -> Info {
        Info { options_schema: schema.to_string(), ..Info::default() }
    }

    #[test]
    fn versions() {
        for good in ["0.1.0", "1.2.3-rc.1", "10.0.0+build.5", "1.0.0-a+b"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in ["1.0", "01.0.0", "1.0.0.0", "v1.0.0", "1.0.x", "1.0.0-"] {
            assert!(!is_semver(bad), "{bad}");
        }
    }

    #[test]
    fn schemas_are_complete() {
        let one = |p: Value| schema(&with_schema(json!({"type": "object", "properties": {"a": p}})));
        let found = |p: Value| one(p).unwrap_err().found;
        assert!(found(json!({"default": 1})).contains("no type"));
        assert!(found(json!({"type": "number"})).contains("no default"));
        assert!(found(json!({"type": "number", "default": 1})).contains("no description"));
        let about = "what it does";
        assert!(found(json!({"type": "integer", "default": 1.5, "description": about})).contains("own schema"));
        assert!(
            found(json!({"type": "number", "maximum": 1, "default": 2, "description": about})).contains("own schema")
        );
        assert!(one(json!({"type": "number", "default": 2, "description": about})).unwrap_err().is_note);
        assert!(schema(&with_schema(json!([]))).unwrap_err().found.contains("no object schema"));
    }

    #[test]
    fn phases_and_needs_are_known() {
        let info = |p: &[&str], n: &[&str]| Info {
            phases: p.iter().map(|s| s.to_string()).collect(),
            needs: n.iter().map(|s| s.to_string()).collect(),
            ..Info::default()
        };
        assert!(phases(&info(&[], &[])).is_err() && phases(&info(&["sleep"], &[])).is_err());
        assert!(phases(&info(&["serve"], &[])).is_ok());
        assert!(needs(&info(&[], &["spectrum:fisher", "spectrum:fisher"])).unwrap_err().found.contains("twice"));
    }
}
