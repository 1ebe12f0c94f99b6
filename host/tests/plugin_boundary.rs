//! Covers: the plugin boundary with real guests, built from this repository.
//!
//! - the reference plugins load, answer, are cached;
//! - every way a guest can misbehave ends in a fault of the right class, in time, and the next call
//!   works;
//! - files that are no plugins, or plugins of another kind or version, are refused in one sentence.
#![allow(clippy::unwrap_used, reason = "tests")]

use plastic_host::plugin::contract::*;
use plastic_host::plugin::{Fault, FaultClass, Limits, Measure, Policy, build, load_evaluator, load_policy};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A plugin of this repository, built once a test run.
fn plugin(name: &str) -> &'static Path {
    static BUILT: OnceLock<Vec<(&str, PathBuf)>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let out = root.join("target/test-plugins");
        std::fs::create_dir_all(&out).unwrap();
        let crates = [
            "plugins/energy",
            "plugins/perplexity",
            "tests/hostile/policy",
            "tests/hostile/evaluator",
            "examples/top-heavy",
        ];
        let one = |dir: &'static str| {
            let file = out.join(format!("{}.wasm", dir.replace('/', "-")));
            build::build(&root.join(dir), Some(&file)).unwrap();
            (dir, file)
        };
        crates.into_iter().map(one).collect()
    });
    &built.iter().find(|(dir, _)| dir.ends_with(name)).unwrap().1
}

fn energy() -> &'static Path {
    plugin("energy")
}

/// Slices of one size, with spectra that fall like 1/k.
fn model(slices: u32, rank: u32) -> (Run, Vec<Slice>, Observation) {
    let dense = u64::from(rank) * u64::from(rank);
    let slice = |i| Slice {
        name: format!("model.layers.{i}.self_attn.q_proj"),
        layer: i,
        kind: "q_proj".into(),
        group: i,
        rows: rank,
        cols: rank,
        max_rank: rank,
        dense_parameters: dense,
        component_parameters: 2 * u64::from(rank),
        attributes: vec![],
    };
    let state = SliceState {
        awake: rank,
        dense: true,
        dense_allowed: true,
        frozen: false,
        dwell: 0,
        parameters: dense,
        bytes: 4 * dense,
        parked_bytes: 0,
    };
    let total = dense * u64::from(slices);
    let run = Run {
        phase: "compress".into(),
        seed: 1,
        steps: 4,
        parameters: total,
        budget: total / 2,
        attributes: vec![Attribute { name: "base".into(), value: Value::Text("a model".into()) }],
    };
    let value = |i: u32, k: u32| (1.0 + (i % 7) as f32) / (1.0 + k as f32);
    let observation = Observation {
        step: 1,
        awake: total,
        slices: vec![state; slices as usize],
        series: (0..slices).map(|i| Series { slice: i, need: 0, offset: i * rank, len: rank }).collect(),
        values: (0..slices).flat_map(|i| (0..rank).map(move |k| value(i, k))).collect(),
        asleep: vec![],
        metrics: vec![],
        last: None,
        proposed: None,
        attributes: vec![],
    };
    (run, (0..slices).map(slice).collect(), observation)
}

/// Limits under which an attack ends soon.
fn tight() -> Limits {
    Limits { memory_bytes: 64 << 20, call_time: Duration::from_millis(300), ..Limits::default() }
}

/// The hostile policy, configured and started on a small model.
fn hostile(options: serde_json::Value, limits: &Limits) -> (Box<dyn Policy>, Observation) {
    let (run, slices, observation) = model(3, 8);
    let mut policy = load_policy(plugin("hostile/policy"), limits, None).unwrap();
    policy.configure(&options).unwrap();
    policy.start(&run, &slices).unwrap();
    (policy, observation)
}

/// Attacks at step 2 of 3 and checks that the steps before and after are good, and that the policy
/// goes on from the state of the last good step.
fn attack(attack: &str, class: FaultClass, words: &[&str]) {
    let (mut policy, mut seen) = hostile(json!({"attack": attack, "step": 2}), &tight());
    assert_eq!(policy.decide(&seen).unwrap().actions[2].reason, "decision 0", "{attack}");
    seen.step = 2;
    let started = Instant::now();
    let fault = policy.decide(&seen).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5), "{attack}: {:?}", started.elapsed());
    check(&fault, class, words);
    assert_eq!(fault.plugin, "hostile-policy");
    seen.step = 3;
    let decided = if class == FaultClass::Answer { "decision 2" } else { "decision 1" };
    assert_eq!(policy.decide(&seen).unwrap().actions[0].reason, decided, "{attack}");
}

#[track_caller]
fn check(fault: &Fault, class: FaultClass, words: &[&str]) {
    assert_eq!(fault.class, class, "{fault}");
    for word in words {
        assert!(fault.message.contains(word), "`{word}` is not in: {fault}");
    }
}

#[test]
fn the_example_gives_late_layers_more() {
    let (run, slices, observation) = model(4, 64);
    let mut policy = load_policy(plugin("top-heavy"), &Limits::default(), None).unwrap();
    assert_eq!(
        (policy.info().name.as_str(), policy.info().needs.as_slice()),
        ("top-heavy", &["spectrum:fisher".to_owned()][..])
    );
    policy.configure(&json!({})).unwrap();
    policy.start(&run, &slices).unwrap();
    let plan = policy.decide(&observation).unwrap();
    let ranks: Vec<u32> =
        plan.actions.iter().map(|a| if let Change::SetRank(r) = a.change { r } else { panic!("{a:?}") }).collect();
    // Weights 1, 4/3, 5/3, 2 share 8192 parameters, at 128 a component.
    assert_eq!(ranks, [10, 14, 17, 21]);
}

#[test]
fn energy_decides_on_a_model() {
    let (run, slices, observation) = model(10, 64);
    let mut policy = load_policy(energy(), &Limits::default(), None).unwrap();
    assert_eq!((policy.info().name.as_str(), policy.origin().api.as_str()), ("energy", "1.0.0"));
    assert_eq!(policy.origin().sha256.len(), 64);
    policy.configure(&json!({"metric": "plain", "ramp": false})).unwrap();
    assert_eq!(policy.info().needs, ["spectrum:plain"]);
    policy.start(&run, &slices).unwrap();
    let plan = policy.decide(&observation).unwrap();
    let factored: u64 =
        plan.actions.iter().map(|a| if let Change::SetRank(r) = a.change { 128 * u64::from(r) } else { 0 }).sum();
    let dense = (slices.len() - plan.actions.len()) as u64 * slices[0].dense_parameters;
    let awake = factored + dense;
    assert!(awake <= run.budget && awake > run.budget - 10 * 128, "{awake} of {}", run.budget);
    assert!(plan.actions[0].reason.contains("energy in"), "{}", plan.actions[0].reason);
    assert_eq!(plan, policy_again(&run, &slices, &observation), "the same input gives the same plan");
    let state = policy.snapshot().unwrap();
    policy.restore(&state).unwrap();
    let fault = policy.restore(b"not a snapshot").unwrap_err();
    check(&fault, FaultClass::Refused, &["`restore`", "the snapshot is not one of this"]);
    policy.decide(&observation).unwrap();
}

fn policy_again(run: &Run, slices: &[Slice], observation: &Observation) -> Plan {
    let mut policy = load_policy(energy(), &Limits::default(), None).unwrap();
    policy.configure(&json!({"metric": "plain", "ramp": false})).unwrap();
    policy.start(run, slices).unwrap();
    policy.decide(observation).unwrap()
}

#[test]
fn wrong_options_are_refused_by_name() {
    let mut policy = load_policy(energy(), &Limits::default(), None).unwrap();
    let fault = policy.configure(&json!({"energy": 1.5})).unwrap_err();
    check(&fault, FaultClass::Refused, &["option energy is 1.5, expected 0 to 1"]);
    let fault = policy.configure(&json!({"metrics": "plain"})).unwrap_err();
    check(&fault, FaultClass::Refused, &["energy has no option `metrics`; it takes metric"]);
    policy.configure(&json!({"metric": "input"})).unwrap();
    assert_eq!(policy.info().needs, ["spectrum:input"]);
}

#[test]
fn infinite_loop_is_ended() {
    attack("loop", FaultClass::Timeout, &["`decide` ran longer than 300ms", "call_time"]);
}

#[test]
fn memory_is_capped() {
    attack("memory", FaultClass::Memory, &["of memory, the limit (memory_bytes) is 64 MiB"]);
    attack("huge", FaultClass::Memory, &["wanted 19", "the limit (memory_bytes) is 64 MiB"]);
}

#[test]
fn recursion_is_ended() {
    attack("dive", FaultClass::Memory, &["more than 512 KiB of stack"]);
    attack("recurse", FaultClass::Trap, &["out of bounds"]);
}

#[test]
fn a_panic_reaches_the_operator() {
    attack("panic", FaultClass::Trap, &["panicked at", "lib.rs", "slice 3 looked at me funny"]);
}

#[test]
fn a_trap_without_a_word_is_named() {
    attack("abort", FaultClass::Trap, &["unreachable"]);
}

#[test]
fn an_error_is_passed_on_and_costs_nothing() {
    let (mut policy, mut seen) = hostile(json!({"attack": "refuse", "step": 1}), &tight());
    check(&policy.decide(&seen).unwrap_err(), FaultClass::Refused, &["`decide`: no, thank you"]);
    seen.step = 2;
    assert_eq!(policy.decide(&seen).unwrap().actions[0].reason, "decision 0");
}

#[test]
fn nonsense_answers_are_named() {
    attack("unknown-slice", FaultClass::Answer, &["action 3 is on slice 123456, there are 3"]);
    attack("nan", FaultClass::Answer, &["predicted rise of the loss is NaN"]);
    attack("infinite", FaultClass::Answer, &["threshold's level is inf"]);
    attack("long-reason", FaultClass::Answer, &["the reason of action 3 has 1048576 bytes", "text_bytes"]);
    attack("bad-request", FaultClass::Answer, &["requests", "is no name"]);
}

#[test]
fn too_much_of_an_answer_is_not_copied() {
    let (mut policy, mut seen) = hostile(json!({"attack": "million", "step": 1}), &Limits::default());
    check(
        &policy.decide(&seen).unwrap_err(),
        FaultClass::Memory,
        &["handed the host more than 16 MiB", "transfer_bytes"],
    );
    seen.step = 2;
    policy.decide(&seen).unwrap();
    let (mut policy, seen) = hostile(json!({"attack": "log-huge"}), &Limits::default());
    check(
        &policy.decide(&seen).unwrap_err(),
        FaultClass::Memory,
        &["handed the host more than 16 MiB", "transfer_bytes"],
    );
    let flood = |memory_bytes| Limits { memory_bytes, call_time: Duration::from_secs(10), ..Limits::default() };
    let (mut policy, seen) = hostile(json!({"attack": "flood"}), &flood(1 << 30));
    check(&policy.decide(&seen).unwrap_err(), FaultClass::Memory, &["transfer_bytes"]);
    let roomy = Limits { transfer_bytes: 256 << 20, ..flood(1 << 30) };
    let (mut policy, seen) = hostile(json!({"attack": "million"}), &roomy);
    check(&policy.decide(&seen).unwrap_err(), FaultClass::Answer, &["1000003 actions", "plan_actions"]);
}

#[test]
fn attacks_in_other_calls_are_contained() {
    let (run, slices, seen) = model(3, 8);
    for (at, class, attack) in [
        ("configure", FaultClass::Timeout, "loop"),
        ("configure", FaultClass::Trap, "panic"),
        ("configure", FaultClass::Refused, "refuse"),
        ("start", FaultClass::Timeout, "loop"),
        ("start", FaultClass::Trap, "panic"),
        ("start", FaultClass::Refused, "refuse"),
    ] {
        let mut policy = load_policy(plugin("hostile/policy"), &tight(), None).unwrap();
        let options = json!({"attack": attack, "at": at});
        let result = policy.configure(&options).and_then(|()| policy.start(&run, &slices));
        check(&result.unwrap_err(), class, &[&format!("`{at}`")]);
        // Told to be good, it is: nothing of the bad instance is left.
        policy.configure(&json!({})).unwrap();
        policy.start(&run, &slices).unwrap();
        policy.decide(&seen).unwrap();
    }
    // A policy that cannot say its state still decides.
    for options in [json!({"attack": "panic", "at": "snapshot"}), json!({"attack": "big-snapshot"})] {
        let limits = Limits { call_time: Duration::from_secs(5), ..Limits::default() };
        let (mut policy, seen) = hostile(options, &limits);
        policy.decide(&seen).unwrap();
        policy.decide(&seen).unwrap();
        assert!(policy.snapshot().is_err());
    }
    // One that cannot take its state back cannot go on; it says so every time.
    let (mut policy, seen) = hostile(json!({"attack": "panic", "at": "restore"}), &tight());
    policy.decide(&seen).unwrap();
    check(&policy.restore(&[0; 4]).unwrap_err(), FaultClass::Trap, &["`restore`", "panicked"]);
    check(&policy.decide(&seen).unwrap_err(), FaultClass::Trap, &["`restore`", "panicked"]);
}

#[test]
fn cost_is_the_guests_own_time() {
    let (mut policy, seen) = hostile(json!({}), &Limits::default());
    policy.decide(&seen).unwrap();
    let wall = policy.last_cost().wall;
    assert!(wall > Duration::ZERO && wall < Duration::from_millis(200), "{wall:?}");
}

/// Collects what reaches the log.
mod logged {
    use super::*;
    use std::io::Write;

    static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

    struct Sink;

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            LINES.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Runs `f` on this thread with a log of its own and answers the log.
    pub fn by(f: impl FnOnce()) -> String {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
        LINES.lock().unwrap().clear();
        let log = tracing_subscriber::fmt().with_writer(|| Sink).with_ansi(false).without_time().finish();
        tracing::subscriber::with_default(log, f);
        String::from_utf8(std::mem::take(&mut LINES.lock().unwrap())).unwrap()
    }
}

#[test]
fn log_lines_are_limited() {
    let log = logged::by(|| {
        let (mut policy, seen) = hostile(json!({"attack": "log-long"}), &Limits::default());
        let started = Instant::now();
        policy.decide(&seen).unwrap();
        assert!(started.elapsed() < Duration::from_secs(10));
    });
    assert!(log.len() < 200_000, "{} bytes", log.len());
    assert!(log.contains("99 more log lines were dropped"), "{}", &log[log.len().saturating_sub(300)..]);

    let log = logged::by(|| {
        let (mut policy, seen) = hostile(json!({"attack": "log-many"}), &Limits::default());
        policy.decide(&seen).unwrap();
        policy.decide(&seen).unwrap();
    });
    assert_eq!(log.lines().filter(|l| l.contains("line ")).count(), 200, "100 lines a call");
    assert_eq!(log.matches("99900 more log lines were dropped").count(), 2);
    assert!(log.contains("plugin=hostile-policy"), "{}", &log[..300]);

    let log = logged::by(|| {
        let (mut policy, seen) = hostile(json!({"attack": "log-escape"}), &Limits::default());
        policy.decide(&seen).unwrap();
    });
    assert!(log.contains("cleared your screen") && !log.contains('\x1b'), "{log}");
}

/// A host with one window of two scores; `delay` is the time a measurement takes.
struct Lab {
    delay: Duration,
    asked: Vec<String>,
}

impl Measure for Lab {
    fn divergence(&mut self, _: &str, _: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        Ok(indices.iter().map(|_| vec![0.25, 0.75]).collect())
    }
    fn examples(&self) -> u32 {
        1
    }
    fn example(&self, _: u32) -> Result<Example, String> {
        Ok(Example { prompt: "2 + 2 =".into(), answer: "4".into() })
    }
    fn timing(&mut self, _: &str, _: u32, _: u32) -> Result<Vec<Metric>, String> {
        Ok(vec![])
    }
    fn windows(&self) -> u32 {
        8
    }
    fn window(&self, _: u32) -> Result<Vec<u32>, String> {
        Ok(vec![1, 2, 3])
    }
    fn score(&mut self, _: &str, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        Ok(vec![vec![-1.0]; sequences.len()])
    }
    fn score_windows(&mut self, subject: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        std::thread::sleep(self.delay);
        self.asked.push(format!("{subject} {indices:?}"));
        let loss = if subject == "base" { 3.0 } else { 3.05 };
        Ok(indices.iter().map(|i| vec![-loss - 0.1 * *i as f32; 64]).collect())
    }
    fn generate(&mut self, _: &str, prompt: &str, _: u32) -> Result<String, String> {
        Ok(prompt.to_owned())
    }
    fn tokenize(&self, _: &str) -> Result<Vec<u32>, String> {
        Ok(vec![])
    }
    fn detokenize(&self, _: &[u32]) -> Result<String, String> {
        Ok(String::new())
    }
    fn counters(&mut self, _: &str) -> Result<Vec<Metric>, String> {
        Ok(vec![])
    }
}

fn lab() -> Lab {
    Lab { delay: Duration::ZERO, asked: vec![] }
}

fn task(step: u32) -> Task {
    Task { step, seed: 1, attributes: vec![] }
}

#[test]
fn perplexity_judges() {
    let mut evaluator = load_evaluator(plugin("perplexity"), &Limits::default(), None).unwrap();
    let mut lab = lab();
    evaluator.configure(&json!({"max_loss_increase": 0.06})).unwrap();
    let verdict = evaluator.evaluate(&task(1), &mut lab).unwrap();
    assert_eq!(verdict.decision, Decision::Accept, "{}", verdict.reason);
    let value = |name: &str| verdict.metrics.iter().find(|m| m.name == name).unwrap().value;
    assert!((value("loss-increase") - 0.05).abs() < 1e-6);
    assert!((value("perplexity") - value("loss").exp()).abs() < 1e-9);
    assert_eq!(value("tokens-scored"), 512.0);
    evaluator.configure(&json!({"max_loss_increase": 0.04})).unwrap();
    assert_eq!(evaluator.evaluate(&task(2), &mut lab).unwrap().decision, Decision::Reject);
}

#[test]
fn the_hosts_time_is_not_the_evaluators() {
    let limits = Limits { call_time: Duration::from_millis(200), ..Limits::default() };
    let mut evaluator = load_evaluator(plugin("perplexity"), &limits, None).unwrap();
    let mut slow = Lab { delay: Duration::from_millis(400), ..lab() };
    let started = Instant::now();
    evaluator.evaluate(&task(1), &mut slow).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(800), "two measurements");
    assert!(evaluator.last_cost().wall < Duration::from_millis(200), "{:?}", evaluator.last_cost());
}

#[test]
fn hostile_evaluators_are_contained() {
    let limits = Limits { call_time: Duration::from_millis(300), ..Limits::default() };
    for (attack, class, words) in [
        ("loop", FaultClass::Timeout, "`evaluate` ran longer than 300ms"),
        ("panic", FaultClass::Trap, "the numbers are too good"),
        ("unknown-window", FaultClass::Refused, "there is no window 99; there are 8"),
        ("nan", FaultClass::Answer, "metric `loss` has the value NaN"),
        ("metrics", FaultClass::Answer, "10001 metrics"),
        ("flood", FaultClass::Memory, "transfer_bytes"),
    ] {
        let mut evaluator = load_evaluator(plugin("hostile/evaluator"), &limits, None).unwrap();
        evaluator.configure(&json!({"attack": attack})).unwrap();
        let started = Instant::now();
        let fault = evaluator.evaluate(&task(1), &mut lab()).unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(5), "{attack}: {:?}", started.elapsed());
        check(&fault, class, &[words]);
        evaluator.configure(&json!({})).unwrap();
        let verdict = evaluator.evaluate(&task(2), &mut lab()).unwrap();
        assert_eq!((verdict.decision, verdict.reason.as_str()), (Decision::Accept, "step 2, 64 scores"));
        assert_eq!(verdict.metrics[0].value, 8.0);
    }
}

#[test]
fn a_thousand_questions_are_answered() {
    let mut evaluator = load_evaluator(plugin("hostile/evaluator"), &Limits::default(), None).unwrap();
    evaluator.configure(&json!({"attack": "ask"})).unwrap();
    evaluator.evaluate(&task(1), &mut lab()).unwrap();
}

/// A file with these bytes.
fn file(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn refused(path: &Path) -> Fault {
    let fault = load_policy(path, &Limits::default(), None).err().unwrap();
    assert_eq!(fault.plugin, path.display().to_string());
    assert!(!fault.message.contains('\n'), "one sentence: {fault}");
    fault
}

#[test]
fn files_that_are_no_plugins_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    check(&refused(&dir.path().join("missing.wasm")), FaultClass::Load, &["No such file"]);
    check(&refused(dir.path()), FaultClass::Load, &["is a directory"]);
    check(&refused(&file(&dir, "empty", b"")), FaultClass::Load, &["is empty"]);
    check(&refused(&file(&dir, "text", b"fn main() {}\n")), FaultClass::Load, &["is not WebAssembly", "plugin build"]);
    check(&refused(&file(&dir, "elf", b"\x7fELF\x02\x01\x01")), FaultClass::Load, &["is truncated or damaged"]);
    let module = wat::parse_str("(module (func (export \"f\")))").unwrap();
    check(&refused(&file(&dir, "module", &module)), FaultClass::Load, &["is a WebAssembly module but no plugin"]);
    let component = wat::parse_str("(component)").unwrap();
    check(
        &refused(&file(&dir, "component", &component)),
        FaultClass::Load,
        &["is a WebAssembly component but no plugin"],
    );
    let big = Limits { file_bytes: 10, ..Limits::default() };
    let fault = load_policy(energy(), &big, None).err().unwrap();
    check(&fault, FaultClass::Load, &["is larger than 10 bytes"]);
}

#[test]
fn damaged_plugins_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(energy()).unwrap();
    for cut in [9, 100, 1000, whole.len() / 2, whole.len() - 1] {
        let fault = refused(&file(&dir, "cut.wasm", &whole[..cut]));
        check(&fault, FaultClass::Load, &["truncated or damaged", "build or fetch it again"]);
    }
    // Flipped bits: whatever happens, it is a fault or a plugin, never a panic.
    let mut random = 1u64;
    for _ in 0..30 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mut bytes = whole.clone();
        let place = (random >> 20) as usize % bytes.len();
        bytes[place] ^= 1 << (random >> 60 & 7);
        let path = file(&dir, "flipped.wasm", &bytes);
        if let Ok(mut policy) = load_policy(&path, &tight(), None) {
            let (run, slices, seen) = model(3, 8);
            let _ = policy.configure(&json!({})).and_then(|()| policy.start(&run, &slices));
            let _ = policy.decide(&seen);
        }
    }
}

#[test]
fn a_policy_is_no_evaluator_and_the_reverse() {
    let fault = refused(plugin("perplexity"));
    check(&fault, FaultClass::Load, &["is an evaluator where a policy is expected; name it with --evaluator"]);
    let fault = load_evaluator(energy(), &Limits::default(), None).err().unwrap();
    check(&fault, FaultClass::Load, &["is a policy where an evaluator is expected; name it with --policy"]);
}

#[test]
fn the_system_interface_is_refused_before_anything_is_compiled() {
    let dir = tempfile::tempdir().unwrap();
    let wasi = r#"(component
        (import "wasi:clocks/wall-clock@0.2.0" (instance (export "now" (func (result u64)))))
        (instance (export "plastic:rank/policy@1.0.0")))"#;
    let fault = refused(&file(&dir, "wasi.wasm", &wat::parse_str(wasi).unwrap()));
    let words = ["imports `wasi:clocks/wall-clock@0.2.0`", "--grant clock", "wasm32-unknown-unknown"];
    check(&fault, FaultClass::Load, &words);
    let net = r#"(component
        (import "wasi:sockets/tcp@0.2.0" (instance (export "connect" (func))))
        (instance (export "plastic:rank/policy@1.0.0")))"#;
    let fault = refused(&file(&dir, "net.wasm", &wat::parse_str(net).unwrap()));
    check(&fault, FaultClass::Load, &["imports `wasi:sockets/tcp@0.2.0`", "no plugin gets the network"]);
    let core = r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (func (export "plastic:rank/policy@1.0.0#decide")))"#;
    let fault = refused(&file(&dir, "wasi-core.wasm", &wat::parse_str(core).unwrap()));
    check(&fault, FaultClass::Load, &["imports `wasi_snapshot_preview1`", "wasm32-unknown-unknown"]);
    let other = r#"(component (import "acme:gpu/matmul" (func)) (instance (export "plastic:rank/policy@1.0.0")))"#;
    let fault = refused(&file(&dir, "acme.wasm", &wat::parse_str(other).unwrap()));
    check(&fault, FaultClass::Load, &["imports `acme:gpu/matmul`", "nothing but plastic:rank"]);
}

/// The plugin as if built for another version of the contract: the names carry it.
fn built_for(plugin: &Path, version: &str) -> Vec<u8> {
    let mut bytes = std::fs::read(plugin).unwrap();
    let interfaces = ["policy", "host", "types", "judge", "measure"];
    for interface in interfaces {
        let (old, new) = (format!("plastic:rank/{interface}@1.0.0"), format!("plastic:rank/{interface}@{version}"));
        assert_eq!(old.len(), new.len());
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(old.len()).position(|w| w == old.as_bytes()) {
            bytes[at + found..at + found + new.len()].copy_from_slice(new.as_bytes());
            at += found + new.len();
        }
    }
    bytes
}

#[test]
fn minor_versions_load_and_major_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (run, slices, seen) = model(3, 8);
    for version in ["1.0.7", "1.1.0", "1.9.3"] {
        let path = file(&dir, "minor.wasm", &built_for(energy(), version));
        let mut policy = load_policy(&path, &Limits::default(), None).unwrap();
        assert_eq!(policy.origin().api, version);
        policy.start(&run, &slices).unwrap();
        policy.decide(&seen).unwrap();
        let path = file(&dir, "minor-judge.wasm", &built_for(plugin("perplexity"), version));
        let mut evaluator = load_evaluator(&path, &Limits::default(), None).unwrap();
        evaluator.evaluate(&task(1), &mut lab()).unwrap();
    }
    let fault = refused(&file(&dir, "major.wasm", &built_for(energy(), "2.0.0")));
    check(
        &fault,
        FaultClass::Version,
        &["was built for plastic:rank 2.0.0, this host speaks 1.x", "update plastic-host"],
    );
    let fault = refused(&file(&dir, "old.wasm", &built_for(energy(), "0.9.0")));
    check(&fault, FaultClass::Version, &["0.9.0", "build the plugin again"]);
}

#[test]
fn another_contract_under_the_same_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = r#"(component (instance (export "plastic:rank/policy@1.3.0")))"#;
    let fault = refused(&file(&dir, "missing.wasm", &wat::parse_str(missing).unwrap()));
    check(&fault, FaultClass::Version, &["says it was built for plastic:rank 1.3.0, which does not fit 1.0.0"]);
    let newer = r#"(component
        (import "plastic:rank/host@1.4.0" (instance (export "now" (func (result u64)))))
        (instance (export "plastic:rank/policy@1.4.0")))"#;
    let fault = refused(&file(&dir, "newer.wasm", &wat::parse_str(newer).unwrap()));
    check(&fault, FaultClass::Version, &["1.4.0", "now", "update plastic-host"]);
}

#[test]
fn a_plain_cargo_module_loads_too() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    plugin("energy");
    let module = root.join("target/wasm32-unknown-unknown/plugin/plastic_energy.wasm");
    let (run, slices, seen) = model(3, 8);
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let mut policy = load_policy(&module, &Limits::default(), Some(dir.path())).unwrap();
        policy.start(&run, &slices).unwrap();
        policy.decide(&seen).unwrap();
    }
}

#[test]
fn limits_out_of_range_are_refused() {
    let limits = Limits { stack_bytes: 1 << 30, ..Limits::default() };
    let fault = load_policy(energy(), &limits, None).err().unwrap();
    check(&fault, FaultClass::Load, &["a stack of 1024 MiB", "at most 1 MiB"]);
    let limits = Limits { memory_bytes: 1 << 16, ..Limits::default() };
    let fault = load_policy(energy(), &limits, None).err().unwrap();
    check(&fault, FaultClass::Memory, &["`instantiate` wanted", "memory_bytes"]);
}

mod cache {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn load(cache: &Path) -> Duration {
        let started = Instant::now();
        let mut policy = load_policy(energy(), &Limits::default(), Some(cache)).unwrap();
        let took = started.elapsed();
        let (run, slices, seen) = model(3, 8);
        policy.start(&run, &slices).unwrap();
        policy.decide(&seen).unwrap();
        took
    }

    fn entry(cache: &Path) -> PathBuf {
        let files = fs::read_dir(cache.join("plugins")).unwrap().map(|f| f.unwrap().path());
        let mut code = files.filter(|f| f.extension().is_some_and(|e| e == "cwasm"));
        let found = code.next().unwrap();
        assert!(code.next().is_none(), "one entry");
        found
    }

    #[test]
    fn a_warm_start_does_not_compile() {
        let cache = tempfile::tempdir().unwrap();
        load(cache.path());
        let dir = cache.path().join("plugins");
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        let written = fs::metadata(entry(cache.path())).unwrap().modified().unwrap();
        load(cache.path());
        assert_eq!(fs::metadata(entry(cache.path())).unwrap().modified().unwrap(), written, "not written again");
        // Left-overs of writing would be files without the two known endings.
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    }

    #[test]
    fn a_damaged_entry_is_compiled_again() {
        let cache = tempfile::tempdir().unwrap();
        load(cache.path());
        let good = fs::read(entry(cache.path())).unwrap();
        let digest = entry(cache.path()).with_extension("cwasm.blake3");
        let damages: [&dyn Fn(); 4] = [
            &|| fs::write(entry(cache.path()), &good[..good.len() / 2]).unwrap(),
            &|| {
                let mut bad = good.clone();
                bad[good.len() / 2] ^= 1;
                fs::write(entry(cache.path()), bad).unwrap();
            },
            &|| fs::write(&digest, "0000").unwrap(),
            &|| fs::remove_file(&digest).unwrap(),
        ];
        for damage in damages {
            damage();
            load(cache.path());
            assert_eq!(fs::read(entry(cache.path())).unwrap().len(), good.len(), "the entry is good again");
            let recorded = fs::read_to_string(&digest).unwrap();
            let code = fs::read(entry(cache.path())).unwrap();
            assert_eq!(recorded, blake3::hash(&code).to_hex().as_str());
        }
    }

    #[test]
    fn an_entry_that_is_no_code_is_compiled_again() {
        let cache = tempfile::tempdir().unwrap();
        load(cache.path());
        let junk = b"not compiled code, but with the right digest";
        let digest = blake3::hash(junk).to_hex();
        fs::write(entry(cache.path()), junk).unwrap();
        fs::write(entry(cache.path()).with_extension("cwasm.blake3"), digest.as_bytes()).unwrap();
        load(cache.path());
        assert!(fs::metadata(entry(cache.path())).unwrap().len() > 10_000);
    }

    #[test]
    fn an_open_directory_is_not_trusted() {
        let cache = tempfile::tempdir().unwrap();
        load(cache.path());
        let dir = cache.path().join("plugins");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let before = fs::metadata(entry(cache.path())).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        load(cache.path());
        assert!(fs::metadata(entry(cache.path())).unwrap().modified().unwrap() > before, "compiled again");
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700, "and closed");
    }

    #[test]
    fn a_place_that_cannot_be_written_costs_only_time() {
        let dir = tempfile::tempdir().unwrap();
        let in_the_way = file(&dir, "cache", b"a file, not a directory");
        load(&in_the_way);
        load(Path::new("/proc/nowhere"));
    }

    #[test]
    fn other_limits_get_other_code() {
        let cache = tempfile::tempdir().unwrap();
        load(cache.path());
        let limits = Limits { stack_bytes: 256 << 10, memory_bytes: 128 << 20, ..Limits::default() };
        load_policy(energy(), &limits, Some(cache.path())).unwrap();
        load(cache.path());
    }
}

/// Run by hand: `cargo test --release -p plastic-host --test plugin_boundary -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn how_long_it_takes() {
    let best = |n: u32, f: &mut dyn FnMut()| {
        let one = |_| {
            let started = Instant::now();
            f();
            started.elapsed()
        };
        let mut all: Vec<Duration> = (0..n).map(one).collect();
        all.sort();
        (all[0], all[all.len() / 2])
    };
    let cache = tempfile::tempdir().unwrap();
    for name in ["hostile/policy", "energy"] {
        let load = |cache: Option<&Path>| load_policy(plugin(name), &Limits::default(), cache).unwrap();
        println!("{name}: cold load {:?}", best(5, &mut || drop(load(None))));
        load(Some(cache.path()));
        println!("{name}: warm load {:?}", best(50, &mut || drop(load(Some(cache.path())))));
        let mut policy = load(Some(cache.path()));
        policy.configure(&json!({})).unwrap();
        for (slices, rank, times) in [(1, 576, 2000), (210, 576, 300), (10_000, 64, 50)] {
            let (run, list, seen) = model(slices, rank);
            policy.start(&run, &list).unwrap();
            let (least, middle) = best(times, &mut || drop(policy.decide(&seen).unwrap()));
            println!("{name}: decide {slices} × {rank}: {least:?} least, {middle:?} median");
        }
    }
}
