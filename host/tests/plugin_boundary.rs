//! The plugin boundary with real guests.
#![allow(clippy::unwrap_used, reason = "tests")]

use plastic_host::plugin::contract::{Observation, Run, Slice, SliceState, Spectrum};
use plastic_host::plugin::{Limits, load_policy};
use std::path::Path;

fn model(slices: u32, values: u32) -> (Run, Vec<Slice>, Observation) {
    let (rows, cols) = (values, values);
    let dense = u64::from(rows) * u64::from(cols);
    let slice = |i| Slice {
        name: format!("model.layers.{i}.self_attn.q_proj"),
        layer: i,
        kind: "q_proj".into(),
        group: i,
        rows,
        cols,
        max_rank: values,
        dense_parameters: dense,
        component_parameters: u64::from(rows + cols),
        attributes: vec![],
    };
    let state = SliceState {
        awake: values,
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
        budget: total * 9 / 10,
        attributes: vec![],
    };
    let observation = Observation {
        step: 1,
        awake: total,
        slices: vec![state; slices as usize],
        spectra: (0..slices).map(|i| Spectrum { slice: i, need: 0, offset: i * values, len: values }).collect(),
        values: (0..slices).flat_map(|i| (0..values).map(move |k| (1.0 + i as f32) / (1.0 + k as f32))).collect(),
        asleep: vec![],
        metrics: vec![],
        last: None,
        attributes: vec![],
    };
    (run, (0..slices).map(slice).collect(), observation)
}

#[test]
fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let path = Path::new("../target/wasm32-unknown-unknown/plugin/plastic_energy.wasm");
    for _ in 0..3 {
        let t = std::time::Instant::now();
        let mut p = load_policy(path, &Limits::default(), Some(dir.path())).unwrap();
        eprintln!("load {:?} {:?}", t.elapsed(), p.info());
        p.configure(&serde_json::json!({})).unwrap();
        for (n, v) in [(1, 576), (210, 576), (10_000, 64)] {
            let (run, slices, o) = model(n, v);
            p.start(&run, &slices).unwrap();
            let mut best = std::time::Duration::MAX;
            for _ in 0..50 {
                let t = std::time::Instant::now();
                p.decide(&o).unwrap();
                best = best.min(t.elapsed());
            }
            eprintln!("{n}x{v}: {best:?}");
        }
    }
}
