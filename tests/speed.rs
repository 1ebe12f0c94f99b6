//! `plastic-host bench speed` on the default model, and `plastic-host plugin bench --calls`.
#![allow(clippy::unwrap_used, reason = "tests")]

use plastic_tests::{Ran, Scratch, base, host, ran, run};
use serde_json::Value;

/// Two documents, long enough for a few short windows.
const TEXT: &str = r#"{"text": "The harbour lay quiet under the morning fog, and the ferries waited for the tide to turn before they left for the islands."}
{"text": "A good loaf needs flour, water, salt and time: mix them, let the dough rest overnight in the cold, and bake it hot."}
"#;

fn speed(text: &str, args: &[&str]) -> Ran {
    let scratch = Scratch::new("speed");
    let data = scratch.file("text.jsonl", text.as_bytes());
    ran(host().args(["bench", "speed", "--base", &base(), "--data", &data, "-r", "2"]).args(args))
}

fn document(args: &[&str]) -> Value {
    let r = speed(TEXT, &[args, &["--json"]].concat());
    assert_eq!(r.code, Some(0), "{r:?}");
    assert_eq!(r.err, "");
    r.json()
}

fn text(r: &Ran) -> &str {
    assert_eq!(r.code, Some(0), "{r:?}");
    &r.out
}

#[test]
fn decoding_is_greedy_and_every_prompt_of_a_batch_gets_its_own_answer() {
    let d = document(&["--work", "decode", "--prompt", "8", "--tokens", "5", "--batch", "1,2"]);
    let [one, two] = d["decode"].as_array().unwrap().as_slice() else { panic!("{d}") };
    assert_eq!((&one["batch"], &two["batch"], &one["tokens"]), (&1.into(), &2.into(), &5.into()));
    let answers = two["answer"].as_array().unwrap();
    assert_eq!((answers.len(), &answers[0]), (2, &one["answer"][0]));
    assert_ne!(answers[0], answers[1]);
    assert!(answers.iter().all(|a| a.as_array().unwrap().len() == 5));
    for speed in [&one["tokens_per_second"], &two["tokens_per_second"], &one["first_token_ms"]] {
        let [min, median, max] = ["min", "median", "max"].map(|k| speed[k].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{speed}");
        assert_eq!(speed["repeats"].as_array().unwrap().len(), 2);
    }
    // A model of 135 million parameters in 4 bits.
    assert!(d["checkpoint_bytes"].as_u64().unwrap() > 50_000_000);
    let held = |key: &str| d[key].as_u64().unwrap_or(0);
    assert!(held("baseline_process_bytes") < held("loaded_process_bytes") || cfg!(not(target_os = "linux")));
    assert!(d.get("score").is_none() && d.get("slices").is_none());
}

#[test]
fn its_loss_is_that_of_eval() {
    let scratch = Scratch::new("speed-eval");
    let data = scratch.file("text.jsonl", TEXT.as_bytes());
    let eval =
        ran(host().args(["eval", "--base", &base(), "--data", &data, "--window", "12", "--windows", "3", "--json"]));
    let d = document(&["--work", "score,prefill", "--score", "3x12", "--prefill", "9"]);
    let (ours, expected) = (d["score"]["loss"].as_f64().unwrap(), eval.json()["mean_nll"].as_f64().unwrap());
    assert!((ours - expected).abs() < 1e-5, "{ours} {expected}");
    assert_eq!(d["score"]["windows_sha256"], eval.json()["windows_sha256"]);
    assert_eq!(d["prefill"]["answer"][0].as_array().unwrap().len(), 1);
}

#[test]
fn slices_are_timed_in_every_form() {
    let d = document(&["--work", "slice", "--rows", "1,3", "-r", "1"]);
    let shapes = d["slices"]["shapes"].as_array().unwrap();
    for s in shapes {
        let [m, n, rank] = ["m", "n", "rank"].map(|k| s[k].as_f64().unwrap());
        assert!(rank * (m + n) <= 0.6 * m * n && (rank + 1.0) * (m + n) > 0.6 * m * n, "{s}");
        for times in s["times"].as_array().unwrap() {
            for form in ["dense_us", "factored_us", "dense_8bit_us", "factored_8bit_us", "stored_us"] {
                assert_eq!(times[form].as_array().unwrap().len(), 5, "{form}: {times}");
                assert!(times[form].as_array().unwrap().iter().all(|t| t.as_f64().unwrap() > 0.0), "{times}");
            }
        }
        assert_eq!(s["times"].as_array().unwrap().len(), 2);
    }
    assert_eq!(shapes.iter().map(|s| s["count"].as_u64().unwrap()).sum::<u64>() % 7, 0);
}

#[test]
fn people_get_tables_and_quiet_leaves_the_notes_out() {
    let args = ["--work", "decode,score", "--prompt", "8", "--tokens", "2", "--batch", "1", "--score", "2x8"];
    let r = speed(TEXT, &args);
    let out = text(&r);
    assert!(
        ["decode 2 tokens after 8, batch 1", "score 2 x 8 tokens", "measured on", "on disk"]
            .iter()
            .all(|t| out.contains(t)),
        "{out}"
    );
    let quiet = speed(TEXT, &[&args[..], &["--quiet"]].concat());
    assert!(!text(&quiet).contains("measured on") && quiet.err.is_empty(), "{quiet:?}");
}

#[test]
fn wrong_wishes_are_refused_with_what_to_do() {
    speed(TEXT, &["--score", "8"]).refuses(2, "give windows x tokens, such as 8x512");
    speed(TEXT, &["--work", "sleep"]).refuses(2, "possible values: score, prefill, decode, slice");
    speed(TEXT, &["--tokens", "1"]).refuses(2, "1 is not in 2");
    speed(TEXT, &["--share", "1.5"]).refuses(2, "a share lies above 0");
    speed(TEXT, &["--work", "score", "--score", "9x12"]).refuses(1, "give more text with --data");
    speed(TEXT, &["--work", "prefill", "--prefill", "9999999"]).refuses(2, "9999999 is not in");
    speed(TEXT, &["--work", "prefill", "--prefill", "99999"]).refuses(1, "positions (max_position_embeddings)");
    speed("{\"text\": \"\\u0000\"}\n", &["--work", "decode"]).refuses(1, "text.jsonl");
}

#[test]
fn calls_of_a_plugin_can_be_counted_out() {
    let r = run(&["plugin", "bench", "plugins/uniform.wasm", "--calls", "7", "--shape", "3x16", "--json"]);
    let d = r.json();
    let [uniform] = d["plugins"].as_array().unwrap().as_slice() else { panic!("{d}") };
    let stages = uniform["stages"].as_array().unwrap();
    let made = |s: &Value| (s["name"].as_str().unwrap().to_owned(), s["time"]["times"].as_u64().unwrap());
    let made: Vec<_> = stages.iter().map(made).collect();
    let expected = [
        ("cold load (compiles)", 1),
        ("warm load (from the cache)", 1),
        ("decide 3 × 16, the call", 7),
        ("decide 3 × 16, all of it", 7),
    ];
    assert_eq!(made, expected.map(|(name, n)| (name.to_owned(), n)));
    run(&["plugin", "bench", "plugins/uniform.wasm", "--shape", "3"]).refuses(2, "give slices x rank, such as 210x576");
}
