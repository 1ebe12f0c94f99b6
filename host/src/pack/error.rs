//! What can go wrong with a pack. Messages name the file, the tensor or the field, and the remedy.

use crate::atomic::FileError;
use crate::mlx::MlxError;
use std::path::{Path, PathBuf};

/// A pack cannot be read, written, attached or trained.
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
    /// A tensor is missing, has the wrong shape or type, or holds bad values.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A name that is none, a pack that is not there, or one that is in the way.
    #[error("{0}")]
    Name(String),
    /// A value that no flag can have.
    #[error("{0}")]
    Usage(String),
    /// A pack does not fit a model.
    #[error("pack {pack}: {reason}")]
    Fit {
        /// The pack.
        pack: String,
        /// What does not fit, and what to do.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Disk(#[from] FileError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// MLX failed.
    #[error(transparent)]
    Mlx(#[from] MlxError),
    /// A text cannot be read or cut.
    #[error(transparent)]
    Data(#[from] crate::eval::data::Error),
    /// Anything else, said in full.
    #[error("{0}")]
    Other(String),
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

    pub(crate) fn tensor(path: &Path, tensor: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Tensor { path: path.to_owned(), tensor: tensor.into(), reason: reason.into() }
    }

    pub(crate) fn fit(pack: &str, reason: impl Into<String>) -> Error {
        Error::Fit { pack: pack.to_owned(), reason: reason.into() }
    }
}
