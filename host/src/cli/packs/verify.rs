//! `plastic-host packs verify`.

use super::{Global, table};
use crate::cli::base;
use crate::mlx;
use crate::model::{LoadOptions, Model};
use crate::pack::{Pack, Store, attach};
use std::process::ExitCode;

/// Options of `packs verify`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  plastic-host packs verify                            all packs
  plastic-host packs verify shakespeare law
  plastic-host packs verify --base smollm2-135m        also their base's hash and geometry

Exit code 1 where a pack has a problem; each problem is named.")]
pub struct VerifyArgs {
    /// Packs to check [default: all]
    #[arg(value_name = "PACK")]
    chosen: Vec<String>,
    /// A pack to check
    #[arg(long = "name", value_name = "PACK")]
    names: Vec<String>,
    /// Check hash and geometry against this base: an id, a directory, a GGUF file or a hub repository
    #[arg(long, short, value_name = "BASE")]
    base: Option<String>,
}

/// What was found about one pack.
#[derive(serde::Serialize)]
struct Finding {
    name: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapters: Option<usize>,
    problems: Vec<String>,
}

/// Checks packs.
///
/// # Errors
/// When the base cannot be had. Problems of packs are no errors: they are listed, and the exit code is 1.
pub fn run(args: &VerifyArgs, store: &Store, g: &Global) -> anyhow::Result<ExitCode> {
    let mut names: Vec<String> = args.chosen.iter().chain(&args.names).cloned().collect();
    let all = names.is_empty();
    store.readable()?;
    if all {
        names = store.names();
    }
    let base = match &args.base {
        None => None,
        Some(_) => {
            mlx::device::init()?;
            let base = base::open(&args.base, g)?;
            let model = Model::load(&base.dir, &LoadOptions::default())?;
            Some((base, model))
        }
    };
    let mut findings: Vec<Finding> = Vec::with_capacity(names.len());
    for name in names {
        findings.push(match store.read(&name) {
            Err(e) => {
                Finding { name, ok: false, version: None, bytes: None, adapters: None, problems: vec![e.to_string()] }
            }
            Ok(pack) => {
                let problems = base.as_ref().map_or_else(Vec::new, |(base, model)| fits(&pack, &base.dir, model));
                Finding {
                    ok: problems.is_empty(),
                    version: Some(pack.meta.version.clone()),
                    bytes: Some(pack.nbytes()),
                    adapters: Some(pack.adapters.len()),
                    name,
                    problems,
                }
            }
        });
    }
    let mut record = Vec::new();
    if all {
        record = active(store, &findings);
    }
    let sound = findings.iter().all(|f| f.ok) && record.is_empty();
    let code = if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if g.json {
        let document = serde_json::json!({ "root": store.root(), "ok": sound, "packs": findings, "in_use": record });
        say!("{}", serde_json::to_string_pretty(&document)?);
        return Ok(code);
    }
    if findings.is_empty() {
        say!("{}: no packs", store.root().display());
    } else if !g.quiet {
        let mut rows = table::plain(&["pack", "state", "schema", "adapters", "bytes"], &[3, 4]);
        for f in &findings {
            let state = match f.problems.len() {
                0 => "sound".to_owned(),
                1 => "1 problem".into(),
                n => format!("{n} problems"),
            };
            let number = |n: Option<u64>| n.map_or(String::new(), |n| n.to_string());
            rows.add_row([
                f.name.clone(),
                state,
                f.version.clone().unwrap_or_default(),
                number(f.adapters.map(|n| n as u64)),
                number(f.bytes),
            ]);
        }
        say!("{rows}");
    }
    for f in &findings {
        f.problems.iter().for_each(|p| note!("{}: {p}", f.name));
    }
    record.iter().for_each(|p| note!("{p}"));
    Ok(code)
}

/// What keeps a pack from being attached to a model.
fn fits(pack: &Pack, dir: &std::path::Path, model: &Model) -> Vec<String> {
    let hash = attach::check_base(pack, dir).err();
    let geometry = attach::prepare(model, &[(pack, 1.0)]).err();
    hash.into_iter().chain(geometry).map(|e| e.to_string()).collect()
}

/// Packs in use that are not there or not sound, or a record that cannot be read.
fn active(store: &Store, findings: &[Finding]) -> Vec<String> {
    match store.all_active() {
        Err(e) => vec![e.to_string()],
        Ok(all) => all
            .values()
            .flatten()
            .filter(|w| !findings.iter().any(|f| f.name == w.pack))
            .map(|w| format!("pack {} is in use and is not there; take it out of use with `packs remove`", w.pack))
            .collect(),
    }
}
