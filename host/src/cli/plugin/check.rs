//! `plastic-host plugin check`: the conformance suite, with the host's own rules about plans.

use super::{kib, kind_of};
use crate::cli::{Global, locate, rules::RuleArgs};
use crate::plastic::plan::{Subject, resolve};
use crate::plastic::state::{Awake, DENSE};
use crate::plugin::check::{self, Finding, Level, PlanRules, Report, Settings, Standing};
use crate::plugin::contract::{Plan, Slice};
use crate::plugin::{Kind, Loader, options};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Options of `plugin check`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host plugin check plugins/energy.wasm
  plastic-host plugin check my-policy.wasm --opt energy=0.9 --cases 200
  plastic-host plugin check my-policy.wasm --seed 1 --case 17

Exit code 0 when every check passes; notes are no failures. No model is needed.")]
pub struct CheckArgs {
    /// The plugin: a file, or a name on the plugin path
    file: PathBuf,
    /// An option of the plugin, as in a run
    #[arg(long = "opt", value_name = "NAME=VALUE")]
    opts: Vec<String>,
    /// Seed of every random draw
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Random models (or measurements) to try
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    cases: u32,
    /// Repeat this one case only, and no edge cases
    #[arg(long, value_name = "K")]
    case: Option<u32>,
    #[command(flatten)]
    rules: RuleArgs,
}

/// Runs the verb.
pub fn run(args: &CheckArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let loader = args.rules.loader()?;
    let file = locate::plugin(&args.file, Some(&loader))?;
    let kind = kind_of(&loader, &file)?;
    let options = options(args, &loader, &file, kind)?;
    let settings = Settings { options, seed: args.seed, cases: args.cases, only: args.case };
    let report = check::run(&loader, &file, kind, &settings, &Host)?;
    let failed = report.count(Level::Failed);
    match g.json {
        true => say!("{}", json(&report, &file)),
        false => say!("{}", text(&report, args, &file, g.quiet).trim_end()),
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The options as typed, in the form `configure` takes.
fn options(args: &CheckArgs, loader: &Loader, file: &Path, kind: Kind) -> anyhow::Result<serde_json::Value> {
    let info = match kind {
        Kind::Policy => loader.policy(file)?.info().clone(),
        Kind::Evaluator => loader.evaluator(file)?.info().clone(),
    };
    options::from_pairs(&info, &args.opts).map_err(|m| anyhow::anyhow!("{}: {m}", file.display()))
}

/// The rules of a real run.
struct Host;

impl PlanRules for Host {
    fn resolve(
        &self,
        plan: &Plan,
        slices: &[Slice],
        now: &[Standing],
        budget: u64,
        spectrum: &dyn Fn(u32, u32) -> Option<Vec<f32>>,
    ) -> Result<Vec<Standing>, String> {
        let subject = |s: &Standing| Subject {
            awake: match s.dense {
                true => DENSE,
                false => {
                    Awake::from_components((0u32..).zip(&s.asleep).filter(|(_, a)| !**a).map(|(c, _)| c).collect())
                }
            },
            frozen: s.frozen,
        };
        let subjects: Vec<Subject> = now.iter().map(subject).collect();
        let mut spectra = HashMap::new();
        if let Some(t) = &plan.threshold {
            spectra.extend((0..slices.len() as u32).filter_map(|i| Some((i, spectrum(i, t.need)?))));
        }
        let lent = |slice: u32, _: u32| spectra.get(&slice).map(Vec::as_slice);
        let after = resolve(plan, slices, &subjects, budget, &lent).map_err(|e| e.to_string())?;
        let standing = |((awake, frozen), slice): ((&Awake, &bool), &Slice)| {
            let mut asleep = vec![true; slice.max_rank as usize];
            for c in awake.components(slice.max_rank) {
                if let Some(flag) = asleep.get_mut(c as usize) {
                    *flag = false;
                }
            }
            Standing { dense: awake.is_dense(), asleep, frozen: *frozen }
        };
        Ok(after.awake.iter().zip(&after.frozen).zip(slices).map(standing).collect())
    }
}

fn json(report: &Report, file: &Path) -> serde_json::Value {
    let mut out = serde_json::json!({
        "file": file,
        "passed": report.count(Level::Failed) == 0,
        "checks": report.findings.len(),
        "failed": report.count(Level::Failed),
        "notes": report.count(Level::Note),
    });
    if let (Some(out), Ok(serde_json::Value::Object(more))) = (out.as_object_mut(), serde_json::to_value(report)) {
        out.extend(more);
    }
    out
}

/// The report for people; `brief` leaves out what is well.
fn text(report: &Report, args: &CheckArgs, file: &Path, brief: bool) -> String {
    let (info, file) = (&report.info, file.display());
    let mut out = format!("{file}: {} {}, {}; seed {}\n", info.name, info.version, report.kind, report.seed);
    let width = report.findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    for f in report.findings.iter().filter(|f| !brief || f.level == Level::Failed) {
        let mark = match f.level {
            Level::Ok => "ok    ",
            Level::Note => "note  ",
            Level::Failed => "FAILED",
        };
        out += &format!("  {mark}  {:<width$}  {}\n", f.check, f.found);
        if f.level != Level::Ok {
            out += &details(f, width + 12, &again(f, args, &file.to_string()));
        }
    }
    let longest = &report.longest;
    let memory = report.peak_memory.map_or_else(String::new, |b| format!("; peak memory {}", kib(b)));
    out += &format!(
        "longest call {} ({}){memory}\n",
        check::span(Duration::from_secs_f64(longest.micros / 1e6)),
        longest.call
    );
    out += &match (report.findings.len(), report.count(Level::Failed), report.count(Level::Note)) {
        (n, 0, 0) => format!("{n} checks passed\n"),
        (n, 0, notes) => format!("{n} checks passed, {notes} of them with a note\n"),
        (n, failed, notes) => format!("{failed} of {n} checks FAILED, {notes} notes\n"),
    };
    out
}

/// What was sent, what came back, what to do, how to see it again.
fn details(f: &Finding, indent: usize, again: &str) -> String {
    let mut out = String::new();
    for (name, text) in [("sent", f.sent.as_str()), ("got", &f.came_back), ("fix", &f.fix), ("again", again)] {
        if !text.is_empty() {
            let text = text.replace('\n', &format!("\n{:indent$}       ", ""));
            out += &format!("{:indent$}{name:<5}  {text}\n", "");
        }
    }
    out
}

/// The command that shows a finding again.
fn again(f: &Finding, args: &CheckArgs, file: &str) -> String {
    let Some(case) = f.case else { return String::new() };
    let opts: String = args.opts.iter().map(|o| format!(" --opt {o}")).collect();
    format!("plastic-host plugin check {file}{opts} --seed {} --case {case}", args.seed)
}
