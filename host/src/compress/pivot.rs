//! A matrix of low rank as some of its own rows and how the others are made of them (pivoting factorisation).
//!
//! W = A B with A [m, r] of full rank: any r rows of A that are independent, A_p, give W = (A A_p⁻¹) (A_p B), and the
//! rows of A_p B are rows of W. Rounding of the stored numbers is magnified by the coefficients A A_p⁻¹, so the rows
//! are chosen to keep those small: first greedily, each time the row that is farthest from the span of those chosen
//! (QR with pivoting, Businger & Golub 1965) of an orthonormal basis of A's columns, then rows are exchanged while a
//! coefficient is larger than [`LARGEST`] (maximal volume, Goreinov et al. 2010; each exchange multiplies the volume
//! of A_p by that coefficient, so this ends). In float64. Answers `None` where A has not the rank it should have.

/// Coefficients are brought to at most this size.
pub const LARGEST: f64 = 1.5;
/// A row this much shorter than the longest is in the span of those chosen.
const NOTHING: f64 = 1e-10;

/// Which rows, and how the others are made of them.
#[derive(Clone, Debug)]
pub struct Pivots {
    /// The chosen rows, r of them, ascending.
    pub rows: Vec<usize>,
    /// [m − r, r], row by row, the other rows in ascending order.
    pub coefficients: Vec<f64>,
}

/// Chooses rows of `a` [m, r], given row by row with orthonormal columns.
///
/// `None` where there are not r independent rows, or `a` has not m · r numbers.
pub fn choose(a: &[f64], m: usize, r: usize) -> Option<Pivots> {
    if r == 0 || r > m || a.len() != m * r {
        return None;
    }
    let (chosen, l) = greedy(a, m, r)?;
    let mut rest: Vec<usize> = (0..m).filter(|i| !chosen.contains(i)).collect();
    let mut c = Vec::with_capacity(rest.len() * r);
    for &i in &rest {
        c.extend(solved(&l[i * r..(i + 1) * r], &l, &chosen, r));
    }
    let mut chosen = chosen;
    exchange(&mut c, &mut chosen, &mut rest, r);
    Some(sorted(&c, &chosen, &rest, r))
}

/// Gram-Schmidt with pivoting over the rows: the rows chosen in turn, and L with A = L Q, Q orthonormal; L is lower
/// triangular in the rows chosen.
fn greedy(a: &[f64], m: usize, r: usize) -> Option<(Vec<usize>, Vec<f64>)> {
    let mut v = a.to_vec();
    let mut l = vec![0.0; m * r];
    let mut left: Vec<f64> = v.chunks_exact(r).map(|row| dot(row, row)).collect();
    let longest = left.iter().copied().fold(0.0, f64::max);
    let (mut chosen, mut open) = (Vec::with_capacity(r), vec![true; m]);
    for k in 0..r {
        let p = (0..m).filter(|&i| open[i]).max_by(|&i, &j| left[i].total_cmp(&left[j]))?;
        let size = dot(&v[p * r..(p + 1) * r], &v[p * r..(p + 1) * r]);
        if !(size.is_finite() && size > NOTHING * NOTHING * longest) {
            return None;
        }
        let size = size.sqrt();
        let q: Vec<f64> = v[p * r..(p + 1) * r].iter().map(|x| x / size).collect();
        l[p * r + k] = size;
        open[p] = false;
        chosen.push(p);
        for i in (0..m).filter(|&i| open[i]) {
            let row = &mut v[i * r..(i + 1) * r];
            let along = dot(row, &q);
            row.iter_mut().zip(&q).for_each(|(x, q)| *x -= along * q);
            l[i * r + k] = along;
            left[i] -= along * along;
        }
    }
    Some((chosen, l))
}

/// The row c with c L_p = `row`, L_p lower triangular: the rows of `l` that were chosen, in their order.
fn solved(row: &[f64], l: &[f64], chosen: &[usize], r: usize) -> Vec<f64> {
    let mut c = row.to_vec();
    for k in (0..r).rev() {
        let pivot = &l[chosen[k] * r..chosen[k] * r + r];
        c[k] /= pivot[k];
        let x = c[k];
        c[..k].iter_mut().zip(pivot).for_each(|(c, p)| *c -= x * p);
    }
    c
}

/// Exchanges a chosen row for another while a coefficient is larger than [`LARGEST`].
fn exchange(c: &mut [f64], chosen: &mut [usize], rest: &mut [usize], r: usize) {
    // Each exchange is a step up in volume; the bound only guards against rounding.
    for _ in 0..8 * r {
        let largest = c.iter().enumerate().max_by(|x, y| x.1.abs().total_cmp(&y.1.abs()));
        let Some((at, &x)) = largest.filter(|(_, x)| x.abs() > LARGEST) else { return };
        let (i, j) = (at / r, at % r);
        let row: Vec<f64> = c[i * r..(i + 1) * r].to_vec();
        for (a, other) in c.chunks_exact_mut(r).enumerate().filter(|(a, _)| *a != i) {
            debug_assert!(a < rest.len());
            let along = other[j] / x;
            other.iter_mut().zip(&row).for_each(|(o, w)| *o -= along * w);
            other[j] = along;
        }
        // The row that was chosen is now made of the others.
        for (k, o) in c[i * r..(i + 1) * r].iter_mut().enumerate() {
            *o = if k == j { 1.0 / x } else { -row[k] / x };
        }
        std::mem::swap(&mut chosen[j], &mut rest[i]);
    }
}

/// The same with both kinds of rows in ascending order.
fn sorted(c: &[f64], chosen: &[usize], rest: &[usize], r: usize) -> Pivots {
    let order = |of: &[usize]| {
        let mut places: Vec<usize> = (0..of.len()).collect();
        places.sort_by_key(|&i| of[i]);
        places
    };
    let (columns, rows) = (order(chosen), order(rest));
    let coefficients = rows.iter().flat_map(|&i| columns.iter().map(move |&j| c[i * r + j])).collect();
    Pivots { rows: columns.iter().map(|&j| chosen[j]).collect(), coefficients }
}

/// Σ x y, in eight sums, which the compiler computes side by side.
fn dot(x: &[f64], y: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (xs, ys) = (x.chunks_exact(8), y.chunks_exact(8));
    let rest: f64 = xs.remainder().iter().zip(ys.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in xs.zip(ys) {
        for ((s, a), b) in sums.iter_mut().zip(a).zip(b) {
            *s += a * b;
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// A [m, r], with rows of very different lengths where `wild`.
    fn drawn(m: usize, r: usize, wild: bool, seed: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows = (0..m).flat_map(|i| {
            let size = if wild { 10f64.powi(-((i % 7) as i32)) } else { 1.0 };
            (0..r).map(|_| size * (rng.random::<f64>() - 0.5)).collect::<Vec<_>>()
        });
        rows.collect()
    }

    #[test]
    fn the_other_rows_are_what_the_coefficients_make_and_those_are_small() {
        for (m, r, wild) in [(7, 3, false), (40, 40, false), (60, 25, true), (130, 64, true), (5, 1, false)] {
            let a = drawn(m, r, wild, 3);
            let p = choose(&a, m, r).unwrap();
            assert_eq!((p.rows.len(), p.coefficients.len()), (r, (m - r) * r));
            assert!(p.rows.is_sorted_by(|x, y| x < y));
            assert!(p.coefficients.iter().all(|c| c.abs() <= LARGEST), "{m} x {r}");
            let rest: Vec<usize> = (0..m).filter(|i| !p.rows.contains(i)).collect();
            for (c, &i) in p.coefficients.chunks_exact(r).zip(&rest) {
                for k in 0..r {
                    let made: f64 = c.iter().zip(&p.rows).map(|(c, &p)| c * a[p * r + k]).sum();
                    assert!((made - a[i * r + k]).abs() < 1e-10, "{m} x {r}: row {i}, {made} for {}", a[i * r + k]);
                }
            }
        }
    }

    #[test]
    fn a_row_that_is_needed_is_chosen() {
        // Only row 2 has anything of the second direction.
        let a = [5.0, 0.0, 3.0, 0.0, 0.1, 0.01, -4.0, 0.0];
        let p = choose(&a, 4, 2).unwrap();
        assert!(p.rows.contains(&2), "{p:?}");
        assert!(p.coefficients.iter().all(|c| c.abs() <= LARGEST));
    }

    #[test]
    fn too_few_independent_rows_are_noticed() {
        assert!(choose(&[1.0, 2.0, 2.0, 4.0, 3.0, 6.0], 3, 2).is_none());
        assert!(choose(&[f64::NAN, 1.0], 2, 1).is_none());
        assert!(choose(&[1.0], 1, 2).is_none());
        assert!(choose(&[], 0, 0).is_none());
    }
}
