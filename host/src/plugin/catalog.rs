//! The plugin path: which files of which directories are plugins, and which of them a name means.
//!
//! Scanning looks at names and kinds of files only; nothing is opened, let alone run. What cannot be
//! used (a directory called `x.wasm`, a link to nowhere) is kept with the reason, so that it can be
//! shown. Looking up a name fails with a sentence that says where it was looked for.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// What carries a plugin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// A WebAssembly component or module, in a sandbox.
    #[default]
    Wasm,
    /// A native library, with all rights of the user.
    Native,
}

impl Carrier {
    /// By the ending of a file's name; none for what is no plugin.
    pub fn of(path: &Path) -> Option<Carrier> {
        precedence(path).map(|p| if p == 0 { Carrier::Wasm } else { Carrier::Native })
    }
}

impl std::fmt::Display for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Carrier::Wasm => "wasm",
            Carrier::Native => "native",
        })
    }
}

/// Endings of plugins; the earlier one is taken where several files bear one name.
const ENDINGS: [&str; 3] = ["wasm", "so", "dylib"];

fn precedence(path: &Path) -> Option<usize> {
    let ending = path.extension()?;
    ENDINGS.iter().position(|e| ending == *e)
}

/// A directory on the path.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// Why it cannot be read; a directory that is not there is none.
    pub problem: Option<String>,
}

/// A file on the path whose name ends like a plugin's.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The name it is called by: its file name without the ending.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What carries it.
    pub carrier: Carrier,
    /// Why it cannot be a plugin.
    pub problem: Option<String>,
    /// The file that its name means instead.
    pub shadowed_by: Option<PathBuf>,
    folder: usize,
}

/// A name does not lead to a plugin.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FindError {
    /// It is a path, or nothing at all.
    #[error("{name:?}: no such file, and no name of a plugin either; give a .wasm file, or a name without directories")]
    NotAName {
        /// What was asked for.
        name: String,
    },
    /// Several plugins of one directory call themselves so.
    #[error("{name}: {} plugins in {} call themselves so: {}; name the file", .paths.len(), .folder.display(), list(.paths))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// Where they are.
        folder: PathBuf,
        /// All of them.
        paths: Vec<PathBuf>,
    },
    /// There is none.
    #[error("{name}: no such plugin{}{}; looked in {}; `plastic-host plugin list` shows what is there", alike(.near), broken(.unusable), places(.folders))]
    Missing {
        /// What was asked for.
        name: String,
        /// Names that look alike.
        near: Vec<String>,
        /// A file of that name, and what is wrong with it.
        unusable: Option<(PathBuf, String)>,
        /// Where it was looked for.
        folders: Vec<String>,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ")
}

fn alike(names: &[String]) -> String {
    match names {
        [] => String::new(),
        _ => format!("; did you mean {}?", names.join(" or ")),
    }
}

fn broken(found: &Option<(PathBuf, String)>) -> String {
    found.as_ref().map_or_else(String::new, |(path, why)| format!("; {} cannot be used: {why}", path.display()))
}

fn places(folders: &[String]) -> String {
    if folders.is_empty() { "no directory, none exists".into() } else { folders.join(", ") }
}

/// What is on the plugin path.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    folders: Vec<Folder>,
    files: Vec<Candidate>,
}

impl Catalog {
    /// Looks through the directories, in the order of their precedence. One that is named twice counts once.
    pub fn scan(folders: &[PathBuf]) -> Catalog {
        let mut catalog = Catalog::default();
        let mut seen = Vec::new();
        for path in folders {
            let identity = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            if !seen.contains(&identity) {
                seen.push(identity);
                catalog.add(path);
            }
        }
        let mut first: HashMap<String, PathBuf> = HashMap::new();
        for file in catalog.files.iter_mut().filter(|f| f.problem.is_none()) {
            match first.get(&file.name) {
                Some(path) => file.shadowed_by = Some(path.clone()),
                None => drop(first.insert(file.name.clone(), file.path.clone())),
            }
        }
        catalog
    }

    fn add(&mut self, path: &Path) {
        let folder = self.folders.len();
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(e) => return self.folders.push(Folder { path: path.to_owned(), problem: Some(e.to_string()) }),
        };
        let mut problem = None;
        let mut found = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => found.extend(candidate(entry.path(), folder)),
                Err(e) => problem = Some(e.to_string()),
            }
        }
        found.sort_by(|a, b| (&a.name, precedence(&a.path)).cmp(&(&b.name, precedence(&b.path))));
        self.files.extend(found);
        self.folders.push(Folder { path: path.to_owned(), problem });
    }

    /// The directories that exist, first ones first.
    pub fn folders(&self) -> &[Folder] {
        &self.folders
    }

    /// All files, in the order in which names are looked up.
    pub fn files(&self) -> &[Candidate] {
        &self.files
    }

    /// The file that `name` means: a file name, a file name without its ending, or what the plugin
    /// calls itself, as `own_name` says; the last is asked only where no file bears the name.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn find(&self, name: &Path, own_name: &mut dyn FnMut(&Path) -> Option<String>) -> Result<PathBuf, FindError> {
        let mut parts = name.components();
        let text = match (parts.next(), parts.next(), name.to_str()) {
            (Some(Component::Normal(_)), None, Some(text)) if !text.ends_with('/') => text,
            _ => return Err(FindError::NotAName { name: name.display().to_string() }),
        };
        let bears = |f: &&Candidate| f.name == text || f.path.file_name().is_some_and(|n| n == text);
        if let Some(file) = self.usable().find(bears) {
            return Ok(file.path.clone());
        }
        for (number, folder) in self.folders.iter().enumerate() {
            let called = |f: &&Candidate| f.folder == number && own_name(&f.path).as_deref() == Some(text);
            let paths: Vec<PathBuf> = self.usable().filter(called).map(|f| f.path.clone()).collect();
            match <[PathBuf; 1]>::try_from(paths) {
                Ok([path]) => return Ok(path),
                Err(paths) if paths.is_empty() => {}
                Err(paths) => {
                    return Err(FindError::Ambiguous { name: text.into(), folder: folder.path.clone(), paths });
                }
            }
        }
        let folders = self.folders.iter().map(|f| match &f.problem {
            None => f.path.display().to_string(),
            Some(why) => format!("{} (cannot be read: {why})", f.path.display()),
        });
        let broken = self.files.iter().filter(|f| f.problem.is_some()).find(bears);
        Err(FindError::Missing {
            name: text.into(),
            near: self.near(text),
            unusable: broken.and_then(|f| Some((f.path.clone(), f.problem.clone()?))),
            folders: folders.collect(),
        })
    }

    fn usable(&self) -> impl Iterator<Item = &Candidate> {
        self.files.iter().filter(|f| f.problem.is_none())
    }

    /// At most three names like `name`, the closest first.
    fn near(&self, name: &str) -> Vec<String> {
        let mut scored: Vec<(f64, &str)> =
            self.usable().map(|f| (strsim::jaro_winkler(name, &f.name), f.name.as_str())).collect();
        scored.retain(|(score, _)| *score >= 0.8);
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        scored.dedup_by_key(|s| s.1);
        scored.into_iter().take(3).map(|s| s.1.to_owned()).collect()
    }
}

/// The candidate a directory entry is, if its name ends like a plugin's.
fn candidate(path: PathBuf, folder: usize) -> Option<Candidate> {
    let carrier = Carrier::of(&path)?;
    let name = path.file_stem()?.to_string_lossy().into_owned();
    // Follows links; opening a pipe would wait for its writer.
    let problem = match std::fs::metadata(&path) {
        Ok(m) if m.is_file() => None,
        Ok(m) if m.is_dir() => Some("it is a directory".into()),
        Ok(_) => Some("it is not a regular file".into()),
        Err(e) => Some(e.to_string()),
    };
    Some(Candidate { name, path, carrier, problem, shadowed_by: None, folder })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::fs;

    fn folders(layout: &[&[&str]]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let root = tempfile::tempdir().unwrap();
        let dirs = layout.iter().enumerate().map(|(i, files)| {
            let dir = root.path().join(i.to_string());
            fs::create_dir(&dir).unwrap();
            files.iter().for_each(|f| fs::write(dir.join(f), f).unwrap());
            dir
        });
        let dirs = dirs.collect();
        (root, dirs)
    }

    /// Finds, where each plugin calls itself "own-" and its file name's stem.
    fn find(catalog: &Catalog, name: &str) -> Result<PathBuf, FindError> {
        catalog.find(Path::new(name), &mut |p| Some(format!("own-{}", p.file_stem()?.to_str()?)))
    }

    #[test]
    fn the_first_directory_and_the_component_win() {
        let (_root, dirs) = folders(&[&["a.so", "a.wasm", "notes.txt"], &["a.wasm", "b.dylib"]]);
        let catalog = Catalog::scan(&[dirs[0].clone(), dirs[1].clone(), dirs[0].clone()]);
        assert_eq!(catalog.files().len(), 4, "a directory named twice counts once, and texts are no plugins");
        assert_eq!(find(&catalog, "a").unwrap(), dirs[0].join("a.wasm"));
        assert_eq!(find(&catalog, "a.so").unwrap(), dirs[0].join("a.so"), "a whole file name");
        assert_eq!(find(&catalog, "b").unwrap(), dirs[1].join("b.dylib"));
        assert_eq!(find(&catalog, "own-b").unwrap(), dirs[1].join("b.dylib"), "what it calls itself");
        let shadowed = catalog.files().iter().filter(|f| f.shadowed_by == Some(dirs[0].join("a.wasm")));
        assert_eq!(shadowed.count(), 2);
    }

    #[test]
    fn two_plugins_that_call_themselves_alike_are_both_named() {
        let (_root, dirs) = folders(&[&["a.wasm", "b.wasm"], &["c.wasm"]]);
        let catalog = Catalog::scan(&dirs);
        let error = catalog.find(Path::new("same"), &mut |_| Some("same".into())).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("a.wasm and ") && text.contains("b.wasm") && !text.contains("c.wasm"), "{text}");
    }

    #[test]
    fn what_is_missing_says_where_it_was_looked_for_and_what_looks_alike() {
        let (_root, dirs) = folders(&[&["energy.wasm", "entropy.wasm"], &["energy.wasm"]]);
        let error = find(&Catalog::scan(&dirs), "enrgy").unwrap_err();
        let FindError::Missing { near, folders, .. } = &error else { panic!("{error}") };
        assert_eq!((near[0].as_str(), folders.len()), ("energy", 2));
        let nowhere = find(&Catalog::scan(&["/no/such/place".into()]), "x").unwrap_err().to_string();
        assert!(nowhere.contains("none exists"), "{nowhere}");
    }

    #[test]
    fn a_name_cannot_leave_the_path() {
        let (_root, dirs) = folders(&[&["a.wasm"]]);
        let catalog = Catalog::scan(&dirs);
        for name in ["", ".", "..", "../0/a", "/a", "sub/a", "a/"] {
            assert!(matches!(find(&catalog, name), Err(FindError::NotAName { .. })), "{name:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_named_with_the_reason() {
        let (_root, dirs) = folders(&[&[], &["a.wasm"]]);
        fs::create_dir(dirs[0].join("a.wasm")).unwrap();
        std::os::unix::fs::symlink("loop.wasm", dirs[0].join("loop.wasm")).unwrap();
        let catalog = Catalog::scan(&dirs);
        assert_eq!(find(&catalog, "a").unwrap(), dirs[1].join("a.wasm"), "a directory shadows nothing");
        let text = find(&catalog, "loop").unwrap_err().to_string();
        assert!(text.contains("loop.wasm cannot be used"), "{text}");
        let of_a_file = Catalog::scan(&[dirs[1].join("a.wasm")]);
        assert!(of_a_file.folders()[0].problem.is_some(), "a file on the path is no directory");
    }
}
