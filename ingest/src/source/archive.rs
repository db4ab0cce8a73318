//! What the archive formats share.

use super::Listed;
use super::blob::Blob;
use super::labels::Labels;
use super::names::{is_hidden, text};
use crate::error::{IngestError, Result};
use crate::left_out::LeftOut;

/// The images of one archive.
#[derive(Default)]
pub(super) struct ArchiveListing {
    pub(super) images: Vec<Listed>,
    /// A label file inside the archive.
    pub(super) labels: Option<Labels>,
    /// Class names, where the format states them.
    pub(super) classes: Vec<String>,
    /// Members that are no images.
    pub(super) left_out: LeftOut,
    /// What a user should know of it, a sentence each.
    pub(super) notes: Vec<String>,
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
        if blob.length().map_err(|error| IngestError::source(blob, error))? == 0 {
            return Err(IngestError::source(blob, "it is empty, 0 bytes"));
        }
        match self {
            Self::Tar => super::tar::list(blob, number, entries_max),
            Self::Zip => super::zip::list(blob, number, entries_max),
            Self::Parquet => super::parquet::list(blob, number, entries_max),
            Self::Lmdb => super::lmdb::list(blob, number, entries_max),
        }
    }
}

/// The key of an archive member; none of a hidden one. Nothing is ever unpacked to these names,
/// but they go on into datasets and output folders. Backslashes, which Windows writes between
/// folders, read as slashes.
///
/// # Errors
/// [`IngestError::Member`] for names that lead out of the archive.
pub(super) fn member_key(archive: &Blob, name: &[u8]) -> Result<Option<String>> {
    let slashed: Vec<u8> = name.iter().map(|&b| if b == b'\\' { b'/' } else { b }).collect();
    let name = text(&slashed);
    let key = name.trim_start_matches("./");
    if key.starts_with('/') || key.contains('\0') || key.split('/').any(|part| part == "..") {
        return Err(IngestError::Member {
            archive: archive.to_string(),
            member: name.escape_debug().to_string(),
            reason: "its name leads out of the archive".into(),
        });
    }
    Ok(Some(key).filter(|key| !is_hidden(key)).map(str::to_owned))
}
