//! `plastic-host bench memory`: bytes, error and time of one weight in each of its forms.

use crate::cli::Global;
use crate::cli::interrupt::Interrupt;
use crate::cli::matrix::{self, SvdOptions};
use crate::cli::table;
use crate::mlx::Array;
use crate::mlx::device::{self, DeviceInfo};
use crate::mlx::quant::{Mode, Packed, Scheme};
use crate::plastic::footprint::{self, Footprint, Plan, Quantised, Ranked, Timing, Verdict};
use crate::plastic::matrix_file::Source;
use anyhow::{Context, bail};
use indicatif::DecimalBytes;
use serde::Serialize;
use std::process::ExitCode;

/// Largest side of a synthetic weight.
const MOST_SIDE: i64 = 32_768;

/// Options of `bench memory`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host bench memory --m 2048 --n 512
  plastic-host bench memory --tensor smollm2-135m:model.layers.5.mlp.down_proj --ranks 64,128,256
  plastic-host bench memory --tensor weight.npy --rows 1,16,256 --json

Without --tensor the weight is synthetic, with singular values 1, 1/2, 1/3, ...: weights of trained models fall
more slowly, so judge errors on a tensor of your own. The largest rank r with r (m + n) < 0.7 m n is always measured.
Times are of x W^T for an input x of so many rows: the median, and half the distance of the quartiles; `faster` and
`slower` beside float32 only where the quartiles lie apart. Run it on a calm machine. On a CPU, models multiply a float32
copy of a quantised weight where there are more than 32 rows; the time here is without one.")]
pub(super) struct MemoryArgs {
    /// Rows of the synthetic weight
    #[arg(long, value_name = "ROWS", default_value_t = 2048, conflicts_with = "tensor", value_parser = clap::value_parser!(u32).range(1..=MOST_SIDE))]
    m: u32,
    /// Columns of the synthetic weight
    #[arg(long, value_name = "COLUMNS", default_value_t = 512, conflicts_with = "tensor", value_parser = clap::value_parser!(u32).range(1..=MOST_SIDE))]
    n: u32,
    /// Measure this weight: FILE.npy, FILE.npz[:MEMBER], FILE.safetensors[:TENSOR] or BASE:MODULE
    #[arg(long, value_name = "WEIGHT")]
    tensor: Option<Source>,
    /// Ranks, separated by commas or blanks
    #[arg(long, value_name = "N", value_delimiter = ',', num_args = 1.., default_values_t = [4, 8, 16, 32], value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Vec<u32>,
    /// Bits of the quantised factors; a value takes a byte all the same
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=8))]
    bits: u32,
    /// Bits of the quantised weight [default: the checkpoint's, or 4]
    #[arg(long, value_name = "N")]
    weight_bits: Option<u32>,
    /// Weights that share a scale in the quantised weight [default: the checkpoint's, or 64]
    #[arg(long, value_name = "N")]
    group_size: Option<u32>,
    /// Rows of the input, separated by commas: 1 is decoding, many a prompt
    #[arg(long, value_name = "N", value_delimiter = ',', num_args = 1.., default_values_t = [1, 256], value_parser = clap::value_parser!(u32).range(1..=65536))]
    rows: Vec<u32>,
    /// Rounds of measurement
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    #[command(flatten)]
    svd: SvdOptions,
    /// Seed of the synthetic weight, of the input and of --svd randomized
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// The document of --json.
#[derive(Serialize)]
struct Document<'a> {
    weight: String,
    synthetic: bool,
    stored_as: Option<String>,
    stored_bytes: Option<u64>,
    bits: u32,
    seed: u64,
    rounds: u32,
    #[serde(flatten)]
    method: crate::plastic::compactness::Method,
    device: &'a DeviceInfo,
    /// The largest rank with r (m + n) < 0.7 m n.
    worth_up_to: u32,
    #[serde(flatten)]
    footprint: &'a Footprint,
}

/// Measures a weight.
///
/// # Errors
/// When the weight cannot be had, a rank or a quantisation does not fit it, or MLX fails.
pub(super) fn run(args: &MemoryArgs, g: &Global) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let device = device::init()?;
    let (w, name, stored, own) = match &args.tensor {
        None => {
            let name = format!("synthetic, singular values 1/i, seed {}", args.seed);
            (footprint::synthetic(args.m, args.n, args.seed)?, name, None, None)
        }
        Some(source) => {
            let w = matrix::open(source, g)?;
            (w.weight, source.to_string(), Some((w.stored_as, w.stored_bytes)), w.packed)
        }
    };
    let (m, n) = (w.dim(0) as u32, w.dim(1) as u32);
    if let Some(rank) = args.ranks.iter().find(|r| **r > m.min(n)) {
        bail!("--ranks {rank}: this weight is {m} x {n}, whose ranks are 1 to {}", m.min(n));
    }
    let method = args.svd.method(args.seed);
    let plan = Plan {
        ranks: args.ranks.clone(),
        bits: args.bits,
        rows: args.rows.clone(),
        quantised: quantised(args, &w, own.zip(stored.as_ref().map(|s| s.1)), g)?,
        rounds: args.rounds as usize,
        method,
        seed: args.seed,
    };
    let measured = footprint::measure(&w, &plan, &mut || !interrupt.raised()).with_context(|| name.clone())?;
    let Some(footprint) = measured else {
        note!("stopped before all was measured");
        return Ok(ExitCode::from(130));
    };
    if g.json {
        let (stored_as, stored_bytes) = stored.unzip();
        let document = Document {
            weight: name,
            synthetic: args.tensor.is_none(),
            stored_as,
            stored_bytes,
            bits: args.bits,
            seed: args.seed,
            rounds: args.rounds,
            method,
            device: &device,
            worth_up_to: footprint::worth_up_to(m, n),
            footprint: &footprint,
        };
        say!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(ExitCode::SUCCESS);
    }
    say!("weight {m} x {n}: {name}");
    if let Some((form, bytes)) = stored {
        say!("stored as {form} in {}", DecimalBytes(bytes));
    }
    say!("measured on {}, {} threads, BLAS {}", device.backend.name(), device.threads, device.blas.name);
    show(&footprint, args);
    Ok(ExitCode::SUCCESS)
}

/// The weight quantised as asked for, as its checkpoint has it, or in 4 bits and groups of 64.
fn quantised(
    args: &MemoryArgs,
    w: &Array,
    own: Option<(Packed, u64)>,
    g: &Global,
) -> anyhow::Result<Option<Quantised>> {
    let known = own.as_ref().map(|(p, _)| p.scheme);
    if let (Some((packed, bytes)), None, None) = (own, args.weight_bits, args.group_size) {
        return Ok(Some(Quantised { packed, bytes }));
    }
    let known = known.filter(|s| s.mode == Mode::Affine);
    let scheme = Scheme {
        bits: args.weight_bits.or(known.map(|s| s.bits)).unwrap_or(4),
        group_size: args.group_size.or(known.map(|s| s.group_size)).unwrap_or(64),
        mode: Mode::Affine,
    };
    if ![2, 3, 4, 5, 6, 8].contains(&scheme.bits) {
        bail!("--weight-bits {}: MLX quantises in 2, 3, 4, 5, 6 or 8 bits", scheme.bits);
    }
    if ![32, 64, 128].contains(&scheme.group_size) {
        bail!("--group-size {}: MLX quantises in groups of 32, 64 or 128", scheme.group_size);
    }
    let n = w.dim(1) as u32;
    if footprint::fits(scheme, n) {
        return Ok(Some(footprint::quantise(w, scheme)?));
    }
    if args.group_size.is_some() {
        bail!("--group-size {}: {n} columns do not divide into it", scheme.group_size);
    }
    if !g.quiet && !g.json {
        note!("note: {n} columns do not divide into groups of {}: no quantised weight", scheme.group_size);
    }
    Ok(None)
}

fn show(f: &Footprint, args: &MemoryArgs) {
    let mut headers: Vec<String> = ["form", "bytes", "error"].map(String::from).to_vec();
    headers.extend([format!("{} bits", args.bits), "saved".into(), "error".into(), "r(m+n)<0.7mn".into()]);
    for rows in &args.rows {
        headers.extend([format!("{rows} row{}, us", plural(*rows)), String::new()]);
    }
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let right: Vec<usize> = (1..headers.len()).filter(|i| *i != 6).collect();
    let mut t = table::plain(&headers, &right);
    for (form, beside) in [(Some(&f.dense), false), (f.quantised.as_ref(), true)] {
        let Some(whole) = form else { continue };
        let mut row =
            vec![whole.form.clone(), DecimalBytes(whole.bytes).to_string(), format!("{:.4}", whole.rel_error)];
        row.extend(["", "", "", ""].map(String::from));
        for (time, dense) in whole.times.iter().zip(&f.dense.times) {
            row.extend(cells(time, dense, beside.then(|| time.beside(dense))));
        }
        t.add_row(row);
    }
    for r in &f.ranks {
        let mut row = vec![
            format!("rank {}", r.r),
            DecimalBytes(r.factor_bytes).to_string(),
            format!("{:.4}", r.rel_error),
            DecimalBytes(r.qlr_bytes).to_string(),
            format!("{:.1} %", r.savings),
            format!("{:.4}", r.rel_error_quantised),
            if r.limit {
                "yes, the last"
            } else if r.worth {
                "yes"
            } else {
                "no"
            }
            .to_owned(),
        ];
        for ((time, dense), verdict) in r.times.iter().zip(&f.dense.times).zip(&r.beside_dense) {
            row.extend(cells(time, dense, Some(*verdict)));
        }
        t.add_row(row);
    }
    say!("{t}");
    match f.ranks.iter().find(|r| r.limit) {
        Some(r) => say!("{}", at_limit(r, f)),
        None => say!("at no rank is r (m + n) below 0.7 m n: this weight is too small to factor"),
    }
}

/// The median with half the distance of the quartiles, and the ratio to float32.
fn cells(time: &Timing, dense: &Timing, verdict: Option<Verdict>) -> [String; 2] {
    let beside = verdict.map_or(String::new(), |v| ratio(time, dense, v));
    [format!("{:.1} ± {:.1}", time.median_us, (time.p75_us - time.p25_us) / 2.0), beside]
}

fn plural(n: u32) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn ratio(time: &Timing, dense: &Timing, verdict: Verdict) -> String {
    match verdict {
        Verdict::Faster => format!("{:.2}x faster", dense.median_us / time.median_us),
        Verdict::Slower => format!("{:.2}x slower", time.median_us / dense.median_us),
        Verdict::Equal => "equal".into(),
    }
}

/// What the last rank that saves enough is worth.
fn at_limit(r: &Ranked, f: &Footprint) -> String {
    let against = |other: &[Timing], verdicts: &[Verdict]| {
        let each = r.times.iter().zip(other).zip(verdicts);
        let each = each.map(|((t, o), v)| format!("{} with {} row{}", ratio(t, o, *v), t.rows, plural(t.rows)));
        each.collect::<Vec<_>>().join(", ")
    };
    let mut out = format!(
        "r (m + n) < 0.7 m n up to rank {}; there the factored product is, beside float32: {}",
        r.r,
        against(&f.dense.times, &r.beside_dense)
    );
    if let Some(q) = &f.quantised {
        out.push_str(&format!("; beside {}: {}", q.form, against(&q.times, &r.beside_quantised)));
    }
    out
}
