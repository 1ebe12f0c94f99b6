//! Reading and writing files so that neither end is surprised.
//!
//! Reading: regular files only, of bounded size; a pipe would hang and a device would never end.
//!
//! Writing so that a reader sees the old file or directory or the new one, never half of one.
//!
//! Files and directories are written under a temporary name beside their place, synced and renamed.
//! A file lock keeps two processes from making the same thing twice. Every failure names the path,
//! what was being done to it and, where there is one, the remedy (a full disk, a read-only directory).

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A file operation failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}: {source}{}", .path.display(), remedy(.source))]
pub struct FileError {
    /// What was being done, as a verb phrase ("writing").
    pub doing: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The operating system's answer.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: an error in doing something to a path.
    pub fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
        let path = path.to_owned();
        move |source| FileError { doing, path, source }
    }
}

/// What to do about an I/O error, as the end of a sentence; empty where nothing general helps.
fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, or name another disk (--out for a run, --packs for packs, PLASTIC_CACHE for models), and run the command again"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; make it accessible, or name another place (--out for a run, --packs for packs, PLASTIC_CACHE for models)"
        }
        _ => "",
    }
}

/// Opens a regular file.
///
/// # Errors
/// What the system says, or that it is a directory, a pipe or a device.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // Asked before opening: opening a pipe waits for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

/// Reads a regular file of at most `most` bytes.
///
/// # Errors
/// As [`open_regular`], or that it is larger.
pub fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {} MiB", most >> 20)));
    }
    Ok(bytes)
}

/// Writes a whole file: temporary file in the same directory, synced, renamed.
///
/// # Errors
/// Where the directory cannot be written or the disk is full; the old file is then untouched. Where the
/// path names something that is no regular file, such as a device: it stays what it is.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    // Through a link to what it points at; a link to nothing becomes a file.
    let linked = fs::canonicalize(path);
    let path = linked.as_deref().unwrap_or(path);
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it is there and is no regular file; name another one");
        return Err(FileError::at("writing", path)(error));
    }
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut tmp =
        shared(&mut tempfile::Builder::new()).tempfile_in(dir).map_err(FileError::at("creating a file in", dir))?;
    tmp.write_all(bytes).map_err(FileError::at("writing", path))?;
    tmp.as_file().sync_all().map_err(FileError::at("syncing", path))?;
    tmp.persist(path).map_err(|e| FileError::at("renaming a file to", path)(e.error))?;
    sync_dir(dir)
}

/// Temporary files are private by default; what becomes a file of the user's gets the rights of any new file.
pub fn shared<'a, 'b, 'c>(builder: &'c mut tempfile::Builder<'a, 'b>) -> &'c mut tempfile::Builder<'a, 'b> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder
}

/// Makes a rename in `dir` survive a power cut. A no-op where directories cannot be opened.
pub fn sync_dir(dir: &Path) -> Result<(), FileError> {
    if cfg!(unix) {
        File::open(dir).and_then(|d| d.sync_all()).map_err(FileError::at("syncing", dir))?;
    }
    Ok(())
}

/// A directory being made: complete or absent. Dropped without [`Staged::commit`], it is removed.
#[derive(Debug)]
pub struct Staged {
    dir: tempfile::TempDir,
    target: PathBuf,
}

impl Staged {
    /// Begins to make `target`, whose parent is created if need be. What a killed process left of an
    /// earlier attempt is removed: hold the [`Lock`] of `target`.
    ///
    /// # Errors
    /// Where the parent cannot be created or written.
    pub fn new(target: &Path) -> Result<Staged, FileError> {
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(FileError::at("creating", parent))?;
        let prefix = staging_prefix(target);
        for old in fs::read_dir(parent).into_iter().flatten().flatten() {
            if old.file_name().to_string_lossy().starts_with(&prefix) {
                // Best effort: a leftover is only wasted space.
                let _ = fs::remove_dir_all(old.path());
            }
        }
        let dir = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(parent)
            .map_err(FileError::at("creating a directory in", parent))?;
        Ok(Staged { dir, target: target.to_owned() })
    }

    /// The temporary directory to write into.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Syncs every file in the (flat) directory and renames it to its place, replacing what was there.
    ///
    /// # Errors
    /// Where a file cannot be synced or the directory not renamed; what was there before then stays.
    pub fn commit(self) -> Result<(), FileError> {
        for entry in fs::read_dir(self.dir.path()).map_err(FileError::at("reading", self.dir.path()))? {
            let path = entry.map_err(FileError::at("reading", self.dir.path()))?.path();
            File::open(&path).and_then(|f| f.sync_all()).map_err(FileError::at("syncing", &path))?;
        }
        sync_dir(self.dir.path())?;
        // Temporary directories are private to the user; a model may be shared like any file.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let _ = fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755));
        }
        let parent = self.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let old = self.target.with_file_name(format!("{}replaced", staging_prefix(&self.target)));
        let replacing = self.target.symlink_metadata().is_ok();
        if replacing {
            fs::rename(&self.target, &old).map_err(FileError::at("replacing", &self.target))?;
        }
        if let Err(e) = fs::rename(self.dir.path(), &self.target) {
            if replacing {
                let _ = fs::rename(&old, &self.target);
            }
            return Err(FileError::at("renaming a directory to", &self.target)(e));
        }
        let _ = self.dir.keep();
        if replacing {
            let _ = fs::remove_dir_all(&old);
        }
        sync_dir(parent)
    }
}

/// The name under which a directory is made: hidden, and one per target.
fn staging_prefix(target: &Path) -> String {
    format!(".{}.partial-", target.file_name().unwrap_or_default().to_string_lossy())
}

/// An exclusive lock between processes, held until dropped (or until the process dies).
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "holds the lock while open")] File);

impl Lock {
    /// Locks `path`, creating it and its directory; calls `waiting` once before it blocks.
    ///
    /// # Errors
    /// Where the file cannot be created or the file system has no locks.
    pub fn exclusive(path: &Path, waiting: impl FnOnce()) -> Result<Lock, FileError> {
        let file = Lock::open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(FileError::at("waiting for the lock", path))?;
            }
            Err(TryLockError::Error(e)) => return Err(FileError::at("locking", path)(e)),
        }
        Ok(Lock(file))
    }

    /// [`Lock::of_directory`] without waiting; `None` where another process holds it.
    ///
    /// # Errors
    /// Where the file cannot be created or the file system has no locks.
    pub fn try_of_directory(target: &Path) -> Result<Option<Lock>, FileError> {
        let path = Lock::beside(target);
        let file = Lock::open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(FileError::at("locking", &path)(e)),
        }
    }

    fn beside(target: &Path) -> PathBuf {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        target.with_file_name(format!(".{name}.lock"))
    }

    fn open(path: &Path) -> Result<File, FileError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(FileError::at("creating", parent))?;
        }
        let options = File::options().read(true).append(true).create(true).open(path);
        options.map_err(FileError::at("creating the lock", path))
    }

    /// The lock that guards the making of a directory: a hidden file beside it.
    ///
    /// # Errors
    /// As [`Lock::exclusive`].
    pub fn of_directory(target: &Path, waiting: impl FnOnce()) -> Result<Lock, FileError> {
        Lock::exclusive(&Lock::beside(target), waiting)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    #[cfg(unix)]
    fn links_are_followed_and_devices_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_file(&link, b"new").unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        for special in [Path::new("/dev/null"), dir.path()] {
            assert!(write_file(special, b"x").unwrap_err().to_string().contains("no regular file"));
        }
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_directory_appears_only_on_commit_and_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m");
        let staged = Staged::new(&target).unwrap();
        fs::write(staged.path().join("x"), "1").unwrap();
        assert!(!target.exists());
        drop(staged);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "given up without a trace");
        for text in ["1", "2"] {
            let staged = Staged::new(&target).unwrap();
            fs::write(staged.path().join("x"), text).unwrap();
            staged.commit().unwrap();
            assert_eq!(fs::read_to_string(target.join("x")).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(".m.partial-abc");
        fs::create_dir(&left).unwrap();
        let other = dir.path().join(".m2.partial-abc");
        fs::create_dir(&other).unwrap();
        drop(Staged::new(&dir.path().join("m")).unwrap());
        assert!(!left.exists());
        assert!(other.exists(), "another model's");
    }

    #[test]
    fn only_files_of_a_sane_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        fs::write(&file, vec![1; 100]).unwrap();
        assert_eq!(read_bounded(&file, 100).unwrap().len(), 100);
        assert!(read_bounded(&file, 99).unwrap_err().to_string().contains("larger than"));
        assert!(read_bounded(dir.path(), 99).unwrap_err().to_string().contains("not a regular file"));
    }

    #[test]
    fn a_lock_excludes_a_second_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m");
        let first = Lock::of_directory(&target, || panic!("nobody holds it")).unwrap();
        let (tx, rx) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _second = Lock::of_directory(&target, || tx.send("waiting").unwrap()).unwrap();
        });
        assert_eq!(rx.recv().unwrap(), "waiting");
        drop(first);
        thread.join().unwrap();
    }

    #[test]
    fn a_full_disk_names_the_remedy() {
        let e = FileError::at("writing", Path::new("x"))(io::ErrorKind::StorageFull.into());
        assert!(e.to_string().contains("PLASTIC_CACHE"), "{e}");
    }
}
