//! An evaluator: accepts a change while the mean loss rises no more than allowed.

use plastic_plugin::prelude::*;

plastic_plugin::options! {
    /// Options of this evaluator.
    pub struct Options {
        /// Highest rise of the mean loss that is accepted, nats per token.
        #[range(0.0..=100.0)]
        pub max_loss_increase: f64 = 0.1,
    }
}

/// The evaluator.
#[derive(Default)]
pub struct @Type@ {
    options: Options,
}

impl Evaluator for @Type@ {
    type Options = Options;

    const METRICS: &'static [&'static str] = &["loss-increase"];

    fn configure(&mut self, options: Options) -> Result<(), String> {
        self.options = options;
        Ok(())
    }

    fn evaluate(&mut self, _task: &Task, host: &dyn Measure) -> Result<Verdict, String> {
        let base = mean_loss(host, Subject::Base)?;
        let candidate = mean_loss(host, Subject::Candidate)?;
        let rise = candidate - base;
        let reason = format!("loss {base:.4} -> {candidate:.4} nats/token");
        if !rise.is_finite() {
            return Ok(Verdict::reject(format!("{reason}: the candidate's loss is no number")));
        }
        let is_good = rise <= self.options.max_loss_increase;
        let verdict = if is_good { Verdict::accept(reason) } else { Verdict::reject(reason) };
        Ok(verdict.metric(Metric::new("loss-increase", rise, "nats")))
    }
}

/// Mean loss over the evaluation text, in nats per token.
fn mean_loss(host: &dyn Measure, subject: Subject) -> Result<f64, String> {
    let (mut sum, mut tokens) = (0.0, 0);
    let windows: Vec<u32> = (0..host.windows()).collect();
    for batch in windows.chunks(8) {
        for scores in host.score_windows(subject, batch)? {
            sum -= scores.iter().map(|&s| f64::from(s)).sum::<f64>();
            tokens += scores.len();
        }
    }
    match tokens {
        0 => Err("there is no evaluation text: the data is shorter than one window".into()),
        _ => Ok(sum / tokens as f64),
    }
}

export_evaluator!(@Type@);

#[cfg(test)]
mod tests {
    use super::*;
    use plastic_plugin::testing::FakeMeasure;

    #[test]
    fn a_rise_beyond_the_limit_is_rejected() {
        let scores = |s: f32| vec![vec![s; 4]; 3];
        for (candidate, decision) in [(-1.05, "Accept"), (-1.2, "Reject")] {
            let host = FakeMeasure::new()
                .scores(Subject::Base, scores(-1.0))
                .scores(Subject::Candidate, scores(candidate));
            let verdict = @Type@::default().evaluate(&Task::default(), &host).unwrap();
            assert_eq!(format!("{:?}", verdict.decision), decision);
        }
    }
}
