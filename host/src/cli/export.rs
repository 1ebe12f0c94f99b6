//! `plastic-host export`: one weight as a file of quantised factors, and back; an elastic checkpoint as a fixed one
//! ([`super::export_fixed`]).

use super::Global;
use super::matrix::{self, SvdOptions};
use crate::mlx;
use crate::plastic::compactness::{self, Distance, Method};
use crate::plastic::factor_file::{self, Factors};
use crate::plastic::matrix_file::{self, Format, Source};
use anyhow::{Context, bail};
use indicatif::DecimalBytes;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The rank where none is asked for, or the full one where that is smaller.
const RANK: u32 = 64;

/// Options of `export`.
#[derive(clap::Args, Debug)]
#[command(
    group = clap::ArgGroup::new("source").required(true).multiple(false),
    after_help = "\
Examples:
  plastic-host export --from-weight weight.npy --rank 64 --bits 8 --out factors.safetensors
  plastic-host export --from-weight smollm2-135m:model.layers.0.self_attn.q_proj --rank 128 --out q.safetensors
  plastic-host export --from-weight big.npz:w --svd randomized --power-iterations 4 --out factors.safetensors
  plastic-host export --reconstruct factors.safetensors --out w.npy --against weight.npy
  plastic-host export --materialise small --out dense                  what is awake, as mlx-lm loads it
  plastic-host export --materialise small --awake-budget 0.6 --bits 4 --out dense
  plastic-host export --pivoted full --awake-budget 0.8 --out fixed    made with compress --ladder full

A weight is FILE.npy, FILE.npz[:MEMBER], FILE.safetensors[:TENSOR], or BASE:MODULE of a checkpoint, which is dequantised.
The file of factors is the one mlx-plastic-rank writes and reads: U, S and Vh, a byte a value."
)]
pub struct ExportArgs {
    /// Factor this weight and write its quantised factors
    #[arg(long, value_name = "WEIGHT", group = "source")]
    from_weight: Option<Source>,
    /// Multiply the factors of this file and write the weight, as float32
    #[arg(long, value_name = "FILE", group = "source", conflicts_with = "SvdOptions")]
    reconstruct: Option<PathBuf>,
    /// Write what is awake in this elastic checkpoint as a dense one, which mlx-lm loads
    #[arg(long, value_name = "DIR", group = "source", conflicts_with = "SvdOptions")]
    pub(super) materialise: Option<PathBuf>,
    /// Write this elastic checkpoint with larger ranks in as many parameters: each slice as some of its own rows and coefficients; fixed, no smaller budget runs from it
    #[arg(long, value_name = "DIR", group = "source", conflicts_with = "SvdOptions")]
    pub(super) pivoted: Option<PathBuf>,
    /// The file to write: .safetensors; of --reconstruct also .npy or .npz; of --materialise and --pivoted a directory
    #[arg(long, short, value_name = "FILE")]
    pub(super) out: PathBuf,
    /// Rank of the factors [default: 64, or the full rank where that is less]
    #[arg(long, short, value_name = "N", conflicts_with_all = ["reconstruct", "materialise", "pivoted"], value_parser = clap::value_parser!(u32).range(1..))]
    rank: Option<u32>,
    /// Bits of a value: of factors 1 to 8, each in a byte [default: 8]; of --materialise 2 to 6, 8, 16 or 32 [default: 16]; of --pivoted 4, 8 or 16 [default: 16]
    #[arg(long, value_name = "N", conflicts_with = "reconstruct", value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(super) bits: Option<u32>,
    /// With --materialise --bits: weights that share a scale: 32, 64 or 128 [default: 64]
    #[arg(long, value_name = "N", requires = "materialise", value_parser = super::compress::group)]
    pub(super) group_size: Option<u32>,
    /// Of --materialise and --pivoted: the share of the slices' parameters to take [default: what is awake]
    #[arg(long, value_name = "SHARE", conflicts_with_all = ["from_weight", "reconstruct"])]
    pub(super) awake_budget: Option<f64>,
    /// Replace a checkpoint at --out
    #[arg(long, conflicts_with_all = ["from_weight", "reconstruct"])]
    pub(super) force: bool,
    #[command(flatten)]
    svd: SvdOptions,
    /// With --svd randomized: seed of the random matrix
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["reconstruct", "materialise", "pivoted"])]
    seed: u64,
    /// With --reconstruct: print the error against this weight
    #[arg(long, value_name = "WEIGHT", conflicts_with_all = ["from_weight", "materialise", "pivoted"])]
    against: Option<Source>,
}

/// The document of --json of --from-weight.
#[derive(Serialize)]
struct Exported {
    from_weight: String,
    shape: [usize; 2],
    stored_as: String,
    stored_bytes: u64,
    /// Of the weight as float32.
    dense_bytes: u64,
    rank: u32,
    bits: u32,
    #[serde(flatten)]
    method: Method,
    /// Of the factors: values and ranges.
    qlr_bytes: u64,
    file_bytes: u64,
    /// Per cent of `dense_bytes` that are saved.
    savings: f64,
    /// Of the factors before they are quantised.
    rel_error_unquantised: f64,
    #[serde(flatten)]
    distance: Distance,
    out: PathBuf,
}

/// The document of --json of --reconstruct.
#[derive(Serialize)]
struct Reconstructed {
    reconstruct: PathBuf,
    shape: [usize; 2],
    rank: usize,
    bits: u32,
    qlr_bytes: u64,
    dense_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    distance: Option<Distance>,
    out: PathBuf,
}

/// Writes factors, or a weight from factors.
///
/// # Errors
/// When the source cannot be read or is none, the rank is too large, or the file cannot be written.
pub fn run(args: &ExportArgs, g: &Global) -> anyhow::Result<ExitCode> {
    mlx::device::init()?;
    if args.materialise.is_some() || args.pivoted.is_some() {
        return super::export_fixed::run(args, g);
    }
    if let Some(bits) = args.bits.filter(|b| *b > 8) {
        note!("error: --bits {bits}: a value of a factor has 1 to 8");
        return Ok(ExitCode::from(2));
    }
    match (&args.from_weight, &args.reconstruct) {
        (Some(source), _) => factors(args, source, g)?,
        (None, Some(file)) => weight(args, file, g)?,
        (None, None) => bail!("name a source, such as --from-weight weight.npy"),
    }
    Ok(ExitCode::SUCCESS)
}

fn factors(args: &ExportArgs, source: &Source, g: &Global) -> anyhow::Result<()> {
    if Format::of(&args.out).ok() != Some(Format::Safetensors) {
        bail!("--out {}: factors are written as .safetensors; end the name so", args.out.display());
    }
    ready(&args.out, source.file())?;
    let w = matrix::open(source, g)?;
    let (rows, cols) = (w.rows(), w.cols());
    let most = rows.min(cols).min(u32::MAX as usize) as u32;
    let rank = args.rank.unwrap_or(RANK.min(most));
    let bits = args.bits.unwrap_or(8);
    if rank > most {
        bail!("--rank {rank}: {source} is a {rows} x {cols} weight, whose ranks are 1 to {most}");
    }
    let method = args.svd.method(args.seed);
    let svd = method.decompose(&w.weight, rank).with_context(|| source.to_string())?;
    let rel_error_unquantised = compactness::rel_error(&w.weight, &compactness::product(&svd)?)?;
    let made = Factors::quantise(&svd, bits).with_context(|| source.to_string())?;
    let distance = Distance::of(&w.weight, &made.reconstruct()?)?;
    let file_bytes = made.write(&args.out)?;
    let (dense_bytes, qlr_bytes) = (4 * (rows * cols) as u64, made.nbytes());
    let done = Exported {
        from_weight: source.to_string(),
        shape: [rows, cols],
        stored_as: w.stored_as,
        stored_bytes: w.stored_bytes,
        dense_bytes,
        rank,
        bits,
        method,
        qlr_bytes,
        file_bytes,
        savings: 100.0 * (1.0 - qlr_bytes as f64 / dense_bytes as f64),
        rel_error_unquantised,
        distance,
        out: args.out.clone(),
    };
    if g.json {
        say!("{}", serde_json::to_string_pretty(&done)?);
    } else {
        told(&done, g);
    }
    Ok(())
}

fn told(d: &Exported, g: &Global) {
    let [rows, cols] = d.shape;
    say!("weight     {}: {rows} x {cols}, {} in {}", d.from_weight, d.stored_as, DecimalBytes(d.stored_bytes));
    say!("as float32 {}", DecimalBytes(d.dense_bytes));
    let saved = if d.savings >= 0.0 { "saved" } else { "more" };
    say!(
        "factors    {}: rank {}, {} bits; {:.1} % {saved}",
        DecimalBytes(d.qlr_bytes),
        d.rank,
        d.bits,
        d.savings.abs()
    );
    say!(
        "error      {:.4} of the weight's size (Frobenius), {:.4} of it by the rank alone",
        d.distance.rel_error,
        d.rel_error_unquantised
    );
    say!("           {}", spectral(&d.distance));
    if d.qlr_bytes > d.stored_bytes && !g.quiet {
        note!("note: the weight takes less as it is stored ({}) than its factors", DecimalBytes(d.stored_bytes));
    }
    if !g.quiet {
        say!("written to {} ({})", d.out.display(), DecimalBytes(d.file_bytes));
    }
}

fn spectral(d: &Distance) -> String {
    let estimated = if d.spectral_exact { "" } else { ", estimated" };
    format!("{:.4} of its largest singular value (spectral{estimated})", d.spectral_error)
}

fn weight(args: &ExportArgs, file: &Path, g: &Global) -> anyhow::Result<()> {
    Format::of(&args.out)?;
    ready(&args.out, Some(file))?;
    let f = Factors::read(file)?;
    let w = f.reconstruct()?;
    let mut distance = None;
    if let Some(against) = &args.against {
        if against.file().is_some_and(|other| same(&args.out, other)) {
            bail!("--out {}: that is the file of --against; name another one", args.out.display());
        }
        let other = matrix::open(against, g)?;
        if [other.rows(), other.cols()] != [f.rows, f.cols] {
            let (file, r, c) = (file.display(), other.rows(), other.cols());
            bail!("{file} has factors of a {} x {} weight, but {against} is {r} x {c}", f.rows, f.cols);
        }
        distance = Some(Distance::of(&other.weight, &w)?);
    }
    matrix_file::write(&args.out, &w)?;
    let done = Reconstructed {
        reconstruct: file.to_owned(),
        shape: [f.rows, f.cols],
        rank: f.rank,
        bits: f.bits,
        qlr_bytes: factor_file::bytes_of(f.rows as u64, f.cols as u64, f.rank as u64),
        dense_bytes: 4 * (f.rows * f.cols) as u64,
        against: args.against.as_ref().map(ToString::to_string),
        distance,
        out: args.out.clone(),
    };
    if g.json {
        say!("{}", serde_json::to_string_pretty(&done)?);
        return Ok(());
    }
    let (qlr, dense) = (DecimalBytes(done.qlr_bytes), DecimalBytes(done.dense_bytes));
    say!("factors    {}: {} x {}, rank {}, {} bits, {qlr}", file.display(), f.rows, f.cols, f.rank, f.bits);
    if let (Some(d), Some(against)) = (&done.distance, &done.against) {
        say!("error      {:.4} of the size of {against} (Frobenius)", d.rel_error);
        say!("           {}", spectral(d));
    }
    if !g.quiet {
        say!("written to {} ({dense})", args.out.display());
    }
    Ok(())
}

/// Refuses to write over the source, and makes the directory, before any work is done.
fn ready(out: &Path, source: Option<&Path>) -> anyhow::Result<()> {
    if source.is_some_and(|s| same(out, s)) {
        bail!("--out {}: that is the file it is made from; name another one", out.display());
    }
    if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    Ok(())
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(x), Ok(y)) if x == y)
}
