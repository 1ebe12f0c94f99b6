//! What models and data sets of the hub have in common: the list of a repository's files, and one file of it.
//!
//! A file is in the snapshot when it is whole: of the announced length and, where it is named by one, of the right
//! SHA-256. What was interrupted stays beside it and is continued. Two processes never fetch one content.

use super::cache::RepoCache;
use super::http::{Client, FileFacts};
use super::{Error, Kind, RepoSpec, Result, Settings};
use crate::atomic::FileError;
use crate::model::hash;
use crate::model::registry::FetchProgress;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What a repository holds at a commit.
pub struct Listing {
    /// The commit, in hexadecimal.
    pub commit: String,
    /// Files with their folders and, where the hub says, their lengths.
    pub files: BTreeMap<String, Option<u64>>,
}

/// Fetches from one repository into its place in the cache.
pub struct Transfer<'a> {
    /// The repository's place in the cache.
    pub cache: RepoCache,
    client: Client<'a>,
    kind: Kind,
    spec: &'a RepoSpec,
    /// Fetches again what is there.
    force: bool,
}

impl<'a> Transfer<'a> {
    /// For one repository; with `force`, files are fetched again.
    ///
    /// # Errors
    /// Where the cache directory cannot be made.
    pub fn new(kind: Kind, spec: &'a RepoSpec, settings: &'a Settings, force: bool) -> Result<Transfer<'a>> {
        fs::create_dir_all(&settings.cache).map_err(FileError::at("creating", &settings.cache))?;
        let cache = RepoCache::new(&settings.cache, kind, &spec.id);
        Ok(Transfer { cache, client: Client::new(settings, kind, &spec.id), kind, spec, force })
    }

    /// True where a file is fetched when it is asked for.
    pub fn lacks(&self, listing: &Listing, file: &str) -> bool {
        self.force || !self.cache.snapshot(&listing.commit).join(file).is_file()
    }

    /// Asks what the revision is now.
    ///
    /// # Errors
    /// As the hub or the network answers, or where a name would lie outside of the repository.
    pub fn listing(&self) -> Result<Listing> {
        let revision = self.spec.revision.replace('/', "%2F");
        let path = format!("/api/{}/{}/revision/{revision}?blobs=true", self.kind.plural(), self.spec.id);
        let json = self.client.json(&path, &format!("revision \"{}\"", self.spec.revision))?;
        let bad = |what: &str| self.damaged("the file list", format!("{what}; check HF_ENDPOINT"));
        let commit = json.get("sha").and_then(|s| s.as_str()).unwrap_or_default().to_owned();
        // A name such as `main` would later pass for the branch.
        if commit.len() < 40 || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad("it names no commit"));
        }
        let siblings = json.get("siblings").and_then(|s| s.as_array()).ok_or_else(|| bad("it names no files"))?;
        let mut files = BTreeMap::new();
        for s in siblings {
            let name =
                s.get("rfilename").and_then(|n| n.as_str()).ok_or_else(|| bad("it has a file without a name"))?;
            // A colon is a name's own business here, and a drive or a stream elsewhere: such files are not offered.
            if !is_inside(&name.replace(':', "_")) {
                return Err(bad(&format!("it names the file {name:?}, which would lie outside of the repository")));
            }
            if !name.contains(':') {
                files.insert(name.to_owned(), s.get("size").and_then(|n| n.as_u64()));
            }
        }
        Ok(Listing { commit, files })
    }

    /// Fetches one file, checks it and links it into the snapshot.
    ///
    /// # Errors
    /// As the hub or the network answers, where what arrives is not what was announced, or where writing fails.
    pub fn file(&self, listing: &Listing, file: &str, progress: &mut dyn FetchProgress) -> Result<()> {
        if !self.lacks(listing, file) {
            return Ok(());
        }
        let path = format!("/{}{}/resolve/{}/{}", self.kind.prefix(), self.spec.id, listing.commit, escaped(file));
        let facts = self.client.facts(&path, file)?;
        if facts.commit.as_ref().is_some_and(|c| *c != listing.commit) {
            return Err(
                self.damaged(file, "the server answers for another commit than asked; run the command again".into())
            );
        }
        let _lock = self.cache.lock(&facts.etag, || {
            progress.note(&format!("waiting for another process that is fetching {file} of {}", self.spec.id));
        })?;
        let (blob, incomplete) = (self.cache.blob(&facts.etag), self.cache.incomplete(&facts.etag));
        let whole = blob.metadata().is_ok_and(|m| facts.size.is_none_or(|s| s == m.len()));
        if self.force || !whole {
            if let Some(parent) = blob.parent() {
                fs::create_dir_all(parent).map_err(FileError::at("creating", parent))?;
            }
            progress.begin(file, facts.size);
            let done = self.content(&path, file, &facts, &incomplete, progress);
            progress.end();
            done?;
            fs::rename(&incomplete, &blob).map_err(FileError::at("renaming a file to", &blob))?;
        }
        self.cache.link(&listing.commit, file, &facts.etag)?;
        Ok(())
    }

    /// Downloads a content and checks its hash where its name is one.
    fn content(
        &self,
        path: &str,
        file: &str,
        facts: &FileFacts,
        to: &Path,
        progress: &mut dyn FetchProgress,
    ) -> Result<()> {
        let resumed = to.metadata().is_ok_and(|m| m.len() > 0);
        self.client.download(path, file, facts.size, to, progress)?;
        // Large files are named by their SHA-256, small ones by git's SHA-1.
        let is_sha256 = facts.etag.len() == 64 && facts.etag.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_sha256 {
            return Ok(());
        }
        let found = hash::sha256_file(to, &mut |_| {})?;
        if found.eq_ignore_ascii_case(&facts.etag) {
            return Ok(());
        }
        fs::remove_file(to).map_err(FileError::at("removing", to))?;
        if resumed {
            // The part from an earlier attempt may have been at fault.
            progress.note(&format!("{file} did not match its hash after a resumed download; fetching it again"));
            return self.content(path, file, facts, to, progress);
        }
        Err(self.damaged(file, format!(
            "what arrived has SHA-256 {found} instead of {}; it was thrown away: run the command again, and if that repeats, check HF_ENDPOINT and the proxy",
            facts.etag
        )))
    }

    fn damaged(&self, file: &str, what: String) -> Error {
        Error::Damaged { repo: self.kind.label(&self.spec.id), file: file.to_owned(), what }
    }
}

/// True for paths that stay inside of a repository.
pub fn is_inside(name: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && !p.contains(['\\', '\0', ':']);
    !name.is_empty() && name.split('/').all(part)
}

/// A path as an address writes it.
fn escaped(path: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~/".contains(b);
    path.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_stay_inside() {
        for good in ["config.json", "original/params.json", ".gitattributes"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "..\\x", "c:x", "a/./b"] {
            assert!(!is_inside(bad), "{bad}");
        }
    }

    #[test]
    fn file_names_become_addresses() {
        assert_eq!(escaped("data/train-00.jsonl"), "data/train-00.jsonl");
        assert_eq!(escaped("é #1?%.txt"), "%C3%A9%20%231%3F%25.txt");
    }
}
