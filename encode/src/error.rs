//! What ends an encode job.

use lapflow_ingest::IngestError;
use lapflow_model::ModelError;
use lapflow_store::StoreError;

/// The result of this crate's functions.
pub type Result<T, E = EncodeError> = std::result::Result<T, E>;

/// Errors of the encode crate.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The source could not be read.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The autoencoder or the pyramid failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The dataset could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A configuration that cannot be carried out.
    #[error("data.{key}: {reason}")]
    Config {
        /// The key, as written in the config file.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The dataset holds something else than this job would add to it.
    #[error("dataset {uri} was made with {what} = {table}, this job has {job}")]
    Differs {
        /// The dataset.
        uri: String,
        /// What differs, as a path into its metadata or plan.
        what: String,
        /// The dataset's value.
        table: String,
        /// The job's value.
        job: String,
    },
    /// The dataset's plan is missing or cannot be read.
    #[error("plan of dataset {uri}: {reason}")]
    Plan {
        /// The dataset.
        uri: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More images were skipped than the configuration allows.
    #[error(
        "{skipped} of {images} images skipped, more than skip_fraction_max = {fraction_max} \
         allows; {last}"
    )]
    TooManySkips {
        /// Images skipped so far, in all committed shards and by this worker.
        skipped: u64,
        /// Images of the source.
        images: u64,
        /// The configured limit.
        fraction_max: f64,
        /// Where to look: the last skip, or the list.
        last: String,
    },
}

impl EncodeError {
    /// An [`EncodeError::Config`] of `key`.
    pub(crate) fn config(key: &'static str, reason: impl Into<String>) -> Self {
        Self::Config { key, reason: reason.into() }
    }
}

impl From<candle_core::Error> for EncodeError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}
