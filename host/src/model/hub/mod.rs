//! Checkpoints from the Hugging Face hub, in its own cache layout.
//!
//! Fetches only the files a model needs, the weights last and only when config and tokenizer are of a kind
//! that can be used. Contents are checked against their announced length and, for large files, SHA-256.
//! What was interrupted is continued. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_HUB_OFFLINE` and `HF_HUB_DOWNLOAD_TIMEOUT` mean what they mean for huggingface_hub. Every failure
//! says what to do.

mod cache;
mod http;

pub use cache::{Cached, list};

use super::layout;
use super::registry::FetchProgress;
use super::{hash, paths};
use crate::atomic::FileError;
use cache::RepoCache;
use etcetera::BaseStrategy;
use http::Client;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub could not be used, or what it has cannot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// `HF_ENDPOINT` is no address.
    #[error("HF_ENDPOINT is \"{0}\"; an address that begins with http:// or https:// is expected")]
    Endpoint(String),
    /// Neither the environment nor the platform names a place for the cache.
    #[error("no hub cache directory is known (no home directory); set HF_HUB_CACHE to a directory you can write")]
    NoCache,
    /// Not fetched because the user forbade it.
    #[error(
        "{repo} is needed from the hub, and the network is switched off (--offline or HF_HUB_OFFLINE): {missing}; run `plastic-host model fetch {repo}` once with the network on"
    )]
    Offline {
        /// The repository.
        repo: String,
        /// What the cache lacks.
        missing: String,
    },
    /// 401.
    #[error("the hub refuses access to {repo}: {}", if *had_token {
        "the token is not valid for it; check the name, and HF_TOKEN"
    } else {
        "it does not exist, or is private; check the name, or set HF_TOKEN to a token that may read it"
    })]
    Unauthorized {
        /// The repository.
        repo: String,
        /// A token was sent.
        had_token: bool,
    },
    /// 403, or a repository whose terms must be accepted.
    #[error("the hub refuses access to {repo}: its authors ask you to accept their terms; do so at {page}, then {}", if *had_token {
        "run the command again (HF_TOKEN must belong to the same account and may read gated repositories)"
    } else {
        "set HF_TOKEN to a token of that account"
    })]
    Forbidden {
        /// The repository.
        repo: String,
        /// Its page.
        page: String,
        /// A token was sent.
        had_token: bool,
    },
    /// 404.
    #[error("the hub has no {what} of {repo}; check the name (org/name, capitals count)")]
    NotFound {
        /// The repository.
        repo: String,
        /// What was asked for.
        what: String,
    },
    /// 404 for the revision.
    #[error("{repo} has no {what}; name a branch, tag or commit that its page shows")]
    NoRevision {
        /// The repository.
        repo: String,
        /// The revision.
        what: String,
    },
    /// 429.
    #[error("the hub asks for fewer requests while fetching {repo}; wait {}{}, then run the command again: it continues where it stopped",
        .seconds.map_or_else(|| "some minutes".to_owned(), |s| format!("{s} seconds")),
        if *had_token { "" } else { " or set HF_TOKEN" })]
    RateLimited {
        /// The repository.
        repo: String,
        /// The pause the hub asks for.
        seconds: Option<u64>,
        /// A token was sent.
        had_token: bool,
    },
    /// Any other HTTP status.
    #[error(
        "the hub answers with HTTP status {status} for {what} of {repo}; try again later: it continues where it stopped"
    )]
    Server {
        /// The repository.
        repo: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
    },
    /// No answer.
    #[error(
        "fetching {repo}: {host} cannot be reached or broke off ({reason}); check the network and proxy, then run the command again: it continues where it stopped"
    )]
    Network {
        /// The repository.
        repo: String,
        /// Host and port.
        host: String,
        /// What went wrong.
        reason: String,
    },
    /// What arrived is not what was announced.
    #[error("{file} of {repo} cannot be used: {what}")]
    Damaged {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The repository holds no checkpoint that this program runs.
    #[error("{repo} is no checkpoint that this program runs: {what}")]
    Unusable {
        /// The repository.
        repo: String,
        /// Why, and what to do.
        what: String,
    },
    /// The disk is too small.
    #[error("{repo} needs {needed} more bytes and {} has {free} free; free some space, or set HF_HUB_CACHE to a directory on a larger disk", .dir.display())]
    NoSpace {
        /// The repository.
        repo: String,
        /// The cache.
        dir: PathBuf,
        /// Bytes still to fetch.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// A repository and a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoSpec {
    /// `org/name`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl RepoSpec {
    /// The revision where none is named.
    pub const MAIN: &'static str = "main";

    /// Reads `org/name` or `org/name@revision`; `None` where it is not one.
    pub fn parse(text: &str) -> Option<RepoSpec> {
        let (id, revision) = text.split_once('@').unwrap_or((text, Self::MAIN));
        let (org, name) = id.split_once('/')?;
        let plain =
            |s: &str| paths::is_plain_name(s) && !s.contains("..") && !s.contains("--") && !s.ends_with(['.', '-']);
        let sound = plain(org) && plain(name) && is_revision(revision);
        sound.then(|| RepoSpec { id: id.to_owned(), revision: revision.to_owned() })
    }
}

impl std::fmt::Display for RepoSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id)?;
        if self.revision != Self::MAIN { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

/// Branch, tag or commit: plain names joined by slashes.
fn is_revision(text: &str) -> bool {
    text.len() <= 200 && text.split('/').all(|part| paths::is_plain_name(part) && !part.contains(".."))
}

/// Where the hub is and how to speak to it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address without a final slash.
    pub endpoint: String,
    /// Sent to the endpoint only.
    pub token: Option<String>,
    /// The cache directory.
    pub cache: PathBuf,
    /// How long to wait for a connection, an answer, or the next bytes.
    pub timeout: Duration,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// Where the endpoint is no address or no cache directory is known.
    pub fn from_env() -> Result<Settings> {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !["http://", "https://"].iter().any(|p| endpoint.len() > p.len() && endpoint.starts_with(p)) {
            return Err(Error::Endpoint(endpoint));
        }
        let seconds = variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|v| v.parse().ok()).filter(|s| *s > 0);
        Ok(Settings {
            endpoint,
            token: token(),
            cache: cache_dir().ok_or(Error::NoCache)?,
            timeout: Duration::from_secs(seconds.unwrap_or(30)),
        })
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
}

/// `HF_HOME`, or its default place.
fn home() -> Option<PathBuf> {
    if let Some(home) = variable("HF_HOME") {
        return std::path::absolute(home).ok();
    }
    // huggingface_hub uses ~/.cache on every platform.
    etcetera::base_strategy::Xdg::new().ok().map(|s| s.cache_dir().join("huggingface"))
}

/// The hub's cache directory: `HF_HUB_CACHE`, else `hub` under `HF_HOME` (`~/.cache/huggingface`).
pub fn cache_dir() -> Option<PathBuf> {
    match variable("HF_HUB_CACHE") {
        Some(dir) => std::path::absolute(dir).ok(),
        None => home().map(|h| h.join("hub")),
    }
}

/// `HF_TOKEN`, else the token that `hf auth login` stored.
fn token() -> Option<String> {
    let stored = || {
        if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return None;
        }
        let path = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| home().map(|h| h.join("token")))?;
        fs::read_to_string(path).ok().map(|t| t.trim().to_owned())
    };
    // A line break would end the header and begin another.
    variable("HF_TOKEN").or_else(stored).filter(|t| !t.is_empty() && t.chars().all(|c| c.is_ascii_graphic()))
}

fn is_true(name: &str) -> bool {
    variable(name).is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// True where `HF_HUB_OFFLINE` switches the network off.
pub fn offline() -> bool {
    is_true("HF_HUB_OFFLINE")
}

/// The complete checkpoint of a repository in the cache, without asking the hub.
pub fn cached(spec: &RepoSpec) -> std::result::Result<PathBuf, String> {
    let root = cache_dir().ok_or("no cache directory is known")?;
    RepoCache::new(&root, &spec.id).checkpoint(&spec.revision)
}

/// Asks the hub what the revision is now and fetches what the cache lacks. With `force` everything is fetched again.
///
/// # Errors
/// [`Error`]. What has arrived stays and is used by the next attempt.
pub fn fetch(spec: &RepoSpec, settings: &Settings, force: bool, progress: &mut dyn FetchProgress) -> Result<PathBuf> {
    let fetch =
        Fetch { client: Client::new(settings, &spec.id), repo: RepoCache::new(&settings.cache, &spec.id), spec, force };
    fs::create_dir_all(&settings.cache).map_err(FileError::at("creating", &settings.cache))?;
    let listing = match fetch.listing() {
        Ok(l) => l,
        Err(e @ (Error::Network { .. } | Error::Server { .. })) => {
            return match fetch.repo.checkpoint(&spec.revision) {
                Ok(dir) if !force => {
                    progress.note(&format!("{e}; using the copy of {spec} in the cache"));
                    Ok(dir)
                }
                _ => Err(e),
            };
        }
        Err(e) => return Err(e),
    };
    fetch.checkpoint(&listing, settings, progress)
}

/// What a repository holds at a commit.
struct Listing {
    commit: String,
    /// Top-level files and, where the hub says, their lengths.
    files: HashMap<String, Option<u64>>,
}

struct Fetch<'a> {
    client: Client<'a>,
    repo: RepoCache,
    spec: &'a RepoSpec,
    force: bool,
}

impl Fetch<'_> {
    fn unusable(&self, what: impl Into<String>) -> Error {
        Error::Unusable { repo: self.spec.id.clone(), what: what.into() }
    }

    fn damaged(&self, file: &str, what: String) -> Error {
        Error::Damaged { repo: self.spec.id.clone(), file: file.to_owned(), what }
    }

    fn listing(&self) -> Result<Listing> {
        let revision = self.spec.revision.replace('/', "%2F");
        let path = format!("/api/models/{}/revision/{revision}?blobs=true", self.spec.id);
        let json = self.client.json(&path, &format!("revision \"{}\"", self.spec.revision))?;
        let bad = |what: &str| self.damaged("the file list", format!("{what}; check HF_ENDPOINT"));
        let commit = json.get("sha").and_then(|s| s.as_str()).unwrap_or_default().to_owned();
        // A name such as `main` would later pass for the branch.
        if commit.len() < 40 || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad("it names no commit"));
        }
        let siblings = json.get("siblings").and_then(|s| s.as_array()).ok_or_else(|| bad("it names no files"))?;
        let mut files = HashMap::new();
        for s in siblings {
            let name =
                s.get("rfilename").and_then(|n| n.as_str()).ok_or_else(|| bad("it has a file without a name"))?;
            if !is_inside(name) {
                return Err(bad(&format!("it names the file {name:?}, which would lie outside of the repository")));
            }
            if paths::is_plain_name(name) {
                files.insert(name.to_owned(), s.get("size").and_then(|n| n.as_u64()));
            }
        }
        Ok(Listing { commit, files })
    }

    fn checkpoint(&self, listing: &Listing, settings: &Settings, progress: &mut dyn FetchProgress) -> Result<PathBuf> {
        let dir = self.repo.snapshot(&listing.commit);
        self.check_listing(listing)?;
        let mut small: Vec<&str> = listing.files.keys().map(String::as_str).filter(|n| is_companion(n)).collect();
        small.sort_by_key(|n| (*n != "config.json", *n));
        for file in small {
            self.file(listing, file, progress)?;
            if file == "config.json" {
                layout::usable_config(&dir).map_err(|e| self.unusable(e.to_string()))?;
            }
        }
        let weights = self.weights(listing, &dir)?;
        let missing = weights.iter().filter(|w| self.force || !dir.join(w).is_file());
        let needed = missing.filter_map(|w| listing.files.get(w.as_str()).copied().flatten()).sum();
        cache::check_space(&settings.cache, &self.spec.id, needed)?;
        for file in &weights {
            self.file(listing, file, progress)?;
        }
        layout::usable(&dir).map_err(|e| self.unusable(e.to_string()))?;
        // Last, so that a revision never points at a checkpoint that is not whole.
        self.repo.set_ref(&self.spec.revision, &listing.commit)?;
        Ok(dir)
    }

    /// Refuses repositories of another kind before anything is fetched.
    fn check_listing(&self, listing: &Listing) -> Result<()> {
        let has = |end: &str| listing.files.keys().any(|n| n.ends_with(end));
        if !listing.files.contains_key("config.json") || !has(".safetensors") {
            return Err(self.unusable(if has(".gguf") {
                "it holds GGUF files; download one of them and name that file, or choose the original repository"
            } else if has(".bin") || has(".pth") {
                "its weights are in PyTorch's format; choose a repository with safetensors files"
            } else {
                "it has no config.json with *.safetensors files; choose another repository"
            }));
        }
        if !listing.files.contains_key("tokenizer.json") {
            return Err(self.unusable("it has no tokenizer.json; choose a repository that has one"));
        }
        Ok(())
    }

    /// The weight files, by the same rule as [`layout::shards`].
    fn weights(&self, listing: &Listing, dir: &Path) -> Result<Vec<String>> {
        let all: Vec<String> = listing.files.keys().filter(|n| n.ends_with(".safetensors")).cloned().collect();
        let names = layout::shard_names(dir, all).map_err(|e| self.unusable(e.to_string()))?;
        match names.iter().find(|n| !listing.files.contains_key(n.as_str())) {
            Some(n) => Err(self.unusable(format!("its index names {n}, which it does not have"))),
            None => Ok(names),
        }
    }

    /// Fetches one file, checks it and links it into the snapshot.
    fn file(&self, listing: &Listing, file: &str, progress: &mut dyn FetchProgress) -> Result<()> {
        if !self.force && self.repo.snapshot(&listing.commit).join(file).is_file() {
            return Ok(());
        }
        let path = format!("/{}/resolve/{}/{file}", self.spec.id, listing.commit);
        let facts = self.client.facts(&path, file)?;
        if facts.commit.as_ref().is_some_and(|c| *c != listing.commit) {
            return Err(
                self.damaged(file, "the server answers for another commit than asked; run the command again".into())
            );
        }
        let _lock = self.repo.lock(&facts.etag, || {
            progress.note(&format!("waiting for another process that is fetching {file} of {}", self.spec.id));
        })?;
        let (blob, incomplete) = (self.repo.blob(&facts.etag), self.repo.incomplete(&facts.etag));
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
        self.repo.link(&listing.commit, file, &facts.etag)?;
        Ok(())
    }

    /// Downloads a content and checks its hash where its name is one.
    fn content(
        &self,
        path: &str,
        file: &str,
        facts: &http::FileFacts,
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
}

/// True for paths that stay inside of a repository.
fn is_inside(name: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && !p.contains(['\\', '\0', ':']);
    !name.is_empty() && name.split('/').all(part)
}

/// Files beside the weights that a model needs.
fn is_companion(name: &str) -> bool {
    const NAMES: [&str; 7] = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "merges.txt",
        "vocab.json",
        "model.safetensors.index.json",
    ];
    NAMES.contains(&name) || name.starts_with("tokenizer") || name.starts_with("chat_template")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_named_by_two_plain_names() {
        let spec = |t: &str| RepoSpec::parse(t).map(|s| (s.id, s.revision));
        let yes = |id: &str, r: &str| Some((id.to_owned(), r.to_owned()));
        assert_eq!(spec("org/name-1.5_B"), yes("org/name-1.5_B", "main"));
        assert_eq!(spec("org/name@v1.0"), yes("org/name", "v1.0"));
        assert_eq!(spec("org/name@refs/pr/1"), yes("org/name", "refs/pr/1"));
        for bad in [
            "name",
            "a/b/c",
            "../x",
            "org/..",
            "org/",
            "/name",
            "org/na me",
            "org/name@",
            "org/name@../x",
            "org/a--b",
            "org/name@a//b",
            "a.b/c..d",
            "org/name@/x",
            "https://x/y",
        ] {
            assert_eq!(spec(bad), None, "{bad}");
        }
    }

    #[test]
    fn file_names_stay_inside() {
        for good in ["config.json", "original/params.json", ".gitattributes"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "..\\x", "c:x", "a/./b"] {
            assert!(!is_inside(bad), "{bad}");
        }
    }
}
