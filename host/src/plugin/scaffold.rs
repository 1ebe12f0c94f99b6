//! A new plugin's project: a policy or an evaluator that does something small, in any of the four
//! languages, with a test. Fails where the directory holds something already, or a Rust project's
//! SDK is not where it is said to be; a project that fails half-way names the file.

use super::Kind;
use super::build::project::{Lang, MANIFEST, check_name};
use super::build::{BuildError, sdk};
use crate::atomic::write_file;
use std::path::{Path, PathBuf};

/// What to make.
#[derive(Clone, Debug)]
pub struct Scaffold {
    /// Name of the plugin.
    pub name: String,
    /// What it decides.
    pub kind: Kind,
    /// What it is written in.
    pub lang: Lang,
    /// Rust: the directory of the crate `plastic-plugin`.
    pub sdk: Option<PathBuf>,
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// Files of the author's, relative to the project. The SDK's are not among them.
    pub files: Vec<String>,
    /// The one to begin with.
    pub source: String,
    /// The command that runs the test, in the project.
    pub test: &'static str,
}

/// Why no project was made.
#[derive(Debug, thiserror::Error)]
pub enum ScaffoldError {
    /// The name is no plugin's.
    #[error("{0}")]
    Name(String),
    /// There is something already.
    #[error("{0} is not empty; name another directory")]
    NotEmpty(PathBuf),
    /// The Rust SDK is not there.
    #[error(
        "the Rust SDK, the directory `plugin-api` of plastic-host's source, is not beside this installation; name it with --sdk"
    )]
    NoSdk,
    /// What was named is not the Rust SDK.
    #[error("{0} is not the crate plastic-plugin; name the directory `plugin-api` of plastic-host's source with --sdk")]
    NotSdk(PathBuf),
    /// A file could not be written.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] crate::atomic::FileError),
}

macro_rules! template {
    ($path:literal) => {
        include_str!(concat!("../../../plugin-api/templates/", $path))
    };
}

/// Files of a project, as path and template. The path of the source comes first.
fn templates(lang: Lang, kind: Kind) -> Vec<(&'static str, &'static str)> {
    let mut files = match (lang, kind) {
        (Lang::Rust, Kind::Policy) => vec![("src/lib.rs", template!("rust/policy/lib.rs"))],
        (Lang::Rust, Kind::Evaluator) => vec![("src/lib.rs", template!("rust/evaluator/lib.rs"))],
        (Lang::C, Kind::Policy) => {
            vec![("policy.c", template!("c/policy/policy.c")), ("test.c", template!("c/policy/test.c"))]
        }
        (Lang::C, Kind::Evaluator) => {
            vec![("evaluator.c", template!("c/evaluator/evaluator.c")), ("test.c", template!("c/evaluator/test.c"))]
        }
        (Lang::Python, Kind::Policy) => vec![
            ("policy.py", template!("python/policy/policy.py")),
            ("test_policy.py", template!("python/policy/test_policy.py")),
        ],
        (Lang::Python, Kind::Evaluator) => vec![
            ("evaluator.py", template!("python/evaluator/evaluator.py")),
            ("test_evaluator.py", template!("python/evaluator/test_evaluator.py")),
        ],
        (Lang::Javascript, Kind::Policy) => vec![
            ("policy.js", template!("javascript/policy/policy.js")),
            ("policy.test.js", template!("javascript/policy/policy.test.js")),
        ],
        (Lang::Javascript, Kind::Evaluator) => vec![
            ("evaluator.js", template!("javascript/evaluator/evaluator.js")),
            ("evaluator.test.js", template!("javascript/evaluator/evaluator.test.js")),
        ],
    };
    match lang {
        Lang::Rust => {
            files.extend([("Cargo.toml", template!("rust/Cargo.toml")), (".gitignore", "/target\n/*.wasm\n")])
        }
        Lang::C => files.extend([("Makefile", template!("c/Makefile")), (".gitignore", "/*-test\n/*.wasm\n")]),
        Lang::Python => files.push((".gitignore", "__pycache__/\n/*.wasm\n")),
        Lang::Javascript => {
            files.extend([("package.json", template!("javascript/package.json")), (".gitignore", "/*.wasm\n")]);
        }
    }
    if lang != Lang::Rust {
        files.push((MANIFEST, template!("plugin.toml")));
    }
    files.push(("README.md", template!("README.md")));
    files
}

/// Makes the project in `dir`, which must not be there or be empty.
///
/// # Errors
/// [`ScaffoldError`].
pub fn make(what: &Scaffold, dir: &Path) -> Result<Made, ScaffoldError> {
    check_name(&what.name).map_err(ScaffoldError::Name)?;
    if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) || dir.is_file() {
        return Err(ScaffoldError::NotEmpty(dir.to_owned()));
    }
    let sdk = match (what.lang, &what.sdk) {
        (Lang::Rust, Some(sdk)) => rust_sdk(sdk)?,
        (Lang::Rust, None) => return Err(ScaffoldError::NoSdk),
        _ => String::new(),
    };
    let files = templates(what.lang, what.kind);
    let source = files.first().map(|(path, _)| path.to_string()).unwrap_or_default();
    let (lang, test) = match what.lang {
        Lang::Rust => ("rust", "cargo test"),
        Lang::C => ("c", "make test"),
        Lang::Python => ("python", "python3 -m unittest"),
        Lang::Javascript => ("javascript", "node --test"),
    };
    let (summary, usage) = match what.kind {
        Kind::Policy => ("Keeps the same share of the components of every slice", "plastic-host --policy"),
        Kind::Evaluator => ("Accepts while the mean loss rises no more than allowed", "plastic-host --evaluator"),
    };
    let usage = format!("{usage} {}.wasm", what.name);
    let (kind, title) = (what.kind.to_string(), what.lang.to_string());
    let (camel, test_line) =
        (type_name(&what.name, what.kind), format!("{test:<29}# tests it natively, without a host"));
    let values = [
        ("@name@", what.name.as_str()),
        ("@Type@", &camel),
        ("@a@", if what.kind == Kind::Policy { "a" } else { "an" }),
        ("@kind@", &kind),
        ("@lang@", lang),
        ("@Lang@", &title),
        ("@source@", &source),
        ("@summary@", summary),
        ("@test@", &test_line),
        ("@use@", &usage),
        ("@sdk@", &sdk),
    ];
    for (path, template) in &files {
        let text = values.iter().fold(template.to_string(), |text, (from, to)| text.replace(from, to));
        let path = dir.join(path);
        let parent = path.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent).map_err(crate::atomic::FileError::at("creating", parent))?;
        write_file(&path, text.as_bytes())?;
    }
    sdk::refresh(dir, what.lang, what.kind)?;
    Ok(Made { files: files.into_iter().map(|(path, _)| path.to_owned()).collect(), source, test })
}

/// The path of the Rust SDK as a string of TOML.
fn rust_sdk(dir: &Path) -> Result<String, ScaffoldError> {
    let not = || ScaffoldError::NotSdk(dir.to_owned());
    let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).map_err(|_| not())?;
    let manifest: toml::Table = manifest.parse().map_err(|_| not())?;
    let name = manifest.get("package").and_then(|p| p.get("name")).and_then(toml::Value::as_str);
    let path = dir.canonicalize().map_err(|_| not())?;
    match (name, path.to_str()) {
        (Some("plastic-plugin"), Some(path)) => Ok(toml::Value::from(path).to_string()),
        _ => Err(not()),
    }
}

/// Types that the templates name, in any language.
const TAKEN: [&str; 20] = [
    "Self",
    "Options",
    "Plan",
    "Observation",
    "String",
    "Result",
    "RankPolicy",
    "Policy",
    "Verdict",
    "Evaluator",
    "Measure",
    "Metric",
    "Task",
    "Run",
    "Slice",
    "SliceView",
    "Subject",
    "NoOptions",
    "Vec",
    "Number",
];

/// The name of the plugin's type, which is none that the template needs.
fn type_name(name: &str, kind: Kind) -> String {
    let own = camel(name);
    match (TAKEN.contains(&own.as_str()), kind) {
        (false, _) => own,
        (true, Kind::Policy) => format!("{own}RankPolicy"),
        (true, Kind::Evaluator) => format!("{own}Judge"),
    }
}

/// `top-heavy` as the name of a type: `TopHeavy`.
fn camel(name: &str) -> String {
    let word = |w: &str| w.get(..1).map(str::to_uppercase).unwrap_or_default() + w.get(1..).unwrap_or_default();
    name.split('-').map(word).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn scaffold(lang: Lang, kind: Kind) -> Scaffold {
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-api");
        Scaffold { name: "my-plugin-2".into(), kind, lang, sdk: Some(sdk) }
    }

    #[test]
    fn every_project_is_whole() {
        for lang in [Lang::Rust, Lang::C, Lang::Python, Lang::Javascript] {
            for kind in [Kind::Policy, Kind::Evaluator] {
                let dir = tempfile::tempdir().unwrap();
                let made = make(&scaffold(lang, kind), dir.path()).unwrap();
                let source = std::fs::read_to_string(dir.path().join(&made.source)).unwrap();
                assert!(lang == Lang::C || source.contains("MyPlugin2"), "{source}");
                for file in &made.files {
                    let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
                    let left = text.split('@').nth(1).filter(|word| word.chars().all(char::is_alphabetic));
                    assert!(left.is_none(), "{file}: @{}@ is left", left.unwrap());
                }
                if lang != Lang::Rust {
                    let project = crate::plugin::build::project::Project::read(dir.path()).unwrap();
                    assert_eq!((project.lang, project.kind, project.name.as_str()), (lang, kind, "my-plugin-2"));
                    assert!(dir.path().join(sdk::DIRECTORY).is_dir());
                }
                let again = make(&scaffold(lang, kind), dir.path()).unwrap_err();
                assert!(again.to_string().ends_with("is not empty; name another directory"), "{again}");
            }
        }
    }

    #[test]
    fn a_rust_project_names_an_sdk_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut what = scaffold(Lang::Rust, Kind::Policy);
        what.sdk = Some(dir.path().to_owned());
        let text = make(&what, &dir.path().join("new")).unwrap_err().to_string();
        assert!(text.contains("is not the crate plastic-plugin"), "{text}");
        what.sdk = None;
        let text = make(&what, &dir.path().join("new")).unwrap_err().to_string();
        assert!(text.contains("name it with --sdk"), "{text}");
        assert!(!dir.path().join("new").exists());
    }

    #[test]
    fn a_name_becomes_a_file_and_a_type() {
        let mut what = scaffold(Lang::C, Kind::Policy);
        what.name = "../x".into();
        let text = make(&what, Path::new("/nowhere")).unwrap_err().to_string();
        assert!(text.contains("expected lower-case letters, digits and `-`"), "{text}");
        assert_eq!(camel("a-top-heavy"), "ATopHeavy");
    }
}
