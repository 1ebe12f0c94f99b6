//! What went wrong, and what to do about it.

use std::fmt;

/// An error for the person at the keyboard: one sentence, and a remedy where there is one.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    what: String,
    remedy: Option<String>,
}

/// Result of this program's parts.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// An error with no remedy of its own: the cause says what to do.
    pub fn new(what: impl Into<String>) -> Self {
        Failure { what: what.into(), remedy: None }
    }

    /// Adds what to do about it.
    pub fn remedy(self, text: impl Into<String>) -> Self {
        Failure { remedy: Some(text.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  to do: {remedy}"),
            None => Ok(()),
        }
    }
}

/// Turns the errors of other libraries into a [`Failure`].
pub trait Doing<T> {
    /// Says what was being done, such as "writing .mlx/cargo.toml".
    fn doing(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| Failure::new(format!("{what}: {e}")))
    }
}
