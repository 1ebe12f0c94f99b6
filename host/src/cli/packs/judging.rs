//! Guardrails and evaluators, as `eval` and `eval-batch` take them.

use crate::cli::rules::RuleArgs;
use crate::cli::{locate, run, session, table};
use crate::pack::guard::{self, Breach, Limits};
use crate::plastic::config::Choice;
use crate::plastic::panel::Opinion;
use crate::plugin::Evaluator;
use crate::plugin::contract::{Decision, Verdict};
use std::path::PathBuf;
use std::process::ExitCode;

/// Limits on what a pack may cost.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Guardrails (exit code 3 where one is broken)")]
pub struct GuardArgs {
    /// Most the perplexity may rise over the base, percent; 0 allows no rise
    #[arg(long, value_name = "PERCENT")]
    max_ppl_increase: Option<f64>,
    /// Most of the base's scoring speed that may be lost, percent
    #[arg(long, value_name = "PERCENT")]
    max_tps_loss: Option<f64>,
    /// Longest time to the first token with the pack, milliseconds
    #[arg(long, value_name = "MS")]
    max_first_token_ms: Option<f64>,
    /// Most memory MLX may hold with the pack, such as 800MiB or 2GB
    #[arg(long, value_name = "SIZE", value_parser = guard::parse_size)]
    max_memory: Option<u64>,
    /// Largest size of the pack's tensors, MiB
    #[arg(long, value_name = "MIB")]
    max_pack_mb: Option<f64>,
}

impl GuardArgs {
    /// The limits; `None` where one is no number.
    pub fn limits(&self) -> Option<Limits> {
        let numbers = [
            ("--max-ppl-increase", self.max_ppl_increase),
            ("--max-tps-loss", self.max_tps_loss),
            ("--max-first-token-ms", self.max_first_token_ms),
            ("--max-pack-mb", self.max_pack_mb),
        ];
        if let Some((flag, Some(x))) = numbers.iter().find(|(_, x)| x.is_some_and(|x| !x.is_finite())) {
            note!("error: {flag} {x}: a limit is a finite number");
            return None;
        }
        Some(Limits {
            max_ppl_increase: self.max_ppl_increase,
            max_tps_loss: self.max_tps_loss,
            max_first_token_ms: self.max_first_token_ms,
            max_memory: self.max_memory,
            max_pack_mb: self.max_pack_mb,
        })
    }
}

/// Evaluators that judge a pack.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct EvaluatorArgs {
    /// Evaluator plugin that judges the pack against the base; given again, all are asked and one no is enough (exit code 3)
    #[arg(long, short, value_name = "FILE")]
    evaluator: Vec<PathBuf>,
    /// Option of an evaluator, `name=value`, or `evaluator:name=value` where there are several
    #[arg(long, value_name = "NAME=VALUE")]
    evaluator_opt: Vec<String>,
    #[command(flatten)]
    rules: RuleArgs,
}

impl EvaluatorArgs {
    /// Loads and configures the evaluators.
    ///
    /// # Errors
    /// When one cannot be found, loaded or configured.
    pub fn open(&self) -> anyhow::Result<Vec<Box<dyn Evaluator>>> {
        let loader = self.rules.loader()?;
        let mut choices: Vec<Choice> = self.evaluator.iter().map(Choice::new).collect();
        run::set_options("--evaluator-opt", &self.evaluator_opt, &mut choices.iter_mut().collect::<Vec<_>>())?;
        let mut out = Vec::with_capacity(choices.len());
        for choice in &choices {
            let mut e = loader.evaluator(&locate::plugin(&choice.file, Some(&loader))?)?;
            e.configure(&session::options_for(e.info(), &choice.options)?)?;
            out.push(e);
        }
        Ok(out)
    }
}

/// What evaluators said about one case.
#[derive(serde::Serialize)]
pub struct Judged {
    /// What was judged: empty, or a domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub case: String,
    /// All of them together.
    pub verdict: Verdict,
    /// Each, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub opinions: Vec<Opinion>,
}

/// Prints broken guardrails and rejections, on standard error where standard output is taken; answers the exit code.
pub fn conclude(breaches: &[Breach], judged: &[Judged], silent: bool, taken: bool) -> ExitCode {
    let mut lines = Vec::new();
    for j in judged {
        let case = if j.case.is_empty() { String::new() } else { format!("{}: ", j.case) };
        for o in &j.opinions {
            lines.push(format!(
                "evaluator   {case}{}: {}: {}",
                o.evaluator,
                word(o.verdict.decision),
                o.verdict.reason
            ));
        }
        lines.push(format!("verdict     {case}{}: {}", word(j.verdict.decision), j.verdict.reason));
    }
    if !breaches.is_empty() {
        let mut rows = table::plain(&["guardrail broken", "case", "limit", "measured", ""], &[2, 3]);
        for b in breaches {
            let (limit, measured) = (format!("{:.2}", b.limit), format!("{:.2}", b.measured));
            rows.add_row([b.guardrail.to_owned(), b.case.clone(), limit, measured, b.unit.to_owned()]);
        }
        lines.push(rows.to_string());
    }
    for line in lines.iter().filter(|_| !silent) {
        match taken {
            true => note!("{line}"),
            false => say!("{line}"),
        }
    }
    let rejected = judged.iter().any(|j| j.verdict.decision == Decision::Reject);
    match breaches.is_empty() && !rejected {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(3),
    }
}

fn word(d: Decision) -> &'static str {
    match d {
        Decision::Accept => "accept",
        Decision::Reject => "reject",
        Decision::Abstain => "abstain",
    }
}
