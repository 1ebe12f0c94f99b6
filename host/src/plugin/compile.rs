//! Compiling a plugin, which is the one thing about untrusted code that no sandbox contains: the
//! compiler can be made to take hours and all memory, and it can have defects.
//!
//! Where the host names a program for it, the compiler runs in a process of its own, under a limit of
//! time and of memory; what ends that process is a [`Fault`] of the plugin. The result travels through
//! a directory that only this user can enter. Without such a program (the library in a test) it
//! compiles in place.

use super::component::{Artifact, component};
use super::limits::{Limits, size};
use super::{Fault, FaultClass, engine, text};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use wasmtime::Engine;

/// Most of what the compiler says that is read.
const MOST_SAID: u64 = 64 << 10;

/// Native code of the plugin, to be given to [`wasmtime::component::Component::deserialize`].
///
/// # Errors
/// [`FaultClass::Load`]: it does not compile, or not within the limits.
pub(super) fn compile(
    artifact: &Artifact,
    limits: &Limits,
    engine: &Engine,
    program: Option<&Path>,
) -> Result<Vec<u8>, Fault> {
    let code = match program {
        Some(program) => elsewhere(program, artifact, limits),
        None => here(artifact.bytes(), engine).map_err(|why| failed(&why)),
    };
    code.map_err(|message| artifact.fault(FaultClass::Load, message))
}

fn here(bytes: &[u8], engine: &Engine) -> Result<Vec<u8>, String> {
    let component = component(bytes)?;
    engine.precompile_component(&component).map_err(|e| e.root_cause().to_string())
}

fn failed(why: &str) -> String {
    format!("does not compile: {}; build or fetch it again", text::clean(why.trim(), 4096))
}

/// Compiles a file in this process, under these limits, and writes the native code to another: the
/// other side of [`compile`].
///
/// # Errors
/// A sentence, which goes to standard error and from there into the fault.
pub fn precompile(file: &Path, out: &Path, limits: &Limits) -> Result<(), String> {
    confine(limits)?;
    let bytes = std::fs::read(file).map_err(|e| e.to_string())?;
    let engine = engine::engine(limits)?;
    std::fs::write(out, here(&bytes, &engine)?).map_err(|e| e.to_string())
}

/// Takes from this process what the limits do not give.
#[cfg(target_os = "linux")]
fn confine(limits: &Limits) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let set = |resource, most: u64| {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(resource, limit).map_err(|e| format!("the limits of compiling cannot be set: {e}"))
    };
    // Not the address space: an allocator reserves more of it than it uses.
    set(Resource::Data, limits.compile_bytes)?;
    set(Resource::Core, 0)?;
    set(Resource::Cpu, processor_seconds(limits))
}

/// As on Linux, without the limit of memory, which other systems do not enforce.
#[cfg(not(target_os = "linux"))]
fn confine(limits: &Limits) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let most = processor_seconds(limits);
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Cpu, limit).map_err(|e| format!("the limits of compiling cannot be set: {e}"))
}

/// The host measures time; this ends a compiler whose host is gone.
fn processor_seconds(limits: &Limits) -> u64 {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    limits.compile_time.as_secs().saturating_add(1).saturating_mul(processors)
}

/// Compiles in a process of its own.
fn elsewhere(program: &Path, artifact: &Artifact, limits: &Limits) -> Result<Vec<u8>, String> {
    let place = |e: std::io::Error| format!("cannot be compiled: no temporary directory: {e}");
    // Entered by this user only.
    let dir = tempfile::Builder::new().prefix("plastic-compile-").tempdir().map_err(place)?;
    let (file, out) = (dir.path().join("plugin.wasm"), dir.path().join("plugin.cwasm"));
    // What was read and hashed, not what the path may hold by now.
    std::fs::write(&file, artifact.bytes()).map_err(place)?;
    let mut command = Command::new(program);
    command.args(["plugin", "compile"]).arg(&file).arg("--out").arg(&out);
    command.arg("--stack-bytes").arg(limits.stack_bytes.to_string());
    command.arg("--seconds").arg(limits.compile_time.as_secs().to_string());
    command.arg("--bytes").arg(limits.compile_bytes.to_string());
    if limits.fuel_budget().is_some() {
        command.arg("--fuel");
    }
    if limits.deterministic {
        command.arg("--deterministic");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Neither log lines between the words that are read here, nor threads of a library not used there.
    command.env_remove("RUST_LOG").env("OPENBLAS_NUM_THREADS", "1");
    let child =
        command.spawn().map_err(|e| format!("cannot be compiled: {} does not start: {e}", program.display()))?;
    wait(child, limits)?;
    std::fs::read(&out).map_err(|e| format!("cannot be compiled: the compiler left nothing behind: {e}"))
}

/// Waits for the compiler to end well, in time.
fn wait(mut child: Child, limits: &Limits) -> Result<(), String> {
    let stderr = child.stderr.take();
    let (send, said) = channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let end = stderr.map(|s| s.take(MOST_SAID).read_to_end(&mut text));
        // Nobody listens when the time is up.
        let _ = send.send((end, String::from_utf8_lossy(&text).into_owned()));
    });
    // Its standard error ends when the process does.
    let said = match said.recv_timeout(limits.compile_time) {
        Ok((_, text)) => text,
        Err(RecvTimeoutError::Timeout) => {
            // Both fail only where it has just ended.
            let _ = child.kill();
            let _ = child.wait();
            let limit = limits.compile_time.as_secs();
            return Err(format!("takes more than {limit} s to compile, the limit (compile_seconds)"));
        }
        Err(RecvTimeoutError::Disconnected) => String::new(),
    };
    let status = child.wait().map_err(|e| format!("cannot be compiled: {e}"))?;
    if status.success() {
        return Ok(());
    }
    // The words of Rust's allocator, of wasmtime, and of the system.
    if ["memory allocation of", "out of memory", "Cannot allocate memory"].iter().any(|w| said.contains(w)) {
        let limit = size(usize::try_from(limits.compile_bytes).unwrap_or(usize::MAX));
        return Err(format!("needs more than {limit} to compile, the limit (compile_mib)"));
    }
    match status.signal() {
        Some(signal) => Err(format!(
            "cannot be compiled: the compiler was ended by signal {signal}: {}",
            text::clean(said.trim(), 400)
        )),
        None => Err(failed(&said)),
    }
}
