//! A plugin's project that is not a crate: its `plugin.toml`, read and checked.
//!
//! What stands in it becomes part of the component (name, version, summary) or the name of a file,
//! so each value is checked; a wrong one is refused by name.

use super::BuildError;
use crate::plugin::Kind;
use std::path::{Component, Path};

/// Name of the manifest.
pub const MANIFEST: &str = "plugin.toml";

/// Languages a plugin can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lang {
    /// Built by cargo, with the SDK crate.
    Rust,
    /// Built by Zig's C compiler.
    C,
    /// CPython, snapshot after its start.
    Python,
    /// QuickJS, snapshot after its start.
    Javascript,
}

impl std::fmt::Display for Lang {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Lang::Rust => "Rust",
            Lang::C => "C",
            Lang::Python => "Python",
            Lang::Javascript => "JavaScript",
        })
    }
}

/// What `plugin.toml` says.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Project {
    /// `policy` or `evaluator`.
    pub kind: Kind,
    /// `c`, `python` or `javascript`.
    pub lang: Lang,
    /// Lower-case name, unique on the plugin path.
    pub name: String,
    /// Semantic version.
    pub version: String,
    /// One sentence for people.
    #[serde(default)]
    pub summary: String,
    /// The source file, relative to the project.
    pub source: String,
}

impl Project {
    /// Reads the manifest of a project.
    ///
    /// # Errors
    /// [`BuildError::NoProject`] where there is none, [`BuildError::Manifest`] where it is wrong.
    pub fn read(dir: &Path) -> Result<Project, BuildError> {
        let path = dir.join(MANIFEST);
        let text = match crate::atomic::read_bounded(&path, 1 << 20) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(BuildError::NoProject(dir.to_owned())),
            Err(source) => return Err(BuildError::Io { path, source }),
        };
        let wrong = |why: String| BuildError::Manifest { path: path.clone(), why };
        let project: Project = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        project.check().map_err(wrong)?;
        match dir.join(&project.source).is_file() {
            true => Ok(project),
            false => Err(wrong(format!("source is `{}`, which is no file of the project", project.source))),
        }
    }

    fn check(&self) -> Result<(), String> {
        check_name(&self.name)?;
        let is_version = self.version.split('.').count() >= 3
            && self.version.starts_with(|c: char| c.is_ascii_digit())
            && self.version.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c));
        if !is_version {
            return Err(format!("version is `{}`, expected three numbers such as 0.1.0", self.version));
        }
        if self.summary.chars().any(char::is_control) {
            return Err("summary has a line break or control character; expected one sentence".into());
        }
        if self.lang == Lang::Rust {
            return Err("lang is `rust`, but there is no Cargo.toml; a Rust plugin is a crate".into());
        }
        let source = Path::new(&self.source);
        match source.components().all(|c| matches!(c, Component::Normal(_))) && !self.source.is_empty() {
            true => Ok(()),
            false => Err(format!("source is `{}`, expected a file in the project", self.source)),
        }
    }
}

/// Checks the name of a plugin: it becomes a file name and a module name.
///
/// # Errors
/// A sentence: what is allowed.
pub fn check_name(name: &str) -> Result<(), String> {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(ok) && name.len() <= 64 {
        true => Ok(()),
        false => Err(format!("name is `{name}`, expected lower-case letters, digits and `-`, a letter first")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(manifest: &str) -> Result<Project, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MANIFEST), manifest).unwrap();
        std::fs::write(dir.path().join("policy.py"), "").unwrap();
        Project::read(dir.path()).map_err(|e| e.to_string())
    }

    const GOOD: &str = "kind = \"policy\"\nlang = \"python\"\nname = \"halve\"\nversion = \"0.1.0\"\nsummary = \"Half.\"\nsource = \"policy.py\"\n";

    #[test]
    fn a_manifest_is_read() {
        let project = read(GOOD).unwrap();
        assert_eq!((project.kind, project.lang, project.name.as_str()), (Kind::Policy, Lang::Python, "halve"));
    }

    #[test]
    fn wrong_values_are_named() {
        for (from, to, words) in [
            ("halve", "Halve!", "name is `Halve!`, expected lower-case letters"),
            ("0.1.0", "new", "version is `new`, expected three numbers"),
            ("Half.", "Half.\\nRest", "summary has a line break"),
            ("policy.py", "../policy.py", "source is `../policy.py`, expected a file in the project"),
            ("policy.py", "other.py", "source is `other.py`, which is no file of the project"),
            ("python", "rust", "there is no Cargo.toml"),
            ("python", "cobol", "unknown variant `cobol`"),
            ("kind = \"policy\"", "kind = \"judge\"", "unknown variant `judge`"),
            ("summary", "sumary", "unknown field `sumary`"),
        ] {
            let text = read(&GOOD.replace(from, to)).unwrap_err();
            assert!(text.contains(words), "expected {words:?} in {text}");
            assert!(text.contains(MANIFEST), "{text}");
        }
    }

    #[test]
    fn no_project_is_no_project() {
        let dir = tempfile::tempdir().unwrap();
        let text = Project::read(dir.path()).unwrap_err().to_string();
        assert!(text.contains("neither Cargo.toml nor plugin.toml"), "{text}");
    }
}
