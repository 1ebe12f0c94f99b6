//! Covers: texts from data sets of the hub, as `--data` and its like take them: which file is taken, the cache,
//! revisions, and everything that can be wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "hub_support.rs"]
mod hub_support;

use hub_support::{COMMIT, EARLIER, Hub, Mood, done, host, json_of, sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Enough words for a window of 16 tokens, different in each text.
fn words(about: &str, times: usize) -> Vec<u8> {
    format!("The story of {about} is told again and again by those who heard it. ").repeat(times).into_bytes()
}

/// `eval` on a data set, with the default model and an empty hub cache.
fn eval(hub: &Hub, cache: &Path, data: &str) -> Command {
    let mut c = host(None);
    c.env("HF_ENDPOINT", &hub.address).env("HF_HUB_CACHE", cache);
    c.args(["eval", "--window", "16", "--windows", "1", "--data", data]);
    c
}

fn snapshot(cache: &Path, commit: &str, file: &str) -> PathBuf {
    cache.join("datasets--org--texts/snapshots").join(commit).join(file)
}

fn error(c: &mut Command) -> String {
    let (code, out, err) = done(c);
    assert!(code == 1 && out.is_empty() && !err.contains("panicked"), "{code} {out}{err}");
    err
}

#[test]
fn the_small_held_out_text_is_taken_and_then_there_offline() {
    let (train, valid, larger) = (words("a fox", 9), words("a crow", 5), words("a hen", 7));
    let hub = Hub::of_texts(
        Mood::default(),
        &[
            ("Tiny-train.txt", &train),
            ("Tiny-valid.txt", &valid),
            ("TinyV2-valid.txt", &larger),
            ("README.md", b"about"),
            ("data/validation-0.parquet", b"PAR1"),
        ],
    );
    let cache = tempfile::tempdir().unwrap();
    let (code, _, err) = done(&mut eval(&hub, cache.path(), "org/texts"));
    assert!(code == 0 && err.contains("note: --data org/texts: Tiny-valid.txt"), "{code} {err}");
    let requests = hub.seen().len();
    let read = json_of(&mut eval(&hub, cache.path(), "org/texts"));
    assert_eq!(read["data_sha256"], sha256(&valid));
    let at = snapshot(cache.path(), COMMIT, "Tiny-valid.txt");
    assert_eq!(read["data"], at.to_str().unwrap());
    #[cfg(unix)]
    assert!(std::fs::read_link(&at).unwrap().starts_with("../../blobs"), "the hub's own layout");
    for again in [eval(&hub, cache.path(), "org/texts"), eval(&hub, cache.path(), "org/texts:Tiny-valid.txt")] {
        let mut again = again;
        assert_eq!(json_of(again.arg("--offline"))["data_sha256"], read["data_sha256"]);
    }
    assert_eq!(hub.seen().len(), requests, "what is cached is used without asking");
    let missing = error(eval(&hub, cache.path(), "org/texts:Tiny-train.txt").arg("--offline"));
    assert!(missing.contains("switched off") && missing.contains("Tiny-train.txt is not in the cache"), "{missing}");
}

#[test]
fn a_named_file_of_a_named_revision_is_taken_from_its_folder() {
    let (part, other) = (b"{\"text\": \"".to_vec(), words("an owl", 2000));
    let row = [part, words("a wolf", 5), b"\"}\n".to_vec()].concat();
    let hub = Hub::of_texts(Mood::default(), &[("parts/one two.jsonl", &row), ("other.txt", &other)]);
    let cache = tempfile::tempdir().unwrap();
    let read = json_of(&mut eval(&hub, cache.path(), "org/texts@v1:parts/one two.jsonl"));
    assert_eq!(read["data_sha256"], sha256(&row));
    assert!(snapshot(cache.path(), EARLIER, "parts/one two.jsonl").is_file());
    assert!(!snapshot(cache.path(), COMMIT, "").exists());
    assert!(hub.seen().iter().any(|s| s.line.contains(&format!("{EARLIER}/parts/one%20two.jsonl"))));

    let err = error(&mut eval(&hub, cache.path(), "org/texts@v2"));
    assert!(err.contains("data set org/texts has no revision \"v2\"; name a branch"), "{err}");
    let err = error(&mut eval(&hub, cache.path(), "org/texts:none.txt"));
    assert!(err.contains("has no file none.txt; it has other.txt, parts/one two.jsonl"), "{err}");
    let requests = hub.seen().len();
    let err = error(&mut eval(&hub, cache.path(), "org/texts:x.parquet"));
    assert!(err.contains("read_parquet(\"hf://datasets/org/texts/x.parquet\")"), "{err}");
    assert_eq!(hub.seen().len(), requests, "what cannot be read is not fetched");
}

#[test]
fn only_tables_end_in_a_command_that_converts_them() {
    let files: [(&str, &[u8]); 3] =
        [("README.md", b"x"), ("data/train-0.parquet", b"PAR1"), ("data/validation-0.parquet", b"PAR1")];
    let (hub, cache) = (Hub::of_texts(Mood::default(), &files), tempfile::tempdir().unwrap());
    let err = error(&mut eval(&hub, cache.path(), "org/texts"));
    for part in [
        "it has data/train-0.parquet, data/validation-0.parquet;",
        "name a file that is JSON lines or plain text, as org/texts:FILE",
        "read_parquet(\"hf://datasets/org/texts/data/validation-0.parquet\").to_json(\"validation-0.jsonl\"",
    ] {
        assert!(err.contains(part), "{part}: {err}");
    }
    // One document is no JSON lines, whatever it is called.
    let files: [(&str, &[u8]); 1] = [("train.json", b"[\n{\"text\": \"a\"}\n]\n")];
    let (hub, cache) = (Hub::of_texts(Mood::default(), &files), tempfile::tempdir().unwrap());
    let err = error(&mut eval(&hub, cache.path(), "org/texts"));
    assert!(err.contains("train.json of data set org/texts is neither") && err.contains("read_json("), "{err}");
}

#[test]
fn what_a_hub_does_wrong_ends_in_a_clear_message() {
    let text = words("a bear", 2000);
    let status = |s: u16| Mood { status: Some(s), ..Mood::default() };
    for (mood, message) in [
        (status(404), "has no revision \"main\" of data set org/texts; check the name"),
        (status(401), "does not exist, or is private"),
        (Mood { gated: true, ..Mood::default() }, "/datasets/org/texts, then set HF_TOKEN"),
        (Mood { lie: true, ..Mood::default() }, "SHA-256"),
        (Mood { extra_name: Some("../../evil.txt"), ..Mood::default() }, "outside of the repository"),
    ] {
        let (hub, cache) = (Hub::of_texts(mood, &[("valid.txt", &text)]), tempfile::tempdir().unwrap());
        let err = error(&mut eval(&hub, cache.path(), "org/texts"));
        assert!(err.contains(message) && err.contains("--data org/texts: no such file here"), "{message}: {err}");
        let err = error(eval(&hub, cache.path(), "org/texts").arg("--offline"));
        assert!(err.contains("switched off"), "nothing half-fetched is taken for a text: {err}");
        assert!(!snapshot(cache.path(), COMMIT, "valid.txt").exists());
    }
}

#[test]
fn offline_asks_nobody_and_files_are_no_names() {
    let text = words("a goat", 5);
    let (hub, cache) = (Hub::of_texts(Mood::default(), &[("valid.txt", &text)]), tempfile::tempdir().unwrap());
    let err = error(eval(&hub, cache.path(), "org/texts").env("HF_HUB_OFFLINE", "1"));
    assert!(err.contains("switched off") && err.contains("name a local file"), "{err}");
    for path in ["org/texts.jsonl", "./org/texts", "/org/texts", "org/texts/deep"] {
        let err = error(&mut eval(&hub, cache.path(), path));
        assert!(err.contains(&format!("{path}: no such file; name a .jsonl or .txt file with --data")), "{err}");
    }
    assert_eq!(hub.seen(), []);
}

#[test]
fn a_dropped_connection_is_continued() {
    let text = words("a goose", 2000);
    let mood = Mood { drop_after: Some(30_000), ..Mood::default() };
    let (hub, cache) = (Hub::of_texts(mood, &[("valid.txt", &text)]), tempfile::tempdir().unwrap());
    assert_eq!(json_of(&mut eval(&hub, cache.path(), "org/texts"))["data_sha256"], sha256(&text));
    let ranges: Vec<Option<String>> =
        hub.seen().into_iter().filter(|s| s.line.starts_with("GET /datasets")).map(|s| s.range).collect();
    assert_eq!(ranges, [None, Some("bytes=30000-".to_owned())]);
}

/// The Python program's own command line; training takes the other file.
#[test]
fn packs_take_names_of_the_hub() {
    let (train, valid) = (words("a mouse", 400), words("a cat", 60));
    let files: [(&str, &[u8]); 2] = [("train.txt", &train), ("valid.txt", &valid)];
    let (hub, dir) = (Hub::of_texts(Mood::default(), &files), tempfile::tempdir().unwrap());
    let packs = |args: &[&str]| {
        let mut c = host(None);
        c.env("HF_ENDPOINT", &hub.address).env("HF_HUB_CACHE", dir.path().join("hub"));
        c.args(["packs", "--packs", dir.path().join("packs").to_str().unwrap()]).args(args);
        c
    };
    let trained = packs(&[
        "create",
        "--name",
        "tale",
        "--data",
        "org/texts",
        "--steps",
        "1",
        "--rank",
        "1",
        "--batch-size",
        "1",
        "--sequence-length",
        "16",
        "--layers",
        "blocks.0.attn.q_proj",
    ]);
    let (code, _, err) = done(&mut { trained });
    assert!(code == 0 && err.contains("train.txt"), "{code} {err}");
    let line = ["eval", "--base", "smollm2-135m", "--pack", "tale", "--data-path", "org/texts", "--csv"];
    let (code, out, err) =
        done(packs(&line).args(["--num-samples", "6", "--sequence-length", "40", "--batch-size", "3"]));
    assert!(code == 0 && out.starts_with("model,pack,") && err.contains("valid.txt"), "{code} {out}{err}");
    assert_eq!(out.lines().count(), 3, "{out}");
}
