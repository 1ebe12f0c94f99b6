//! What `eval`, `eval-batch` and `route` have in common: base and packs opened and checked, rows as CSV.

use crate::cli::locate::Purpose;
use crate::cli::{Global, base, locate};
use crate::mlx;
use crate::model::{LoadOptions, Model, Tokenizer};
use crate::pack::attach::{self, Attachment};
use crate::pack::{Pack, Store, Weighted};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A base and packs ready to be put on it.
pub struct Opened {
    /// Id of the base.
    pub id: String,
    /// The model, without packs.
    pub model: Model,
    /// Its tokeniser.
    pub tokenizer: Tokenizer,
    /// Milliseconds that loading the base took.
    pub base_ms: f64,
    /// The packs, where any were named.
    pub packs: Option<Packs>,
}

/// Packs that fit a base.
pub struct Packs {
    /// As they were named.
    pub label: String,
    /// Bytes of their tensors.
    pub bytes: u64,
    /// Milliseconds from the file to the model.
    pub ms: f64,
    /// What they add.
    pub attachment: Attachment,
}

/// Opens base and packs. The packs are read first: that is cheap, and a name is easily mistyped.
///
/// # Errors
/// When one is missing or damaged, or a pack was made for another base.
pub fn open(spec: &Option<String>, packs: &[Weighted], store: &Store, g: &Global) -> anyhow::Result<Opened> {
    let begun = Instant::now();
    let read: Vec<Pack> = packs.iter().map(|w| store.read(&w.pack)).collect::<Result<_, _>>()?;
    let reading = begun.elapsed();
    mlx::device::init()?;
    let base = base::open(spec, g)?;
    for pack in &read {
        attach::check_base(pack, &base.dir)?;
    }
    let tokenizer = Tokenizer::load(&base.dir)?;
    let begun = Instant::now();
    let mut model = Model::load(&base.dir, &LoadOptions::default())?;
    let base_ms = ms(begun);
    let packs = match read.is_empty() {
        true => None,
        false => {
            let begun = Instant::now();
            let weighted: Vec<(&Pack, f32)> = read.iter().zip(packs.iter().map(|w| w.weight)).collect();
            let attachment = attach::prepare(&model, &weighted)?;
            attach::attach(&mut model, &attachment);
            attach::detach(&mut model);
            Some(Packs {
                label: label(packs),
                bytes: read.iter().map(Pack::nbytes).sum(),
                ms: reading.as_secs_f64() * 1e3 + ms(begun),
                attachment,
            })
        }
    };
    Ok(Opened { id: base.id, model, tokenizer, base_ms, packs })
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

/// Packs as a command line names them.
pub fn label(packs: &[Weighted]) -> String {
    let one = |w: &Weighted| match w.weight == 1.0 {
        true => w.pack.clone(),
        false => format!("{}:{}", w.pack, w.weight),
    };
    packs.iter().map(one).collect::<Vec<_>>().join(" + ")
}

/// The text that a data option names, to measure on.
///
/// # Errors
/// As [`locate::text`].
pub fn data_file(option: &str, named: Option<&Path>, default: &str, g: &Global) -> anyhow::Result<PathBuf> {
    locate::text(named.unwrap_or("".as_ref()), default, option, Purpose::Judge, g)
}

/// Writes a result where it was asked for: JSON to `out`, its rows as CSV to a file or, for a bare --csv, to standard
/// output; else shows it. Answers whether standard output holds CSV.
///
/// # Errors
/// When a file cannot be written.
pub fn deliver<D: serde::Serialize, R: serde::Serialize>(
    document: &D,
    rows: &[R],
    out: Option<&Path>,
    csv_to: Option<&Option<PathBuf>>,
    g: &Global,
    show: impl FnOnce(),
) -> anyhow::Result<bool> {
    let json = serde_json::to_string_pretty(document).context("writing the result")?;
    if let Some(out) = out {
        crate::atomic::write_file(out, format!("{json}\n").as_bytes())?;
    }
    let text = csv_to.is_some().then(|| csv(rows)).transpose()?;
    if let (Some(Some(file)), Some(text)) = (csv_to, &text) {
        crate::atomic::write_file(file, text.as_bytes())?;
    }
    let bare = matches!(csv_to, Some(None));
    match (g.json, &text) {
        (true, _) => say!("{json}"),
        (_, Some(text)) if bare => say!("{}", text.trim_end()),
        _ => show(),
    }
    Ok(bare)
}

/// Rows as CSV, with the names of their fields above them.
///
/// # Errors
/// When a row is no object.
pub fn csv<T: serde::Serialize>(rows: &[T]) -> anyhow::Result<String> {
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        let serde_json::Value::Object(fields) = serde_json::to_value(row)? else { bail!("a row of CSV has names") };
        if i == 0 {
            out.push_str(&fields.keys().map(|k| quoted(k)).collect::<Vec<_>>().join(","));
            out.push('\n');
        }
        let cell = |v: &serde_json::Value| match v {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(s) => quoted(s),
            other => other.to_string(),
        };
        out.push_str(&fields.values().map(cell).collect::<Vec<_>>().join(","));
        out.push('\n');
    }
    Ok(out)
}

fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn csv_quotes_what_needs_it() {
        let rows =
            [serde_json::json!({"a": "x, \"y\"", "b": 1.5, "c": null}), serde_json::json!({"a": "z", "b": 2, "c": 3})];
        assert_eq!(csv(&rows).unwrap(), "a,b,c\n\"x, \"\"y\"\"\",1.5,\nz,2,3\n");
    }

    #[test]
    fn a_path_that_is_not_there_is_not_looked_for_on_the_hub() {
        let g = Global::default();
        let missing = data_file("--data", Some(Path::new("nowhere/x.jsonl")), "data/eval.jsonl", &g).unwrap_err();
        assert!(missing.to_string().contains("no such file; name a"), "{missing}");
    }

    #[test]
    fn packs_are_named_as_on_the_command_line() {
        let packs: Vec<Weighted> = ["a:0.5", "b"].iter().map(|t| t.parse().unwrap()).collect();
        assert_eq!(label(&packs), "a:0.5 + b");
    }
}
