//! Covers: plugins as native libraries.
//!
//! - the header compiles as C99 and C++17 without a warning, and its layout is the host's;
//! - one source gives the same answers as a component, as a library, and as a library in a process of
//!   its own; a C library gives the plan of its Rust twin;
//! - libraries whose entry, table or answers are wrong are refused in one sentence;
//! - crashes, exits and endless loops in a process of its own are faults, and the next call works.
#![allow(clippy::unwrap_used, reason = "tests")]

use plastic_host::plugin::contract::*;
use plastic_host::plugin::native::{self, abi, isolate::Isolation};
use plastic_host::plugin::{
    Carrier, Evaluator, Fault, FaultClass, Limits, Loader, Measure, Policy, Rules, build, build_native, load_evaluator,
    load_policy,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn out() -> PathBuf {
    let out = root().join("target/test-plugins/native");
    std::fs::create_dir_all(&out).unwrap();
    out
}

/// Each carrier of a Rust plugin of this repository: component and library, built once a test run.
fn rust(name: &str) -> &'static (PathBuf, PathBuf) {
    static BUILT: OnceLock<Vec<(&str, (PathBuf, PathBuf))>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let one = |dir: &'static str| {
            let file = out().join(dir.replace('/', "-"));
            let (wasm, library) = (file.with_extension("wasm"), file.with_extension(build_native::EXTENSION));
            build::build(&root().join(dir), Some(&wasm)).unwrap();
            build_native::build_native(&root().join(dir), Some(&library)).unwrap();
            (dir, (wasm, library))
        };
        ["plugins/energy", "plugins/perplexity", "tests/hostile/policy", "examples/top-heavy"]
            .into_iter()
            .map(one)
            .collect()
    });
    &built.iter().find(|(dir, _)| dir.ends_with(name)).unwrap().1
}

/// Compiles a C source into a library.
fn c(source: &str, name: &str, defines: &[&str]) -> PathBuf {
    let library = out().join(format!("{name}.{}", build_native::EXTENSION));
    // Under a name of its own first: another test may be reading it.
    let fresh = out().join(format!("{name}-{}-{:?}.tmp", std::process::id(), std::thread::current().id()));
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fPIC", "-shared"]);
    cc.arg("-I").arg(root().join("plugin-api/include")).args(defines.iter().map(|d| format!("-D{d}")));
    if !defines.is_empty() {
        // A table without a function has a function without a table.
        cc.args(["-Wno-unused-function", "-Wno-unused-const-variable"]);
    }
    let status = cc.arg(root().join(source)).arg("-o").arg(&fresh).status().unwrap();
    assert!(status.success(), "{source} {defines:?}");
    std::fs::rename(&fresh, &library).unwrap();
    library
}

/// The hostile C policy, with macros that make its entry or table wrong.
fn hostile(name: &str, defines: &[&str]) -> PathBuf {
    c("tests/hostile/native/hostile.c", name, defines)
}

fn isolation() -> Isolation {
    Isolation::by(env!("CARGO_BIN_EXE_plastic-host"))
}

fn native_policy(path: &Path) -> Result<Box<dyn Policy>, Fault> {
    native::load_policy(path, &Limits::default(), None)
}

/// Slices of one size, with spectra that fall like 1/k, and facts of every kind.
fn model(slices: u32, rank: u32) -> (Run, Vec<Slice>, Observation) {
    let dense = u64::from(rank) * u64::from(rank);
    let facts = vec![
        Attribute { name: "base".into(), value: Value::Text("a model".into()) },
        Attribute { name: "metrics".into(), value: Value::Texts(vec!["loss".into(), "tokens".into()]) },
        Attribute { name: "nums".into(), value: Value::Nums(vec![0.5, 1.0]) },
        Attribute { name: "flag".into(), value: Value::Flag(true) },
    ];
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
        attributes: facts.clone(),
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
        attributes: facts.clone(),
    };
    let value = |i: u32, k: u32| (1.0 + (i % 7) as f32) / (1.0 + k as f32);
    let observation = Observation {
        step: 1,
        awake: total,
        slices: vec![state; slices as usize],
        series: (0..slices).map(|i| Series { slice: i, need: 0, offset: i * rank, len: rank }).collect(),
        values: (0..slices).flat_map(|i| (0..rank).map(move |k| value(i, k))).collect(),
        attributes: facts.clone(),
        ..Observation::default()
    };
    (run, (0..slices).map(slice).collect(), observation)
}

/// The observation after a plan was committed, or rejected.
fn after(mut seen: Observation, fate: &str) -> Observation {
    seen.step += 1;
    let metric = Metric {
        name: "loss-increase".into(),
        value: 0.01,
        unit: "nats".into(),
        higher_is_better: false,
        low: Some(0.0),
        high: None,
    };
    seen.metrics = vec![metric.clone()];
    seen.last = Some(Outcome {
        step: seen.step - 1,
        fate: fate.into(),
        reason: "for a test".into(),
        predicted: Some(0.02),
        measured: None,
        metrics: vec![metric],
    });
    seen.proposed = Some(Plan {
        actions: vec![Action { slice: 0, change: Change::Sleep(vec![1, 2]), reason: "before".into() }],
        requests: vec!["spectrum:plain".into()],
        stop: Some("perhaps".into()),
        ..Plan::default()
    });
    seen
}

#[track_caller]
fn check(fault: &Fault, class: FaultClass, words: &[&str]) {
    assert_eq!(fault.class, class, "{fault}");
    for word in words {
        assert!(fault.message.contains(word), "`{word}` is not in: {fault}");
    }
}

// --- the header -----------------------------------------------------------------------------------

/// What the header says, without comments and white space.
fn header_hash() -> String {
    let text = std::fs::read_to_string(root().join("plugin-api/include/plastic_plugin.h")).unwrap();
    let mut bare = String::new();
    let mut rest = text.as_str();
    while let Some((code, comment)) = rest.split_once("/*") {
        bare.push_str(code);
        rest = comment.split_once("*/").unwrap().1;
    }
    bare.push_str(rest);
    bare.retain(|c| !c.is_whitespace());
    Sha256::digest(bare).iter().fold(String::new(), |mut hex, b| {
        write!(hex, "{b:02x}").unwrap();
        hex
    })
}

#[test]
fn the_header_changes_only_on_purpose() {
    // Comments are free. Anything else: append, raise the minor version, say so in CHANGELOG.md, and
    // write the new hash here.
    assert_eq!((abi::MAJOR, abi::MINOR), (1, 0));
    assert_eq!(header_hash(), "3ed1154766b7025a905417ea17b92b27d49baafd51e268c05dea34bf8f949461");
}

#[test]
fn the_header_is_c_and_cpp_and_has_the_hosts_layout() {
    let mut source = String::from("#include \"plastic_plugin.h\"\n");
    for (name, size, fields) in abi::LAYOUT {
        writeln!(source, "PLASTIC_ASSERT({name}_size, sizeof({name}) == {size});").unwrap();
        for (field, offset) in *fields {
            writeln!(source, "PLASTIC_ASSERT({name}_{field}, offsetof({name}, {field}) == {offset});").unwrap();
        }
    }
    source.push_str("int main(void) { return 0; }\n");
    for (compiler, standard, extension) in [("cc", "-std=c99", "c"), ("c++", "-std=c++17", "cpp")] {
        let file = out().join(format!("layout.{extension}"));
        std::fs::write(&file, &source).unwrap();
        let mut compile = Command::new(compiler);
        compile.args([standard, "-Wall", "-Wextra", "-pedantic", "-Werror", "-c"]).arg(&file);
        compile.arg("-I").arg(root().join("plugin-api/include")).arg("-o").arg(file.with_extension("o"));
        assert!(compile.status().unwrap().success(), "{compiler}");
    }
}

// --- parity ---------------------------------------------------------------------------------------

/// The same three steps on every carrier: the same plans, snapshots and descriptions.
fn three_steps(mut policy: Box<dyn Policy>, options: serde_json::Value) -> (Info, Vec<Plan>, Vec<u8>, String) {
    let (run, slices, first) = model(5, 64);
    policy.configure(&options).unwrap();
    policy.start(&run, &slices).unwrap();
    let mut plans = vec![policy.decide(&first).unwrap()];
    let second = after(first, "rejected");
    plans.push(policy.decide(&second).unwrap());
    let snapshot = policy.snapshot().unwrap();
    plans.push(policy.decide(&after(second, "committed")).unwrap());
    policy.restore(&snapshot).unwrap();
    let report = policy.report().unwrap();
    (policy.info().clone(), plans, snapshot, report)
}

#[test]
fn one_source_decides_the_same_on_every_carrier() {
    let limits = Limits::default();
    for (name, options) in [("energy", json!({"min_rank": 3})), ("top-heavy", json!({}))] {
        let (wasm, library) = rust(name);
        let component = three_steps(load_policy(wasm, &limits, None).unwrap(), options.clone());
        assert!(component.1.iter().any(|p| !p.actions.is_empty()));
        let native = three_steps(native_policy(library).unwrap(), options.clone());
        assert_eq!(native, component, "{name}");
        let isolated = native::load_policy(library, &limits, Some(&isolation())).unwrap();
        assert_eq!(three_steps(isolated, options), component, "{name}, isolated");
    }
}

#[test]
fn a_c_policy_decides_as_its_rust_twin() {
    let (run, slices, seen) = model(6, 96);
    let plan = |mut policy: Box<dyn Policy>| {
        policy.configure(&json!({})).unwrap();
        policy.start(&run, &slices).unwrap();
        policy.decide(&seen).unwrap()
    };
    let twin = plan(load_policy(&rust("top-heavy").0, &Limits::default(), None).unwrap());
    let library = c("examples/top-heavy-native/top_heavy.c", "top_heavy", &[]);
    assert_eq!(plan(native_policy(&library).unwrap()), twin);
    let fault = native_policy(&library).unwrap().configure(&json!({"a": 1})).unwrap_err();
    assert_eq!(fault.to_string(), "top-heavy: refused: `configure`: top-heavy takes no options, `a` was given");
}

/// A host with scores that only depend on the question.
struct Lab {
    asked: Vec<String>,
    delay: Duration,
}

impl Measure for Lab {
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
        Ok(indices.iter().map(|i| (0..64).map(|t| -loss - 0.1 * *i as f32 - 0.01 * t as f32).collect()).collect())
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
}

#[test]
fn one_evaluator_judges_the_same_on_every_carrier() {
    let (wasm, library) = rust("perplexity");
    let limits = Limits { call_time: Duration::from_millis(300), ..Limits::default() };
    let judge = |mut evaluator: Box<dyn Evaluator>| {
        // Slower than the plugin may be: the host's time is not the plugin's.
        let mut lab = Lab { asked: vec![], delay: Duration::from_millis(200) };
        let mut verdicts = vec![];
        for most in [0.06, 0.04] {
            evaluator.configure(&json!({"max_loss_increase": most})).unwrap();
            let task = Task { step: 1, seed: 7, attributes: vec![] };
            verdicts.push(evaluator.evaluate(&task, &mut lab).unwrap());
            assert!(evaluator.last_cost().wall < Duration::from_millis(150), "{:?}", evaluator.last_cost());
        }
        (evaluator.info().clone(), verdicts, lab.asked)
    };
    let component = judge(load_evaluator(wasm, &limits, None).unwrap());
    assert_eq!(component.1[0].decision, Decision::Accept);
    assert_eq!(component.1[1].decision, Decision::Reject);
    assert_eq!(judge(native::load_evaluator(library, &limits, None).unwrap()), component);
    assert_eq!(judge(native::load_evaluator(library, &limits, Some(&isolation())).unwrap()), component);
}

// --- loading --------------------------------------------------------------------------------------

#[test]
fn the_rules_decide_about_libraries() {
    let library = hostile("rules", &[]);
    // The name says nothing about the carrier.
    let renamed = out().join("rules-renamed.wasm");
    std::fs::copy(&library, &renamed).unwrap();
    let fault = Loader::new(Rules::default(), None).policy(&renamed).err().unwrap();
    check(
        &fault,
        FaultClass::Load,
        &["is a native library, which runs with all your rights; load it with --allow-native if you trust it"],
    );
    let loader = Loader::new(Rules { allow_native: true, ..Rules::default() }, None);
    let policy = loader.policy(&renamed).unwrap();
    let bytes = std::fs::read(&library).unwrap();
    let sha256 = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!((policy.origin().carrier, &policy.origin().sha256), (Carrier::Native, &sha256));
    assert_eq!(policy.origin().api, "1.0.0");
    let fault = loader.evaluator(&renamed).err().unwrap();
    check(&fault, FaultClass::Load, &["is a policy where an evaluator is expected; name it with --policy"]);
    let origin: plastic_host::plugin::Origin =
        serde_json::from_value(json!({"path": "a.wasm", "sha256": "", "api": "1.0.0"})).unwrap();
    assert_eq!(origin.carrier, Carrier::Wasm, "what older journals hold");
}

#[test]
fn a_changed_library_is_loaded_again_under_its_name() {
    let library = out().join("changing.so");
    std::fs::copy(hostile("changing-one", &[]), &library).unwrap();
    let first = native_policy(&library).unwrap();
    std::fs::copy(c("examples/top-heavy-native/top_heavy.c", "changing-two", &[]), &library).unwrap();
    let second = native_policy(&library).unwrap();
    assert_eq!((first.info().name.as_str(), second.info().name.as_str()), ("hostile-native", "top-heavy"));
}

#[test]
fn what_is_wrong_with_an_entry_or_a_table_is_said() {
    use FaultClass::{Load, Refused, Version};
    let cases: &[(&str, &[&str], FaultClass, &[&str])] = &[
        ("no-entry", &["NO_ENTRY"], Load, &["is a native library but no plugin", "`plastic_plugin_entry`"]),
        ("magic", &["MAGIC=0x12345678"], Load, &["with the magic 0x12345678, expected 0x31434c50"]),
        ("major", &["MAJOR=2"], Version, &["was built for the C ABI 2.0, this host speaks 1.x: update plastic-host"]),
        ("old-major", &["MAJOR=0"], Version, &["was built for the C ABI 0.0", "build the plugin again"]),
        ("small-entry", &["ENTRY_SIZE=24"], Version, &["an entry with a struct_size of 24, expected at least 32"]),
        ("host-minor", &["HOST_MINOR=3"], Version, &["needs a host with the C ABI 1.3 or newer, this one has 1.0"]),
        ("kind", &["KIND=7"], Load, &["is a plugin of kind 7"]),
        ("other-kind", &["KIND=PLASTIC_EVALUATOR"], Load, &["is an evaluator where a policy is expected"]),
        ("no-get", &["GET=NULL"], Load, &["has no function `get`"]),
        ("null-table", &["TABLE=NULL"], Version, &["refuses a host with the C ABI 1.0"]),
        (
            "small-table",
            &["TABLE_SIZE=48"],
            Load,
            &["its table of a policy has a struct_size of 48, expected at least 88"],
        ),
        ("null-decide", &["DECIDE=NULL"], Load, &["its table of a policy has a null pointer for `decide`"]),
        ("create", &["CREATE_FAILS"], Refused, &["`create`: create says no"]),
    ];
    for (name, defines, class, words) in cases {
        let library = hostile(name, defines);
        let fault = native_policy(&library).err().unwrap();
        check(&fault, *class, words);
        assert_eq!(fault.plugin, library.display().to_string());
        let isolated = native::load_policy(&library, &Limits::default(), Some(&isolation())).err().unwrap();
        assert_eq!(isolated, fault, "isolated or not, the sentence is the same");
    }
    // What a newer minor version appends is not looked at.
    native_policy(&hostile("newer-table", &["TABLE_SIZE=sizeof(newer_policy)", "ENTRY_SIZE=64"])).unwrap();

    let damaged = out().join("damaged.so");
    let bytes = std::fs::read(hostile("whole", &[])).unwrap();
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    check(&native_policy(&damaged).err().unwrap(), Load, &["is truncated or damaged"]);
}

// --- answers --------------------------------------------------------------------------------------

/// The hostile policy at its second step, and what it says at its third.
fn attack(
    attack: &str,
    limits: &Limits,
    isolation: Option<&Isolation>,
) -> (Result<Plan, Fault>, Result<Plan, Fault>, Duration) {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| hostile("hostile", &[]));
    let (run, slices, mut seen) = model(3, 8);
    let mut policy = native::load_policy(library, limits, isolation).unwrap();
    policy.configure(&json!({"attack": attack})).unwrap();
    policy.start(&run, &slices).unwrap();
    assert_eq!(policy.decide(&seen).unwrap().actions[0].reason, "decision 0");
    seen.step = 2;
    let started = Instant::now();
    let second = policy.decide(&seen);
    let took = started.elapsed();
    seen.step = 3;
    (second, policy.decide(&seen), took)
}

#[test]
fn broken_answers_are_faults() {
    use FaultClass::{Answer, Memory, Refused, Version};
    let cases: &[(&str, FaultClass, &[&str])] = &[
        ("null-plan", Answer, &["`decide`: the plan is a null pointer"]),
        ("unaligned-plan", Answer, &["`decide`: the plan is not aligned"]),
        ("short-plan", Answer, &["the plan has a struct_size of 40, expected at least 88"]),
        ("null-actions", Answer, &["the list of actions is a null pointer with 5 elements"]),
        ("short-actions", Answer, &["the list of actions has a struct_size of 8, expected at least 48"]),
        ("uneven-actions", Answer, &["the list of actions: element 1 has the size 56, the first one 48"]),
        ("endless-actions", Memory, &["handed the host more than 16 MiB at once, the limit (transfer_bytes)"]),
        ("endless-text", Memory, &["more than 16 MiB"]),
        ("no-utf8", Answer, &["a reason is not UTF-8"]),
        ("no-change", Answer, &["there is no change 99"]),
        ("null-components", Answer, &["the list of components is a null pointer with 3 elements"]),
        ("unknown-slice", Answer, &["action 0 is on slice 1000, there are 3"]),
        ("bad-attribute", Answer, &["there is no kind of value 17"]),
        ("nan", Answer, &["the predicted rise of the loss is NaN"]),
        ("silent", Answer, &["`decide` succeeded without an answer; it must call `emit` once"]),
        ("twice", Answer, &["`decide` answered 2 times; it must call `emit` once"]),
        ("refuse", Refused, &["`decide`: decide says no"]),
        ("misfit", Version, &["`decide`: it does not understand this host"]),
        ("code", Answer, &["`decide` returned 77, which is no result code"]),
    ];
    for (name, class, words) in cases {
        let (second, third, _) = attack(name, &Limits::default(), None);
        check(&second.unwrap_err(), *class, words);
        assert_eq!(third.unwrap().actions[0].reason, "decision 1", "{name}");
    }
    let (newer, _, _) = attack("newer-actions", &Limits::default(), None);
    let slices: Vec<u32> = newer.unwrap().actions.iter().map(|a| a.slice).collect();
    assert_eq!(slices, [0, 1, 2], "wider elements are stepped by their own size");
}

#[test]
fn a_panic_is_an_answer() {
    let (run, slices, mut seen) = model(3, 8);
    for isolation in [None, Some(isolation())] {
        let mut policy =
            native::load_policy(&rust("hostile/policy").1, &Limits::default(), isolation.as_ref()).unwrap();
        policy.configure(&json!({"attack": "panic", "step": 2})).unwrap();
        policy.start(&run, &slices).unwrap();
        seen.step = 1;
        assert_eq!(policy.decide(&seen).unwrap().actions[0].reason, "decision 0");
        seen.step = 2;
        let fault = policy.decide(&seen).unwrap_err();
        check(&fault, FaultClass::Trap, &["`decide`: panicked at", "lib.rs:"]);
        assert_eq!(fault.plugin, "hostile-policy");
        assert!(!fault.message.contains(root().to_str().unwrap()), "no path of this machine: {fault}");
        seen.step = 3;
        assert_eq!(policy.decide(&seen).unwrap().actions[0].reason, "decision 1", "a new instance goes on");
    }
}

#[test]
fn the_end_of_an_isolated_library_is_a_fault() {
    use FaultClass::{Answer, Memory, Timeout, Trap};
    let limits = Limits { call_time: Duration::from_millis(500), memory_bytes: 64 << 20, ..Limits::default() };
    let isolation = isolation();
    let mut cases: Vec<(&str, FaultClass, &[&str])> = vec![
        ("segv", Trap, &["`decide`: its process was ended by signal 11 (SIGSEGV"]),
        ("abort", Trap, &["signal 6 (SIGABRT", "it printed: the last words"]),
        ("exit", Trap, &["it ended its process with exit code 3"]),
        ("hang", Timeout, &["`decide` ran longer than 500ms, the limit (call_time)"]),
        ("garble", Answer, &["sent something that is no answer"]),
    ];
    if cfg!(target_os = "linux") {
        cases.push(("memory", Memory, &["wanted more memory than 64 MiB, the limit (memory_bytes)"]));
    }
    for (name, class, words) in cases {
        // Only who never ends needs a short time: a busy machine is slow to give memory.
        let call_time = if name == "hang" { limits.call_time } else { Duration::from_secs(20) };
        let (second, third, took) = attack(name, &Limits { call_time, ..limits.clone() }, Some(&isolation));
        check(&second.unwrap_err(), class, words);
        assert!(took < call_time + Duration::from_secs(5), "{name}: {took:?}");
        assert_eq!(third.unwrap().actions[0].reason, "decision 1", "{name}: a new process goes on");
    }
}

#[test]
fn an_isolated_library_has_no_input_no_environment_and_no_way_to_the_protocol_by_printing() {
    let isolation = isolation();
    for (name, reason) in
        [("stdin", "read -1"), ("environment", "home unknown"), ("print", "decision 1"), ("log", "decision 1")]
    {
        let (second, _, _) = attack(name, &Limits::default(), Some(&isolation));
        assert_eq!(second.unwrap().actions[0].reason, reason, "{name}");
    }
}

#[test]
fn broken_answers_are_the_same_faults_in_a_process_of_their_own() {
    for name in ["null-actions", "twice", "refuse", "code", "endless-text"] {
        let (here, _, _) = attack(name, &Limits::default(), None);
        let (there, third, _) = attack(name, &Limits::default(), Some(&isolation()));
        assert_eq!(there, here, "{name}");
        assert_eq!(third.unwrap().actions[0].reason, "decision 1", "{name}");
    }
}
