//! Compilers that are fetched once: pinned by version and hash, installed into the user's cache, so
//! that building a plugin needs no more than the language itself.
//!
//! A tool lives in `tools/<name>-<version>` of the cache directory and appears there whole or not
//! at all; two builds at once install it once. A tool that no longer starts (its Python is gone) is
//! installed again. Fails where the installer is missing or fails, with its last words.

use super::{BuildError, write};
use crate::atomic::{FileError, Lock, Staged};
use crate::model::paths::cache_dir;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One tool.
pub(super) struct Tool {
    name: &'static str,
    version: &'static str,
    /// What the user learns before the wait.
    size: &'static str,
    from: From,
}

/// Where a tool comes from.
enum From {
    /// A Python package: pip's requirements file, with hashes, and the module to import.
    Pip { requirements: &'static str, module: &'static str },
    /// An npm package: `package.json` and the lock file, with hashes, and the program's script.
    Npm { package: &'static str, lock: &'static str, script: &'static str },
}

/// The C compiler.
pub(super) const ZIG: Tool = Tool {
    name: "ziglang",
    version: "0.17.1",
    size: "100 MB",
    from: From::Pip { requirements: include_str!("../../../../plugin-api/tools/ziglang.txt"), module: "ziglang" },
};

/// Python to component.
pub(super) const COMPONENTIZE_PY: Tool = Tool {
    name: "componentize-py",
    version: "0.25.1",
    size: "20 MB",
    from: From::Pip {
        requirements: include_str!("../../../../plugin-api/tools/componentize-py.txt"),
        module: "componentize_py",
    },
};

/// JavaScript to component.
pub(super) const COMPONENTIZE_QJS: Tool = Tool {
    name: "componentize-qjs",
    version: "0.4.5",
    size: "10 MB",
    from: From::Npm {
        package: include_str!("../../../../plugin-api/tools/componentize-qjs/package.json"),
        lock: include_str!("../../../../plugin-api/tools/componentize-qjs/package-lock.json"),
        script: "node_modules/componentize-qjs/cli.mjs",
    },
};

pub(super) const NO_PYTHON: &str = "install Python 3.9 or newer (Debian: `apt install python3 python3-venv`)";
pub(super) const NO_NODE: &str = "install Node.js 18 or newer with npm (Debian: `apt install nodejs npm`)";

impl Tool {
    /// The tool, installed if need be: the command that begins with its Python or node.
    pub(super) fn command(&self, progress: &mut dyn FnMut(&str)) -> Result<Command, BuildError> {
        let dir = directory().join(format!("{}-{}", self.name, self.version));
        if !self.starts(&dir) {
            self.install(&dir, progress)?;
        }
        Ok(self.launcher(&dir))
    }

    fn launcher(&self, dir: &Path) -> Command {
        match &self.from {
            From::Pip { .. } => {
                let mut python = Command::new(dir.join("bin/python"));
                // The tool's own packages, and none of the caller's.
                python.env_remove("PYTHONHOME").env_remove("PYTHONPATH").env_remove("VIRTUAL_ENV");
                python
            }
            From::Npm { script, .. } => {
                let mut node = Command::new("node");
                node.arg(dir.join(script));
                node
            }
        }
    }

    /// Whether it is there, and works.
    fn starts(&self, dir: &Path) -> bool {
        match &self.from {
            From::Npm { script, .. } => dir.join(script).is_file(),
            From::Pip { module, .. } => {
                let mut python = self.launcher(dir);
                python.args(["-c", &format!("import {module}")]);
                python.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                dir.is_dir() && python.status().is_ok_and(|s| s.success())
            }
        }
    }

    fn install(&self, dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), BuildError> {
        let file = |e: FileError| BuildError::Io { path: e.path, source: e.source };
        let _lock = Lock::of_directory(dir, || progress("waiting for another build that installs the same tool"));
        let _lock = _lock.map_err(file)?;
        if self.starts(dir) {
            return Ok(());
        }
        progress(&format!("installing {} {} ({}, once) into {}", self.name, self.version, self.size, dir.display()));
        let staged = Staged::new(dir).map_err(file)?;
        let at = staged.path();
        match &self.from {
            From::Pip { requirements, .. } => {
                let list = at.join("requirements.txt");
                write(&list, requirements.as_bytes())?;
                self.step(dir, Command::new("python3").args(["-m", "venv"]).arg(at), NO_PYTHON)?;
                let mut pip = Command::new(at.join("bin/python"));
                pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]);
                pip.args(["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r"]).arg(&list);
                self.step(dir, &mut pip, NO_PYTHON)?;
            }
            From::Npm { package, lock, .. } => {
                write(&at.join("package.json"), package.as_bytes())?;
                write(&at.join("package-lock.json"), lock.as_bytes())?;
                let mut npm = Command::new("npm");
                // Not `npm ci`: the lock file has what there is, and the package names systems there is nothing for.
                npm.args(["install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
                npm.current_dir(at);
                self.step(dir, &mut npm, NO_NODE)?;
            }
        }
        staged.commit().map_err(file)
    }

    /// One command of an installation; its output matters only where it fails.
    fn step(&self, dir: &Path, command: &mut Command, remedy: &'static str) -> Result<(), BuildError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let output = command.stdin(Stdio::null()).output();
        let output = output.map_err(|source| BuildError::NoProgram { program, source, remedy })?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stderr, output.stdout].concat();
        let said = String::from_utf8_lossy(&said);
        let is_news = |l: &&str| !l.is_empty() && !l.starts_with("WARNING") && !l.starts_with("npm warn");
        let first: Vec<&str> = said.lines().map(str::trim).filter(is_news).take(4).collect();
        let first = first.join("; ");
        let tool = format!("{} {}", self.name, self.version);
        Err(BuildError::Install {
            tool,
            dir: dir.to_owned(),
            why: format!("{first}; it needs the network, once; perhaps {remedy}"),
        })
    }
}

/// Where tools live.
pub(super) fn directory() -> PathBuf {
    cache_dir().unwrap_or_else(|| std::env::temp_dir().join("plastic-host")).join("tools")
}
