//! Whether an answer has the shape the contract asks for: known slices, finite numbers, texts of
//! reasonable size. Whether a plan makes sense for the model is decided where the model is known.

use super::contract::{Attribute, Change, Info, Metric, Plan, Value, Verdict};
use super::limits::Limits;
use super::text;

/// Entries of a list of names, needs, metrics or attributes.
const MANY: usize = 256;
/// Bytes of a name.
const NAME: usize = 128;

/// Checks a plugin's description of itself.
///
/// # Errors
/// A sentence that names the field.
pub fn info(info: &mut Info, limits: &Limits) -> Result<(), String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if info.name.is_empty() || info.name.len() > 64 || !info.name.chars().all(is_name) {
        let name = text::clean(&info.name, 64);
        return Err(format!("describes itself by the name `{name}`: expected a-z, 0-9, - and _, at most 64 of them"));
    }
    if info.version.is_empty() || info.version.len() > 64 || !info.version.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!("has the version `{}`: expected one such as 1.0.0", text::clean(&info.version, 64)));
    }
    info.summary = text::clean(&info.summary, limits.text_bytes);
    names("phases", &info.phases)?;
    names("needs", &info.needs)?;
    if info.options_schema.len() > 64 * limits.text_bytes {
        return Err("describes its options in more text than a plugin may send".into());
    }
    let schema = serde_json::from_str::<serde_json::Value>(&info.options_schema);
    if !schema.is_ok_and(|s| s.is_object()) {
        return Err("describes its options by something that is no JSON Schema object".into());
    }
    attributes(&info.attributes, limits)
}

/// Checks a plan: `slices` is how many there are, `needs` how many statistics a threshold can name.
///
/// # Errors
/// A sentence that names the action.
pub fn plan(plan: &mut Plan, slices: usize, needs: usize, limits: &Limits) -> Result<(), String> {
    if plan.actions.len() > limits.plan_actions {
        let (n, most) = (plan.actions.len(), limits.plan_actions);
        return Err(format!("the plan has {n} actions, the limit (plan_actions) is {most}"));
    }
    for (i, action) in plan.actions.iter_mut().enumerate() {
        if action.slice as usize >= slices {
            return Err(format!("action {i} is on slice {}, there are {slices}", action.slice));
        }
        if let Change::Sleep(list) | Change::Wake(list) = &action.change
            && list.is_empty()
        {
            return Err(format!("action {i} on slice {} names no component", action.slice));
        }
        reason(&mut action.reason, || format!("the reason of action {i}"), limits)?;
    }
    if let Some(t) = &mut plan.threshold {
        if t.need as usize >= needs {
            return Err(format!("the threshold is in statistic {}, there are {needs}", t.need));
        }
        if !t.level.is_finite() || t.level < 0.0 {
            return Err(format!("the threshold's level is {}, expected a finite number from 0", t.level));
        }
        reason(&mut t.reason, || "the reason of the threshold".into(), limits)?;
    }
    if let Some(p) = plan.predicted
        && !p.is_finite()
    {
        return Err(format!("the predicted rise of the loss is {p}, expected a finite number"));
    }
    if let Some(stop) = &mut plan.stop {
        reason(stop, || "the reason to stop".into(), limits)?;
    }
    names("requests", &plan.requests)?;
    attributes(&plan.attributes, limits)
}

/// Checks a verdict.
///
/// # Errors
/// A sentence that names the metric.
pub fn verdict(verdict: &mut Verdict, limits: &Limits) -> Result<(), String> {
    reason(&mut verdict.reason, || "the reason of the verdict".into(), limits)?;
    if verdict.metrics.len() > MANY {
        return Err(format!("the verdict has {} metrics, at most {MANY} are possible", verdict.metrics.len()));
    }
    for Metric { name, value, unit, low, high, .. } in &verdict.metrics {
        check_name("metric", name)?;
        if unit.len() > NAME || unit.chars().any(char::is_control) {
            return Err(format!("the unit of metric `{name}` is longer than {NAME} bytes or has control characters"));
        }
        for (what, number) in [("value", Some(value)), ("low", low.as_ref()), ("high", high.as_ref())] {
            if let Some(number) = number
                && !number.is_finite()
            {
                return Err(format!("metric `{name}` has the {what} {number}, expected a finite number"));
            }
        }
    }
    attributes(&verdict.attributes, limits)
}

/// Checks the size of a reason and takes control characters out of it.
fn reason(reason: &mut String, what: impl FnOnce() -> String, limits: &Limits) -> Result<(), String> {
    if reason.len() > limits.text_bytes {
        let (n, most) = (reason.len(), limits.text_bytes);
        return Err(format!("{} has {n} bytes, the limit (text_bytes) is {most}", what()));
    }
    // Plain ASCII, as nearly every reason is, needs no look at its characters.
    if !reason.bytes().all(|b| (b' '..=b'~').contains(&b)) && reason.chars().any(char::is_control) {
        *reason = text::clean(reason, limits.text_bytes);
    }
    Ok(())
}

fn names(what: &str, list: &[String]) -> Result<(), String> {
    if list.len() > MANY {
        return Err(format!("the list of {what} has {} entries, at most {MANY} are possible", list.len()));
    }
    list.iter().try_for_each(|name| check_name(what, name))
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    match name.is_empty() || name.len() > NAME || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        true => Err(format!("{what}: `{}` is no name", text::clean(name, 40))),
        false => Ok(()),
    }
}

fn attributes(list: &[Attribute], limits: &Limits) -> Result<(), String> {
    if list.len() > MANY {
        return Err(format!("there are {} attributes, at most {MANY} are possible", list.len()));
    }
    for Attribute { name, value } in list {
        check_name("attribute", name)?;
        let good = match value {
            Value::Flag(_) | Value::Int(_) => true,
            Value::Num(v) => v.is_finite(),
            Value::Text(t) => t.len() <= limits.text_bytes,
            Value::Nums(list) => list.len() <= limits.text_bytes && list.iter().all(|v| v.is_finite()),
            Value::Texts(list) => list.len() <= MANY && list.iter().all(|t| t.len() <= limits.text_bytes),
        };
        if !good {
            return Err(format!("attribute `{name}` is too long or not finite"));
        }
    }
    Ok(())
}
