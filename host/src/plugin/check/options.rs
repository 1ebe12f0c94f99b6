//! Whether a plugin takes the options its schema promises, and refuses the rest in plain words.

use super::{Bench, Outcome, Sheet, Trouble};
use crate::plugin::options::{OptionSpec, specs};
use crate::plugin::{Fault, FaultClass, Kind};
use serde_json::{Map, Value, json};

pub(super) fn check(bench: &Bench, kind: Kind, sheet: &mut Sheet) {
    let tried = Tried { bench, kind, specs: specs(bench.info) };
    sheet.add("options-default", tried.defaults());
    sheet.add("options-unknown", tried.unknown());
    sheet.add("options-range", tried.ranges());
    sheet.add("options-type", tried.types());
    sheet.add("options-garbage", tried.garbage());
}

struct Tried<'a> {
    bench: &'a Bench<'a>,
    kind: Kind,
    specs: Vec<OptionSpec>,
}

impl Tried<'_> {
    /// Configures a fresh instance: the contract has `configure` called once.
    fn configure(&self, options: &Value) -> Result<(), Fault> {
        let Bench { loader, path, .. } = self.bench;
        match self.kind {
            Kind::Policy => {
                let mut policy = loader.policy(path)?;
                policy.configure(options)?;
                self.bench.cost(policy.last_cost(), || "configure".into());
            }
            Kind::Evaluator => {
                let mut evaluator = loader.evaluator(path)?;
                evaluator.configure(options)?;
                self.bench.cost(evaluator.last_cost(), || "configure".into());
            }
        }
        Ok(())
    }

    /// The operator's options with one changed.
    fn with(&self, name: &str, value: Value) -> Value {
        let mut options = self.bench.settings.options.as_object().cloned().unwrap_or_default();
        options.insert(name.to_owned(), value);
        Value::Object(options)
    }

    /// Sends options that must be taken.
    fn takes(&self, options: &Value, what: &str) -> Result<(), Box<Trouble>> {
        self.configure(options).map_err(|fault| {
            let t = Trouble::fault(format!("{what} is not taken"), &fault).sent(short(options));
            Box::new(if t.fix.is_empty() { t.fix("correct the schema, or the check in `configure`") } else { t })
        })
    }

    /// Sends options that must be refused in plain words; without `strictly`, taking them is a note.
    fn refuses(&self, options: &Value, what: &str, strictly: bool) -> Result<(), Box<Trouble>> {
        match self.configure(options) {
            Err(f) if f.class == FaultClass::Refused => Ok(()),
            Err(f) => {
                let found = format!("{what} is not refused in plain words: the plugin {}", f.class);
                Err(Trouble::fault(found, &f).sent(short(options)).into())
            }
            Ok(()) => {
                let t = Trouble::new(format!("{what} is taken"))
                    .sent(short(options))
                    .back("ok")
                    .fix("refuse it in `configure`, with a sentence that names the option and what it may be");
                Err(if strictly { t } else { t.note() }.into())
            }
        }
    }

    fn defaults(&self) -> Outcome {
        self.takes(&json!({}), "an empty object")?;
        let all: Map<_, _> = self.specs.iter().map(|s| (s.name.clone(), s.default.clone())).collect();
        self.takes(&Value::Object(all), "the schema's own defaults")?;
        Ok("an empty object and all defaults are taken".into())
    }

    fn unknown(&self) -> Outcome {
        self.refuses(&self.with("no_such_option", json!(1)), "an unknown option", true)?;
        Ok("an unknown option is refused".into())
    }

    fn ranges(&self) -> Outcome {
        let mut bounds = 0;
        for s in &self.specs {
            for (bound, outward) in [(s.minimum, -1.0), (s.maximum, 1.0)] {
                let Some(bound) = bound else { continue };
                bounds += 1;
                let (at, beyond) = match s.kind.as_str() {
                    "integer" => (json!(bound as i64), json!((bound + outward) as i64)),
                    _ => (json!(bound), json!(bound + outward * 1e-3 * bound.abs().max(1.0))),
                };
                // Options may depend on each other, so a refusal of the bound itself may be right.
                self.takes(&self.with(&s.name, at.clone()), &format!("option {} = {at}, its bound,", s.name)).map_err(
                    |t| if t.came_back.starts_with(&FaultClass::Refused.to_string()) { t.note().into() } else { t },
                )?;
                let what = format!("option {} = {beyond}, outside its range,", s.name);
                self.refuses(&self.with(&s.name, beyond), &what, true)?;
            }
            if !s.choices.is_empty() {
                bounds += 1;
                for choice in &s.choices {
                    self.takes(&self.with(&s.name, json!(choice)), &format!("option {} = {choice}", s.name))?;
                }
                let what = format!("option {} = \"no-such-choice\"", s.name);
                self.refuses(&self.with(&s.name, json!("no-such-choice")), &what, true)?;
            }
        }
        Ok(match bounds {
            0 => "no option has a range".into(),
            n => format!("{n} bounds and lists of choices are kept, inside and outside"),
        })
    }

    fn types(&self) -> Outcome {
        let mut sent = 0;
        for s in &self.specs {
            let values = [json!("text"), json!(true), json!([1, {}]), json!({"a": 1}), json!(1.5), json!(null)];
            for value in values {
                let fits = match s.kind.as_str() {
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    "string" => value.is_string(),
                    "" => true,
                    _ => false,
                };
                if !fits {
                    sent += 1;
                    let what = format!("option {} = {value}, which is no {},", s.name, s.kind);
                    self.refuses(&self.with(&s.name, value), &what, true)?;
                }
            }
        }
        Ok(format!("{sent} values of a wrong type are refused"))
    }

    fn garbage(&self) -> Outcome {
        let mut deep = json!(1);
        for _ in 0..500 {
            deep = json!({ "a": deep });
        }
        let long = "x".repeat(1 << 20);
        self.refuses(&self.with("no_such_option", deep), "an object 500 levels deep", true)?;
        self.refuses(&self.with("no_such_option", json!(long)), "a text of 1 MiB", true)?;
        self.refuses(&self.with(&long, json!(1)), "a name of 1 MiB", true)?;
        for other in [json!([]), json!([1, 2]), json!(null), json!("text"), json!(7)] {
            self.refuses(&other, "what is no JSON object", false)?;
        }
        Ok("what is no object, nests 500 deep, or is 1 MiB long is refused".into())
    }
}

/// JSON for people: not all of a megabyte.
fn short(value: &Value) -> String {
    crate::plugin::text::clean(&value.to_string(), 160)
}
