//! Whether an evaluator keeps the contract over a made-up model: sound verdicts, the same for the
//! same measurements, and no crash when a measurement fails or is no number.

use super::measure::Script;
use super::{Bench, Outcome, Sheet, Trouble};
use crate::plugin::contract::{Decision, Task, Value, Verdict, attribute};
use crate::plugin::{Evaluator, FaultClass};
use std::collections::BTreeSet;

const QUESTIONS: [&str; 10] = [
    "window",
    "score",
    "score-windows",
    "generate",
    "tokenize",
    "detokenize",
    "counters",
    "divergence",
    "example",
    "timing",
];

pub(super) fn check(bench: &Bench, sheet: &mut Sheet) {
    let seed = bench.settings.seed;
    sheet.add("verdicts", verdicts(bench));
    sheet.add("determinism", determinism(bench));
    sheet.add("same-as-base", same_as_base(bench));
    sheet.add("much-worse", much_worse(bench));
    sheet.add("metrics-reported", reported(bench));
    let none = Script { windows: 0, ..Script::new(seed, 0.0) };
    sheet.add("no-text", edge(bench, none, "no windows and no examples"));
    let short = Script { tokens: 1, ..Script::new(seed, 0.0) };
    sheet.add("no-tokens", edge(bench, short, "windows of one token, so nothing to score"));
    let nan = Script { spoiled: Some(f32::NAN), ..Script::new(seed, 0.0) };
    sheet.add("scores-nan", edge(bench, nan, "log-probabilities that are no number"));
    let infinite = Script { spoiled: Some(f32::NEG_INFINITY), ..Script::new(seed, 0.0) };
    sheet.add("scores-infinite", edge(bench, infinite, "log-probabilities of -inf"));
    sheet.add("failing-questions", failing(bench));
}

/// A fresh, configured instance.
fn fresh(bench: &Bench) -> Result<Box<dyn Evaluator>, Box<Trouble>> {
    let mut evaluator = bench.loader.evaluator(bench.path).map_err(|f| Trouble::fault("`load` fails", &f))?;
    evaluator.configure(&bench.settings.options).map_err(|f| Trouble::fault("`configure` fails", &f))?;
    Ok(evaluator)
}

/// A verdict, or a refusal in plain words.
fn ask(
    bench: &Bench,
    evaluator: &mut dyn Evaluator,
    step: u32,
    script: &mut Script,
) -> Result<Result<Verdict, String>, Box<Trouble>> {
    let task = Task { step, seed: bench.settings.seed, attributes: vec![] };
    let what = format!(
        "evaluate, step {step}: {} windows of {} tokens, the candidate {} nats worse",
        script.windows, script.tokens, script.worse
    );
    let answer = evaluator.evaluate(&task, script);
    bench.cost(evaluator.last_cost(), || what.clone());
    match answer {
        Ok(verdict) => Ok(Ok(verdict)),
        Err(f) if f.class == FaultClass::Refused => Ok(Err(f.message)),
        Err(f) => Err(Trouble::fault("`evaluate` fails", &f).sent(what).into()),
    }
}

fn case_scripts(bench: &Bench) -> impl Iterator<Item = (u32, Script)> {
    let seed = bench.settings.seed;
    bench.cases().map(move |case| {
        let worse = f64::from(case % 12) * 0.05 - 0.1;
        let windows = 1 + case % 17;
        (case, Script { windows, tokens: 16 + 8 * (case % 9), ..Script::new(seed ^ (u64::from(case) << 40), worse) })
    })
}

fn verdicts(bench: &Bench) -> Outcome {
    let (mut asked, mut counts) = (BTreeSet::new(), [0; 3]);
    for (case, mut script) in case_scripts(bench) {
        // An instance serves one run, in which base and windows never change: two steps each.
        let mut evaluator = fresh(bench).map_err(|t| t.case(case))?;
        ask(bench, evaluator.as_mut(), 1, &mut Script { worse: 0.0, ..script.clone() }).map_err(|t| t.case(case))?.ok();
        let answer = ask(bench, evaluator.as_mut(), 2, &mut script).map_err(|t| t.case(case))?;
        asked.extend(script.asked.iter().copied());
        match answer {
            Ok(verdict) => counts[verdict.decision as usize] += 1,
            Err(text) => {
                return Err(Trouble::new("a sound model is refused")
                    .note()
                    .sent(format!("{} windows of {} tokens", script.windows, script.tokens))
                    .back(text)
                    .fix("right if it needs what this text lacks; the run ends there")
                    .case(case)
                    .into());
            }
        }
    }
    let [accepted, rejected, abstained] = counts;
    let asked: Vec<_> = asked.into_iter().collect();
    Ok(format!("{accepted} accepted, {rejected} rejected, {abstained} abstained; it asks for {}", asked.join(", ")))
}

fn determinism(bench: &Bench) -> Outcome {
    for (case, script) in case_scripts(bench) {
        let once = || ask(bench, fresh(bench)?.as_mut(), 1, &mut script.clone());
        let (one, other) = (once().map_err(|t| t.case(case))?, once().map_err(|t| t.case(case))?);
        if one != other {
            return Err(Trouble::new("two fresh instances differ on the same measurements")
                .back(format!("first {}, then {}", brief(&one), brief(&other)))
                .fix("draw randomness from the task's seed, and keep what is iterated in order")
                .case(case)
                .into());
        }
    }
    Ok("two fresh instances give equal verdicts".into())
}

fn brief(answer: &Result<Verdict, String>) -> String {
    let text = match answer {
        Ok(verdict) => serde_json::to_string(verdict).unwrap_or_default(),
        Err(text) => format!("a refusal: {text}"),
    };
    crate::plugin::text::clean(&text, 300)
}

fn same_as_base(bench: &Bench) -> Outcome {
    for (case, script) in case_scripts(bench) {
        let mut script = Script { worse: 0.0, ..script };
        let answer = ask(bench, fresh(bench)?.as_mut(), 1, &mut script).map_err(|t| t.case(case))?;
        if let Ok(Verdict { decision: Decision::Reject, reason, .. }) = answer {
            return Err(Trouble::new("a candidate equal to the base is rejected")
                .sent(format!(
                    "{} windows of {} tokens; base, current and candidate alike",
                    script.windows, script.tokens
                ))
                .back(reason)
                .fix("compare with the base, or abstain: with these options no run makes a step")
                .case(case)
                .into());
        }
    }
    Ok("a candidate equal to the base is not rejected".into())
}

fn much_worse(bench: &Bench) -> Outcome {
    let mut script = Script::new(bench.settings.seed, 5.0);
    match ask(bench, fresh(bench)?.as_mut(), 1, &mut script)? {
        Ok(Verdict { decision: Decision::Accept, reason, .. }) => {
            Err(Trouble::new("a candidate far worse than the base is accepted")
                .note()
                .sent("5 nats per token worse, 6 times slower and larger, with wrong answers")
                .back(reason)
                .fix("right if its limits are off by default; else compare with the base")
                .into())
        }
        Ok(verdict) => Ok(format!("a candidate far worse than the base: {:?}", verdict.decision).to_lowercase()),
        Err(text) => Ok(format!("a candidate far worse than the base is refused: {text}")),
    }
}

fn reported(bench: &Bench) -> Outcome {
    let Some(Value::Texts(announced)) = attribute(&bench.info.attributes, "metrics") else {
        return Ok("nothing is announced, nothing is missed".into());
    };
    let mut seen = BTreeSet::new();
    for (case, mut script) in case_scripts(bench) {
        let Ok(verdict) = ask(bench, fresh(bench)?.as_mut(), 1, &mut script).map_err(|t| t.case(case))? else {
            continue;
        };
        for metric in &verdict.metrics {
            if !announced.contains(&metric.name) {
                return Err(Trouble::new(format!("it reports `{}`, which it does not announce", metric.name))
                    .back(format!("announced: {}", announced.join(", ")))
                    .fix("add the name to the attribute `metrics` of `describe`")
                    .case(case)
                    .into());
            }
            if verdict.metrics.iter().filter(|m| m.name == metric.name).count() > 1 {
                return Err(Trouble::new(format!("it reports `{}` twice in one verdict", metric.name))
                    .fix("report every figure once")
                    .case(case)
                    .into());
            }
            seen.insert(metric.name.clone());
        }
    }
    match announced.iter().find(|a| !seen.contains(*a)) {
        Some(name) => Err(Trouble::new(format!("it announces `{name}` and never reported it here"))
            .note()
            .fix("right if it is reported under other options or on other text")
            .into()),
        None => Ok(format!("what is announced is reported, and nothing else: {}", announced.join(", "))),
    }
}

/// A verdict or a refusal in plain words.
fn edge(bench: &Bench, mut script: Script, what: &str) -> Outcome {
    let mut evaluator = fresh(bench)?;
    let answer = ask(bench, evaluator.as_mut(), 1, &mut script)
        .map_err(|t| Trouble { found: format!("{what}: {}", t.found), ..*t })?;
    let spoiled =
        script.spoiled.is_some() && script.asked.iter().any(|a| matches!(*a, "score-windows" | "score" | "divergence"));
    match answer {
        Ok(Verdict { decision: Decision::Accept, reason, .. }) if spoiled => {
            Err(Trouble::new(format!("{what}: accepted"))
                .back(reason)
                .fix("reject what is not finite: such a candidate is broken")
                .into())
        }
        Ok(verdict) => Ok(format!("{what}: {:?}", verdict.decision).to_lowercase()),
        Err(text) => Ok(format!("{what}: refused ({})", crate::plugin::text::clean(&text, 120))),
    }
}

/// Fails each question in turn, then all; afterwards the evaluator works again.
fn failing(bench: &Bench) -> Outcome {
    let mut told = 0;
    for question in QUESTIONS.into_iter().chain(["*"]) {
        let mut evaluator = fresh(bench)?;
        let mut script = Script { fails: Some(question), ..Script::new(bench.settings.seed, 0.0) };
        let named = |t: Box<Trouble>| Trouble { found: format!("{question} fails in the host: {}", t.found), ..*t };
        if let Err(text) = ask(bench, evaluator.as_mut(), 1, &mut script).map_err(named)? {
            told += usize::from(text.contains("on fire"));
            let sound = || Script::new(bench.settings.seed, 0.0);
            let again = ask(bench, evaluator.as_mut(), 2, &mut sound())
                .map_err(|t| Trouble { found: format!("after {question} failed once: {}", t.found), ..*t })?;
            let fresh = ask(bench, fresh(bench)?.as_mut(), 2, &mut sound())?;
            if again != fresh {
                return Err(Trouble::new(format!(
                    "after {question} failed once, it judges sound measurements otherwise"
                ))
                .back(format!("{}; a fresh instance: {}", brief(&again), brief(&fresh)))
                .fix("keep nothing of a call that failed")
                .into());
            }
        }
    }
    Ok(format!("questions that fail end in plain words ({told} times with the host's own reason)"))
}
