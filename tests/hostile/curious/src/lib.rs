//! A policy that asks the system for what the option `ask` names, for the tests of grants; the answer
//! is the reason of its one action. It is built as plugins are, not on a standard library for WASI,
//! so the tests need no other target.
#![cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "a guest is built for WASM only"))]

#[allow(missing_docs, reason = "generated from the WIT")]
mod system {
    wit_bindgen::generate!({ world: "asks", path: "wit", generate_all });
}

use plastic_plugin::prelude::*;
use system::wasi;
use wasi::filesystem::types::{DescriptorFlags, OpenFlags, PathFlags};

plastic_plugin::options! {
    /// Options of the curious policy.
    pub struct Options {
        /// What to ask for.
        pub ask: String = String::new(),
        /// With which file, or for how long.
        pub what: String = String::new(),
    }
}

#[derive(Default)]
struct Curious {
    options: Options,
}

impl RankPolicy for Curious {
    type Options = Options;

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn decide(&mut self, _: &Observation) -> Result<Plan, String> {
        let answer = match self.options.ask.as_str() {
            "clock" => wasi::clocks::wall_clock::now().seconds.to_string(),
            "random" => wasi::random::random::get_random_u64().to_string(),
            "env" => format!("{:?}", wasi::cli::environment::get_environment()),
            "read" => format!("{:?}", read(&self.options.what)),
            "write" => format!("{:?}", create(&self.options.what)),
            "sleep" => {
                let seconds: u64 = self.options.what.parse().unwrap_or(1);
                wasi::clocks::monotonic_clock::subscribe_duration(seconds * 1_000_000_000).block();
                "slept".into()
            }
            "handles" => {
                let mut all = Vec::new();
                loop {
                    all.push(wasi::cli::stderr::get_stderr());
                }
            }
            "shout" => {
                let stream = wasi::cli::stderr::get_stderr();
                let line = "shouts a line of sixty bytes, again and again and again and\n".repeat(60);
                for _ in 0..1000 {
                    let _ = stream.blocking_write_and_flush(line.as_bytes());
                }
                "shouted".into()
            }
            _ => return Err("ask for something".into()),
        };
        let mut plan = Plan::new();
        plan.set_rank(0usize, 1, answer);
        Ok(plan)
    }
}

/// The text of a file in the first granted directory.
fn read(name: &str) -> Result<String, String> {
    let (dir, _) = wasi::filesystem::preopens::get_directories().pop().ok_or("no directory")?;
    let file = dir.open_at(PathFlags::SYMLINK_FOLLOW, name, OpenFlags::empty(), DescriptorFlags::READ);
    let (bytes, _) = file.and_then(|f| f.read(1000, 0)).map_err(|e| e.name().to_owned())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes a file there.
fn create(name: &str) -> Result<(), String> {
    let (dir, _) = wasi::filesystem::preopens::get_directories().pop().ok_or("no directory")?;
    let file = dir.open_at(PathFlags::empty(), name, OpenFlags::CREATE, DescriptorFlags::WRITE);
    file.map(drop).map_err(|e| e.name().to_owned())
}

export_policy!(Curious);
