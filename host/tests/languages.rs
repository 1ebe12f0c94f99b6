//! Covers: plugins in four languages.
//!
//! - the same policy in Rust, C, Python and JavaScript answers equal plans to the same observations;
//! - what `plugin new` makes passes its own test, builds, loads and does what its source says, for
//!   either kind and each language;
//! - state, requested statistics and errors pass between host and plugin (for Rust, the SDK's tests
//!   show it).
//!
//! Python 3 is always there; without node and npm JavaScript is skipped, loudly. Tools are fetched
//! once into the user's cache.
#![allow(clippy::unwrap_used, reason = "tests")]

use plastic_host::plugin::build::project::Lang;
use plastic_host::plugin::contract::*;
use plastic_host::plugin::scaffold::{Scaffold, make};
use plastic_host::plugin::{Evaluator, FaultClass, Kind, Limits, Measure, Policy, build, load_evaluator, load_policy};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The languages of this machine.
fn languages() -> Vec<Lang> {
    let starts = |program: &str| Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    let mut languages = vec![Lang::Rust, Lang::C, Lang::Python];
    match starts("node") && starts("npm") {
        true => languages.push(Lang::Javascript),
        false => eprintln!("\n*** SKIPPED: plugins in JavaScript are NOT tested, node or npm is missing ***\n"),
    }
    languages
}

/// Does the same for each language, at the same time.
fn each<T: Send>(languages: &[Lang], work: impl Fn(Lang) -> T + Sync) -> Vec<(Lang, T)> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = languages.iter().map(|&lang| (lang, scope.spawn(move || work(lang)))).collect();
        let join = |(lang, thread): (Lang, std::thread::ScopedJoinHandle<'_, T>)| match thread.join() {
            Ok(done) => (lang, done),
            Err(_) => panic!("{lang} failed; its message is above"),
        };
        threads.into_iter().map(join).collect()
    })
}

fn built(dir: &Path, name: &str) -> PathBuf {
    let out = root().join("target/test-plugins");
    std::fs::create_dir_all(&out).unwrap();
    let out = out.join(name);
    build::build_with(dir, Some(&out), &mut |line| eprintln!("{line}")).unwrap_or_else(|e| panic!("{name}: {e}"));
    out
}

fn policy(path: &Path) -> Box<dyn Policy> {
    load_policy(path, &Limits::default(), None).unwrap()
}

// --- equal plans --------------------------------------------------------------------------------

/// A slice by layer and shape, dense.
fn slice(layer: u32, rows: u32, cols: u32) -> Slice {
    Slice {
        name: format!("model.layers.{layer}.größe_{rows}"),
        layer,
        kind: "q_proj".into(),
        group: layer,
        rows,
        cols,
        max_rank: rows.min(cols),
        dense_parameters: u64::from(rows) * u64::from(cols),
        component_parameters: u64::from(rows) + u64::from(cols),
        attributes: vec![],
    }
}

/// A run over these slices, and an observation with spectra of at most `values` values a slice.
fn seen(slices: Vec<Slice>, share: f64, values: u32) -> (Run, Vec<Slice>, Observation) {
    let parameters = slices.iter().map(|s| s.dense_parameters).sum::<u64>();
    let budget = (share * parameters as f64) as u64;
    let run = Run { phase: "compress".into(), seed: 7, steps: 4, parameters, budget, attributes: vec![] };
    let state = |s: &Slice| SliceState {
        awake: s.max_rank,
        dense: true,
        dense_allowed: true,
        frozen: false,
        dwell: 0,
        parameters: s.dense_parameters,
        bytes: 4 * s.dense_parameters,
        parked_bytes: 0,
    };
    let mut observation = Observation {
        step: 1,
        awake: parameters,
        slices: slices.iter().map(state).collect(),
        series: vec![],
        values: vec![],
        asleep: vec![],
        metrics: vec![],
        last: None,
        proposed: None,
        attributes: vec![],
    };
    for (i, s) in slices.iter().enumerate() {
        let (offset, len) = (observation.values.len() as u32, s.max_rank.min(values));
        observation.series.push(Series { slice: i as u32, need: 0, offset, len });
        observation.values.extend((0..len).map(|k| 1.0 / (1.0 + k as f32)));
    }
    (run, slices, observation)
}

/// Every kind of value and every optional record, with what is hard to carry over: letters beyond
/// ASCII, empty lists, the ends of the number ranges.
fn crowded() -> (Run, Vec<Slice>, Observation) {
    let (mut run, mut slices, mut observation) = seen(vec![slice(3, 64, 32), slice(1, 32, 64)], 0.3, 8);
    let values = [
        Value::Flag(true),
        Value::Int(i64::from(i32::MIN)),
        Value::Num(f64::MIN_POSITIVE),
        Value::Text("größer als 🦀".into()),
        Value::Nums(vec![0.1, -0.0, f64::MAX]),
        Value::Texts(vec![String::new(), "b".into()]),
    ];
    let attributes: Vec<Attribute> =
        values.into_iter().enumerate().map(|(i, value)| Attribute { name: format!("fact-{i}"), value }).collect();
    let metric = Metric {
        name: "loss".into(),
        value: f64::NAN,
        unit: "nats".into(),
        higher_is_better: false,
        low: Some(f64::NEG_INFINITY),
        high: None,
    };
    let action = |slice, change| Action { slice, change, reason: "before — this".into() };
    let proposed = Plan {
        actions: vec![
            action(0, Change::SetRank(3)),
            action(1, Change::Sleep(vec![1, 2])),
            action(1, Change::Wake(vec![])),
            action(0, Change::Dense),
            action(0, Change::WakeN(u32::MAX)),
        ],
        threshold: Some(Threshold { need: 0, level: 1e-12, reason: String::new() }),
        predicted: Some(0.25),
        requests: vec!["spectrum:plain".into()],
        stop: Some("genug".into()),
        attributes: attributes.clone(),
    };
    run.attributes = attributes.clone();
    slices[1].attributes = attributes.clone();
    observation.slices[0].frozen = true;
    observation.values[3] = f32::NAN;
    observation.asleep = vec![1; observation.values.len()];
    observation.metrics = vec![metric.clone(); 3];
    observation.last = Some(Outcome {
        step: 1,
        fate: "rejected".into(),
        reason: "zu viel".into(),
        predicted: None,
        measured: Some(0.5),
        metrics: vec![metric],
    });
    observation.proposed = Some(proposed);
    observation.attributes = attributes;
    (run, slices, observation)
}

/// What a policy is started with and shown.
type Case = (Run, Vec<Slice>, Observation);

/// What the policies are asked about, by name.
fn cases() -> Vec<(&'static str, Case)> {
    let many = |n: u32| (0..n).map(|i| slice(i % 211, 64 + i % 17, 64 + i % 5)).collect();
    vec![
        ("no slices", seen(vec![], 0.5, 0)),
        ("one slice", seen(vec![slice(0, 7, 5)], 0.5, 5)),
        ("a model", seen((0..210).map(|i| slice(i / 7, 576, 576 + 960 * (i % 2))).collect(), 0.85, 576)),
        ("10,000 slices", seen(many(10_000), 0.4, 64)),
        ("no budget", seen(many(9), 0.0, 4)),
        ("more budget than model", seen(many(9), 4.0, 4)),
        ("one layer, many slices", seen((1..60).map(|i| slice(5, i, 61 - i)).collect(), 0.7, 2)),
        ("layers in any order", seen([9, 2, i32::MAX as u32, 0].map(|l| slice(l, 100, 33)).to_vec(), 0.5, 1)),
        ("huge slices", seen([0, 1, 2].map(|l| slice(l, 1 << 26, 1 << 23)).to_vec(), 0.9, 3)),
        ("thirds", seen([0, 1, 2, 3].map(|l| slice(l, 3, 7919)).to_vec(), 1.0 / 3.0, 3)),
        ("every kind of value", crowded()),
    ]
}

#[test]
fn four_languages_one_plan() {
    let languages = languages();
    let plans = each(&languages, |lang| {
        let (dir, name) = match lang {
            Lang::Rust => ("top-heavy", "top-heavy-rust.wasm"),
            Lang::C => ("top-heavy-c", "top-heavy-c.wasm"),
            Lang::Python => ("top-heavy-python", "top-heavy-python.wasm"),
            Lang::Javascript => ("top-heavy-javascript", "top-heavy-javascript.wasm"),
        };
        let dir = root().join("examples").join(dir);
        let mut policy = policy(&built(&dir, name));
        match lang {
            Lang::Rust => {} // a crate like any other; its test runs with the others
            Lang::C => own_test(lang, &dir, "make test"),
            Lang::Python => own_test(lang, &dir, "python3 -m unittest"),
            Lang::Javascript => own_test(lang, &dir, "node --test"),
        }
        assert_eq!(policy.info().name, "top-heavy", "{lang}");
        assert_eq!(policy.info().needs, ["spectrum:fisher"], "{lang}");
        assert!(policy.info().summary.starts_with("Gives late layers"), "{lang}");
        policy.configure(&json!({})).unwrap();
        let mut plans = Vec::new();
        for (case, (run, slices, observation)) in cases() {
            policy.start(&run, &slices).unwrap();
            let plan = policy.decide(&observation).unwrap_or_else(|e| panic!("{lang}, {case}: {e}"));
            let open = observation.slices.iter().filter(|s| !s.frozen).count();
            assert_eq!(plan.actions.len(), open, "{lang}, {case}");
            // The same instance, asked again, and one that took the state over.
            assert_eq!(policy.decide(&observation).unwrap(), plan, "{lang}, {case}, again");
            plans.push((case, plan));
        }
        let state = policy.snapshot().unwrap();
        policy.restore(&state).unwrap();
        plans
    });
    let (_, expected) = &plans[0];
    for (lang, plans) in &plans[1..] {
        for ((case, expected), (_, plan)) in expected.iter().zip(plans) {
            for (a, b) in expected.actions.iter().zip(&plan.actions) {
                assert_eq!(a, b, "Rust and {lang} differ, {case}");
            }
            assert_eq!(expected, plan, "Rust and {lang} differ, {case}");
        }
    }
    assert_eq!(plans.len(), languages.len());
    let has = |change: fn(&Change) -> bool| expected.iter().any(|(_, p)| p.actions.iter().any(|a| change(&a.change)));
    assert!(has(|c| matches!(c, Change::SetRank(r) if *r > 100)), "the cases must reach both answers");
    assert!(has(|c| matches!(c, Change::Dense)), "the cases must reach both answers");
}

// --- plugin new ---------------------------------------------------------------------------------

/// Runs the test of a project, with the language's own tools.
fn own_test(lang: Lang, dir: &Path, command: &str) {
    let mut words = command.split(' ');
    let mut test = Command::new(words.next().unwrap());
    let output = test.args(words).current_dir(dir).env("PYTHONDONTWRITEBYTECODE", "1").output();
    let output = output.unwrap_or_else(|e| panic!("{lang}: {command}: {e}"));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{lang}: {command} in {} says\n{said}", dir.display());
    let sign = match lang {
        Lang::Rust => "test result: ok. 1 passed",
        Lang::C => "ok\n",
        Lang::Python => "\nOK",
        Lang::Javascript => "fail 0",
    };
    assert!(said.contains(sign) && !said.contains("pass 0"), "{lang}: {command} ran nothing:\n{said}");
}

/// A new project, whose own test passed.
fn project(lang: Lang, kind: Kind, dir: &Path) -> PathBuf {
    let what = Scaffold { name: format!("new-{kind}"), kind, lang, sdk: Some(root().join("plugin-api")) };
    let made = make(&what, dir).unwrap();
    // Dependencies of the Rust projects are compiled once for all test runs.
    let target = json!(root().join("target/test-new"));
    if lang == Lang::Rust {
        std::fs::create_dir_all(dir.join(".cargo")).unwrap();
        std::fs::write(dir.join(".cargo/config.toml"), format!("[build]\ntarget-dir = {}\n", target)).unwrap();
    }
    own_test(lang, dir, made.test);
    built(dir, &format!("new-{kind}-{}.wasm", lang.to_string().to_lowercase()))
}

#[test]
fn new_policies_build_pass_their_tests_and_agree() {
    let plans = each(&languages(), |lang| {
        let dir = tempfile::tempdir().unwrap();
        let mut policy = policy(&project(lang, Kind::Policy, dir.path()));
        assert_eq!((policy.info().name.as_str(), policy.info().version.as_str()), ("new-policy", "0.1.0"), "{lang}");
        let spec = plastic_host::plugin::options::specs(policy.info());
        let keep = spec.iter().find(|s| s.name == "keep").unwrap();
        let range = (keep.kind.as_str(), keep.minimum, keep.maximum, keep.default.as_f64());
        assert_eq!(range, ("number", Some(0.0), Some(1.0), Some(0.5)), "{lang}");

        let fault = policy.configure(&json!({"keep": 2.0})).unwrap_err();
        assert_eq!(fault.class, FaultClass::Refused, "{lang}: {fault}");
        let says = |text| fault.message.contains(text);
        assert!(says("option keep is 2") && says("expected 0 to 1"), "{lang}: {fault}");
        policy.configure(&json!({"keep": 0.3})).unwrap();
        let (run, slices, observation) = seen(vec![slice(0, 100, 60), slice(1, 10, 1000)], 0.5, 4);
        policy.start(&run, &slices).unwrap();
        let plan = policy.decide(&observation).unwrap();

        // An observation of another model is an error of the plugin's, not a crash.
        let (_, _, other) = seen(vec![slice(0, 4, 4)], 0.5, 4);
        let fault = policy.decide(&other).unwrap_err();
        assert_eq!(fault.class, FaultClass::Refused, "{lang}: {fault}");
        assert!(fault.message.contains("the observation has 1 slices, start announced 2"), "{lang}: {fault}");
        // Nor is a snapshot of something else.
        let fault = policy.restore(b"not one of this plugin's").unwrap_err();
        assert_eq!(fault.class, FaultClass::Refused, "{lang}: {fault}");
        assert_eq!(policy.decide(&observation).unwrap(), plan, "{lang}: it goes on");
        plan
    });
    for (lang, plan) in &plans {
        assert_eq!(plan, &plans[0].1, "{lang}");
        let changes: Vec<&Change> = plan.actions.iter().map(|a| &a.change).collect();
        assert_eq!(changes, [&Change::SetRank(18), &Change::SetRank(3)], "{lang}");
        assert_eq!(plan.actions[0].reason, "18 of 60", "{lang}");
    }
}

/// A host with eleven windows of four tokens.
struct Scores {
    candidate: f32,
}

impl Measure for Scores {
    fn windows(&self) -> u32 {
        11
    }
    fn window(&self, _: u32) -> Result<Vec<u32>, String> {
        Ok(vec![1; 5])
    }
    fn score(&mut self, _: &str, _: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        Err("not asked for".into())
    }
    fn score_windows(&mut self, subject: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        let score = match subject {
            "base" => -1.0,
            "candidate" if self.candidate.is_finite() => self.candidate,
            _ => return Err("the model is on fire".into()),
        };
        Ok(indices.iter().map(|&i| vec![score + i as f32 / 64.0; 4]).collect())
    }
    fn generate(&mut self, _: &str, _: &str, _: u32) -> Result<String, String> {
        Err("not asked for".into())
    }
    fn tokenize(&self, _: &str) -> Result<Vec<u32>, String> {
        Err("not asked for".into())
    }
    fn detokenize(&self, _: &[u32]) -> Result<String, String> {
        Err("not asked for".into())
    }
    fn counters(&mut self, _: &str) -> Result<Vec<Metric>, String> {
        Ok(vec![])
    }
    fn divergence(&mut self, _: &str, _: &str, _: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        Err("not asked for".into())
    }
    fn examples(&self) -> u32 {
        0
    }
    fn example(&self, _: u32) -> Result<Example, String> {
        Err("there are none".into())
    }
    fn timing(&mut self, _: &str, _: u32, _: u32) -> Result<Vec<Metric>, String> {
        Ok(vec![])
    }
}

#[test]
fn new_evaluators_build_pass_their_tests_and_agree() {
    let verdicts = each(&languages(), |lang| {
        let dir = tempfile::tempdir().unwrap();
        let file = project(lang, Kind::Evaluator, dir.path());
        let mut evaluator: Box<dyn Evaluator> = load_evaluator(&file, &Limits::default(), None).unwrap();
        assert_eq!(evaluator.info().name, "new-evaluator", "{lang}");
        evaluator.configure(&json!({"max_loss_increase": 0.25})).unwrap();
        let task = Task { step: 1, seed: 3, attributes: vec![] };
        let mut judge = |candidate| evaluator.evaluate(&task, &mut Scores { candidate });
        let verdicts = [judge(-1.125).unwrap(), judge(-1.5).unwrap()];
        // The host's own error comes through, and the evaluator goes on.
        let fault = judge(f32::NAN).unwrap_err();
        assert_eq!(fault.class, FaultClass::Refused, "{lang}: {fault}");
        assert!(fault.message.contains("the model is on fire"), "{lang}: {fault}");
        assert_eq!(judge(-1.125).unwrap(), verdicts[0], "{lang}");
        verdicts
    });
    for (lang, both) in &verdicts {
        assert_eq!(both, &verdicts[0].1, "{lang}");
        assert_eq!(both.each_ref().map(|v| v.decision), [Decision::Accept, Decision::Reject], "{lang}");
        assert_eq!(both[0].reason, "loss 0.9219 -> 1.0469 nats/token", "{lang}");
        let rises = both.each_ref().map(|v| (v.metrics[0].name.as_str(), v.metrics[0].value));
        assert_eq!(rises, [("loss-increase", 0.125), ("loss-increase", 0.5)], "{lang}");
    }
}

// --- the command line ---------------------------------------------------------------------------

/// Runs the program; its exit code, and all it said.
fn host(args: &[&str], dir: &Path, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plastic-host"));
    let output = command.args(args).current_dir(dir).envs(environment.iter().copied()).env("NO_COLOR", "1").output();
    let output = output.unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_command_line_makes_projects() {
    let dir = tempfile::tempdir().unwrap();
    let sdk = root().join("plugin-api").canonicalize().unwrap();
    let home = [("PLASTIC_HOME", root().to_str().unwrap())];
    let (code, said) = host(&["plugin", "new", "halve", "--kind", "policy", "--lang", "rust"], dir.path(), &home);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("halve: a policy in Rust; begin with halve/src/lib.rs"), "{said}");
    assert!(said.contains(&format!("takes the SDK from {}", sdk.display())), "{said}");
    let manifest = std::fs::read_to_string(dir.path().join("halve/Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("plastic-plugin = {{ path = \"{}\" }}", sdk.display())), "{manifest}");

    let words = ["plugin", "new", "check", "--kind", "evaluator", "--lang", "c", "deep/er", "--json"];
    let (code, said) = host(&words, dir.path(), &[]);
    assert_eq!(code, Some(0), "{said}");
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&json["source"], &json["test"]), (&json!("evaluator.c"), &json!("make test")));
    assert!(dir.path().join("deep/er/plastic_plugin/evaluator.h").is_file());

    for (words, code, text) in [
        ("plugin new halve --kind policy --lang c", 1, "halve is not empty; name another directory"),
        ("plugin new Halve --kind policy --lang c", 1, "name is `Halve`, expected lower-case letters"),
        ("plugin new x --kind policy --lang rust --sdk deep", 1, "deep is not the crate plastic-plugin"),
        ("plugin new x --kind policy --lang cobol", 2, "possible values: rust, c, python, javascript"),
        ("plugin build deep", 1, "deep has neither Cargo.toml nor plugin.toml"),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let (ended, said) = host(&words, dir.path(), &[("PLASTIC_HOME", "/nowhere")]);
        assert!(ended == Some(code) && said.contains(text), "{words:?}: {ended:?} {said}");
    }
}

#[test]
fn missing_and_failing_installers_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (cache, bin) = (dir.path().join("cache"), dir.path().join("bin"));
    std::fs::create_dir(&bin).unwrap();
    let environment = [("PATH", bin.to_str().unwrap()), ("PLASTIC_CACHE", cache.to_str().unwrap())];
    let build = |lang: &str| {
        let project = dir.path().join(lang);
        if !project.is_dir() {
            let (code, said) = host(&["plugin", "new", lang, "--kind", "policy", "--lang", lang], dir.path(), &[]);
            assert_eq!(code, Some(0), "{said}");
        }
        let (code, said) = host(&["plugin", "build", lang], dir.path(), &environment);
        assert_eq!(code, Some(1), "{said}");
        assert!(!project.join(format!("{lang}.wasm")).exists());
        said
    };
    for (lang, program, remedy) in [
        ("c", "python3", "apt install python3 python3-venv"),
        ("python", "python3", "apt install python3 python3-venv"),
        ("javascript", "npm", "install Node.js 18 or newer with npm"),
    ] {
        let said = build(lang);
        assert!(said.contains(&format!("`{program}` does not start")) && said.contains(remedy), "{said}");
    }
    let fake = bin.join("python3");
    std::fs::write(&fake, "#!/bin/sh\necho 'ensurepip is not available' >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    let said = build("python");
    assert!(said.contains("componentize-py 0.25.1 could not be installed into"), "{said}");
    assert!(said.contains("ensurepip is not available"), "{said}");
    let left: Vec<_> = std::fs::read_dir(cache.join("tools")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".lock")), "{left:?}");
}

// --- state, requests and errors -----------------------------------------------------------------

const KEEPER_C: &str = r#"
#include "plastic_plugin/policy.h"
static unsigned char count;
static const char *decide(const plastic_seen *seen, plastic_plan *plan) {
  size_t fisher, plain;
  if (seen->now->step == 8) return plastic_error("%s%s", "xü", "üüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüüü");
  if (seen->now->step == 9) return plastic_error("boom %0993d%s", 7, "üüüü"); /* cut within a letter */
  if (seen->now->step == 10) __builtin_trap();
  count++;
  plastic_series(seen, 1, "spectrum:fisher", &fisher);
  plastic_series(seen, 1, "spectrum:plain", &plain);
  plastic_sleep(plan, 1, 2, "%d: %zu %zu", count, fisher, plain);
  return NULL;
}
static const void *snapshot(size_t *length) { *length = 1; return &count; }
static const char *restore(const void *state, size_t length) {
  if (length != 1) return "no state of this policy";
  count = *(const unsigned char *)state;
  return NULL;
}
static const char *const needs[] = {"spectrum:fisher", "spectrum:plain", NULL};
plastic_policy_t plastic_policy = {.needs = needs, .decide = decide, .snapshot = snapshot, .restore = restore};
"#;

const KEEPER_PYTHON: &str = r#"
from plastic_plugin import Plan, Policy, Refused, log
class Keeper(Policy):
    count = 0
    def decide(self, seen):
        if seen.step == 8:
            raise Refused("xüüü")
        if seen.step == 9:
            raise ValueError("boom")
        if seen.step == 10:
            import os; os._exit(3)
        self.count += 1
        plan = Plan()
        s = seen.slices[1]
        plan.sleep(s, 2, f"{self.count}: {len(s.spectrum('fisher'))} {len(s.spectrum('plain'))}")
        plan.requests = ["spectrum:plain"]
        return plan
    def snapshot(self):
        return bytes([self.count])
    def restore(self, state):
        if len(state) != 1:
            raise Refused("no state of this policy")
        self.count = state[0]
PLUGIN = Keeper
"#;

const KEEPER_JAVASCRIPT: &str = r#"
import { Plan, Policy } from "./plastic_plugin/index.js";
export default class Keeper extends Policy {
  count = 0;
  decide(seen) {
    if (seen.step === 8) throw new Error("xüüü");
    if (seen.step === 9) throw new RangeError("boom");
    if (seen.step === 10) Date.now();
    this.count += 1;
    const s = seen.slices[1];
    const plan = new Plan().sleep(s, 2, `${this.count}: ${s.spectrum("fisher").length} ${s.spectrum("plain").length}`);
    plan.requests = ["spectrum:plain"];
    return plan;
  }
  snapshot() {
    return new Uint8Array([this.count]);
  }
  restore(state) {
    if (state.length !== 1) throw new Error("no state of this policy");
    this.count = state[0];
  }
}
"#;

#[test]
fn state_requests_and_errors_pass_through() {
    let languages: Vec<Lang> = languages().into_iter().filter(|l| *l != Lang::Rust).collect();
    each(&languages, |lang| {
        let dir = tempfile::tempdir().unwrap();
        let what = Scaffold { name: "keeper".into(), kind: Kind::Policy, lang, sdk: None };
        let made = make(&what, dir.path()).unwrap();
        let source = match lang {
            Lang::C => KEEPER_C,
            Lang::Python => KEEPER_PYTHON,
            _ => KEEPER_JAVASCRIPT,
        };
        std::fs::write(dir.path().join(made.source), source).unwrap();
        let mut keeper = policy(&built(dir.path(), &format!("keeper-{}.wasm", lang.to_string().to_lowercase())));
        keeper.configure(&json!({})).unwrap();
        let (run, slices, mut observation) = seen(vec![slice(0, 8, 8), slice(1, 8, 8)], 0.5, 4);
        keeper.start(&run, &slices).unwrap();
        let decide = |policy: &mut Box<dyn Policy>, observation: &Observation| {
            let plan = policy.decide(observation).unwrap_or_else(|e| panic!("{lang}: {e}"));
            assert_eq!(plan.actions[0].change, Change::SleepN(2), "{lang}");
            plan.actions[0].reason.clone()
        };
        assert_eq!(decide(&mut keeper, &observation), "1: 4 0", "{lang}");

        // The statistic that was asked for comes behind the needs; a resumed policy knows that too.
        observation.series.push(Series { slice: 1, need: 1, offset: 2, len: 3 });
        let state = keeper.snapshot().unwrap();
        keeper.start(&run, &slices).unwrap();
        keeper.restore(&state).unwrap();
        assert_eq!(decide(&mut keeper, &observation), "2: 4 3", "{lang}");

        for (step, class, words) in
            [(8, FaultClass::Refused, "xüüü"), (9, FaultClass::Refused, "boom"), (10, FaultClass::Trap, "")]
        {
            observation.step = step;
            let fault = keeper.decide(&observation).unwrap_err();
            assert_eq!(fault.class, class, "{lang}, step {step}: {fault}");
            assert!(fault.message.contains(words), "{lang}: {fault}");
            observation.step = 2;
            // The instance goes on, or another one from the last state.
            decide(&mut keeper, &observation);
        }
    });
}
