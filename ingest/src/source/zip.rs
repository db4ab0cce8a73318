//! Zip archives, EDM's datasets among them, read without unpacking.

use std::io::Read;
use std::ops::Range;

use bytes::Bytes;
use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use super::archive::{ArchiveListing, member_key};
use super::blob::{Blob, BlobReader};
use super::labels::{self, Labels};
use super::names::{ending, is_image, is_unclear};
use super::{Listed, Location};
use crate::decode::{Format, HEAD_BYTES};
use crate::error::{IngestError, Result};
use crate::skip::SkipReason;

/// EDM's label file inside an archive or folder.
pub(super) const DATASET_JSON: &str = "dataset.json";
/// The largest label file that is read out of an archive.
const DATASET_JSON_BYTES_MAX: u64 = 1 << 30;

/// Where a zip member is and how it is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Zipped {
    /// Start of the local header.
    header_start: u64,
    /// Length as packed.
    pub(super) packed_bytes: u64,
    /// Whether it is deflated rather than stored.
    deflated: bool,
}

/// Lists the images of a zip archive from its central directory, with the labels of its
/// `dataset.json` if it has one.
pub(super) fn list(blob: &Blob, number: u32, entries_max: usize) -> Result<ArchiveListing> {
    let refused = |member: &str, reason: &str| IngestError::Member {
        archive: blob.to_string(),
        member: member.to_owned(),
        reason: reason.to_owned(),
    };
    let reader = BlobReader::new(blob.clone()).map_err(|error| IngestError::source(blob, error))?;
    let mut archive = ZipArchive::new(reader).map_err(|error| IngestError::source(blob, error))?;
    super::check_count(blob, archive.len(), entries_max)?;
    let mut listing = ArchiveListing::default();
    for index in 0..archive.len() {
        let member =
            archive.by_index_data(index).map_err(|error| IngestError::source(blob, error))?;
        if member.is_dir() {
            continue;
        }
        let Some(key) = member_key(blob, member.name_raw())? else { continue };
        if member.is_symlink() {
            listing.left_out.add("symbolic links");
            continue;
        }
        let may_be_an_image = is_image(&key) || is_unclear(&key);
        if !may_be_an_image {
            if key != DATASET_JSON {
                listing.left_out.add(ending(&key));
            }
            continue;
        }
        if member.encrypted() {
            return Err(refused(&key, "it is encrypted"));
        }
        let deflated = match member.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            _ => return Err(refused(&key, "it is neither stored nor deflated")),
        };
        let zipped = Zipped {
            header_start: member.header_start(),
            packed_bytes: member.compressed_size(),
            deflated,
        };
        drop(member);
        if is_image(&key) || starts_like_an_image(&mut archive, index) {
            listing.images.push(Listed::new(key, Location::Zipped { archive: number, zipped }));
        } else {
            listing.left_out.add(ending(&key));
        }
    }
    listing.labels = read_labels(blob, &mut archive)?;
    Ok(listing)
}

/// Whether the first bytes of a member are those of an image read here.
fn starts_like_an_image(archive: &mut ZipArchive<BlobReader>, index: usize) -> bool {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let Ok(member) = archive.by_index(index) else { return false };
    let read = member.take(HEAD_BYTES as u64).read_to_end(&mut head);
    read.is_ok() && Format::sniff(&head).is_ok()
}

fn read_labels(blob: &Blob, archive: &mut ZipArchive<BlobReader>) -> Result<Option<Labels>> {
    if archive.index_for_name(DATASET_JSON).is_none() {
        return Ok(None);
    }
    let name = format!("{blob}/{DATASET_JSON}");
    let failed = |error: &dyn std::fmt::Display| IngestError::labels(&name, error);
    let mut content = Vec::new();
    archive
        .by_name(DATASET_JSON)
        .map_err(|error| failed(&error))?
        .take(DATASET_JSON_BYTES_MAX)
        .read_to_end(&mut content)
        .map_err(|error| failed(&error))?;
    labels::from_json(&name, &content).map(Some)
}

/// Fixed part of a local header.
const HEADER_BYTES: u64 = 30;
/// Room for name and extra fields of a local header, so that one read fetches it and the data.
const NAME_BYTES_GUESS: u64 = 512;

impl Zipped {
    /// The range to fetch first: header and data, if the header's names are of usual length.
    pub(super) fn range(&self) -> Range<u64> {
        let length = HEADER_BYTES + NAME_BYTES_GUESS + self.packed_bytes;
        self.header_start..self.header_start.saturating_add(length)
    }

    /// Where the packed data lie, told from the start of the local header in `fetched`.
    pub(super) fn data_range(&self, fetched: &[u8]) -> Result<Range<u64>, SkipReason> {
        let header = fetched.get(..HEADER_BYTES as usize).filter(|h| h.starts_with(b"PK\x03\x04"));
        let Some(header) = header else {
            return Err(unreadable("the archive has no member header where its directory says"));
        };
        let length_at = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let start = self.header_start + HEADER_BYTES + length_at(26) + length_at(28);
        Ok(start..start.saturating_add(self.packed_bytes))
    }

    /// The member out of its packed data, at most `bytes_max`.
    pub(super) fn unpack(&self, packed: &[u8], bytes_max: u64) -> Result<Bytes, SkipReason> {
        if !self.deflated {
            return Ok(Bytes::copy_from_slice(packed));
        }
        let mut content = Vec::new();
        DeflateDecoder::new(packed)
            .take(bytes_max + 1)
            .read_to_end(&mut content)
            .map_err(|error| unreadable(&format!("broken deflate stream: {error}")))?;
        if content.len() as u64 > bytes_max {
            return Err(SkipReason::TooManyBytes { bytes: content.len() as u64, bytes_max });
        }
        Ok(content.into())
    }
}

fn unreadable(detail: &str) -> SkipReason {
    SkipReason::Unreadable { detail: detail.to_owned() }
}
