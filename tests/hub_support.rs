//! A hub on this machine that drops, lies and refuses, for the tests of what is fetched.
#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part of this")]

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

/// The program, without what the user's environment says of hubs and caches.
pub fn host(cache: Option<&Path>) -> Command {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/plastic-host");
    assert!(program.is_file(), "{} is missing: run `make build`", program.display());
    let mut c = Command::new(program);
    let named = ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "HF_TOKEN", "RUST_LOG"];
    for name in named {
        c.env_remove(name);
    }
    c.env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1").env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1");
    if let Some(dir) = cache {
        c.env("PLASTIC_CACHE", dir).env("HF_HUB_CACHE", dir.join("hub"));
    }
    c
}

/// Exit code, standard output, standard error.
pub fn done(c: &mut Command) -> (i32, String, String) {
    let out = c.output().unwrap();
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (out.status.code().unwrap_or(-1), text(&out.stdout), text(&out.stderr))
}

pub fn json_of(c: &mut Command) -> Value {
    let (code, out, err) = done(c.arg("--json"));
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

/// What a hub does wrong.
#[derive(Clone, Default)]
pub struct Mood {
    /// Answers everything with this status.
    pub status: Option<u16>,
    /// Lets nobody have the files, though it names them.
    pub gated: bool,
    /// Ends the first transfer of a large file after so many bytes.
    pub drop_after: Option<usize>,
    /// Sends other contents of large files than announced.
    pub lie: bool,
    /// One more file name in the list.
    pub extra_name: Option<&'static str>,
    /// Sends large files from another server.
    pub elsewhere: Option<String>,
}

/// One request: method and path, the range asked for, and the credentials.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub line: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

/// A server with one repository.
pub struct Hub {
    pub address: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
    pub files: Arc<HashMap<&'static str, Vec<u8>>>,
}

/// What `main` is at.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// What `v1` is at.
pub const EARLIER: &str = "89abcdef0123456789abcdef0123456789abcdef";

impl Hub {
    pub fn start(mood: Mood) -> Hub {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/tiny/llama_q4g32");
        let read = |n: &str| std::fs::read(golden.join(n)).unwrap();
        let tokenizer =
            json!({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}});
        let files = Arc::new(HashMap::from([
            ("config.json", read("config.json")),
            ("model.safetensors", read("model.safetensors")),
            ("tokenizer.json", tokenizer.to_string().into_bytes()),
            ("README.md", b"not needed".to_vec()),
        ]));
        Hub::serve(mood, files)
    }

    /// A hub with one data set, `org/texts`; its revision `v1` is an earlier commit with the same files.
    pub fn of_texts(mood: Mood, files: &[(&'static str, &[u8])]) -> Hub {
        Hub::serve(mood, Arc::new(files.iter().map(|(n, b)| (*n, b.to_vec())).collect()))
    }

    fn serve(mood: Mood, files: Arc<HashMap<&'static str, Vec<u8>>>) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, held) = (seen.clone(), files.clone());
        std::thread::spawn(move || {
            let mut mood = mood;
            for stream in listener.incoming().flatten() {
                // A client that goes away is no concern of the hub's.
                let _ = answer(stream, &mut mood, &log, &held);
            }
        });
        Hub { address, seen, files }
    }

    pub fn fetch(&self, cache: &Path) -> Command {
        let mut c = host(Some(cache));
        c.env("HF_ENDPOINT", &self.address).args(["model", "fetch", "org/tiny"]);
        c
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn answer(
    mut stream: TcpStream,
    mood: &mut Mood,
    log: &Mutex<Vec<Seen>>,
    files: &HashMap<&'static str, Vec<u8>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
    let header = |name: &str| {
        headers
            .iter()
            .find_map(|h| h.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|p| p.1.to_owned()))
    };
    let line = first.trim_end_matches(" HTTP/1.1").to_owned();
    let range = header("range");
    log.lock().unwrap().push(Seen { line: line.clone(), range: range.clone(), token: header("authorization") });
    let (method, path) = line.split_once(' ').unwrap_or_default();
    let mut send = |status: u16, more: &str, length: usize, body: &[u8]| {
        write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n")?;
        stream.write_all(if method == "HEAD" { &[] } else { body })
    };
    if let Some(status) = mood.status {
        return send(status, "", 0, &[]);
    }
    let commit = match path.split_once("/revision/") {
        Some(("/api/models/org/tiny" | "/api/datasets/org/texts", r)) if r.starts_with("main?") => Some(COMMIT),
        Some(("/api/datasets/org/texts", r)) if r.starts_with("v1?") => Some(EARLIER),
        Some(("/api/datasets/org/texts", _)) => return send(404, "X-Error-Code: RevisionNotFound\r\n", 0, &[]),
        _ => None,
    };
    if let Some(commit) = commit {
        let names = files.keys().copied().chain(mood.extra_name);
        let list: Vec<Value> = names.map(|n| json!({"rfilename": n, "size": files.get(n).map(Vec::len)})).collect();
        let body = json!({"sha": commit, "siblings": list}).to_string();
        return send(200, "", body.len(), body.as_bytes());
    }
    let places = [("/org/tiny", COMMIT), ("/datasets/org/texts", COMMIT), ("/datasets/org/texts", EARLIER)];
    let place = |(repo, commit)| Some((commit, path.strip_prefix(&format!("{repo}/resolve/{commit}/"))?));
    let (commit, name) = places.into_iter().find_map(place).unwrap_or_default();
    let name = name.replace("%20", " ");
    let Some(content) = files.get(name.as_str()) else { return send(404, "", 0, &[]) };
    if mood.gated {
        return send(403, "X-Error-Code: GatedRepo\r\n", 0, &[]);
    }
    // As on the real hub: SHA-256 names large files, 40 digits small ones.
    let hash = sha256(content);
    let large = name == "model.safetensors" || content.len() > 20_000;
    let etag = if large { &hash[..] } else { &hash[..40] };
    let mut more = format!("ETag: \"{etag}\"\r\nX-Repo-Commit: {commit}\r\n");
    if let Some(other) = mood.elsewhere.as_ref().filter(|_| large) {
        more +=
            &format!("X-Linked-Etag: \"{hash}\"\r\nX-Linked-Size: {}\r\nLocation: {other}{path}\r\n", content.len());
        return send(302, &more, 0, &[]);
    }
    let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let start = from.unwrap_or(0).min(content.len());
    let mut body = content[start..].to_vec();
    let length = body.len();
    if large && method == "GET" {
        if mood.lie {
            body[length / 2] ^= 1;
        }
        body.truncate(mood.drop_after.take().unwrap_or(length));
    }
    if from.is_some() {
        more += &format!("Content-Range: bytes {start}-{}/{}\r\n", content.len() - 1, content.len());
    }
    send(if from.is_some() { 206 } else { 200 }, &more, length, &body)
}
