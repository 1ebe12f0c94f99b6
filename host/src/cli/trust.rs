//! The options about which plugins are let in: the lock and the trusted keys.

use crate::plugin::Rules;
use crate::plugin::lock::LOCK_FILE;
use crate::plugin::signature::Key;
use anyhow::{Context, bail};
use etcetera::BaseStrategy;
use std::path::{Path, PathBuf};

/// What is let in.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Plugins")]
pub struct TrustArgs {
    /// Load only plugins that ./plastic.lock holds, by content
    #[arg(long)]
    pub locked: bool,
    /// The same with another lock than ./plastic.lock
    #[arg(long, value_name = "FILE")]
    pub lock: Option<PathBuf>,
    /// Load only plugins that were signed with one of your trusted keys (docs/trust.md says where they lie)
    #[arg(long)]
    pub signed: bool,
    /// The same, with this public key trusted too: a .pub file of minisign, or the key itself; may be repeated
    #[arg(long, value_name = "KEY")]
    pub trust: Vec<String>,
}

impl TrustArgs {
    /// These over `rules`.
    ///
    /// # Errors
    /// A key that cannot be read, or none where signatures are asked for.
    pub fn over(&self, rules: &mut Rules) -> anyhow::Result<()> {
        if self.locked || self.lock.is_some() {
            rules.locked = Some(self.lock.clone().unwrap_or_else(|| LOCK_FILE.into()));
        }
        if let Some(lock) = &mut rules.locked {
            // A run goes on under its rules from any directory.
            *lock = std::path::absolute(&*lock).with_context(|| format!("the lock {}", lock.display()))?;
        }
        if self.signed || !self.trust.is_empty() {
            for key in self.keys()? {
                if !rules.trust.iter().any(|k| k == key.base64()) {
                    rules.trust.push(key.base64().to_owned());
                }
            }
            if rules.trust.is_empty() {
                bail!("--signed: {}", no_keys());
            }
        }
        Ok(())
    }

    /// The keys named here and the user's trusted ones.
    ///
    /// # Errors
    /// A key that cannot be read.
    pub fn keys(&self) -> anyhow::Result<Vec<Key>> {
        let mut keys = Vec::new();
        for text in &self.trust {
            keys.push(key(text).with_context(|| "--trust".to_owned())?);
        }
        keys.extend(users_keys()?);
        Ok(keys)
    }

    /// The same for those who only show what is signed: a key that cannot be read is a warning.
    pub fn known_keys(&self) -> Vec<Key> {
        self.keys().unwrap_or_else(|e| {
            tracing::warn!("{e:#}; no signature is checked");
            Vec::new()
        })
    }
}

/// A key by its file, or the key itself.
///
/// # Errors
/// Where it is neither.
pub fn key(text: &str) -> anyhow::Result<Key> {
    let path = Path::new(text);
    if path.exists() {
        return Ok(Key::read(path)?);
    }
    Key::parse(text).map_err(|e| anyhow::anyhow!("{text:?} is no file and {e}"))
}

/// The folder of the keys this user trusts; none where no home directory is known.
pub fn users_folder() -> Option<PathBuf> {
    let strategy = etcetera::base_strategy::choose_native_strategy().ok()?;
    Some(strategy.config_dir().join("plastic-host").join("trusted_keys"))
}

/// What to do where there is no key to check with.
pub fn no_keys() -> String {
    let folder = users_folder().map_or_else(String::new, |f| format!(", or put .pub files into {}", f.display()));
    format!("there is no trusted key; name one{folder}")
}

/// The keys this user trusts.
///
/// # Errors
/// Where the folder or a `.pub` file in it cannot be read: a trusted key must not vanish in silence.
pub fn users_keys() -> anyhow::Result<Vec<Key>> {
    let Some(folder) = users_folder() else { return Ok(Vec::new()) };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| folder.display().to_string()),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        if path.extension().is_some_and(|e| e == "pub") {
            files.push(path);
        }
    }
    files.sort();
    files.iter().map(|f| Ok(Key::read(f)?)).collect()
}
