//! Texts from the data sets of the Hugging Face hub: `org/name[@revision][:file]`.
//!
//! One file is fetched, as checkpoints are: into the hub's own cache layout, checked, continued after a break. Where
//! no file is named, one is chosen by its name among those this program reads; the choice is kept, so that the
//! next time nobody is asked. Fails as fetching a model does, and where the data set has no file of a known kind,
//! with a command that makes one.

use super::cache::{self, RepoCache};
use super::transfer::{Listing, Transfer, is_inside};
use super::{Error, Kind, RepoSpec, Result, Settings};
use crate::atomic::FileError;
use crate::model::registry::FetchProgress;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Endings of files that are read, JSON lines first.
const READ: [&str; 6] = ["jsonl", "ndjson", "json", "txt", "text", "md"];
/// Endings that mark a name as that of a file, though it is not read.
const OTHER_FILES: [&str; 9] = ["csv", "tsv", "parquet", "arrow", "gz", "zst", "xz", "bz2", "zip"];
/// Files about a data set, by how their names begin.
const ABOUT: [&str; 9] =
    ["readme", "license", "licence", "notice", "citation", "requirements", "dataset_info", "config", "state"];
/// Plain text is read in one piece, which has a limit.
const LARGEST_PLAIN: u64 = 1 << 30;
/// Files a message names.
const NAMED: usize = 6;

/// A data set and, perhaps, a file of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextSpec {
    /// Repository and revision.
    pub repo: RepoSpec,
    /// The file, with its folders.
    pub file: Option<String>,
}

impl TextSpec {
    /// Reads `org/name[@revision][:file]`; `None` where it is not one, or looks like the path of a file.
    pub fn parse(text: &str) -> Option<TextSpec> {
        let (repo, file) = match text.split_once(':') {
            Some((repo, file)) => (repo, Some(file)),
            None => (text, None),
        };
        let ending = ending(repo);
        if text.starts_with(['.', '/', '~']) || READ.iter().chain(&OTHER_FILES).any(|e| *e == ending) {
            return None;
        }
        let repo = RepoSpec::parse(repo)?;
        file.is_none_or(is_inside).then(|| TextSpec { repo, file: file.map(str::to_owned) })
    }
}

impl std::fmt::Display for TextSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.repo)?;
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

/// What a text is for: it says which file of a data set to prefer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To measure on: held-out files come first.
    Judge,
    /// To train or calibrate on: held-out files come last.
    Learn,
}

impl Purpose {
    /// The place of a file among others, by the words in its path; the lowest is best.
    fn rank(self, file: &str) -> usize {
        let file = file.to_lowercase();
        let has = |begins: &[&str], is: &[&str]| {
            file.split(|c: char| !c.is_alphanumeric())
                .any(|word| is.contains(&word) || begins.iter().any(|b| word.starts_with(b)))
        };
        let part = match () {
            () if has(&["valid"], &["val", "eval", "heldout"]) => 0,
            () if has(&["test"], &[]) => 1,
            () if has(&["devset"], &["dev", "development"]) => 2,
            () if has(&["train"], &[]) => 3,
            () => 4,
        };
        match self {
            Purpose::Judge => part,
            Purpose::Learn => [4, 3, 2, 0, 1].get(part).copied().unwrap_or(part),
        }
    }

    /// As the cache names a choice that was made.
    fn name(self) -> &'static str {
        match self {
            Purpose::Judge => "judge",
            Purpose::Learn => "learn",
        }
    }
}

/// A file of a data set, in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Where it lies.
    pub path: PathBuf,
    /// Its name in the data set.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// True where it was just fetched.
    pub fetched: bool,
}

/// Finds the text that a spec names, fetching it if need be. What is cached is used without asking anybody.
///
/// # Errors
/// [`Error`], each with its remedy.
pub fn resolve(spec: &TextSpec, purpose: Purpose, progress: &mut dyn FetchProgress) -> Result<Text> {
    if let Some(file) = spec.file.as_deref().filter(|f| !READ.contains(&ending(f).as_str())) {
        return Err(not_text(spec, file));
    }
    let root = super::cache_dir().ok_or(Error::NoCache)?;
    let cache = RepoCache::new(&root, Kind::Dataset, &spec.repo.id);
    let text = match cached(&cache, spec, purpose) {
        Some(text) => text,
        None if super::offline() => present(&cache, spec, purpose).map_err(|missing| offline(spec, missing))?,
        None => fetch(spec, purpose, &Settings::from_env()?, progress)?,
    };
    match ending(&text.file) == "json" && !is_lines(&text.path)? {
        true => Err(not_text(spec, &text.file)),
        false => Ok(text),
    }
}

/// The named file, or the one that was chosen before.
fn cached(cache: &RepoCache, spec: &TextSpec, purpose: Purpose) -> Option<Text> {
    let commit = cache.commit(&spec.repo.revision)?;
    let file = spec.file.clone().or_else(|| cache.choice(&commit, purpose.name()).filter(|f| is_inside(f)))?;
    text(cache, &commit, &file, false)
}

/// The best of what the cache has, where the hub cannot be asked, or what is missing.
fn present(cache: &RepoCache, spec: &TextSpec, purpose: Purpose) -> std::result::Result<Text, String> {
    let absent = || match &spec.file {
        Some(file) => format!("its file {file} is not in the cache"),
        None => "none of its text files is in the cache".to_owned(),
    };
    let commit = cache.commit(&spec.repo.revision).ok_or("it is not in the cache")?;
    let file = match &spec.file {
        Some(file) => Some(file.clone()),
        None => {
            let dir = cache.snapshot(&commit);
            let files = cache.files(&commit);
            choose(files.iter().map(|f| (f.as_str(), dir.join(f).metadata().ok().map(|m| m.len()))), purpose)
        }
    };
    file.and_then(|f| text(cache, &commit, &f, false)).ok_or_else(absent)
}

/// A file of a snapshot, where it is there.
fn text(cache: &RepoCache, commit: &str, file: &str, fetched: bool) -> Option<Text> {
    let path = cache.snapshot(commit).join(file);
    let bytes = path.metadata().ok().filter(|m| m.is_file())?.len();
    Some(Text { path, file: file.to_owned(), bytes, fetched })
}

/// Asks the hub which files there are and fetches one.
fn fetch(spec: &TextSpec, purpose: Purpose, settings: &Settings, progress: &mut dyn FetchProgress) -> Result<Text> {
    let transfer = Transfer::new(Kind::Dataset, &spec.repo, settings, false)?;
    let listing = match transfer.listing() {
        Err(e @ (Error::Network { .. } | Error::Server { .. })) => {
            let text = present(&transfer.cache, spec, purpose).map_err(|_| e)?;
            progress.note(&format!("the hub does not answer; using the copy of {} in the cache", spec.repo));
            return Ok(text);
        }
        other => other?,
    };
    let file = match &spec.file {
        Some(file) if listing.files.contains_key(file) => file.clone(),
        Some(file) => {
            return Err(Error::NoFile { repo: label(spec), file: file.clone(), has: names(&listing, |_| true) });
        }
        None => choose(listing.files.iter().map(|(f, n)| (f.as_str(), *n)), purpose)
            .ok_or_else(|| no_text(spec, &listing, purpose))?,
    };
    if transfer.lacks(&listing, &file) {
        let needed = listing.files.get(&file).copied().flatten().unwrap_or(0);
        cache::check_space(&settings.cache, &label(spec), needed)?;
    }
    let fetched = transfer.lacks(&listing, &file);
    transfer.file(&listing, &file, progress)?;
    if spec.file.is_none() {
        transfer.cache.set_choice(&listing.commit, purpose.name(), &file)?;
    }
    // Last, as for models.
    transfer.cache.set_ref(&spec.repo.revision, &listing.commit)?;
    let gone = || {
        FileError::at("reading", &transfer.cache.snapshot(&listing.commit).join(&file))(
            std::io::ErrorKind::NotFound.into(),
        )
    };
    Ok(text(&transfer.cache, &listing.commit, &file, fetched).ok_or_else(gone)?)
}

/// The best of some files, with their lengths where known: JSON lines and plain text before `.json`, by purpose, the
/// smaller one of several.
fn choose<'a>(files: impl Iterator<Item = (&'a str, Option<u64>)>, purpose: Purpose) -> Option<String> {
    let fits = |(file, bytes): &(&str, Option<u64>)| {
        let (ending, name) = (ending(file), file.rsplit('/').next().unwrap_or(file).to_lowercase());
        let plain = matches!(ending.as_str(), "txt" | "text");
        let known = plain || matches!(ending.as_str(), "jsonl" | "ndjson" | "json");
        let readable = *bytes != Some(0) && !(plain && bytes.is_some_and(|n| n > LARGEST_PLAIN));
        known && readable && !name.starts_with('.') && !ABOUT.iter().any(|a| name.starts_with(a))
    };
    let best = files.filter(fits).min_by_key(|(file, bytes)| {
        (ending(file) == "json", purpose.rank(file), bytes.unwrap_or(u64::MAX), file.to_owned())
    })?;
    Some(best.0.to_owned())
}

/// True where a `.json` file holds one object a line, as far as its beginning tells.
fn is_lines(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    let file = std::fs::File::open(path).map_err(FileError::at("opening", path))?;
    file.take(1 << 20).read_to_end(&mut head).map_err(FileError::at("reading", path))?;
    let head = head.trim_ascii_start();
    let first = head.split(|b| *b == b'\n').next().unwrap_or_default();
    // A line longer than what was read is taken for an object if it begins like one.
    let cut = first.len() == head.len() && head.len() >= 1 << 19;
    Ok(first.starts_with(b"{") && (cut || serde_json::from_slice::<serde_json::Value>(first).is_ok()))
}

/// The part of a name after its last dot, in small letters; empty where there is none.
fn ending(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.rsplit_once('.').map_or_else(String::new, |(_, e)| e.to_lowercase())
}

fn label(spec: &TextSpec) -> String {
    Kind::Dataset.label(&spec.repo.id)
}

fn offline(spec: &TextSpec, missing: String) -> Error {
    Error::OfflineText { repo: label(spec), missing }
}

fn not_text(spec: &TextSpec, file: &str) -> Error {
    let remedy = match convert(&spec.repo, file) {
        Some(command) => format!("convert it to JSON lines with {command}"),
        None => format!("name a file that is, as {}:FILE", spec.repo),
    };
    Error::NotText { repo: label(spec), file: file.to_owned(), remedy }
}

/// There is nothing to choose: says what there is, and how to make a text of it.
fn no_text(spec: &TextSpec, listing: &Listing, purpose: Purpose) -> Error {
    let tables = listing.files.iter().filter(|(f, _)| convert(&spec.repo, f).is_some());
    let best = tables.min_by_key(|(f, n)| (purpose.rank(f), n.unwrap_or(u64::MAX)));
    let remedy = match best.and_then(|(f, _)| convert(&spec.repo, f)) {
        Some(command) => format!(
            "name a file that is JSON lines or plain text, as {}:FILE, or convert one with {command}",
            spec.repo
        ),
        None => "choose another data set, or download it and write its texts into a .jsonl file".to_owned(),
    };
    let has = match best {
        Some((f, _)) => names(listing, |name| ending(name) == ending(f)),
        None => names(listing, |_| true),
    };
    Error::NoText { repo: label(spec), has, remedy }
}

/// A shell command that makes JSON lines of a file, where Python has a reader for it.
fn convert(repo: &RepoSpec, file: &str) -> Option<String> {
    let name = file.rsplit('/').next().unwrap_or(file);
    let (stem, packed) = match ending(file).as_str() {
        "gz" | "zst" | "xz" | "bz2" => (name.rsplit_once('.')?.0, true),
        _ => (name, false),
    };
    let (reader, more) = match ending(stem).as_str() {
        "parquet" if !packed => ("read_parquet", ""),
        "csv" => ("read_csv", ""),
        "tsv" => ("read_table", ""),
        "jsonl" | "ndjson" if packed => ("read_json", ", lines=True"),
        "json" if !ABOUT.iter().any(|a| name.to_lowercase().starts_with(a)) => ("read_json", ""),
        _ => return None,
    };
    // What the shell or Python would read as something else is left to the user.
    if file.contains(['\'', '"', '\\', '\n']) {
        return None;
    }
    let out = stem.rsplit_once('.')?.0;
    Some(format!(
        "`python3 -c 'import pandas; pandas.{reader}(\"hf://datasets/{repo}/{file}\"{more}).to_json(\"{out}.jsonl\", orient=\"records\", lines=True)'` (needs `pip install pandas pyarrow huggingface_hub`; the text must be in a column `text`)"
    ))
}

/// Some names of a listing, for a message.
fn names(listing: &Listing, which: impl Fn(&str) -> bool) -> String {
    let all: Vec<&str> = listing.files.keys().map(String::as_str).filter(|f| !f.starts_with('.') && which(f)).collect();
    let more = all.len().saturating_sub(NAMED);
    let shown = all.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match (more, shown.is_empty()) {
        (_, true) => "nothing".to_owned(),
        (0, _) => shown,
        (n, _) => format!("{shown} and {n} more"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn specs_are_told_from_files() {
        let parse = |t: &str| TextSpec::parse(t).map(|s| (s.repo.to_string(), s.file));
        let yes = |repo: &str, file: Option<&str>| Some((repo.to_owned(), file.map(str::to_owned)));
        assert_eq!(parse("roneneldan/TinyStories"), yes("roneneldan/TinyStories", None));
        assert_eq!(parse("org/name-1.5@v1"), yes("org/name-1.5@v1", None));
        assert_eq!(parse("org/name:data/a b.txt"), yes("org/name", Some("data/a b.txt")));
        assert_eq!(parse("org/name@refs/pr/1:x.jsonl"), yes("org/name@refs/pr/1", Some("x.jsonl")));
        for file in [
            "data/x.jsonl",
            "data/x.txt",
            "data/x.TXT",
            "./org/name",
            "/org/name",
            "../a/b",
            "name",
            "a/b/c",
            "org/name:",
            "org/name:../x",
            "org/name:/etc/passwd",
            "data/x.jsonl:3",
            "data/x.parquet",
            "",
        ] {
            assert_eq!(parse(file), None, "{file}");
        }
    }

    #[test]
    fn held_out_files_come_first_and_small_ones_before_large_ones() {
        let stories = [
            (".gitattributes", Some(2000)),
            ("README.md", Some(1000)),
            ("TinyStories-train.txt", Some(1_924_281_556)),
            ("TinyStories-valid.txt", Some(19_447_282)),
            ("TinyStoriesV2-GPT4-valid.txt", Some(22_502_601)),
            ("data/validation-00000-of-00001.parquet", Some(1)),
        ];
        let judge = |files: &[(&str, Option<u64>)]| choose(files.iter().copied(), Purpose::Judge);
        let learn = |files: &[(&str, Option<u64>)]| choose(files.iter().copied(), Purpose::Learn);
        assert_eq!(judge(&stories).unwrap(), "TinyStories-valid.txt");
        // The training text is more than can be read in one piece.
        assert_eq!(learn(&stories).unwrap(), "TinyStories-valid.txt");
        let parts = [
            ("a/train.jsonl", Some(9)),
            ("a/dev.jsonl", Some(9)),
            ("a/test.jsonl", Some(9)),
            ("a/other.jsonl", Some(9)),
            ("latest.jsonl", Some(1)),
            ("requirements.txt", Some(1)),
            ("validation.json", Some(1)),
            ("empty-valid.jsonl", Some(0)),
        ];
        assert_eq!(judge(&parts).unwrap(), "a/test.jsonl");
        assert_eq!(judge(&parts[..2]).unwrap(), "a/dev.jsonl");
        assert_eq!(judge(&parts[..1]).unwrap(), "a/train.jsonl");
        assert_eq!(learn(&parts).unwrap(), "a/train.jsonl");
        assert_eq!(learn(&parts[1..]).unwrap(), "latest.jsonl");
        assert_eq!(judge(&parts[5..]).unwrap(), "validation.json");
        assert_eq!(judge(&stories[..2]), None);
    }

    #[test]
    fn tables_come_with_a_command_that_converts_them() {
        let repo = RepoSpec::parse("org/name@v1").unwrap();
        let command = convert(&repo, "data/train-0.parquet").unwrap();
        assert!(
            command
                .contains(r#"read_parquet("hf://datasets/org/name@v1/data/train-0.parquet").to_json("train-0.jsonl""#),
            "{command}"
        );
        assert!(convert(&repo, "x.jsonl.gz").unwrap().contains(r#"x.jsonl.gz", lines=True).to_json("x.jsonl""#));
        for none in ["x.bin", "x.zip", "it's.csv", "dataset_infos.json", "x"] {
            assert_eq!(convert(&repo, none), None, "{none}");
        }
    }

    #[test]
    fn json_lines_are_told_from_one_document() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        for (text, lines) in
            [("{\"text\": \"a\"}\n{}\n", true), ("[\n{}]", false), ("{\n\"a\": 1}", false), ("[{\"text\": 1}]", false)]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(is_lines(&path).unwrap(), lines, "{text}");
        }
    }
}
