//! What the archive formats share.

use super::Listed;
use super::blob::Blob;
use super::labels::Labels;
use crate::error::{IngestError, Result};

/// The images of one archive.
#[derive(Default)]
pub(super) struct ArchiveListing {
    pub(super) images: Vec<Listed>,
    /// A label file inside the archive.
    pub(super) labels: Option<Labels>,
    /// Class names, where the format states them.
    pub(super) classes: Vec<String>,
}

/// What LMDB keeps beside its data.
const LMDB_LOCK_FILE: &str = "lock.mdb";

/// A format that holds many images in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ArchiveFormat {
    Tar,
    Zip,
    Parquet,
    Lmdb,
}

impl ArchiveFormat {
    /// The format that `name` ends with.
    pub(super) fn of(name: &str) -> Option<Self> {
        if name.rsplit('/').next() == Some(LMDB_LOCK_FILE) {
            return None;
        }
        match name.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
            "tar" => Some(Self::Tar),
            "zip" => Some(Self::Zip),
            "parquet" => Some(Self::Parquet),
            "mdb" | "lmdb" => Some(Self::Lmdb),
            _ => None,
        }
    }

    /// Lists archive `number` of a source. Blocks.
    pub(super) fn list(
        self,
        blob: &Blob,
        number: u32,
        entries_max: usize,
    ) -> Result<ArchiveListing> {
        match self {
            Self::Tar => super::tar::list(blob, number, entries_max),
            Self::Zip => super::zip::list(blob, number, entries_max),
            Self::Parquet => super::parquet::list(blob, number, entries_max),
            Self::Lmdb => super::lmdb::list(blob, number, entries_max),
        }
    }
}

/// The key of an archive member. Nothing is ever unpacked to these names, but they go on into
/// datasets and output folders.
///
/// # Errors
/// [`IngestError::Member`] for names that lead out of the archive.
pub(super) fn member_key(archive: &Blob, name: &str) -> Result<String> {
    let key = name.trim_start_matches("./");
    let leads_out = key.starts_with('/')
        || key.contains(['\\', '\0'])
        || key.split('/').any(|part| part == "..");
    if leads_out {
        return Err(IngestError::Member {
            archive: archive.to_string(),
            member: name.escape_debug().to_string(),
            reason: "its name leads out of the archive".into(),
        });
    }
    Ok(key.to_owned())
}
