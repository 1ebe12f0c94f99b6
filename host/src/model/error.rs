//! What can go wrong between a checkpoint and a running model.

use crate::mlx::MlxError;
use std::path::{Path, PathBuf};

/// A model cannot be loaded or run. Messages name the file, the field or the tensor, and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found, what was expected, what to do.
        reason: String,
    },
    /// A field of a JSON file is missing, wrong or not supported.
    #[error("{}: field `{field}`: {reason}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, dotted.
        field: String,
        /// What was found and what is supported.
        reason: String,
    },
    /// A tensor is missing, has the wrong shape or type, or holds bad values.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// The file or the checkpoint directory.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A request that this model cannot serve: a token id beyond the vocabulary, an empty sequence.
    #[error("{0}")]
    Request(String),
    /// A file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] crate::atomic::FileError),
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
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    }

    pub(crate) fn file(path: &Path, reason: impl Into<String>) -> Error {
        Error::File { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn field(path: &Path, field: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Field { path: path.to_owned(), field: field.into(), reason: reason.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Tensor { path: path.to_owned(), tensor: tensor.into(), reason: reason.into() }
    }
}
