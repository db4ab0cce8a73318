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

/// First bytes of a file that tell what it is.
const HEAD_BYTES: u64 = 512;
/// Where a tar's first header says that it is one.
const TAR_MAGIC: std::ops::Range<usize> = 257..262;

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
        let listed = match self {
            Self::Tar => super::tar::list(blob, number, entries_max),
            Self::Zip => super::zip::list(blob, number, entries_max),
            Self::Parquet => super::parquet::list(blob, number, entries_max),
            Self::Lmdb => super::lmdb::list(blob, number, entries_max),
        };
        listed.map_err(|error| match self.mistaken(blob) {
            Some(is) => {
                let reason = format!("it is no {}, but {is}", self.called());
                IngestError::source(blob, reason)
            }
            None => error,
        })
    }

    fn called(self) -> &'static str {
        match self {
            Self::Tar => "plain tar",
            Self::Zip => "zip archive",
            Self::Parquet => "Parquet file",
            Self::Lmdb => "LMDB file",
        }
    }

    /// What a file that cannot be listed really is, where its first bytes tell.
    fn mistaken(self, blob: &Blob) -> Option<&'static str> {
        let head = blob.read_range(0..HEAD_BYTES).ok()?;
        let (format, is) = match head.as_ref() {
            [0x1f, 0x8b, ..] => (None, "compressed by gzip"),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => (None, "compressed by zstd"),
            [b'B', b'Z', b'h', ..] => (None, "compressed by bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => (None, "compressed by xz"),
            [b'P', b'K', 3, 4, ..] => (Some(Self::Zip), "a zip archive"),
            [b'P', b'A', b'R', b'1', ..] => (Some(Self::Parquet), "a Parquet file"),
            head if head.get(TAR_MAGIC) == Some(b"ustar") => (Some(Self::Tar), "a tar"),
            head if head.starts_with(b"version https://git-lfs") => {
                (None, "a pointer of Git LFS, whose content was not fetched")
            }
            head if head.trim_ascii_start().starts_with(b"<") => {
                (None, "a page of HTML or XML, perhaps of a download that failed")
            }
            _ => return None,
        };
        (format != Some(self)).then_some(is)
    }
}

/// The key of an archive member; none of a hidden one. Nothing is ever unpacked to these names,
/// but they go on into datasets and output folders. The backslashes that Windows writes between
/// folders read as slashes, if the name has no slash, as Info-ZIP does it, and is UTF-8: in
/// Shift-JIS and GBK they are the second bytes of letters.
///
/// # Errors
/// [`IngestError::Member`] for names that lead out of the archive.
pub(super) fn member_key(archive: &Blob, name: &[u8]) -> Result<Option<String>> {
    let of_windows = !name.contains(&b'/') && std::str::from_utf8(name).is_ok();
    let slashed = |&byte: &u8| if of_windows && byte == b'\\' { b'/' } else { byte };
    let name = text(&name.iter().map(slashed).collect::<Vec<u8>>());
    let key = name.trim_start_matches("./");
    if key.starts_with('/') || key.split(['/', '\\']).any(|part| part == "..") {
        return Err(IngestError::Member {
            archive: archive.to_string(),
            member: name.escape_debug().to_string(),
            reason: "its name leads out of the archive".into(),
        });
    }
    Ok(Some(key).filter(|key| !is_hidden(key)).map(str::to_owned))
}
