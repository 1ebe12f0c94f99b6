//! What the ranks of a pack are worth: singular values of each update, effective and stable ranks, slack, norms;
//! and what two packs have in common: the rank of their sum, overlapping columns and rows, the angle between them.
//!
//! Names of fields are those of mlx-plastic-rank's ledger. The effective rank counts singular values above
//! `rank_tol` times the largest; float16 noise keeps it near the declared rank, so the entropy rank stands beside
//! it, which weighs the values.

use super::error::Result;
use super::format::{Adapter, Pack};
use super::key;
use super::product::{self, Product};
use crate::mlx::spectral;
use serde::Serialize;
use std::collections::BTreeMap;

/// Tolerance of the effective rank where none is named.
pub const RANK_TOL: f64 = 1e-5;

/// One adapter.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Its key.
    pub adapter: String,
    /// What it targets in its layer.
    pub target: String,
    /// Its layer.
    pub layer: u32,
    /// Components stored.
    pub declared_rank: usize,
    /// Singular values above the tolerance.
    pub effective_rank: usize,
    /// Declared less effective.
    pub rank_slack: usize,
    /// Effective over declared.
    pub rank_efficiency: f64,
    /// exp of the entropy of the singular values' shares.
    pub entropy_rank: f64,
    /// ‖·‖F² / σ₁².
    pub stable_rank: f64,
    /// Strength.
    pub alpha: f64,
    /// `alpha / rank`.
    pub scale: f64,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// Numbers in A and B.
    pub params: usize,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Frobenius norm of the update.
    pub fro_norm: f64,
    /// Largest singular value.
    pub spectral_norm: f64,
    /// Whether it has a DoRA magnitude, which these figures leave out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dora: bool,
    /// Singular values of the update, largest first.
    pub singular_values: Vec<f64>,
}

/// Sums over the adapters of one target.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TargetSum {
    /// The target.
    pub target: String,
    /// How many.
    pub adapters: usize,
    /// Components stored.
    pub declared_rank: usize,
    /// Effective ones.
    pub effective_rank: usize,
    /// The difference.
    pub rank_slack: usize,
    /// Numbers in A and B.
    pub params: usize,
    /// Bytes.
    pub bytes: u64,
    /// Frobenius norm of all of them.
    pub fro_norm: f64,
}

/// Sums over a pack.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// How many adapters.
    pub adapter_count: usize,
    /// Components stored.
    pub declared_rank: usize,
    /// Effective ones.
    pub effective_rank: usize,
    /// The difference.
    pub rank_slack: usize,
    /// Effective over declared.
    pub rank_efficiency: f64,
    /// Numbers in A and B.
    pub params: usize,
    /// Bytes.
    pub bytes: u64,
    /// Frobenius norm of all updates.
    pub fro_norm: f64,
    /// Bytes over effective rank.
    pub bytes_per_effective_rank: f64,
}

/// The ledger of one pack.
#[derive(Clone, Debug, Serialize)]
pub struct Ledger {
    /// `pack_rank_ledger`.
    pub kind: &'static str,
    /// Name of the pack.
    pub pack: String,
    /// Tolerance of the effective rank.
    pub rank_tol: f64,
    /// Sums.
    pub summary: Summary,
    /// Sums by target.
    pub by_target: Vec<TargetSum>,
    /// Adapters, by layer.
    pub adapters: Vec<Entry>,
}

/// Measures a pack.
///
/// # Errors
/// When MLX fails.
pub fn measure(pack: &Pack, tol: f64) -> Result<Ledger> {
    let mut adapters = Vec::with_capacity(pack.adapters.len());
    for key in pack.keys() {
        if let Some(a) = pack.adapters.get(key) {
            adapters.push(entry(key, a, tol)?);
        }
    }
    let mut targets: BTreeMap<&str, TargetSum> = BTreeMap::new();
    for e in &adapters {
        let t =
            targets.entry(&e.target).or_insert_with(|| TargetSum { target: e.target.clone(), ..TargetSum::default() });
        t.adapters += 1;
        t.declared_rank += e.declared_rank;
        t.effective_rank += e.effective_rank;
        t.rank_slack += e.rank_slack;
        t.params += e.params;
        t.bytes += e.bytes;
        t.fro_norm = t.fro_norm.hypot(e.fro_norm);
    }
    let by_target: Vec<TargetSum> = targets.into_values().collect();
    let (declared, effective) = by_target.iter().fold((0, 0), |(d, e), t| (d + t.declared_rank, e + t.effective_rank));
    let summary = Summary {
        adapter_count: adapters.len(),
        declared_rank: declared,
        effective_rank: effective,
        rank_slack: declared - effective,
        rank_efficiency: share(effective, declared),
        params: by_target.iter().map(|t| t.params).sum(),
        bytes: pack.nbytes(),
        fro_norm: product::norm(&adapters.iter().map(|e| e.fro_norm).collect::<Vec<_>>()),
        bytes_per_effective_rank: pack.nbytes() as f64 / effective.max(1) as f64,
    };
    Ok(Ledger { kind: "pack_rank_ledger", pack: pack.name().to_owned(), rank_tol: tol, summary, by_target, adapters })
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn entry(key: &str, a: &Adapter, tol: f64) -> Result<Entry> {
    let values = Product::of(a, 1.0)?.singular_values()?;
    let (declared, effective) = (a.rank(), product::effective_rank(&values, tol));
    Ok(Entry {
        adapter: key.to_owned(),
        target: key::target(key).to_owned(),
        layer: key::layer(key).unwrap_or_default(),
        declared_rank: declared,
        effective_rank: effective,
        rank_slack: declared - effective,
        rank_efficiency: share(effective, declared),
        entropy_rank: product::entropy_rank(&values),
        stable_rank: product::stable_rank(&values),
        alpha: f64::from(a.alpha),
        scale: f64::from(a.scale()),
        shape: [a.a.rows, a.b.cols],
        params: a.a.data.len() + a.b.data.len(),
        bytes: a.nbytes(),
        fro_norm: product::norm(&values),
        spectral_norm: values.first().copied().unwrap_or(0.0),
        dora: a.magnitude.is_some(),
        singular_values: values,
    })
}

/// Two adapters of one slice.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// Their key.
    pub adapter: String,
    /// What they target.
    pub target: String,
    /// Components of the left one.
    pub left_declared_rank: usize,
    /// Components of the right one.
    pub right_declared_rank: usize,
    /// Effective ones.
    pub left_effective_rank: usize,
    /// Effective ones.
    pub right_effective_rank: usize,
    /// Effective rank of the sum of both updates.
    pub composition_rank: usize,
    /// Effective ranks less that of the sum.
    pub rank_savings: usize,
    /// Rank of the sum over the sum of ranks.
    pub composition_efficiency: f64,
    /// Dimension of what both write to.
    pub column_union_rank: usize,
    /// Directions of outputs that both write to.
    pub column_overlap_rank: usize,
    /// Dimension of what both read.
    pub row_union_rank: usize,
    /// Directions of inputs that both read.
    pub row_overlap_rank: usize,
    /// Cosine of the angle between the updates, as vectors.
    pub fro_cosine: f64,
    /// Singular values of the sum, largest first.
    pub composition_singular_values: Vec<f64>,
}

/// Sums over the slices that both packs have.
#[derive(Clone, Debug, Serialize)]
pub struct PairSummary {
    /// Slices that both have.
    pub shared_adapter_count: usize,
    /// Slices that the left one has alone.
    pub left_only_count: usize,
    /// Slices that the right one has alone.
    pub right_only_count: usize,
    /// Effective rank of the left one in shared slices.
    pub left_effective_rank: usize,
    /// Effective rank of the right one in shared slices.
    pub right_effective_rank: usize,
    /// Effective rank of the sums.
    pub composition_rank: usize,
    /// What the sums save.
    pub rank_savings: usize,
    /// Directions that both write to.
    pub column_overlap_rank: usize,
    /// Directions that both read.
    pub row_overlap_rank: usize,
    /// Rank of the sums over the sum of ranks.
    pub composition_efficiency: f64,
    /// Mean of the absolute cosines.
    pub mean_abs_cosine: f64,
}

/// Two packs side by side.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// `pack_rank_comparison`.
    pub kind: &'static str,
    /// Name of the left pack.
    pub left: String,
    /// Name of the right pack.
    pub right: String,
    /// Tolerance of effective ranks.
    pub rank_tol: f64,
    /// Sums.
    pub summary: PairSummary,
    /// Slices that the left one has alone.
    pub left_only: Vec<String>,
    /// Slices that the right one has alone.
    pub right_only: Vec<String>,
    /// Shared slices.
    pub pairs: Vec<Pair>,
}

/// Compares two packs.
///
/// # Errors
/// When a slice has different shapes in them, or MLX fails.
pub fn compare(left: &Pack, right: &Pack, tol: f64) -> Result<Comparison> {
    let mut pairs = Vec::new();
    for key in left.keys() {
        if let (Some(a), Some(b)) = (left.adapters.get(key), right.adapters.get(key)) {
            product::same_shape(key, (left.name(), a), (right.name(), b))?;
            pairs.push(pair(key, a, b, tol)?);
        }
    }
    let only = |one: &Pack, other: &Pack| -> Vec<String> {
        one.keys().into_iter().filter(|k| !other.adapters.contains_key(*k)).map(str::to_owned).collect()
    };
    let (left_only, right_only) = (only(left, right), only(right, left));
    let sum = |of: fn(&Pair) -> usize| pairs.iter().map(of).sum::<usize>();
    let (l, r, both) = (sum(|p| p.left_effective_rank), sum(|p| p.right_effective_rank), sum(|p| p.composition_rank));
    let summary = PairSummary {
        shared_adapter_count: pairs.len(),
        left_only_count: left_only.len(),
        right_only_count: right_only.len(),
        left_effective_rank: l,
        right_effective_rank: r,
        composition_rank: both,
        rank_savings: sum(|p| p.rank_savings),
        column_overlap_rank: sum(|p| p.column_overlap_rank),
        row_overlap_rank: sum(|p| p.row_overlap_rank),
        composition_efficiency: share(both, l + r),
        mean_abs_cosine: pairs.iter().map(|p| p.fro_cosine.abs()).sum::<f64>() / pairs.len().max(1) as f64,
    };
    let (kind, left, right) = ("pack_rank_comparison", left.name().to_owned(), right.name().to_owned());
    Ok(Comparison { kind, left, right, rank_tol: tol, summary, left_only, right_only, pairs })
}

fn pair(key: &str, left: &Adapter, right: &Adapter, tol: f64) -> Result<Pair> {
    let (a, b) = (Product::of(left, 1.0)?, Product::of(right, 1.0)?);
    let (sa, sb) = (a.svd()?, b.svd()?);
    let both = Product::sum(&[a.clone(), b.clone()])?.singular_values()?;
    let (ra, rb) = (product::effective_rank(&sa.values, tol), product::effective_rank(&sb.values, tol));
    let composition = product::effective_rank(&both, tol);
    let union = |side: bool| -> Result<usize> {
        if ra + rb == 0 {
            return Ok(0);
        }
        let bases = [sa.basis(ra, side)?, sb.basis(rb, side)?];
        let joined = spectral::on_cpu(|| mlx_rs::ops::concatenate(&bases, 1))?;
        let (_, core) = spectral::qr(&joined)?;
        Ok(product::effective_rank(&spectral::to_vec(&spectral::svd(&core)?.1)?, tol))
    };
    let (columns, rows) = (union(true)?, union(false)?);
    let norms = product::norm(&sa.values) * product::norm(&sb.values);
    Ok(Pair {
        adapter: key.to_owned(),
        target: key::target(key).to_owned(),
        left_declared_rank: left.rank(),
        right_declared_rank: right.rank(),
        left_effective_rank: ra,
        right_effective_rank: rb,
        composition_rank: composition,
        rank_savings: (ra + rb).saturating_sub(composition),
        composition_efficiency: share(composition, ra + rb),
        column_union_rank: columns,
        column_overlap_rank: (ra + rb).saturating_sub(columns),
        row_union_rank: rows,
        row_overlap_rank: (ra + rb).saturating_sub(rows),
        fro_cosine: if norms > 0.0 { a.dot(&b)? / norms } else { 0.0 },
        composition_singular_values: both,
    })
}
