//! What one weight costs in each form it can have: bytes, error and time of a product, measured.
//!
//! The forms are float32, quantised as in an affine MLX checkpoint, and low-rank factors: float32 for the product,
//! and in 8 bits or fewer as [`super::factor_file`] writes them. Times are medians over rounds in which every form
//! takes its turn, so that a machine that slows down slows all of them; the quartiles say how far to trust them.
//! Fails where a rank is too large, the weight is not finite, or MLX fails.

use super::compactness::{self, Method, rel_error};
use super::factor_file::{self, Factors};
use crate::mlx::quant::{Mode, Packed, Scheme};
use crate::mlx::{self, Array, Context, Dtype, Result, spectral};
use mlx_rs::random;
use serde::Serialize;
use std::time::Instant;

/// Least time of one sample: shorter products are repeated within it.
const SAMPLE_SECONDS: f64 = 1e-3;
/// Most products within a sample.
const MOST_REPEATS: usize = 256;
/// Factors must cost less than this share of m n to be worth it: r (m + n) < 0.7 m n.
pub const WORTH: f64 = 0.7;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Ranks, beside the largest that is worth it.
    pub ranks: Vec<u32>,
    /// Bits of the quantised factors.
    pub bits: u32,
    /// Rows of the input, each measured.
    pub rows: Vec<u32>,
    /// The quantised form; `None` leaves it out.
    pub quantised: Option<Quantised>,
    /// Rounds of measurement.
    pub rounds: usize,
    /// How to decompose.
    pub method: Method,
    /// Seed of the input.
    pub seed: u64,
}

/// A weight quantised.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// For the product.
    pub packed: Packed,
    /// Bytes in a checkpoint.
    pub bytes: u64,
}

/// The time of one product, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Timing {
    /// Rows of the input.
    pub rows: u32,
    /// Median over the rounds.
    pub median_us: f64,
    /// First quartile.
    pub p25_us: f64,
    /// Third quartile.
    pub p75_us: f64,
}

/// One time beside another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The quartiles of both times lie apart, this one's below.
    Faster,
    /// They lie apart, this one's above.
    Slower,
    /// They overlap.
    Equal,
}

impl Timing {
    /// How this time compares with another one.
    pub fn beside(&self, other: &Timing) -> Verdict {
        match () {
            () if self.p75_us < other.p25_us => Verdict::Faster,
            () if self.p25_us > other.p75_us => Verdict::Slower,
            () => Verdict::Equal,
        }
    }
}

/// A form that is not factored.
#[derive(Clone, Debug, Serialize)]
pub struct Whole {
    /// `float32`, or how it is quantised.
    pub form: String,
    /// Bytes; scales and biases in float16.
    pub bytes: u64,
    /// ‖W − Ŵ‖_F / ‖W‖_F.
    pub rel_error: f64,
    /// Times, by rows.
    pub times: Vec<Timing>,
}

/// Factors of one rank.
#[derive(Clone, Debug, Serialize)]
pub struct Ranked {
    /// Rank.
    pub r: u32,
    /// Bytes of the weight as float32.
    pub dense_bytes: u64,
    /// Bytes of the quantised factors.
    pub qlr_bytes: u64,
    /// Per cent of `dense_bytes` that the quantised factors save.
    pub savings: f64,
    /// Error of the float32 factors.
    pub rel_error: f64,
    /// Bytes of the float32 factors.
    pub factor_bytes: u64,
    /// Error of the quantised factors.
    pub rel_error_quantised: f64,
    /// Whether r (m + n) < 0.7 m n.
    pub worth: bool,
    /// Whether this is the largest rank for which that holds.
    pub limit: bool,
    /// Times of the product with float32 factors, by rows.
    pub times: Vec<Timing>,
    /// Those beside float32, by rows.
    pub beside_dense: Vec<Verdict>,
    /// Those beside the quantised form, by rows; empty where there is none.
    pub beside_quantised: Vec<Verdict>,
}

/// Everything that was measured of one weight.
#[derive(Clone, Debug, Serialize)]
pub struct Footprint {
    /// Rows of the weight.
    pub m: u32,
    /// Its columns.
    pub n: u32,
    /// As float32.
    pub dense: Whole,
    /// Quantised.
    pub quantised: Option<Whole>,
    /// Factored, by rank.
    pub ranks: Vec<Ranked>,
}

/// The largest r with r (m + n) < 0.7 m n; 0 where there is none.
pub fn worth_up_to(m: u32, n: u32) -> u32 {
    let (m, n) = (u64::from(m), u64::from(n));
    // 10 r (m + n) < 7 m n, in whole numbers.
    ((7 * m * n).saturating_sub(1) / (10 * (m + n)).max(1)) as u32
}

/// A weight [m, n] with the singular values 1/1, 1/2, 1/3, ... and random singular vectors; float32.
///
/// # Errors
/// When MLX fails.
pub fn synthetic(m: u32, n: u32, seed: u64) -> Result<Array> {
    let what = "making a synthetic weight";
    let k = m.min(n) as i32;
    let vectors = |rows: u32, seed: u64| -> Result<Array> {
        let key = random::key(seed).context(what)?;
        let x = spectral::on_cpu(|| random::normal::<f32>(&[rows as i32, k], None, None, Some(&key))).context(what)?;
        Ok(spectral::qr(&x)?.0)
    };
    let (u, v) = (vectors(m, seed)?, vectors(n, seed.wrapping_add(1))?);
    let s: Vec<f64> = (1..=k).map(|i| 1.0 / f64::from(i)).collect();
    let us = spectral::on_cpu(|| u.multiply(Array::from_slice_f64(&s, &[1, k]))).context(what)?;
    let w = spectral::matmul(&us, &v.transpose().context(what)?)?;
    let w = spectral::on_cpu(|| w.as_dtype(Dtype::Float32)).context(what)?;
    mlx::eval([&w])?;
    Ok(w)
}

/// `w` [m, n] quantised, its scales and biases rounded to float16 as checkpoints have them.
///
/// # Errors
/// When MLX cannot quantise it so; see [`fits`].
pub fn quantise(w: &Array, scheme: Scheme) -> Result<Quantised> {
    let what = "quantising a weight";
    let w = w.as_dtype(Dtype::Float32).context(what)?;
    let (codes, scales, biases) =
        mlx_rs::ops::quantize(&w, scheme.group_size as i32, scheme.bits as i32).context(what)?;
    let rounded = |a: &Array| a.as_dtype(Dtype::Float16).and_then(|a| a.as_dtype(Dtype::Float32)).context(what);
    let packed = Packed { codes, scales: rounded(&scales)?, biases: Some(rounded(&biases)?), scheme };
    mlx::eval(packed.arrays())?;
    // Scales take as much in float32 as scales and biases in float16.
    let bytes = (packed.codes.nbytes() + packed.scales.nbytes()) as u64;
    Ok(Quantised { packed, bytes })
}

/// Whether MLX can quantise a weight of `n` columns so.
pub fn fits(scheme: Scheme, n: u32) -> bool {
    scheme.mode == Mode::Affine && n.is_multiple_of(scheme.group_size) && (n * scheme.bits).is_multiple_of(32)
}

/// Measures every form of `w` [m, n]. `go_on` is asked before each round; `None` when it answered no.
///
/// # Errors
/// When a rank is not 1 to min(m, n), `w` is not finite, or MLX fails.
pub fn measure(w: &Array, plan: &Plan, go_on: &mut dyn FnMut() -> bool) -> Result<Option<Footprint>> {
    let what = "measuring a weight";
    let w32 = w.as_dtype(Dtype::Float32).context(what)?;
    let (m, n) = (w.dim(0) as u32, w.dim(1) as u32);
    let limit = worth_up_to(m, n);
    let mut ranks = plan.ranks.clone();
    ranks.extend((limit > 0).then_some(limit));
    ranks.sort_unstable();
    ranks.dedup();

    let most = ranks.last().copied().unwrap_or(1);
    let svd = plan.method.decompose(w, most)?;
    let dense_bytes = 4 * u64::from(m) * u64::from(n);
    let mut factored = Vec::with_capacity(ranks.len());
    let mut forms = Vec::new();
    for r in &ranks {
        let part = compactness::truncated(&svd, *r)?;
        let quantised = Factors::quantise(&part, plan.bits)?;
        let a =
            spectral::on_cpu(|| part.u.multiply(part.s.reshape(&[1, -1])?)?.as_dtype(Dtype::Float32)).context(what)?;
        let b = spectral::on_cpu(|| part.vt.as_dtype(Dtype::Float32)?.contiguous()).context(what)?;
        mlx::eval([&a, &b])?;
        let qlr_bytes = factor_file::bytes_of(m.into(), n.into(), (*r).into());
        forms.push(Ranked {
            r: *r,
            dense_bytes,
            qlr_bytes,
            savings: 100.0 * (1.0 - qlr_bytes as f64 / dense_bytes as f64),
            rel_error: rel_error(w, &spectral::matmul(&a, &b)?)?,
            factor_bytes: 4 * u64::from(*r) * (u64::from(m) + u64::from(n)),
            rel_error_quantised: rel_error(w, &quantised.reconstruct()?)?,
            worth: *r <= limit,
            limit: *r == limit,
            times: Vec::new(),
            beside_dense: Vec::new(),
            beside_quantised: Vec::new(),
        });
        factored.push((a, b));
    }
    let mut dense = Whole { form: "float32".into(), bytes: dense_bytes, rel_error: 0.0, times: Vec::new() };
    let mut whole = None;
    if let Some(q) = &plan.quantised {
        let rel_error = rel_error(w, &q.packed.dequantize()?)?;
        whole = Some(Whole { form: q.packed.scheme.to_string(), bytes: q.bytes, rel_error, times: Vec::new() });
    }

    for rows in &plan.rows {
        let key = random::key(plan.seed.wrapping_add(2)).context(what)?;
        let x = random::normal::<f32>(&[*rows as i32, n as i32], None, None, Some(&key)).context(what)?;
        mlx::eval([&x, &w32])?;
        type Product<'a> = Box<dyn Fn() -> Result<Array> + 'a>;
        let mut products: Vec<Product> = vec![Box::new(|| x.matmul(w32.transpose()?).context(what))];
        if let Some(q) = &plan.quantised {
            products.push(Box::new(|| q.packed.matmul(&x)));
        }
        for (a, b) in &factored {
            products.push(Box::new(|| x.matmul(b.transpose()?)?.matmul(a.transpose()?).context(what)));
        }
        let Some(times) = timed(&products, *rows, plan.rounds, go_on)? else { return Ok(None) };
        let mut times = times.into_iter();
        dense.times.extend(times.next());
        if let Some(q) = &mut whole {
            q.times.extend(times.next());
        }
        for (form, time) in forms.iter_mut().zip(times) {
            form.times.push(time);
            form.beside_dense.extend(dense.times.last().map(|d| time.beside(d)));
            form.beside_quantised.extend(whole.as_ref().and_then(|q| q.times.last()).map(|q| time.beside(q)));
        }
    }
    Ok(Some(Footprint { m, n, dense, quantised: whole, ranks: forms }))
}

/// The time of each product.
fn timed(
    products: &[Box<dyn Fn() -> Result<Array> + '_>],
    rows: u32,
    rounds: usize,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Option<Vec<Timing>>> {
    let once = |f: &dyn Fn() -> Result<Array>, times: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..times {
            mlx::eval([&f()?])?;
        }
        Ok(start.elapsed().as_secs_f64() / times as f64)
    };
    let mut repeats = Vec::with_capacity(products.len());
    for f in products {
        if !go_on() {
            return Ok(None);
        }
        // The first one pays for memory and threads.
        once(f, 2)?;
        let second = once(f, 2)?.max(1e-9);
        repeats.push(((SAMPLE_SECONDS / second).ceil() as usize).clamp(1, MOST_REPEATS));
    }
    let mut samples = vec![Vec::with_capacity(rounds); products.len()];
    for _ in 0..rounds {
        if !go_on() {
            return Ok(None);
        }
        for ((f, repeats), samples) in products.iter().zip(&repeats).zip(&mut samples) {
            samples.push(1e6 * once(f, *repeats)?);
        }
    }
    Ok(Some(samples.into_iter().map(|s| timing(rows, s)).collect()))
}

/// Median and quartiles, interpolated.
fn timing(rows: u32, mut samples: Vec<f64>) -> Timing {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * samples.len().saturating_sub(1) as f64;
        let get = |i: f64| samples.get(i as usize).copied().unwrap_or(f64::NAN);
        get(place.floor()) + (place - place.floor()) * (get(place.ceil()) - get(place.floor()))
    };
    Timing { rows, median_us: at(0.5), p25_us: at(0.25), p75_us: at(0.75) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_limit_is_the_largest_rank_that_is_worth_it() {
        for (m, n) in [(2048, 512), (576, 576), (576, 192), (10, 10), (20, 20), (7, 3), (1, 1), (4096, 11008)] {
            let r = u64::from(worth_up_to(m, n));
            let (m, n) = (u64::from(m), u64::from(n));
            assert!(10 * r * (m + n) < 7 * m * n && 10 * (r + 1) * (m + n) >= 7 * m * n, "{m} {n} {r}");
        }
    }

    #[test]
    fn quartiles_decide() {
        let t = |x: [f64; 4]| timing(1, x.to_vec());
        let (a, b, c) = (t([1.0, 2.0, 3.0, 4.0]), t([2.0, 3.0, 5.0, 4.0]), t([10.0, 11.0, 12.0, 13.0]));
        assert_eq!((a.median_us, a.p25_us, a.p75_us), (2.5, 1.75, 3.25));
        assert_eq!((a.beside(&b), a.beside(&c), c.beside(&a)), (Verdict::Equal, Verdict::Faster, Verdict::Slower));
    }

    #[test]
    fn a_synthetic_weight_has_the_spectrum_it_names() {
        let svd = Method::Exact.decompose(&synthetic(24, 40, 3).unwrap(), 24).unwrap();
        for (i, s) in spectral::to_vec(&svd.s).unwrap().into_iter().enumerate() {
            assert!((s - 1.0 / (i + 1) as f64).abs() < 1e-6, "{i}: {s}");
        }
    }

    #[test]
    fn every_form_is_measured() {
        let w = synthetic(96, 64, 1).unwrap();
        let scheme = Scheme { group_size: 32, bits: 4, mode: Mode::Affine };
        assert!(fits(scheme, 64) && !fits(scheme, 65));
        let plan = Plan {
            ranks: vec![8, 2, 8],
            bits: 8,
            rows: vec![1, 5],
            quantised: Some(quantise(&w, scheme).unwrap()),
            rounds: 3,
            method: Method::Exact,
            seed: 0,
        };
        let f = measure(&w, &plan, &mut || true).unwrap().unwrap();
        assert_eq!(
            f.ranks.iter().map(|r| (r.r, r.limit, r.worth)).collect::<Vec<_>>(),
            [(2, false, true), (8, false, true), (26, true, true)]
        );
        // Codes 96·64/2, scales and biases 2·2·96·2.
        let q = f.quantised.unwrap();
        assert_eq!((q.bytes, f.dense.bytes), (3072 + 768, 4 * 96 * 64));
        assert!(q.rel_error > 0.001 && q.rel_error < 0.2);
        for (r, next) in f.ranks.iter().zip(&f.ranks[1..]) {
            assert!(next.rel_error < r.rel_error);
        }
        // The tail of 1/i: what a rank of 2 leaves.
        let tail = |from: i32| (from..=64).map(|i| 1.0 / f64::from(i * i)).sum::<f64>();
        let r = &f.ranks[0];
        assert!((r.rel_error - (tail(3) / tail(1)).sqrt()).abs() < 1e-5, "{}", r.rel_error);
        assert!(r.rel_error_quantised >= r.rel_error - 1e-6 && r.rel_error_quantised < r.rel_error + 0.02);
        assert_eq!((r.qlr_bytes, r.factor_bytes), (factor_file::bytes_of(96, 64, 2), 4 * 2 * 160));
        for t in f.ranks.iter().flat_map(|r| &r.times).chain(&f.dense.times).chain(&q.times) {
            assert!(t.p25_us > 0.0 && t.p25_us <= t.median_us && t.median_us <= t.p75_us);
        }
        assert_eq!((r.times.len(), r.beside_dense.len(), r.beside_quantised.len()), (2, 2, 2));
        assert!(measure(&w, &plan, &mut || false).unwrap().is_none());
        assert!(measure(&w, &Plan { ranks: vec![65], ..plan }, &mut || true).is_err());
    }
}
