//! Typed options: a struct with defaults, documentation and ranges, from which the JSON schema that
//! the host shows and checks is made.
//!
//! ```
//! plastic_plugin::choices! {
//!     /// How a spectrum is measured.
//!     pub enum Metric {
//!         /// In units of loss.
//!         Fisher = "fisher",
//!         /// The weights themselves.
//!         Plain = "plain",
//!     }
//! }
//!
//! plastic_plugin::options! {
//!     /// Options of this policy.
//!     pub struct Options {
//!         /// Metric the energy is counted in.
//!         pub metric: Metric = Metric::Fisher,
//!         /// Share of the energy to hold.
//!         #[range(0.0..=1.0)]
//!         pub energy: f64 = 0.99,
//!     }
//! }
//!
//! use plastic_plugin::Options as _;
//! assert!(Options::schema().contains(r#""default":0.99"#));
//! ```
//!
//! A type that derives its schema otherwise can implement [`Options`] by hand.

use serde_json::Value;
use std::fmt::{Display, Write};
use std::ops::RangeInclusive;

/// What a plugin can be told. Made by [`options!`](crate::options!).
pub trait Options: serde::de::DeserializeOwned + Default {
    /// JSON Schema (an object schema), with a default for every property.
    fn schema() -> String;

    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// A sentence that names the option, its value and what is allowed.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Reads options from the JSON object the host sends; an empty text means all defaults.
///
/// # Errors
/// A sentence that names the option and what was expected.
pub fn parse<O: Options>(json: &str) -> Result<O, String> {
    let json = if json.trim().is_empty() { "{}" } else { json };
    // serde would take a list of values in the order of the fields, too.
    if !json.trim_start().starts_with('{') {
        return Err(format!("options are {}, expected a JSON object", json.chars().take(40).collect::<String>()));
    }
    let options: O = serde_json::from_str(json).map_err(|e| format!("options: {e}"))?;
    options.check()?;
    Ok(options)
}

crate::options! {
    /// No options.
    pub struct NoOptions {}
}

/// A type an option can have.
pub trait OptionValue {
    /// Its name in JSON Schema.
    const TYPE: &'static str;
    /// The only values it takes; empty for any.
    const CHOICES: &'static [&'static str] = &[];
    /// A value as JSON.
    fn json(&self) -> Value;
}

macro_rules! option_values {
    ($($ty:ty => $name:literal),* $(,)?) => {$(
        impl OptionValue for $ty {
            const TYPE: &'static str = $name;
            fn json(&self) -> Value {
                Value::from(self.clone())
            }
        }
    )*};
}

option_values! {
    bool => "boolean", u32 => "integer", u64 => "integer", i64 => "integer", usize => "integer",
    f32 => "number", f64 => "number", String => "string",
}

impl<T: OptionValue> OptionValue for Vec<T> {
    const TYPE: &'static str = "array";
    fn json(&self) -> Value {
        Value::Array(self.iter().map(T::json).collect())
    }
}

/// The schema of one option, as a member of the schema's `properties`. Used by [`options!`].
///
/// [`options!`]: crate::options!
pub fn property<T: OptionValue>(name: &str, about: &str, default: &T, range: Option<(f64, f64)>) -> String {
    let mut out = format!("{}:{{\"type\":{}", Value::from(name), Value::from(T::TYPE));
    if !about.is_empty() {
        let _ = write!(out, ",\"description\":{}", Value::from(about.trim()));
    }
    if !T::CHOICES.is_empty() {
        let _ = write!(out, ",\"enum\":{}", Value::from(T::CHOICES));
    }
    if let Some((low, high)) = range {
        let _ = write!(out, ",\"minimum\":{},\"maximum\":{}", Value::from(low), Value::from(high));
    }
    let _ = write!(out, ",\"default\":{}}}", default.json());
    out
}

/// The schema of all options. Used by [`options!`].
///
/// [`options!`]: crate::options!
pub fn schema_of(about: &str, properties: &[String]) -> String {
    format!(
        "{{\"type\":\"object\",\"description\":{},\"properties\":{{{}}},\"additionalProperties\":false}}",
        Value::from(about.trim()),
        properties.join(",")
    )
}

/// Checks one option against its range. Used by [`options!`].
///
/// # Errors
/// A sentence with the option, its value and the range.
///
/// [`options!`]: crate::options!
pub fn in_range<T: PartialOrd + Display>(name: &str, value: &T, range: &RangeInclusive<T>) -> Result<(), String> {
    match range.contains(value) {
        true => Ok(()),
        false => Err(format!("option {name} is {value}, expected {} to {}", range.start(), range.end())),
    }
}

/// A struct of options with defaults, ranges and documentation; see [the module](crate::options).
///
/// Every field is written `/// What it does`, then perhaps `#[range(low..=high)]`, then
/// `name: type = default`. The struct gets `Default`, `Deserialize` (unknown names are refused),
/// `Clone`, `Debug`, `PartialEq` and [`Options`](crate::Options).
#[macro_export]
macro_rules! options {
    (
        $(#[doc = $about:literal])*
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $(#[range($range:expr)])?
                $fvis:vis $field:ident : $ty:ty = $default:expr
            ),* $(,)?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, $crate::serde::Deserialize)]
        #[serde(crate = "plastic_plugin::serde", default, deny_unknown_fields)]
        $vis struct $name {
            $( $(#[doc = $doc])* $fvis $field: $ty, )*
        }

        impl ::core::default::Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::Options for $name {
            fn schema() -> ::std::string::String {
                #[allow(unused_variables, reason = "a struct without fields has no defaults to show")]
                let default = Self::default();
                $crate::options::schema_of(::core::concat!($($about),*), &[ $(
                    $crate::options::property(
                        ::core::stringify!($field),
                        ::core::concat!($($doc),*),
                        &default.$field,
                        $crate::options!(@bounds $($range)?),
                    ),
                )* ])
            }

            fn check(&self) -> ::core::result::Result<(), ::std::string::String> {
                $( $( $crate::options::in_range(::core::stringify!($field), &self.$field, &$range)?; )? )*
                Ok(())
            }
        }
    };
    (@bounds $range:expr) => { ::core::option::Option::Some((*$range.start() as f64, *$range.end() as f64)) };
    (@bounds) => { ::core::option::Option::None };
}

/// An enumeration an option can be: every case is written `Name = "its name in the options"`, the
/// first one or the one given as the field's default is taken where nothing is said.
#[macro_export]
macro_rules! choices {
    (
        $(#[doc = $about:literal])*
        $vis:vis enum $name:ident {
            $( $(#[doc = $doc:literal])* $case:ident = $text:literal ),* $(,)?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, $crate::serde::Deserialize)]
        #[serde(crate = "plastic_plugin::serde")]
        $vis enum $name {
            $( $(#[doc = $doc])* #[serde(rename = $text)] $case, )*
        }

        impl $name {
            /// Its name in the options.
            $vis fn as_str(self) -> &'static str {
                match self { $( Self::$case => $text, )* }
            }
        }

        impl ::core::fmt::Display for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::options::OptionValue for $name {
            const TYPE: &'static str = "string";
            const CHOICES: &'static [&'static str] = &[ $( $text, )* ];
            fn json(&self) -> $crate::options::Json {
                $crate::options::Json::from(self.as_str())
            }
        }
    };
}

#[doc(hidden)]
pub use serde_json::Value as Json;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    crate::choices! {
        /// Sizes.
        pub enum Size { Small = "small", VeryLarge = "very-large" }
    }

    crate::options! {
        /// Options
        /// of a test.
        pub struct Sample {
            /// How "large".
            pub size: Size = Size::VeryLarge,
            /// A share.
            #[range(0.0..=1.0)]
            pub share: f64 = 0.5,
            #[range(1..=9)]
            count: u32 = 3,
            pub names: Vec<String> = vec!["a".into()],
        }
    }

    #[test]
    fn schema_is_json_with_types_ranges_and_defaults() {
        let schema: Value = serde_json::from_str(&Sample::schema()).unwrap();
        assert_eq!(schema["description"], "Options of a test.");
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["size"]["enum"], serde_json::json!(["small", "very-large"]));
        assert_eq!(schema["properties"]["size"]["default"], "very-large");
        assert_eq!(schema["properties"]["size"]["description"], "How \"large\".");
        assert_eq!(schema["properties"]["share"]["maximum"], 1.0);
        assert_eq!(schema["properties"]["count"]["type"], "integer");
        assert_eq!(schema["properties"]["names"]["default"], serde_json::json!(["a"]));
    }

    #[test]
    fn options_are_read_over_their_defaults() {
        let o: Sample = parse(r#"{"size": "small", "share": 1}"#).unwrap();
        assert_eq!(o, Sample { size: Size::Small, share: 1.0, ..Sample::default() });
        assert_eq!(parse::<Sample>("").unwrap(), Sample::default());
        assert_eq!(parse::<NoOptions>("{}").unwrap(), NoOptions {});
    }

    #[test]
    fn wrong_options_are_refused_by_name() {
        let text = |json: &str| parse::<Sample>(json).unwrap_err();
        assert!(text(r#"{"shares": 1}"#).contains("unknown field `shares`"), "{}", text(r#"{"shares": 1}"#));
        assert!(text(r#"{"size": "huge"}"#).contains("`small`"), "{}", text(r#"{"size": "huge"}"#));
        assert_eq!(text(r#"{"share": 1.5}"#), "option share is 1.5, expected 0 to 1");
        assert_eq!(text(r#"{"count": 0}"#), "option count is 0, expected 1 to 9");
        assert!(parse::<NoOptions>(r#"{"a": 1}"#).is_err());
        assert_eq!(text(r#"["small", 1]"#), r#"options are ["small", 1], expected a JSON object"#);
    }
}
