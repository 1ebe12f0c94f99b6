//! `plastic.lock`: which plugins, by content, a project uses.
//!
//! A TOML file with one `[[plugin]]` table a plugin. It is read with suspicion: unknown keys, a second
//! entry of one name, a digest that is none or a file name with directories in it refuse the whole
//! file, by name. Written whole or not at all.

use super::Kind;
use crate::atomic;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The lock's name in a project's directory.
pub const LOCK_FILE: &str = "plastic.lock";
/// Version of the file's layout.
const LAYOUT: u32 = 1;
/// No lock is larger.
const MOST_BYTES: u64 = 1 << 20;
const HEAD: &str = "# The plugins this project uses, by content. Written by `plastic-host plugin lock`; keep it under version control.\n";

/// One plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What it calls itself; of a native library, which is not asked, its file's name.
    pub name: String,
    /// Its own version; empty for a native library.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Policy or evaluator; none for a native library.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// SHA-256 of its file, lower-case hex.
    pub sha256: String,
    /// Name of its file, without directories.
    pub file: String,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    #[serde(default, rename = "plugin")]
    entries: Vec<Entry>,
}

/// A lock cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It is not there.
    #[error("{}: there is no such lock; write it with `plastic-host plugin lock FILE...`", .path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("{}: the lock cannot be read: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is no lock.
    #[error("{}: is no lock of plugins: {message}; put it back, or delete it and write it anew with `plastic-host plugin lock FILE...`", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] atomic::FileError),
}

/// What a lock says about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing<'a> {
    /// It is this plugin.
    Locked(&'a Entry),
    /// It bears the name of this plugin and is not it.
    Changed(&'a Entry),
    /// Nothing.
    Absent,
}

impl Default for Lock {
    fn default() -> Lock {
        Lock { version: LAYOUT, entries: Vec::new() }
    }
}

impl Lock {
    /// Reads a lock.
    ///
    /// # Errors
    /// [`LockError`]; a missing file is [`LockError::Missing`].
    pub fn read(path: &Path) -> Result<Lock, LockError> {
        let bytes = atomic::read_bounded(path, MOST_BYTES).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => LockError::Missing { path: path.to_owned() },
            _ => LockError::Read { path: path.to_owned(), source },
        })?;
        Lock::parse(&bytes).map_err(|message| LockError::Content { path: path.to_owned(), message })
    }

    /// The same for its content.
    ///
    /// # Errors
    /// A sentence: what is wrong, and in which line.
    pub fn parse(bytes: &[u8]) -> Result<Lock, String> {
        let text = str::from_utf8(bytes).map_err(|e| e.to_string())?;
        let lock: Lock = toml::from_str(text).map_err(|e| match e.span() {
            None => e.message().to_owned(),
            Some(span) => {
                let line = 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count();
                format!("line {line}: {}", e.message())
            }
        })?;
        if lock.version != LAYOUT {
            return Err(format!("its version is {}, this host reads {LAYOUT}", lock.version));
        }
        let mut names = std::collections::HashSet::new();
        for entry in &lock.entries {
            entry.check()?;
            if !names.insert((&entry.name, entry.kind.map(|k| k.to_string()))) {
                return Err(format!("the plugin {:?} is in it twice", entry.name));
            }
        }
        Ok(lock)
    }

    /// Writes the lock, in the order of names.
    ///
    /// # Errors
    /// Where the file cannot be written; the old one is then untouched.
    pub fn write(&self, path: &Path) -> Result<(), LockError> {
        let content = |message: String| LockError::Content { path: path.to_owned(), message };
        let text = toml::to_string(self).map_err(|e| content(e.to_string()))?;
        let text = format!("{HEAD}{text}");
        // What is written must be what is read.
        Lock::parse(text.as_bytes()).map_err(content)?;
        if text.len() as u64 > MOST_BYTES {
            return Err(content(format!("it would be larger than {} MiB", MOST_BYTES >> 20)));
        }
        Ok(atomic::write_file(path, text.as_bytes())?)
    }

    /// All plugins.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Puts a plugin in, in the place of the one of its name; answers that one.
    pub fn put(&mut self, entry: Entry) -> Option<Entry> {
        let same = |e: &Entry| e.name == entry.name && e.kind == entry.kind;
        if let Some(old) = self.entries.iter_mut().find(|e| same(e)) {
            return Some(std::mem::replace(old, entry));
        }
        self.entries.push(entry);
        self.entries.sort_by(|a, b| (&a.name, &a.file).cmp(&(&b.name, &b.file)));
        None
    }

    /// Takes the plugins of this name, or of this file's name, out; answers how many.
    pub fn remove(&mut self, name: &str) -> usize {
        let before = self.entries.len();
        self.entries.retain(|e| e.name != name && e.file != name);
        before - self.entries.len()
    }

    /// What the lock says about the content of a file. Content decides, except that a file which bears
    /// the name of a locked one has to be that one: another locked plugin put into its place is none.
    pub fn judge(&self, path: &Path, sha256: &str) -> Standing<'_> {
        let of_file = |e: &&Entry| path.file_name().is_some_and(|n| n == e.file.as_str());
        let of_name = |e: &&Entry| path.file_stem().is_some_and(|n| n == e.name.as_str());
        let mut named = self.entries.iter().filter(of_file).peekable();
        if let Some(first) = named.peek().copied() {
            return named.find(|e| e.sha256 == sha256).map_or(Standing::Changed(first), Standing::Locked);
        }
        if let Some(entry) = self.entries.iter().find(|e| e.sha256 == sha256) {
            return Standing::Locked(entry);
        }
        self.entries.iter().find(of_name).map_or(Standing::Absent, Standing::Changed)
    }
}

impl Entry {
    fn check(&self) -> Result<(), String> {
        let plain = |text: &str| {
            !text.is_empty() && text.len() <= 255 && !text.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'))
        };
        if !plain(&self.name) || self.version.chars().any(char::is_control) {
            return Err(format!("{:?} is no name of a plugin", self.name));
        }
        if !plain(&self.file) || matches!(self.file.as_str(), "." | "..") {
            return Err(format!("the file of {} is {:?}, which is no file name", self.name, self.file));
        }
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if self.sha256.len() != 64 || !self.sha256.bytes().all(hex) {
            return Err(format!("the sha256 of {} is not 64 lower-case hexadecimal digits", self.name));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str, digit: char) -> Entry {
        Entry {
            name: name.into(),
            version: "1.0.0".into(),
            kind: Some(Kind::Policy),
            sha256: digit.to_string().repeat(64),
            file: format!("{name}.wasm"),
        }
    }

    fn lock() -> Lock {
        let mut lock = Lock::default();
        assert_eq!(lock.put(entry("b", 'b')), None);
        assert_eq!(lock.put(entry("a", 'a')), None);
        lock
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK_FILE);
        let mut lock = lock();
        lock.put(Entry { version: String::new(), kind: None, ..entry("n", 'c') });
        lock.write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock);
        assert_eq!(lock.entries()[0].name, "a", "sorted");
        assert_eq!(lock.put(entry("a", 'd')), Some(entry("a", 'a')), "one entry a name");
        assert_eq!((lock.remove("a"), lock.remove("b.wasm"), lock.remove("a")), (1, 1, 0));
    }

    #[test]
    fn content_decides_and_a_locked_file_keeps_its_place() {
        let lock = lock();
        let judge = |path: &str, digit: char| match lock.judge(Path::new(path), &digit.to_string().repeat(64)) {
            Standing::Locked(e) => format!("locked {}", e.name),
            Standing::Changed(e) => format!("changed {}", e.name),
            Standing::Absent => "absent".into(),
        };
        assert_eq!(judge("x/a.wasm", 'a'), "locked a");
        assert_eq!(judge("x/copy.wasm", 'a'), "locked a", "a file may be renamed");
        assert_eq!(judge("x/a.wasm", 'b'), "changed a", "another locked plugin in its place");
        assert_eq!(judge("x/a.so", 'c'), "changed a");
        assert_eq!(judge("x/c.wasm", 'c'), "absent");
    }

    #[test]
    fn what_is_no_lock_is_refused_with_the_reason() {
        let good = toml::to_string(&lock()).unwrap();
        assert!(Lock::parse(good.as_bytes()).is_ok());
        assert!(Lock::parse(b"version = 1").unwrap().entries().is_empty());
        let long = format!("{}g", "a".repeat(63));
        for (text, expected) in [
            (String::new(), "missing field `version`"),
            ("version = 1\n[[plugin]\n".into(), "line 2"),
            ("version = 2".into(), "its version is 2"),
            (format!("{good}extra = 1\n"), "unknown field `extra`"),
            (good.replace("a.wasm", "../a.wasm"), "no file name"),
            (good.replace("a.wasm", ".."), "no file name"),
            (good.replace("\"a\"", "\"x/a\""), "no name"),
            (good.replace("\"a\"", "\"a\\u0007\""), "no name"),
            (good.replace("\"a\"", "\"b\""), "twice"),
            (good.replace(&"a".repeat(64), &"A".repeat(64)), "64 lower-case"),
            (good.replace(&"a".repeat(64), &long), "64 lower-case"),
            (good.replace("policy", "oracle"), "unknown variant"),
        ] {
            let error = Lock::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}\n{text}");
        }
        assert!(Lock::parse(b"\xff").is_err());
    }

    #[test]
    fn a_huge_or_missing_lock_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK_FILE);
        assert!(matches!(Lock::read(&path), Err(LockError::Missing { .. })));
        std::fs::write(&path, vec![b'\n'; MOST_BYTES as usize + 1]).unwrap();
        let error = Lock::read(&path).unwrap_err().to_string();
        assert!(error.contains("larger than 1 MiB"), "{error}");
        assert!(matches!(Lock::read(dir.path()), Err(LockError::Read { .. })), "a directory");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Lock::parse(&bytes);
        }
    }
}
