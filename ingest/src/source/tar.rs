//! Tar archives, WebDataset shards among them, read without unpacking.

use std::collections::HashMap;
use std::io::{self, Read};

use tar::{Archive, EntryType};

use super::archive::{ArchiveListing, member_key};
use super::blob::{Blob, BlobReader};
use super::folder::is_image_name;
use super::{Listed, Location};
use crate::error::{IngestError, Result};

/// A WebDataset `.cls` member holds a class number and perhaps a line end.
const CLASS_BYTES_MAX: u64 = 32;

/// Lists the images of a tar archive by a pass over its headers. A member `NAME.cls` labels the
/// images `NAME.*`, as in WebDataset.
pub(super) fn list(blob: &Blob, number: u32, entries_max: usize) -> Result<ArchiveListing> {
    let mut last_member = "the start".to_owned();
    let refused = |member: &str, reason: String| IngestError::Member {
        archive: blob.to_string(),
        member: member.to_owned(),
        reason,
    };
    let reader = BlobReader::new(blob.clone()).map_err(|error| IngestError::source(blob, error))?;
    let archive_bytes = reader.length();
    let mut archive = Archive::new(reader);
    let mut listing = ArchiveListing::default();
    let mut class_by_sample = HashMap::new();
    let members = archive.entries_with_seek().map_err(|error| IngestError::source(blob, error))?;
    for (count, member) in members.enumerate() {
        super::check_count(blob, count + 1, entries_max)?;
        let broken = |error: io::Error| refused(&format!("after {last_member}"), error.to_string());
        let mut member = member.map_err(broken)?;
        let kind = member.header().entry_type();
        let key = member_key(blob, &String::from_utf8_lossy(&member.path_bytes()))?;
        if kind == EntryType::GNUSparse {
            return Err(refused(&key, "sparse members are not supported".into()));
        }
        if !kind.is_file() && !kind.is_contiguous() {
            continue;
        }
        let (offset, length) = (member.raw_file_position(), member.size());
        if is_image_name(&key) {
            // A member that the archive's end cuts off is listed, and skipped when it is read.
            let location = Location::Member { archive: number, offset, length };
            listing.images.push(Listed::new(key.clone(), location));
        } else if key.ends_with(".cls") && offset + length <= archive_bytes {
            let mut text = String::new();
            member
                .by_ref()
                .take(CLASS_BYTES_MAX)
                .read_to_string(&mut text)
                .map_err(|error| refused(&key, error.to_string()))?;
            let class: u32 = text
                .trim()
                .parse()
                .map_err(|_| refused(&key, format!("`{}` is not a class number", text.trim())))?;
            class_by_sample.insert(sample(&key).to_owned(), class);
        }
        last_member = key;
    }
    for image in &mut listing.images {
        image.label = class_by_sample.get(sample(&image.key)).copied();
    }
    Ok(listing)
}

/// WebDataset's sample name: up to the first dot of the last path component.
fn sample(key: &str) -> &str {
    let name_start = key.rfind('/').map_or(0, |slash| slash + 1);
    let dot = key[name_start..].find('.').map_or(key.len(), |dot| name_start + dot);
    &key[..dot]
}
