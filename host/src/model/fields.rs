//! Typed access to the fields of a JSON object that someone else wrote.

use super::error::{Error, Result};
use crate::atomic::read_bounded;
use serde_json::{Map, Value};
use std::path::Path;

/// Largest JSON file that is read; real configurations have kilobytes, tokenisers megabytes.
pub(crate) const MAX_JSON: u64 = 256 << 20;

/// One JSON object with the file and the dotted prefix it came from, for messages.
pub(crate) struct Fields<'a> {
    pub(crate) path: &'a Path,
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The top level of `value`.
    pub(crate) fn new(path: &'a Path, value: &'a Value) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::file(path, "expected a JSON object at the top level"))?;
        Ok(Fields { path, prefix: String::new(), map })
    }

    /// The value of a field; `null` counts as absent.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// The first of several spellings that is present.
    pub(crate) fn first(&self, names: &[&str]) -> Option<&'a Value> {
        names.iter().find_map(|n| self.get(n))
    }

    /// A nested object; `None` when absent.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        let map = v.as_object().ok_or_else(|| self.wrong(name, "an object", v))?;
        Ok(Some(Fields { path: self.path, prefix: self.dotted(name), map }))
    }

    /// All fields in file order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// A positive count below 2^31; `None` when absent.
    pub(crate) fn count(&self, name: &str) -> Result<Option<usize>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        match v.as_u64() {
            Some(n) if n > 0 && n < 1 << 31 => Ok(Some(n as usize)),
            _ => Err(self.wrong(name, "a whole number from 1 to 2147483647", v)),
        }
    }

    /// A count that must be there.
    pub(crate) fn need(&self, name: &str) -> Result<usize> {
        self.count(name)?.ok_or_else(|| self.error(name, "missing; expected a whole number"))
    }

    /// A finite number above zero; `None` when absent.
    pub(crate) fn positive(&self, name: &str) -> Result<Option<f64>> {
        match self.number(name)? {
            Some(x) if x <= 0.0 => Err(self.error(name, format!("is {x}; expected a number above 0"))),
            x => Ok(x),
        }
    }

    /// A finite number; `None` when absent.
    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        match v.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.wrong(name, "a number", v)),
        }
    }

    /// A truth value; `None` when absent.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        v.as_bool().map(Some).ok_or_else(|| self.wrong(name, "true or false", v))
    }

    /// A string; `None` when absent.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        v.as_str().map(Some).ok_or_else(|| self.wrong(name, "a string", v))
    }

    /// An error that names a field of this object.
    pub(crate) fn error(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::field(self.path, self.dotted(name), reason)
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> Error {
        self.error(name, format!("expected {expected}, found {}", short(found)))
    }

    fn dotted(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

/// A value cut to a length that fits a message.
pub(crate) fn short(v: &Value) -> String {
    let text = v.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Reads a JSON file of bounded size.
///
/// # Errors
/// When the file cannot be read, is larger than 256 MiB, or is not JSON (with line and column).
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = read_bounded(path, MAX_JSON).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|e| Error::file(path, format!("not valid JSON: {e}")))
}

/// The same for a file that may be missing.
pub(crate) fn read_json_if_there(path: &Path) -> Result<Option<Value>> {
    match read_json(path) {
        Ok(v) => Ok(Some(v)),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
