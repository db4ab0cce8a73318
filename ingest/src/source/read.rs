//! The bytes of one entry.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;

use super::blob::{Blob, unreadable};
use super::{Entry, Location, Source, lmdb};
use crate::skip::SkipReason;

impl Source {
    /// If `entry` is in an object store: the bytes to expect, which are to be fetched ahead of
    /// the decoding threads.
    pub(crate) fn fetch_bytes(&self, entry: &Entry) -> Option<u64> {
        let (archive, bytes) = match &entry.location {
            Location::Object { bytes, .. } => return Some(*bytes),
            Location::Member { archive, length, .. } | Location::Value { archive, length, .. } => {
                (archive, *length)
            }
            Location::Zipped { archive, zipped } => (archive, zipped.packed_bytes),
            Location::Key | Location::Path(_) | Location::Row { .. } => return None,
        };
        matches!(self.archives[*archive as usize], Blob::Object(_)).then_some(bytes)
    }

    /// Reads the bytes of an entry. Blocks.
    pub(crate) fn read(&self, entry: &Entry) -> Result<Bytes, SkipReason> {
        let bytes_max = self.config.bytes_max;
        match &entry.location {
            Location::Key => read_file(&self.root.join(&entry.key), bytes_max),
            Location::Path(path) => read_file(path, bytes_max),
            Location::Object { object, .. } => object.read(bytes_max),
            Location::Member { archive, offset, length } => {
                check_bytes(*length, bytes_max)?;
                self.read_range(*archive, *offset..offset.saturating_add(*length))
            }
            Location::Value { archive, offset, length } => {
                check_bytes(*length, bytes_max)?;
                self.read_range(*archive, *offset..offset.saturating_add(*length))
                    .map(lmdb::image_file)
            }
            Location::Zipped { archive, zipped } => {
                check_bytes(zipped.packed_bytes, bytes_max)?;
                let guess = zipped.range();
                let blob = &self.archives[*archive as usize];
                let fetched = blob.read_range(guess.clone()).map_err(|error| unreadable(&error))?;
                let data = zipped.data_range(&fetched)?;
                let in_fetched =
                    (data.start - guess.start) as usize..(data.end - guess.start) as usize;
                if let Some(packed) = fetched.get(in_fetched) {
                    return zipped.unpack(packed, bytes_max);
                }
                zipped.unpack(&self.read_range(*archive, data)?, bytes_max)
            }
            Location::Row { archive, row } => {
                let blob = &self.archives[*archive as usize];
                let bytes = self.row_groups.read(blob, *archive, *row)?;
                check_bytes(bytes.len() as u64, bytes_max)?;
                Ok(bytes)
            }
        }
    }

    /// Exactly `range` of an archive.
    fn read_range(&self, archive: u32, range: Range<u64>) -> Result<Bytes, SkipReason> {
        let blob = &self.archives[archive as usize];
        let bytes = blob.read_range(range.clone()).map_err(|error| unreadable(&error))?;
        if bytes.len() as u64 == range.end - range.start {
            return Ok(bytes);
        }
        Err(SkipReason::Unreadable { detail: "the archive ends before its member does".into() })
    }
}

fn check_bytes(bytes: u64, bytes_max: u64) -> Result<(), SkipReason> {
    if bytes > bytes_max {
        return Err(SkipReason::TooManyBytes { bytes, bytes_max });
    }
    Ok(())
}

/// Reads a file of at most `bytes_max` bytes, whatever its length claims to be.
fn read_file(path: &Path, bytes_max: u64) -> Result<Bytes, SkipReason> {
    // Opening a pipe that nobody writes to would wait for ever.
    let metadata = fs::metadata(path).map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        return Err(SkipReason::Unreadable { detail: "it is no regular file".into() });
    }
    let bytes = metadata.len();
    check_bytes(bytes, bytes_max)?;
    let file = fs::File::open(path).map_err(|error| unreadable(&error))?;
    let mut content = Vec::with_capacity(bytes as usize);
    // A file may grow between the two calls; one byte more than allowed tells.
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(|error| unreadable(&error))?;
    check_bytes(content.len() as u64, bytes_max)?;
    Ok(content.into())
}
