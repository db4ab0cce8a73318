//! What ends an ingest job. A single bad file does not: see [`SkipReason`](crate::SkipReason).

/// The result of this crate's functions.
pub type Result<T, E = IngestError> = std::result::Result<T, E>;

/// Errors of the ingest crate.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// A configuration that cannot be carried out.
    #[error("data.{key}: {reason}")]
    Config {
        /// The key, as written in the config file.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A source that cannot be opened or listed.
    #[error("source {source_uri}: {reason}")]
    Source {
        /// The source, folder, list or archive.
        source_uri: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An archive or list whose structure is refused as a whole.
    #[error("{archive}: member {member}: {reason}")]
    Member {
        /// The archive or list.
        archive: String,
        /// The member or line that is refused.
        member: String,
        /// Why.
        reason: String,
    },
    /// A label file that cannot be used.
    #[error("labels {path}: {reason}")]
    Labels {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that cannot be written.
    #[error("{path}: {reason}")]
    Output {
        /// The file or folder.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More images were skipped than the configuration allows.
    #[error(
        "{skipped} of {planned} images skipped, more than skip_fraction_max = {fraction_max} \
         allows; the last: {last}"
    )]
    TooManySkips {
        /// Images skipped so far.
        skipped: usize,
        /// Images the stream was asked for.
        planned: usize,
        /// The configured limit.
        fraction_max: f64,
        /// Key and reason of the skip that was one too many.
        last: String,
    },
    /// A position outside the listing.
    #[error("image {index} was asked for, the source holds {count}")]
    Index {
        /// The position.
        index: usize,
        /// The length of the listing.
        count: usize,
    },
}

impl IngestError {
    /// An [`IngestError::Config`] of `key`.
    pub(crate) fn config(key: &'static str, reason: impl Into<String>) -> Self {
        Self::Config { key, reason: reason.into() }
    }

    /// An [`IngestError::Source`] of `source_uri`.
    pub(crate) fn source(source_uri: impl ToString, reason: impl ToString) -> Self {
        Self::Source { source_uri: source_uri.to_string(), reason: reason.to_string() }
    }

    /// An [`IngestError::Labels`] of `path`.
    pub(crate) fn labels(path: impl ToString, reason: impl ToString) -> Self {
        Self::Labels { path: path.to_string(), reason: reason.to_string() }
    }

    /// An [`IngestError::Output`] of `path`.
    pub(crate) fn output(path: &std::path::Path, reason: impl ToString) -> Self {
        Self::Output { path: path.display().to_string(), reason: reason.to_string() }
    }
}
