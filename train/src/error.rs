//! What can stop a training run.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// Errors of the training crate.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The network, a checkpoint or a configuration of either.
    #[error(transparent)]
    Model(#[from] lapflow_model::ModelError),
    /// A tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The dataset.
    #[error(transparent)]
    Store(#[from] lapflow_store::StoreError),
    /// A value of the `[train]` section.
    #[error("train: {0}")]
    Config(String),
    /// A checkpoint and a dataset or configuration that do not belong together.
    #[error("{what} of the checkpoint is {checkpoint}, here it is {here}")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// The checkpoint's.
        checkpoint: String,
        /// The dataset's or configuration's.
        here: String,
    },
    /// A checkpoint that cannot be resumed from.
    #[error("{path}: {reason}")]
    Resume {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Loss or gradient was not finite too many times in a row.
    #[error(
        "step {step}: loss or gradient not finite {times} times in a row; the last checkpoint is good"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// How often.
        times: u32,
    },
    /// A file of the run folder.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
}

impl TrainError {
    /// A [`TrainError::Io`] of `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }
}
