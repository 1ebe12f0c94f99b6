//! `plastic-host replay`: what happened in a run, from its journal alone.

use super::Global;
use super::rules::RuleArgs;
use super::show::{cast, millions};
use crate::plastic::journal::{Event, Fate, History, Journal, StepRecord};
use crate::plastic::rundir::RunError;
use crate::plugin::contract::Slice;
use comfy_table::{Table, presets};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `replay`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  plastic-host replay runs/small\n  plastic-host replay runs/small --step 2     every slice that step changed, and why\n  plastic-host replay runs/small --json | jq .steps[0].verdict\n  plastic-host replay runs/small --policy water-fill     what another policy would have done at each step\n  plastic-host replay runs/small --policy energy         the same policy again: every plan must be identical"
)]
pub struct ReplayArgs {
    /// Directory of the run
    pub run: PathBuf,
    /// Show the slices one step changed
    #[arg(long)]
    pub step: Option<u32>,
    /// Make the decisions again with this policy, from what was recorded; given again, a pipeline
    #[arg(long, short, value_name = "FILE")]
    pub policy: Vec<PathBuf>,
    /// Option of the policy, `name=value`; the options of the run where it is the run's own policy and none is given
    #[arg(long, value_name = "NAME=VALUE", requires = "policy")]
    pub policy_opt: Vec<String>,
    #[command(flatten)]
    pub rules: RuleArgs,
}

/// Shows a run.
pub fn run(args: &ReplayArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let path = args.run.join("journal.jsonl");
    if !path.is_file() {
        return Err(RunError::NoRun { path: args.run.clone() }.into());
    }
    let events = Journal::read(&path)?;
    let record = events.run().ok_or_else(|| anyhow::anyhow!("{}: no run", path.display()))?;
    if !args.policy.is_empty() {
        return super::again::run(args, &events, record, g);
    }
    if let Some(number) = args.step {
        let step = events
            .steps()
            .find(|s| s.step == number)
            .ok_or_else(|| anyhow::anyhow!("{}: there is no step {number}", path.display()))?;
        if g.json {
            say!("{}", serde_json::to_string(step)?);
        } else {
            changes(step, &record.slices);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if g.json {
        let steps: Vec<&StepRecord> = events.steps().collect();
        let current = events.current().map_or(0, |s| s.step);
        say!(
            "{}",
            serde_json::json!({ "run": record, "steps": steps, "events": events, "current_step": current, "ended": events.ended() })
        );
        return Ok(ExitCode::SUCCESS);
    }
    say!("{} on {}, {}, begun {}", args.run.display(), record.base_id, cast(record), record.time);
    say!("{}", overview(&events, record.parameters));
    match events.ended() {
        Some(reason) => say!("ended: {reason}"),
        None => say!("not ended in order; `plastic-host resume {}` continues it", args.run.display()),
    }
    Ok(ExitCode::SUCCESS)
}

/// One row an event.
fn overview(events: &[Event], parameters: u64) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(vec!["", "step", "what", "awake", "predicted", "measured", "seconds", "reason"]);
    let current = events.current().map_or(0, |s| s.step);
    let percent = |p: u64| format!("{:.1} %", 100.0 * p as f64 / parameters.max(1) as f64);
    for event in events {
        let row = match event {
            Event::Run(r) => {
                let mark = if current == 0 { "→" } else { "" };
                vec![
                    mark.into(),
                    "0".into(),
                    "base".into(),
                    percent(r.parameters),
                    String::new(),
                    String::new(),
                    String::new(),
                    String::new(),
                ]
            }
            Event::Step(s) => {
                let nats = |v: Option<f64>| v.map_or_else(String::new, |v| format!("{v:+.4}"));
                let measured = s.verdict.as_ref().and_then(|v| v.metrics.iter().find(|m| m.name == "loss-increase"));
                vec![
                    if s.step == current { "→".into() } else { String::new() },
                    s.step.to_string(),
                    s.fate.name().into(),
                    percent(s.after.parameters),
                    nats(s.plan.as_ref().and_then(|p| p.predicted)),
                    nats(measured.map(|m| m.value)),
                    format!("{:.1}", s.times.total),
                    s.reason.clone(),
                ]
            }
            Event::Undo { to, .. } => marker(&format!("back to step {to}")),
            Event::Resume { .. } => marker("resumed"),
            Event::Wake(w) => marker(match w.identical {
                true => "woke everything: logits equal to the base's, bit for bit",
                false => "woke everything: LOGITS DIFFER",
            }),
            Event::Swap(s) => match &s.plugin {
                Some(p) => marker(&format!("swapped: {} {} took over", p.info.name, p.info.version)),
                None => marker(&format!("not swapped: {}", s.problem)),
            },
            Event::End { .. } => continue,
        };
        table.add_row(row);
    }
    table
}

fn marker(text: &str) -> Vec<String> {
    let mut row = vec![String::new(); 8];
    row[2] = text.split(':').next().unwrap_or(text).to_owned();
    row[7] = text.split_once(": ").map_or_else(String::new, |(_, rest)| rest.to_owned());
    row
}

/// Every slice one step changed, with the policy's reason.
fn changes(step: &StepRecord, slices: &[Slice]) {
    let kept = if step.fate == Fate::Committed { "" } else { " (not kept)" };
    say!("step {}: {}{kept}: {}", step.step, step.fate.name(), step.reason);
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(vec!["slice", "rank before", "rank after", "of", "reason"]);
    for (i, s) in slices.iter().enumerate() {
        let (Some(before), Some(after)) = (step.ranks_before.get(i), step.ranks_after.get(i)) else { continue };
        if before == after {
            continue;
        }
        let action = step.plan.iter().flat_map(|p| &p.actions).find(|a| a.slice as usize == i);
        let reason = action.map_or("", |a| a.reason.as_str());
        table.add_row(vec![&s.name, &before.to_string(), &after.to_string(), &s.max_rank.to_string(), reason]);
    }
    say!("{table}");
    say!("{} → {} parameters awake", millions(step.before.parameters), millions(step.after.parameters));
}
