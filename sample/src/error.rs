//! What can go wrong in this crate, with the sample, file, row or setting that explains it.

use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = SampleError> = std::result::Result<T, E>;

/// Errors of sampling and scoring.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// A tensor operation failed: mismatched shapes, an unsupported device or dtype.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The network failed.
    #[error(transparent)]
    Model(#[from] lapflow_model::ModelError),
    /// A setting out of its range.
    #[error("{setting}: {reason}")]
    Setting {
        /// The setting, as its user writes it.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The solution left the finite numbers.
    #[error("the state of sample {sample} is not finite at t = {time}")]
    NotFinite {
        /// Position in the batch.
        sample: usize,
        /// Time at which it was noticed.
        time: f64,
    },
    /// The adaptive solver cannot meet its tolerances.
    #[error(
        "the solver needs more than {limit} steps for sample {sample}, it stands at t = {time}"
    )]
    StepLimit {
        /// The limit that was reached.
        limit: usize,
        /// Position in the batch.
        sample: usize,
        /// Time reached.
        time: f64,
    },
    /// A file that cannot be read or written.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl SampleError {
    /// A [`SampleError::Setting`].
    pub fn setting(setting: &'static str, reason: impl Into<String>) -> Self {
        Self::Setting { setting, reason: reason.into() }
    }

    /// A [`SampleError::File`] of `path`.
    pub fn file(path: impl AsRef<Path>, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }
}
