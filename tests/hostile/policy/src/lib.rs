//! A policy that does everything a policy must not do, for the tests of the boundary: the option
//! `attack` chooses what, `at` in which call. Without an attack it is the simplest good policy: it
//! keeps half of every slice and counts its steps.

use plastic_plugin::prelude::*;
use std::hint::black_box;

plastic_plugin::choices! {
    /// What to do.
    pub enum Attack {
        /// Nothing bad.
        None = "none",
        /// Never return.
        Loop = "loop",
        /// Ask for more and more memory.
        Memory = "memory",
        /// Ask for all memory at once.
        Huge = "huge",
        /// Call itself without end, with frames on the linear stack.
        Recurse = "recurse",
        /// The same with frames that live on the machine stack.
        Dive = "dive",
        /// Panic.
        Panic = "panic",
        /// Trap without a word.
        Abort = "abort",
        /// Answer with an error.
        Refuse = "refuse",
        /// Log a gigabyte in long lines.
        LogLong = "log-long",
        /// Log a line that is too long to be handed over.
        LogHuge = "log-huge",
        /// Log a hundred thousand short lines.
        LogMany = "log-many",
        /// A line with terminal control characters.
        LogEscape = "log-escape",
        /// A plan for a slice that is not there.
        UnknownSlice = "unknown-slice",
        /// A prediction that is no number.
        Nan = "nan",
        /// An infinite threshold.
        Infinite = "infinite",
        /// A million actions.
        Million = "million",
        /// A reason of a megabyte.
        LongReason = "long-reason",
        /// A plan of 200 MiB of text.
        Flood = "flood",
        /// A request that is no name.
        BadRequest = "bad-request",
        /// No attack: ask for another spectrum in step 1, and fail unless it comes in step 2 alone.
        Ask = "ask",
        /// A snapshot of 100 MiB.
        BigSnapshot = "big-snapshot",
    }
}

plastic_plugin::options! {
    /// Options of the hostile policy.
    pub struct Options {
        /// What to do.
        pub attack: Attack = Attack::None,
        /// The call to do it in: configure, start, decide, snapshot or restore.
        pub at: String = "decide".into(),
        /// The step to do it at; 0 for every one.
        pub step: u32 = 0,
    }
}

/// Misbehaves as its option says.
#[derive(Default)]
pub struct Hostile {
    options: Options,
    /// Calls of `decide` so far; carried by the snapshot.
    decided: u32,
}

impl RankPolicy for Hostile {
    type Options = Options;

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        self.attack("configure")
    }

    fn start(&mut self, _: &Run, _: &[Slice]) -> Result<(), String> {
        self.attack("start")
    }

    fn decide(&mut self, seen: &Observation) -> Result<Plan, String> {
        let mut plan = Plan::new();
        if self.options.attack == Attack::Ask {
            let wanted = |s: SliceView| if seen.step == 2 { s.max_rank() } else { 0 };
            if let Some(s) = seen.slices().find(|s| s.spectrum("plain").len() != wanted(*s)) {
                return Err(format!(
                    "{} has {} plain values in step {}",
                    s.name(),
                    s.spectrum("plain").len(),
                    seen.step
                ));
            }
            if seen.step == 1 {
                plan.request("spectrum:plain");
            }
            return Ok(plan);
        }
        for slice in seen.slices() {
            plan.set_rank(slice, slice.max_rank() / 2, format!("decision {}", self.decided));
        }
        if self.options.step == 0 || self.options.step == seen.step {
            self.attack("decide")?;
            if self.options.at == "decide" {
                self.spoil(&mut plan);
            }
        }
        self.decided += 1;
        Ok(plan)
    }

    fn snapshot(&self) -> Vec<u8> {
        match self.options.attack {
            Attack::BigSnapshot => vec![7; 100 << 20],
            _ => {
                let _ = self.attack("snapshot");
                self.decided.to_le_bytes().to_vec()
            }
        }
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        self.attack("restore")?;
        let bytes = state.try_into().map_err(|_| "the snapshot is not four bytes long".to_owned())?;
        self.decided = u32::from_le_bytes(bytes);
        Ok(())
    }
}

impl Hostile {
    /// Attacks that do not depend on the answer.
    fn attack(&self, at: &str) -> Result<(), String> {
        if self.options.at != at {
            return Ok(());
        }
        match self.options.attack {
            Attack::Loop => loop {
                black_box(());
            },
            Attack::Memory => {
                let mut hoard = Vec::new();
                loop {
                    hoard.push(vec![1u8; 1 << 20]);
                    black_box(&hoard);
                }
            }
            Attack::Huge => {
                black_box(vec![1u8; 2_000_000_000]);
            }
            Attack::Recurse => {
                black_box(recurse(1));
            }
            Attack::Dive => {
                black_box(dive(1));
            }
            Attack::Panic => panic!("slice {} looked at me funny", 3),
            Attack::Abort => std::process::abort(),
            Attack::Refuse => return Err("no, thank you".into()),
            Attack::LogLong => {
                let line = "x".repeat(10 << 20);
                for _ in 0..100 {
                    plastic_plugin::logging::log(plastic_plugin::logging::Level::Info, &line);
                }
            }
            Attack::LogHuge => info!("{}", "x".repeat(20 << 20)),
            Attack::LogMany => {
                for i in 0..100_000 {
                    warn!("line {i}");
                }
            }
            Attack::LogEscape => info!("\x1b[2Jcleared your screen"),
            _ => {}
        }
        Ok(())
    }

    /// Attacks by the answer.
    fn spoil(&self, plan: &mut Plan) {
        match self.options.attack {
            Attack::UnknownSlice => {
                plan.set_rank(123_456usize, 1, "there is no such slice");
            }
            Attack::Nan => {
                plan.predict(f64::NAN);
            }
            Attack::Infinite => {
                plan.threshold("fisher", f64::INFINITY, "everything sleeps");
            }
            Attack::Million => {
                for _ in 0..1_000_000 {
                    plan.set_rank(0usize, 1, "again");
                }
            }
            Attack::LongReason => {
                plan.set_rank(0usize, 1, "y".repeat(1 << 20));
            }
            Attack::Flood => {
                for _ in 0..200 {
                    plan.set_rank(0usize, 1, "z".repeat(1 << 20));
                }
            }
            Attack::BadRequest => {
                plan.request("spectrum:\nplain");
            }
            _ => {}
        }
    }
}

/// Frames with an array: they lie on the linear stack.
#[inline(never)]
#[allow(unconditional_recursion, reason = "that is the point")]
fn recurse(depth: u64) -> u64 {
    let mut frame = [depth; 64];
    black_box(&mut frame);
    recurse(depth + 1) + frame[black_box(7)]
}

/// Frames of a number or two: the machine stack ends first.
#[inline(never)]
#[allow(unconditional_recursion, reason = "that is the point")]
fn dive(depth: u64) -> u64 {
    black_box(dive(depth + 1)) ^ depth
}

export_policy!(Hostile);
