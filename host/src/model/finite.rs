//! Looks for NaN and infinities in evaluated arrays, on all cores.

use crate::mlx::{Array, Dtype, MlxError, Result};
use half::{bf16, f16};

/// Elements per piece of work: large enough that starting a thread does not matter.
const PIECE: usize = 1 << 20;

/// The first element that is not finite, with its value; `None` for integer arrays.
///
/// # Errors
/// When the array's memory cannot be read.
pub(crate) fn first_bad(a: &Array) -> Result<Option<(usize, f32)>> {
    Ok(match a.dtype() {
        Dtype::Float32 => scan(slice::<f32>(a)?, |x| !x.is_finite()),
        Dtype::Float16 => scan(slice::<f16>(a)?, |x| !x.is_finite()).map(|(i, x)| (i, x.to_f32())),
        Dtype::Bfloat16 => scan(slice::<bf16>(a)?, |x| !x.is_finite()).map(|(i, x)| (i, x.to_f32())),
        _ => None,
    })
}

/// The first byte that codes a NaN: 0x7F and 0xFF for e4m3, 0xFF for e8m0.
///
/// # Errors
/// When the array's memory cannot be read.
pub(crate) fn first_bad_code(a: &Array, e4m3: bool) -> Result<Option<usize>> {
    let nan = |x: &u8| if e4m3 { x & 0x7F == 0x7F } else { *x == 0xFF };
    Ok(match a.dtype() {
        Dtype::Uint8 => scan(slice::<u8>(a)?, nan).map(|(i, _)| i),
        Dtype::Uint32 => scan(bytemuck::cast_slice::<u32, u8>(slice::<u32>(a)?), nan).map(|(i, _)| i),
        _ => None,
    })
}

fn slice<T: mlx_rs::ArrayElement>(a: &Array) -> Result<&[T]> {
    a.try_as_slice::<T>().map_err(|e| MlxError {
        what: "reading a tensor".into(),
        exception: mlx_rs::error::Exception::custom(e.to_string()),
    })
}

/// First element that `bad` holds for. Each piece is first tested as a whole, which vectorises.
fn scan<T: Copy + Sync>(all: &[T], bad: impl Fn(&T) -> bool + Sync) -> Option<(usize, T)> {
    let any = |piece: &[T]| piece.iter().fold(false, |found, x| found | bad(x));
    let first = |piece: &[T]| if any(piece) { piece.iter().position(&bad) } else { None };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(all.len() / PIECE);
    let at = match threads {
        0 | 1 => first(all),
        n => {
            let each = all.len().div_ceil(n);
            std::thread::scope(|s| {
                let work: Vec<_> = all.chunks(each).map(|piece| s.spawn(|| first(piece))).collect();
                let found: Vec<_> = work.into_iter().map(|w| w.join().ok().flatten()).collect();
                found.into_iter().enumerate().find_map(|(k, at)| at.map(|i| k * each + i))
            })
        }
    };
    at.and_then(|i| all.get(i).map(|x| (i, *x)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn finds_the_first_bad_value_in_small_and_large_arrays() {
        for n in [10usize, 5 * PIECE + 3] {
            let mut v = vec![1.0f32; n];
            assert_eq!(first_bad(&Array::from_slice(&v, &[n as i32])).unwrap(), None);
            v[n - 2] = f32::INFINITY;
            let (at, x) = first_bad(&Array::from_slice(&v, &[n as i32])).unwrap().unwrap();
            assert_eq!((at, x), (n - 2, f32::INFINITY));
            v[3] = f32::NAN;
            assert_eq!(first_bad(&Array::from_slice(&v, &[n as i32])).unwrap().unwrap().0, 3);
        }
    }

    #[test]
    fn knows_the_nan_codes() {
        let a = |v: &[u8]| Array::from_slice(v, &[v.len() as i32]);
        assert_eq!(first_bad_code(&a(&[0, 0x7F, 0xFE]), false).unwrap(), None);
        assert_eq!(first_bad_code(&a(&[0, 1, 0xFF]), false).unwrap(), Some(2));
        assert_eq!(first_bad_code(&a(&[0, 0x7F]), true).unwrap(), Some(1));
        assert_eq!(first_bad_code(&Array::from_slice(&[0u32, 0x00FF_0000], &[2]), true).unwrap(), Some(6));
    }
}
