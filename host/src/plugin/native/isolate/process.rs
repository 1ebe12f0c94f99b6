//! The parent's side: starts the child, asks it, answers its questions, and says how it ended.
//!
//! The clock of a call is the parent's: a child that does not answer in time is killed. Time that
//! the host spends on measurements is not counted.

use super::super::super::component::{Artifact, Kind};
use super::super::super::contract::{Info, Observation, Plan, Run, Slice, Task, Verdict};
use super::super::super::limits::{Limits, size};
use super::super::super::sandbox::Log;
use super::super::super::{FaultClass, Measure, text};
use super::super::kept::{EvaluatorInstance, PolicyInstance};
use super::super::library::Copy;
use super::super::{Failure, PANIC_BYTES};
use super::message::{self, Call, Question, Reply};
use super::wire::{Garbled, Wire};
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Least time to start the program and load the library; a short `call_time` is for calls.
const START: Duration = Duration::from_secs(20);
/// Time a child has to end after its socket closed.
const GRACE: Duration = Duration::from_secs(1);
/// What a message may be larger than what the plugin hands over.
const FRAME: usize = 1 << 20;

/// How children are started.
#[derive(Clone, Debug)]
pub struct Isolation {
    program: PathBuf,
}

impl Isolation {
    /// By the program `plastic-host` at this path.
    pub fn by(program: impl Into<PathBuf>) -> Isolation {
        Isolation { program: program.into() }
    }

    /// By this very program, even where its file was replaced meanwhile.
    ///
    /// # Errors
    /// The system does not say where it lies.
    pub fn by_this_program() -> io::Result<Isolation> {
        let itself = PathBuf::from("/proc/self/exe");
        Ok(Isolation { program: if itself.exists() { itself } else { std::env::current_exe()? } })
    }

    /// Keeps a private copy of the library, for every child that is started.
    ///
    /// # Errors
    /// The copy cannot be written.
    pub(in super::super) fn spawner(&self, artifact: &Artifact, limits: &Limits) -> Result<Spawner, Failure> {
        let (program, kind, limits) = (self.program.clone(), artifact.kind, limits.clone());
        Ok(Spawner { program, kind, limits, copy: Copy::of(artifact)? })
    }
}

/// Starts children that run one library.
pub struct Spawner {
    program: PathBuf,
    kind: Kind,
    limits: Limits,
    copy: Copy,
}

impl Spawner {
    /// Starts a child and waits until it has loaded the library.
    pub(in super::super) fn spawn(&self, plugin: &str) -> Result<Isolated, Failure> {
        let load = |what: &str, e: io::Error| Failure::fatal(FaultClass::Load, format!("{what}: {e}"));
        let (ours, theirs) = UnixStream::pair().map_err(|e| load("no socket for its process", e))?;
        let (output, printed) = io::pipe().map_err(|e| load("no pipe for its process", e))?;
        let both = printed.try_clone().map_err(|e| load("no pipe for its process", e))?;
        let mut command = Command::new(&self.program);
        command.args(["plugin", "serve", "--kind", &self.kind.to_string()]);
        command.args(["--memory", &self.limits.memory_bytes.to_string()]);
        command.args(["--transfer", &self.limits.transfer_bytes.to_string()]);
        command.arg(self.copy.path()).env_clear().stdin(Stdio::from(OwnedFd::from(theirs)));
        // Where the program's own libraries are, in an unusual installation.
        for name in ["LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        let child = command.stdout(both).stderr(printed).spawn();
        // Holds the child's ends of socket and pipe: without it their end is seen here.
        drop(command);
        let child = child.map_err(|e| load("its process does not start", e))?;
        let printed = Printed::default();
        let taken = printed.clone();
        let reader = std::thread::Builder::new().name("plugin-output".into());
        let reader = reader.spawn(move || taken.take(output));
        reader.map_err(|e| load("no thread for its output", e))?;
        let log = Log::new(plugin.to_owned(), &self.limits);
        let mut isolated = Isolated { child, stream: ours, limits: self.limits.clone(), printed, log };
        let deadline = Instant::now() + self.limits.call_time.max(START);
        isolated.answer::<()>("load", deadline, None)?;
        Ok(isolated)
    }
}

/// What a child prints: whole lines for the log, the last bytes for a fault.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Output>>);

#[derive(Default)]
struct Output {
    lines: Vec<String>,
    dropped: usize,
    last: String,
    closed: bool,
}

impl Printed {
    /// Reads until the child is gone. Never stops reading, or the child would wait.
    fn take(&self, output: io::PipeReader) {
        let mut output = io::BufReader::new(output);
        let mut line = Vec::new();
        // A line without an end comes in pieces.
        while matches!((&mut output).take(PANIC_BYTES as u64).read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if text.is_empty() {
                continue;
            }
            let mut out = self.0.lock().unwrap_or_else(|e| e.into_inner());
            if out.last.len() > PANIC_BYTES {
                out.last.clear();
            }
            if !out.last.is_empty() {
                out.last.push('\n');
            }
            out.last.push_str(&text);
            match out.lines.len() < 1000 {
                true => out.lines.push(text),
                false => out.dropped += 1,
            }
        }
        self.0.lock().unwrap_or_else(|e| e.into_inner()).closed = true;
    }

    /// Passes on what was printed during a call.
    fn log(&self, log: &mut Log) {
        let mut out = self.0.lock().unwrap_or_else(|e| e.into_inner());
        for line in out.lines.drain(..) {
            log.take(2, &line);
        }
        log.drop_lines(std::mem::take(&mut out.dropped));
        out.last.clear();
    }

    /// The last words of a child that is gone.
    fn last(&self) -> String {
        let until = Instant::now() + GRACE;
        loop {
            let out = self.0.lock().unwrap_or_else(|e| e.into_inner());
            if out.closed || Instant::now() > until {
                return text::clean(&out.last, PANIC_BYTES);
            }
            drop(out);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// An instance in a child.
pub struct Isolated {
    child: Child,
    stream: UnixStream,
    limits: Limits,
    printed: Printed,
    log: Log,
}

impl Isolated {
    /// Calls the child; an evaluator's questions are answered by `measure`.
    fn call<T: Wire>(&mut self, function: &str, call: &[u8], measure: Option<&mut dyn Measure>) -> Result<T, Failure> {
        let deadline = Instant::now() + self.limits.call_time;
        let result = match self.send(call, deadline) {
            Ok(()) => self.answer(function, deadline, measure),
            Err(e) => Err(self.lost(function, &e)),
        };
        self.printed.log(&mut self.log);
        self.log.close();
        result
    }

    fn answer<T: Wire>(
        &mut self,
        function: &str,
        mut deadline: Instant,
        mut measure: Option<&mut dyn Measure>,
    ) -> Result<T, Failure> {
        loop {
            let frame = match self.receive(deadline) {
                Ok(frame) => frame,
                Err(e) => return Err(self.lost(function, &e)),
            };
            match message::read::<Reply>(&frame) {
                Ok(Reply::Line(level, line)) => self.log.take(level, &line),
                Ok(Reply::Done(answer)) => return message::read(&answer).map_err(|Garbled| self.garbled(function)),
                Ok(Reply::Failed(class, message, fatal)) => return Err(Failure { class, message, fatal }),
                Ok(Reply::Ask(question)) => {
                    let Some(measure) = measure.as_deref_mut() else { return Err(self.garbled(function)) };
                    let started = Instant::now();
                    let answer = answer(question, measure);
                    deadline += started.elapsed();
                    if let Err(e) = self.send(&answer, deadline) {
                        return Err(self.lost(function, &e));
                    }
                }
                Err(Garbled) => return Err(self.garbled(function)),
            }
        }
    }

    fn send(&mut self, frame: &[u8], deadline: Instant) -> io::Result<()> {
        message::send(&mut Timed { stream: &self.stream, deadline }, frame)
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<Vec<u8>> {
        message::receive(&mut Timed { stream: &self.stream, deadline }, self.limits.transfer_bytes + FRAME)
    }

    /// The child sent something that is no message. Only a plugin that writes into other parts of
    /// its process can do that.
    fn garbled(&mut self, function: &str) -> Failure {
        self.end();
        Failure::fatal(FaultClass::Answer, format!("`{function}`: its process sent something that is no answer"))
    }

    /// Why nothing came over the socket.
    fn lost(&mut self, function: &str, error: &io::Error) -> Failure {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                self.end();
                let limit = self.limits.call_time;
                let message = format!("`{function}` ran longer than {limit:?}, the limit (call_time)");
                return Failure::fatal(FaultClass::Timeout, message);
            }
            ErrorKind::InvalidData => {
                self.end();
                let limit = size(self.limits.transfer_bytes);
                let message =
                    format!("`{function}` handed the host more than {limit} at once, the limit (transfer_bytes)");
                return Failure::fatal(FaultClass::Memory, message);
            }
            _ => {}
        }
        let status = self.ended();
        let last = self.printed.last();
        let said = if last.is_empty() { String::new() } else { format!(" (it printed: {last})") };
        let limit = size(self.limits.memory_bytes);
        // The words of Rust's allocator and of its stack guard.
        if last.contains("memory allocation of") {
            let message = format!("`{function}` wanted more memory than {limit}, the limit (memory_bytes){said}");
            return Failure::fatal(FaultClass::Memory, message);
        }
        if last.contains("has overflowed its stack") {
            let message = format!("`{function}` needs more stack than there is; does it recurse without end?");
            return Failure::fatal(FaultClass::Memory, message);
        }
        let how = match status {
            Some(status) => how_it_ended(status),
            None => format!("its process closed the connection ({error})"),
        };
        Failure::fatal(FaultClass::Trap, format!("`{function}`: {how}{said}"))
    }

    /// Waits for a child that is about to end; kills one that does not.
    fn ended(&mut self) -> Option<ExitStatus> {
        let until = Instant::now() + GRACE;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.end();
        None
    }

    fn end(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Isolated {
    fn drop(&mut self) {
        self.end();
    }
}

/// A socket that gives up when the time is up.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // Zero would mean for ever.
        if left < Duration::from_micros(1) { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        (&mut self.stream).read(to)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        (&mut self.stream).write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end of a process, in words.
fn how_it_ended(status: ExitStatus) -> String {
    let Some(signal) = status.signal() else {
        return format!("it ended its process with exit code {}", status.code().unwrap_or(0));
    };
    // The numbers that are the same on Linux and macOS; SIGBUS and SIGSYS are not.
    let name = match signal {
        4 => "SIGILL, an illegal instruction",
        5 => "SIGTRAP, a trap",
        6 => "SIGABRT, it aborted",
        8 => "SIGFPE, a division by zero",
        9 => "SIGKILL, it was killed",
        11 => "SIGSEGV, a memory access out of bounds",
        15 => "SIGTERM, it was ended",
        _ => "a signal",
    };
    format!("its process was ended by signal {signal} ({name})")
}

/// Answers one question.
fn answer(question: Question, measure: &mut dyn Measure) -> Vec<u8> {
    use message::bytes;
    match question {
        Question::Windows => bytes(&Ok::<_, String>(measure.windows())),
        Question::Window(index) => bytes(&measure.window(index)),
        Question::Score(subject, sequences) => bytes(&measure.score(&subject, &sequences)),
        Question::ScoreWindows(subject, indices) => bytes(&measure.score_windows(&subject, &indices)),
        Question::Generate(subject, prompt, most) => bytes(&measure.generate(&subject, &prompt, most)),
        Question::Tokenize(text) => bytes(&measure.tokenize(&text)),
        Question::Detokenize(tokens) => bytes(&measure.detokenize(&tokens)),
        Question::Counters(subject) => bytes(&measure.counters(&subject)),
        Question::Divergence(reference, of, indices) => bytes(&measure.divergence(&reference, &of, &indices)),
        Question::Examples => bytes(&Ok::<_, String>(measure.examples())),
        Question::Example(index) => bytes(&measure.example(index)),
        Question::Timing(subject, prompt, new) => bytes(&measure.timing(&subject, prompt, new)),
    }
}

impl PolicyInstance for Isolated {
    fn describe(&mut self) -> Result<Info, Failure> {
        self.call("describe", &message::bytes(&Call::Describe), None)
    }
    fn configure(&mut self, options: &str) -> Result<(), Failure> {
        self.call("configure", &message::bytes(&Call::Configure(options.to_owned())), None)
    }
    fn start(&mut self, run: &Run, slices: &[Slice]) -> Result<(), Failure> {
        self.call("start", &message::start(run, slices), None)
    }
    fn decide(&mut self, observation: &Observation) -> Result<Plan, Failure> {
        self.call("decide", &message::decide(observation), None)
    }
    fn snapshot(&mut self) -> Result<Vec<u8>, Failure> {
        self.call("snapshot", &message::bytes(&Call::Snapshot), None)
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), Failure> {
        self.call("restore", &message::bytes(&Call::Restore(state.to_vec())), None)
    }
    fn report(&mut self) -> Result<String, Failure> {
        self.call("report", &message::bytes(&Call::Report), None)
    }
}

impl EvaluatorInstance for Isolated {
    fn describe(&mut self) -> Result<Info, Failure> {
        self.call("describe", &message::bytes(&Call::Describe), None)
    }
    fn configure(&mut self, options: &str) -> Result<(), Failure> {
        self.call("configure", &message::bytes(&Call::Configure(options.to_owned())), None)
    }
    fn evaluate(&mut self, task: &Task, measure: &mut dyn Measure) -> Result<Verdict, Failure> {
        self.call("evaluate", &message::bytes(&Call::Evaluate(task.clone())), Some(measure))
    }
}
