//! Opening the base a verb names, fetched or imported with a progress bar where it is not here yet.

use super::{Global, ui};
use crate::model::registry::{self, Base, FetchProgress};
use indicatif::ProgressBar;

/// The base that `spec` names, or the default one.
///
/// # Errors
/// When it cannot be found, fetched or imported; the message has the remedy.
pub fn open(spec: &Option<String>, g: &Global) -> anyhow::Result<Base> {
    Ok(registry::resolve(spec.as_deref().unwrap_or(registry::DEFAULT_BASE), &mut Progress::new(g))?)
}

/// Shows a fetch or an import; silent when standard error is no terminal, with --quiet and with --json.
pub struct Progress<'a> {
    global: &'a Global,
    bar: Option<ProgressBar>,
}

impl<'a> Progress<'a> {
    /// Shows nothing until the first stage begins.
    pub fn new(global: &'a Global) -> Progress<'a> {
        Progress { global, bar: None }
    }
}

impl FetchProgress for Progress<'_> {
    fn begin(&mut self, stage: &str, bytes: Option<u64>) {
        self.end();
        let bar = ui::byte_bar(self.global, bytes.unwrap_or(0), stage);
        if bytes.is_none() {
            bar.unset_length();
        }
        self.bar = Some(bar);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn note(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tracing::info!("{text}")),
            None => tracing::info!("{text}"),
        }
    }
}

impl Drop for Progress<'_> {
    // A stage that failed leaves no bar behind its error.
    fn drop(&mut self) {
        self.end();
    }
}
