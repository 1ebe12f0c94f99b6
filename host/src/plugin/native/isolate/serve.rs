//! The child's side: loads the library and answers calls until the parent closes the socket.
//!
//! The socket comes as standard input and is moved out of the plugin's reach; what is left there is
//! the null device. Memory is limited by the system, for the library's part; a crash leaves no core
//! file. On Linux the kernel ends the child with its parent, elsewhere the closed socket does at the
//! next answer.

use super::super::super::component::Kind;
use super::super::super::contract::{Example, Info, Metric};
use super::super::super::{FaultClass, Measure};
use super::super::evaluator::NativeEvaluator;
use super::super::kept::{EvaluatorInstance, PolicyInstance};
use super::super::library;
use super::super::policy::NativePolicy;
use super::super::{Failure, Lines};
use super::message::{self, Call, Question, Reply};
use super::wire::Wire;
use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;

/// What a child is told on its command line.
#[derive(Clone, Debug)]
pub struct Served {
    /// The library.
    pub library: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Bytes its part of the process may grow by.
    pub memory_bytes: usize,
    /// Bytes it may hand over at once.
    pub transfer_bytes: usize,
}

/// Answers calls until the parent is gone.
///
/// # Errors
/// Standard input is not the parent's socket, or the connection broke.
pub fn serve(served: &Served) -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let stream = Rc::new(RefCell::new(UnixStream::from(socket)));
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    confine(served.memory_bytes);
    let loaded = library::open_file(&served.library);
    let lines = Box::new(RemoteLines(stream.clone()));
    let made = loaded.and_then(|loaded| match served.kind {
        Kind::Policy => NativePolicy::new(loaded, lines, served.transfer_bytes).map(|p| Body::Policy(Box::new(p))),
        Kind::Evaluator => {
            NativeEvaluator::new(loaded, lines, served.transfer_bytes).map(|e| Body::Evaluator(Box::new(e)))
        }
    });
    let mut body = match made {
        Ok(body) => body,
        Err(failure) => return reply(&stream, &failure.into()),
    };
    reply(&stream, &done(&()))?;
    loop {
        let frame = match message::receive(&mut *stream.borrow_mut(), usize::MAX) {
            Ok(frame) => frame,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        };
        let call = message::read::<Call>(&frame).map_err(|_| io::Error::other("the parent sent no call"))?;
        let answer = body.answer(call, &stream);
        reply(&stream, &answer.unwrap_or_else(Reply::from))?;
    }
}

/// The instance.
enum Body {
    Policy(Box<dyn PolicyInstance>),
    Evaluator(Box<dyn EvaluatorInstance>),
}

type Stream = Rc<RefCell<UnixStream>>;

impl Body {
    fn answer(&mut self, call: Call, stream: &Stream) -> Result<Reply, Failure> {
        Ok(match (self, call) {
            (Body::Policy(p), Call::Describe) => done(&p.describe()?),
            (Body::Policy(p), Call::Configure(options)) => done(&p.configure(&options)?),
            (Body::Policy(p), Call::Start(run, slices)) => done(&p.start(&run, &slices)?),
            (Body::Policy(p), Call::Decide(seen)) => done(&p.decide(&seen)?),
            (Body::Policy(p), Call::Snapshot) => done(&p.snapshot()?),
            (Body::Policy(p), Call::Restore(state)) => done(&p.restore(&state)?),
            (Body::Policy(p), Call::Report) => done(&p.report()?),
            (Body::Evaluator(e), Call::Describe) => done::<Info>(&e.describe()?),
            (Body::Evaluator(e), Call::Configure(options)) => done(&e.configure(&options)?),
            (Body::Evaluator(e), Call::Evaluate(task)) => done(&e.evaluate(&task, &mut Remote(stream.clone()))?),
            _ => return Err(Failure::plain(FaultClass::Answer, "a plugin of this kind has no such function")),
        })
    }
}

fn done<T: Wire>(answer: &T) -> Reply {
    Reply::Done(message::bytes(answer))
}

fn reply(stream: &Stream, reply: &Reply) -> io::Result<()> {
    message::send(&mut *stream.borrow_mut(), &message::bytes(reply))
}

/// Sends log lines to the parent.
struct RemoteLines(Stream);

impl Lines for RemoteLines {
    fn line(&mut self, level: u8, message: &str) {
        // A parent that is gone ends this process at the next answer.
        let _ = reply(&self.0, &Reply::Line(level, message.to_owned()));
    }
}

/// Sends an evaluator's questions to the parent.
struct Remote(Stream);

impl Remote {
    fn ask<T: Wire>(&self, question: Question) -> Result<T, String> {
        let lost = |e: io::Error| format!("the host is gone: {e}");
        reply(&self.0, &Reply::Ask(question)).map_err(lost)?;
        let frame = message::receive(&mut *self.0.borrow_mut(), usize::MAX).map_err(lost)?;
        message::read::<Result<T, String>>(&frame).unwrap_or_else(|_| Err("the host's answer is garbled".into()))
    }
}

impl Measure for Remote {
    fn windows(&self) -> u32 {
        self.ask(Question::Windows).unwrap_or(0)
    }
    fn window(&self, index: u32) -> Result<Vec<u32>, String> {
        self.ask(Question::Window(index))
    }
    fn score(&mut self, subject: &str, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        self.ask(Question::Score(subject.into(), sequences.to_vec()))
    }
    fn score_windows(&mut self, subject: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        self.ask(Question::ScoreWindows(subject.into(), indices.to_vec()))
    }
    fn generate(&mut self, subject: &str, prompt: &str, max_tokens: u32) -> Result<String, String> {
        self.ask(Question::Generate(subject.into(), prompt.into(), max_tokens))
    }
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        self.ask(Question::Tokenize(text.into()))
    }
    fn detokenize(&self, tokens: &[u32]) -> Result<String, String> {
        self.ask(Question::Detokenize(tokens.to_vec()))
    }
    fn counters(&mut self, subject: &str) -> Result<Vec<Metric>, String> {
        self.ask(Question::Counters(subject.into()))
    }
    fn divergence(&mut self, reference: &str, of: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        self.ask(Question::Divergence(reference.into(), of.into(), indices.to_vec()))
    }
    fn examples(&self) -> u32 {
        self.ask(Question::Examples).unwrap_or(0)
    }
    fn example(&self, index: u32) -> Result<Example, String> {
        self.ask(Question::Example(index))
    }
    fn timing(&mut self, subject: &str, prompt_tokens: u32, new_tokens: u32) -> Result<Vec<Metric>, String> {
        self.ask(Question::Timing(subject.into(), prompt_tokens, new_tokens))
    }
}

/// Ends this process with its parent, keeps core files away and limits memory, as far as the system
/// can; what it cannot is only written to the log.
fn confine(memory_bytes: usize) {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = |resource, bytes: u64| {
        let result = setrlimit(resource, Rlimit { current: Some(bytes), maximum: Some(bytes) });
        if let Err(e) = result {
            tracing::warn!(target: "plugin", "no limit on {resource:?}: {e}");
        }
    };
    limit(Resource::Core, 0);
    #[cfg(target_os = "linux")]
    {
        // Another thread of malloc's takes 64 MiB of addresses at once.
        const SLACK: u64 = 128 << 20;
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        if let Some(now) = address_space() {
            limit(Resource::As, now.saturating_add(memory_bytes as u64).saturating_add(SLACK));
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory_bytes;
}

/// Bytes of addresses this process uses now: this program has large libraries.
#[cfg(target_os = "linux")]
fn address_space() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmSize:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}
