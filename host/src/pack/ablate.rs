//! What each part of a pack is worth: by its share of the norm, or by how much the loss rises when it is taken out
//! while the rest stays, window by window, so that the difference is paired.
//!
//! Parts are components as they are stored, slices, layers, targets, or all components beyond the first few of a
//! slice. Names and `channel_norm` are those of mlx-plastic-rank's ablation report.

use super::attach;
use super::error::Result;
use super::format::{Adapter, Pack};
use super::key;
use super::product::{Product, norm};
use crate::eval::data::Window;
use crate::eval::perplexity::{self, WindowLoss};
use crate::model::Model;
use serde::Serialize;
use std::collections::BTreeMap;

/// What is taken out at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// One stored component.
    Component,
    /// One adapter.
    Slice,
    /// All adapters of a layer.
    Layer,
    /// All adapters of one kind.
    Target,
    /// All components of an adapter but the first so many.
    Prefix(usize),
}

/// A part of a pack.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// What it is called.
    pub id: String,
    /// Its components, by adapter.
    pub components: BTreeMap<String, Vec<usize>>,
    /// How many.
    pub count: usize,
    /// Frobenius norm of what it adds.
    pub norm: f64,
    /// That over the norm of the pack.
    pub share: f64,
    /// Root of the sum of its components' squared norms, as if they were orthogonal.
    pub channel_norm: f64,
    /// What it is worth, where that was measured.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub worth: Option<Worth>,
}

/// A measured worth, nats per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Worth {
    /// Rise of the loss without the part.
    pub loss_rise: f64,
    /// Lower end of the 95 % interval; `None` for a single window.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
}

/// Losses around an ablation, nats per token.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Losses {
    /// Without the pack.
    pub base: f64,
    /// With all of it.
    pub pack: f64,
    /// Tokens that counted.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
}

/// The parts of a pack, largest first.
///
/// # Errors
/// When MLX fails.
pub fn parts(pack: &Pack, unit: Unit) -> Result<Vec<Part>> {
    let mut grouped: BTreeMap<String, BTreeMap<String, Vec<usize>>> = BTreeMap::new();
    let mut norms: BTreeMap<&str, (Vec<f64>, f64)> = BTreeMap::new();
    for (key, a) in &pack.adapters {
        let product = Product::of(a, 1.0)?;
        norms.insert(key, (product.component_norms()?, product.norm()?));
        let word = key.replace('.', "_");
        let all: Vec<usize> = (0..a.rank()).collect();
        let mut add = |id: String, which: Vec<usize>| drop(grouped.entry(id).or_default().insert(key.clone(), which));
        match unit {
            Unit::Component => all.iter().for_each(|c| add(format!("channel-{word}-c{c:04}"), vec![*c])),
            Unit::Slice => add(format!("adapter-{word}"), all),
            Unit::Layer => add(format!("layer-{:04}", key::layer(key).unwrap_or_default()), all),
            Unit::Target => add(format!("target-{}", key::target(key).replace('.', "_")), all),
            Unit::Prefix(keep) if keep < a.rank() => add(format!("prefix-{word}-keep{keep:04}"), all[keep..].to_vec()),
            Unit::Prefix(_) => {}
        }
    }
    let total = norm(&norms.values().map(|(_, n)| *n).collect::<Vec<_>>());
    let mut out = Vec::with_capacity(grouped.len());
    for (id, components) in grouped {
        let (mut size, mut channels) = (0.0f64, 0.0f64);
        for (key, which) in &components {
            let Some(((each, whole), a)) = norms.get(key.as_str()).zip(pack.adapters.get(key)) else { continue };
            let of: Vec<f64> = which.iter().filter_map(|c| each.get(*c).copied()).collect();
            channels = channels.hypot(norm(&of));
            size = size.hypot(match which.len() {
                n if n == a.rank() => *whole,
                1 => norm(&of),
                _ => Product::of(&a.components(which), 1.0)?.norm()?,
            });
        }
        out.push(Part {
            id,
            count: components.values().map(Vec::len).sum(),
            components,
            norm: size,
            share: if total > 0.0 { size / total } else { 0.0 },
            channel_norm: channels,
            worth: None,
        });
    }
    out.sort_by(|a, b| b.norm.total_cmp(&a.norm).then_with(|| a.id.cmp(&b.id)));
    Ok(out)
}

/// Measures what each part is worth on a model that the pack fits; the pack is off the model again in the end.
/// `progress` is told how many parts are done and answers whether to go on; the parts after that stay unmeasured.
/// `None` where it stopped before the first.
///
/// # Errors
/// When the pack does not fit the model, or the model fails.
pub fn measure(
    model: &mut Model,
    pack: &Pack,
    parts: &mut [Part],
    windows: &[Window],
    batch: usize,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<Option<Losses>> {
    let full = attach::prepare(model, &[(pack, 1.0)])?;
    attach::detach(model);
    let Some(base) = perplexity::measure(model, windows, batch, &mut |_| progress(0))? else { return Ok(None) };
    attach::attach(model, &full);
    let Some(with) = perplexity::measure(model, windows, batch, &mut |_| progress(0))? else {
        attach::detach(model);
        return Ok(None);
    };
    let done = each(model, pack, &full, parts, windows, batch, &with.windows, progress);
    attach::detach(model);
    done?;
    Ok(Some(Losses {
        base: base.mean_nll,
        pack: with.mean_nll,
        tokens: with.scored_tokens,
        windows: with.windows.len(),
    }))
}

#[allow(clippy::too_many_arguments, reason = "one loop of `measure`, split off so that it can leave early")]
fn each(
    model: &mut Model,
    pack: &Pack,
    full: &attach::Attachment,
    parts: &mut [Part],
    windows: &[Window],
    batch: usize,
    with: &[WindowLoss],
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<()> {
    for (number, part) in parts.iter_mut().enumerate() {
        let rest = without(pack, part);
        let changed = attach::prepare(model, &[(&rest, 1.0)])?;
        for key in part.components.keys().filter(|k| !rest.adapters.contains_key(*k)) {
            let slice = key::to_slice(key).unwrap_or_default();
            if let Some(position) = model.slices().iter().position(|s| s.name == slice) {
                model.set_added(position, None);
            }
        }
        attach::put(model, &changed);
        let scored = perplexity::measure(model, windows, batch, &mut |_| progress(number));
        attach::put(model, full);
        let Some(scored) = scored? else { return Ok(()) };
        part.worth = Some(rise(&scored.windows, with));
        if !progress(number + 1) {
            return Ok(());
        }
    }
    Ok(())
}

/// The adapters that a part touches, without it.
fn without(pack: &Pack, part: &Part) -> Pack {
    let rest = |(key, gone): (&String, &Vec<usize>)| -> Option<(String, Adapter)> {
        let a = pack.adapters.get(key)?;
        let keep: Vec<usize> = (0..a.rank()).filter(|c| !gone.contains(c)).collect();
        (!keep.is_empty()).then(|| (key.clone(), a.components(&keep)))
    };
    Pack { meta: pack.meta.clone(), adapters: part.components.iter().filter_map(rest).collect() }
}

/// The mean of paired differences over windows, and its interval.
fn rise(without: &[WindowLoss], with: &[WindowLoss]) -> Worth {
    let differences: Vec<WindowLoss> =
        without.iter().zip(with).map(|(a, b)| WindowLoss { nll: a.nll - b.nll, tokens: b.tokens }).collect();
    let (mean, error) = perplexity::mean(&differences);
    let reach = error.map(|e| e * student(differences.len().saturating_sub(1)));
    Worth { loss_rise: mean, low: reach.map(|r| mean - r), high: reach.map(|r| mean + r) }
}

/// The 97.5 % quantile of Student's t (Abramowitz & Stegun 26.7.5; for one and two degrees the closed forms).
fn student(degrees: usize) -> f64 {
    const Z: f64 = 1.959_963_984_540_054;
    let (z3, z5, z7, z9, n) = (Z.powi(3), Z.powi(5), Z.powi(7), Z.powi(9), degrees as f64);
    match degrees {
        0 => f64::INFINITY,
        1 => 12.706_204_736,
        2 => 4.302_652_730,
        _ => {
            Z + (z3 + Z) / (4.0 * n)
                + (5.0 * z5 + 16.0 * z3 + 3.0 * Z) / (96.0 * n * n)
                + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * Z) / (384.0 * n.powi(3))
                + (79.0 * z9 + 776.0 * z7 + 1482.0 * z5 - 1920.0 * z3 - 945.0 * Z) / (92_160.0 * n.powi(4))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::format::Matrix;
    use super::super::golden_tests::{fixture, golden};
    use super::*;
    use crate::model::LoadOptions;

    #[test]
    fn norms_are_those_of_upstream() {
        let pack = fixture("alpha");
        let g = golden()["ablation"].clone();
        let total = g["total_proxy_update_fro"].as_f64().unwrap();
        for (unit, key) in [(Unit::Component, "channel"), (Unit::Layer, "layer"), (Unit::Prefix(2), "prefix2")] {
            let ours = parts(&pack, unit).unwrap();
            let theirs = g[key].as_array().unwrap();
            assert_eq!(ours.len(), theirs.len(), "{key}");
            for t in theirs {
                let part = ours.iter().find(|p| p.id == t["ablation_id"].as_str().unwrap()).unwrap();
                let norm = t["proxy_removed_fro"].as_f64().unwrap();
                assert!((part.channel_norm - norm).abs() < 1e-5 * norm, "{}: {} {norm}", part.id, part.channel_norm);
                if let Some(share) = t["proxy_removed_fro_share"].as_f64() {
                    assert!((part.share - share).abs() < 1e-5 * share);
                    assert!((part.norm / part.share - total).abs() < 1e-5 * total);
                }
                if let Some(count) = t["channel_count"].as_u64() {
                    assert_eq!(part.count as u64, count);
                }
                if let Some(components) = t.get("channels_by_adapter") {
                    assert_eq!(&serde_json::to_value(&part.components).unwrap(), components);
                }
            }
            assert!(ours.windows(2).all(|w| w[0].norm >= w[1].norm));
        }
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (n, t) in [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (7, 2.365), (30, 2.042), (1000, 1.962)] {
            assert!((student(n) - t).abs() < 2e-3 * t, "{n}: {} {t}", student(n));
        }
    }

    /// Taking a part out is what attaching the rest alone is, and in the end the model is the base again.
    #[test]
    fn a_part_is_worth_what_the_rest_alone_lacks() {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny/qwen3");
        let mut model = Model::load(&dir, &LoadOptions::default()).unwrap();
        let fill = |n: usize, phase: f32| (0..n).map(|i| (i as f32 * 0.7 + phase).sin()).collect::<Vec<f32>>();
        let mut pack = fixture("alpha");
        pack.adapters = model
            .slices()
            .iter()
            .filter(|s| s.kind == "q_proj" || s.kind == "v_proj")
            .map(|s| {
                let (rows, cols, phase) = (s.rows as usize, s.cols as usize, s.layer as f32 + s.kind.len() as f32);
                let a = Matrix::from_f32(rows, 3, &fill(3 * rows, phase));
                let b = Matrix::from_f32(3, cols, &fill(3 * cols, phase + 0.5));
                (key::of_slice(&s.name).unwrap(), Adapter { a, b, alpha: 1.5, magnitude: None })
            })
            .collect();
        let windows: Vec<Window> = (0..4)
            .map(|w| Window { tokens: (0..12).map(|i| (i * 7 + w * 5 + 3) % 40).collect(), mask: None })
            .collect();
        let score = |model: &Model| perplexity::measure(model, &windows, 4, &mut |_| true).unwrap().unwrap();
        let before = score(&model);
        for unit in [Unit::Slice, Unit::Component, Unit::Layer, Unit::Target, Unit::Prefix(1)] {
            let mut all = parts(&pack, unit).unwrap();
            let losses = measure(&mut model, &pack, &mut all, &windows, 4, &mut |_| true).unwrap().unwrap();
            assert!((0..model.slices().len()).all(|i| model.added(i).is_none()), "{unit:?}: the base is back");
            assert_eq!(losses.base, before.mean_nll);
            let part = &all[all.len() / 2];
            let mut rest = pack.clone();
            rest.adapters.extend(without(&pack, part).adapters);
            let gone: Vec<&String> = part.components.iter().filter(|(_, c)| c.len() == 3).map(|(k, _)| k).collect();
            rest.adapters.retain(|k, _| !gone.contains(&k));
            let alone = attach::prepare(&model, &[(&rest, 1.0)]).unwrap();
            attach::attach(&mut model, &alone);
            let expected = score(&model).mean_nll - losses.pack;
            attach::detach(&mut model);
            let worth = part.worth.unwrap();
            assert!((worth.loss_rise - expected).abs() < 1e-6, "{unit:?}: {} {expected}", worth.loss_rise);
            assert!(worth.low.unwrap() <= worth.loss_rise && worth.loss_rise <= worth.high.unwrap());
        }
        // An interruption leaves the rest unmeasured.
        let mut all = parts(&pack, Unit::Slice).unwrap();
        measure(&mut model, &pack, &mut all, &windows, 4, &mut |done| done < 1).unwrap().unwrap();
        assert_eq!(all.iter().filter(|p| p.worth.is_some()).count(), 1);
        assert!((0..model.slices().len()).all(|i| model.added(i).is_none()));
    }
}
