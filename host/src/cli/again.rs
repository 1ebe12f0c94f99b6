//! `plastic-host replay RUN --policy FILE`: the decisions of a run made again.

use super::replay::ReplayArgs;
use super::run::set_options;
use super::session::options_for;
use super::{Global, locate};
use crate::plastic::config::Choice;
use crate::plastic::counterfactual::{self, Again};
use crate::plastic::journal::{Event, History, RunRecord, StepRecord};
use crate::plastic::policies::{Policies, Seat};
use anyhow::Context;
use comfy_table::{Table, presets};
use std::process::ExitCode;

/// Decides again and shows both side by side. With the run's own policies every plan must be the
/// recorded one; a difference is a failure.
pub fn run(args: &ReplayArgs, events: &[Event], record: &RunRecord, g: &Global) -> anyhow::Result<ExitCode> {
    let loader = args.rules.loader()?;
    let mut choices: Vec<Choice> = Vec::new();
    for name in &args.policy {
        choices.push(Choice::new(locate::plugin(name, Some(&loader))?));
    }
    set_options("--policy-opt", &args.policy_opt, &mut choices.iter_mut().collect::<Vec<_>>())?;
    let mut loaded = Vec::new();
    for choice in &choices {
        loaded.push(loader.policy(&choice.file)?);
    }
    let recorded: Vec<&str> = record.policies.iter().map(|p| p.origin.sha256.as_str()).collect();
    let same_files = loaded.iter().map(|p| p.origin().sha256.as_str()).eq(recorded)
        && !events.iter().any(|e| matches!(e, Event::Swap(_)));
    let mut options = Vec::new();
    let known = record.policies.iter().map(Some).chain(std::iter::repeat(None));
    for ((choice, policy), known) in choices.iter().zip(&loaded).zip(known) {
        options.push(match known.filter(|_| same_files && args.policy_opt.is_empty()) {
            Some(known) => known.options.clone(),
            None => options_for(policy.info(), &choice.options)?,
        });
    }
    let own = same_files && options.iter().eq(record.policies.iter().map(|p| &p.options));
    let mut make = || -> counterfactual::Result<Policies> {
        let mut line = Vec::with_capacity(choices.len());
        for (choice, options) in choices.iter().zip(&options) {
            let mut policy = loader.policy(&choice.file)?;
            policy.configure(options)?;
            line.push(Seat::new(policy));
        }
        Ok(Policies { line, shadows: Vec::new(), fallback: None })
    };
    let again = counterfactual::again(&args.run, events, &mut make)?;
    let pairs: Vec<(&StepRecord, &Again)> = events.steps().zip(&again).collect();
    // What another policy decided in a step is not to be reproduced.
    let reproducible = pairs.iter().filter(|(s, _)| !s.fallback).count();
    let identical = pairs.iter().filter(|(s, a)| !s.fallback && a.identical).count();
    let names: Vec<String> = choices.iter().map(Choice::stem).collect();
    if let Some(number) = args.step {
        let (s, a) = pairs
            .iter()
            .find(|(s, _)| s.step == number)
            .with_context(|| format!("{}: there is no step {number}", args.run.display()))?;
        match g.json {
            true => say!("{}", serde_json::to_string(a)?),
            false => slices(s, a, record),
        }
    } else if g.json {
        let steps: Vec<serde_json::Value> = pairs.iter().map(|(s, a)| row_json(s, a)).collect();
        say!(
            "{}",
            serde_json::json!({ "run": args.run, "policies": names, "own": own, "identical": identical, "steps": steps })
        );
    } else {
        say!("{} decided again by {}", args.run.display(), names.join(" → "));
        say!("{}", table(&pairs, record));
        say!("{identical} of {reproducible} plans are identical to the recorded ones");
    }
    if own && identical < reproducible {
        note!(
            "error: the run's own policies decided otherwise this time; they are not deterministic, or the record was changed"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Slices that sleep more and less than in the record.
fn differences(s: &StepRecord, a: &Again) -> (usize, usize) {
    let pairs = || a.ranks.iter().zip(&s.ranks_after);
    (pairs().filter(|(new, old)| new < old).count(), pairs().filter(|(new, old)| new > old).count())
}

fn row_json(s: &StepRecord, a: &Again) -> serde_json::Value {
    let (less, more) = differences(s, a);
    serde_json::json!({
        "step": s.step,
        "recorded": { "fate": s.fate, "parameters": s.after.parameters, "predicted": s.plan.as_ref().and_then(|p| p.predicted) },
        "again": { "problem": a.problem, "parameters": a.parameters, "predicted": a.plan.as_ref().and_then(|p| p.predicted) },
        "slices_lower": less,
        "slices_higher": more,
        "identical": a.identical,
    })
}

fn table(pairs: &[(&StepRecord, &Again)], record: &RunRecord) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(vec![
        "step",
        "recorded",
        "awake",
        "predicted",
        "again: awake",
        "predicted",
        "slices lower / higher",
        "",
    ]);
    let percent = |p: u64| format!("{:.1} %", 100.0 * p as f64 / record.parameters.max(1) as f64);
    let nats = |p: Option<&crate::plugin::contract::Plan>| {
        p.and_then(|p| p.predicted).map_or_else(String::new, |v| format!("{v:+.4}"))
    };
    for (s, a) in pairs {
        let (less, more) = differences(s, a);
        let outcome = match (&a.problem, a.identical) {
            (Some(problem), _) => problem.clone(),
            (None, true) => "identical".into(),
            (None, false) => String::new(),
        };
        table.add_row(vec![
            s.step.to_string(),
            s.fate.name().into(),
            percent(s.after.parameters),
            nats(s.plan.as_ref()),
            percent(a.parameters),
            nats(a.plan.as_ref()),
            format!("{less} / {more}"),
            outcome,
        ]);
    }
    table
}

/// Every slice on which the two differ.
fn slices(s: &StepRecord, a: &Again, record: &RunRecord) {
    if let Some(problem) = &a.problem {
        say!("step {}: {problem}", s.step);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(vec!["slice", "rank before", "recorded", "again", "of"]);
    let mut differ = 0;
    for (i, slice) in record.slices.iter().enumerate() {
        let of = |ranks: &[u32]| ranks.get(i).copied();
        let (Some(before), Some(old), Some(new)) = (of(&s.ranks_before), of(&s.ranks_after), of(&a.ranks)) else {
            continue;
        };
        if old != new {
            differ += 1;
            table.add_row(vec![
                slice.name.clone(),
                before.to_string(),
                old.to_string(),
                new.to_string(),
                slice.max_rank.to_string(),
            ]);
        }
    }
    match differ {
        0 => say!("step {}: no slice differs", s.step),
        _ => say!("{table}"),
    }
}
