//! What can go wrong with a dataset, each in one sentence that names the place.

use std::sync::Arc;

/// An error of this crate; `Display` is one sentence naming the table, file, shard or row.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A table that was made anew while a writer worked for the one before.
    #[error("dataset '{uri}' was made anew by another job meanwhile; nothing of this one is in it")]
    Replaced {
        /// The dataset.
        uri: String,
    },
    /// The dataset's address cannot be understood or its storage cannot be set up.
    #[error("dataset address '{uri}' cannot be used: {reason}")]
    Address {
        /// The address as given.
        uri: String,
        /// Why it was refused.
        reason: String,
    },
    /// There is no dataset where one was expected.
    #[error("no dataset at '{uri}': {reason}")]
    Missing {
        /// The table's URL.
        uri: String,
        /// What the log said.
        reason: String,
    },
    /// A dataset is already there.
    #[error("a dataset already exists at '{uri}'")]
    Exists {
        /// The table's URL.
        uri: String,
    },
    /// The table's log could not be read or written.
    #[error("log of dataset '{uri}': {reason}")]
    Log {
        /// The table's URL.
        uri: String,
        /// What the log said.
        reason: String,
    },
    /// The table is not a lapflow dataset, or its properties contradict its schema.
    #[error("dataset '{uri}' has unusable metadata: {reason}")]
    Metadata {
        /// The table's URL.
        uri: String,
        /// What does not fit.
        reason: String,
    },
    /// The dataset was written by a later version of the format.
    #[error("dataset '{uri}' has format version {found}; this program reads up to {supported}")]
    FormatVersion {
        /// The table's URL.
        uri: String,
        /// Version in the table's properties.
        found: u32,
        /// Newest version this crate reads.
        supported: u32,
    },
    /// Storage refused or failed an operation on one object.
    #[error("{operation} '{path}' failed: {source}")]
    Storage {
        /// `reading`, `writing`, `listing` or `deleting`.
        operation: &'static str,
        /// The object's path.
        path: String,
        /// What the object store said.
        source: Arc<object_store::Error>,
    },
    /// A data file differs from what its commit promised.
    #[error("file '{path}' is corrupt at {place}: {reason}")]
    Corrupt {
        /// The data file.
        path: String,
        /// Row group and column, or `footer`.
        place: String,
        /// What was found.
        reason: String,
    },
    /// A row does not fit the dataset.
    #[error("shard '{shard}', row {row} (id {id}): {reason}")]
    Row {
        /// The shard being written.
        shard: String,
        /// Position of the row within the shard.
        row: u64,
        /// The row's id.
        id: i64,
        /// What does not fit.
        reason: String,
    },
    /// A request that this dataset cannot serve.
    #[error("{0}")]
    Config(String),
    /// The same log version was lost to other writers more often than the limit allows.
    #[error(
        "shard '{shard}' was not committed to '{uri}': {attempts} commits in a row lost the race"
    )]
    Contention {
        /// The table's URL.
        uri: String,
        /// The shard being committed.
        shard: String,
        /// Attempts made.
        attempts: u32,
    },
}

/// Result with this crate's error.
pub type Result<T> = std::result::Result<T, StoreError>;

impl StoreError {
    pub(crate) fn storage(
        operation: &'static str,
        path: impl ToString,
        source: object_store::Error,
    ) -> Self {
        Self::Storage { operation, path: path.to_string(), source: Arc::new(source) }
    }

    pub(crate) fn corrupt(
        path: impl ToString,
        place: impl Into<String>,
        reason: impl ToString,
    ) -> Self {
        Self::Corrupt { path: path.to_string(), place: place.into(), reason: reason.to_string() }
    }
}
