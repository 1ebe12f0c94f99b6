//! Times every kernel against what MLX composes, at the shapes of SmolLM2-135M.
//!
//! `PLASTIC_THREADS=2 OPENBLAS_NUM_THREADS=2 taskset -c 0,1 cargo run --release --example kernel_times [name...]`

use mlx_rs::Array;
use plastic_host::mlx::{self, Result, composed, kernels};
use std::time::Instant;

fn random(shape: &[i32]) -> Array {
    let key = mlx_rs::random::key(shape.iter().map(|n| *n as u64).sum());
    let make = key.and_then(|k| mlx_rs::random::normal::<f32>(shape, None, None, &k));
    match make {
        Ok(a) => a,
        Err(e) => panic!("{e}"),
    }
}

/// Best of some repetitions, ms.
fn time(f: &dyn Fn() -> Result<Vec<Array>>) -> Result<f64> {
    let mut best = f64::INFINITY;
    let start = Instant::now();
    let mut runs = 0;
    while runs < 3 || (start.elapsed().as_secs_f64() < 1.0 && runs < 200) {
        let t = Instant::now();
        mlx::eval(&f()?)?;
        best = best.min(t.elapsed().as_secs_f64() * 1e3);
        runs += 1;
    }
    Ok(best)
}

struct Table {
    only: Vec<String>,
}

impl Table {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| name.contains(o.as_str()))
    }
    fn row(
        &self,
        name: &str,
        ours: &dyn Fn() -> Result<Vec<Array>>,
        theirs: &dyn Fn() -> Result<Vec<Array>>,
    ) -> Result<()> {
        if self.wants(name) {
            let (a, b) = (time(ours)?, time(theirs)?);
            println!("{name:44} {a:10.3} {b:10.3} {:8.1}x", b / a);
        }
        Ok(())
    }
}

/// Gradient of the sum of `f`'s result with respect to `inputs`.
fn gradients(inputs: &[Array], f: &dyn Fn(&[Array]) -> Result<Array>) -> Result<Vec<Array>> {
    let y = f(inputs)?;
    let ct = mlx_rs::ops::ones::<f32>(y.shape())?;
    let g = |x: &[Array]| f(x).map(|y| vec![y]).map_err(|e| e.exception);
    Ok(mlx_rs::transforms::fallible_vjp(g, inputs, &[ct])?.1)
}

fn main() -> Result<()> {
    let t = Table { only: std::env::args().skip(1).collect() };
    println!("{} threads, {}", kernels::threads(), kernels::isa());
    println!("{:44} {:>10} {:>10}", "ms", "ours", "mlx ops");

    let (g, u) = (random(&[4096, 1536]), random(&[4096, 1536]));
    let swiglu = [g.clone(), u.clone()];
    t.row("swiglu 4096x1536", &|| Ok(vec![kernels::swiglu(&g, &u)?]), &|| Ok(vec![composed::swiglu(&g, &u)?]))?;
    t.row("swiglu gradient 4096x1536", &|| gradients(&swiglu, &|x| kernels::swiglu(&x[0], &x[1])), &|| {
        gradients(&swiglu, &|x| composed::swiglu(&x[0], &x[1]))
    })?;
    let (g, u) = (random(&[1, 1536]), random(&[1, 1536]));
    t.row("swiglu 1x1536", &|| Ok(vec![kernels::swiglu(&g, &u)?]), &|| Ok(vec![composed::swiglu(&g, &u)?]))?;

    let heads = |b, h, l| random(&[b, l, h, 64]).transpose_axes(&[0, 2, 1, 3]);
    for (b, lq, lk) in [(8, 512, 512), (1, 512, 512), (1, 2048, 2048), (1, 1, 100), (1, 1, 1000), (1, 1, 8000)] {
        let qkv = [heads(b, 9, lq)?, heads(b, 3, lk)?, heads(b, 3, lk)?];
        mlx::eval(&qkv)?;
        let ours = |x: &[Array]| kernels::attention(&x[0], &x[1], &x[2], 0.125, true);
        let theirs = |x: &[Array]| composed::attention(&x[0], &x[1], &x[2], 0.125, true);
        t.row(&format!("attention {b}x9/3x{lq}x{lk}x64"), &|| Ok(vec![ours(&qkv)?]), &|| Ok(vec![theirs(&qkv)?]))?;
        if b == 1 && lq == 512 {
            t.row(&format!("attention gradient {b}x9/3x{lq}x{lk}x64"), &|| gradients(&qkv, &ours), &|| {
                gradients(&qkv, &theirs)
            })?;
        }
    }

    let (hidden, head) = (random(&[4096, 576]), random(&[49152, 576]).multiply(Array::from_f32(0.1))?);
    let targets = Array::from_slice(&(0..4096).collect::<Vec<i32>>(), &[4096]);
    mlx::eval([&hidden, &head, &targets])?;
    t.row("token_nll 4096x49152x576", &|| Ok(vec![kernels::token_nll(&hidden, &head, &targets)?]), &|| {
        Ok(vec![composed::token_nll(&hidden, &head, &targets)?])
    })?;
    use mlx_rs::ops::indexing::TryIndexOp;
    let (some, labels) = (hidden.try_index(..512)?, targets.try_index(..512)?);
    let input = std::slice::from_ref(&some);
    t.row(
        "token_nll gradient 512x49152x576",
        &|| gradients(input, &|x| kernels::token_nll(&x[0], &head, &labels)),
        &|| gradients(input, &|x| composed::token_nll(&x[0], &head, &labels)),
    )?;
    t.row("fisher_head 512x49152x576", &|| kernels::fisher_head(&some, &head, 1).map(|(l, g)| vec![l, g]), &|| {
        composed::fisher_head(&some, &head, 1).map(|(l, g)| vec![l, g])
    })?;
    t.row("logits alone 512x49152x576 (BLAS)", &|| Ok(vec![some.matmul(head.transpose()?)?]), &|| {
        Ok(vec![some.matmul(head.transpose()?)?])
    })?;
    Ok(())
}
