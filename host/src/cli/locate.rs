//! Where plugins and sample texts are found when they are named by a bare name or not at all.

use super::Global;
use super::base::Progress;
pub use crate::model::hub::dataset::Purpose;
use crate::model::hub::dataset::{self, TextSpec};
use crate::plugin::catalog::{Carrier, Catalog};
use crate::plugin::contract::Info;
use crate::plugin::{Artifact, Fault, Kind, Loader};
use anyhow::Context;
use etcetera::BaseStrategy;
use indicatif::DecimalBytes;
use std::path::{Path, PathBuf};

/// The environment variable with directories of plugins, separated as in `PATH`.
pub const PATH_ENV: &str = "PLASTIC_PLUGIN_PATH";

/// A file of the installation: in the working directory, beside the program (a source checkout or an
/// installed tree), or where `PLASTIC_HOME` says.
pub fn shipped(relative: &str) -> Option<PathBuf> {
    let roots = std::iter::once(PathBuf::from(".")).chain(installation());
    let found = roots.map(|r| r.join(relative)).find(|p| p.is_file())?;
    // `./plugins/x.wasm` reads better without the dot.
    Some(found.strip_prefix(".").map(Path::to_path_buf).unwrap_or(found))
}

/// Where the installation may lie.
fn installation() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = std::env::var_os("PLASTIC_HOME").map(PathBuf::from).into_iter().collect();
    if let Some(dir) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        roots.push(dir.join("../.."));
        roots.push(dir.join("../share/plastic-host"));
    }
    roots
}

/// The directory of the shipped plugins; `plugins` where none is found.
pub fn plugins_dir() -> PathBuf {
    let found = shipped("plugins/energy.wasm").and_then(|p| p.parent().map(Path::to_path_buf));
    found.unwrap_or_else(|| "plugins".into())
}

/// The plugin path: `PLASTIC_PLUGIN_PATH`, `./plugins`, the installation's plugins, the user's.
pub fn plugin_path() -> Vec<PathBuf> {
    let named = std::env::var_os(PATH_ENV).unwrap_or_default();
    let mut path: Vec<PathBuf> = std::env::split_paths(&named).filter(|p| !p.as_os_str().is_empty()).collect();
    path.push("plugins".into());
    for root in installation() {
        let dir = root.join("plugins");
        // Shown to people, so without the program's own directory in it.
        path.push(std::fs::canonicalize(&dir).unwrap_or(dir));
    }
    path.extend(users_plugins());
    path
}

/// The user's own plugins, such as `~/.local/share/plastic-host/plugins`.
fn users_plugins() -> Option<PathBuf> {
    let strategy = etcetera::base_strategy::choose_native_strategy().ok()?;
    Some(strategy.data_dir().join("plastic-host").join("plugins"))
}

/// A plugin by path, or by a name on the plugin path (`energy` for `plugins/energy.wasm`). With a
/// loader, components that it lets in are also asked what they call themselves.
///
/// # Errors
/// When there is no such file; the message says where it was looked for and what looks alike.
pub fn plugin(name: &Path, loader: Option<&Loader>) -> anyhow::Result<PathBuf> {
    let is_path = name.is_absolute() || name.components().nth(1).is_some();
    // Whoever reads the file says what is wrong with a directory.
    if name.is_file() || (is_path && name.is_dir()) {
        return Ok(name.to_owned());
    }
    if is_path
        && name.is_relative()
        && let Some(found) = name.to_str().and_then(shipped)
    {
        return Ok(found);
    }
    let loader = loader.map(|l| l.clone().without_advice());
    let mut own_name = |path: &Path| own_name(path, loader.as_ref()?);
    Ok(Catalog::scan(&plugin_path()).find(name, &mut own_name)?)
}

/// A plugin by its name on the plugin path alone.
///
/// # Errors
/// As [`plugin`].
pub fn on_path(name: &Path) -> anyhow::Result<PathBuf> {
    Ok(Catalog::scan(&plugin_path()).find(name, &mut |_| None)?)
}

fn own_name(path: &Path, loader: &Loader) -> Option<String> {
    if Carrier::of(path) != Some(Carrier::Wasm) {
        return None;
    }
    let artifact = Artifact::read(path, loader.limits()).ok()?;
    Some(describe(&artifact, loader).ok()?.name)
}

/// Asks the plugin in a file what it is.
///
/// # Errors
/// As [`Loader::policy`].
pub fn describe(artifact: &Artifact, loader: &Loader) -> Result<Info, Fault> {
    Ok(match artifact.kind {
        Kind::Policy => loader.policy(&artifact.path)?.info().clone(),
        Kind::Evaluator => loader.evaluator(&artifact.path)?.info().clone(),
    })
}

/// A text by path, from a data set of the hub (`org/name[@revision][:file]`), or the shipped default.
///
/// # Errors
/// When there is no such file, or the hub's cannot be had.
pub fn text(named: &Path, default: &str, option: &str, purpose: Purpose, g: &Global) -> anyhow::Result<PathBuf> {
    if named.as_os_str().is_empty() {
        return shipped(default)
            .ok_or_else(|| anyhow::anyhow!("{default} is not here; name a .jsonl or .txt file with {option}"));
    }
    if named.is_file() {
        return Ok(named.to_owned());
    }
    match named.to_str().and_then(TextSpec::parse).filter(|_| !named.exists()) {
        Some(spec) => of_the_hub(&spec, option, purpose, g),
        None if named.exists() => {
            anyhow::bail!("{}: is no regular file; name a .jsonl or .txt file with {option}", named.display())
        }
        None => anyhow::bail!("{}: no such file; name a .jsonl or .txt file with {option}", named.display()),
    }
}

/// A text of the hub, with a note on what was taken.
fn of_the_hub(spec: &TextSpec, option: &str, purpose: Purpose, g: &Global) -> anyhow::Result<PathBuf> {
    let text = dataset::resolve(spec, purpose, &mut Progress::new(g))
        .with_context(|| format!("{option} {spec}: no such file here, so it is a data set of the hub"))?;
    if !g.quiet && !g.json && (text.fetched || spec.file.is_none()) {
        let size = DecimalBytes(text.bytes);
        let other = if spec.file.is_some() { "" } else { "; :FILE behind the name takes another one" };
        note!("note: {option} {}: {} ({size}){other}", spec.repo, text.file);
    }
    Ok(text.path)
}
