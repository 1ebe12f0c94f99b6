//! The five aspects: each asks the host only where it has a weight or a limit.

use super::Composite;
use plastic_plugin::answers::{self, Matching};
use plastic_plugin::compare::{self, Pair, figure};
use plastic_plugin::prelude::*;
use plastic_plugin::stats::{self, Cluster};

/// One aspect of the candidate beside the base.
pub(crate) struct Measured {
    pub(crate) what: &'static str,
    pub(crate) weight: f64,
    /// Without a unit; negative where the candidate is worse.
    pub(crate) gain: f64,
    /// Whether a hard limit is exceeded.
    pub(crate) is_beyond: bool,
    /// The figures behind it, for people.
    pub(crate) text: String,
    /// All finite.
    pub(crate) metrics: Vec<Metric>,
}

/// Whether a figure exceeds its limit, where it has one.
fn exceeds(figure: f64, limit: f64) -> bool {
    limit > 0.0 && figure > limit
}

impl Composite {
    /// What has a weight or a limit, in the order of the options.
    pub(crate) fn measure(&mut self, host: &dyn Measure) -> Result<Vec<Measured>, String> {
        let o = self.options.clone();
        let mut out = Vec::new();
        if o.weight_loss > 0.0 || o.max_loss_increase > 0.0 {
            out.push(self.loss(host)?);
        }
        if o.weight_kl > 0.0 || o.max_kl > 0.0 {
            out.push(self.kl(host)?);
        }
        if o.weight_match > 0.0 || o.max_drop > 0.0 {
            out.push(self.matches(host)?);
        }
        if o.weight_speed > 0.0 || o.max_slowdown > 0.0 {
            out.push(self.speed(host)?);
        }
        if o.weight_memory > 0.0 || o.max_resident_mb > 0.0 {
            out.push(self.memory(host)?);
        }
        Ok(out)
    }

    fn loss(&mut self, host: &dyn Measure) -> Result<Measured, String> {
        let pairs = self.losses.of(host, &compare::windows(host, self.options.windows)?)?;
        let mean = |of: fn(&Pair) -> Cluster| stats::mean(&pairs.iter().map(of).collect::<Vec<_>>());
        let (base, candidate) = (mean(Pair::of_base), mean(Pair::of_candidate));
        if !base.is_finite() {
            return Err("the loss of the base itself is not finite: the checkpoint or the data is broken".into());
        }
        let mut metrics = vec![Metric::new("loss-base", base, "nats")];
        if candidate.is_finite() {
            metrics.push(Metric::new("loss", candidate, "nats"));
            metrics.push(Metric::new("loss-increase", candidate - base, "nats"));
        }
        Ok(Measured {
            what: "loss",
            weight: self.options.weight_loss,
            gain: 1.0 - (candidate - base).exp(),
            is_beyond: exceeds(candidate - base, self.options.max_loss_increase),
            text: format!("{base:.4} → {candidate:.4} nats/token"),
            metrics,
        })
    }

    fn kl(&self, host: &dyn Measure) -> Result<Measured, String> {
        let windows = compare::divergences(host, &compare::windows(host, self.options.windows)?)?;
        let kl = stats::mean(&windows.iter().map(|w| Cluster::of(w)).collect::<Vec<_>>());
        Ok(Measured {
            what: "kl",
            weight: self.options.weight_kl,
            gain: (-kl).exp() - 1.0,
            is_beyond: exceeds(kl, self.options.max_kl),
            text: format!("{kl:.4} nats/token"),
            metrics: if kl.is_finite() { vec![Metric::new("kl", kl, "nats")] } else { Vec::new() },
        })
    }

    fn matches(&mut self, host: &dyn Measure) -> Result<Measured, String> {
        let questions = answers::questions(host, self.options.questions)?;
        let pairs = self.answers.of(host, &questions, &Matching::default())?;
        let share = |right: usize| right as f64 / pairs.len() as f64;
        let base = share(pairs.iter().filter(|p| p.0).count());
        let candidate = share(pairs.iter().filter(|p| p.1).count());
        let metric = |name, value| Metric::new(name, value, "").higher_is_better();
        Ok(Measured {
            what: "match",
            weight: self.options.weight_match,
            gain: candidate - base,
            is_beyond: exceeds(base - candidate, self.options.max_drop),
            text: format!("{:.1} % → {:.1} % right", 100.0 * base, 100.0 * candidate),
            metrics: vec![metric("exact-match", candidate), metric("exact-match-base", base)],
        })
    }

    fn speed(&self, host: &dyn Measure) -> Result<Measured, String> {
        let o = &self.options;
        let [base, candidate] = [
            host.timing(Subject::Base, o.prompt_tokens, o.new_tokens)?,
            host.timing(Subject::Candidate, o.prompt_tokens, o.new_tokens)?,
        ];
        let (v, v_base) =
            (figure(&candidate, "decode-tokens-per-second")?.value, figure(&base, "decode-tokens-per-second")?.value);
        let slowdown = figure(&candidate, "token-ms")?.value / figure(&base, "token-ms")?.value;
        if !(v / v_base).is_finite() || !slowdown.is_finite() {
            return Err(format!("the base decodes {v_base} tokens a second: the clock is too coarse for it"));
        }
        let mut metrics = candidate;
        metrics.push(Metric::new("slowdown", slowdown, ""));
        Ok(Measured {
            what: "speed",
            weight: o.weight_speed,
            gain: v / v_base - 1.0,
            is_beyond: exceeds(slowdown, o.max_slowdown),
            text: format!("{v_base:.1} → {v:.1} tokens/s"),
            metrics,
        })
    }

    fn memory(&self, host: &dyn Measure) -> Result<Measured, String> {
        let bytes = |subject| Ok::<_, String>(figure(&host.counters(subject)?, "resident-bytes")?.clone());
        let (base, candidate) = (bytes(Subject::Base)?, bytes(Subject::Candidate)?);
        let (mb_base, mb) = (base.value / 1e6, candidate.value / 1e6);
        if mb_base <= 0.0 {
            return Err("the host says that the base takes no memory".into());
        }
        Ok(Measured {
            what: "memory",
            weight: self.options.weight_memory,
            gain: 1.0 - mb / mb_base,
            is_beyond: exceeds(mb, self.options.max_resident_mb),
            text: format!("{mb_base:.0} → {mb:.0} MB"),
            metrics: vec![Metric { name: "resident-bytes-base".into(), ..base }, candidate],
        })
    }
}
