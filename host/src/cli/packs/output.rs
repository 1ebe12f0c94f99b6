//! Where verbs of `packs` write: checked before the work, so that no hours are lost and nothing is overwritten that
//! was not meant.
//!
//! Refused, with the option's name: a directory or device where a file is wanted, a place that cannot be written,
//! anything in a pack or among the records and locks beside packs, one of the inputs, and one file for two outputs.

use crate::pack::Store;
use crate::pack::format::{META, TENSORS};
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// That files can be written, before hours of work go into them; their directories are made, and tried. `inputs`
/// are files the work reads.
///
/// # Errors
/// When one cannot, or would overwrite a pack, a record of packs, an input or another output.
pub fn check(store: &Store, outputs: &[(&str, Option<&PathBuf>)], inputs: &[&Path]) -> anyhow::Result<()> {
    let mut taken: Vec<(PathBuf, &str)> = Vec::new();
    for (option, path) in outputs.iter().filter_map(|(option, path)| Some((*option, (*path)?))) {
        let real = real(path);
        if real.is_dir() {
            bail!("{option} {}: is a directory; name a file", path.display());
        }
        if real.metadata().is_ok_and(|m| !m.is_file()) {
            bail!("{option} {}: is there and is no regular file; name another one", path.display());
        }
        apart(option, path, &real, store)?;
        if inputs.iter().any(|i| i.exists() && self::real(i) == real) {
            bail!("{option} {}: is what is read; name another file", path.display());
        }
        if let Some((_, other)) = taken.iter().find(|(t, _)| *t == real) {
            bail!("{option} {}: is the file of {other} too; name another one", path.display());
        }
        writable(option, path)?;
        taken.push((real, option));
    }
    Ok(())
}

/// That a directory can be written that is no pack, lies in none, and is not the packs directory.
///
/// # Errors
/// When it cannot.
pub fn check_directory(store: &Store, option: &str, path: &Path) -> anyhow::Result<()> {
    let real = real(path);
    if real.metadata().is_ok_and(|m| !m.is_dir()) {
        bail!("{option} {}: is no directory; name another place", path.display());
    }
    if real == self::real(store.root()) {
        bail!("{option} {}: is the directory of the packs; name another one", path.display());
    }
    if is_pack(&real) {
        bail!("{option} {}: is a pack; name another directory", path.display());
    }
    apart(option, path, &real, store)?;
    writable(option, path)
}

fn is_pack(dir: &Path) -> bool {
    dir.join(META).exists() && dir.join(TENSORS).exists()
}

/// That a path leads into no pack and to no record or lock of the packs.
fn apart(option: &str, path: &Path, real: &Path, store: &Store) -> anyhow::Result<()> {
    if let Some(pack) = real.ancestors().skip(1).find(|d| is_pack(d)) {
        bail!("{option} {}: lies in the pack {}; name a file elsewhere", path.display(), pack.display());
    }
    let Ok(inside) = real.strip_prefix(self::real(store.root())) else { return Ok(()) };
    let first = inside.components().next().map(|c| c.as_os_str().to_owned()).unwrap_or_default();
    if store.is_record(&first.to_string_lossy()) {
        bail!("{option} {}: is kept for the packs in {}; name another one", path.display(), store.root().display());
    }
    // A pack that lacks a file is damaged and still no place for results.
    if inside.components().count() > 1 && store.root().join(&first).join(META).exists() {
        bail!("{option} {}: lies in the pack {}; name a file elsewhere", path.display(), first.to_string_lossy());
    }
    Ok(())
}

/// That the directory of a path is there or can be made, and can be written.
fn writable(option: &str, path: &Path) -> anyhow::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(dir).with_context(|| format!("{option} {}: making its directory", path.display()))?;
    tempfile::Builder::new()
        .prefix(".plastic-")
        .tempfile_in(dir)
        .with_context(|| format!("{option} {}: its directory cannot be written", path.display()))?;
    Ok(())
}

/// A path without links, as far as it is there; the rest as it is named.
fn real(path: &Path) -> PathBuf {
    let mut rest: Vec<OsString> = Vec::new();
    let mut at = if path.is_absolute() { path.to_owned() } else { Path::new(".").join(path) };
    loop {
        if let Ok(real) = at.canonicalize() {
            let named = rest.iter().rev().map(Path::new).flat_map(Path::components);
            return named.fold(real, |mut out, part| {
                match part {
                    Component::ParentDir => drop(out.pop()),
                    Component::CurDir => {}
                    part => out.push(part),
                }
                out
            });
        }
        let Some(last) = at.components().next_back().map(|c| c.as_os_str().to_owned()) else { return path.to_owned() };
        rest.push(last);
        if !at.pop() {
            return path.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn place() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        for pack in ["a", "b"] {
            std::fs::create_dir_all(dir.path().join("packs").join(pack)).unwrap();
            std::fs::write(dir.path().join("packs").join(pack).join(META), "{}").unwrap();
        }
        std::fs::write(dir.path().join("packs/a").join(TENSORS), "").unwrap();
        let store = Store::new(Some(dir.path().join("packs")));
        (dir, store)
    }

    #[test]
    fn outputs_are_checked_before_the_work() {
        let (dir, store) = place();
        let at = |name: &str| dir.path().join(name);
        let ok = |name: &str| check(&store, &[("--out", Some(&at(name)))], &[]);
        ok("new/deep/x.json").unwrap();
        assert!(at("new/deep").is_dir());
        std::fs::write(at("file"), "").unwrap();
        for (name, why) in [
            ("new", "is a directory"),
            ("file/x.csv", "making its directory"),
            ("packs/a/meta.json", "lies in the pack"),
            ("packs/a/deeper/x", "lies in the pack"),
            ("packs/b/pack.safetensors", "lies in the pack b"),
            ("new/../packs/none/../b/x", "lies in the pack b"),
            ("packs/active.json", "is kept for the packs"),
            ("packs/.b.lock", "is kept for the packs"),
            ("packs/.training/x", "is kept for the packs"),
        ] {
            let error = ok(name).unwrap_err().to_string();
            assert!(error.starts_with("--out") && error.contains(why), "{name}: {error}");
        }
        assert!(!at("packs/a/deeper").exists(), "nothing is made where nothing may be written");
        // Beside packs there is room for what belongs to them.
        ok("packs/ledger.json").unwrap();
    }

    #[test]
    fn inputs_and_other_outputs_are_not_overwritten() {
        let (dir, store) = place();
        let (file, other) = (dir.path().join("q.jsonl"), dir.path().join("packs/../q.jsonl"));
        std::fs::write(&file, "").unwrap();
        let error = check(&store, &[("--out", Some(&other))], &[&file]).unwrap_err().to_string();
        assert!(error.contains("is what is read"), "{error}");
        let error = check(&store, &[("--out", Some(&file)), ("--csv", Some(&other))], &[]).unwrap_err().to_string();
        assert!(error.starts_with("--csv") && error.contains("is the file of --out too"), "{error}");
    }

    #[test]
    #[cfg(unix)]
    fn links_and_devices_are_seen_through() {
        let (dir, store) = place();
        let link = dir.path().join("link.json");
        std::os::unix::fs::symlink(dir.path().join("packs/b/meta.json"), &link).unwrap();
        let error = |p: PathBuf| check(&store, &[("--svg", Some(&p))], &[]).unwrap_err().to_string();
        assert!(error(link).contains("lies in the pack b"));
        assert!(error("/dev/null".into()).contains("no regular file"));
    }

    #[test]
    fn directories_are_no_packs() {
        let (dir, store) = place();
        let error = |name: &str| check_directory(&store, "--out", &dir.path().join(name)).unwrap_err().to_string();
        for (name, why) in [
            ("packs", "the directory of the packs"),
            ("packs/a", "is a pack"),
            ("packs/b/x", "lies in the pack"),
            ("packs/a/meta.json", "is no directory"),
        ] {
            assert!(error(name).contains(why), "{name}: {}", error(name));
        }
        check_directory(&store, "--out", &dir.path().join("results")).unwrap();
    }
}
