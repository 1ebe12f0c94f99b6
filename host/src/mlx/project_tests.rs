//! Projections by the kernels against MLX's own operations: every kind of storage, few rows and many, gradients.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::kernel_tests::{random, same_with_gradients};
use super::project::{Operand, Projection, Thin};
use super::quant::{Mode, Packed, Scheme};
use super::{Array, Dtype, eval, kernels};

const ROWS: [i32; 6] = [1, 2, 5, 16, 17, 130];

fn same(what: &str, x: &Array, p: &Projection, tolerance: f32) {
    let inputs = [x.clone()];
    same_with_gradients(what, &inputs, &|x| p.apply(&x[0], None), &|x| p.composed(&x[0], None), tolerance);
}

#[test]
fn quantised_weights_of_every_kind_match_mlx() {
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            for (rows, cols, scales) in
                [(70, 256, Dtype::Float32), (33, 384, Dtype::Float16), (129, 128, Dtype::Bfloat16)]
            {
                let w = Packed::affine(&random(&[rows, cols], 1.0, 7), bits, group, scales).unwrap();
                let p = Projection { base: Some(Operand::Packed(&w)), ..Projection::default() };
                for m in ROWS {
                    same(&format!("{bits} bits, groups of {group}, {m} rows"), &random(&[m, cols], 1.0, 3), &p, 5e-6);
                }
            }
        }
    }
}

#[test]
fn small_floats_match_mlx() {
    for (mode, bits, group_size) in [(Mode::Mxfp4, 4, 32), (Mode::Mxfp8, 8, 32), (Mode::Nvfp4, 4, 16)] {
        let scheme = Scheme { group_size, bits, mode };
        // Any codes are numbers but those of NaN, which have all bits but the sign set.
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state
        };
        let words: Vec<u32> = (0..40 * 8 * bits).map(|_| next() & 0xbfbf_bfbf).collect();
        let codes = Array::from_slice(&words, &[40, 8 * bits as i32]);
        let groups = 256 / group_size;
        let exponents: Vec<u8> = (0..40 * groups).map(|_| 110 + (next() >> 16) as u8 % 16).collect();
        let scales = Array::from_slice(&exponents, &[40, groups as i32]);
        let w = Packed { codes, scales, biases: None, scheme };
        let p = Projection { base: Some(Operand::Packed(&w)), ..Projection::default() };
        for m in ROWS {
            let x = random(&[m, 256], 1.0, 3);
            let want = x.matmul(w.dequantize().unwrap().as_dtype(Dtype::Float32).unwrap().transpose().unwrap());
            let set = super::kernel_tests::setting();
            let d = super::kernel_tests::difference(&p.apply(&x, None).unwrap(), want.as_ref().unwrap());
            assert!(d < 5e-6, "{} {m} rows {set}: {d}", mode.name());
        }
    }
}

#[test]
fn floats_of_every_type_and_any_size_match_mlx() {
    for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
        for (rows, cols) in [(1, 1), (3, 7), (64, 64), (40, 130), (193, 577)] {
            let w = random(&[rows, cols], 1.0, 1).as_dtype(dtype).unwrap();
            let view = random(&[cols, rows], 1.0, 1).as_dtype(dtype).unwrap().transpose().unwrap();
            eval([&w, &view]).unwrap();
            for w in [&w, &view] {
                let p = Projection { base: Some(Operand::Float(w)), ..Projection::default() };
                for m in ROWS {
                    same(&format!("{dtype:?} [{rows}, {cols}], {m} rows"), &random(&[m, cols], 1.0, 2), &p, 5e-6);
                }
            }
        }
    }
}

#[test]
fn factors_gain_bias_and_residual_join_in_one_pass() {
    let base = Packed::affine(&random(&[96, 128], 1.0, 1), 4, 32, Dtype::Float16).unwrap();
    let small = Packed::affine(&random(&[64, 128], 1.0, 2), 8, 32, Dtype::Float16).unwrap();
    let (gain, bias) = (random(&[96], 1.0, 3), random(&[96], 1.0, 4));
    // x, residual, and two pairs of factors: all differentiated
    for m in [1, 9, 40, 300] {
        let inputs = [
            random(&[2, m, 128], 1.0, 5),
            random(&[2, m, 96], 1.0, 6),
            random(&[96, 5], 1.0, 7),
            random(&[5, 128], 1.0, 8),
            random(&[96, 33], 1.0, 9),
            random(&[33, 128], 1.0, 10),
        ];
        for with_base in [true, false] {
            let run = |x: &[Array], native: bool| {
                let factors = [
                    Thin { a: Operand::Float(&x[2]), b: Operand::Float(&x[3]) },
                    Thin { a: Operand::Float(&x[4]), b: Operand::Float(&x[5]) },
                ];
                let base = with_base.then_some(Operand::Packed(&base));
                let p = Projection { base, factors: &factors, gain: Some(&gain), bias: Some(&bias) };
                if native { p.apply(&x[0], Some(&x[1])) } else { p.composed(&x[0], Some(&x[1])) }
            };
            let what = format!("{m} rows, base {with_base}");
            same_with_gradients(&what, &inputs, &|x| run(x, true), &|x| run(x, false), 1e-5);
        }
        // factors that are stored quantised, on top of a base
        let a = Packed::affine(&random(&[96, 64], 1.0, 11), 4, 32, Dtype::Float32).unwrap();
        let thin = [Thin { a: Operand::Packed(&a), b: Operand::Packed(&small) }];
        let p = Projection { base: Some(Operand::Packed(&base)), factors: &thin, ..Projection::default() };
        same(&format!("{m} rows, quantised factors"), &inputs[0], &p, 1e-5);
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let (x, w) = (random(&[2, 64], 1.0, 1), random(&[3, 65], 1.0, 2));
    let of = |p: Projection| p.apply(&x, None).unwrap_err().to_string();
    let e = of(Projection { base: Some(Operand::Float(&w)), ..Projection::default() });
    assert!(e.contains("65 inputs") && e.contains("64"), "{e}");
    assert!(of(Projection::default()).contains("nothing to multiply"));
    let (a, b, bias) = (random(&[3, 4], 1.0, 1), random(&[5, 64], 1.0, 2), random(&[7], 1.0, 3));
    let thin = [Thin { a: Operand::Float(&a), b: Operand::Float(&b) }];
    let e = of(Projection { factors: &thin, ..Projection::default() });
    assert!(!kernels::native() || e.contains("factors [3, 4] and [5, 64]"), "{e}");
    let w = random(&[3, 64], 1.0, 2);
    let e = of(Projection { base: Some(Operand::Float(&w)), bias: Some(&bias), ..Projection::default() });
    assert!(!kernels::native() || e.contains("[7] for 3 outputs"), "{e}");
}
