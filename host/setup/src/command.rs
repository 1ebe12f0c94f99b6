//! Running other programs.

use crate::failure::{Failure, Result};
use std::ffi::OsString;
use std::process::{Command, Stdio};

/// Lines of a failed program's output that are shown.
const SHOWN: usize = 20;

/// Runs a program to its end and answers its standard output.
///
/// Fails with the end of what the program printed.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.stdin(Stdio::null()).output().map_err(|e| Failure::new(format!("cannot start {name}: {e}")))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    match out.status.success() {
        true => Ok(text),
        false => {
            let all = text + &String::from_utf8_lossy(&out.stderr);
            Err(Failure::new(format!("{name} failed ({}):\n{}", out.status, tail(&all))))
        }
    }
}

/// Runs a program whose output the user should see.
pub fn show(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().map_err(|e| Failure::new(format!("cannot start {name}: {e}")))?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::new(format!("{name} failed ({status}); its own message is above"))),
    }
}

/// True where the program starts and succeeds; whatever it prints is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|s| s.success())
}

/// The program an environment variable names, or the usual one.
pub fn program(variable: &str, usual: &str) -> Command {
    Command::new(std::env::var_os(variable).filter(|v| !v.is_empty()).unwrap_or_else(|| OsString::from(usual)))
}

/// The last lines of a text.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_failed_program_is_quoted() {
        let e = output(Command::new("sh").args(["-c", "echo first; echo second >&2; exit 3"])).unwrap_err().to_string();
        assert!(e.contains("sh failed") && e.contains('3') && e.contains("first\nsecond"), "{e}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let e = output(&mut Command::new("no-such-program-anywhere")).unwrap_err().to_string();
        assert!(e.contains("cannot start no-such-program-anywhere"), "{e}");
    }

    #[test]
    fn only_the_end_is_shown() {
        let text: String = (0..100).map(|i| format!("line {i}\n")).collect();
        assert_eq!(tail(&text).lines().count(), SHOWN);
        assert!(tail(&text).ends_with("line 99"));
    }
}
