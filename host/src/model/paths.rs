//! Where this program keeps what it fetches and derives.
//!
//! Everything lies under one directory, `$PLASTIC_CACHE` or the platform's user cache directory:
//! `models/<id>/` holds checkpoints in MLX layout, `hashes/` remembers file hashes. Nothing here is
//! precious: all of it can be deleted and is fetched or computed again.
//! Fails only where neither `PLASTIC_CACHE` nor a home directory is known.

use etcetera::BaseStrategy;
use std::path::PathBuf;

/// The environment variable that moves the cache.
pub const CACHE_ENV: &str = "PLASTIC_CACHE";

/// The cache directory: `$PLASTIC_CACHE`, else `plastic-host` under the platform's user cache
/// directory (`~/.cache` on Linux, `~/Library/Caches` on macOS). It need not exist yet.
/// `None` where no home directory is known.
pub fn cache_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(CACHE_ENV).filter(|d| !d.is_empty()) {
        return std::path::absolute(dir).ok();
    }
    etcetera::base_strategy::choose_native_strategy().ok().map(|s| s.cache_dir().join("plastic-host"))
}

/// The directory that holds one directory per cached model.
pub fn models_dir() -> Option<PathBuf> {
    cache_dir().map(|d| d.join("models"))
}

/// True for names that are one ordinary path component on every platform: letters, digits, `.`, `_`, `-`,
/// not beginning with a dot or dash, at most 128 bytes.
pub fn is_plain_name(name: &str) -> bool {
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 128 && !name.starts_with(['.', '-']) && name.chars().all(ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_cannot_leave_their_directory() {
        for good in ["smollm2-135m", "Qwen3_0.6B", "a"] {
            assert!(is_plain_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "-flag", "a/b", "a\\b", "a b", "é", "a:b", &"x".repeat(129)] {
            assert!(!is_plain_name(bad), "{bad}");
        }
    }
}
