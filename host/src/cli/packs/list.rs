//! `plastic-host packs list`.

use super::{Global, show, table};
use crate::pack::{Pack, Store, Weighted};
use std::process::ExitCode;

/// Options of `packs list`.
#[derive(clap::Args, Debug)]
pub struct ListArgs {}

/// One pack of the list; a damaged one has a problem and nothing else.
#[derive(serde::Serialize)]
struct Entry {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<Found>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(serde::Serialize)]
struct Found {
    bytes: u64,
    limit: u64,
    adapters: usize,
    total_rank: usize,
    ranks: Vec<usize>,
    base_model: String,
    base_hash: String,
    created_at: String,
    active: bool,
}

/// Lists the packs.
///
/// # Errors
/// When the directory cannot be read, or the record of packs in use is damaged.
pub fn run(_: &ListArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    store.readable()?;
    let active: Vec<Weighted> = store.all_active()?.into_values().flatten().collect();
    let entry = |name: String| match store.read(&name) {
        Ok(pack) => Entry { found: Some(found(&pack, active.iter().any(|w| w.pack == name))), name, problem: None },
        Err(e) => Entry { name, found: None, problem: Some(e.to_string()) },
    };
    let entries: Vec<Entry> = store.names().into_iter().map(entry).collect();
    let unfinished = store.unfinished();
    if g.json {
        say!(
            "{}",
            serde_json::to_string_pretty(
                &serde_json::json!({ "root": store.root(), "packs": entries, "unfinished": unfinished })
            )?
        );
        return Ok(ExitCode::SUCCESS);
    }
    if entries.is_empty() && unfinished.is_empty() {
        say!("{}: no packs; make one with `plastic-host packs create`", store.root().display());
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table::plain(&["pack", "size", "of", "adapters", "ranks", "base", "made", "in use"], &[1, 2, 3]);
    for e in &entries {
        if let Some(f) = &e.found {
            rows.add_row([
                e.name.clone(),
                show::megabytes(f.bytes),
                show::megabytes(f.limit),
                f.adapters.to_string(),
                spans(&f.ranks),
                f.base_model.clone(),
                f.created_at.clone(),
                if f.active { "yes".into() } else { String::new() },
            ]);
        }
    }
    say!("{rows}");
    for name in &unfinished {
        say!("{name}: a training that is not finished; go on with `plastic-host packs resume {name}`");
    }
    for e in &entries {
        if let Some(problem) = &e.problem {
            note!("{}: damaged: {problem}", e.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn found(pack: &Pack, active: bool) -> Found {
    let mut ranks: Vec<usize> = pack.adapters.values().map(crate::pack::Adapter::rank).collect();
    ranks.sort_unstable();
    ranks.dedup();
    Found {
        bytes: pack.nbytes(),
        limit: pack.meta.profile.limit(),
        adapters: pack.adapters.len(),
        total_rank: pack.total_rank(),
        ranks,
        base_model: pack.meta.base_model.clone(),
        base_hash: pack.meta.base_hash.clone(),
        created_at: pack.meta.created_at.clone(),
        active,
    }
}

/// Ascending numbers in few words: `2, 4, 8`, or `1 to 16` where there are many.
fn spans(ranks: &[usize]) -> String {
    match ranks {
        [first, .., last] if ranks.len() > 4 => format!("{first} to {last}"),
        few => few.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    }
}
