//! Compiled plugins on disk, so that a warm start does not compile.
//!
//! An entry is native code that will run with the host's rights, so only what this host wrote
//! itself is loaded: the directory belongs to this user and nobody else can enter it, and the digest
//! recorded beside the entry must match. Whatever is wrong with an entry, the plugin is compiled
//! again; a directory that cannot be used costs time, never a run.

use super::component::Artifact;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Most that is read of one entry.
const MAX_CODE: u64 = 1 << 30;

/// The entry of one plugin and one engine.
pub(super) struct Entry {
    dir: PathBuf,
    name: String,
}

impl Entry {
    /// Names the entry: content of the plugin, settings of the engine, version of the host (which
    /// wraps core modules before it compiles them).
    pub(super) fn of(cache_dir: &Path, artifact: &Artifact, engine: &Engine) -> Entry {
        let mut settings = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut settings);
        env!("CARGO_PKG_VERSION").hash(&mut settings);
        let name = format!("{}-{:016x}", artifact.sha256, settings.finish());
        Entry { dir: cache_dir.join("plugins"), name }
    }

    fn code(&self) -> PathBuf {
        self.dir.join(format!("{}.cwasm", self.name))
    }

    fn digest(&self) -> PathBuf {
        self.dir.join(format!("{}.cwasm.blake3", self.name))
    }

    /// The compiled plugin, where a sound entry is there.
    #[allow(unsafe_code, reason = "loading compiled code; the checks are in this function")]
    pub(super) fn load(&self, engine: &Engine) -> Option<Component> {
        if !self.code().exists() || !is_private(&self.dir) {
            return None;
        }
        let code = crate::atomic::read_bounded(&self.code(), MAX_CODE).ok()?;
        let recorded = String::from_utf8(crate::atomic::read_bounded(&self.digest(), 1 << 10).ok()?).ok()?;
        // Python plugins compile to tens of megabytes: this digest is the fast one.
        if recorded.trim() != blake3::hash(&code).to_hex().as_str() {
            tracing::warn!(target: "plugin", "{} does not match its digest; compiling the plugin again", self.code().display());
            return None;
        }
        drop(code);
        // SAFETY: the file lies in a directory that only this user can write, and matched the digest that
        // `save` recorded. It is mapped, not copied; files there are replaced by renaming, never changed
        // in place, so a mapped one stays what it is. wasmtime itself refuses entries of another version,
        // target or configuration.
        match unsafe { Component::deserialize_file(engine, self.code()) } {
            Ok(component) => Some(component),
            Err(e) => {
                tracing::debug!(target: "plugin", "{}: {e}; compiling the plugin again", self.code().display());
                None
            }
        }
    }

    /// Keeps a compiled plugin for the next start.
    pub(super) fn save(&self, code: &[u8]) {
        if let Err(e) = self.try_save(code) {
            tracing::debug!(target: "plugin", "compiled plugins cannot be kept in {}: {e}", self.dir.display());
        }
    }

    fn try_save(&self, code: &[u8]) -> std::io::Result<()> {
        make_private(&self.dir)?;
        // The digest goes first: a reader that meets the old code beside it compiles again.
        put(&self.dir, &self.digest(), blake3::hash(code).to_hex().as_bytes())?;
        put(&self.dir, &self.code(), code)
    }
}

/// Writes a file in one piece.
fn put(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

fn make_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    if !is_private(dir) {
        // Only the owner may do this: somebody else's directory stays unused. What lay in it while it was
        // open may be anybody's.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(dir)? {
            fs::remove_file(entry?.path())?;
        }
    }
    match is_private(dir) {
        true => Ok(()),
        false => Err(std::io::Error::other("the directory belongs to another user")),
    }
}

/// Whether the directory is this user's and closed to everybody else.
fn is_private(dir: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    // Not through a link: the directory itself.
    let Ok(meta) = fs::symlink_metadata(dir) else { return false };
    meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0
}
