//! Covers: `packs eval`, `packs eval-batch`, `packs route` and `packs bakeoff` on the default model.

use plastic_tests::{Ran, Scratch, base, host, ran, root};
use serde_json::{Value, json};

/// Writes a pack of rank 2 on q_proj of the first two layers, whose A and B have this float16 exponent (0: zero).
fn make_pack(dir: &Scratch, name: &str, exponent: u16) {
    let (mut header, mut data, mut ranks, mut alphas) = (json!({}), Vec::<u8>::new(), json!({}), json!({}));
    let mut state = 7u32;
    for layer in 0..2 {
        let key = format!("blocks.{layer}.attn.q_proj");
        for (part, shape) in [("A", [576, 2]), ("B", [2, 576])] {
            let begin = data.len();
            for _ in 0..1152 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let sign_and_mantissa = ((state >> 16) as u16) & 0x83ff;
                let bits = if exponent == 0 { 0 } else { sign_and_mantissa | exponent << 10 };
                data.extend(bits.to_le_bytes());
            }
            header[format!("{key}.lora.{part}")] =
                json!({"dtype": "F16", "shape": shape, "data_offsets": [begin, data.len()]});
        }
        let begin = data.len();
        data.extend(4f32.to_le_bytes());
        header[format!("{key}.lora.alpha")] = json!({"dtype": "F32", "shape": [], "data_offsets": [begin, data.len()]});
        ranks[&key] = json!(2);
        alphas[&key] = json!(4.0);
    }
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    let meta = json!({"pack_name": name, "rank_map": ranks, "alpha_map": alphas, "version": "0.2.0"});
    std::fs::create_dir_all(dir.path(&format!("packs/{name}"))).expect("a pack's directory");
    dir.file(&format!("packs/{name}/pack.safetensors"), &file);
    dir.file(&format!("packs/{name}/meta.json"), meta.to_string().as_bytes());
}

fn packs(dir: &Scratch, args: &[&str]) -> Ran {
    ran(host().args(["packs", "--packs", &dir.path("packs")]).args(args))
}

fn eval(dir: &Scratch, args: &[&str]) -> Ran {
    let small = ["eval", "--base", &base(), "--sequence-length", "40", "--num-samples", "6", "--batch-size", "3"];
    packs(dir, &[&small[..], args].concat())
}

fn golden() -> Value {
    let text = std::fs::read(root().join("tests/golden/packs/judge.json")).expect("the golden file");
    serde_json::from_slice(&text).expect("golden JSON")
}

fn columns(csv: &str) -> Vec<String> {
    csv.lines().next().unwrap_or_default().split(',').map(str::to_owned).collect()
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[test]
fn a_pack_is_compared_with_its_base() {
    let dir = Scratch::new("judge-eval");
    make_pack(&dir, "zero", 0);
    make_pack(&dir, "wild", 16);
    let (csv, out) = (dir.path("new/deep/r.csv"), dir.path("new/r.json"));

    let zero = eval(&dir, &["--pack", "zero", "--json", "--csv", &csv, "--out", &out]);
    assert_eq!(zero.code, Some(0), "{}", zero.err);
    let of = zero.json();
    assert_eq!(of["measured"]["max_logit_diff"], 0.0);
    assert_eq!(of["measured"]["difference"]["mean_nll"], 0.0);
    assert_eq!(of["rows"][0]["perplexity"], of["rows"][1]["perplexity"]);
    assert!(
        of["rows"][1]["first_token_ms"].as_f64() > Some(0.0) && of["rows"][1]["tokens_per_sec"].as_f64() > Some(0.0)
    );
    let written: Value = serde_json::from_slice(&std::fs::read(out).expect("--out")).expect("JSON");
    assert_eq!(written["windows_sha256"], of["windows_sha256"]);
    let text = std::fs::read_to_string(csv).expect("--csv");
    let expected = strings(&golden()["csv_columns"]["eval_seed"]);
    assert_eq!(columns(&text)[..expected.len()], expected);
    assert_eq!(text.lines().count(), 3);

    // A pack that does harm: measured, refused by a guardrail, rejected by an evaluator.
    let wild = eval(&dir, &["--pack", "wild", "--max-ppl-increase", "1", "--max-pack-mb", "10", "--json"]);
    assert_eq!(wild.code, Some(3), "{}", wild.err);
    let of = wild.json();
    assert!(of["measured"]["max_logit_diff"].as_f64() > Some(1.0));
    assert_eq!(of["broken"][0]["guardrail"], "--max-ppl-increase");
    assert_eq!(of["broken"].as_array().map(Vec::len), Some(1));
    let shown = eval(&dir, &["--pack", "wild", "--max-pack-mb", "0.001", "--max-memory", "1MiB"]);
    assert_eq!(shown.code, Some(3));
    assert!(shown.out.contains("guardrail broken") && shown.out.contains("--max-memory"), "{}", shown.out);
    let judge = ["--evaluator", "plugins/perplexity.wasm", "--evaluator-opt", "max_loss_increase=0.001", "--json"];
    let rejected = eval(&dir, &[&["--pack", "wild"], &judge[..]].concat());
    assert_eq!(rejected.code, Some(3), "{}", rejected.err);
    assert_eq!(rejected.json()["judged"][0]["verdict"]["decision"], "reject");
    let accepted = eval(&dir, &[&["--pack", "zero"], &judge[..]].concat());
    assert_eq!(accepted.code, Some(0), "{}", accepted.err);
    assert_eq!(accepted.json()["judged"][0]["verdict"]["decision"], "accept");
}

#[test]
fn what_cannot_be_compared_is_said_before_the_work() {
    let dir = Scratch::new("judge-wrong");
    make_pack(&dir, "zero", 0);
    eval(&dir, &["--pack", "zero", "--offline", "--data-path", "roneneldan/TinyStories"]).refuses(1, "switched off");
    eval(&dir, &["--pack", "zer"]).refuses(1, "did you mean zero?");
    eval(&dir, &["--pack", "zero", "--max-memory", "much"]).refuses(2, "is no size");
    eval(&dir, &["--max-pack-mb", "1"]).refuses(2, "name one with --pack");
    eval(&dir, &["--pack", "zero", "--json", "--csv"]).refuses(2, "both want standard output");
    let file = dir.file("file", b"");
    eval(&dir, &["--pack", "zero", "--out", &format!("{file}/x.json")]).refuses(1, "--out");
    packs(&dir, &["eval-batch", "--pack", "zero", "--batch-size", "8,x"]).refuses(2, "Invalid batch size 'x'");
    packs(&dir, &["eval-batch", "--pack", "zero", "--thinking", "none"]).refuses(2, "keep, strip, cap=N");
}

#[test]
fn domains_and_batch_sizes_make_a_table() {
    let dir = Scratch::new("judge-batch");
    make_pack(&dir, "zero", 0);
    let long = "<think>this is not counted</think>the quick brown fox jumps over the lazy dog ".repeat(12);
    let rows = [
        json!({"domain": "animals", "text": long}),
        json!({"domain": "short", "text": "too short"}),
        json!({"prompt": "a b c d e f g h i j k l m n o p q r s t u v w x y z ".repeat(3)}),
        json!({"id": 1}),
    ];
    let input = dir.file("d.jsonl", rows.map(|r| r.to_string()).join("\n").as_bytes());
    let csv = dir.path("r.csv");
    let args = ["eval-batch", "--base", &base(), "--pack", "zero", "--input", &input, "--batch-size", "2,4"];
    let got = packs(&dir, &[&args[..], &["--sequence-length", "24", "--csv", &csv, "--json"]].concat());
    assert_eq!(got.code, Some(0), "{}", got.err);
    assert!(got.err.contains("short: skipped"), "{}", got.err);
    let of = got.json();
    assert_eq!(of["skipped"][0]["domain"], "short");
    assert_eq!(of["unusable_rows"], 1);
    let cases: Vec<(&str, u64)> = (of["rows"].as_array().into_iter().flatten())
        .map(|r| (r["domain"].as_str().unwrap_or_default(), r["batch_size"].as_u64().unwrap_or(0)))
        .collect();
    assert_eq!(cases, [("animals", 2), ("animals", 4), ("default", 2), ("default", 4)]);
    // The batch changes the speed, not what is measured.
    let ppl = |i: usize| of["rows"][i]["ppl_base"].as_f64().unwrap_or(0.0);
    assert!((ppl(0) / ppl(1) - 1.0).abs() < 1e-4 && ppl(0) > 1.0);
    let text = std::fs::read_to_string(csv).expect("--csv");
    assert_eq!(columns(&text), strings(&golden()["csv_columns"]["eval_batch_seed_and_head"]));
}

#[test]
fn requests_wake_the_pack_of_their_domain() {
    let dir = Scratch::new("judge-route");
    make_pack(&dir, "zero", 0);
    make_pack(&dir, "wild", 16);
    let requests: Vec<String> = ["taxi", "med", "taxi", "gone", "taxi", "else"]
        .iter()
        .map(|d| json!({"domain": d, "prompt": "Once upon a time"}).to_string())
        .collect();
    let input = dir.file("r.jsonl", requests.join("\n").as_bytes());
    let out = dir.path("events/e.jsonl");
    let map = "taxi=zero,med=wild,gone=missing";
    let args = ["route", "--base", &base(), "--domain-map", map, "--input", &input, "--out", &out, "--json"];
    let got = packs(&dir, &[&args[..], &["--max-tokens", "3"]].concat());
    assert_eq!(got.code, Some(1), "{}", got.err);
    let of = got.json();
    let actions: Vec<String> =
        of["events"].as_array().into_iter().flatten().map(|e| e["action"].as_str().unwrap_or("?").to_owned()).collect();
    assert_eq!(actions, ["attach", "switch", "switch", "failed", "noop", "detach"]);
    let event = |i: usize, field: &str| of["events"][i][field].clone();
    assert_eq!([event(0, "from"), event(1, "from"), event(2, "from")], [json!("disk"), json!("disk"), json!("memory")]);
    // A failed request is answered by nobody, and the pack from before stays.
    assert_eq!((event(3, "text"), event(3, "pack")), (Value::Null, json!("zero")));
    assert!(event(3, "error").as_str().unwrap_or_default().contains("no pack missing"));
    // A pack of zeros, parked and woken, is the base; the wild one is not.
    assert_eq!(event(2, "text"), event(5, "text"));
    assert_ne!(event(1, "text"), event(5, "text"));
    let s = &of["summary"];
    assert_eq!((&s["swaps_from_memory"], &s["failed"], &s["hits"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(std::fs::read_to_string(&out).expect("--out").lines().count(), 6);

    // Room for one: the other is dropped and read again.
    let tight = packs(&dir, &[&args[..], &["--max-memory-mb", "0.01"]].concat()).json();
    assert_eq!(tight["summary"]["swaps_from_memory"], 0);
    assert_eq!(tight["summary"]["swaps_from_disk"], 3);
    assert_eq!(tight["summary"]["evictions"], 2);
}

#[test]
fn a_bake_off_goes_on_where_it_stopped() {
    let dir = Scratch::new("judge-bakeoff");
    let row = |seed: usize, n: usize| -> String {
        let words: Vec<String> = (0..n).map(|i| format!("word{}", (i * 7 + seed * 13) % 97 + seed * 100)).collect();
        json!({"text": words.join(" ")}).to_string()
    };
    let train = dir.file("train.jsonl", (1..5).map(|s| row(s, 60)).collect::<Vec<_>>().join("\n").as_bytes());
    let eval = dir.file("eval.jsonl", (5..8).map(|s| row(s, 60)).collect::<Vec<_>>().join("\n").as_bytes());
    let spec = |data: &str, broken: &str| {
        let arm = |name: &str, create: &str| format!("[[arm]]\nname = \"{name}\"\ncreate = {{ {create} }}\n");
        format!(
            "name = \"tiny\"\nbase = \"{}\"\ndata = \"{data}\"\neval = \"{eval}\"\nseeds = [1, 2]\nsequence_length = 32\nnum_samples = 4\n[create]\nsteps = 1\nbatch_size = 2\nsequence_length = 32\nrank = 2\nvalid_windows = 1\n{}{}",
            base(),
            arm("query", "layers = \"blocks.0.attn.q_proj\""),
            arm("output", &format!("layers = \"blocks.0.attn.o_proj\"{broken}"))
        )
    };
    let out = dir.path("out");
    let run = |text: &str| {
        let file = dir.file("s.toml", text.as_bytes());
        ran(host().args(["packs", "bakeoff", &file, "--out", &out, "--json", "--svg", &dir.path("p.svg")]))
    };
    let overlapping = run(&spec(&eval, ""));
    overlapping.refuses(1, "share a passage");

    // What no training takes is said before the first one.
    for (option, why) in [
        ("foo = 3", "--foo"),
        ("\"-x --foo\" = 1", "is no option"),
        ("optimizer = \"none-such\"", "none-such"),
        ("learning_rate = nan", "learning_rate"),
        ("dora = \"yes\"", "--dora"),
        ("policy = \"plugins/perplexity.wasm\"", "perplexity"),
    ] {
        run(&spec(&train, &format!(", {option}"))).refuses(1, why);
    }

    // One arm cannot be trained: the other one is done and kept.
    let first = run(&spec(&train, ", from_pack = \"none-such\""));
    assert_eq!(first.code, Some(1), "{}", first.err);
    let of = first.json();
    assert_eq!((of["arms"][0]["seeds"].as_u64(), of["arms"][1]["seeds"].as_u64()), (Some(2), Some(0)));
    assert!(of["failed"][0]["reason"].as_str().unwrap_or_default().contains("none-such"), "{of}");
    // Called again, it has failed again: a failure is never taken for done.
    assert_eq!(run(&spec(&train, ", from_pack = \"none-such\"")).code, Some(1));
    let second = run(&spec(&train, ""));
    assert_eq!(second.code, Some(0), "{}{}", second.out, second.err);
    let of = second.json();
    assert_eq!((of["kept"].as_u64(), of["arms"][1]["seeds"].as_u64()), (Some(2), Some(2)));
    assert_eq!(of["arms"][0]["total_rank"], of["arms"][1]["total_rank"]);
    assert!(of["arms"][1]["against_reference"]["verdict"].is_string(), "{of}");
    assert!(std::fs::read_to_string(dir.path("p.svg")).expect("--svg").contains("<circle"));
    // Twice the rank is another budget.
    let unequal = run(&spec(&train, ", rank = 4"));
    assert_eq!(unequal.code, Some(3), "{}", unequal.err);
    assert!(unequal.json()["unequal_budgets"][0].as_str().unwrap_or_default().contains("total rank 4"));
}
