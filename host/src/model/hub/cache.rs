//! The directory layout of the hub's cache, shared with huggingface_hub.
//!
//! `models--org--name/blobs/<etag>` (`datasets--…` for data sets) holds contents, `snapshots/<commit>/<file>` links to them and
//! `refs/<revision>` says which commit a branch or tag was last seen at. A blob appears under its name only
//! when it is whole; a half-fetched one is `<etag>.incomplete` and is continued by either tool.

use super::{Error, Kind, RepoSpec};
use crate::atomic::{self, FileError, Lock};
use crate::model::layout;
use std::fs;
use std::path::{Path, PathBuf};

/// One repository's place in the cache.
#[derive(Clone, Debug)]
pub struct RepoCache {
    root: PathBuf,
    folder: String,
}

impl RepoCache {
    /// The place of a repository under the cache `root`.
    pub fn new(root: &Path, kind: Kind, id: &str) -> RepoCache {
        RepoCache { root: root.to_owned(), folder: format!("{}--{}", kind.plural(), id.replace('/', "--")) }
    }

    fn dir(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    /// The content with this name.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.dir().join("blobs").join(etag)
    }

    /// The same, while it is being fetched.
    pub fn incomplete(&self, etag: &str) -> PathBuf {
        self.dir().join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The files of one commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir().join("snapshots").join(commit)
    }

    /// Guards the fetching of one content, against huggingface_hub too.
    ///
    /// # Errors
    /// Where the cache cannot be written.
    pub fn lock(&self, etag: &str, waiting: impl FnOnce()) -> Result<Lock, FileError> {
        Lock::exclusive(&self.root.join(".locks").join(&self.folder).join(format!("{etag}.lock")), waiting)
    }

    /// The commit at which a revision was last seen; a commit stands for itself.
    pub fn commit(&self, revision: &str) -> Option<String> {
        match fs::read_to_string(self.dir().join("refs").join(revision)) {
            Ok(text) => Some(text.trim().to_owned()).filter(|c| crate::model::paths::is_plain_name(c)),
            Err(_) => self.snapshot(revision).is_dir().then(|| revision.to_owned()),
        }
    }

    /// The complete checkpoint of a revision, or why there is none.
    ///
    /// # Errors
    /// A phrase that says what is missing.
    pub fn checkpoint(&self, revision: &str) -> Result<PathBuf, String> {
        let commit = self.commit(revision).ok_or("it is not in the cache")?;
        let dir = self.snapshot(&commit);
        layout::usable(&dir).map_err(|e| e.to_string())?;
        Ok(dir)
    }

    /// Remembers that a revision is at a commit.
    ///
    /// # Errors
    /// Where the cache cannot be written.
    pub fn set_ref(&self, revision: &str, commit: &str) -> Result<(), FileError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.dir().join("refs").join(revision);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(FileError::at("creating", parent))?;
        }
        atomic::write_file(&path, commit.as_bytes())
    }

    /// What was chosen at a commit before, for some purpose.
    pub fn choice(&self, commit: &str, purpose: &str) -> Option<String> {
        let chosen = fs::read_to_string(self.choice_file(commit, purpose)).ok()?;
        Some(chosen.trim().to_owned())
    }

    /// Remembers a choice.
    ///
    /// # Errors
    /// Where the cache cannot be written.
    pub fn set_choice(&self, commit: &str, purpose: &str, file: &str) -> Result<(), FileError> {
        let path = self.choice_file(commit, purpose);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(FileError::at("creating", parent))?;
        }
        atomic::write_file(&path, file.as_bytes())
    }

    /// Beside what huggingface_hub knows, which leaves it alone and deletes it with the rest.
    fn choice_file(&self, commit: &str, purpose: &str) -> PathBuf {
        self.dir().join(".plastic").join(format!("{commit}.{purpose}"))
    }

    /// The files that a snapshot has, with their folders.
    pub fn files(&self, commit: &str) -> Vec<String> {
        names(&self.snapshot(commit), "")
    }

    /// Makes `snapshots/<commit>/<file>` show the content `etag`.
    ///
    /// # Errors
    /// Where the cache cannot be written.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), FileError> {
        let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
        let dir = self.snapshot(commit).join(folder);
        fs::create_dir_all(&dir).map_err(FileError::at("creating", &dir))?;
        let (link, tmp) = (dir.join(name), dir.join(format!(".{name}.{}.tmp", std::process::id())));
        let _ = fs::remove_file(&tmp);
        #[cfg(unix)]
        let made = std::os::unix::fs::symlink(
            Path::new(&"../".repeat(file.matches('/').count())).join("../../blobs").join(etag),
            &tmp,
        );
        #[cfg(not(unix))]
        let made = fs::hard_link(self.blob(etag), &tmp);
        // Where the file system has no links, the snapshot holds the content itself.
        made.or_else(|_| fs::copy(self.blob(etag), &tmp).map(|_| ())).map_err(FileError::at("creating", &tmp))?;
        fs::rename(&tmp, &link).map_err(FileError::at("renaming a link to", &link))
    }
}

/// A complete checkpoint in the cache.
#[derive(Clone, Debug)]
pub struct Cached {
    /// `org/name`, with `@revision` where that is not `main`.
    pub spec: String,
    /// The snapshot.
    pub dir: PathBuf,
}

/// Every complete checkpoint in a hub cache, by name.
pub fn list(root: &Path) -> Vec<Cached> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let folder = entry.file_name().to_string_lossy().into_owned();
        let Some(id) = folder.strip_prefix("models--").map(|n| n.replacen("--", "/", 1)) else { continue };
        let repo = RepoCache { root: root.to_owned(), folder };
        let mut seen = Vec::new();
        for revision in names(&repo.dir().join("refs"), "") {
            if let Ok(dir) = repo.checkpoint(&revision) {
                let spec = if revision == RepoSpec::MAIN { id.clone() } else { format!("{id}@{revision}") };
                seen.push(dir.clone());
                found.push(Cached { spec, dir });
            }
        }
        // Commits that no branch points to (any more).
        for entry in fs::read_dir(repo.dir().join("snapshots")).into_iter().flatten().flatten() {
            let commit = entry.file_name().to_string_lossy().into_owned();
            if let Ok(dir) = repo.checkpoint(&commit)
                && !seen.contains(&dir)
            {
                found.push(Cached { spec: format!("{id}@{commit}"), dir });
            }
        }
    }
    found.sort_by(|a, b| a.spec.cmp(&b.spec));
    found
}

/// Names of the files under a directory, with their folders (`refs/pr/1`).
fn names(dir: &Path, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.file_type() {
            Ok(t) if t.is_dir() => found.extend(names(&entry.path(), &format!("{name}/"))),
            _ => found.push(name),
        }
    }
    found
}

/// Refuses to begin what the disk cannot hold.
///
/// # Errors
/// [`Error::NoSpace`] where fewer than `needed` bytes are free.
pub fn check_space(root: &Path, repo: &str, needed: u64) -> Result<(), Error> {
    match fs4::available_space(root) {
        Ok(free) if free < needed => Err(Error::NoSpace { repo: repo.to_owned(), dir: root.to_owned(), needed, free }),
        _ => Ok(()),
    }
}
