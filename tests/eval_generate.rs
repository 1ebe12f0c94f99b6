//! `plastic-host generate` and `plastic-host eval` on the default model.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use plastic_tests::{Ran, Scratch, base, host, ran};
use serde_json::Value;

fn generate(args: &[&str]) -> Ran {
    ran(host().args(["generate", "--base", &base()]).args(args))
}

fn answer(args: &[&str]) -> Value {
    let r = generate(&[args, &["--json"]].concat());
    assert_eq!(r.code, Some(0), "{r:?}");
    r.json()
}

/// A data file of this test alone.
struct Data {
    _scratch: Scratch,
    path: String,
}

impl Data {
    fn new(name: &str, text: &str) -> Data {
        let scratch = Scratch::new("data");
        let path = scratch.file(name, text.as_bytes());
        Data { _scratch: scratch, path }
    }

    fn eval(&self, args: &[&str]) -> Ran {
        ran(host().args(["eval", "--base", &base(), "--data", &self.path]).args(args))
    }
}

#[test]
fn the_capital_of_france_is_paris() {
    let r = generate(&["--raw", "--prompt", "The capital of France is", "--max-tokens", "8"]);
    assert_eq!(r.code, Some(0), "{r:?}");
    assert!(r.out.contains("Paris"), "{r:?}");
    assert!(r.err.contains("tokens/s") && r.err.contains("first token after"), "{r:?}");
    let quiet = generate(&["--raw", "--prompt", "The capital of France is", "--max-tokens", "8", "--quiet"]);
    assert_eq!((quiet.out, quiet.err), (r.out, String::new()));
}

#[test]
fn a_seed_decides_the_text() {
    let draw = |seed: &str| {
        let args = ["--raw", "--prompt", "Once upon a time", "--max-tokens", "12", "--temperature", "1"];
        answer(&[&args[..], &["--seed", seed]].concat())["text"].as_str().unwrap().to_owned()
    };
    let first = draw("1");
    assert_eq!(draw("1"), first);
    assert_ne!(draw("2"), first);
}

#[test]
fn a_stop_text_ends_the_answer_and_is_not_in_it() {
    let args = ["--raw", "--prompt", "The capital of France is", "--max-tokens", "20"];
    let made = answer(&[&args[..], &["--stop", "zzz", "--stop", "Par"]].concat());
    assert_eq!((made["text"].as_str(), made["finish"].as_str()), (Some(" "), Some("stop")), "{made}");
    assert_eq!(made["prompt_tokens"], 5);
    // Without it the same tokens go on.
    let whole = answer(&args);
    assert!(whole["text"].as_str().unwrap().starts_with(" Paris"), "{whole}");
    assert_eq!(whole["finish"], "length");
}

#[test]
fn a_prompt_comes_from_a_file_or_a_pipe_through_the_chat_template() {
    let file = Data::new("question.txt", "Name a colour.\n");
    let from_file = answer(&["--prompt-file", &file.path, "--max-tokens", "4"]);
    let mut piped = host();
    piped.args(["generate", "--base", &base(), "--max-tokens", "4", "--json"]);
    let piped = ran(piped.stdin(std::fs::File::open(&file.path).unwrap())).json();
    let given = answer(&["--prompt", "Name a colour.", "--max-tokens", "4"]);
    assert_eq!(from_file["tokens"], given["tokens"]);
    assert_eq!(piped["tokens"], given["tokens"]);
    // The template's own words come on top of the three or four of the question.
    assert!(given["prompt_tokens"].as_u64().unwrap() > 10, "{given}");
    let system = answer(&["--prompt", "Name a colour.", "--system", "Be brief.", "--max-tokens", "1"]);
    assert_ne!(system["prompt_tokens"], given["prompt_tokens"]);
}

const PROMPTS: &str = r#"{"prompt": "What is the largest planet in our solar system?", "id": "planet"}
{"prompt": "Name three colours."}

{"messages": [{"role": "user", "content": "Say hello in French."}], "seed": 40}
{"prompt": "Write one sentence about the sea. It should mention waves, wind and a boat, and be in the past tense."}
{"prompt": "2+2?"}
"#;

#[test]
fn many_prompts_get_the_answers_that_each_gets_alone() {
    let file = Data::new("prompts.jsonl", PROMPTS);
    let of = |args: &[&str]| -> Vec<Value> {
        let r = generate(&[&["--prompts", &file.path, "--max-tokens", "6", "--json"], args].concat());
        assert_eq!(r.code, Some(0), "{r:?}");
        r.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    // Three rows for five prompts: two of them take a place that became free.
    let together = of(&["--batch", "3"]);
    let place = |a: &Value| (a["index"].as_u64().unwrap(), a["line"].as_u64().unwrap(), a["seed"].as_u64().unwrap());
    assert_eq!(
        together.iter().map(place).collect::<Vec<_>>(),
        [(0, 1, 0), (1, 2, 1), (2, 4, 40), (3, 5, 3), (4, 6, 4)]
    );
    assert_eq!(together[0]["id"], "planet");
    for (i, prompt) in [(1, "Name three colours."), (2, "Say hello in French."), (4, "2+2?")] {
        let alone = answer(&["--prompt", prompt, "--max-tokens", "6"]);
        for field in ["text", "tokens", "finish", "prompt_tokens"] {
            assert_eq!(together[i][field], alone[field], "{prompt}: {field}");
        }
    }
    // Draws are a prompt's own, whoever else is there.
    let drawn = of(&["--temperature", "1", "--batch", "5"]);
    let alone =
        answer(&["--temperature", "1", "--prompt", "Say hello in French.", "--max-tokens", "6", "--seed", "40"]);
    assert_eq!(drawn[2]["tokens"], alone["tokens"]);
}

#[test]
fn a_row_that_is_no_prompt_is_named_before_any_work() {
    let wrong = |line: &str, args: &[&str], text: &str| {
        let file = Data::new("p.jsonl", &format!("{{\"prompt\": \"x\"}}\n{line}\n"));
        let r = generate(&[&["--prompts", &file.path], args].concat());
        r.refuses(1, &format!("{}:2: {text}", file.path));
        assert_eq!(r.out, "", "an answer was made");
    };
    wrong("{\"prompt\": ", &[], "not valid JSON");
    wrong("{\"text\": \"x\"}", &[], "has neither `prompt` nor `messages`");
    wrong("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", &["--raw"], "has `messages`");
    let long = format!("{{\"prompt\": \"{}\"}}", "word ".repeat(9000));
    wrong(&long, &[], "the prompt has");
    assert_eq!(generate(&["--prompts", "x", "--batch", "0"]).code, Some(2));
    assert_eq!(generate(&["--prompts", "x", "--prompt", "y"]).code, Some(2));
    generate(&["--prompts", "/nowhere/p.jsonl"]).refuses(1, "/nowhere/p.jsonl");
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_the_answers_that_have_ended() {
    use std::io::{BufRead, BufReader, Read};
    let file = Data::new("many.jsonl", &"{\"prompt\": \"Count to one hundred.\"}\n".repeat(400));
    let mut child = host()
        .args(["generate", "--base", &base(), "--prompts", &file.path, "--batch", "2", "--max-tokens", "4", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    out.read_line(&mut text).unwrap();
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    out.read_to_string(&mut text).unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{err}");
    let answers: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(!answers.is_empty() && answers.len() < 400, "{} answers", answers.len());
    assert!(err.contains(&format!("{} prompts have no answer", 400 - answers.len())), "{err}");
}

#[test]
fn wrong_requests_are_told_apart_from_failures() {
    let r = generate(&["--prompt", "x", "--top-p", "2"]);
    assert_eq!(r.code, Some(2), "{r:?}");
    assert!(r.err.contains("--top-p is 2; expected 0 to 1"), "{r:?}");
    assert_eq!(generate(&["--prompt", "x", "--prompt-file", "y"]).code, Some(2));
    assert_eq!(generate(&["--prompt", "x", "--raw", "--system", "y"]).code, Some(2));
    // An empty pipe is no prompt either.
    let empty = generate(&[]);
    assert_eq!(empty.code, Some(1), "{empty:?}");
    assert!(empty.err.contains("prompt is empty"), "{empty:?}");
    let state = ran(host().args(["generate", "--prompt", "x", "--state", "/nowhere/run"]));
    assert_eq!(state.code, Some(1));
    assert!(state.err.contains("/nowhere/run"), "{state:?}");
    assert_eq!(ran(host().args(["eval", "--window", "1"])).code, Some(2));
}

#[test]
fn a_broken_line_is_named() {
    let data = Data::new("broken.jsonl", "{\"text\": \"fine\"}\n{\"text\": \n");
    let r = data.eval(&[]);
    assert_eq!(r.code, Some(1), "{r:?}");
    assert!(r.err.contains(&format!("{}:2: not valid JSON", data.path)), "{r:?}");
    // With --json a script finds the same in the document.
    let said: Value = data.eval(&["--json"]).json();
    assert!(said["error"].as_str().unwrap().contains(":2: not valid JSON"), "{said}");
}

#[test]
fn a_file_without_text_is_refused() {
    let r = Data::new("empty.jsonl", "").eval(&[]);
    assert_eq!(r.code, Some(1), "{r:?}");
    assert!(r.err.contains("is empty: no text to work on"), "{r:?}");
    let r = Data::new("fields.jsonl", "{\"id\": 1}\n").eval(&[]);
    assert_eq!(r.code, Some(1), "{r:?}");
    assert!(r.err.contains("line 1 has `id`"), "{r:?}");
}

#[test]
fn a_text_shorter_than_a_window_is_refused_unless_its_tail_is_kept() {
    let data = Data::new("short.jsonl", "{\"text\": \"The sky is blue and the grass is green.\"}\n{\"id\": 1}\n");
    let r = data.eval(&[]);
    assert_eq!(r.code, Some(1), "{r:?}");
    assert!(r.err.contains("512"), "{r:?}");
    let kept = data.eval(&["--keep-tail"]);
    assert_eq!(kept.code, Some(0), "{kept:?}");
    assert!(kept.out.contains("perplexity") && kept.out.contains("1 rows without text"), "{kept:?}");
    assert!(kept.err.contains("line 2 has `id`"), "{kept:?}");
}

#[test]
fn the_document_adds_up() {
    let text = "It was the best of times, it was the worst of times, it was the age of wisdom. ".repeat(8);
    let data = Data::new("document.jsonl", &format!("{{\"text\": \"{text}\"}}\n"));
    let r = data.eval(&["--window", "32", "--windows", "3", "--batch", "2", "--json"]);
    assert_eq!(r.code, Some(0), "{r:?}");
    let said: Value = r.json();
    let windows = said["windows"].as_array().unwrap();
    let sum = |name: &str| windows.iter().map(|w| w[name].as_f64().unwrap()).sum::<f64>();
    let number = |name: &str| said[name].as_f64().unwrap_or_else(|| panic!("{name} in {said}"));
    assert_eq!(windows.len(), 3);
    assert_eq!(said["scored_tokens"], 3 * 31);
    assert_eq!(sum("tokens"), 93.0);
    assert!((sum("nll") / 93.0 - number("mean_nll")).abs() < 1e-12);
    assert!((number("mean_nll").exp() / number("perplexity") - 1.0).abs() < 1e-12);
    // A text that repeats itself is neither certain nor news.
    assert!((0.01..6.0).contains(&number("mean_nll")), "{said}");
    assert!(number("first_batch_ms") > 0.0 && number("first_batch_ms") / 1e3 < number("seconds"), "{said}");
    assert!(number("peak_mlx_bytes") > 1e8 && number("perplexity_standard_error") > 0.0, "{said}");
}
