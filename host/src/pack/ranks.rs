//! Maps of ranks by adapter: read from a file or a command line, weighed in bytes, and brought to a budget.
//!
//! An adapter of rank r takes `2 r (outputs + inputs) + 4` bytes.

use super::error::{Error, Result};
use super::format::Pack;
use super::key;
use crate::model::{Model, SliceMeta};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::Path;

/// Rank of each adapter, by key.
pub type Ranks = BTreeMap<String, u32>;

/// Outputs and inputs of each slice, by key.
pub type Shapes = BTreeMap<String, (usize, usize)>;

/// No slice has a larger rank.
const MOST: u32 = 65_536;

/// Refuses ranks that a slice cannot have: more than its rows or columns.
///
/// # Errors
/// With the first one.
pub fn check(ranks: &Ranks, shapes: &Shapes) -> std::result::Result<(), String> {
    match ranks.iter().find(|(k, r)| **r > most(shapes, k)) {
        Some((key, rank)) => Err(format!("rank {rank} is more than the {} that {key} can have", most(shapes, key))),
        None => Ok(()),
    }
}

/// Shapes of the adapters of a pack.
pub fn of_pack(pack: &Pack) -> Shapes {
    pack.adapters.iter().map(|(k, a)| (k.clone(), (a.a.rows, a.b.cols))).collect()
}

/// Shapes of all slices of a model.
pub fn of_model(model: &Model) -> Shapes {
    let shape = |s: &SliceMeta| Some((key::of_slice(&s.name)?, (s.rows as usize, s.cols as usize)));
    model.slices().iter().filter_map(shape).collect()
}

/// Bytes of one adapter.
pub fn bytes(shape: (usize, usize), rank: u32) -> u64 {
    2 * u64::from(rank) * (shape.0 as u64 + shape.1 as u64) + 4
}

/// Bytes of all adapters of a map; those of rank 0 take none.
pub fn total(ranks: &Ranks, shapes: &Shapes) -> u64 {
    ranks.iter().filter(|(_, r)| **r > 0).filter_map(|(k, r)| Some(bytes(*shapes.get(k)?, *r))).sum()
}

/// Reads a map: a JSON object of keys and ranks, or one that holds it as `rank_map`.
///
/// # Errors
/// When the file cannot be read or holds something else; the message names the entry.
pub fn read(path: &Path) -> Result<Ranks> {
    let bytes = crate::atomic::read_bounded(path, 16 << 20).map_err(crate::atomic::FileError::at("reading", path))?;
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("is no JSON: {e}")))?;
    let map = json.get("rank_map").unwrap_or(&json).as_object();
    let map = map.ok_or_else(|| Error::file(path, "expected a JSON object of adapter keys and ranks"))?;
    let mut out = Ranks::new();
    for (name, rank) in map {
        if key::to_slice(name).is_none() {
            let reason = format!("{name} is no adapter key; expected keys such as blocks.0.attn.q_proj");
            return Err(Error::file(path, reason));
        }
        let rank = rank.as_u64().and_then(|r| u32::try_from(r).ok()).ok_or_else(|| {
            Error::file(path, format!("the rank of {name} is {rank}; expected a whole number, 0 or more"))
        })?;
        if rank > MOST {
            return Err(Error::file(path, format!("the rank of {name} is {rank}, more than any slice has")));
        }
        out.insert(name.clone(), rank);
    }
    Ok(out)
}

/// Ranks for the adapters in `shapes` from a file, or from a text such as `q:4,k:2`; the last rule that matches
/// an adapter counts, and those that none matches are left out.
///
/// # Errors
/// When the text is no such list, or a rule matches nothing.
pub fn parse(text: &str, shapes: &Shapes) -> Result<Ranks> {
    let path = Path::new(text);
    if path.is_file() {
        let read = read(path)?;
        return match read.keys().find(|k| !shapes.contains_key(*k)) {
            Some(k) => Err(Error::file(path, format!("names {k}, which is not there"))),
            None => check(&read, shapes).map(|()| read).map_err(|reason| Error::file(path, reason)),
        };
    }
    let mut out = Ranks::new();
    for rule in text.split(',').map(str::trim).filter(|r| !r.is_empty()) {
        let (pattern, rank) = rule
            .rsplit_once(':')
            .and_then(|(p, r)| Some((p, r.parse::<u32>().ok()?)))
            .ok_or_else(|| Error::Usage(format!("{rule}: neither a file nor a rule such as q:4 or blocks.0.*:2")))?;
        let mut any = false;
        for (key, shape) in shapes {
            let slice = meta(key, *shape);
            if key::matches(pattern, &slice).map_err(Error::Usage)? {
                any = true;
                out.insert(key.clone(), rank);
            }
        }
        if !any {
            return Err(Error::Other(format!("{rule}: no adapter is called {pattern}")));
        }
    }
    if out.is_empty() {
        return Err(Error::Usage(format!("{text:?}: no rule; expected some such as q:4 or blocks.0.*:2, or a file")));
    }
    check(&out, shapes).map_err(|reason| Error::Usage(format!("{text}: {reason}")))?;
    Ok(out)
}

/// What patterns look at, for a key.
pub fn meta(key: &str, (rows, cols): (usize, usize)) -> SliceMeta {
    SliceMeta {
        name: key::to_slice(key).unwrap_or_default(),
        layer: key::layer(key).unwrap_or_default(),
        kind: key.rsplit('.').next().unwrap_or_default().to_owned(),
        group: 0,
        rows: rows as u32,
        cols: cols as u32,
    }
}

/// Moves ranks along a ladder until they fit a budget in bytes and leave little of it: down where they take more,
/// the step that ends within the budget with the least left over, else the one that saves most; then up, the step
/// that leaves least. Ties go to the first key. (The rule of mlx-plastic-rank.)
/// No rank rises above what its slice can have.
pub fn fit(ranks: &Ranks, shapes: &Shapes, ladder: &[u32], budget: u64) -> Ranks {
    fit_within(ranks, shapes, ladder, budget, &|key| most(shapes, key))
}

/// The largest rank of a slice.
pub fn most(shapes: &Shapes, key: &str) -> u32 {
    shapes.get(key).map_or(MOST, |(o, i)| u32::try_from(*o.min(i)).unwrap_or(MOST))
}

fn fit_within(ranks: &Ranks, shapes: &Shapes, ladder: &[u32], budget: u64, most: &dyn Fn(&str) -> u32) -> Ranks {
    let mut ranks = ranks.clone();
    let size = |ranks: &Ranks| total(ranks, shapes);
    let per = |key: &str| shapes.get(key).map_or(0, |(o, i)| 2 * (o + i) as u64);
    while size(&ranks) > budget {
        let over = size(&ranks) - budget;
        let down = |(k, r): (&String, &u32)| {
            let next = below(ladder, *r)?;
            Some((k.clone(), next, u64::from(r - next) * per(k)))
        };
        let steps: Vec<(String, u32, u64)> = ranks.iter().filter_map(down).collect();
        let ends = steps.iter().filter(|(_, _, saved)| *saved >= over).min_by_key(|(k, _, saved)| (*saved, k.clone()));
        let most = || steps.iter().min_by_key(|(k, _, saved)| (u64::MAX - *saved, k.clone()));
        let Some((key, rank, _)) = ends.or_else(most) else { break };
        ranks.insert(key.clone(), *rank);
    }
    loop {
        let left = budget.saturating_sub(size(&ranks));
        let up = |(k, r): (&String, &u32)| {
            let next = ladder.get(ladder.partition_point(|l| l <= r))?;
            let cost = u64::from(next - r) * per(k) + if *r == 0 { 4 } else { 0 };
            (cost <= left && *next <= most(k)).then(|| (k.clone(), *next, cost))
        };
        let best = ranks.iter().filter_map(up).min_by_key(|(k, _, cost)| (left - cost, k.clone()));
        let Some((key, rank, _)) = best else { return ranks };
        ranks.insert(key, rank);
    }
}

/// The next rank down an ascending ladder.
fn below(ladder: &[u32], rank: u32) -> Option<u32> {
    ladder.get(ladder.partition_point(|l| *l < rank).checked_sub(1)?).copied()
}

/// A ladder for a map: the profile's where the ranks stand on it, else every rank up to twice the largest, as far
/// as some slice can have it.
pub fn ladder(ranks: &Ranks, shapes: &Shapes, profile: super::Profile) -> Vec<u32> {
    let steps = profile.ladder();
    match ranks.values().all(|r| steps.contains(r)) {
        true => steps.to_vec(),
        false => {
            let widest = ranks.keys().map(|k| most(shapes, k)).max().unwrap_or(1);
            let largest = ranks.values().copied().max().unwrap_or(1);
            (1..=largest.saturating_mul(2).min(widest)).collect()
        }
    }
}

/// A control: ranks drawn at random from a ladder, brought to a budget.
pub fn random(ranks: &Ranks, shapes: &Shapes, ladder: &[u32], budget: u64, seed: u64) -> Ranks {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let drawn = |key: &String| {
        let fits: Vec<u32> = ladder.iter().copied().filter(|r| *r <= most(shapes, key)).collect();
        (key.clone(), fits.choose(&mut rng).copied().unwrap_or(1))
    };
    let start: Ranks = ranks.keys().map(drawn).collect();
    // Where steps down and up could end is up to the draw, so it is drawn by chance which adapters go first.
    spread(start, shapes, ladder, budget, &mut rng)
}

/// A control: the same ranks on other adapters, brought to a budget.
pub fn shuffled(ranks: &Ranks, shapes: &Shapes, ladder: &[u32], budget: u64, seed: u64) -> Ranks {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut values: Vec<u32> = ranks.values().copied().collect();
    values.shuffle(&mut rng);
    let start: Ranks = ranks.keys().zip(values).map(|(k, r)| (k.clone(), r.min(most(shapes, k)))).collect();
    spread(start, shapes, ladder, budget, &mut rng)
}

/// Steps of adapters drawn by chance until the budget is kept, then [`fit`] uses up what is left.
fn spread(mut ranks: Ranks, shapes: &Shapes, ladder: &[u32], budget: u64, rng: &mut impl Rng) -> Ranks {
    while total(&ranks, shapes) > budget {
        let down = |(k, r): (&String, &u32)| Some((k.clone(), below(ladder, *r)?));
        let steps: Vec<(String, u32)> = ranks.iter().filter_map(down).collect();
        let Some((key, rank)) = steps.choose(rng).cloned() else { break };
        ranks.insert(key, rank);
    }
    fit(&ranks, shapes, ladder, budget)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::golden_tests::golden;
    use super::super::{Profile, golden_tests};
    use super::*;

    fn alpha() -> (Ranks, Shapes) {
        let pack = golden_tests::fixture("alpha");
        (pack.meta.rank_map.clone(), of_pack(&pack))
    }

    #[test]
    fn budgets_are_met_as_upstream_meets_them() {
        let g = golden();
        let (ranks, shapes) = alpha();
        let report = &g["rank_budget"]["summary"];
        assert_eq!(total(&ranks, &shapes), report["total_bytes"].as_u64().unwrap());
        for case in g["rank_budget"]["normalize"].as_array().unwrap() {
            let fixed = |rank: u32| total(&ranks.keys().map(|k| (k.clone(), rank)).collect(), &shapes);
            let kw = &case["kw"];
            let budget = match case["target"].as_str().unwrap() {
                "fixed-r16" => fixed(16),
                "fixed-r32" => fixed(32),
                "fixed-r32-percent" => (kw["fixed_r32_percent"].as_f64().unwrap() / 100.0 * fixed(32) as f64) as u64,
                _ => kw["explicit_budget_bytes"].as_u64().unwrap(),
            };
            let profile = if kw["profile"] == "lite" { Profile::Lite } else { Profile::Heavy };
            // Upstream lets a rank be larger than its slice.
            let ours = fit_within(&ranks, &shapes, profile.ladder(), budget, &|_| u32::MAX);
            match case["rank_map"].as_object() {
                None => assert!(total(&ours, &shapes) > budget, "{kw}: upstream finds nothing that fits"),
                Some(theirs) => {
                    let theirs: Ranks = theirs.iter().map(|(k, r)| (k.clone(), r.as_u64().unwrap() as u32)).collect();
                    assert_eq!(ours, theirs, "{} {kw}", case["target"]);
                    assert_eq!(total(&ours, &shapes), case["total_bytes"].as_u64().unwrap());
                }
            }
        }
    }

    #[test]
    fn controls_keep_the_budget_and_follow_their_seed() {
        let shapes: Shapes = (0..12)
            .map(|i| (format!("blocks.{i}.attn.q_proj"), if i % 3 == 0 { (64, 32) } else { (32, 96) }))
            .collect();
        let ranks: Ranks = shapes.keys().enumerate().map(|(i, k)| (k.clone(), [2, 4, 8][i % 3])).collect();
        let budget = total(&ranks, &shapes);
        let ladder = ladder(&ranks, &shapes, Profile::Lite);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..20 {
            for control in [random, shuffled] {
                let drawn = control(&ranks, &shapes, &ladder, budget, seed);
                assert_eq!(drawn, control(&ranks, &shapes, &ladder, budget, seed));
                let size = total(&drawn, &shapes);
                // What is left is less than one step of any adapter.
                assert!(size <= budget && size > budget - budget / 10, "seed {seed}: {size} of {budget}");
                assert!(drawn.keys().eq(ranks.keys()));
                seen.insert(drawn.values().copied().collect::<Vec<_>>());
            }
        }
        assert!(seen.len() > 35, "draws differ: {}", seen.len());
    }

    #[test]
    fn no_rank_is_larger_than_its_slice() {
        let shapes: Shapes = (0..30).map(|i| (format!("blocks.{i}.attn.q_proj"), (576, 576))).collect();
        let all = |rank: u32| -> Ranks { shapes.keys().map(|k| (k.clone(), rank)).collect() };
        assert!(check(&all(577), &shapes).unwrap_err().contains("more than the 576"));
        for text in ["q:577", "q:4294967295"] {
            assert!(parse(text, &shapes).unwrap_err().to_string().contains("more than the 576"), "{text}");
        }
        assert!(parse(",", &shapes).unwrap_err().to_string().contains("no rule"));
        let ladder = ladder(&all(576), &shapes, Profile::Heavy);
        assert_eq!(ladder.last(), Some(&576));
        // The longest way down there is ends soon.
        let budget = total(&all(4), &shapes);
        for control in [random, shuffled] {
            let drawn = control(&all(576), &shapes, &ladder, budget, 3);
            assert!(total(&drawn, &shapes) <= budget);
        }
    }

    #[test]
    fn rules_and_files_are_read_strictly() {
        let (_, shapes) = alpha();
        let ranks = parse("q:4, blocks.1.*:2 ,k:1", &shapes).unwrap();
        let all: Vec<(&str, u32)> = ranks.iter().map(|(k, r)| (k.as_str(), *r)).collect();
        assert_eq!(all, [("blocks.0.attn.k_proj", 1), ("blocks.0.attn.q_proj", 4), ("blocks.1.attn.q_proj", 2)]);
        for (bad, why) in [("q", "neither a file nor a rule"), ("v:2", "no adapter is called v"), ("q:x", "neither")] {
            assert!(parse(bad, &shapes).unwrap_err().to_string().contains(why), "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("map.json");
        for (text, why) in [
            ("{\"blocks.0.attn.q_proj\": 4.9}", "is 4.9; expected a whole number"),
            ("{\"rank_map\": {\"q\": 4}}", "q is no adapter key"),
            ("[1]", "expected a JSON object"),
            ("{\"blocks.0.attn.q_proj\": 70000}", "more than any slice has"),
            ("{\"blocks.0.attn.q_proj\": 4000}", "can have"),
            ("{", "is no JSON"),
            ("{\"blocks.9.attn.q_proj\": 4}", "which is not there"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = parse(file.to_str().unwrap(), &shapes).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("map.json"), "{error}");
        }
    }
}
