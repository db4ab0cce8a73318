//! What can go wrong in this crate, with the file, key and shapes that explain it.

use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// Errors of the model crate.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A tensor operation failed: mismatched shapes, an unsupported device or dtype.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A configuration that no network can be built from.
    #[error("{section}: {reason}")]
    Config {
        /// The config section, as written in the file.
        section: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A weight file that cannot be read.
    #[error("{path}: {reason}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A parameter that is absent from the weights.
    #[error("weights lack `{key}` {expected:?}")]
    MissingKey {
        /// The parameter's name.
        key: String,
        /// The shape the network wants.
        expected: Vec<usize>,
    },
    /// A parameter of another shape than the network's.
    #[error("`{key}` has shape {actual:?}, the network wants {expected:?}")]
    KeyShape {
        /// The parameter's name.
        key: String,
        /// The shape the network wants.
        expected: Vec<usize>,
        /// The shape in the file.
        actual: Vec<usize>,
    },
    /// A parameter that holds values no network can compute with.
    #[error("`{key}` holds values that are infinite or not numbers")]
    NotFinite {
        /// The parameter's name.
        key: String,
    },
    /// Parameters in the weights that the network does not have.
    #[error("weights hold {count} parameters that the network lacks, the first is `{first}`")]
    UnusedKeys {
        /// How many.
        count: usize,
        /// The first of them in name order.
        first: String,
    },
}

impl ModelError {
    /// A [`ModelError::Config`] of `section`.
    pub fn config(section: &'static str, reason: impl Into<String>) -> Self {
        Self::Config { section, reason: reason.into() }
    }

    /// A [`ModelError::Weights`] of `path`.
    pub fn weights(path: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Self {
        Self::Weights { path: path.into(), reason: reason.to_string() }
    }
}
