//! Covers: what plugins are given, what they burn, and how they are compiled.
//!
//! - each import is refused by name without its grant, and works with it, no further than granted;
//! - fuel ends a call at the same place every time, and is counted;
//! - deterministic mode excludes what cannot be repeated;
//! - a compiler that takes too long, too much or the wrong turn is a fault of the plugin;
//! - loads of one plugin at the same time do not disturb each other.
#![allow(clippy::unwrap_used, reason = "tests")]

use plastic_host::plugin::contract::*;
use plastic_host::plugin::{Fault, FaultClass, Grant, Limits, Loader, Policy, Rules, build, load_policy};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A plugin of this repository, built once a test run.
fn plugin(name: &str) -> &'static Path {
    static BUILT: OnceLock<Vec<(&str, PathBuf)>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let out = root.join("target/test-capabilities");
        std::fs::create_dir_all(&out).unwrap();
        let one = |dir: &'static str| {
            let file = out.join(format!("{}.wasm", dir.replace('/', "-")));
            match build::build(&root.join(dir), Some(&file)) {
                // Built; what it imports is what the tests are about.
                Ok(_) | Err(build::BuildError::Fault(_)) => (dir, file),
                Err(e) => panic!("{dir}: {e}"),
            }
        };
        ["tests/hostile/curious", "tests/hostile/policy", "plugins/energy"].into_iter().map(one).collect()
    });
    &built.iter().find(|(dir, _)| dir.ends_with(name)).unwrap().1
}

/// One slice with a falling spectrum.
fn model() -> (Run, Vec<Slice>, Observation) {
    let slice = Slice {
        name: "model.layers.0.self_attn.q_proj".into(),
        layer: 0,
        kind: "q_proj".into(),
        group: 0,
        rows: 64,
        cols: 64,
        max_rank: 64,
        dense_parameters: 4096,
        component_parameters: 128,
        attributes: vec![],
    };
    let state = SliceState {
        awake: 64,
        dense: true,
        dense_allowed: true,
        frozen: false,
        dwell: 0,
        parameters: 4096,
        bytes: 16384,
        parked_bytes: 0,
    };
    let run = Run { phase: "compress".into(), seed: 1, steps: 4, parameters: 4096, budget: 2048, attributes: vec![] };
    let observation = Observation {
        step: 1,
        awake: 4096,
        slices: vec![state],
        series: vec![Series { slice: 0, need: 0, offset: 0, len: 64 }],
        values: (1..=64).map(|k| 1.0 / k as f32).collect(),
        asleep: vec![],
        metrics: vec![],
        last: None,
        proposed: None,
        attributes: vec![],
    };
    (run, vec![slice], observation)
}

#[track_caller]
fn check(fault: &Fault, class: FaultClass, words: &[&str]) {
    assert_eq!(fault.class, class, "{fault}");
    for word in words {
        assert!(fault.message.contains(word), "`{word}` is not in: {fault}");
    }
}

/// An environment variable that the tests have, with its value.
const VARIABLE: (&str, &str) = ("CARGO_PKG_NAME", "plastic-host");

/// A directory with a file in it, one beside it, and a link from the one to the other.
struct Files {
    _root: tempfile::TempDir,
    granted: PathBuf,
}

fn files() -> Files {
    let root = tempfile::tempdir().unwrap();
    let granted = root.path().join("granted");
    std::fs::create_dir(&granted).unwrap();
    std::fs::write(granted.join("inside.txt"), "what is inside").unwrap();
    std::fs::write(root.path().join("outside.txt"), "what is outside").unwrap();
    std::os::unix::fs::symlink(root.path().join("outside.txt"), granted.join("link.txt")).unwrap();
    Files { _root: root, granted }
}

fn all(files: &Files) -> Vec<Grant> {
    let dir = files.granted.to_str().unwrap();
    vec![Grant::Clock, Grant::Random, Grant::Env(VARIABLE.0.into()), Grant::Read(dir.into())]
}

fn limits(grants: Vec<Grant>) -> Limits {
    Limits { grants, call_time: Duration::from_millis(500), ..Limits::default() }
}

/// The curious policy, ready to ask for something.
fn curious(limits: &Limits, ask: &str, what: &str) -> Box<dyn Policy> {
    let mut policy = load_policy(plugin("curious"), limits, None).unwrap();
    policy.configure(&json!({"ask": ask, "what": what})).unwrap();
    let (run, slices, _) = model();
    policy.start(&run, &slices).unwrap();
    policy
}

/// What it was told.
fn answer(policy: &mut dyn Policy) -> Result<String, Fault> {
    policy.decide(&model().2).map(|plan| plan.actions[0].reason.clone())
}

#[test]
fn each_import_is_refused_by_name_without_its_grant() {
    let files = files();
    let cases = [
        ("wasi:clocks/", "it wants to know the time; give it with --grant clock"),
        ("wasi:random/random@0.2.6", "it wants random numbers; give it with --grant random"),
        ("wasi:cli/environment@0.2.6", ""),
        ("wasi:filesystem/", "it wants to read files; give it with --grant read=DIR"),
    ];
    let all = all(&files);
    for (left_out, (import, words)) in cases.iter().enumerate().filter(|(_, (_, words))| !words.is_empty()) {
        let mut grants = all.clone();
        grants.remove(left_out);
        let fault = load_policy(plugin("curious"), &limits(grants), None).err().unwrap();
        check(&fault, FaultClass::Load, &[&format!("imports `{import}"), words]);
    }
    let fault = load_policy(plugin("curious"), &Limits::default(), None).err().unwrap();
    check(&fault, FaultClass::Load, &["--grant clock (and --grant random --grant read=DIR)"]);
    load_policy(plugin("curious"), &limits(all), None).unwrap();
}

#[test]
fn the_origin_names_what_was_given() {
    let files = files();
    let policy = curious(&limits(all(&files)), "clock", "");
    assert_eq!(policy.origin().grants, all(&files));
    let text = serde_json::to_string(policy.origin()).unwrap();
    assert!(text.contains(r#""grants":["clock","random","env=CARGO_PKG_NAME","read=/"#), "{text}");
    // What is granted and not asked for was not given.
    let policy = load_policy(plugin("energy"), &limits(all(&files)), None).unwrap();
    assert_eq!(policy.origin().grants, []);
    assert!(!serde_json::to_string(policy.origin()).unwrap().contains("\"grants\""));
}

#[test]
fn the_clock_and_randomness_work_when_granted() {
    let files = files();
    let limits = limits(all(&files));
    let seconds: u64 = answer(&mut *curious(&limits, "clock", "")).unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(seconds) < 60, "{seconds}");
    let mut policy = curious(&limits, "random", "");
    assert_ne!(answer(&mut *policy).unwrap(), answer(&mut *policy).unwrap());
}

#[test]
fn of_the_environment_one_variable_is_given() {
    let files = files();
    let answer = answer(&mut *curious(&limits(all(&files)), "env", "")).unwrap();
    assert_eq!(answer, format!("[(\"{}\", \"{}\")]", VARIABLE.0, VARIABLE.1));
}

#[test]
fn files_are_read_where_granted_and_nowhere_else() {
    let files = files();
    let limits = limits(all(&files));
    let read = |name: &str| answer(&mut *curious(&limits, "read", name)).unwrap();
    assert_eq!(read("inside.txt"), "Ok(\"what is inside\")");
    assert_eq!(read("missing.txt"), "Err(\"no-entry\")");
    for out in ["../outside.txt", "link.txt", "/etc/passwd", "x/../../outside.txt"] {
        let answer = read(out);
        assert!(answer.starts_with("Err("), "{out}: {answer}");
    }
    let answer = answer(&mut *curious(&limits, "write", "new.txt")).unwrap();
    assert!(answer.starts_with("Err("), "{answer}");
    assert!(!files.granted.join("new.txt").exists());
}

#[test]
fn a_directory_that_is_not_there_cannot_be_given() {
    let files = files();
    let mut grants = all(&files);
    grants.push(Grant::Read("/no/such/directory".into()));
    let fault = load_policy(plugin("curious"), &limits(grants), None).err().unwrap();
    check(&fault, FaultClass::Load, &["the directory of --grant read=/no/such/directory cannot be opened"]);
}

#[test]
fn whoever_sleeps_is_woken_when_the_time_is_up() {
    let mut policy = curious(&limits(all(&files())), "sleep", "3600");
    let started = Instant::now();
    let fault = answer(&mut *policy).unwrap_err();
    check(&fault, FaultClass::Timeout, &["`decide` ran longer than 500ms"]);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let mut policy = curious(&limits(all(&files())), "sleep", "0");
    assert_eq!(answer(&mut *policy).unwrap(), "slept");
}

#[test]
fn handles_are_counted() {
    let mut policy = curious(&limits(all(&files())), "handles", "");
    let fault = answer(&mut *policy).unwrap_err();
    check(&fault, FaultClass::Memory, &["`decide` wanted to hold more than 256 files, directories and streams open"]);
}

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
fn standard_error_is_a_log_under_the_limits_of_logs() {
    let log = logged::by(|| {
        let mut policy = curious(&limits(all(&files())), "shout", "");
        assert_eq!(answer(&mut *policy).unwrap(), "shouted");
    });
    assert_eq!(log.matches("shouts a line").count(), 100, "{}", &log[log.len().saturating_sub(300)..]);
    assert!(log.contains("more log lines were dropped"), "{}", &log[log.len().saturating_sub(300)..]);
    assert!(log.contains("WARN") && log.contains("plugin=curious-policy"), "{}", &log[..log.len().min(300)]);
}

#[test]
fn what_can_no_longer_be_promised_is_said() {
    let files = files();
    let log = logged::by(|| drop(curious(&limits(all(&files)), "clock", "")));
    assert!(log.contains("is given clock and random: the same run may not come out the same again"), "{log}");
    let log = logged::by(|| drop(load_policy(plugin("energy"), &limits(all(&files)), None).unwrap()));
    assert!(!log.contains("is given"), "{log}");
}

#[test]
fn instances_are_counted() {
    let fault = load_policy(plugin("energy"), &Limits { instances: 1, ..Limits::default() }, None).err().unwrap();
    check(&fault, FaultClass::Memory, &["`instantiate` needs more than 1 of a kind, the limit (instances)"]);
}

fn hostile(attack: &str, limits: &Limits) -> Result<Plan, Fault> {
    let (run, slices, seen) = model();
    let mut policy = load_policy(plugin("hostile/policy"), limits, None).unwrap();
    policy.configure(&json!({"attack": attack})).unwrap();
    policy.start(&run, &slices).unwrap();
    policy.decide(&seen)
}

#[test]
fn fuel_ends_a_call() {
    let limits = Limits { fuel: Some(20_000_000), ..Limits::default() };
    let fault = hostile("loop", &limits).unwrap_err();
    check(&fault, FaultClass::Timeout, &["`decide` used up its 20000000 units of fuel, the limit (--fuel)"]);
    hostile("none", &limits).unwrap();
}

/// The plan of `energy`, and what it burned.
fn energy(limits: &Limits) -> (Plan, Option<u64>) {
    let (run, slices, seen) = model();
    let mut policy = load_policy(plugin("energy"), limits, None).unwrap();
    policy.configure(&json!({"metric": "plain", "ramp": false})).unwrap();
    policy.start(&run, &slices).unwrap();
    (policy.decide(&seen).unwrap(), policy.last_cost().fuel)
}

#[test]
fn fuel_is_counted_where_it_is_asked_for_and_always_the_same() {
    let (plan, none) = energy(&Limits::default());
    assert_eq!(none, None);
    let limits = Limits { fuel: Some(1 << 40), ..Limits::default() };
    let (first, second) = (energy(&limits), energy(&limits));
    assert_eq!(first, second);
    assert!(first.1.unwrap() > 1000, "{first:?}");
    assert_eq!(first.0, plan);
}

#[test]
fn deterministic_mode_counts_fuel_and_decides_the_same() {
    let (plan, fuel) = energy(&Limits { deterministic: true, ..Limits::default() });
    let again = energy(&Limits { deterministic: true, ..Limits::default() });
    assert_eq!((plan.clone(), fuel), again);
    assert!(fuel.is_some());
    assert_eq!(plan, energy(&Limits::default()).0);
}

mod compiler {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// The program itself compiles, under these rules.
    fn loader(rules: Rules, cache: Option<&Path>) -> Loader {
        Loader::new(rules, cache.map(Path::to_owned)).compiled_by(env!("CARGO_BIN_EXE_plastic-host").into())
    }

    /// A compiler that does something else.
    fn other(dir: &tempfile::TempDir, script: &str, rules: Rules) -> Loader {
        let program = dir.path().join("compiler");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Loader::new(rules, None).compiled_by(program)
    }

    fn fault(loader: &Loader) -> Fault {
        loader.policy(plugin("energy")).err().unwrap()
    }

    #[test]
    fn compiles_in_a_process_of_its_own() {
        let cache = tempfile::tempdir().unwrap();
        for rules in [
            Rules::default(),
            Rules { fuel: Some(1 << 40), ..Rules::default() },
            Rules { deterministic: true, ..Rules::default() },
            Rules { stack_kib: 256, ..Rules::default() },
        ] {
            let mut policy = loader(rules.clone(), Some(cache.path())).policy(plugin("energy")).unwrap();
            let (run, slices, seen) = model();
            policy.start(&run, &slices).unwrap();
            policy.decide(&seen).unwrap();
            // The second time no compiler is needed.
            let gone = Loader::new(rules, Some(cache.path().into())).compiled_by("/no/such/program".into());
            gone.policy(plugin("energy")).unwrap();
        }
        // The stack is no part of the code.
        assert_eq!(std::fs::read_dir(cache.path().join("plugins")).unwrap().count(), 6, "three entries");
    }

    #[test]
    fn time_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        let started = Instant::now();
        let fault = fault(&other(&dir, "exec sleep 60", Rules { compile_seconds: 1, ..Rules::default() }));
        check(&fault, FaultClass::Load, &["takes more than 1 s to compile, the limit (compile_seconds)"]);
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_limited() {
        let fault = fault(&loader(Rules { compile_mib: 4, ..Rules::default() }, None));
        check(&fault, FaultClass::Load, &["needs more than 4 MiB to compile, the limit (compile_mib)"]);
    }

    #[test]
    fn a_crash_is_a_fault_of_the_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let crash = fault(&other(&dir, "echo its last words >&2; kill -SEGV $$", Rules::default()));
        check(&crash, FaultClass::Load, &["was ended by signal 11: its last words"]);
        let silent = fault(&other(&dir, "exit 0", Rules::default()));
        check(&silent, FaultClass::Load, &["the compiler left nothing behind"]);
        let junk = fault(&other(&dir, "echo junk > \"$5\"", Rules::default()));
        check(&junk, FaultClass::Load, &["was compiled into something that does not load"]);
        let gone = fault(&Loader::new(Rules::default(), None).compiled_by("/no/such/program".into()));
        check(&gone, FaultClass::Load, &["/no/such/program does not start"]);
    }

    #[test]
    fn what_does_not_compile_is_refused_in_the_same_words() {
        let dir = tempfile::tempdir().unwrap();
        // Well-formed to look at, and wrong inside: a function that returns nothing it promised.
        let bad = wat::parse_str(
            r#"(component (core module (func (result i32) nop)) (instance (export "plastic:rank/policy@1.0.0")))"#,
        );
        let path = dir.path().join("bad.wasm");
        std::fs::write(&path, bad.unwrap()).unwrap();
        let here = load_policy(&path, &Limits::default(), None).err().unwrap();
        let there = loader(Rules::default(), None).policy(&path).err().unwrap();
        check(&here, FaultClass::Load, &["does not compile", "build or fetch it again"]);
        assert_eq!(here, there);
    }

    #[test]
    fn loads_at_the_same_time_do_not_disturb_each_other() {
        let cache = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for i in 0..6 {
                let loader = match i % 2 {
                    0 => loader(Rules::default(), Some(cache.path())),
                    _ => Loader::new(Rules::default(), Some(cache.path().into())),
                };
                scope.spawn(move || {
                    for _ in 0..3 {
                        let mut policy = loader.policy(plugin("energy")).unwrap();
                        let (run, slices, seen) = model();
                        policy.start(&run, &slices).unwrap();
                        policy.decide(&seen).unwrap();
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(cache.path().join("plugins")).unwrap().count(), 2, "one entry, nothing left over");
    }
}

/// Run by hand: `cargo test --release -p plastic-host --test capabilities -- --ignored --nocapture`.
/// `PLUGIN` may name another policy, whose loading is measured.
#[test]
#[ignore = "a measurement, not a check"]
fn what_it_costs() {
    let best = |n: u32, f: &mut dyn FnMut()| {
        let one = |_| {
            let started = Instant::now();
            f();
            started.elapsed()
        };
        (0..n).map(one).min().unwrap()
    };
    let path = std::env::var_os("PLUGIN").map_or_else(|| plugin("energy").to_owned(), PathBuf::from);
    let rules = Rules { memory_mib: 1024, ..Rules::default() };
    let cache = tempfile::tempdir().unwrap();
    let compiler = || PathBuf::from(env!("CARGO_BIN_EXE_plastic-host"));
    let load = |cache: Option<&Path>, process: bool| {
        let loader = Loader::new(rules.clone(), cache.map(Path::to_owned));
        let loader = if process { loader.compiled_by(compiler()) } else { loader };
        drop(loader.policy(&path).unwrap());
    };
    println!("cold, in this process: {:?}", best(5, &mut || load(None, false)));
    println!("cold, in a process of its own: {:?}", best(5, &mut || load(None, true)));
    load(Some(cache.path()), false);
    println!("warm: {:?}", best(50, &mut || load(Some(cache.path()), true)));
    println!("  of it, reading the file: {:?}", best(20, &mut || drop(std::fs::read(&path).unwrap())));
    let bytes = std::fs::read(&path).unwrap();
    use sha2::Digest;
    println!("  of it, its SHA-256: {:?}", best(20, &mut || _ = sha2::Sha256::digest(&bytes)));
    let mut inspect = || drop(plastic_host::plugin::Artifact::read(&path, &Limits::default()).unwrap());
    println!("  of it, reading, hashing and reading the imports: {:?}", best(20, &mut inspect));
    let mut entries = std::fs::read_dir(cache.path().join("plugins")).unwrap().map(|f| f.unwrap().path());
    let code = entries.find(|f| f.extension().is_some_and(|e| e == "cwasm")).unwrap();
    println!("  of it, reading the code: {:?}", best(20, &mut || drop(std::fs::read(&code).unwrap())));
    let code = std::fs::read(code).unwrap();
    println!("  of it, its BLAKE3, of {} bytes: {:?}", code.len(), best(20, &mut || _ = blake3::hash(&code)));

    for (name, limits) in [
        ("wall clock only", Limits::default()),
        ("with fuel", Limits { fuel: Some(1 << 40), ..Limits::default() }),
        ("deterministic", Limits { deterministic: true, ..Limits::default() }),
    ] {
        let (mut run, slices, mut seen) = model();
        let slices = vec![slices[0].clone(); 210];
        seen.slices = vec![seen.slices[0]; 210];
        seen.series = (0..210).map(|i| Series { slice: i, need: 0, offset: 576 * i, len: 576 }).collect();
        seen.values = (0..210).flat_map(|i| (0..576).map(move |k| (1 + i % 7) as f32 / (1 + k) as f32)).collect();
        (run.parameters, run.budget, seen.awake) = (210 * 4096, 210 * 2048, 210 * 4096);
        for name_of in ["energy", "hostile/policy"] {
            let mut policy = load_policy(plugin(name_of), &limits, None).unwrap();
            policy.configure(&json!({})).unwrap();
            policy.start(&run, &slices).unwrap();
            let least = best(300, &mut || drop(policy.decide(&seen).unwrap()));
            println!("{name}: {name_of} decides 210 × 576 in {least:?}, {:?}", policy.last_cost().fuel);
        }
    }
}
