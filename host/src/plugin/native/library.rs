//! Loading a library: a private copy of exactly the bytes that were hashed, everything resolved at
//! once, nothing shared with other libraries, never unloaded.
//!
//! The copy keeps the file from being swapped between hashing and loading, and lets a changed file
//! be loaded again under its old name. It is deleted as soon as it is mapped. Never unloaded, because
//! threads and thread-local destructors of the library may outlive every instance; the same bytes
//! are loaded once.
#![allow(unsafe_code, reason = "loading native code is what this file is for")]

use super::super::FaultClass;
use super::super::component::Artifact;
use super::{Failure, abi, file};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::collections::HashMap;
use std::ffi::c_void;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The entry of a library that stays loaded.
#[derive(Clone, Copy)]
pub struct Loaded(abi::Entry);

impl Loaded {
    /// The plugin's table; null where it refuses this host.
    pub fn table(self) -> *const c_void {
        // SAFETY: a function of a library that stays loaded; it takes a number.
        self.0.get.map_or(std::ptr::null(), |get| unsafe { get(abi::MINOR) })
    }
}

/// A directory only this user can enter, with the library in it.
pub struct Copy {
    dir: tempfile::TempDir,
    name: &'static str,
}

impl Copy {
    /// Writes the bytes that were hashed.
    ///
    /// # Errors
    /// [`FaultClass::Load`] with the directory and what the system says.
    pub fn of(artifact: &Artifact) -> Result<Copy, Failure> {
        let only_me = std::fs::Permissions::from_mode(0o700);
        let name = if cfg!(target_os = "macos") { "plugin.dylib" } else { "plugin.so" };
        let made = tempfile::Builder::new().prefix("plastic-plugin-").permissions(only_me).tempdir();
        let copy = made.and_then(|dir| {
            std::fs::write(dir.path().join(name), artifact.bytes())?;
            Ok(Copy { dir, name })
        });
        copy.map_err(|e| {
            let dir = std::env::temp_dir();
            let why =
                format!("cannot be copied into {} to be loaded ({e}); set TMPDIR to another directory", dir.display());
            Failure::plain(FaultClass::Load, why)
        })
    }

    /// Where the library lies while this lives.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(self.name)
    }
}

/// Loads a library, or finds it loaded.
///
/// # Errors
/// [`FaultClass::Load`] or [`FaultClass::Version`], one sentence.
pub fn open(artifact: &Artifact) -> Result<Loaded, Failure> {
    static LOADED: Mutex<Option<HashMap<String, Loaded>>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(|e| e.into_inner());
    let loaded = loaded.get_or_insert_default();
    if let Some(entry) = loaded.get(&artifact.sha256) {
        return Ok(*entry);
    }
    let entry = open_file(&Copy::of(artifact)?.path())?;
    loaded.insert(artifact.sha256.clone(), entry);
    Ok(entry)
}

/// Loads the file itself.
///
/// # Errors
/// As [`open`].
pub fn open_file(path: &Path) -> Result<Loaded, Failure> {
    let load = |message: String| Failure::plain(FaultClass::Load, message);
    // SAFETY: the library's constructors run here; whoever allows native plugins trusts them.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|e| {
        let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
        load(format!("is not loaded by the system: {}", why.replace(&format!("{}: ", path.display()), "")))
    })?;
    // SAFETY: the symbol is data of type plastic_entry by the contract; only its numbers, which
    // every version has, are read before they are checked.
    let entry = unsafe { library.get::<*const abi::Entry>(abi::ENTRY.as_bytes()) }.map(|symbol| *symbol);
    // Stays loaded for as long as the process lives.
    std::mem::forget(library);
    let entry = entry.map_err(|_| load(format!("does not export `{}`", abi::ENTRY)))?;
    if entry.is_null() || !entry.is_aligned() {
        return Err(load(format!("exports `{}` at no usable address", abi::ENTRY)));
    }
    // SAFETY: not null, aligned; the library stays loaded.
    let [magic, major, size, min_minor, minor, kind] = unsafe { entry.cast::<[u32; 6]>().read() };
    file::check(magic, major, size, min_minor, minor, kind)?;
    // SAFETY: magic, version and size say that it is an entry.
    let entry = unsafe { entry.read() };
    match entry.get {
        Some(_) => Ok(Loaded(entry)),
        None => Err(load(format!("has no function `get` in `{}`", abi::ENTRY))),
    }
}
