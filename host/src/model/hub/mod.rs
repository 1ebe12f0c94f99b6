//! Checkpoints and texts from the Hugging Face hub, in its own cache layout.
//!
//! Of a model, fetches only the files a model needs, the weights last and only when config and tokenizer are of a kind
//! that can be used. Contents are checked against their announced length and, for large files, SHA-256.
//! What was interrupted is continued. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`,
//! `HF_HUB_OFFLINE` and `HF_HUB_DOWNLOAD_TIMEOUT` mean what they mean for huggingface_hub. Every failure
//! says what to do.

mod cache;
pub mod dataset;
mod http;
mod transfer;

pub use cache::{Cached, list};

use super::layout;
use super::paths;
use super::registry::FetchProgress;
use crate::atomic::FileError;
use cache::RepoCache;
use etcetera::BaseStrategy;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use transfer::{Listing, Transfer};

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
    /// A text is not fetched because the user forbade it.
    #[error(
        "{repo} is needed from the hub, and the network is switched off (--offline or HF_HUB_OFFLINE): {missing}; run the command once with the network on, or name a local file"
    )]
    OfflineText {
        /// The data set.
        repo: String,
        /// What the cache lacks.
        missing: String,
    },
    /// A file that the data set does not have.
    #[error("{repo} has no file {file}; it has {has}")]
    NoFile {
        /// The data set.
        repo: String,
        /// What was asked for.
        file: String,
        /// What there is.
        has: String,
    },
    /// The data set has no file of a kind that this program reads.
    #[error("{repo} has no .jsonl or .txt file that this program reads: it has {has}; {remedy}")]
    NoText {
        /// The data set.
        repo: String,
        /// What there is.
        has: String,
        /// What to do.
        remedy: String,
    },
    /// A file of a kind that this program does not read.
    #[error("{file} of {repo} is neither JSON lines nor plain text; {remedy}")]
    NotText {
        /// The data set.
        repo: String,
        /// The file.
        file: String,
        /// What to do.
        remedy: String,
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

/// What a repository is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Weights.
    Model,
    /// Texts.
    Dataset,
}

impl Kind {
    /// As the cache and the interface name them.
    fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }

    /// What stands before a repository's name in its address.
    fn prefix(self) -> &'static str {
        match self {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        }
    }

    /// A repository as messages name it.
    fn label(self, id: &str) -> String {
        match self {
            Kind::Model => id.to_owned(),
            Kind::Dataset => format!("data set {id}"),
        }
    }
}

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

/// Set where the user asked for it on the command line.
static SWITCHED_OFF: AtomicBool = AtomicBool::new(false);

/// Switches the network off for this process.
pub fn switch_off() {
    SWITCHED_OFF.store(true, Ordering::Relaxed);
}

/// True where [`switch_off`] or `HF_HUB_OFFLINE` switches the network off.
pub fn offline() -> bool {
    SWITCHED_OFF.load(Ordering::Relaxed) || is_true("HF_HUB_OFFLINE")
}

/// The complete checkpoint of a repository in the cache, without asking the hub.
pub fn cached(spec: &RepoSpec) -> std::result::Result<PathBuf, String> {
    let root = cache_dir().ok_or("no cache directory is known")?;
    RepoCache::new(&root, Kind::Model, &spec.id).checkpoint(&spec.revision)
}

/// Asks the hub what the revision is now and fetches what the cache lacks. With `force` everything is fetched again.
///
/// # Errors
/// [`Error`]. What has arrived stays and is used by the next attempt.
pub fn fetch(spec: &RepoSpec, settings: &Settings, force: bool, progress: &mut dyn FetchProgress) -> Result<PathBuf> {
    let fetch = Fetch { transfer: Transfer::new(Kind::Model, spec, settings, force)?, spec };
    let listing = match fetch.transfer.listing() {
        Ok(mut l) => {
            // What a model needs lies at the top.
            l.files.retain(|name, _| paths::is_plain_name(name));
            l
        }
        Err(e @ (Error::Network { .. } | Error::Server { .. })) => {
            return match fetch.transfer.cache.checkpoint(&spec.revision) {
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

struct Fetch<'a> {
    transfer: Transfer<'a>,
    spec: &'a RepoSpec,
}

impl Fetch<'_> {
    fn unusable(&self, what: impl Into<String>) -> Error {
        Error::Unusable { repo: self.spec.id.clone(), what: what.into() }
    }

    fn checkpoint(&self, listing: &Listing, settings: &Settings, progress: &mut dyn FetchProgress) -> Result<PathBuf> {
        let dir = self.transfer.cache.snapshot(&listing.commit);
        self.check_listing(listing)?;
        let mut small: Vec<&str> = listing.files.keys().map(String::as_str).filter(|n| is_companion(n)).collect();
        small.sort_by_key(|n| (*n != "config.json", *n));
        for file in small {
            self.transfer.file(listing, file, progress)?;
            if file == "config.json" {
                layout::usable_config(&dir).map_err(|e| self.unusable(e.to_string()))?;
            }
        }
        let weights = self.weights(listing, &dir)?;
        let missing = weights.iter().filter(|w| self.transfer.lacks(listing, w));
        let needed = missing.filter_map(|w| listing.files.get(w.as_str()).copied().flatten()).sum();
        cache::check_space(&settings.cache, &self.spec.id, needed)?;
        for file in &weights {
            self.transfer.file(listing, file, progress)?;
        }
        layout::usable(&dir).map_err(|e| self.unusable(e.to_string()))?;
        // Last, so that a revision never points at a checkpoint that is not whole.
        self.transfer.cache.set_ref(&self.spec.revision, &listing.commit)?;
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
}
