//! What `packs rerank` and `packs merge` share: how much to keep, writing the new pack, and what it cost.

use super::{Global, figure, table};
use crate::pack::ranks::{self, Shapes};
use crate::pack::rerank::{Goal, Reranked};
use crate::pack::{Profile, Store};
use std::path::PathBuf;

/// The new pack.
#[derive(clap::Args, Debug)]
pub struct NewPack {
    /// Name of the new pack
    #[arg(long, value_name = "PACK")]
    pub out_name: String,
    /// Replace a pack of that name
    #[arg(long)]
    pub force: bool,
    /// Size allowed: lite 10 MiB, heavy 512 MiB [default: that of the pack]
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    /// Free text kept in the new pack
    #[arg(long, value_name = "TEXT")]
    pub notes: Option<String>,
    /// Show every slice
    #[arg(long)]
    pub slices: bool,
}

/// How much is kept.
#[derive(clap::Args, Debug)]
#[group(multiple = false)]
pub struct GoalArgs {
    /// Components of each slice at most
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// Components in all, where they are worth most
    #[arg(long, value_name = "N")]
    total_rank: Option<u64>,
    /// Size in MB (10^6 bytes) in all, where it is worth most
    #[arg(long, value_name = "MB")]
    budget_mb: Option<f64>,
    /// Ranks of slices: q:4,k:2 or a JSON file {"blocks.0.attn.q_proj": 4, …}; others keep theirs
    #[arg(long, visible_alias = "rank-map-json", value_name = "FILE|RULES")]
    rank_map: Option<String>,
}

impl GoalArgs {
    /// The goal that is named; `None` where none is.
    ///
    /// # Errors
    /// When a rank map cannot be read, or names what is not there.
    pub fn get(&self, shapes: &Shapes) -> anyhow::Result<Option<Goal>> {
        Ok(match self {
            GoalArgs { rank: Some(r), .. } => Some(Goal::Each(*r)),
            GoalArgs { total_rank: Some(n), .. } => Some(Goal::Components(*n)),
            GoalArgs { rank_map: Some(map), .. } => Some(Goal::Map(ranks::parse(map, shapes)?)),
            GoalArgs { budget_mb: Some(mb), .. } => Some(Goal::Bytes((mb * 1e6) as u64)),
            _ => None,
        })
    }

    /// Whether the numbers make sense; says so where they do not.
    pub fn usable(&self) -> bool {
        let ok = self.rank != Some(0)
            && self.total_rank != Some(0)
            && self.budget_mb.is_none_or(|mb| mb.is_finite() && mb > 0.0);
        if !ok {
            note!("error: --rank, --total-rank and --budget-mb are finite numbers larger than 0");
        }
        ok
    }
}

/// The document of --json.
#[derive(serde::Serialize)]
struct Document<'a> {
    name: &'a str,
    directory: PathBuf,
    #[serde(flatten)]
    result: &'a Reranked,
    #[serde(flatten)]
    made: &'a serde_json::Value,
}

/// Writes the new pack and says what it cost. `made` is how it came about.
///
/// # Errors
/// When the pack is too large for its profile, its name is taken, or it cannot be written.
pub fn finish(
    mut result: Reranked,
    new: &NewPack,
    made: serde_json::Value,
    store: &Store,
    g: &Global,
) -> anyhow::Result<()> {
    let meta = &mut result.pack.meta;
    if let Some(profile) = new.profile {
        meta.profile = profile;
    }
    if let Some(notes) = &new.notes {
        meta.notes.clone_from(notes);
    }
    meta.created_at = super::time();
    if !meta.training_config.is_object() {
        meta.training_config = serde_json::json!({});
    }
    if let (Some(config), Some(made)) = (meta.training_config.as_object_mut(), made.as_object()) {
        config.extend(made.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
    let lock = store.lock(&new.out_name)?;
    let directory = store.put(&result.pack, new.force, &lock)?;
    if g.json {
        let document = Document { name: &new.out_name, directory, result: &result, made: &made };
        say!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(());
    }
    if g.quiet {
        return Ok(());
    }
    if new.slices {
        let mut rows = table::plain(&["adapter", "rank", "kept", "norm", "error", "relative"], &[1, 2, 3, 4, 5]);
        for s in &result.slices {
            rows.add_row([
                s.adapter.clone(),
                s.rank_before.to_string(),
                if s.rank_after == 0 { "–".into() } else { s.rank_after.to_string() },
                figure(s.norm),
                figure(s.error),
                format!("{:.2} %", 100.0 * s.relative),
            ]);
        }
        say!("{rows}");
    }
    let dropped = result.slices.iter().filter(|s| s.rank_after == 0).count();
    say!(
        "rank {} → {}, {:.2} → {:.2} MB{}",
        result.rank_before,
        result.rank_after,
        result.bytes_before as f64 / 1e6,
        result.bytes_after as f64 / 1e6,
        if dropped == 0 { String::new() } else { format!("; {dropped} slices have no adapter any more") }
    );
    let worst = result.slices.iter().max_by(|a, b| a.relative.total_cmp(&b.relative));
    say!(
        "error {} of {} ({:.3} % of the update's norm){}",
        figure(result.error),
        figure(result.norm),
        100.0 * result.relative,
        worst.filter(|w| w.relative > 0.0).map_or(String::new(), |w| format!(
            "; worst {} with {:.2} %",
            w.adapter,
            100.0 * w.relative
        ))
    );
    say!("pack {} in {}", new.out_name, directory.display());
    Ok(())
}
