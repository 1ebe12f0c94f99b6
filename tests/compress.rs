//! `plastic-host compress` on the default base: a few slices only, so that a compression takes seconds.

mod support;

use std::path::Path;
use std::time::Duration;
use support::{Scratch, base, host, ran, root, run};

/// A compression of two layers with little calibration text.
fn small<'a>(out: &'a str, more: &[&'a str]) -> Vec<String> {
    let fixed = [
        "compress",
        "--out",
        out,
        "--layers",
        "model.layers.{3,4}.*",
        "--calibration-windows",
        "8",
        "--gradient-windows",
        "4",
        "--window",
        "128",
        "--windows",
        "4",
        "--budget",
        "0.6",
        "--json",
        "--base",
    ];
    fixed.iter().map(|s| (*s).to_owned()).chain([base()]).chain(more.iter().map(|s| (*s).to_owned())).collect()
}

fn compress(out: &str, more: &[&str]) -> support::Ran {
    ran(host().args(small(out, more)))
}

fn bytes(dir: &str, name: &str) -> Vec<u8> {
    std::fs::read(Path::new(dir).join(name)).unwrap_or_else(|e| panic!("{dir}/{name}: {e}"))
}

fn loss(base: &str, more: &[&str]) -> f64 {
    let args = ["eval", "--base", base, "--windows", "4", "--window", "128", "--json"];
    run(&[&args, more].concat()).json()["mean_nll"].as_f64().unwrap()
}

#[test]
fn a_compressed_model_runs_and_says_what_it_is() {
    let s = Scratch::new("compress");
    let out = s.path("small");
    let base_files = || run(&["model", "inspect", &base(), "--json"]).json()["sha256"].clone();
    let before = base_files();
    let told = compress(&out, &["--self-contained"]).json();
    assert_eq!(told["stored"].as_array().unwrap().len(), 14);
    let share = told["share"].as_f64().unwrap();
    assert!(share <= 0.6 && share > 0.55, "{share}");
    let measured = &told["measured"];
    let (rise, interval) = (measured["rise"].as_f64().unwrap(), measured["interval"].as_array().unwrap());
    assert!(interval[0].as_f64().unwrap() <= rise && rise <= interval[1].as_f64().unwrap());
    // The directory computes what was measured of it, and differs from the base.
    let (base_loss, own) = (loss(&base(), &[]), loss(&out, &[]));
    assert!((own - base_loss - rise).abs() < 2e-4, "{own} {base_loss} {rise}");
    assert!(own > base_loss);
    let said = run(&["generate", "--base", &out, "--prompt", "Hello", "--max-tokens", "3", "--json"]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(base_files(), before, "the base is only read");
    // Twice is refused, unless it may be replaced.
    compress(&out, &["--no-eval"]).refuses(1, "--force");
    assert_eq!(compress(&out, &["--no-eval", "--force"]).code, Some(0));
    compress(&base_dir(), &["--force"]).refuses(1, "the base itself");
}

fn base_dir() -> String {
    run(&["model", "inspect", &base(), "--json"]).json()["dir"].as_str().unwrap().to_owned()
}

#[test]
fn killed_at_any_moment_it_ends_with_the_same_bytes() {
    let s = Scratch::new("killed");
    let whole = s.path("whole");
    assert_eq!(compress(&whole, &["--refine", "3"]).code, Some(0));
    let out = s.path("out");
    for parts in [0, 1] {
        let mut child =
            host().args(small(&out, &["--refine", "3", if parts == 0 { "-q" } else { "--resume" }])).spawn().unwrap();
        let plan = Path::new(&out).with_file_name("out.compressing").join(["settings.json", "plan.json"][parts]);
        for _ in 0..1200 {
            if plan.is_file() || child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(200 * parts as u64));
        let _ = child.kill();
        child.wait().unwrap();
        if Path::new(&out).exists() {
            break;
        }
        // Nothing half-made can be taken for a model.
        assert_ne!(run(&["eval", "--base", &out]).code, Some(0));
    }
    if !Path::new(&out).exists() {
        compress(&out, &["--refine", "3"]).refuses(1, "--resume");
        compress(&out, &["--refine", "4", "--resume"]).refuses(1, "refine");
        assert_eq!(compress(&out, &["--refine", "3", "--resume"]).code, Some(0));
    }
    for name in ["model.safetensors", "spectra.safetensors", "elastic.json", "config.json"] {
        assert!(bytes(&whole, name) == bytes(&out, name), "{name} differs");
    }
    assert!(!Path::new(&out).with_file_name("out.compressing").exists());
    compress(&out, &["--resume"]).refuses(1, "finished");
}

#[test]
fn refinement_makes_it_better() {
    let s = Scratch::new("refine");
    let (plain, refined) = (s.path("plain"), s.path("refined"));
    assert_eq!(compress(&plain, &["--no-eval", "--budget", "0.3"]).code, Some(0));
    let more = ["--no-eval", "--budget", "0.3", "--floor", "0.3", "--refine", "12", "--refine-batch", "4"];
    assert_eq!(compress(&refined, &more).code, Some(0));
    let (before, after) = (loss(&plain, &[]), loss(&refined, &[]));
    assert!(after < before, "{after} after {before}");
}

#[test]
fn a_coarse_weight_with_repairs_is_smaller_and_better_than_without() {
    let s = Scratch::new("residual");
    let out = |name: &str| s.path(name);
    let of = |name: &str, more: &[&str]| {
        let fixed = ["--mode", "residual", "--bits", "2", "--no-eval"];
        let told = compress(&out(name), &[&fixed, more].concat());
        assert_eq!(told.code, Some(0), "{}", told.err);
        loss(&out(name), &[])
    };
    let bare = of("bare", &["--ranks", "*:0", "--budget", "0.2"]);
    let repaired = of("repaired", &["--budget", "0.3"]);
    let base = loss(&support::base(), &[]);
    assert!(base < repaired && repaired < bare, "{base} {repaired} {bare}");
    compress(&out("none"), &["--mode", "residual", "--budget", "0.1"]).refuses(1, "ask for more");
}

#[test]
fn ranks_by_hand_and_a_target_are_kept_to() {
    let s = Scratch::new("ranks");
    let out = s.path("map");
    let told = compress(&out, &["--no-eval", "--ranks", "q_proj:40,mlp.*:dense,*:dense"]);
    told.refuses(1, "matches no slice");
    let told = compress(&out, &["--no-eval", "--ranks", "q_proj:40,*:dense", "--whitening", "off"]).json();
    let q =
        told["stored"].as_array().unwrap().iter().find(|s| s["name"].as_str().unwrap().ends_with("q_proj")).unwrap();
    assert_eq!(q["planned"]["rank"], 40);
    let target = s.path("target");
    let base = loss(&base(), &[]).exp();
    let bound = format!("{}", base * 1.05);
    let args = small(&target, &["--target-ppl", &bound]);
    let args: Vec<&String> = args.iter().filter(|a| !["--budget", "0.6"].contains(&a.as_str())).collect();
    let told = ran(host().args(args));
    assert_eq!(told.code, Some(0), "{}", told.err);
    let after = told.json()["measured"]["after"].as_f64().unwrap();
    assert!(after <= base * 1.05 + 1e-6 && after > base, "{after} {base}");
}

#[test]
fn bad_input_is_named() {
    let s = Scratch::new("bad");
    let out = s.path("out");
    for (option, value) in [("--budget", "0"), ("--budget", "nan"), ("--floor", "2"), ("--refine-rate", "0")] {
        compress(&out, &[option, value]).refuses(2, option);
    }
    compress(&out, &["--factor-bits", "5"]).refuses(2, "16, 8 or 4");
    compress(&out, &["--mode", "residual", "--refine", "2"]).refuses(2, "--mode factor");
    let nothing = ["compress", "--base", &base(), "--out", &out, "--layers", "nothing.*"];
    run(&nothing).refuses(1, "model.layers.0.self_attn.q_proj");
    compress(&out, &["--calibration", &s.file("ten.txt", b"Ten tokens of text are far too few for it.")])
        .refuses(1, "128");
    compress(&out, &["--policy", "plugins/perplexity.wasm"]).refuses(1, "--evaluator");
    compress(&out, &["--resume"]).refuses(1, "nothing to resume");
    compress(&out, &["--target-ppl", "1.5"]).refuses(2, "--target-ppl");
    assert!(!Path::new(&out).exists());
    assert!(!Path::new(&out).with_file_name("out.compressing").exists(), "nothing began, nothing is left");
}

#[test]
fn a_full_disk_leaves_nothing_that_loads() {
    let s = Scratch::new("compress-full");
    let out = s.path("out");
    // A file-size limit of 10 MB stands in for the disk: parts fit, the model does not.
    let script = "trap '' XFSZ; ulimit -f 10000; exec \"$@\"";
    let program = root().join("target/release/plastic-host");
    let mut command = std::process::Command::new("bash");
    command.current_dir(root()).args(["-c", script, "sh"]).arg(program).args(small(&out, &["--no-eval"]));
    let failed: support::Ran = command.output().unwrap().into();
    failed.refuses(1, "model.safetensors");
    assert!(!Path::new(&out).exists());
    let done = compress(&out, &["--no-eval", "--resume"]);
    assert_eq!(done.code, Some(0), "{}", done.err);
}

#[test]
fn nothing_of_anybodys_is_overwritten() {
    let s = Scratch::new("mine");
    let (out, base) = (s.path("out"), s.path("base"));
    // A base of one's own, so that a mistake here costs a copy only.
    let copied = std::process::Command::new("cp").args(["-rL", &base_dir(), &base]).status();
    assert!(copied.is_ok_and(|c| c.success()));
    let args = |out: &str| small(out, &["--no-eval", "--base", &base]);
    let work = Path::new(&out).with_file_name("out.compressing");
    std::fs::create_dir(&work).unwrap();
    std::fs::write(work.join("mine.txt"), "mine").unwrap();
    ran(host().args(args(&out))).refuses(1, "in the way");
    assert_eq!(std::fs::read(work.join("mine.txt")).unwrap(), b"mine");
    std::fs::remove_dir_all(&work).unwrap();
    ran(host().args(args(&format!("{base}/within")))).refuses(1, "directory of the base");
    assert_eq!(ran(host().args(args(&out))).code, Some(0));
    let before = bytes(&base, "model.safetensors");
    for verb in ["--materialise", "--pivoted"] {
        run(&["export", verb, &out, "--out", &base, "--force"]).refuses(1, "the base itself");
    }
    assert!(bytes(&base, "model.safetensors") == before && Path::new(&base).join("config.json").is_file());
}

#[test]
fn damaged_work_is_not_taken_up() {
    let s = Scratch::new("damaged-work");
    let out = s.path("out");
    // Stopped by a full disk after all parts are there.
    let script = "trap '' XFSZ; ulimit -f 10000; exec \"$@\"";
    let program = root().join("target/release/plastic-host");
    let mut command = std::process::Command::new("bash");
    command.current_dir(root()).args(["-c", script, "sh"]).arg(program).args(small(&out, &["--no-eval"]));
    let failed: support::Ran = command.output().unwrap().into();
    assert_eq!(failed.code, Some(1), "{}", failed.err);
    let work = Path::new(&out).with_file_name("out.compressing");
    let part = work.join("slices/00003.safetensors");
    let mut changed = std::fs::read(&part).unwrap();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    std::fs::write(&part, &changed).unwrap();
    let plan = work.join("plan.json");
    let kept = std::fs::read(&plan).unwrap();
    std::fs::write(&plan, String::from_utf8_lossy(&kept).replace("fisher", "plain")).unwrap();
    compress(&out, &["--no-eval", "--resume"]).refuses(1, "plan.json");
    std::fs::write(&plan, kept).unwrap();
    assert_eq!(compress(&out, &["--no-eval", "--resume"]).code, Some(0));
    let whole = s.path("whole");
    assert_eq!(compress(&whole, &["--no-eval"]).code, Some(0));
    assert!(bytes(&whole, "model.safetensors") == bytes(&out, "model.safetensors"), "the damaged part was made anew");
    // A mistake in the command leaves nothing in the way of the next.
    let next = s.path("next");
    compress(&next, &["--no-eval", "--mode", "residual", "--budget", "0.1"]).refuses(1, "ask for more");
    assert!(!Path::new(&next).with_file_name("next.compressing").exists());
}
