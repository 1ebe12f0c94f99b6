//! Attention of new positions over cached keys and values, from the projections' outputs to the input of the
//! next one, in one step.
//!
//! As [`super::kernels`]: one primitive on Linux CPUs, MLX's own operations elsewhere; lazy, shapes checked
//! when the graph is built. Not differentiable.

use super::{Array, Context, Result, kernels};
use mlx_rs::Dtype;
use mlx_rs::error::Exception;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::ops::indexing::{TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{concatenate, zeros_dtype};

#[cfg(target_os = "linux")]
use super::ffi;

/// What is the same for every layer and call.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Multiplies the scores.
    pub scale: f32,
    /// Position `p` turns pair `i` by `p / freqs[i]`; [d / 2].
    pub freqs: &'a Array,
    /// Pairs are features `2i` and `2i + 1`, not `i` and `i + d / 2`.
    pub traditional: bool,
    /// Weights [d] of a root-mean-square norm over each head of q and k, before they turn.
    pub norms: Option<(&'a Array, &'a Array)>,
    /// What that norm adds to the mean square.
    pub eps: f32,
}

/// Where the new positions go.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Row of the cache of each sequence, no two the same; [B].
    pub rows: &'a [i32],
    /// Positions that each row of the cache holds; [R].
    pub past: &'a [i32],
    /// Positions that the cache has room for afterwards; what is held is copied when it changes.
    pub capacity: i32,
}

/// Keys and values [R, Hkv, capacity, d] float32. Beyond what a row holds they are undefined.
#[derive(Debug)]
pub struct Held {
    /// Keys, turned by their positions.
    pub keys: Array,
    /// Values.
    pub values: Array,
}

impl Held {
    /// Room for nothing yet, for `rows` sequences.
    ///
    /// # Errors
    /// Whatever MLX reports.
    pub fn empty(rows: i32, kv_heads: i32, head_dim: i32) -> Result<Held> {
        let none = || zeros_dtype(&[rows, kv_heads, 0, head_dim], Dtype::Float32).context("making a cache");
        Ok(Held { keys: none()?, values: none()? })
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> i32 {
        self.keys.dim(2)
    }
}

/// Splits `q` [B, T, H·d], `k` and `v` [B, T, Hkv·d] into heads, turns q and k by their positions, appends k and v
/// to the cache and answers the attention [B, T, H·d] and the cache. New position `t` of sequence `b` follows the
/// `past[rows[b]]` positions of its row, and sees them and the new ones up to itself.
///
/// The cache is written in place when nobody else holds its arrays and the capacity stays; that is why it is
/// taken and given back. The caller counts the new positions.
///
/// # Errors
/// When the shapes disagree, a row is named twice or does not exist, or the new positions exceed the capacity.
pub fn cached_attention(
    q: &Array,
    k: &Array,
    v: &Array,
    held: Held,
    place: Place,
    how: &Attention,
) -> Result<(Array, Held)> {
    #[cfg(target_os = "linux")]
    if kernels::native() {
        // SAFETY: makes an empty handle (a null pointer), which needs no freeing.
        let none = || unsafe { mlx_sys::mlx_array_new() };
        let (q_norm, k_norm) = how.norms.map_or_else(|| (none(), none()), |(q, k)| (q.as_ptr(), k.as_ptr()));
        return ffi::build(|[y, keys, values], s, (err, len)| {
            // SAFETY: live handles, slices with their lengths, and pointers of this call.
            unsafe {
                ffi::pk_cached_attention(
                    y,
                    keys,
                    values,
                    q.as_ptr(),
                    k.as_ptr(),
                    v.as_ptr(),
                    held.keys.as_ptr(),
                    held.values.as_ptr(),
                    how.freqs.as_ptr(),
                    q_norm,
                    k_norm,
                    place.rows.as_ptr(),
                    place.rows.len(),
                    place.past.as_ptr(),
                    place.past.len(),
                    place.capacity,
                    how.scale,
                    how.eps,
                    how.traditional,
                    s,
                    err,
                    len,
                )
            }
        })
        .map(|[y, keys, values]| (y, Held { keys, values }))
        .context("attention");
    }
    composed(q, k, v, held, place, how)
}

/// [`cached_attention`] of MLX's own operations: sequences that lie together and hold as much run together.
pub(super) fn composed(
    q: &Array,
    k: &Array,
    v: &Array,
    held: Held,
    place: Place,
    how: &Attention,
) -> Result<(Array, Held)> {
    let what = "attention";
    check(q, k, v, &held, place).context(what)?;
    let (t, d) = (q.dim(1), held.keys.dim(3));
    let (mut keys, mut values) = (resized(held.keys, place).context(what)?, resized(held.values, place).context(what)?);
    let past = |b: usize| place.rows.get(b).and_then(|r| place.past.get(*r as usize)).copied().unwrap_or(0);
    let mut parts = Vec::new();
    let mut from = 0;
    while let Some(first) = place.rows.get(from).copied() {
        let (offset, mut to) = (past(from), from + 1);
        while place.rows.get(to) == Some(&(first + (to - from) as i32)) && past(to) == offset {
            to += 1;
        }
        let (some, n) = (from as i32..to as i32, (to - from) as i32);
        let heads = |x: &Array, norm: Option<&Array>, turn: bool| {
            let x = x.try_index(some.clone())?.reshape(&[n, t, -1, d])?;
            let x = match norm {
                Some(w) => fast::rms_norm(&x, Some(w), how.eps)?,
                None => x,
            };
            let x = x.transpose_axes(&[0, 2, 1, 3])?;
            match turn {
                true => fast::rope(&x, d, how.traditional, None, 1.0, offset, how.freqs),
                false => Ok(x),
            }
        };
        let mut run = || {
            let q = heads(q, how.norms.map(|n| n.0), true)?;
            let (at, new) = (first..first + n, offset..offset + t);
            keys.try_index_mut((at.clone(), .., new.clone(), ..), &heads(k, how.norms.map(|n| n.1), true)?)?;
            values.try_index_mut((at.clone(), .., new, ..), &heads(v, None, false)?)?;
            let seen = |a: &Array| a.try_index((at.clone(), .., ..offset + t, ..));
            let mask = (t > 1).then_some(ScaledDotProductAttentionMask::Causal);
            let y = fast::scaled_dot_product_attention(&q, &seen(&keys)?, &seen(&values)?, how.scale, mask, None)?;
            y.transpose_axes(&[0, 2, 1, 3])?.reshape(&[n, t, -1])
        };
        parts.push(run().context(what)?);
        from = to;
    }
    let y = concatenate(&parts, 0).context(what)?;
    Ok((y, Held { keys, values }))
}

/// The cache with another capacity; as it is where that stays.
fn resized(a: Array, place: Place) -> std::result::Result<Array, Exception> {
    let had = a.dim(2);
    if had == place.capacity {
        return Ok(a);
    }
    let kept = place.past.iter().copied().max().unwrap_or(0);
    let rest = zeros_dtype(&[a.dim(0), a.dim(1), place.capacity - kept, a.dim(3)], a.dtype())?;
    if kept == 0 {
        return Ok(rest);
    }
    concatenate(&[a.try_index((.., .., ..kept, ..))?, rest], 2)
}

/// Shapes, rows and lengths fit together.
fn check(q: &Array, k: &Array, v: &Array, held: &Held, place: Place) -> std::result::Result<(), Exception> {
    let (rows, heads, had, d) = match *held.keys.shape() {
        [r, h, c, d] if held.values.shape() == held.keys.shape() => (r, h, c, d),
        _ => return Err(Exception::custom(format!("keys {:?}, values {:?}", held.keys.shape(), held.values.shape()))),
    };
    let fits = matches!((q.shape(), k.shape()), ([b, t, h], [kb, kt, kh])
        if (b, t) == (kb, kt) && *kh == heads * d && *h > 0 && h % kh == 0 && *b as usize == place.rows.len())
        && k.shape() == v.shape();
    let counted = place.past.len() == rows as usize
        && place.past.iter().all(|p| *p >= 0 && *p <= had.min(place.capacity))
        && place.rows.iter().enumerate().all(|(i, r)| {
            !place.rows.iter().take(i).any(|other| other == r)
                && place.past.get(*r as usize).is_some_and(|p| *p + q.dim(1) <= place.capacity)
        });
    match fits && counted {
        true => Ok(()),
        false => Err(Exception::custom(format!(
            "q {:?}, k {:?}, v {:?} do not fit the cache {:?} with {:?} positions in rows {:?} and room for {}",
            q.shape(),
            k.shape(),
            v.shape(),
            held.keys.shape(),
            place.past,
            place.rows,
            place.capacity
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::kernel_tests::{difference, random, setting, values};
    use super::*;

    /// Sizes of a cache and what is done with it.
    struct Case {
        heads: i32,
        kv: i32,
        d: i32,
        rows: i32,
        traditional: bool,
        norms: bool,
        /// (rows, new positions, capacity)
        steps: &'static [(&'static [i32], i32, i32)],
    }

    const CASES: &[Case] = &[
        // A prompt and then tokens; the capacity grows in between.
        Case {
            heads: 9,
            kv: 3,
            d: 64,
            rows: 1,
            traditional: false,
            norms: false,
            steps: &[(&[0], 40, 64), (&[0], 1, 64), (&[0], 23, 64), (&[0], 1, 128), (&[0], 8, 128)],
        },
        // Rows filled one by one, in chunks, then decoded together and in part; over several chunks of keys.
        Case {
            heads: 4,
            kv: 4,
            d: 80,
            rows: 3,
            traditional: true,
            norms: true,
            steps: &[
                (&[1], 300, 300),
                (&[0], 97, 300),
                (&[2], 5, 300),
                (&[1, 0, 2], 1, 600),
                (&[2, 1], 3, 600),
                (&[0, 1, 2], 8, 600),
                (&[1], 230, 600),
                (&[0, 1], 1, 600),
            ],
        },
        // Odd sizes: groups of five, a head of no whole vector; rows in step.
        Case {
            heads: 10,
            kv: 2,
            d: 6,
            rows: 4,
            traditional: false,
            norms: true,
            steps: &[(&[0, 1, 2, 3], 11, 20), (&[0, 1, 2, 3], 2, 20), (&[3, 1], 1, 20)],
        },
    ];

    type Op = fn(&Array, &Array, &Array, Held, Place, &Attention) -> Result<(Array, Held)>;

    /// Every step's answer, and what the rows hold in the end.
    fn run(c: &Case, op: Op) -> Vec<Array> {
        let freqs = random(&[c.d / 2], 1.0, 5).square().unwrap().add(Array::from_f32(1.0)).unwrap();
        let (qn, kn) = (random(&[c.d], 1.0, 6), random(&[c.d], 1.0, 7));
        let how = Attention {
            scale: 1.5 / (c.d as f32).sqrt(),
            freqs: &freqs,
            traditional: c.traditional,
            norms: c.norms.then_some((&qn, &kn)),
            eps: 1e-5,
        };
        let mut past = vec![0; c.rows as usize];
        let mut held = Held::empty(c.rows, c.kv, c.d).unwrap();
        let mut out = Vec::new();
        for (i, &(rows, t, capacity)) in c.steps.iter().enumerate() {
            let input = |heads: i32, n: u64| random(&[rows.len() as i32, t, heads * c.d], 1.0, 10 * i as u64 + n);
            let place = Place { rows, past: &past, capacity };
            let (y, h) = op(&input(c.heads, 1), &input(c.kv, 2), &input(c.kv, 3), held, place, &how).unwrap();
            held = h;
            rows.iter().for_each(|r| past[*r as usize] += t);
            out.push(y);
        }
        for (r, n) in past.iter().enumerate() {
            for a in [&held.keys, &held.values] {
                out.push(a.try_index((r as i32, .., ..*n, ..)).unwrap());
            }
        }
        super::super::eval(&out).unwrap();
        out
    }

    #[test]
    fn it_is_what_mlx_composes() {
        for (i, c) in CASES.iter().enumerate() {
            let want = run(c, composed);
            let set = setting();
            for (n, (g, w)) in run(c, cached_attention).iter().zip(&want).enumerate() {
                let d = difference(g, w);
                assert!(d < 1e-5, "case {i} {set}: output {n} {:?} differs by {d}", g.shape());
            }
        }
    }

    #[test]
    fn a_row_answers_the_same_alone_and_among_others() {
        let freqs = random(&[16], 1.0, 5).square().unwrap().add(Array::from_f32(1.0)).unwrap();
        let how = Attention { scale: 0.2, freqs: &freqs, traditional: false, norms: None, eps: 1e-5 };
        let lengths = [3, 290, 17];
        let prompt = |b: usize, n: i32, heads: i32, seed| random(&[1, n, heads * 32], 1.0, 100 * b as u64 + seed);
        let step = |b: usize, heads: i32, seed| random(&[1, 1, heads * 32], 1.0, 100 * b as u64 + seed + 50);
        let mut alone = Vec::new();
        for (b, n) in lengths.into_iter().enumerate() {
            let place = Place { rows: &[0], past: &[0], capacity: 300 };
            let held = Held::empty(1, 2, 32).unwrap();
            let (_, held) =
                cached_attention(&prompt(b, n, 6, 1), &prompt(b, n, 2, 2), &prompt(b, n, 2, 3), held, place, &how)
                    .unwrap();
            let place = Place { rows: &[0], past: &[n], capacity: 300 };
            alone.push(cached_attention(&step(b, 6, 1), &step(b, 2, 2), &step(b, 2, 3), held, place, &how).unwrap().0);
        }
        let mut held = Held::empty(3, 2, 32).unwrap();
        let mut past = [0; 3];
        for (b, n) in lengths.into_iter().enumerate() {
            let place = Place { rows: &[b as i32], past: &past, capacity: 300 };
            held = cached_attention(&prompt(b, n, 6, 1), &prompt(b, n, 2, 2), &prompt(b, n, 2, 3), held, place, &how)
                .unwrap()
                .1;
            past[b] = n;
        }
        let all = |heads, seed| concatenate(&[step(0, heads, seed), step(1, heads, seed), step(2, heads, seed)], 0);
        let place = Place { rows: &[0, 1, 2], past: &past, capacity: 300 };
        let (y, _) =
            cached_attention(&all(6, 1).unwrap(), &all(2, 2).unwrap(), &all(2, 3).unwrap(), held, place, &how).unwrap();
        let alone: Vec<f32> = alone.iter().flat_map(values).collect();
        if kernels::native() {
            assert_eq!(values(&y), alone);
        }
    }

    #[test]
    fn the_cache_is_written_in_place() {
        if !kernels::native() {
            return;
        }
        let freqs = random(&[32], 1.0, 5).square().unwrap().add(Array::from_f32(1.0)).unwrap();
        let how = Attention { scale: 0.1, freqs: &freqs, traditional: false, norms: None, eps: 1e-5 };
        let x = random(&[1, 1, 128], 1.0, 1);
        let mut held = Held::empty(1, 2, 64).unwrap();
        let mut places = std::collections::BTreeSet::new();
        for n in 0..20 {
            let place = Place { rows: &[0], past: &[n], capacity: 50 };
            let (y, h) = cached_attention(&x, &x, &x, held, place, &how).unwrap();
            super::super::eval([&y]).unwrap();
            held = h;
            places.insert(held.keys.try_as_slice::<f32>().unwrap().as_ptr() as usize);
        }
        assert_eq!(places.len(), 1);
        // Somebody else looks at it: what they see does not change.
        let other = held.keys.clone();
        let before = other.try_as_slice::<f32>().unwrap()[..64 * 20].to_vec();
        let (x, place) = (random(&[1, 1, 128], 1.0, 2), Place { rows: &[0], past: &[3], capacity: 50 });
        let (y, h) = cached_attention(&x, &x, &x, held, place, &how).unwrap();
        super::super::eval([&y, &h.keys]).unwrap();
        assert!(other.try_as_slice::<f32>().unwrap()[..64 * 20] == before);
        assert!(h.keys.try_as_slice::<f32>().unwrap()[..64 * 3] == before[..64 * 3]);
        assert!(h.keys.try_as_slice::<f32>().unwrap()[64 * 3..64 * 4] != before[64 * 3..64 * 4]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let freqs = random(&[4], 1.0, 5);
        let how = Attention { scale: 1.0, freqs: &freqs, traditional: false, norms: None, eps: 1e-5 };
        let x = |b, t, n| random(&[b, t, n], 1.0, 1);
        for op in [cached_attention as Op, composed] {
            let refused = |q: Array, k: Array, rows: &[i32], past: &[i32], capacity: i32| {
                let held = Held::empty(2, 2, 8).unwrap();
                op(&q, &k, &k, held, Place { rows, past, capacity }, &how).is_err()
            };
            assert!(refused(x(1, 1, 24), x(1, 1, 16), &[0], &[0, 0], 4), "heads");
            assert!(refused(x(1, 1, 32), x(1, 2, 16), &[0], &[0, 0], 4), "positions");
            assert!(refused(x(1, 5, 32), x(1, 5, 16), &[0], &[0, 0], 4), "capacity");
            assert!(refused(x(1, 1, 32), x(1, 1, 16), &[2], &[0, 0], 4), "row");
            assert!(refused(x(1, 1, 32), x(1, 1, 16), &[-1], &[0, 0], 4), "row");
            assert!(refused(x(2, 1, 32), x(2, 1, 16), &[1, 1], &[0, 0], 4), "twice");
            assert!(refused(x(1, 1, 32), x(1, 1, 16), &[0], &[1, 0], 4), "held more than there is");
            assert!(refused(x(1, 1, 32), x(1, 1, 16), &[0], &[0], 4), "lengths");
            assert!(!refused(x(1, 4, 32), x(1, 4, 16), &[1], &[0, 0], 4));
        }
    }
}
