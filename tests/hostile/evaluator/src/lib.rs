//! An evaluator that does everything an evaluator must not do, for the tests of the boundary: the
//! option `attack` chooses what. Without an attack it accepts and reports what it saw.

use plastic_plugin::prelude::*;
use std::hint::black_box;

plastic_plugin::choices! {
    /// What to do.
    pub enum Attack {
        /// Nothing bad.
        None = "none",
        /// Measure, then never return.
        Loop = "loop",
        /// Panic between two measurements.
        Panic = "panic",
        /// Ask for a window that is not there.
        UnknownWindow = "unknown-window",
        /// Report a figure that is no number.
        Nan = "nan",
        /// Report ten thousand figures.
        Metrics = "metrics",
        /// Ask the host a thousand times.
        Ask = "ask",
        /// Hand the host 100 MiB of tokens.
        Flood = "flood",
    }
}

plastic_plugin::options! {
    /// Options of the hostile evaluator.
    pub struct Options {
        /// What to do.
        pub attack: Attack = Attack::None,
    }
}

/// Misbehaves as its option says.
#[derive(Default)]
pub struct Hostile {
    options: Options,
}

impl Evaluator for Hostile {
    type Options = Options;

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn evaluate(&mut self, task: &Task, host: &dyn Measure) -> Result<Verdict, String> {
        let scores = host.score_windows(Subject::Candidate, &[0])?;
        let windows = Metric::new("windows", f64::from(host.windows()), "");
        let mut verdict = Verdict::accept(format!("step {}, {} scores", task.step, scores[0].len())).metric(windows);
        match self.options.attack {
            Attack::None => {}
            Attack::Loop => loop {
                black_box(());
            },
            Attack::Panic => panic!("the numbers are too good"),
            Attack::UnknownWindow => {
                host.score_windows(Subject::Base, &[99])?;
            }
            Attack::Nan => verdict = verdict.metric(Metric::new("loss", f64::NAN, "nats")),
            Attack::Metrics => {
                for i in 0..10_000 {
                    verdict = verdict.metric(Metric::new(format!("m{i}"), 0.0, ""));
                }
            }
            Attack::Ask => {
                for _ in 0..1000 {
                    host.window(0)?;
                }
            }
            Attack::Flood => {
                host.score(Subject::Base, &[vec![1; 25 << 20]])?;
            }
        }
        Ok(verdict)
    }
}

export_evaluator!(Hostile);
