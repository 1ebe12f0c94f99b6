//! Several packs as one: their weighted updates added up, exactly (components side by side) or cut to lower rank.

use super::error::{Error, Result};
use super::format::{Adapter, Matrix, Pack};
use super::product::{Product, same_shape};
use super::rerank::{Source, Sources};
use half::f16;
use std::collections::BTreeMap;

/// The sum of packs with weights, ready to be cut ([`super::rerank::rerank`]).
///
/// # Errors
/// When they were made for different bases, a slice has different shapes, one is a DoRA pack, or a sum has no
/// float16.
pub fn sources(terms: &[(&Pack, f32)]) -> Result<Sources> {
    let mut by_key: BTreeMap<&str, Vec<(&Pack, &Adapter, f32)>> = BTreeMap::new();
    let mut known: Option<&Pack> = None;
    for (pack, weight) in terms {
        if !pack.meta.base_hash.is_empty() {
            let first = known.get_or_insert(pack);
            // The two versions of the schema hash a base differently; then shapes must do.
            if first.meta.base_hash != pack.meta.base_hash && first.meta.version == pack.meta.version {
                return Err(Error::fit(
                    pack.name(),
                    format!(
                        "was made for another base ({}) than pack {} ({}); only packs of one base can be merged",
                        pack.meta.base_model,
                        first.name(),
                        first.meta.base_model
                    ),
                ));
            }
        }
        for (key, a) in &pack.adapters {
            if a.magnitude.is_some() {
                let reason = format!("{key}: a DoRA adapter scales its slice and cannot be added to others");
                return Err(Error::fit(pack.name(), reason));
            }
            // What adds nothing would only take room.
            if f64::from(*weight) * f64::from(a.scale()) != 0.0 {
                by_key.entry(key).or_default().push((pack, a, *weight));
            }
        }
    }
    let mut out = Sources::new();
    for (key, parts) in by_key {
        let products = parts.iter().map(|(_, a, w)| Product::of(a, f64::from(*w))).collect::<Result<Vec<_>>>()?;
        if let Some((first, a, _)) = parts.first() {
            for (pack, b, _) in &parts {
                same_shape(key, (first.name(), a), (pack.name(), b))?;
            }
        }
        let product = Product::sum(&products)?;
        let mut svd = product.svd()?;
        // Where packs cancel out, what is left over is round-off.
        let sizes = products.iter().map(Product::norm).collect::<Result<Vec<_>>>()?;
        let floor = 1e-12 * sizes.into_iter().fold(0.0, f64::max);
        svd.values.iter_mut().filter(|v| **v < floor).for_each(|v| *v = 0.0);
        out.insert(key.to_owned(), Source { product, whole: side_by_side(key, &parts)?, svd });
    }
    Ok(out)
}

/// One adapter with the components of all. Its scale is that of the first, so that the A of every part with the
/// same scale and weight keeps its bits; the others are multiplied by what they differ by.
fn side_by_side(key: &str, parts: &[(&Pack, &Adapter, f32)]) -> Result<Adapter> {
    let (rows, cols) = parts.first().map_or((0, 0), |(_, a, _)| (a.a.rows, a.b.cols));
    let scale = parts.first().map_or(1.0, |(_, a, _)| f64::from(a.scale()));
    let rank: usize = parts.iter().map(|(_, a, _)| a.rank()).sum();
    let mut a = Vec::with_capacity(rows * rank);
    for row in 0..rows {
        for (_, part, weight) in parts {
            let factor = f64::from(*weight) * f64::from(part.scale()) / scale;
            let row = part.a.data.get(row * part.rank()..(row + 1) * part.rank()).unwrap_or_default();
            a.extend(row.iter().map(|x| if factor == 1.0 { *x } else { f16::from_f64(x.to_f64() * factor) }));
        }
    }
    if !a.iter().all(|x| x.is_finite()) {
        return Err(Error::Other(format!("{key}: the sum is too large for float16; lower the weights")));
    }
    let b = parts.iter().flat_map(|(_, part, _)| part.b.data.iter().copied()).collect();
    Ok(Adapter {
        a: Matrix { rows, cols: rank, data: a },
        b: Matrix { rows: rank, cols, data: b },
        alpha: (scale * rank as f64) as f32,
        magnitude: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::golden_tests::{fixture, golden};
    use super::super::rerank::{Goal, rerank};
    use super::*;

    #[test]
    fn the_exact_sum_is_exact() {
        let (alpha, beta) = (fixture("alpha"), fixture("beta"));
        let all = sources(&[(&alpha, 1.0), (&beta, 1.0)]).unwrap();
        let out = rerank(&alpha, "both", &all, &Goal::Everything).unwrap();
        assert!(out.error < 1e-12 * out.norm, "{}", out.error);
        assert_eq!((out.rank_after, out.pack.adapters.len()), (18, 4));
        // Its singular values are those upstream finds for the composition.
        let pairs = golden()["rank_ledger"]["compare"]["pairs"].clone();
        for pair in pairs.as_array().unwrap() {
            let theirs = pair["composition_singular_values"].as_array().unwrap();
            let ours = &all[pair["adapter"].as_str().unwrap()].svd.values;
            for (o, t) in ours.iter().zip(theirs).take(pair["composition_rank"].as_u64().unwrap() as usize) {
                assert!((o - t.as_f64().unwrap()).abs() < 1e-4 * o);
            }
        }
        // As many components as the sum really has lose nothing but rounding.
        let ranks = pairs.as_array().unwrap().iter();
        let ranks =
            ranks.map(|p| (p["adapter"].as_str().unwrap().to_owned(), p["composition_rank"].as_u64().unwrap() as u32));
        let small = rerank(&alpha, "small", &all, &Goal::Map(ranks.collect())).unwrap();
        assert!(small.relative < 1e-3 && small.rank_after < out.rank_after, "{small:?}");
    }

    #[test]
    fn weights_count() {
        let (alpha, beta) = (fixture("alpha"), fixture("beta"));
        let all = sources(&[(&alpha, 0.7), (&alpha, 0.3), (&beta, 0.0)]).unwrap();
        let out = rerank(&alpha, "same", &all, &Goal::Everything).unwrap();
        assert_eq!(out.pack.adapters.len(), 3, "a weight of 0 adds nothing");
        let none = sources(&[(&alpha, 1.0), (&alpha, -1.0)]).unwrap();
        let error = rerank(&alpha, "none", &none, &Goal::Each(2)).unwrap_err().to_string();
        assert!(error.contains("nothing would be left"), "{error}");
        for (key, a) in &alpha.adapters {
            let rest =
                Product::sum(&[Product::of(a, -1.0).unwrap(), Product::of(&out.pack.adapters[key], 1.0).unwrap()]);
            assert!(rest.unwrap().norm().unwrap() < 1e-3 * Product::of(a, 1.0).unwrap().norm().unwrap());
        }
    }

    #[test]
    fn what_cannot_be_added_is_refused() {
        let (alpha, mut beta) = (fixture("alpha"), fixture("beta"));
        let refused = |a: &Pack, b: &Pack| sources(&[(a, 1.0), (b, 1.0)]).unwrap_err().to_string();
        let mut known = alpha.clone();
        (known.meta.base_hash, beta.meta.base_hash) = ("a".into(), "b".into());
        assert!(refused(&known, &beta).contains("another base"));
        beta.meta.base_hash.clear();
        let mut wide = beta.clone();
        let narrow = Adapter {
            a: Matrix::from_f32(3, 1, &[1.0; 3]),
            b: Matrix::from_f32(1, 10, &[1.0; 10]),
            alpha: 1.0,
            magnitude: None,
        };
        wide.adapters.insert("blocks.0.attn.q_proj".into(), narrow);
        assert!(refused(&alpha, &wide).contains("different bases"));
        beta.adapters.values_mut().for_each(|a| a.magnitude = Some(vec![1.0; a.a.rows]));
        assert!(refused(&alpha, &beta).contains("DoRA"));
    }
}
