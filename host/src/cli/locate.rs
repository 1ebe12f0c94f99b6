//! Where plugins and sample texts are found when they are named by a bare name or not at all.

use std::path::{Path, PathBuf};

/// A file of the installation: in the working directory, beside the program (a source checkout or an
/// installed tree), or where `PLASTIC_HOME` says.
pub fn shipped(relative: &str) -> Option<PathBuf> {
    let mut roots = vec![PathBuf::from(".")];
    roots.extend(std::env::var_os("PLASTIC_HOME").map(PathBuf::from));
    if let Some(dir) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        roots.push(dir.join("../.."));
        roots.push(dir.join("../share/plastic-host"));
    }
    let found = roots.into_iter().map(|r| r.join(relative)).find(|p| p.is_file())?;
    // `./plugins/x.wasm` reads better without the dot.
    Some(found.strip_prefix(".").map(Path::to_path_buf).unwrap_or(found))
}

/// The directory of the shipped plugins; `plugins` where none is found.
pub fn plugins_dir() -> PathBuf {
    let found = shipped("plugins/energy.wasm").and_then(|p| p.parent().map(Path::to_path_buf));
    found.unwrap_or_else(|| "plugins".into())
}

/// A plugin by path, or by the bare name of a shipped one (`energy` for `plugins/energy.wasm`).
///
/// # Errors
/// When there is no such file; the message lists what is shipped.
pub fn plugin(name: &Path) -> anyhow::Result<PathBuf> {
    if name.is_file() {
        return Ok(name.to_owned());
    }
    let text = name.display().to_string();
    let shipped_as = match name.extension() {
        Some(_) => text.clone(),
        None => format!("plugins/{text}.wasm"),
    };
    shipped(&shipped_as).ok_or_else(|| {
        anyhow::anyhow!(
            "{text}: no such plugin; name a .wasm file. The shipped ones are built by `make plugins` into plugins/"
        )
    })
}

/// A text by path, or the shipped default.
///
/// # Errors
/// When there is no such file.
pub fn text(named: &Path, default: &str, option: &str) -> anyhow::Result<PathBuf> {
    match named.as_os_str().is_empty() {
        false if named.is_file() => Ok(named.to_owned()),
        false => anyhow::bail!("{}: no such file; name a .jsonl or .txt file with {option}", named.display()),
        true => shipped(default)
            .ok_or_else(|| anyhow::anyhow!("{default} is not here; name a .jsonl or .txt file with {option}")),
    }
}
