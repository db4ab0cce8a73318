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
    /// A folder that another process writes to.
    #[error("{folder}: {holder} is at work in it")]
    Locked {
        /// The folder.
        folder: PathBuf,
        /// The process that holds it, as it says itself.
        holder: String,
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
    #[error("step {step}: the {what} is not finite, {times} times in a row; {}", good(.checkpoint))]
    NotFinite {
        /// The step.
        step: u64,
        /// What was not finite then.
        what: String,
        /// How often.
        times: u32,
        /// The last good checkpoint, where the run has a folder with one.
        checkpoint: Option<PathBuf>,
    },
    /// Datasets that cannot be mixed.
    #[error("{uri} cannot be mixed in: {what} is {here} there and {first} in {first_uri}")]
    Mixed {
        /// What differs.
        what: &'static str,
        /// The dataset.
        uri: String,
        /// Its identity.
        here: String,
        /// The first dataset's identity.
        first: String,
        /// The first dataset.
        first_uri: String,
    },
    /// A grid of samples that could not be drawn.
    #[error("the grid of samples: {0}")]
    Samples(String),
    /// A file of the run folder.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
}

fn good(checkpoint: &Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!("the last good checkpoint is {}", path.display()),
        None => "there is no checkpoint yet".into(),
    }
}

impl TrainError {
    /// A [`TrainError::Io`] of `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }
}
