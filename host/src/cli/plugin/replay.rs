//! `plastic-host plugin replay`: a policy at work on a recording.

use crate::cli::rules::RuleArgs;
use crate::cli::run::set_options;
use crate::cli::session::options_for;
use crate::cli::{Global, locate};
use crate::plastic::config::Choice;
use crate::plastic::policies::project;
use crate::plastic::portable::Portable;
use crate::plugin::contract::Plan;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `plugin replay`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host plugin replay my-policy.wasm small.json
  plastic-host plugin replay my-policy.wasm small.json --write plans.json     keep the plans ...
  plastic-host plugin replay my-policy.wasm small.json --expect plans.json    ... and compare later ones with them

Without --opt the policy that was recorded has the options it had. Exit code 1 where a plan differs from the
expected one, and where the policy fails in a step that was not expected to fail.")]
pub struct ReplayArgs {
    /// The policy: a file, or a name on the plugin path
    file: PathBuf,
    /// A recording made by `plugin record`
    recording: PathBuf,
    /// Option of the policy, `name=value`
    #[arg(long, value_name = "NAME=VALUE")]
    opt: Vec<String>,
    /// Write the plans to this file
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Compare the plans with those in this file
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    #[command(flatten)]
    rules: RuleArgs,
}

/// What a policy answered at one step.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Answer {
    step: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Plan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

/// Runs the verb.
pub fn run(args: &ReplayArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let recording = Portable::read(&args.recording)?;
    let loader = args.rules.loader()?;
    let mut choice = Choice::new(locate::plugin(&args.file, Some(&loader))?);
    set_options("--opt", &args.opt, &mut [&mut choice])?;
    let mut policy = loader.policy(&choice.file)?;
    // The policy of the recording goes on with the options it had there, unless told otherwise.
    let options = match args.opt.is_empty() && policy.info().name == recording.policy {
        true => recording.options.clone(),
        false => options_for(policy.info(), &choice.options)?,
    };
    policy.configure(&options)?;
    policy.start(&recording.run, &recording.slices)?;
    let mut answers: Vec<Answer> = Vec::new();
    let mut requests: Vec<String> = Vec::new();
    for step in &recording.steps {
        let needs: Vec<String> = policy.info().needs.iter().chain(&requests).cloned().collect();
        if let Some(need) = policy.info().needs.iter().find(|n| !step.seen.needs.contains(n)) {
            bail!(
                "{}: needs {need}, which the recording does not hold (it has {}); record a run with --record {need}",
                policy.info().name,
                step.seen.needs.join(", ")
            );
        }
        let seen = recording.observation(step);
        let (plan, fault) = match policy.decide(&project(&seen, &step.seen.needs, &needs)) {
            Ok(plan) => (Some(plan), None),
            Err(fault) => (None, Some(fault.to_string())),
        };
        requests = plan.as_ref().map_or_else(Vec::new, |p| p.requests.clone());
        answers.push(Answer { step: step.seen.step, plan, fault });
    }
    if let Some(path) = &args.write {
        crate::atomic::write_file(path, &serde_json::to_vec_pretty(&answers)?)?;
    }
    let differing = match &args.expect {
        None => Vec::new(),
        Some(path) => {
            let bytes = crate::atomic::read_bounded(path, 1 << 30).with_context(|| path.display().to_string())?;
            let expected: Vec<Answer> = serde_json::from_slice(&bytes)
                .with_context(|| format!("{}: these are no plans; write some with --write", path.display()))?;
            differing(&answers, &expected)
        }
    };
    if g.json {
        say!("{}", serde_json::json!({ "policy": policy.info().name, "answers": answers, "differing": differing }));
    } else if !g.quiet {
        answers.iter().for_each(|a| say!("{}", line(a)));
        if args.expect.is_some() {
            say!("{} of {} steps as expected", answers.len().saturating_sub(differing.len()), answers.len());
        }
    }
    let failed = answers.iter().filter(|a| a.fault.is_some()).count();
    if args.expect.is_none() && failed > 0 {
        note!("error: the policy failed in {failed} of {} steps", answers.len());
        return Ok(ExitCode::FAILURE);
    }
    if !differing.is_empty() {
        let steps: Vec<String> = differing.iter().map(u32::to_string).collect();
        note!("error: the plans of step {} are not the expected ones", steps.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Steps whose answers are not the expected ones, or are there on one side only.
fn differing(answers: &[Answer], expected: &[Answer]) -> Vec<u32> {
    let of = |list: &'_ [Answer], step: u32| list.iter().position(|a| a.step == step);
    let mut steps: Vec<u32> = answers.iter().chain(expected).map(|a| a.step).collect();
    steps.sort_unstable();
    steps.dedup();
    let differ = |step: &u32| match (of(answers, *step), of(expected, *step)) {
        (Some(a), Some(b)) => answers.get(a) != expected.get(b),
        _ => true,
    };
    steps.into_iter().filter(differ).collect()
}

fn line(a: &Answer) -> String {
    let Some(plan) = &a.plan else {
        return format!("step {}: {}", a.step, a.fault.as_deref().unwrap_or("no plan"));
    };
    let mut out = format!("step {}: {} actions", a.step, plan.actions.len());
    if let Some(t) = &plan.threshold {
        out += &format!(", threshold {:.3e}", t.level);
    }
    if let Some(p) = plan.predicted {
        out += &format!(", predicted {p:+.4} nats per token");
    }
    if let Some(stop) = &plan.stop {
        out += &format!(", stops: {stop}");
    }
    out
}
