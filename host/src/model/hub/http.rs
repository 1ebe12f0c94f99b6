//! Requests to the hub: redirects, credentials, retries, and downloads that resume.
//!
//! The token is sent to the endpoint's own host only. Dropped connections, time-outs, 408, 429 and 5xx are
//! tried again with growing pauses; an attempt that brought bytes starts the count anew.

use super::{Error, Kind, Settings};
use crate::atomic::FileError;
use crate::model::registry::FetchProgress;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;
use ureq::http::{Response, Uri, header};
use ureq::{Agent, Body};

/// Attempts in a row that bring nothing before giving up.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A server that asks for a longer pause than this is reported instead.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const REDIRECTS: u32 = 10;
/// JSON answers are kilobytes; a repository with thousands of files makes a few megabytes.
const MAX_JSON: u64 = 32 << 20;

/// Speaks to one endpoint on behalf of one repository.
pub struct Client<'a> {
    agent: Agent,
    settings: &'a Settings,
    /// As messages name it.
    repo: String,
    /// Its page for people.
    page: String,
}

/// What the hub says of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Name of the content: its SHA-256 for large files.
    pub etag: String,
    /// Length in bytes.
    pub size: Option<u64>,
    /// The commit the answer belongs to.
    pub commit: Option<String>,
}

/// One attempt failed.
enum Failure {
    /// Another attempt may help, after at least this pause.
    Again(Error, Option<Duration>),
    /// It cannot.
    Final(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(e: E) -> Self {
        Failure::Final(e.into())
    }
}

type Attempt<T> = Result<T, Failure>;

impl<'a> Client<'a> {
    /// A client for one repository.
    pub fn new(settings: &'a Settings, kind: Kind, id: &str) -> Client<'a> {
        let agent = Agent::config_builder()
            .user_agent(concat!("plastic-host/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Redirects are followed here, where the token can be kept from other hosts.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(settings.timeout))
            .timeout_recv_response(Some(settings.timeout))
            .timeout_per_read(Some(settings.timeout))
            .build()
            .new_agent();
        let page = format!("{}/{}{id}", settings.endpoint, kind.prefix());
        Client { agent, settings, repo: kind.label(id), page }
    }

    /// A JSON document of the endpoint.
    ///
    /// # Errors
    /// As the hub or the network answers, or where the answer is no JSON.
    pub fn json(&self, path: &str, what: &str) -> Result<serde_json::Value, Error> {
        let url = format!("{}{path}", self.settings.endpoint);
        self.retrying(|| {
            let mut response = self.follow("GET", &url, None, true, what)?;
            let bytes = response.body_mut().with_config().limit(MAX_JSON).read_to_vec();
            let bytes = bytes.map_err(|e| self.network(&url, &e))?;
            let bad = |e: serde_json::Error| {
                self.damaged(what, format!("{url} did not answer with JSON ({e}); check HF_ENDPOINT and the proxy"))
            };
            Ok(serde_json::from_slice(&bytes).map_err(bad)?)
        })
    }

    /// Name, size and commit of a file.
    ///
    /// # Errors
    /// As the hub or the network answers, or where the answer names no content.
    pub fn facts(&self, path: &str, file: &str) -> Result<FileFacts, Error> {
        let url = format!("{}{path}", self.settings.endpoint);
        self.retrying(|| {
            let response = self.follow("HEAD", &url, None, false, file)?;
            let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            let number = |name: &str| text(name).and_then(|v| v.trim().parse::<u64>().ok());
            let redirected = response.status().is_redirection();
            let etag = text("x-linked-etag").or_else(|| text("etag").filter(|_| !redirected));
            let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_owned());
            let size = number("x-linked-size").or_else(|| number("content-length").filter(|_| !redirected));
            match etag {
                Some(etag) if crate::model::paths::is_plain_name(&etag) => {
                    Ok(FileFacts { etag, size, commit: text("x-repo-commit").map(str::to_owned) })
                }
                _ => Err(self
                    .damaged(file, "the server did not name its content (no usable ETag); check HF_ENDPOINT".into()))?,
            }
        })
    }

    /// Downloads a file to `to`, going on where an earlier attempt left it.
    ///
    /// # Errors
    /// As the hub or the network answers, where the length is another than announced, or where writing fails.
    /// What has arrived stays in `to`.
    pub fn download(
        &self,
        path: &str,
        file: &str,
        size: Option<u64>,
        to: &Path,
        progress: &mut dyn FetchProgress,
    ) -> Result<(), Error> {
        let url = format!("{}{path}", self.settings.endpoint);
        let mut out =
            File::options().read(true).append(true).create(true).open(to).map_err(FileError::at("opening", to))?;
        let mut have = out.metadata().map_err(FileError::at("reading", to))?.len();
        if size.is_some_and(|s| have > s) {
            have = 0;
            out.set_len(0).map_err(FileError::at("writing", to))?;
        }
        // What the progress bar shows; a restart from zero does not run it backwards.
        let mut shown = have;
        progress.advance(have);
        let mut tries = 0;
        while size != Some(have) || have == 0 {
            let before = have;
            let result = self.continue_download(&url, file, size, to, &mut out, &mut have, &mut |now| {
                progress.advance(now.saturating_sub(shown));
                shown = shown.max(now);
            });
            match result {
                Ok(()) => break,
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Again(e, pause)) => {
                    tries = if have > before { 1 } else { tries + 1 };
                    if tries >= ATTEMPTS {
                        return Err(e);
                    }
                    tracing::debug!("{file}: {e}; trying again from byte {have}");
                    std::thread::sleep(wait(tries, pause));
                }
            }
        }
        out.sync_all().map_err(FileError::at("syncing", to))?;
        Ok(())
    }

    /// One connection's worth of a download; `have` counts the bytes in the file.
    #[expect(clippy::too_many_arguments, reason = "the state of one download, used here only")]
    fn continue_download(
        &self,
        url: &str,
        file: &str,
        size: Option<u64>,
        to: &Path,
        out: &mut File,
        have: &mut u64,
        moved: &mut dyn FnMut(u64),
    ) -> Attempt<()> {
        let mut response = self.follow("GET", url, Some(*have).filter(|n| *n > 0), true, file)?;
        if *have > 0 && !continues_at(&response, *have) {
            // The server sends the whole file again.
            *have = 0;
            out.set_len(0).map_err(FileError::at("writing", to))?;
            if response.status().as_u16() == 416 {
                return Err(Failure::Again(self.damaged(file, "the server has no more of it".into()), None));
            }
        }
        out.seek(SeekFrom::End(0)).map_err(FileError::at("writing", to))?;
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0u8; 256 << 10];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Failure::Again(self.broken(url, &e), None)),
            };
            if size.is_some_and(|s| *have + n as u64 > s) {
                return Err(self
                    .damaged(file, format!("the server sends more than the {} bytes it announced", size.unwrap_or(0)))
                    .into());
            }
            out.write_all(buffer.get(..n).unwrap_or_default()).map_err(FileError::at("writing", to))?;
            *have += n as u64;
            moved(*have);
        }
        match size {
            Some(s) if *have < s => {
                let e = std::io::Error::other(format!("the connection ended after {have} of {s} bytes"));
                Err(Failure::Again(self.broken(url, &e), None))
            }
            _ => Ok(()),
        }
    }

    /// Repeats an attempt while that may help.
    fn retrying<T>(&self, mut attempt: impl FnMut() -> Attempt<T>) -> Result<T, Error> {
        let mut tries = 0;
        loop {
            match attempt() {
                Ok(x) => return Ok(x),
                Err(Failure::Final(e)) => return Err(e),
                Err(Failure::Again(e, pause)) => {
                    tries += 1;
                    if tries >= ATTEMPTS {
                        return Err(e);
                    }
                    tracing::debug!("{e}; trying again");
                    std::thread::sleep(wait(tries, pause));
                }
            }
        }
    }

    /// Sends a request and follows redirects: always those within the endpoint, those to other hosts if `away`.
    fn follow(&self, method: &str, url: &str, from: Option<u64>, away: bool, what: &str) -> Attempt<Response<Body>> {
        let bad = |text: &str| {
            self.damaged(what, format!("the server redirects to \"{text}\", which is no address to follow"))
        };
        let home: Uri = url.parse().map_err(|_| bad(url))?;
        let mut at = home.clone();
        for _ in 0..=REDIRECTS {
            let response = self.send(method, &at, from, same_origin(&at, &home))?;
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return match status {
                    200 | 206 => Ok(response),
                    416 if from.is_some() => Ok(response),
                    _ => Err(self.refusal(&response, what)),
                };
            }
            let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
            let next = absolute(&at, location).ok_or_else(|| bad(location))?;
            if !away && !same_origin(&next, &home) {
                return Ok(response);
            }
            // No step down to an unencrypted connection.
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(bad(location).into());
            }
            at = next;
        }
        Err(self.damaged(what, format!("the server redirects more than {REDIRECTS} times")).into())
    }

    fn send(&self, method: &str, url: &Uri, from: Option<u64>, trusted: bool) -> Attempt<Response<Body>> {
        let mut request = if method == "HEAD" { self.agent.head(url) } else { self.agent.get(url) };
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(from) = from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = self.settings.token.as_deref().filter(|_| trusted) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.call().map_err(|e| self.network(&url.to_string(), &e))
    }

    /// What an HTTP status means, and whether to try again.
    fn refusal(&self, response: &Response<Body>, what: &str) -> Failure {
        let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (status, code) = (response.status().as_u16(), text("x-error-code"));
        let pause = text("retry-after").trim().parse().ok().map(Duration::from_secs);
        let (repo, page) = (self.repo.clone(), self.page.clone());
        let had_token = self.settings.token.is_some();
        match (status, code) {
            (403, _) | (_, "GatedRepo") => Failure::Final(Error::Forbidden { repo, page, had_token }),
            (401, _) => Failure::Final(Error::Unauthorized { repo, had_token }),
            (404, "RevisionNotFound") => Failure::Final(Error::NoRevision { repo, what: what.to_owned() }),
            (404, _) => Failure::Final(Error::NotFound { repo, what: what.to_owned() }),
            (429, _) => {
                let e = Error::RateLimited { repo, seconds: pause.map(|p| p.as_secs()), had_token };
                if pause.is_some_and(|p| p > LONGEST_PAUSE) { Failure::Final(e) } else { Failure::Again(e, pause) }
            }
            (408 | 500..=599, _) => {
                let pause = pause.map(|p| p.min(LONGEST_PAUSE));
                Failure::Again(Error::Server { repo, what: what.to_owned(), status }, pause)
            }
            _ => Failure::Final(Error::Server { repo, what: what.to_owned(), status }),
        }
    }

    fn network(&self, url: &str, e: &ureq::Error) -> Failure {
        let error = Error::Network { repo: self.repo.clone(), host: host(url), reason: reason(e) };
        match e {
            ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::ConnectionFailed
            | ureq::Error::Protocol(_)
            | ureq::Error::HostNotFound => Failure::Again(error, None),
            _ => Failure::Final(error),
        }
    }

    fn broken(&self, url: &str, e: &std::io::Error) -> Error {
        Error::Network { repo: self.repo.clone(), host: host(url), reason: e.to_string() }
    }

    fn damaged(&self, file: &str, what: String) -> Error {
        Error::Damaged { repo: self.repo.clone(), file: file.to_owned(), what }
    }
}

/// The pause before try number `tries + 1`.
fn wait(tries: u32, asked: Option<Duration>) -> Duration {
    asked.unwrap_or_default().max(FIRST_PAUSE * 2u32.saturating_pow(tries.saturating_sub(1)))
}

/// True where the answer begins at this byte.
fn continues_at(response: &Response<Body>, at: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    response.status().as_u16() == 206 && range.starts_with(&format!("bytes {at}-"))
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_u16() == b.port_u16()
}

/// An absolute address from a `Location` header.
fn absolute(from: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with('/') && !location.starts_with("//") {
        let authority = from.authority()?;
        return format!("{}://{authority}{location}", from.scheme_str()?).parse().ok();
    }
    let uri: Uri = location.parse().ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()).then_some(uri)
}

fn host(url: &str) -> String {
    let uri: Option<Uri> = url.parse().ok();
    uri.and_then(|u| u.authority().map(ToString::to_string)).unwrap_or_else(|| url.to_owned())
}

fn reason(e: &ureq::Error) -> String {
    match e {
        ureq::Error::Timeout(_) => "it did not answer in time".into(),
        ureq::Error::HostNotFound => "there is no such host".into(),
        ureq::Error::Io(e) => e.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn locations_become_addresses_or_nothing() {
        let from: Uri = "https://hub.example:8443/a/b?c".parse().unwrap();
        let to = |l: &str| absolute(&from, l).map(|u| u.to_string());
        assert_eq!(to("/x/y").unwrap(), "https://hub.example:8443/x/y");
        assert_eq!(to("https://cdn.example/z?s=1").unwrap(), "https://cdn.example/z?s=1");
        for bad in ["", "x", "//evil.example/x", "file:///etc/passwd", "ftp://h/x"] {
            assert_eq!(to(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(same("http://h:1/a", "http://h:1/b"));
        assert!(!same("http://h:1/a", "http://h:2/a"));
        assert!(!same("http://h/a", "https://h/a"));
        assert!(!same("http://h/a", "http://g/a"));
    }

    #[test]
    fn pauses_grow_and_the_servers_wish_counts() {
        assert_eq!(wait(1, None), FIRST_PAUSE);
        assert_eq!(wait(3, None), FIRST_PAUSE * 4);
        assert_eq!(wait(1, Some(Duration::from_secs(7))), Duration::from_secs(7));
    }
}
