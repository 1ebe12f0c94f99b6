//! `plastic-host packs inspect`.

use super::named::OnePack;
use super::{Global, output, table};
use crate::mlx;
use crate::pack::{Pack, Store, ledger, picture};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `packs inspect`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs inspect shakespeare
  plastic-host packs inspect --name shakespeare --json
  plastic-host packs inspect shakespeare --svg shakespeare.svg

The update of a slice is alpha / rank · A B. `effective` counts its singular values above --rank-tol times the
largest; `entropy` weighs them (exp of the entropy of their shares); `stable` is norm² / largest².")]
pub struct InspectArgs {
    #[command(flatten)]
    pack: OnePack,
    /// Draw ranks, norms and spectra into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Singular values below this share of the largest do not count as rank
    #[arg(long, value_name = "SHARE", default_value_t = ledger::RANK_TOL)]
    rank_tol: f64,
}

/// The document of --json.
#[derive(serde::Serialize)]
struct Document<'a> {
    directory: PathBuf,
    metadata: &'a crate::pack::Meta,
    limit_bytes: u64,
    active: bool,
    #[serde(flatten)]
    ledger: &'a ledger::Ledger,
    #[serde(skip_serializing_if = "Option::is_none")]
    svg: Option<&'a PathBuf>,
}

/// Shows what a pack is made of.
///
/// # Errors
/// When the pack cannot be read, or the picture cannot be written.
pub fn run(args: &InspectArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    if !super::rank_tol_is_share(args.rank_tol) {
        return Ok(ExitCode::from(2));
    }
    output::check(store, &[("--svg", args.svg.as_ref())], &[])?;
    let name = args.pack.get();
    let pack = store.read(name)?;
    let active = store.all_active()?.values().flatten().any(|w| w.pack == name);
    mlx::device::init()?;
    let l = ledger::measure(&pack, args.rank_tol)?;
    if let Some(file) = &args.svg {
        crate::atomic::write_file(file, picture::svg(&l, &pack.meta.base_model).as_bytes())?;
    }
    if g.json {
        let document = Document {
            directory: store.dir(name)?,
            metadata: &pack.meta,
            limit_bytes: pack.meta.profile.limit(),
            active,
            ledger: &l,
            svg: args.svg.as_ref(),
        };
        say!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(ExitCode::SUCCESS);
    }
    show(&pack, &l, active);
    if let Some(file) = args.svg.as_ref().filter(|_| !g.quiet) {
        say!("drawn in {}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn show(pack: &Pack, l: &ledger::Ledger, active: bool) {
    let m = &pack.meta;
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    let hash = if m.base_hash.is_empty() {
        "unknown".into()
    } else {
        format!("{}…", m.base_hash.get(..12).unwrap_or(&m.base_hash))
    };
    say!("pack      {}{}", m.pack_name, if active { " (in use)" } else { "" });
    say!("base      {}, hash {hash}", or(&m.base_model, "unnamed"));
    say!("made      {} (schema {})", or(&m.created_at, "unknown"), m.version);
    let size = format!("{:.2} MiB of {:.0} MiB", mib(pack.nbytes()), mib(m.profile.limit()));
    say!(
        "size      {size}: {} adapters, {} components, {} numbers",
        l.adapters.len(),
        l.summary.declared_rank,
        l.summary.params
    );
    let text = facts(m.training_data.as_ref(), &["file", "rows", "validation_file"]);
    if !text.is_empty() {
        say!("text      {text}");
    }
    let known = ["steps", "batch", "sequence_length", "optimizer", "learning_rate", "rank", "policy", "loss", "seed"];
    let trained = facts(Some(&m.training_config), &known);
    if !trained.is_empty() {
        say!("trained   {trained}");
    }
    let made = facts(Some(&m.training_config), &["reranked_from", "merged_from", "goal"]);
    if !made.is_empty() {
        say!("derived   {made}");
    }
    if !m.notes.is_empty() {
        say!("notes     {}", m.notes);
    }
    let headers =
        ["adapter", "shape", "rank", "effective", "entropy", "stable", "alpha", "KiB", "norm", "largest values"];
    let mut rows = table::plain(&headers, &[2, 3, 4, 5, 6, 7, 8]);
    for e in &l.adapters {
        let values: Vec<String> = e.singular_values.iter().take(4).map(|s| super::figure(*s)).collect();
        rows.add_row([
            format!("{}{}", e.adapter, if e.dora { " (DoRA)" } else { "" }),
            format!("{} × {}", e.shape[0], e.shape[1]),
            e.declared_rank.to_string(),
            e.effective_rank.to_string(),
            format!("{:.1}", e.entropy_rank),
            format!("{:.2}", e.stable_rank),
            super::figure(e.alpha),
            format!("{:.1}", e.bytes as f64 / 1024.0),
            super::figure(e.fro_norm),
            values.join(" "),
        ]);
    }
    say!("{rows}");
    let s = &l.summary;
    say!(
        "in all    rank {}, effective {} (slack {}), norm {}",
        s.declared_rank,
        s.effective_rank,
        s.rank_slack,
        super::figure(s.fro_norm)
    );
}

/// The named facts of a JSON object in one line; a text as it is. --json has all of them.
fn facts(value: Option<&serde_json::Value>, names: &[&str]) -> String {
    use serde_json::Value;
    let plain = |v: &Value| match v {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match value {
        Some(Value::Object(o)) => {
            let named = names.iter().filter_map(|n| Some((n, o.get(*n).filter(|v| !v.is_null())?)));
            named.map(|(n, v)| format!("{} {}", n.replace('_', " "), plain(v))).collect::<Vec<_>>().join(", ")
        }
        Some(Value::Null) | None => String::new(),
        Some(other) => plain(other),
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
