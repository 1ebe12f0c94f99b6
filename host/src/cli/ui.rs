//! What people see: colours, progress bars, errors.

use super::Global;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

/// Set when standard output could not be written for another reason than that nobody reads it.
static LOST_OUTPUT: Mutex<Option<std::io::Error>> = Mutex::new(None);

/// Writes a line of results. A reader that has gone away (`| head`) is no failure: the work goes on.
pub fn write_out(text: std::fmt::Arguments) {
    if let Err(e) = writeln!(anstream::stdout(), "{text}") {
        keep(e);
    }
}

/// Writes a line for people on standard error, if anybody reads it.
pub fn write_note(text: std::fmt::Arguments) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Remembers that results were lost.
pub fn keep(e: std::io::Error) {
    if e.kind() != std::io::ErrorKind::BrokenPipe {
        LOST_OUTPUT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(e);
    }
}

/// The exit code in the end: 1 where results were lost, even if the work was done.
pub fn finish(code: ExitCode) -> ExitCode {
    if let Err(e) = std::io::stdout().flush() {
        keep(e);
    }
    match LOST_OUTPUT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
        None => code,
        Some(e) => {
            write_note(format_args!("error: standard output could not be written: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// Sets up logging on standard error.
pub fn init(g: &Global) {
    let level = match (g.quiet, g.verbose) {
        (true, _) => "error",
        (_, 0) => "warn,plastic_host=info,plugin=info",
        (_, 1) => "info,plastic_host=debug,plugin=debug",
        _ => "debug,plastic_host=trace,plugin=trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A second call (tests, embedders) keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .without_time()
        .with_target(false)
        .try_init();
}

/// A progress bar with a count and the time left; silent when standard error is no terminal.
pub fn bar(g: &Global, total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), target(g));
    if let Ok(style) = ProgressStyle::with_template("{msg:28} [{bar:32}] {pos}/{len} {eta} left {prefix}") {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A progress bar in bytes; silent when standard error is no terminal.
pub fn byte_bar(g: &Global, total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), target(g));
    if let Ok(style) =
        ProgressStyle::with_template("{msg:28} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
    {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar.set_message(what.to_owned());
    bar
}

fn target(g: &Global) -> ProgressDrawTarget {
    match g.quiet || g.json || !std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    }
}

/// Prints an error with its causes and answers exit code 1.
pub fn fail(e: &anyhow::Error, g: &Global) -> ExitCode {
    let causes: Vec<String> = e.chain().map(|c| c.to_string()).collect();
    let text = joined(&causes);
    if g.json {
        say!("{}", serde_json::json!({ "error": text, "causes": causes }));
    }
    let style = anstyle::Style::new().bold().fg_color(Some(anstyle::AnsiColor::Red.into()));
    note!("{style}error:{style:#} {text}");
    ExitCode::FAILURE
}

/// One sentence from a chain of causes, without saying twice what a wrapper repeats.
fn joined(causes: &[String]) -> String {
    let mut out = String::new();
    for c in causes {
        if out.is_empty() {
            out.push_str(c);
        } else if !out.contains(c.as_str()) {
            out.push_str(": ");
            out.push_str(c);
        }
    }
    out
}
