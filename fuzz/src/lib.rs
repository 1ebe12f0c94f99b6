//! What the fuzz targets do with their bytes: each function takes any bytes and panics where the
//! host breaks a promise. `host/tests/corpus.rs` compiles this file, too, to replay kept inputs.

mod options;
mod plan;
mod tables;
mod texts;

pub use options::options;
pub use plan::plan;
pub use tables::c_tables;
pub use texts::texts;

use plastic_host::plugin::contract::{Info, Observation, Plan, Run, Slice, Task, Verdict};
use plastic_host::plugin::fuzzing::{Call, Question, Reply, Wire, frame, read_frame, receive};
use plastic_host::plugin::{Artifact, Grant, Limits};
use std::path::Path;

/// A plugin's file: whatever it is, it is a plugin or there is one clean sentence, and what is granted is
/// what was given.
///
/// Bare modules are not wrapped into components here: that runs where the compiler runs, in a process
/// of its own, which may crash (`a_module_that_crashes_the_compiler_is_a_fault` in `host/tests/corpus.rs`).
pub fn component(bytes: &[u8]) {
    let path = Path::new("plugin.wasm");
    let closed = Artifact::from_bytes(path, bytes.to_vec(), &Limits::default());
    let all = vec![Grant::Clock, Grant::Random, Grant::Env("A".into()), Grant::Read("/dir".into())];
    let open = Artifact::from_bytes(path, bytes.to_vec(), &Limits { grants: all.clone(), ..Limits::default() });
    if let Ok(plugin) = &closed {
        assert!(plugin.grants.is_empty(), "nothing was granted");
        assert!(open.is_ok(), "more grants, fewer plugins");
    }
    match open {
        Err(fault) => shown(&fault.to_string()),
        Ok(plugin) => {
            assert!(plugin.grants.iter().all(|g| all.contains(g)));
            assert_eq!(plugin.api.split('.').next(), Some("1"));
            shown(&plugin.api);
            plugin.imports.iter().for_each(|i| shown(i));
        }
    }
}

/// A text that people are shown on a terminal.
pub(crate) fn shown(text: &str) {
    let bad = text.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
    assert!(bad.is_none(), "a message with {bad:?} in it: {text:?}");
    assert!(text.len() < 64 << 10, "a message of {} bytes", text.len());
}

/// Once in `n` times; never where the bytes are used up.
pub(crate) fn rare(u: &mut arbitrary::Unstructured, n: u32) -> arbitrary::Result<bool> {
    Ok(u.int_in_range(1..=n)? == n)
}

/// A frame of an isolated plugin: what is read is written as the same bytes again.
pub fn wire(bytes: &[u8]) {
    fn again<T: Wire>(bytes: &[u8]) {
        if let Ok(value) = read_frame::<T>(bytes) {
            assert!(frame(&value) == bytes, "another frame comes back");
        }
    }
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind % 16 {
        0 => again::<Call>(bytes),
        1 => again::<Reply>(bytes),
        2 => again::<Question>(bytes),
        3 => again::<Info>(bytes),
        4 => again::<Plan>(bytes),
        5 => again::<Verdict>(bytes),
        6 => again::<Observation>(bytes),
        7 => again::<Run>(bytes),
        8 => again::<Vec<Slice>>(bytes),
        9 => again::<Task>(bytes),
        10 => again::<Result<Vec<Vec<f32>>, String>>(bytes),
        11 => again::<Result<Vec<Vec<u32>>, String>>(bytes),
        12 => again::<Result<String, String>>(bytes),
        13 => again::<Vec<Vec<u8>>>(bytes),
        14 => again::<Vec<()>>(bytes),
        _ => {
            let mut stream = bytes;
            while let Ok(frame) = receive(&mut stream, 1 << 20) {
                assert!(frame.len() <= bytes.len());
                again::<Reply>(&frame);
            }
        }
    }
}
