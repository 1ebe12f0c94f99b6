//! The SDKs of the languages that have no package manager to bring them: a few files that are part
//! of this program and are written into a project as `plastic_plugin/`, so that the project's own
//! tests find them. They are written again by each build, so they always speak this host's contract.

use super::project::Lang;
use super::{BuildError, c};
use crate::atomic::write_file;
use crate::plugin::Kind;
use std::borrow::Cow;
use std::path::Path;

/// The contract, for the tools that read it.
pub(super) const WIT: &str = include_str!("../../../../plugin-api/wit/rank.wit");

/// Directory of the SDK in a project.
pub const DIRECTORY: &str = "plastic_plugin";

macro_rules! sdk {
    ($path:literal) => {
        Cow::Borrowed(include_str!(concat!("../../../../plugin-api/", $path)))
    };
}

/// The name of a kind's world in the contract.
pub(super) fn world(kind: Kind) -> &'static str {
    match kind {
        Kind::Policy => "rank-policy",
        Kind::Evaluator => "evaluator",
    }
}

/// The files of an SDK, by name.
fn files(lang: Lang, kind: Kind) -> Result<Vec<(&'static str, Cow<'static, str>)>, BuildError> {
    Ok(match (lang, kind) {
        (Lang::Rust, _) => vec![],
        (Lang::C, _) => {
            let bindings = c::bindings(kind)?;
            let mut files = vec![
                ("plastic.h", bindings.header.into()),
                ("plastic.c", bindings.source.into()),
                ("common.h", sdk!("c/common.h")),
                ("common.c", sdk!("c/common.c")),
            ];
            match kind {
                Kind::Policy => {
                    files.extend([("policy.h", sdk!("c/policy.h")), ("policy.c", sdk!("c/policy.c"))]);
                }
                Kind::Evaluator => {
                    files.extend([("evaluator.h", sdk!("c/evaluator.h")), ("evaluator.c", sdk!("c/evaluator.c"))]);
                }
            }
            files
        }
        (Lang::Python, _) => {
            vec![("__init__.py", sdk!("python/__init__.py")), ("testing.py", sdk!("python/testing.py"))]
        }
        (Lang::Javascript, _) => {
            vec![("index.js", sdk!("javascript/index.js")), ("testing.js", sdk!("javascript/testing.js"))]
        }
    })
}

/// Writes the SDK into a project, where it is not there or not this host's.
///
/// # Errors
/// Where a file cannot be written.
pub fn refresh(dir: &Path, lang: Lang, kind: Kind) -> Result<(), BuildError> {
    for (name, text) in files(lang, kind)? {
        put(&dir.join(DIRECTORY).join(name), &text)?;
    }
    Ok(())
}

/// Writes a file unless it reads the same already.
pub(super) fn put(path: &Path, text: &str) -> Result<(), BuildError> {
    if std::fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    let io = |source| BuildError::Io { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    write_file(path, text.as_bytes()).map_err(|e| BuildError::Io { path: e.path, source: e.source })
}
