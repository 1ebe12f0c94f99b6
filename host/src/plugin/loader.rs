//! The one door through which plugins come in: by path, under the operator's rules.

use super::lock::{LOCK_FILE, Lock, LockError, Standing};
use super::native::{self, isolate::Isolation};
use super::signature::{self, Key, State};
use super::{Artifact, Carrier, Evaluator, Fault, FaultClass, Limits, Policy, Rules, wasm};
use std::path::{Path, PathBuf};

/// Loads plugins under one set of rules.
#[derive(Clone, Debug)]
pub struct Loader {
    rules: Rules,
    limits: Limits,
    cache: Option<PathBuf>,
    advises: bool,
    compiler: Option<PathBuf>,
}

impl Loader {
    /// Compiled code is kept under `cache`, where one is given.
    pub fn new(rules: Rules, cache: Option<PathBuf>) -> Loader {
        let limits = rules.limits();
        Loader { rules, limits, cache, advises: true, compiler: None }
    }

    /// The same without the warning about plugins that are not as `./plastic.lock` has them, for
    /// those who look at plugins and do not use them.
    pub fn without_advice(mut self) -> Loader {
        self.advises = false;
        self
    }

    /// Compiles in a process of this program, which must be plastic-host, under the limits of
    /// compiling; isolated libraries run in one too.
    #[must_use]
    pub fn compiled_by(self, program: PathBuf) -> Loader {
        Loader { compiler: Some(program), ..self }
    }

    /// The rules in force.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Loads a rank policy.
    ///
    /// # Errors
    /// As [`Artifact::read`], [`Loader::admit`] and [`wasm::load_policy`](super::load_policy).
    pub fn policy(&self, path: &Path) -> Result<Box<dyn Policy>, Fault> {
        let artifact = Artifact::read(path, &self.limits)?;
        self.admit(path, &artifact.sha256)?;
        match artifact.carrier {
            Carrier::Wasm => wasm::policy(&artifact, &self.workshop()),
            Carrier::Native => native::policy(&artifact, &self.limits, self.isolation(path)?.as_ref()),
        }
    }

    /// Loads an evaluator.
    ///
    /// # Errors
    /// As [`Loader::policy`].
    pub fn evaluator(&self, path: &Path) -> Result<Box<dyn Evaluator>, Fault> {
        let artifact = Artifact::read(path, &self.limits)?;
        self.admit(path, &artifact.sha256)?;
        match artifact.carrier {
            Carrier::Wasm => wasm::evaluator(&artifact, &self.workshop()),
            Carrier::Native => native::evaluator(&artifact, &self.limits, self.isolation(path)?.as_ref()),
        }
    }

    /// Whether a native library may be loaded, and whether into a process of its own.
    fn isolation(&self, path: &Path) -> Result<Option<Isolation>, Fault> {
        let fault = |message: String| Fault { plugin: path.display().to_string(), class: FaultClass::Load, message };
        if !self.rules.allow_native {
            return Err(fault(
                "is a native library, which runs with all your rights; load it with --allow-native if you trust it"
                    .into(),
            ));
        }
        if !self.rules.isolate {
            return Ok(None);
        }
        match &self.compiler {
            Some(program) => Ok(Some(Isolation::by(program))),
            None => Isolation::by_this_program().map(Some).map_err(|e| fault(format!("cannot be isolated: {e}"))),
        }
    }

    fn workshop(&self) -> wasm::Workshop<'_> {
        wasm::Workshop { limits: &self.limits, cache: self.cache.as_deref(), compiler: self.compiler.as_deref() }
    }

    /// Checks content against the lock and the trusted keys. To be called for every plugin of every
    /// carrier, with the digest of the very bytes that are used, before they are compiled or loaded.
    ///
    /// # Errors
    /// [`FaultClass::Untrusted`]: the lock is missing or damaged, does not hold the plugin or holds
    /// another of its name; no trusted key signed it, or a key in the rules is none.
    pub fn admit(&self, path: &Path, sha256: &str) -> Result<(), Fault> {
        let untrusted = |message| Fault { plugin: path.display().to_string(), class: FaultClass::Untrusted, message };
        match &self.rules.locked {
            Some(lock) => Lock::read(lock)
                .map_err(|e| e.to_string())
                .and_then(|content| locked(&content, lock, path, sha256))
                .map_err(untrusted)?,
            None if self.advises => advise(path, sha256),
            None => {}
        }
        if self.rules.trust.is_empty() {
            return Ok(());
        }
        let keys: Result<Vec<Key>, _> = self.rules.trust.iter().map(|text| Key::parse(text)).collect();
        let keys = keys.map_err(|e| untrusted(format!("a trusted key of the rules {e}")))?;
        signed(&keys, path, sha256, self.limits.file_bytes).map_err(untrusted)
    }
}

/// A sentence unless the lock holds the plugin.
fn locked(content: &Lock, lock: &Path, path: &Path, sha256: &str) -> Result<(), String> {
    let mut update = format!("`plastic-host plugin lock {}", path.display());
    if std::path::absolute(LOCK_FILE).is_ok_and(|usual| usual != lock) && lock != Path::new(LOCK_FILE) {
        update += &format!(" --lock {}", lock.display());
    }
    match content.judge(path, sha256) {
        Standing::Locked(_) => Ok(()),
        Standing::Changed(e) => Err(format!(
            "its SHA-256 is {sha256}, {} has {} for {} {}; put that file back, or accept this one with {update}`",
            lock.display(),
            e.sha256,
            e.name,
            e.version
        )),
        Standing::Absent => {
            Err(format!("it is not in {} (its SHA-256 is {sha256}); put it in with {update}`", lock.display()))
        }
    }
}

/// Warns where `./plastic.lock` has another plugin of this name.
fn advise(path: &Path, sha256: &str) {
    let lock = Path::new(LOCK_FILE);
    match Lock::read(lock) {
        Ok(content) if matches!(content.judge(path, sha256), Standing::Changed(_)) => {
            let why = locked(&content, lock, path, sha256).err().unwrap_or_default();
            tracing::warn!("{}: not the plugin of the lock: {why}; --locked refuses it", path.display());
        }
        Ok(_) | Err(LockError::Missing { .. }) => {}
        Err(e) => tracing::warn!("{e}; plugins are not compared with it"),
    }
}

/// A sentence unless one of the keys signed the content.
fn signed(keys: &[Key], path: &Path, sha256: &str, most: u64) -> Result<(), String> {
    let trusted = keys.iter().map(Key::id).collect::<Vec<_>>().join(", ");
    let file = signature::signature_path(path);
    match signature::check_file(path, sha256, most, keys) {
        State::Signed { .. } => Ok(()),
        State::Unsigned => Err(format!(
            "it is not signed ({} is not there), and a signature of {trusted} is asked for (--trust, --signed); get its signature, or sign it with `plastic-host plugin sign {}`",
            file.display(),
            path.display()
        )),
        State::Unknown { key } => Err(format!(
            "it is signed by the key {key}, which is not trusted; trusted are {trusted}. If you trust its owner, name the public key with --trust"
        )),
        State::Bad { why } => {
            Err(format!("{}: {why}; fetch plugin and signature again from those who made them", file.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::plugin::lock::Entry;

    fn digest(c: char) -> String {
        c.to_string().repeat(64)
    }

    #[test]
    fn a_lock_admits_its_content_only() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("our.lock");
        let loader = Loader::new(Rules { locked: Some(lock.clone()), ..Rules::default() }, None);
        let admit = |path: &str, c| loader.admit(Path::new(path), &digest(c)).map_err(|f| f.to_string());
        assert!(admit("a.wasm", 'a').unwrap_err().contains("there is no such lock"));
        let mut content = Lock::default();
        content.put(Entry {
            name: "a".into(),
            version: "1.2.3".into(),
            kind: None,
            sha256: digest('a'),
            file: "a.wasm".into(),
        });
        content.write(&lock).unwrap();
        assert_eq!(admit("x/a.wasm", 'a'), Ok(()));
        let changed = admit("x/a.wasm", 'b').unwrap_err();
        for part in ["x/a.wasm: is not trusted", &digest('a'), &digest('b'), "a 1.2.3", "plugin lock x/a.wasm --lock"] {
            assert!(changed.contains(part), "{part} in {changed}");
        }
        assert!(admit("c.wasm", 'c').unwrap_err().contains("is not in"));
        std::fs::write(&lock, "version = 7").unwrap();
        assert!(admit("x/a.wasm", 'a').unwrap_err().contains("is no lock"), "a damaged lock admits nothing");
    }

    #[test]
    fn a_key_of_the_rules_that_is_none_admits_nothing() {
        let loader = Loader::new(Rules { trust: vec!["nonsense".into()], ..Rules::default() }, None);
        let fault = loader.admit(Path::new("a.wasm"), &digest('a')).unwrap_err();
        assert_eq!(fault.class, FaultClass::Untrusted);
        assert!(fault.message.contains("no minisign public key"), "{fault}");
    }
}
