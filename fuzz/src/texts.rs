//! Files that people keep and exchange: locks, signatures, keys, recordings, journals.

use plastic_host::plastic::journal::{Event, History, Journal};
use plastic_host::plastic::plan::{Subject, resolve};
use plastic_host::plastic::policies::project;
use plastic_host::plastic::portable::Portable;
use plastic_host::plastic::state::DENSE;
use plastic_host::plugin::lock::Lock;
use plastic_host::plugin::signature::{Key, State, check_text};
use std::path::Path;

/// The first byte chooses the reader.
pub fn texts(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => lock(rest),
        1 => signature(rest),
        2 => recording(rest),
        _ => journal(rest),
    }
}

/// A lock that is read can be written, and is the same then.
fn lock(bytes: &[u8]) {
    match Lock::parse(bytes) {
        Err(why) => super::shown(&why),
        Ok(lock) => {
            let written = toml::to_string(&lock).expect("a lock can be written");
            assert_eq!(Lock::parse(written.as_bytes()), Ok(lock.clone()));
            for e in lock.entries() {
                super::shown(&e.file);
                assert_eq!(e.sha256.len(), 64);
                let _ = lock.judge(Path::new(&e.file), &e.sha256);
            }
        }
    }
}

/// Signature, key and content, divided by zero bytes. Nothing but the content that was signed passes.
fn signature(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |b| *b == 0);
    let mut text = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (signature, key) = (text(), text());
    let content = parts.next().unwrap_or_default();
    let keys: Vec<Key> = Key::parse(&key).map_err(|e| super::shown(&e.to_string())).into_iter().collect();
    match check_text(&signature, content, &keys) {
        State::Signed { by, comment } => {
            super::shown(&by);
            super::shown(&comment);
            let other = [content, b"!"].concat();
            assert!(matches!(check_text(&signature, &other, &keys), State::Bad { .. }), "signed whatever it is");
        }
        State::Bad { why } => super::shown(&why),
        State::Unknown { key } => super::shown(&key),
        State::Unsigned => panic!("there is a signature"),
    }
}

/// A recording that is read can be shown to a policy, and written.
fn recording(bytes: &[u8]) {
    let path = Path::new("recording.json");
    let recording = match Portable::from_bytes(path, bytes) {
        Ok(recording) => recording,
        Err(e) => return super::shown(&e.to_string()),
    };
    for step in &recording.steps {
        let seen = recording.observation(step);
        let mut wanted = step.seen.needs.clone();
        wanted.reverse();
        wanted.push("spectrum:plain".into());
        let shown = project(&seen, &step.seen.needs, &wanted);
        assert!(shown.series.iter().all(|s| (s.offset + s.len) as usize <= shown.values.len()));
    }
    serde_json::to_string(&recording).expect("a recording can be written");
}

/// A journal that is read leads somewhere, and its plans can be resolved again.
fn journal(bytes: &[u8]) {
    let path = Path::new("journal.jsonl");
    let events = match Journal::from_bytes(path, bytes) {
        Ok(events) => events,
        Err(e) => return super::shown(&e.to_string()),
    };
    let events: &[Event] = &events;
    let run = events.run().expect("a journal begins with its run");
    let current = events.current();
    assert!(events.chain(current).len() <= events.len());
    let _ = events.ended();
    let state = current.and_then(|s| s.state.as_ref());
    let subject = |i: usize| {
        let awake = state.and_then(|s| s.get(i).cloned()).unwrap_or(DENSE);
        Subject { awake, frozen: current.is_some_and(|s| s.frozen.contains(&(i as u32))) }
    };
    let now: Vec<Subject> = (0..run.slices.len()).map(subject).collect();
    for plan in events.steps().filter_map(|s| s.plan.as_ref()) {
        let _ = resolve(plan, &run.slices, &now, run.budget, &|_, _| Some(&[1.0, 0.5]));
    }
    serde_json::to_string(events).expect("a journal can be written");
}
