//! `plastic-host packs ledger` (also `rank-ledger`).

use super::named::OnePack;
use super::{Global, figure, output, table};
use crate::mlx;
use crate::pack::{Store, ledger};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `packs ledger`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs ledger plays
  plastic-host packs ledger plays --compare law
  plastic-host packs rank-ledger --name plays --compare law --out ledger.json --csv ledger.csv")]
pub struct LedgerArgs {
    #[command(flatten)]
    pack: OnePack,
    /// Another pack, to see what both have in common
    #[arg(long, value_name = "PACK")]
    compare: Option<String>,
    /// Singular values below this share of the largest do not count as rank
    #[arg(long, value_name = "SHARE", default_value_t = ledger::RANK_TOL)]
    rank_tol: f64,
    /// Singular values of each update that are told
    #[arg(long, value_name = "N", default_value_t = 8)]
    leading: usize,
    /// Write the ledger as JSON into this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write one row an adapter into this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

/// Measures the ranks of a pack, or of two side by side.
///
/// # Errors
/// When a pack cannot be read, or a file cannot be written.
pub fn run(args: &LedgerArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    if !super::rank_tol_is_share(args.rank_tol) {
        return Ok(ExitCode::from(2));
    }
    output::check(store, &[("--out", args.out.as_ref()), ("--csv", args.csv.as_ref())], &[])?;
    let left = store.read(args.pack.get())?;
    let right = args.compare.as_ref().map(|name| store.read(name)).transpose()?;
    mlx::device::init()?;
    let mut l = ledger::measure(&left, args.rank_tol)?;
    l.adapters.iter_mut().for_each(|e| e.singular_values.truncate(args.leading));
    let (document, csv) = match &right {
        None => (serde_json::to_value(&l)?, single_csv(&l)),
        Some(right) => {
            let mut r = ledger::measure(right, args.rank_tol)?;
            r.adapters.iter_mut().for_each(|e| e.singular_values.truncate(args.leading));
            let mut c = ledger::compare(&left, right, args.rank_tol)?;
            c.pairs.iter_mut().for_each(|p| p.composition_singular_values.truncate(args.leading));
            let csv = pair_csv(&c);
            let document = serde_json::json!({ "left": l, "right": r, "compare": c });
            if !g.json && !g.quiet {
                compared(&c);
            }
            (document, csv)
        }
    };
    if let Some(path) = &args.out {
        crate::atomic::write_file(path, &serde_json::to_vec_pretty(&document)?)?;
    }
    if let Some(path) = &args.csv {
        crate::atomic::write_file(path, csv.as_bytes())?;
    }
    match g.json {
        true => say!("{}", serde_json::to_string_pretty(&document)?),
        false if right.is_none() && !g.quiet => single(&l),
        false => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn single(l: &ledger::Ledger) {
    let headers =
        ["adapter", "rank", "effective", "slack", "entropy", "stable", "norm", "largest", "leading singular values"];
    let mut rows = table::plain(&headers, &[1, 2, 3, 4, 5, 6, 7]);
    for e in &l.adapters {
        let values: Vec<String> = e.singular_values.iter().map(|s| figure(*s)).collect();
        rows.add_row([
            e.adapter.clone(),
            e.declared_rank.to_string(),
            e.effective_rank.to_string(),
            e.rank_slack.to_string(),
            format!("{:.1}", e.entropy_rank),
            format!("{:.2}", e.stable_rank),
            figure(e.fro_norm),
            figure(e.spectral_norm),
            values.join(" "),
        ]);
    }
    say!("{rows}");
    let headers = ["target", "adapters", "rank", "effective", "slack", "parameters", "bytes", "norm"];
    let mut rows = table::plain(&headers, &[1, 2, 3, 4, 5, 6, 7]);
    for t in &l.by_target {
        rows.add_row([
            t.target.clone(),
            t.adapters.to_string(),
            t.declared_rank.to_string(),
            t.effective_rank.to_string(),
            t.rank_slack.to_string(),
            t.params.to_string(),
            t.bytes.to_string(),
            figure(t.fro_norm),
        ]);
    }
    say!("{rows}");
    let s = &l.summary;
    say!(
        "{}: rank {}, effective {} (slack {}), norm {}, {:.0} bytes per effective component",
        l.pack,
        s.declared_rank,
        s.effective_rank,
        s.rank_slack,
        figure(s.fro_norm),
        s.bytes_per_effective_rank
    );
}

fn compared(c: &ledger::Comparison) {
    let headers = ["adapter", "left", "right", "together", "saved", "columns shared", "rows shared", "cosine"];
    let mut rows = table::plain(&headers, &[1, 2, 3, 4, 5, 6, 7]);
    for p in &c.pairs {
        rows.add_row([
            p.adapter.clone(),
            p.left_effective_rank.to_string(),
            p.right_effective_rank.to_string(),
            p.composition_rank.to_string(),
            p.rank_savings.to_string(),
            p.column_overlap_rank.to_string(),
            p.row_overlap_rank.to_string(),
            format!("{:+.4}", p.fro_cosine),
        ]);
    }
    say!("{rows}");
    let s = &c.summary;
    say!(
        "{} and {}: {} shared slices ({} only in the first, {} only in the second)",
        c.left,
        c.right,
        s.shared_adapter_count,
        s.left_only_count,
        s.right_only_count
    );
    say!(
        "effective rank {} + {}, together {} (saves {}, efficiency {:.3}); {} output and {} input directions shared; mean |cosine| {:.4}",
        s.left_effective_rank,
        s.right_effective_rank,
        s.composition_rank,
        s.rank_savings,
        s.composition_efficiency,
        s.column_overlap_rank,
        s.row_overlap_rank,
        s.mean_abs_cosine
    );
}

fn single_csv(l: &ledger::Ledger) -> String {
    let mut out = String::from(
        "adapter,target,layer,declared_rank,effective_rank,rank_slack,entropy_rank,stable_rank,alpha,scale,rows,cols,params,bytes,fro_norm,spectral_norm,singular_values\n",
    );
    for e in &l.adapters {
        let values: Vec<String> = e.singular_values.iter().map(f64::to_string).collect();
        out += &format!(
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
            e.adapter,
            e.target,
            e.layer,
            e.declared_rank,
            e.effective_rank,
            e.rank_slack,
            e.entropy_rank,
            e.stable_rank,
            e.alpha,
            e.scale,
            e.shape[0],
            e.shape[1],
            e.params,
            e.bytes,
            e.fro_norm,
            e.spectral_norm,
            values.join(" ")
        );
    }
    out
}

fn pair_csv(c: &ledger::Comparison) -> String {
    let mut out = String::from(
        "adapter,target,left_declared_rank,right_declared_rank,left_effective_rank,right_effective_rank,composition_rank,rank_savings,composition_efficiency,column_union_rank,column_overlap_rank,row_union_rank,row_overlap_rank,fro_cosine\n",
    );
    for p in &c.pairs {
        out += &format!(
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
            p.adapter,
            p.target,
            p.left_declared_rank,
            p.right_declared_rank,
            p.left_effective_rank,
            p.right_effective_rank,
            p.composition_rank,
            p.rank_savings,
            p.composition_efficiency,
            p.column_union_rank,
            p.column_overlap_rank,
            p.row_union_rank,
            p.row_overlap_rank,
            p.fro_cosine
        );
    }
    out
}
