//! A slice stored as some of its own rows and how the others are made of them.
//!
//! A weight W [m, n] of rank r has r rows P [r, n] that span all m, so W is, up to the order of its rows, P over C P
//! with coefficients C [m − r, r]. That is r (m + n − r) numbers where two factors need r (m + n), and
//!
//! ```text
//! y = W x = the rows of (P x, C (P x)) in their own order.
//! ```
//!
//! (Pivoting factorisation, PIFA, Zhao et al. 2025.) Stored are `<slice>.pivot.rows`, which rows of W those of P are
//! (int32 [r]), `<slice>.pivot.basis` P and `<slice>.pivot.coefficients` C, the latter with the other rows in
//! ascending order; both in floats or quantised. Such a slice is fixed: fewer of its rows are no smaller slice.

use crate::mlx::{self, Array, Context};
use mlx_rs::ops::concatenate;

/// A weight as rows of its own and coefficients.
#[derive(Clone, Debug)]
pub(crate) struct Pivoted {
    /// P, float32 [r, n].
    basis: Array,
    /// C, float32 [m − r, r].
    coefficients: Array,
    /// Where each row of W is in P over C P, int32 [m].
    place: Array,
}

impl Pivoted {
    /// Of rows P (float32 [r, n]), coefficients C (float32 [m − r, r]) and the places of P's rows in W.
    ///
    /// # Errors
    /// When `rows` are not r different numbers below m; the message says which is wrong.
    pub(crate) fn new(basis: Array, coefficients: Array, rows: &[i32]) -> Result<Pivoted, String> {
        let all = rows.len() + coefficients.dim(0).max(0) as usize;
        let mut place = vec![-1; all];
        for (at, row) in rows.iter().enumerate() {
            match usize::try_from(*row).ok().and_then(|row| place.get_mut(row)) {
                Some(p) if *p < 0 => *p = at as i32,
                Some(_) => return Err(format!("names row {row} twice")),
                None => return Err(format!("names row {row} of a slice with {all} rows")),
            }
        }
        for (next, p) in (rows.len() as i32..).zip(place.iter_mut().filter(|p| **p < 0)) {
            *p = next;
        }
        let place = Array::from_slice(&place, &[all as i32]);
        Ok(Pivoted { basis, coefficients, place })
    }

    /// `x Wᵀ`: [.., n] to [.., m].
    pub(crate) fn apply(&self, x: &Array) -> mlx::Result<Array> {
        let what = "pivoted projection";
        let first = x.matmul(self.basis.transpose()?).context(what)?;
        let others = first.matmul(self.coefficients.transpose()?).context(what)?;
        concatenate(&[first, others], -1).and_then(|y| y.take_axis(&self.place, -1)).context(what)
    }

    /// W: float32 [m, n].
    pub(crate) fn product(&self) -> mlx::Result<Array> {
        let others = self.coefficients.matmul(&self.basis)?;
        let rows = concatenate(&[self.basis.clone(), others], 0).and_then(|w| w.take_axis(&self.place, 0));
        rows.context("multiplying a pivoted slice out")
    }

    /// All it holds.
    pub(crate) fn arrays(&self) -> [&Array; 3] {
        [&self.basis, &self.coefficients, &self.place]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::mlx::spectral::to_vec;

    #[test]
    fn rows_come_back_in_their_own_order() {
        // Rows 3 and 1 of W; row 0 is their sum, row 2 the first less twice the second.
        let basis = Array::from_slice(&[1.0f32, 2.0, 0.0, 0.0, 1.0, 3.0], &[2, 3]);
        let coefficients = Array::from_slice(&[1.0f32, 1.0, 1.0, -2.0], &[2, 2]);
        let w = Pivoted::new(basis, coefficients, &[3, 1]).unwrap();
        let product = to_vec(&w.product().unwrap()).unwrap();
        assert_eq!(product, [1.0, 3.0, 3.0, 0.0, 1.0, 3.0, 1.0, 0.0, -6.0, 1.0, 2.0, 0.0]);
        let x = Array::from_slice(&[1.0f32, 1.0, 1.0, 0.0, 0.0, 2.0], &[1, 2, 3]);
        let y = w.apply(&x).unwrap();
        assert_eq!(y.shape(), [1, 2, 4]);
        assert_eq!(to_vec(&y).unwrap(), [7.0, 4.0, -5.0, 3.0, 6.0, 6.0, -12.0, 0.0]);
    }

    #[test]
    fn rows_that_cannot_be_are_named() {
        let made = |rows: &[i32]| {
            let zeros = |r, c| mlx_rs::ops::zeros::<f32>(&[r, c]).unwrap();
            Pivoted::new(zeros(2, 3), zeros(2, 2), rows).map(|_| ())
        };
        assert!(made(&[0, 3]).is_ok());
        assert_eq!(made(&[1, 1]).unwrap_err(), "names row 1 twice");
        assert_eq!(made(&[1, 4]).unwrap_err(), "names row 4 of a slice with 4 rows");
        assert_eq!(made(&[-1, 0]).unwrap_err(), "names row -1 of a slice with 4 rows");
    }
}
