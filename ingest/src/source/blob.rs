//! Files and objects, read in ranges.

use std::fmt;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;

use crate::skip::SkipReason;

/// Something that holds bytes: a local file, or an object in a store.
#[derive(Clone)]
pub(crate) enum Blob {
    /// A local file.
    File(PathBuf),
    /// An object.
    Object(Object),
}

/// An object and the means to reach it.
#[derive(Clone)]
pub(crate) struct Object {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: ObjectPath,
    /// Scheme and bucket, for messages.
    pub(super) origin: Arc<str>,
    /// Runs the requests, which are made from threads that may block.
    pub(super) runtime: Handle,
}

impl fmt::Display for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Object(object) => write!(f, "{}/{}", object.origin, object.path),
        }
    }
}

impl Blob {
    /// Its length in bytes. Blocks.
    pub(super) fn length(&self) -> io::Result<u64> {
        match self {
            Self::File(path) => Ok(fs::metadata(path)?.len()),
            Self::Object(object) => {
                Ok(object.runtime.block_on(object.store.head(&object.path))?.size)
            }
        }
    }

    /// The bytes in `range`, fewer if it ends first. Blocks.
    pub(super) fn read_range(&self, range: Range<u64>) -> io::Result<Bytes> {
        match self {
            Self::File(path) => {
                let mut file = fs::File::open(path)?;
                file.seek(SeekFrom::Start(range.start))?;
                let mut content = Vec::new();
                file.take(range.end - range.start).read_to_end(&mut content)?;
                Ok(content.into())
            }
            Self::Object(object) => {
                let request = object.store.get_range(&object.path, range);
                Ok(object.runtime.block_on(request)?)
            }
        }
    }
}

impl Object {
    /// The whole object, if it has at most `bytes_max`. Blocks.
    pub(super) fn read(&self, bytes_max: u64) -> Result<Bytes, SkipReason> {
        let unreadable = |error: object_store::Error| self::unreadable(&error.into());
        self.runtime.block_on(async {
            let result = self.store.get(&self.path).await.map_err(unreadable)?;
            let bytes = result.meta.size;
            if bytes > bytes_max {
                return Err(SkipReason::TooManyBytes { bytes, bytes_max });
            }
            result.bytes().await.map_err(unreadable)
        })
    }
}

/// The reason to skip an image that could not be read.
pub(super) fn unreadable(error: &io::Error) -> SkipReason {
    match error.kind() {
        io::ErrorKind::NotFound => SkipReason::Vanished,
        _ => SkipReason::Unreadable { detail: error.to_string() },
    }
}

/// A blob as a seekable reader, fetched block by block.
pub(super) struct BlobReader {
    blob: Blob,
    length: u64,
    position: u64,
    block_start: u64,
    block: Bytes,
}

/// What one read of an archive's directory fetches: a few headers of members that are images.
const BLOCK_BYTES: u64 = 512 << 10;

impl BlobReader {
    pub(super) fn new(blob: Blob) -> io::Result<Self> {
        let length = blob.length()?;
        Ok(Self { blob, length, position: 0, block_start: 0, block: Bytes::new() })
    }

    /// Exactly `length` bytes from `start`.
    pub(super) fn read_at(&mut self, start: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut content = vec![0; length];
        self.seek(SeekFrom::Start(start))?;
        self.read_exact(&mut content)?;
        Ok(content)
    }

    /// The length of the blob when it was opened.
    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

impl Read for BlobReader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if target.is_empty() || self.position >= self.length {
            return Ok(0);
        }
        let block_end = self.block_start + self.block.len() as u64;
        if !(self.block_start..block_end).contains(&self.position) {
            let end = self.length.min(self.position + BLOCK_BYTES);
            self.block = self.blob.read_range(self.position..end)?;
            self.block_start = self.position;
        }
        let at = (self.position - self.block_start) as usize;
        let count = target.len().min(self.block.len() - at);
        target[..count].copy_from_slice(&self.block[at..at + count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position =
            position.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek below 0"))?;
        Ok(self.position)
    }
}
