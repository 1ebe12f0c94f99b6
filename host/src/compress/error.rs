//! What can go wrong with compression. Messages name the file or the slice, and the remedy.

use crate::atomic::FileError;
use crate::mlx::MlxError;
use crate::plastic::elastic::ElasticError;
use crate::plugin::Fault;
use std::path::{Path, PathBuf};

/// A base cannot be compressed, or an elastic checkpoint not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        reason: String,
    },
    /// A slice cannot be treated as asked.
    #[error("{slice}: {reason}")]
    Slice {
        /// The slice.
        slice: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The plan of a policy breaks a rule.
    #[error("{policy}: {reason}")]
    Plan {
        /// The policy.
        policy: String,
        /// The rule.
        reason: String,
    },
    /// A value that cannot be used.
    #[error("{0}")]
    Usage(String),
    /// Ctrl-C; everything done so far is kept.
    #[error("interrupted; go on with the same command and --resume, or delete {}", .0.display())]
    Interrupted(PathBuf),
    /// Ctrl-C; nothing was written.
    #[error("interrupted; nothing was written")]
    Stopped,
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] Fault),
    /// A file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] FileError),
    /// A slice cannot be factored.
    #[error(transparent)]
    Elastic(#[from] ElasticError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// MLX failed.
    #[error(transparent)]
    Mlx(#[from] MlxError),
}

impl From<mlx_rs::error::Exception> for Error {
    fn from(e: mlx_rs::error::Exception) -> Self {
        Error::Mlx(e.into())
    }
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn file(path: &Path, reason: impl Into<String>) -> Error {
        Error::File { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn slice(slice: &str, reason: impl Into<String>) -> Error {
        Error::Slice { slice: slice.to_owned(), reason: reason.into() }
    }
}
