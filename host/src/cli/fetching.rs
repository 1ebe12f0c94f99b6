//! How far fetching or importing a model has come, on standard error.

use super::show::megabytes;
use super::{Global, ui};
use crate::model::registry::FetchProgress;
use indicatif::ProgressBar;

/// Stages smaller than this are not worth a line in a log.
const WORTH_A_LINE: u64 = 10_000_000;

/// A bar a stage on a terminal, a line a large stage elsewhere, nothing with `--quiet` or `--json`.
pub struct Bars<'a> {
    global: &'a Global,
    bar: Option<ProgressBar>,
}

impl<'a> Bars<'a> {
    /// With no stage begun.
    pub fn new(global: &'a Global) -> Bars<'a> {
        Bars { global, bar: None }
    }

    fn talks(&self) -> bool {
        !self.global.quiet && !self.global.json
    }
}

impl FetchProgress for Bars<'_> {
    fn begin(&mut self, stage: &str, bytes: Option<u64>) {
        self.end();
        let bar = ui::byte_bar(self.global, bytes.unwrap_or(0), stage);
        if bar.is_hidden() && self.talks() && bytes.is_some_and(|b| b >= WORTH_A_LINE) {
            note!("{stage} ({})", megabytes(bytes.unwrap_or(0)));
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
        let print = || note!("note: {text}");
        match &self.bar {
            _ if !self.talks() => {}
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Bars<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
