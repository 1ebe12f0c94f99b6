//! The contract holds: plugins built for 1.0 and never rebuilt load, and answer as on the day they
//! were built; and the contract's text has not changed behind their backs.
//!
//! `PLASTIC_WRITE_GOLDEN=1` writes what is missing (never what is there), after the plugins of
//! `plugins/` have been copied into a new version's folder.
#![allow(clippy::unwrap_used, reason = "tests")]

use plastic_host::model::hash::sha256;
use plastic_host::plugin::contract::*;
use plastic_host::plugin::{Limits, Measure, load_evaluator, load_policy};
use serde_json::json;
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/golden/plugins")
}

/// Compares with the file, or writes it where it is missing and that was asked for.
fn holds(file: &Path, answer: &serde_json::Value) {
    if !file.exists() && std::env::var_os("PLASTIC_WRITE_GOLDEN").is_some() {
        std::fs::write(file, serde_json::to_vec_pretty(answer).unwrap()).unwrap();
    }
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(&kept, answer, "{}", file.display());
}

/// A small model with every kind of fact in it.
fn model() -> (Run, Vec<Slice>, Observation) {
    let slice = |i: u32| Slice {
        name: format!("model.layers.{i}.mlp.up_proj"),
        layer: i,
        kind: "up_proj".into(),
        group: i,
        rows: 24 + 8 * i,
        cols: 16,
        max_rank: 16,
        dense_parameters: u64::from((24 + 8 * i) * 16),
        component_parameters: u64::from(24 + 8 * i + 16),
        attributes: vec![Attribute { name: "texts".into(), value: Value::Texts(vec!["a".into(), "b".into()]) }],
    };
    let slices: Vec<Slice> = (0..4).map(slice).collect();
    let parameters: u64 = slices.iter().map(|s| s.dense_parameters).sum();
    let run = Run {
        phase: "compress".into(),
        seed: 7,
        steps: 3,
        parameters,
        budget: parameters * 7 / 10,
        attributes: vec![Attribute { name: "metrics".into(), value: Value::Texts(vec!["loss-increase".into()]) }],
    };
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
    let value = |i: u32, k: u32| (1.0 + i as f32) / (1.0 + k as f32);
    let metric = Metric {
        name: "loss-increase".into(),
        value: 0.125,
        unit: "nats".into(),
        higher_is_better: false,
        low: Some(0.0625),
        high: Some(0.25),
    };
    let observation = Observation {
        step: 2,
        awake: parameters,
        slices: slices.iter().map(state).collect(),
        series: (0..4).map(|i| Series { slice: i, need: 0, offset: 16 * i, len: 16 }).collect(),
        values: (0..4).flat_map(|i| (0..16).map(move |k| value(i, k))).collect(),
        asleep: vec![],
        metrics: vec![metric.clone()],
        last: Some(Outcome {
            step: 1,
            fate: "rejected".into(),
            reason: "the rise exceeds the limit".into(),
            predicted: Some(0.03),
            measured: Some(0.125),
            metrics: vec![metric],
        }),
        proposed: Some(Plan {
            actions: vec![Action { slice: 1, change: Change::SetRank(5), reason: "proposed".into() }],
            ..Plan::default()
        }),
        attributes: vec![Attribute { name: "flag".into(), value: Value::Flag(true) }],
    };
    (run, slices, observation)
}

/// A host with a candidate that is a little worse.
struct Lab;

impl Measure for Lab {
    fn windows(&self) -> u32 {
        4
    }
    fn window(&self, index: u32) -> Result<Vec<u32>, String> {
        Ok((index..index + 6).collect())
    }
    fn score(&mut self, subject: &str, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, String> {
        let worse = if subject == "candidate" { 0.015625 } else { 0.0 };
        Ok(sequences.iter().map(|s| s.iter().skip(1).map(|t| -2.0 - *t as f32 / 8.0 - worse).collect()).collect())
    }
    fn score_windows(&mut self, subject: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        let windows: Result<Vec<_>, _> = indices.iter().map(|i| self.window(*i)).collect();
        self.score(subject, &windows?)
    }
    fn generate(&mut self, _: &str, prompt: &str, _: u32) -> Result<String, String> {
        Ok(prompt.to_uppercase())
    }
    fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        Ok(text.bytes().map(u32::from).collect())
    }
    fn detokenize(&self, tokens: &[u32]) -> Result<String, String> {
        Ok(tokens.iter().filter_map(|t| char::from_u32(*t)).collect())
    }
    fn counters(&mut self, _: &str) -> Result<Vec<Metric>, String> {
        Ok(vec![])
    }
    fn divergence(&mut self, _: &str, _: &str, indices: &[u32]) -> Result<Vec<Vec<f32>>, String> {
        Ok(indices.iter().map(|i| vec![0.03125 * (1.0 + *i as f32); 5]).collect())
    }
    fn examples(&self) -> u32 {
        0
    }
    fn example(&self, index: u32) -> Result<Example, String> {
        Err(format!("there is no example {index}"))
    }
    fn timing(&mut self, _: &str, _: u32, _: u32) -> Result<Vec<Metric>, String> {
        Err("nothing is timed here".into())
    }
}

#[test]
fn plugins_of_every_released_version_load_and_answer_as_they_did() {
    let mut loaded = 0;
    for version in std::fs::read_dir(golden()).unwrap().flatten().filter(|e| e.path().is_dir()) {
        for file in std::fs::read_dir(version.path()).unwrap().flatten().map(|e| e.path()) {
            if file.extension().is_none_or(|e| e != "wasm") {
                continue;
            }
            loaded += 1;
            let kept = file.with_extension("json");
            if let Ok(mut policy) = load_policy(&file, &Limits::default(), None) {
                let (run, slices, observation) = model();
                policy.configure(&json!({})).unwrap();
                policy.start(&run, &slices).unwrap();
                let plan = policy.decide(&observation).unwrap();
                let state = policy.snapshot().unwrap();
                policy.start(&run, &slices).unwrap();
                policy.restore(&state).unwrap();
                holds(&kept, &json!({ "info": policy.info(), "plan": plan }));
            } else {
                let mut evaluator = load_evaluator(&file, &Limits::default(), None).unwrap();
                evaluator.configure(&json!({})).unwrap();
                let verdict = evaluator.evaluate(&Task { step: 2, seed: 7, attributes: vec![] }, &mut Lab).unwrap();
                holds(&kept, &json!({ "info": evaluator.info(), "verdict": verdict }));
            }
        }
    }
    assert!(loaded >= 4, "{loaded} plugins are kept in {}", golden().display());
}

#[test]
fn the_text_of_the_contract_is_the_released_one() {
    let api = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("plugin-api");
    let text = |file: &str| sha256(&std::fs::read(api.join(file)).unwrap());
    let now = json!({
        "wit/rank.wit": text("wit/rank.wit"),
        "include/plastic_plugin.h": text("include/plastic_plugin.h"),
    });
    let file = golden().join("contract.json");
    if !file.exists() && std::env::var_os("PLASTIC_WRITE_GOLDEN").is_some() {
        std::fs::write(&file, serde_json::to_vec_pretty(&now).unwrap()).unwrap();
    }
    let released: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        released,
        now,
        "the contract's text has changed: plugin-api/wit/VERSIONING.md says what may change; delete {} and write it again \
         with PLASTIC_WRITE_GOLDEN=1 if this is such a change",
        file.display()
    );
}
