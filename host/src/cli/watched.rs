//! Looks at the files of a run's plugins between steps and loads those that changed.

use super::session::{options_for, plugin_record};
use crate::model::hash;
use crate::plastic::config::{Choice, RunConfig};
use crate::plastic::journal::{PluginRecord, Role};
use crate::plastic::step::{Changed, Fresh, Watch};
use crate::plugin::Loader;
use std::path::Path;
use std::time::SystemTime;

/// Most that is read of a plugin's file here; its loader has a limit of its own.
const MAX_BYTES: u64 = 1 << 30;

/// The plugins of a run.
pub struct Watched {
    loader: Loader,
    files: Vec<File>,
}

/// One plugin file as it was last seen.
struct File {
    role: Role,
    place: usize,
    choice: Choice,
    stamp: Option<(SystemTime, u64)>,
    sha256: Option<String>,
}

impl Watched {
    /// Remembers the files as they are now.
    pub fn new(config: &RunConfig, loader: Loader) -> Watched {
        let roles = [
            (Role::Policy, &config.policy),
            (Role::Shadow, &config.shadow),
            (Role::Fallback, &config.fallback),
            (Role::Evaluator, &config.evaluator),
        ];
        let of = |(role, choices): (Role, &Vec<Choice>)| -> Vec<File> {
            let file = |(place, choice): (usize, &Choice)| {
                let (stamp, sha256) = (stamp(&choice.file), content(&choice.file));
                File { role, place, choice: choice.clone(), stamp, sha256 }
            };
            choices.iter().enumerate().map(file).collect()
        };
        Watched { loader, files: roles.into_iter().flat_map(of).collect() }
    }
}

impl Watch for Watched {
    fn look(&mut self) -> Vec<Changed> {
        let mut out = Vec::new();
        for file in &mut self.files {
            let stamp = stamp(&file.choice.file);
            if stamp == file.stamp {
                continue;
            }
            file.stamp = stamp;
            let sha256 = content(&file.choice.file);
            if sha256 == file.sha256 {
                continue;
            }
            if sha256.is_none() {
                let why = format!("{} is gone, or is no regular file", file.choice.file.display());
                out.push(Changed { role: file.role, place: file.place, fresh: Err(why) });
                file.sha256 = None;
                continue;
            }
            file.sha256 = sha256;
            let fresh = load(&self.loader, file.role, &file.choice).map_err(|e| format!("{e:#}"));
            out.push(Changed { role: file.role, place: file.place, fresh });
        }
        out
    }
}

fn load(loader: &Loader, role: Role, choice: &Choice) -> anyhow::Result<(Fresh, PluginRecord)> {
    if role == Role::Evaluator {
        let mut e = loader.evaluator(&choice.file)?;
        e.configure(&options_for(e.info(), &choice.options)?)?;
        let record = plugin_record(e.origin(), e.info(), &choice.options);
        return Ok((Fresh::Evaluator(e), record));
    }
    let mut p = loader.policy(&choice.file)?;
    p.configure(&options_for(p.info(), &choice.options)?)?;
    let record = plugin_record(p.origin(), p.info(), &choice.options);
    Ok((Fresh::Policy(p), record))
}

fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let meta = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file)?;
    Some((meta.modified().ok()?, meta.len()))
}

fn content(file: &Path) -> Option<String> {
    crate::atomic::read_bounded(file, MAX_BYTES).ok().map(|bytes| hash::sha256(&bytes))
}
