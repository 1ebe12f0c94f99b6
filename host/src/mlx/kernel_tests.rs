//! The custom primitives against the composed operations and against plain float64 formulas.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::project::Operand;
use super::{Array, composed, kernels};
use mlx_rs::transforms::fallible_vjp as vjp;

/// Deterministic standard-normal-ish data of a shape, scaled.
pub(super) fn random(shape: &[i32], scale: f32, seed: u64) -> Array {
    let key = mlx_rs::random::key(seed).unwrap();
    mlx_rs::random::normal::<f32>(shape, None, scale, &key).unwrap()
}

pub(super) fn values(a: &Array) -> Vec<f32> {
    let a = a.flatten(None, None).unwrap();
    a.try_as_slice::<f32>().unwrap().to_vec()
}

/// Largest difference, relative to the largest expected magnitude.
pub(super) fn difference(got: &Array, want: &Array) -> f32 {
    assert_eq!(got.shape(), want.shape());
    let (g, w) = (values(got), values(want));
    let scale = w.iter().fold(1e-30f32, |m, x| m.max(x.abs()));
    let worst = g.iter().zip(&w).fold(0f32, |m, (a, b)| if (a - b).is_nan() { f32::NAN } else { m.max((a - b).abs()) });
    worst / scale
}

/// What runs here, for messages.
pub(super) fn setting() -> String {
    format!("{} with {} threads", kernels::isa(), kernels::threads())
}

/// The tests of the kernels again, with every instruction set of this machine, with one thread and with some: each in
/// a process of its own, since the set is the process's.
#[test]
fn every_instruction_set_and_one_thread() {
    if !kernels::native() || std::env::var_os("PLASTIC_ISA").is_some() {
        return;
    }
    let mut ran = vec![];
    for isa in ["scalar", "avx2", "avx512"] {
        for threads in ["1", "3"] {
            let out = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["mlx::kernel_tests::", "mlx::project_tests::", "mlx::decode::", "--nocapture"])
                .envs([("PLASTIC_ISA", isa), ("PLASTIC_THREADS", threads)])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success(), "{isa} with {threads} threads:\n{text}");
            let used = text.lines().find_map(|l| l.split("kernels run ").nth(1)).unwrap().to_string();
            assert!(used.ends_with(&format!(" with {threads} threads")), "{used}");
            // A machine without a set takes another one.
            ran.push(used);
        }
    }
    assert!(ran[0].starts_with("scalar") && ran.iter().any(|r| r.starts_with(kernels::isa())), "{ran:?}");
}

#[test]
fn says_what_runs() {
    println!("kernels run {}", setting());
}

type Op<'a> = &'a dyn Fn(&[Array]) -> super::Result<Array>;

/// Value and gradients of `got` against `want` for a random cotangent.
pub(super) fn same_with_gradients(what: &str, inputs: &[Array], got: Op, want: Op, tolerance: f32) {
    let run = |op: Op| {
        let y = op(inputs).unwrap();
        let ct = random(y.shape(), 1.0, 99);
        let f = |x: &[Array]| op(x).map(|y| vec![y]).map_err(|e| e.exception);
        let (_, grads) = vjp(f, inputs, &[ct]).unwrap();
        let all: Vec<Array> = std::iter::once(y).chain(grads).collect();
        super::eval(&all).unwrap();
        all
    };
    let want = run(want);
    let set = setting();
    for (i, (g, w)) in run(got).iter().zip(&want).enumerate() {
        let d = difference(g, w);
        assert!(d < tolerance, "{what} {set}: output {i} {:?} differs by {d}", g.shape());
    }
}

#[test]
fn swiglu_matches_silu_times_up_and_its_gradients() {
    for shape in [&[1][..], &[3, 17], &[2, 5, 33], &[40, 1536]] {
        let inputs = [random(shape, 3.0, 1), random(shape, 1.0, 2)];
        let what = format!("swiglu {shape:?}");
        same_with_gradients(
            &what,
            &inputs,
            &|x| kernels::swiglu(&x[0], &x[1]),
            &|x| composed::swiglu(&x[0], &x[1]),
            2e-6,
        );
    }
}

#[test]
fn swiglu_reads_strided_inputs_and_refuses_different_shapes() {
    let (g, u) = (random(&[6, 4, 10], 1.0, 1), random(&[4, 10, 6], 1.0, 2));
    let g = g.transpose_axes(&[1, 2, 0]).unwrap();
    assert!(difference(&kernels::swiglu(&g, &u).unwrap(), &composed::swiglu(&g, &u).unwrap()) < 2e-6);
    let e = kernels::swiglu(&g, &random(&[4, 10, 5], 1.0, 3)).unwrap_err().to_string();
    assert!(e.contains("[4, 10, 6]") && e.contains("[4, 10, 5]"), "{e}");
}

/// Negative log-probability in float64.
fn nll64(hidden: &[f32], head: &[f32], d: usize, target: usize) -> f64 {
    let dot = |w: &[f32]| hidden.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let logits: Vec<f64> = head.chunks_exact(d).map(dot).collect();
    let max = logits.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
    max + logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - logits[target]
}

#[test]
fn token_nll_is_exact_to_two_millionths_of_a_nat() {
    for (n, d, v) in [(1, 3, 2), (5, 64, 1000), (37, 80, 777), (70, 576, 4100)] {
        let hidden = random(&[n, d], 1.0, 1);
        let head = random(&[v, d], 4.0 / (d as f32).sqrt(), 2); // logits up to 15, losses up to 16 or more
        let targets = Array::from_slice(&(0..n).map(|i| (i * 31 + 1) % v).collect::<Vec<_>>(), &[n]);
        let (h, w) = (values(&hidden), values(&head));
        let want: Vec<f64> = h
            .chunks_exact(d as usize)
            .zip(0..n)
            .map(|(row, i)| nll64(row, &w, d as usize, ((i * 31 + 1) % v) as usize))
            .collect();
        let set = setting();
        let got = values(&kernels::token_nll(&hidden, Operand::Float(&head), &targets).unwrap());
        let worst = got.iter().zip(&want).fold(0f64, |m, (g, w)| m.max((f64::from(*g) - w).abs()));
        assert!(worst < 2e-6, "{n}x{d}x{v} {set}: {worst:.2e} nats");
        let plain = values(&composed::token_nll(&hidden, Operand::Float(&head), &targets).unwrap());
        for (g, w) in plain.iter().zip(&want) {
            assert!((f64::from(*g) - w).abs() < 2e-5, "composed {n}x{d}x{v}: {g} against {w}");
        }
    }
}

#[test]
fn token_nll_has_the_gradient_of_the_composed_loss() {
    for (n, d, v) in [(1, 5, 7), (9, 80, 500), (200, 64, 1300)] {
        let head = random(&[v, d], 2.0 / (d as f32).sqrt(), 2);
        let targets = Array::from_slice(&(0..n).map(|i| (i * 7) % v).collect::<Vec<_>>(), &[n]);
        let inputs = [random(&[n, d], 1.0, 1)];
        let what = format!("token_nll {n}x{d}x{v}");
        same_with_gradients(
            &what,
            &inputs,
            &|x| kernels::token_nll(&x[0], Operand::Float(&head), &targets),
            &|x| composed::token_nll(&x[0], Operand::Float(&head), &targets),
            5e-6,
        );
    }
}

#[test]
fn a_quantised_head_gives_what_its_widened_form_gives() {
    use super::quant::Packed;
    for (bits, group_size, v, d) in [(8, 32, 1003, 96), (4, 64, 640, 128), (3, 32, 90, 64)] {
        let packed =
            Packed::affine(&random(&[v, d], 2.0 / (d as f32).sqrt(), 2), bits, group_size, super::Dtype::Float32)
                .unwrap();
        let wide = packed.dequantize().unwrap();
        super::eval([&wide]).unwrap();
        for n in [1, 16, 17, 70] {
            let targets = Array::from_slice(&(0..n).map(|i| (i * 31 + 1) % v).collect::<Vec<_>>(), &[n]);
            let inputs = [random(&[n, d], 1.0, 1)];
            let what = format!("{bits} bits, {n}x{d}x{v}");
            for nll in [kernels::token_nll, kernels::token_nll_to_learn] {
                same_with_gradients(
                    &what,
                    &inputs,
                    &|x| nll(&x[0], Operand::Packed(&packed), &targets),
                    &|x| composed::token_nll(&x[0], Operand::Float(&wide), &targets),
                    5e-6,
                );
            }
            let set = setting();
            let plain = kernels::token_nll(&inputs[0], Operand::Packed(&packed), &targets).unwrap();
            let learnt = kernels::token_nll_to_learn(&inputs[0], Operand::Packed(&packed), &targets).unwrap();
            assert!(difference(&plain, &learnt) < 1e-6, "{what} {set}");
        }
    }
}

#[test]
fn divergence_under_a_head_agrees_with_float64_and_so_does_its_gradient() {
    for (n, d, v) in [(1, 8, 33), (40, 64, 1000), (70, 96, 4100)] {
        let head = random(&[v, d], 3.0 / (d as f32).sqrt(), 2);
        let wide = values(&head);
        let logits = |h: &[f32]| -> Vec<f64> {
            wide.chunks(d as usize).map(|w| w.iter().zip(h).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()).collect()
        };
        for change in [0.01, 1.0] {
            let x = random(&[n, d], 1.0, 1);
            let y = x.add(random(&[n, d], change, 3)).unwrap();
            let (xs, ys) = (values(&x), values(&y));
            let probabilities = |h: &[f32]| -> Vec<f64> {
                let l = logits(h);
                let max = l.iter().fold(f64::MIN, |m, x| m.max(*x));
                let sum: f64 = l.iter().map(|x| (x - max).exp()).sum();
                l.iter().map(|x| (x - max).exp() / sum).collect()
            };
            let set = setting();
            let (kl, grad) = kernels::divergence_to_learn(&x, &y, Operand::Float(&head)).unwrap();
            let alone = kernels::divergence(&x, &y, Operand::Float(&head)).unwrap();
            let (kl, learnt, grad) = (values(&alone), values(&kl), values(&grad));
            let itself = kernels::divergence(&x, &x, Operand::Float(&head)).unwrap();
            assert_eq!(values(&itself), vec![0.0; n as usize], "{set}");
            for r in 0..n as usize {
                let row = r * d as usize..(r + 1) * d as usize;
                let (p, q) = (probabilities(&xs[row.clone()]), probabilities(&ys[row.clone()]));
                let want: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
                assert!((f64::from(kl[r]) - want).abs() < 3e-6 * (1.0 + want), "{set} {n} {d} {v}: {} {want}", kl[r]);
                assert!((f64::from(learnt[r]) - want).abs() < 1e-5 * (1.0 + want), "{set}: {} {want}", learnt[r]);
                for (i, g) in grad[row].iter().enumerate() {
                    let want: f64 = (0..v as usize).map(|t| (q[t] - p[t]) * f64::from(wide[t * d as usize + i])).sum();
                    assert!((f64::from(*g) - want).abs() < 2e-6, "{set} gradient {g} {want}");
                }
            }
        }
    }
}

#[test]
fn token_nll_marks_bad_targets_and_refuses_bad_shapes() {
    let (hidden, head) = (random(&[3, 8], 1.0, 1), random(&[10, 8], 1.0, 2));
    let nll =
        values(&kernels::token_nll(&hidden, Operand::Float(&head), &Array::from_slice(&[10, -1, 9], &[3])).unwrap());
    assert!(nll[0].is_nan() && nll[1].is_nan() && nll[2].is_finite());
    for (targets, head) in [
        (Array::from_slice(&[1, 2], &[2]), head.clone()),
        (Array::from_slice(&[1, 2, 3], &[3]), random(&[10, 7], 1.0, 2)),
    ] {
        let e = kernels::token_nll(&hidden, Operand::Float(&head), &targets).unwrap_err().to_string();
        assert!(e.contains("[3, 8]"), "{e}");
    }
    let none =
        kernels::token_nll(&random(&[0, 8], 1.0, 1), Operand::Float(&head), &Array::from_slice::<i32>(&[], &[0]));
    assert_eq!(none.unwrap().shape(), &[0]);
}

#[test]
fn fisher_labels_follow_the_softmax_and_the_gradient_is_of_the_drawn_label() {
    let (v, d, n) = (6, 4, 20_000);
    let head = random(&[v, d], 1.0, 2);
    let row = random(&[1, d], 1.0, 1);
    let hidden = mlx_rs::ops::broadcast_to(&row, &[n, d]).unwrap();
    for sample in [kernels::fisher_head, composed::fisher_head] {
        let (labels, grad) = sample(&hidden, Operand::Float(&head), 7).unwrap();
        let labels = labels.try_as_slice::<i32>().unwrap().to_vec();
        let p = values(&mlx_rs::ops::softmax_axis(row.matmul(head.transpose().unwrap()).unwrap(), -1, true).unwrap());
        for (token, p) in p.iter().enumerate() {
            let share = labels.iter().filter(|l| **l == token as i32).count() as f32 / n as f32;
            let sd = (p * (1.0 - p) / n as f32).sqrt();
            assert!((share - p).abs() < 4.5 * sd, "token {token}: share {share}, probability {p}");
        }
        let f = |x: &[Array]| {
            composed::token_nll(&x[0], Operand::Float(&head), &Array::from_slice(&labels, &[n]))
                .map(|y| vec![y])
                .map_err(|e| e.exception)
        };
        let (_, want) = vjp(f, std::slice::from_ref(&hidden), &[mlx_rs::ops::ones::<f32>(&[n]).unwrap()]).unwrap();
        assert!(difference(&grad, &want[0]) < 5e-6);
    }
}

#[test]
fn fisher_draws_do_not_depend_on_threads_or_blocks() {
    let (hidden, head) = (random(&[150, 40], 1.0, 1), random(&[3000, 40], 0.5, 2));
    let draw = |h: &Array| {
        let (labels, grad) = kernels::fisher_head(h, Operand::Float(&head), 11).unwrap();
        (labels.try_as_slice::<i32>().unwrap().to_vec(), values(&grad))
    };
    let (labels, grad) = draw(&hidden);
    let distinct: std::collections::HashSet<_> = labels.iter().collect();
    assert!(distinct.len() > 100, "{} labels for 150 rows", distinct.len());
    let all = kernels::threads();
    kernels::set_threads(1);
    assert!(draw(&hidden) == (labels.clone(), grad.clone()));
    kernels::set_threads(all);
    use mlx_rs::ops::indexing::TryIndexOp;
    let (some, some_grad) = draw(&hidden.try_index(..77).unwrap());
    assert!(some == labels[..77] && some_grad == grad[..77 * 40]);
}

/// (B, H, Hkv, Lq, Lk, D, causal)
const ATTENTION: &[(i32, i32, i32, i32, i32, i32, bool)] = &[
    (1, 1, 1, 1, 1, 3, true),
    (2, 9, 3, 1, 700, 64, true),
    (1, 4, 4, 3, 40, 80, true),
    (1, 2, 1, 8, 1100, 64, false),
    (2, 4, 2, 9, 9, 64, true),
    (1, 3, 3, 97, 97, 80, true),
    (2, 9, 3, 130, 130, 64, true),
    (1, 2, 1, 50, 301, 128, true),
    (1, 2, 2, 33, 17, 20, false),
    (1, 1, 1, 200, 210, 7, true),
];

#[test]
fn attention_matches_mlx_and_its_gradients() {
    for &(b, h, hkv, lq, lk, d, causal) in ATTENTION {
        let inputs =
            [random(&[b, h, lq, d], 1.0, 1), random(&[b, hkv, lk, d], 1.0, 2), random(&[b, hkv, lk, d], 1.0, 3)];
        let scale = 1.5 / (d as f32).sqrt();
        let what = format!("attention {b} {h}/{hkv} {lq}x{lk} {d} causal {causal}");
        same_with_gradients(
            &what,
            &inputs,
            &|x| kernels::attention(&x[0], &x[1], &x[2], scale, causal),
            &|x| composed::attention(&x[0], &x[1], &x[2], scale, causal),
            1e-5,
        );
    }
}

#[test]
fn attention_reads_transposed_views_and_survives_large_scores() {
    let (b, h, hkv, l, d) = (2, 6, 2, 120, 64);
    let view = |heads: i32, seed| random(&[b, l, heads, d], 4.0, seed).transpose_axes(&[0, 2, 1, 3]).unwrap();
    let inputs = [view(h, 1), view(hkv, 2), view(hkv, 3)];
    same_with_gradients(
        "attention of views",
        &inputs,
        &|x| kernels::attention(&x[0], &x[1], &x[2], 1.0, true)?.transpose_axes(&[0, 2, 1, 3]).map_err(Into::into),
        &|x| composed::attention(&x[0], &x[1], &x[2], 1.0, true)?.transpose_axes(&[0, 2, 1, 3]).map_err(Into::into),
        1e-4, // scores reach 500, their float32 error 3e-5
    );
    // last axis strided
    let odd = |heads, seed| random(&[b, heads, d, l], 1.0, seed).transpose_axes(&[0, 1, 3, 2]).unwrap();
    let inputs = [odd(h, 1), odd(hkv, 2), odd(hkv, 3)];
    same_with_gradients(
        "attention of strided heads",
        &inputs,
        &|x| kernels::attention(&x[0], &x[1], &x[2], 0.1, false),
        &|x| composed::attention(&x[0], &x[1], &x[2], 0.1, false),
        1e-5,
    );
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let k = random(&[1, 2, 5, 8], 1.0, 1);
    for q in [&[1, 3, 5, 8][..], &[1, 2, 5, 7], &[2, 2, 5, 8], &[2, 5, 8], &[1, 2, 6, 8]] {
        let e = kernels::attention(&random(q, 1.0, 2), &k, &k, 1.0, true).unwrap_err().to_string();
        assert!(e.contains(&format!("{q:?}")) && e.contains("[1, 2, 5, 8]"), "{e}");
    }
}

/// KL(softmax(x) ‖ softmax(y)) in float64.
fn plain_divergence(x: &[f32], y: &[f32]) -> f64 {
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let max = row.iter().fold(f64::MIN, |m, v| m.max(f64::from(*v)));
        let total: f64 = row.iter().map(|v| (f64::from(*v) - max).exp()).sum();
        row.iter().map(|v| f64::from(*v) - max - total.ln()).collect()
    };
    log_softmax(x).iter().zip(log_softmax(y)).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[test]
fn divergence_agrees_with_float64() {
    // A vocabulary of a block, of many, and of no whole number of them; differences small and large.
    for (rows, v) in [(3, 64), (4, 49152), (5, 1003)] {
        for change in [0.01, 0.5, 20.0] {
            let x = random(&[rows, v], 4.0, 1);
            let y = x.add(random(&[rows, v], change, 2)).unwrap();
            let got = values(&composed::divergence(&x, &y).unwrap());
            let (xs, ys) = (values(&x), values(&y));
            for (i, d) in got.iter().enumerate() {
                let row = i * v as usize..(i + 1) * v as usize;
                let want = plain_divergence(&xs[row.clone()], &ys[row]);
                // Float32 logits of 20 are known to 1e-6.
                assert!((f64::from(*d) - want).abs() < 5e-6 * (1.0 + want), "[{rows}, {v}] {change}: {d}, {want}");
            }
        }
    }
}

#[test]
fn nothing_diverges_from_itself_and_what_is_no_number_is_none() {
    let x = random(&[4, 1003], 5.0, 3);
    assert_eq!(values(&composed::divergence(&x, &x).unwrap()), [0.0; 4]);
    // Moving all logits of a row changes no probability.
    let moved = composed::divergence(&x, &x.add(Array::from_f32(8.0)).unwrap()).unwrap();
    assert!(values(&moved).iter().all(|d| d.abs() < 2e-6));
    let broken = Array::from_slice(&[0.0f32, f32::NAN, 1.0, 2.0], &[2, 2]);
    let got = values(&composed::divergence(&Array::from_slice(&[1.0f32; 4], &[2, 2]), &broken).unwrap());
    assert!(got[0].is_nan() && got[1].is_finite());
    assert!(composed::divergence(&x, &random(&[4, 1002], 1.0, 1)).is_err());
}

#[test]
fn rms_norm_matches_mlx_and_its_gradients() {
    for shape in [&[5][..], &[1, 1, 576], &[3, 7, 64], &[100, 577], &[2, 9]] {
        let inputs = [random(shape, 2.0, 1), random(&shape[shape.len() - 1..], 1.0, 2)];
        let what = format!("rms_norm {shape:?}");
        same_with_gradients(
            &what,
            &inputs,
            &|x| kernels::rms_norm(&x[0], &x[1], 1e-5),
            &|x| composed::rms_norm(&x[0], &x[1], 1e-5),
            5e-6,
        );
    }
    let e = kernels::rms_norm(&random(&[2, 8], 1.0, 1), &random(&[7], 1.0, 2), 1e-5).unwrap_err().to_string();
    assert!(e.contains("[2, 8]") && e.contains("[7]"), "{e}");
}

#[test]
fn rope_matches_mlx_and_its_gradient() {
    for (shape, dims) in [([1, 1, 1, 64], 64), ([2, 3, 40, 64], 64), ([1, 4, 9, 80], 64), ([1, 2, 700, 20], 10)] {
        let freqs = random(&[dims / 2], 1.0, 5).square().unwrap().add(Array::from_f32(1.0)).unwrap();
        let x = [random(&shape, 1.0, 1)];
        let view = [random(&[shape[0], shape[2], shape[1], shape[3]], 1.0, 2).transpose_axes(&[0, 2, 1, 3]).unwrap()];
        for (traditional, offset) in [(false, 0), (true, 17), (false, 3000)] {
            for x in [&x, &view] {
                same_with_gradients(
                    &format!("rope {shape:?} {dims} {traditional} {offset}"),
                    x,
                    &|x| kernels::rope(&x[0], dims, traditional, offset, &freqs),
                    &|x| composed::rope(&x[0], dims, traditional, offset, &freqs),
                    1e-6,
                );
            }
        }
    }
    let (x, freqs) = (random(&[1, 1, 2, 8], 1.0, 1), random(&[32], 1.0, 2));
    for dims in [10, 7, 8] {
        let e = kernels::rope(&x, dims, false, 0, &freqs).unwrap_err().to_string();
        assert!(e.contains("rope"), "{e}");
    }
}
