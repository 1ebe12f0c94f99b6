//! What parent and child say to each other: frames of a length (u32) and so many bytes.
//!
//! After each [`Call`] the child sends any number of lines and questions, each question is answered
//! before anything else is said, and then one [`Reply::Done`] or [`Reply::Failed`]. The first reply,
//! to no call, says whether the library was loaded.

use super::super::super::FaultClass;
use super::super::super::contract::{Observation, Run, Slice, Task};
use super::super::Failure;
use super::wire::{Garbled, Wire, cases, put_list};
use std::io::{self, Read, Write};

/// The functions of the contract, as the parent calls them. `Decide` and `Start` may be large; they
/// are made with [`decide`] and [`start`], without a copy.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Answered with an `Info`.
    Describe,
    /// Options as JSON.
    Configure(String),
    /// A run begins.
    Start(Run, Vec<Slice>),
    /// Answered with a `Plan`.
    Decide(Box<Observation>),
    /// Answered with bytes.
    Snapshot,
    /// A snapshot.
    Restore(Vec<u8>),
    /// Answered with a text.
    Report,
    /// Answered with a `Verdict`.
    Evaluate(Task),
}

/// What the child sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A log line: level and text.
    Line(u8, String),
    /// A question to the host.
    Ask(Question),
    /// The answer to the call, in its own type.
    Done(Vec<u8>),
    /// The call failed: kind, text, whether the instance is lost.
    Failed(FaultClass, String, bool),
}

/// A question of an evaluator; the answers are `Result<_, String>` of what `Measure` returns.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// `windows`
    Windows,
    /// `window`
    Window(u32),
    /// `score`
    Score(String, Vec<Vec<u32>>),
    /// `score-windows`
    ScoreWindows(String, Vec<u32>),
    /// `generate`
    Generate(String, String, u32),
    /// `tokenize`
    Tokenize(String),
    /// `detokenize`
    Detokenize(Vec<u32>),
    /// `counters`
    Counters(String),
    /// `divergence`
    Divergence(String, String, Vec<u32>),
    /// `examples`
    Examples,
    /// `example`
    Example(u32),
    /// `timing`
    Timing(String, u32, u32),
}

cases! {
    Call {
        0 => Describe, 1 => Configure(options), 2 => Start(run, slices), 3 => Decide(seen), 4 => Snapshot,
        5 => Restore(state), 6 => Report, 7 => Evaluate(task),
    }
    Reply { 0 => Line(level, message), 1 => Ask(question), 2 => Done(answer), 3 => Failed(class, message, fatal) }
    Question {
        0 => Windows, 1 => Window(index), 2 => Score(subject, sequences), 3 => ScoreWindows(subject, indices),
        4 => Generate(subject, prompt, most), 5 => Tokenize(text), 6 => Detokenize(tokens), 7 => Counters(subject),
        8 => Divergence(reference, of, indices), 9 => Examples, 10 => Example(index),
        11 => Timing(subject, prompt, new),
    }
}

impl From<Failure> for Reply {
    fn from(f: Failure) -> Reply {
        Reply::Failed(f.class, f.message, f.fatal)
    }
}

/// The bytes of something that travels.
pub fn bytes(message: &impl Wire) -> Vec<u8> {
    let mut out = Vec::new();
    message.put(&mut out);
    out
}

/// The bytes of [`Call::Decide`].
pub fn decide(observation: &Observation) -> Vec<u8> {
    let mut out = vec![3];
    out.reserve(4 * observation.values.len() + 128 * observation.slices.len());
    observation.put(&mut out);
    out
}

/// The bytes of [`Call::Start`].
pub fn start(run: &Run, slices: &[Slice]) -> Vec<u8> {
    let mut out = vec![2];
    run.put(&mut out);
    put_list(slices, &mut out);
    out
}

/// Writes one frame.
///
/// # Errors
/// The stream's, or a frame of more than 4 GiB.
pub fn send(stream: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(|_| io::Error::other("a message of more than 4 GiB"))?;
    stream.write_all(&length.to_le_bytes())?;
    stream.write_all(frame)
}

/// Reads one frame of at most `most` bytes.
///
/// # Errors
/// The stream's; `InvalidData` for a longer one.
pub fn receive(stream: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    // Filled as it comes: a length alone takes no memory.
    let mut frame = Vec::with_capacity(length.min(1 << 16));
    while frame.len() < length {
        let from = frame.len();
        frame.resize(length.min(from + (1 << 20)), 0);
        stream.read_exact(&mut frame[from..])?;
    }
    Ok(frame)
}

/// One message, or the answer in a [`Reply::Done`].
///
/// # Errors
/// [`Garbled`]
pub fn read<T: Wire>(answer: &[u8]) -> Result<T, Garbled> {
    super::wire::read(answer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::plugin::contract::*;
    use proptest::prelude::*;

    fn observation() -> Observation {
        let facts = || {
            let value = |name: &str, value| Attribute { name: name.into(), value };
            vec![
                value("flag", Value::Flag(true)),
                value("whole", Value::Num(1.0)),
                value("int", Value::Int(-1)),
                value("none", Value::Nums(vec![])),
                value("no-texts", Value::Texts(vec![])),
                value("texts", Value::Texts(vec!["ä".into(), String::new()])),
                value("nums", Value::Nums(vec![f64::INFINITY])),
                value("text", Value::Text("1".into())),
            ]
        };
        let metric = Metric {
            name: "m".into(),
            value: 1.5,
            unit: "ms".into(),
            higher_is_better: true,
            low: None,
            high: Some(2.0),
        };
        let change = [
            Change::SetRank(1),
            Change::SleepN(2),
            Change::WakeN(3),
            Change::Sleep(vec![4, 5]),
            Change::Wake(vec![]),
            Change::Dense,
            Change::Freeze,
            Change::Thaw,
        ];
        let action = |change: &Change| Action { slice: 7, change: change.clone(), reason: "why".into() };
        Observation {
            step: 3,
            awake: 1 << 40,
            slices: vec![SliceState {
                awake: 1,
                dense: true,
                dense_allowed: false,
                frozen: true,
                dwell: 2,
                parameters: 3,
                bytes: 4,
                parked_bytes: 5,
            }],
            series: vec![Series { slice: 0, need: 1, offset: 2, len: 3 }],
            values: vec![1.0, -0.0, f32::MIN_POSITIVE],
            asleep: vec![0, 1],
            metrics: vec![metric.clone()],
            last: Some(Outcome {
                step: 2,
                fate: "held".into(),
                reason: String::new(),
                predicted: Some(0.1),
                measured: None,
                metrics: vec![metric],
            }),
            proposed: Some(Plan {
                actions: change.iter().map(action).collect(),
                threshold: Some(Threshold { need: 1, level: 0.5, reason: "t".into() }),
                predicted: None,
                requests: vec!["spectrum:plain".into()],
                stop: Some("enough".into()),
                attributes: facts(),
            }),
            attributes: facts(),
        }
    }

    #[test]
    fn all_that_an_observation_can_hold_comes_back_as_it_was() {
        let seen = observation();
        assert_eq!(read::<Call>(&decide(&seen)).unwrap(), Call::Decide(Box::new(seen.clone())));
        let run = Run { phase: "train".into(), seed: 1, steps: 2, parameters: 3, budget: 4, attributes: vec![] };
        assert_eq!(read::<Call>(&start(&run, &[])).unwrap(), Call::Start(run, vec![]));
        let verdict =
            Verdict { decision: Decision::Abstain, reason: "r".into(), metrics: vec![], attributes: seen.attributes };
        assert_eq!(read::<Verdict>(&bytes(&verdict)).unwrap(), verdict);
    }

    #[test]
    fn a_shortened_message_is_garbled() {
        let whole = decide(&observation());
        for end in 0..whole.len() {
            assert_eq!(read::<Call>(&whole[..end]), Err(Garbled), "{end} of {} bytes", whole.len());
        }
        let mut frames = Vec::new();
        send(&mut frames, b"four").unwrap();
        assert_eq!(receive(&mut &frames[..], 4).unwrap(), b"four");
        assert_eq!(receive(&mut &frames[..], 3).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive(&mut &frames[..7], 4).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_garbled(bytes: Vec<u8>) {
            let _ = (read::<Reply>(&bytes), read::<Plan>(&bytes), read::<Info>(&bytes), read::<Verdict>(&bytes));
        }

        #[test]
        fn a_changed_byte_harms_nothing(at in 0usize..500, to: u8) {
            let mut whole = bytes(&observation());
            let at = at % whole.len();
            whole[at] = to;
            let _ = read::<Observation>(&whole);
        }
    }
}
