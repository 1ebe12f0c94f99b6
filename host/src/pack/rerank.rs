//! Packs of lower rank: the update of each slice truncated to its largest singular values, and what that costs.
//!
//! The singular value decomposition gives the best approximation of each rank in the Frobenius norm. A budget over
//! all slices goes to the components that are worth most: squared singular value by what one costs, in components or
//! in bytes. The error told is that of the result as it is stored, rounding to float16 included.

use super::error::{Error, Result};
use super::format::{Adapter, Pack};
use super::key;
use super::product::{Product, Svd, norm};
use super::ranks::Ranks;
use serde::Serialize;
use std::collections::BTreeMap;

/// The update of one slice, before it is cut.
#[derive(Clone, Debug)]
pub struct Source {
    /// What it adds, in full.
    pub product: Product,
    /// The adapter that holds all of it.
    pub whole: Adapter,
    /// Its decomposition.
    pub svd: Svd,
}

/// The updates of a pack, by key.
pub type Sources = BTreeMap<String, Source>;

/// How much is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Goal {
    /// All of it.
    Everything,
    /// At most so many components of each slice.
    Each(usize),
    /// So many components in all.
    Components(u64),
    /// So many bytes in all.
    Bytes(u64),
    /// A rank for each slice; those that are not named keep theirs.
    Map(Ranks),
    /// These components of the decompositions, ascending; those that are not named go.
    These(BTreeMap<String, Vec<usize>>),
}

/// What became of one slice.
#[derive(Clone, Debug, Serialize)]
pub struct Cut {
    /// Its key.
    pub adapter: String,
    /// Components before.
    pub rank_before: usize,
    /// Components kept; 0: the pack has the adapter no more.
    pub rank_after: usize,
    /// Frobenius norm of the update before.
    pub norm: f64,
    /// Frobenius norm of what is missing now.
    pub error: f64,
    /// The error over the norm.
    pub relative: f64,
}

/// A pack of lower rank.
#[derive(Clone, Debug, Serialize)]
pub struct Reranked {
    /// The pack.
    #[serde(skip)]
    pub pack: Pack,
    /// Components before.
    pub rank_before: usize,
    /// Components now.
    pub rank_after: usize,
    /// Bytes before, or those of the exact sum.
    pub bytes_before: u64,
    /// Bytes now.
    pub bytes_after: u64,
    /// Frobenius norm of all updates before.
    pub norm: f64,
    /// Frobenius norm of all that is missing now.
    pub error: f64,
    /// The error over the norm.
    pub relative: f64,
    /// Slice by slice.
    pub slices: Vec<Cut>,
}

/// The updates of a pack, decomposed.
///
/// # Errors
/// When MLX fails.
pub fn sources(pack: &Pack) -> Result<Sources> {
    let source = |(key, a): (&String, &Adapter)| {
        let product = Product::of(a, 1.0)?;
        let svd = product.svd()?;
        Ok((key.clone(), Source { product, whole: a.clone(), svd }))
    };
    pack.adapters.iter().map(source).collect()
}

/// Which components of each slice a goal keeps.
///
/// # Errors
/// When a map names a slice that is not there.
pub fn keep(sources: &Sources, goal: &Goal) -> Result<BTreeMap<String, Vec<usize>>> {
    let first = |n: usize, s: &Source| -> Vec<usize> { (0..n.min(s.svd.values.len())).collect() };
    let each = |n: &dyn Fn(&str, &Source) -> usize| -> BTreeMap<String, Vec<usize>> {
        sources.iter().map(|(k, s)| (k.clone(), first(n(k, s), s))).collect()
    };
    Ok(match goal {
        Goal::Everything => each(&|_, s| s.whole.rank()),
        Goal::Each(rank) => each(&|_, _| *rank),
        Goal::These(these) => these.clone(),
        Goal::Map(ranks) => {
            if let Some(k) = ranks.keys().find(|k| !sources.contains_key(*k)) {
                return Err(Error::Other(format!("the rank map names {k}, for which the pack has no adapter")));
            }
            each(&|k, s| ranks.get(k).map_or(s.whole.rank(), |r| *r as usize))
        }
        Goal::Components(budget) => {
            let ranks = allocate(sources, *budget, &|_| (1, 0));
            each(&|k, _| ranks.get(k).copied().unwrap_or(0))
        }
        Goal::Bytes(budget) => {
            let cost = |s: &Source| {
                let extra = s.whole.magnitude.as_ref().map_or(0, |m| 4 * m.len() as u64);
                (2 * (s.whole.a.rows + s.whole.b.cols) as u64, 4 + extra)
            };
            let ranks = allocate(sources, *budget, &cost);
            each(&|k, _| ranks.get(k).copied().unwrap_or(0))
        }
    })
}

/// Shares out a budget: components in the order of squared value by cost, while they fit. `cost` answers what a
/// component takes, and what its adapter takes besides.
fn allocate(sources: &Sources, budget: u64, cost: &dyn Fn(&Source) -> (u64, u64)) -> BTreeMap<String, usize> {
    let mut all: Vec<(f64, &str, usize)> = Vec::new();
    for (key, s) in sources {
        let (each, _) = cost(s);
        // More components than are stored now would take more room and add nothing.
        let values = s.svd.values.iter().take(s.whole.rank()).filter(|v| **v > 0.0);
        all.extend(values.enumerate().map(|(i, v)| (v * v / each.max(1) as f64, key.as_str(), i)));
    }
    // Of equal worth, the first component goes first.
    all.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.2.cmp(&y.2)).then_with(|| key::order(x.1, y.1)));
    let (mut ranks, mut left) = (BTreeMap::<String, usize>::new(), budget);
    for (_, key, i) in all {
        let Some(s) = sources.get(key) else { continue };
        let (each, besides) = cost(s);
        let needs = each + if i == 0 { besides } else { 0 };
        let rank = ranks.entry(key.to_owned()).or_default();
        if *rank == i && needs <= left {
            *rank += 1;
            left -= needs;
        }
    }
    ranks
}

/// Cuts the updates to a goal; `model` is the pack whose metadata the result takes.
///
/// # Errors
/// When nothing is left, or MLX fails.
pub fn rerank(model: &Pack, name: &str, sources: &Sources, goal: &Goal) -> Result<Reranked> {
    let keep = keep(sources, goal)?;
    let mut keys: Vec<&String> = sources.keys().collect();
    keys.sort_by(|a, b| key::order(a, b));
    let (mut adapters, mut slices) = (BTreeMap::new(), Vec::with_capacity(keys.len()));
    for key in keys {
        let Some(s) = sources.get(key) else { continue };
        let kept = keep.get(key).map_or(&[][..], Vec::as_slice);
        let size = norm(&s.svd.values);
        let (adapter, error) = cut(s, kept)?;
        slices.push(Cut {
            adapter: key.clone(),
            rank_before: s.whole.rank(),
            rank_after: adapter.as_ref().map_or(0, Adapter::rank),
            norm: size,
            error,
            relative: if size > 0.0 { error / size } else { 0.0 },
        });
        if let Some(adapter) = adapter {
            adapters.insert(key.clone(), adapter);
        }
    }
    if adapters.is_empty() {
        return Err(Error::Other(format!(
            "nothing would be left of {}: raise the rank or the budget{}",
            model.name(),
            if slices.iter().all(|s| s.norm == 0.0) { " (its updates are all zero)" } else { "" }
        )));
    }
    let mut meta = model.meta.clone();
    meta.pack_name = name.to_owned();
    let pack = Pack::new(meta, adapters);
    let total = |of: fn(&Cut) -> f64| norm(&slices.iter().map(of).collect::<Vec<_>>());
    let (size, error) = (total(|s| s.norm), total(|s| s.error));
    Ok(Reranked {
        rank_before: slices.iter().map(|s| s.rank_before).sum(),
        rank_after: pack.total_rank(),
        bytes_before: sources.values().map(|s| s.whole.nbytes()).sum(),
        bytes_after: pack.nbytes(),
        norm: size,
        error,
        relative: if size > 0.0 { error / size } else { 0.0 },
        slices,
        pack,
    })
}

/// One slice: its adapter, where anything is kept, and the error.
fn cut(s: &Source, keep: &[usize]) -> Result<(Option<Adapter>, f64)> {
    let size = norm(&s.svd.values);
    if keep.is_empty() || size == 0.0 {
        return Ok((None, size));
    }
    let adapter = match keep.len() >= s.whole.rank() {
        // Nothing is gained by writing it in other words.
        true => s.whole.clone(),
        false => {
            let mut adapter = s.svd.adapter(keep, f64::from(s.whole.scale().abs()))?;
            adapter.magnitude.clone_from(&s.whole.magnitude);
            adapter
        }
    };
    let rest = Product::sum(&[s.product.clone(), Product::of(&adapter, 1.0)?.negated()?])?;
    let error = rest.norm()?;
    // Below the round-off of the measurement itself nothing is missing.
    Ok((Some(adapter), if error < 1e-13 * size { 0.0 } else { error }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::golden_tests::fixture;
    use super::*;

    #[test]
    fn the_error_is_that_of_the_tail() {
        let pack = fixture("alpha");
        let all = sources(&pack).unwrap();
        let out = rerank(&pack, "small", &all, &Goal::Each(1)).unwrap();
        for s in &out.slices {
            let tail = norm(&all[&s.adapter].svd.values[1..]);
            assert_eq!(s.rank_after, 1);
            assert!((s.error - tail).abs() < 2e-3 * s.norm, "{}: {} {tail}", s.adapter, s.error);
        }
        assert!((out.error - norm(&out.slices.iter().map(|s| s.error).collect::<Vec<_>>())).abs() < 1e-9);
        assert_eq!((out.rank_after, out.pack.total_rank(), out.pack.name()), (3, 3, "small"));
        // The scale of an adapter stays what it was.
        assert!(out.pack.adapters.values().all(|a| a.scale() == 2.0));
    }

    #[test]
    fn what_keeps_its_rank_keeps_its_bits() {
        let pack = fixture("alpha");
        let all = sources(&pack).unwrap();
        let ranks = Ranks::from([("blocks.0.attn.q_proj".into(), 2), ("blocks.1.attn.q_proj".into(), 9)]);
        let out = rerank(&pack, "b", &all, &Goal::Map(ranks)).unwrap();
        for key in ["blocks.0.attn.k_proj", "blocks.1.attn.q_proj"] {
            assert_eq!(out.pack.adapters[key], pack.adapters[key]);
        }
        assert_eq!(out.pack.adapters["blocks.0.attn.q_proj"].rank(), 2);
        let exact = rerank(&pack, "b", &all, &Goal::Everything).unwrap();
        assert_eq!((exact.error, exact.pack.adapters), (0.0, pack.adapters));
    }

    #[test]
    fn a_budget_goes_where_it_is_worth_most() {
        let pack = fixture("alpha");
        let all = sources(&pack).unwrap();
        for budget in 1..=9u64 {
            let out = rerank(&pack, "b", &all, &Goal::Components(budget)).unwrap();
            assert_eq!(out.rank_after as u64, budget);
            // No other choice of as many components leaves less behind.
            let mut squares: Vec<f64> = all.values().flat_map(|s| &s.svd.values).map(|v| v * v).collect();
            squares.sort_by(|a, b| b.total_cmp(a));
            let best: f64 = squares[budget as usize..].iter().sum::<f64>().sqrt();
            assert!((out.error - best).abs() < 1e-3 * out.norm, "{budget}: {} {best}", out.error);
        }
        for budget in [100, 200, 300, 404, 1000] {
            let out = rerank(&pack, "b", &all, &Goal::Bytes(budget)).unwrap();
            assert!(out.bytes_after <= budget, "{budget}: {}", out.bytes_after);
        }
        let nothing = rerank(&pack, "b", &all, &Goal::Bytes(20)).unwrap_err().to_string();
        assert!(nothing.contains("nothing would be left"), "{nothing}");
    }
}
