//! What a plugin is given beyond the contract: nothing, unless the operator names it.
//!
//! A component says in its imports what it wants. [`permit`] compares that with the grants before
//! anything is compiled and refuses the rest by name; [`link`] then links exactly what was granted,
//! so that a mistake in the reading of imports ends in a plugin that does not load, never in one
//! that sees more. Whatever is granted, the network is not offered, files are read-only, and waiting
//! ends with the time of the call.

use super::component::Import;
use super::limits::Limits;
use super::sandbox::State;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream, WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksCtxView, WasiClocksView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::{self, clocks::monotonic_clock};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;
use wasmtime_wasi::p2::{DynPollable, OutputStream, Pollable, StreamResult};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};

/// Files, directories and streams a guest may hold open at once.
pub(super) const MOST_HANDLES: usize = 256;

/// One thing the operator gives to plugins; written `clock`, `random`, `env=NAME` or `read=DIR`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Grant {
    /// The time, and waiting.
    Clock,
    /// Random numbers.
    Random,
    /// One environment variable.
    Env(String),
    /// The files under a directory, to read, under the path given here.
    Read(String),
}

/// A text that is no grant.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum GrantError {
    /// Nothing of that name can be given.
    #[error("grant {0:?}: there is no such grant; there are clock, random, env=NAME and read=DIR")]
    Unknown(String),
    /// `env=` without a name that a variable can have.
    #[error("grant {0:?}: name one environment variable, as in env=HF_TOKEN")]
    Variable(String),
    /// `read=` without a directory.
    #[error("grant {0:?}: name a directory, as in read=data/corpus")]
    Directory(String),
}

impl FromStr for Grant {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Grant, GrantError> {
        match text.split_once('=') {
            None if text == "clock" => Ok(Grant::Clock),
            None if text == "random" => Ok(Grant::Random),
            None if text == "env" => Err(GrantError::Variable(text.into())),
            None if text == "read" => Err(GrantError::Directory(text.into())),
            Some(("env", name)) if name.is_empty() || name.contains(['=', '\0']) => {
                Err(GrantError::Variable(text.into()))
            }
            Some(("env", name)) => Ok(Grant::Env(name.into())),
            Some(("read", dir)) if dir.is_empty() || dir.contains('\0') => Err(GrantError::Directory(text.into())),
            Some(("read", dir)) => Ok(Grant::Read(dir.into())),
            _ => Err(GrantError::Unknown(text.into())),
        }
    }
}

impl std::fmt::Display for Grant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Grant::Clock => f.write_str("clock"),
            Grant::Random => f.write_str("random"),
            Grant::Env(name) => write!(f, "env={name}"),
            Grant::Read(dir) => write!(f, "read={dir}"),
        }
    }
}

impl TryFrom<String> for Grant {
    type Error = GrantError;

    fn try_from(text: String) -> Result<Grant, GrantError> {
        text.parse()
    }
}

impl From<Grant> for String {
    fn from(grant: Grant) -> String {
        grant.to_string()
    }
}

impl Grant {
    /// Whether what a plugin does with it differs from run to run.
    pub fn is_unrepeatable(&self) -> bool {
        matches!(self, Grant::Clock | Grant::Random)
    }
}

/// What an imported interface takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// The contract itself.
    Contract,
    Clock,
    Random,
    Read,
    Env,
    /// Streams and endings, which every program built on WASI carries; harmless, but no part of the
    /// contract either.
    Plumbing,
    /// Not to be had.
    Never(&'static str),
}

impl Need {
    fn of(import: &str) -> Need {
        let (name, version) = import.split_once('@').unwrap_or((import, ""));
        let Some(interface) = name.strip_prefix("wasi:") else {
            return match name.starts_with(super::component::PACKAGE) {
                true => Need::Contract,
                false if name.starts_with("wasi") => {
                    Need::Never("plugins are components, which WASI 0.2 serves; build it for wasm32-unknown-unknown")
                }
                false => Need::Never("plugins get nothing but plastic:rank; remove what needs it"),
            };
        };
        if interface.starts_with("sockets/") || interface.starts_with("http/") {
            return Need::Never("no plugin gets the network, and there is no grant for it; remove what needs it");
        }
        if !version.starts_with("0.2.") {
            return Need::Never(
                "this host knows WASI 0.2 only; build it for wasm32-unknown-unknown, or for wasm32-wasip2",
            );
        }
        match interface {
            "clocks/wall-clock" | "clocks/monotonic-clock" => Need::Clock,
            "random/random" | "random/insecure" | "random/insecure-seed" => Need::Random,
            "filesystem/types" | "filesystem/preopens" => Need::Read,
            "cli/environment" => Need::Env,
            "io/error"
            | "io/poll"
            | "io/streams"
            | "cli/exit"
            | "cli/stdin"
            | "cli/stdout"
            | "cli/stderr"
            | "cli/terminal-input"
            | "cli/terminal-output"
            | "cli/terminal-stdin"
            | "cli/terminal-stdout"
            | "cli/terminal-stderr" => Need::Plumbing,
            _ => Need::Never("there is no grant for it; remove what needs it"),
        }
    }

    /// What it is for, and the flag that gives it.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Need::Clock => ("it wants to know the time", "--grant clock"),
            Need::Random => ("it wants random numbers", "--grant random"),
            Need::Read => ("it wants to read files", "--grant read=DIR"),
            Need::Env => ("it wants environment variables", "--grant env=NAME"),
            Need::Contract | Need::Plumbing | Need::Never(_) => ("it was built on a system interface", "any --grant"),
        }
    }

    /// Whether the grants cover it. The environment is there, empty, as soon as anything is granted:
    /// programs ask for it before they begin.
    fn is_met(self, grants: &[Grant]) -> bool {
        match self {
            Need::Contract => true,
            Need::Clock => grants.contains(&Grant::Clock),
            Need::Random => grants.contains(&Grant::Random),
            Need::Read => grants.iter().any(|g| matches!(g, Grant::Read(_))),
            Need::Env | Need::Plumbing => !grants.is_empty(),
            Need::Never(_) => false,
        }
    }
}

/// Checks what a component imports against what is granted; answers which grants it makes use of.
///
/// # Errors
/// A sentence that names the interface and what would give it.
pub(super) fn permit(imports: &[Import], grants: &[Grant]) -> Result<Vec<Grant>, String> {
    // An interface of which only types are taken gives nothing.
    let needs = || imports.iter().filter(|i| i.has_functions).map(|i| (i.name.as_str(), Need::of(&i.name)));
    for (name, need) in needs() {
        if let Need::Never(why) = need {
            return Err(format!("imports `{name}`: {why} (`plastic-host plugin build` does)"));
        }
    }
    let missing: Vec<(&str, Need)> = needs().filter(|(_, need)| !need.is_met(grants)).collect();
    let order = [Need::Clock, Need::Random, Need::Read, Need::Env, Need::Plumbing];
    if let Some((name, need)) = order.iter().find_map(|o| missing.iter().find(|(_, need)| need == o)) {
        let (what, flag) = need.words();
        let others = order.iter().filter(|o| *o != need && **o != Need::Plumbing && **o != Need::Env);
        let others: Vec<&str> =
            others.filter(|o| missing.iter().any(|(_, need)| need == *o)).map(|o| o.words().1).collect();
        let others = if others.is_empty() { String::new() } else { format!(" (and {})", others.join(" ")) };
        return Err(format!(
            "imports `{name}`: {what}; give it with {flag}{others}, or build it without, for wasm32-unknown-unknown (`plastic-host plugin build` does)"
        ));
    }
    let used = |grant: &&Grant| {
        needs().any(|(_, need)| match grant {
            Grant::Clock => need == Need::Clock,
            Grant::Random => need == Need::Random,
            Grant::Env(_) => need == Need::Env,
            Grant::Read(_) => need == Need::Read,
        })
    };
    Ok(grants.iter().filter(used).cloned().collect())
}

/// Whether a permitted component is built on the system interface at all.
pub(super) fn is_wasi(imports: &[Import]) -> bool {
    imports.iter().any(|i| i.has_functions && Need::of(&i.name) != Need::Contract)
}

/// The granted part of the system, as one instance sees it.
pub(super) struct Wasi {
    ctx: WasiCtx,
    table: ResourceTable,
    out: Pipe,
    err: Pipe,
}

impl Wasi {
    /// What the grants give.
    ///
    /// # Errors
    /// A sentence: a directory or a variable cannot be read.
    pub(super) fn new(grants: &[Grant], limits: &Limits) -> Result<Wasi, String> {
        let (out, err) = (Pipe::new(limits.log_bytes), Pipe::new(limits.log_bytes));
        let mut ctx = WasiCtx::builder();
        ctx.stdout(out.clone()).stderr(err.clone());
        ctx.allow_tcp(false).allow_udp(false).allow_blocking_current_thread(true);
        ctx.max_random_size(limits.transfer_bytes as u64);
        for grant in grants {
            match grant {
                Grant::Clock | Grant::Random => {}
                Grant::Env(name) => match std::env::var(name) {
                    Ok(value) => _ = ctx.env(name, value),
                    Err(std::env::VarError::NotPresent) => {}
                    Err(e) => return Err(format!("the variable of --grant env={name} cannot be given: {e}")),
                },
                Grant::Read(dir) => {
                    ctx.preopened_dir(dir, dir, FsPerms::ReadOnly)
                        .map_err(|e| format!("the directory of --grant read={dir} cannot be opened: {e}"))?;
                }
            }
        }
        let mut table = ResourceTable::new();
        table.set_max_capacity(MOST_HANDLES);
        Ok(Wasi { ctx: ctx.build(), table, out, err })
    }

    /// No grants at all.
    pub(super) fn closed() -> Wasi {
        let (out, err) = (Pipe::new(0), Pipe::new(0));
        Wasi { ctx: WasiCtx::builder().build(), table: ResourceTable::new(), out, err }
    }

    /// What the guest wrote to its standard streams since the last time: output, errors, and the
    /// number of bytes that were too many.
    pub(super) fn written(&self) -> (String, String, usize) {
        let ((out, lost_out), (err, lost_err)) = (self.out.take(), self.err.take());
        (out, err, lost_out + lost_err)
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let wasi = self.wasi();
        WasiCtxView { ctx: &mut wasi.ctx, table: &mut wasi.table }
    }
}

/// A standard stream of a guest, kept until the call is over.
#[derive(Clone)]
struct Pipe {
    kept: Arc<Mutex<Kept>>,
    limit: usize,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    lost: usize,
}

impl Pipe {
    fn new(limit: usize) -> Pipe {
        Pipe { kept: Arc::default(), limit }
    }

    fn take(&self) -> (String, usize) {
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        (String::from_utf8_lossy(&kept.bytes).into_owned(), kept.lost)
    }
}

impl IsTerminal for Pipe {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Pipe {
    // Of another version of WASI than the one linked here; whoever asks gets a stream into nothing.
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(MemoryOutputPipe::new(0))
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Pipe {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Pipe {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.limit.saturating_sub(kept.bytes.len()).min(bytes.len());
        let (taken, lost) = bytes.split_at(room);
        kept.bytes.extend_from_slice(taken);
        kept.lost += lost.len();
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

struct Table;

impl HasData for Table {
    type Data<'a> = &'a mut ResourceTable;
}

/// The clock, with an end to all waiting: the guest sleeps inside the host, where it cannot be
/// interrupted, so it is woken when its time is up.
struct Clock<'a> {
    clocks: WasiClocksCtxView<'a>,
    left: Duration,
}

struct BoundedClock;

impl HasData for BoundedClock {
    type Data<'a> = Clock<'a>;
}

impl monotonic_clock::Host for Clock<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        self.clocks.now()
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        self.clocks.resolution()
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let wait = when.saturating_sub(self.now()?);
        self.subscribe_duration(wait)
    }

    fn subscribe_duration(&mut self, wait: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let left = u64::try_from(self.left.as_nanos()).unwrap_or(u64::MAX);
        self.clocks.subscribe_duration(wait.min(left))
    }
}

/// Links what was granted, and the plumbing beside it.
///
/// # Errors
/// wasmtime's own; none in practice.
pub(super) fn link(l: &mut Linker<State>, grants: &[Grant]) -> wasmtime::Result<()> {
    fn table(state: &mut State) -> &mut ResourceTable {
        &mut state.wasi().table
    }
    bindings::io::error::add_to_linker::<State, Table>(l, table)?;
    bindings::sync::io::poll::add_to_linker::<State, Table>(l, table)?;
    bindings::sync::io::streams::add_to_linker::<State, Table>(l, table)?;
    bindings::cli::exit::add_to_linker::<State, WasiCli>(l, State::cli)?;
    bindings::cli::environment::add_to_linker::<State, WasiCli>(l, State::cli)?;
    bindings::cli::stdin::add_to_linker::<State, WasiCli>(l, State::cli)?;
    bindings::cli::stdout::add_to_linker::<State, WasiCli>(l, State::cli)?;
    bindings::cli::stderr::add_to_linker::<State, WasiCli>(l, State::cli)?;
    bindings::cli::terminal_input::add_to_linker::<State, WasiCli>(l, State::cli)?;
    bindings::cli::terminal_output::add_to_linker::<State, WasiCli>(l, State::cli)?;
    bindings::cli::terminal_stdin::add_to_linker::<State, WasiCli>(l, State::cli)?;
    bindings::cli::terminal_stdout::add_to_linker::<State, WasiCli>(l, State::cli)?;
    bindings::cli::terminal_stderr::add_to_linker::<State, WasiCli>(l, State::cli)?;
    if grants.contains(&Grant::Clock) {
        bindings::clocks::wall_clock::add_to_linker::<State, WasiClocks>(l, State::clocks)?;
        monotonic_clock::add_to_linker::<State, BoundedClock>(l, |state| {
            let left = state.time_left();
            Clock { clocks: state.clocks(), left }
        })?;
    }
    if grants.contains(&Grant::Random) {
        bindings::random::random::add_to_linker::<State, WasiRandom>(l, State::random)?;
        bindings::random::insecure::add_to_linker::<State, WasiRandom>(l, State::random)?;
        bindings::random::insecure_seed::add_to_linker::<State, WasiRandom>(l, State::random)?;
    }
    if grants.iter().any(|g| matches!(g, Grant::Read(_))) {
        bindings::filesystem::preopens::add_to_linker::<State, WasiFilesystem>(l, State::filesystem)?;
        bindings::sync::filesystem::types::add_to_linker::<State, WasiFilesystem>(l, State::filesystem)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn imports(names: &[&str]) -> Vec<Import> {
        names.iter().map(|n| Import { name: (*n).into(), has_functions: true }).collect()
    }

    #[test]
    fn grants_are_read_as_they_are_written() {
        for text in ["clock", "random", "env=HOME", "read=/a=b"] {
            assert_eq!(text.parse::<Grant>().unwrap().to_string(), text);
        }
        for (text, words) in [
            ("time", "there are clock, random, env=NAME and read=DIR"),
            ("clock=yes", "there is no such grant"),
            ("env", "name one environment variable"),
            ("env=", "name one environment variable"),
            ("env=A=B", "name one environment variable"),
            ("read=", "name a directory"),
            ("write=/x", "there is no such grant"),
        ] {
            let error = text.parse::<Grant>().unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_flag() {
        for (import, words) in [
            ("wasi:clocks/wall-clock@0.2.6", "it wants to know the time; give it with --grant clock"),
            ("wasi:clocks/monotonic-clock@0.2.0", "--grant clock"),
            ("wasi:random/insecure-seed@0.2.6", "random numbers; give it with --grant random"),
            ("wasi:filesystem/types@0.2.6", "read files; give it with --grant read=DIR"),
            ("wasi:cli/environment@0.2.6", "environment variables; give it with --grant env=NAME"),
            ("wasi:cli/stdout@0.2.6", "give it with any --grant"),
        ] {
            let error = permit(&imports(&["plastic:rank/host@1.0.0", import]), &[]).unwrap_err();
            assert!(error.contains(import) && error.contains(words), "{error}");
        }
        let many = imports(&["wasi:cli/stdout@0.2.6", "wasi:filesystem/types@0.2.6", "wasi:clocks/wall-clock@0.2.6"]);
        let error = permit(&many, &[]).unwrap_err();
        assert!(
            error.contains("`wasi:clocks/wall-clock@0.2.6`") && error.contains("(and --grant read=DIR)"),
            "{error}"
        );
    }

    #[test]
    fn some_things_are_never_granted() {
        let all = [Grant::Clock, Grant::Random, Grant::Env("A".into()), Grant::Read("/".into())];
        for import in [
            "wasi:sockets/tcp@0.2.6",
            "wasi:http/outgoing-handler@0.2.6",
            "wasi:clocks/wall-clock@0.3.0",
            "wasi:clocks/timezone@0.2.6",
            "wasi_snapshot_preview1",
            "evil:host/shell@1.0.0",
            "env",
        ] {
            let error = permit(&imports(&[import]), &all).unwrap_err();
            assert!(error.contains(&format!("imports `{import}`")) && !error.contains("--grant"), "{error}");
        }
    }

    #[test]
    fn a_plugin_is_given_what_it_makes_use_of() {
        let all = [Grant::Clock, Grant::Env("A".into()), Grant::Read("/".into())];
        let clock = imports(&["plastic:rank/host@1.0.0", "wasi:clocks/wall-clock@0.2.6"]);
        assert_eq!(permit(&clock, &all).unwrap(), [Grant::Clock]);
        assert_eq!(permit(&imports(&["plastic:rank/host@1.0.0"]), &all).unwrap(), []);
        let types = [Import { name: "wasi:clocks/wall-clock@0.2.6".into(), has_functions: false }];
        assert_eq!(permit(&types, &[]).unwrap(), [], "types alone give nothing");
        assert!(!is_wasi(&types));
    }
}
