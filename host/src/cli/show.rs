//! What a run looks like: a progress bar a stage, a line a step, a table at the end.

use super::interrupt::Interrupt;
use super::{Global, ui};
use crate::eval::data::Thinned;
use crate::plastic::journal::{
    Event, Fate, Footprint, History, PluginRecord, Role, RunRecord, ShadowRecord, StepRecord, SwapRecord, WakeRecord,
};
use crate::plastic::step::{Ended, Stage, Watcher};
use crate::plugin::contract::{Decision, Metric, Slice, Verdict};
use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{DecimalBytes, ProgressBar};
use std::path::Path;
use std::time::Duration;

/// Draws a run as it happens.
pub struct Screen {
    global: Global,
    interrupt: Interrupt,
    slices: Vec<Slice>,
    steps: u32,
    bar: Option<(Stage, ProgressBar)>,
    current: u32,
}

impl Screen {
    /// For a run of so many steps over these slices; `next` is the first one to be taken.
    pub fn new(g: &Global, interrupt: Interrupt, slices: Vec<Slice>, next: u32, steps: u32) -> Screen {
        Screen { global: g.clone(), interrupt, slices, steps, bar: None, current: next }
    }

    fn talks(&self) -> bool {
        !self.global.json && !self.global.quiet
    }

    /// What runs on what.
    pub fn opening(&mut self, run: Option<&RunRecord>, path: &Path, loading: Duration) {
        let Some(r) = run.filter(|_| self.talks()) else { return };
        let bold = Style::new().bold();
        say!(
            "{bold}{}{bold:#}: {} slices, {} parameters in them, at most {} awake ({:.0} %)",
            r.base_id,
            self.slices.len(),
            millions(r.parameters),
            millions(r.budget),
            100.0 * share(r.budget, r.parameters),
        );
        say!("{}; ready after {:.1} s; run in {}", cast(r), loading.as_secs_f64(), path.display());
    }

    /// The end of a run: what is awake now, what it costs, and where to go from here.
    pub fn closing(&mut self, events: &[Event], ended: &Ended, wake: &WakeRecord, path: &Path, took: Duration) {
        self.clear();
        if self.global.json {
            say!("{}", summary(events, ended, wake, path, took));
            return;
        }
        if self.global.quiet {
            return;
        }
        let steps: Vec<&StepRecord> = events.steps().collect();
        let current = events.current();
        let shown = current.or_else(|| steps.last().copied());
        // A step that never got to the model has nothing to show.
        let shown = shown.filter(|s| s.verdict.is_some());
        if let Some(step) = shown {
            say!("\n{}", self.table(step));
        }
        if let Some((s, v)) = shown.and_then(|s| Some((s, s.verdict.as_ref()?))) {
            for line in judged(v, s.tokens_per_second, current.is_some()) {
                say!("{line}");
            }
        }
        for (policy, text) in &ended.reports {
            say!("{policy}: {}", text.trim_end());
        }
        let state = match current {
            Some(s) => format!("the state of step {} is current", s.step),
            None => "nothing was accepted: the model is the base, as before".into(),
        };
        say!("{} ({:.1} s); {state}", sentence(&ended.reason), took.as_secs_f64());
        let proof =
            if wake.identical { "every logit is the base's, bit for bit" } else { "LOGITS DIFFER FROM THE BASE" };
        say!("woke everything in {:.3} ms: {proof}", 1000.0 * wake.seconds);
        if current.is_some() {
            let p = path.display();
            say!("\nuse it:   plastic-host generate --state {p} --prompt \"...\"");
            say!("go back:  plastic-host undo {p} --to 0");
        }
    }

    /// One row a kind of slice: ranks, parameters and bytes before the run and in `step`.
    fn table(&self, step: &StepRecord) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_BORDERS_ONLY);
        let rank = if step.fate == Fate::Committed { "rank now" } else { "rank tried" };
        table.set_header(vec!["slices", "number", "rank before", rank, "dense", "parameters awake", "share", "memory"]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut kinds: Vec<&str> = Vec::new();
        for s in &self.slices {
            if !kinds.contains(&s.kind.as_str()) {
                kinds.push(&s.kind);
            }
        }
        let mut total = Row::default();
        for kind in kinds {
            let mut row = Row::default();
            for (i, s) in self.slices.iter().enumerate().filter(|(_, s)| s.kind == kind) {
                row.add(
                    s,
                    step.ranks_after.get(i).copied().unwrap_or(s.max_rank),
                    step.state.as_ref().map(|a| a[i].is_dense()),
                );
            }
            total.merge(&row);
            table.add_row(row.cells(kind));
        }
        table.add_row(total.cells("all"));
        table
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Sums over slices of one kind.
#[derive(Default)]
struct Row {
    number: u64,
    rank_before: u64,
    rank_after: u64,
    dense: u64,
    before: u64,
    after: u64,
}

impl Row {
    fn add(&mut self, s: &Slice, rank: u32, dense: Option<bool>) {
        // A rejected candidate has no recorded state; at full rank it was dense.
        let dense = dense.unwrap_or(rank == s.max_rank);
        self.number += 1;
        self.rank_before += u64::from(s.max_rank);
        self.rank_after += u64::from(rank);
        self.dense += u64::from(dense);
        self.before += s.dense_parameters;
        self.after += if dense { s.dense_parameters } else { u64::from(rank) * s.component_parameters };
    }

    fn merge(&mut self, other: &Row) {
        self.number += other.number;
        self.rank_before += other.rank_before;
        self.rank_after += other.rank_after;
        self.dense += other.dense;
        self.before += other.before;
        self.after += other.after;
    }

    fn cells(&self, kind: &str) -> Vec<String> {
        let mean = |sum: u64| format!("{:.0}", sum as f64 / self.number.max(1) as f64);
        vec![
            kind.to_owned(),
            self.number.to_string(),
            mean(self.rank_before),
            mean(self.rank_after),
            self.dense.to_string(),
            millions(self.after),
            format!("{:.1} %", 100.0 * share(self.after, self.before)),
            format!("{} → {}", megabytes(4 * self.before), megabytes(4 * self.after)),
        ]
    }
}

impl Watcher for Screen {
    fn progress(&mut self, stage: Stage, done: u64, total: u64, detail: &str) -> bool {
        if self.bar.as_ref().is_none_or(|(s, _)| *s != stage) {
            self.clear();
            let what = match stage {
                Stage::Spectra => "measuring spectra",
                Stage::Apply => "factoring",
                Stage::Evaluate => "scoring",
            };
            let bar = ui::bar(&self.global, total, &format!("step {}/{} {what}", self.current, self.steps));
            self.bar = Some((stage, bar));
        }
        if let Some((_, bar)) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            if !detail.is_empty() {
                bar.set_prefix(detail.to_owned());
            }
        }
        !self.interrupt.raised()
    }

    fn step(&mut self, s: &StepRecord) {
        self.clear();
        self.current = s.step + 1;
        if !self.talks() {
            return;
        }
        let (word, colour) = match s.fate {
            Fate::Committed => ("accepted", AnsiColor::Green),
            Fate::Held => ("held", AnsiColor::Blue),
            Fate::Rejected => ("rejected", AnsiColor::Red),
            Fate::Refused => ("refused", AnsiColor::Red),
            Fate::Failed => ("failed", AnsiColor::Red),
        };
        let style = Style::new().bold().fg_color(Some(colour.into()));
        let total: u64 = self.slices.iter().map(|s| s.dense_parameters).sum();
        say!(
            "step {}/{} {style}{word}{style:#}: {} awake, {} ({:.1} s)",
            s.step,
            self.steps,
            change(&s.before, &s.after, total),
            s.reason.replace('\n', " "),
            s.times.total
        );
        if let Some(fault) = s.fault.as_ref().filter(|_| s.fallback) {
            say!("  the fallback decided: {}", fault.to_string().replace('\n', " "));
        }
        for shadow in &s.shadows {
            say!("  {}", shadowed(shadow, total, s));
        }
    }

    fn swap(&mut self, s: &SwapRecord) {
        self.clear();
        let what = match s.role {
            Role::Policy => "policy",
            Role::Shadow => "shadow",
            Role::Fallback => "fallback",
            Role::Evaluator => "evaluator",
        };
        match &s.plugin {
            None => tracing::warn!("the file of the {what} changed, but the old one goes on: {}", s.problem),
            Some(p) => {
                let state = match (s.carried, s.problem.is_empty()) {
                    (true, _) => ", with the state of the old one".into(),
                    (false, true) => String::new(),
                    (false, false) => format!("; {}", s.problem),
                };
                if self.talks() {
                    say!("the {what} is now {} {}{state}", p.info.name, p.info.version);
                }
            }
        }
    }

    fn interrupted(&self) -> bool {
        self.interrupt.raised()
    }
}

/// What a shadow would have done, beside what was done.
fn shadowed(shadow: &ShadowRecord, total: u64, s: &StepRecord) -> String {
    if let Some(problem) = &shadow.problem {
        return format!("{} would have failed: {}", shadow.policy, problem.replace('\n', " "));
    }
    let differ = shadow.ranks.iter().zip(&s.ranks_after).filter(|(a, b)| a != b).count();
    let predicted = shadow.plan.as_ref().and_then(|p| p.predicted);
    let predicted = predicted.map_or_else(String::new, |p| format!(", predicted {p:+.4} nats per token"));
    let awake = 100.0 * share(shadow.parameters, total);
    format!("{} would have kept {awake:.1} % awake{predicted}; {differ} slices differ", shadow.policy)
}

fn change(before: &Footprint, after: &Footprint, total: u64) -> String {
    let percent = |f: &Footprint| 100.0 * share(f.parameters, total);
    format!("{:.1} % → {:.1} %", percent(before), percent(after))
}

fn metric<'a>(v: &'a Verdict, name: &str) -> Option<&'a Metric> {
    v.metrics.iter().find(|m| m.name == name)
}

/// Perplexity and speed, the base beside the candidate, and the verdict.
fn judged(v: &Verdict, speed: Option<[f64; 2]>, accepted: bool) -> Vec<String> {
    let tried = if accepted { "" } else { ", tried and taken back" };
    let mut out = Vec::new();
    if let (Some(base), Some(now)) = (metric(v, "perplexity-base"), metric(v, "perplexity")) {
        let rise = metric(v, "loss-increase").map_or_else(String::new, |m| {
            let interval = match (m.low, m.high) {
                (Some(l), Some(h)) => format!(", 95 % interval {l:+.4} to {h:+.4}"),
                _ => String::new(),
            };
            format!(" ({:+.4} nats per token{interval})", m.value)
        });
        out.push(format!("perplexity  {:.2} → {:.2}{rise}{tried}", base.value, now.value));
    }
    if let Some([base, now]) = speed {
        out.push(format!(
            "scoring     {base:.0} → {now:.0} tokens/s, one measurement; `make bench` compares with care"
        ));
    }
    let word = match v.decision {
        Decision::Accept => "accepted",
        Decision::Reject => "rejected",
        Decision::Abstain => "abstained",
    };
    out.push(format!("verdict     {word}: {}", v.reason));
    out
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().collect::<String>() + chars.as_str())
}

/// The whole run as one JSON document.
fn summary(events: &[Event], ended: &Ended, wake: &WakeRecord, path: &Path, took: Duration) -> serde_json::Value {
    let step = |s: &StepRecord| {
        serde_json::json!({
            "step": s.step, "fate": s.fate, "reason": s.reason, "before": s.before, "after": s.after,
            "predicted": s.plan.as_ref().and_then(|p| p.predicted), "verdict": s.verdict,
            "opinions": s.opinions, "fault": s.fault, "fallback": s.fallback,
            "shadows": s.shadows.iter().map(|d| serde_json::json!({
                "policy": d.policy, "parameters": d.parameters, "problem": d.problem,
                "predicted": d.plan.as_ref().and_then(|p| p.predicted),
            })).collect::<Vec<_>>(),
            "tokens_per_second": s.tokens_per_second, "times": s.times,
        })
    };
    let run = events.run();
    serde_json::json!({
        "run": path,
        "base": run.map(|r| &r.base_id),
        "packs": run.map(|r| &r.packs),
        "policies": run.map(|r| names(&r.policies)),
        "shadows": run.map(|r| names(&r.shadows)),
        "evaluators": run.map(|r| names(&r.evaluators)),
        "reports": ended.reports,
        "parameters": run.map(|r| r.parameters),
        "budget": run.map(|r| r.budget),
        "steps": events.steps().map(step).collect::<Vec<_>>(),
        "current_step": events.current().map_or(0, |s| s.step),
        "ended": ended.reason,
        "wake": wake,
        "seconds": took.as_secs_f64(),
    })
}

fn names(plugins: &[PluginRecord]) -> Vec<String> {
    plugins.iter().map(|p| p.info.name.clone()).collect()
}

/// Who decides and who judges: `policy energy 1.0.0, evaluators perplexity 1.0.0 and kl 1.0.0`.
pub fn cast(r: &RunRecord) -> String {
    let list = |plugins: &[PluginRecord], joint: &str| {
        let one = |p: &PluginRecord| format!("{} {}", p.info.name, p.info.version);
        plugins.iter().map(one).collect::<Vec<_>>().join(joint)
    };
    let plural = |n: usize| if n == 1 { "" } else { "s" };
    let mut out = match r.policies.len() {
        1 => format!("policy {}", list(&r.policies, "")),
        _ => format!("policies {}", list(&r.policies, " → ")),
    };
    if !r.shadows.is_empty() {
        out += &format!(", in the shadow {}", list(&r.shadows, ", "));
    }
    if let Some(f) = &r.fallback {
        out += &format!(", falling back on {} {}", f.info.name, f.info.version);
    }
    out += &format!(", evaluator{} {}", plural(r.evaluators.len()), list(&r.evaluators, ", "));
    if let Some(budget) = r.awake_budget {
        out += &format!(", awake budget {}", super::elastic::figure(budget));
    }
    out
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// `106.2 M`.
pub fn millions(n: u64) -> String {
    format!("{:.1} M", n as f64 / 1e6)
}

/// What of a large text was used.
pub fn thinned(t: &Thinned) -> String {
    format!("{} of {} were used, evenly spread", DecimalBytes(t.bytes), DecimalBytes(t.of))
}

/// `42 MB` (10⁶ bytes), `0.92 MB` where there are few.
pub fn megabytes(n: u64) -> String {
    match n as f64 / 1e6 {
        few if few < 9.95 => format!("{few:.2} MB"),
        many => format!("{many:.0} MB"),
    }
}
