//! Tar archives, WebDataset shards among them, read without unpacking.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use tar::{Archive, EntryType};

use super::archive::{ArchiveListing, member_key};
use super::blob::{Blob, BlobReader};
use super::names::{LINKED_WORDS, ending, is_image, is_unclear};
use super::{Listed, Location};
use crate::decode::{Format, HEAD_BYTES};
use crate::error::{IngestError, Result};

/// A WebDataset `.cls` member holds a class number and perhaps a line end.
const CLASS_BYTES_MAX: u64 = 32;
/// Length of a header and what members are padded to.
const BLOCK_BYTES: u64 = 512;
/// More zeros than any writer ends an archive with.
const PADDING_BYTES_MAX: u64 = 1 << 20;
/// What a link is called where it is counted.
const DEAD_LINK: &str = "links to what the archive does not hold";

/// Lists the images of a tar archive by a pass over its headers. A member `NAME.cls` labels the
/// images `NAME.*`, as in WebDataset. A link called like an image is the member that it leads to.
pub(super) fn list(blob: &Blob, number: u32, entries_max: usize) -> Result<ArchiveListing> {
    let reader = open(blob)?;
    let mut listing = ArchiveListing::default();
    let mut classes = HashMap::new();
    let mut links = Vec::new();
    let archive_bytes = reader.length();
    let mut end = 0;
    each_member(blob, reader, entries_max, |key, member| {
        let kind = member.header().entry_type();
        end = member.raw_file_position().saturating_add(member.size());
        if kind == EntryType::GNUSparse {
            return Err(refused(blob, &key, "sparse members are not supported"));
        }
        if kind.is_hard_link() || kind.is_symlink() {
            let target = member.link_name_bytes().unwrap_or_default();
            links.push((key.clone(), target_key(blob, &key, &target, kind.is_symlink())));
        } else if kind.is_file() || kind.is_contiguous() {
            let (offset, length) = (member.raw_file_position(), member.size());
            let whole = offset.saturating_add(length) <= archive_bytes;
            if is_image(&key) || (is_unclear(&key) && starts_like_an_image(member)) {
                // A member that the archive's end cuts off is listed, and skipped when it is read.
                let location = Location::Member { archive: number, offset, length };
                listing.images.push(Listed::new(key, location));
            } else if key.ends_with(".cls") && whole {
                let class = class(blob, &key, member)?;
                classes.insert(sample(&key).to_owned(), class);
            } else {
                listing.left_out.add(ending(&key));
            }
        } else if kind.is_fifo() || kind.is_character_special() || kind.is_block_special() {
            listing.left_out.add("pipes and devices");
        }
        Ok(())
    })?;
    if !archive_bytes.is_multiple_of(BLOCK_BYTES) {
        listing.notes.push(format!("{blob} ends within a block: it may have been cut off"));
    }
    // A writer ends an archive with a block of zeros.
    if end.next_multiple_of(BLOCK_BYTES) == archive_bytes {
        listing.notes.push(format!("{blob} has no end mark: it may have been cut off"));
    }
    resolve(blob, number, entries_max, links, &mut listing)?;
    for image in &mut listing.images {
        image.label = classes.get(sample(&image.key)).copied();
    }
    Ok(listing)
}

fn open(blob: &Blob) -> Result<BlobReader> {
    BlobReader::new(blob.clone()).map_err(|error| IngestError::source(blob, error))
}

/// Calls `each` with the key of every member that is not hidden, and the member.
fn each_member(
    blob: &Blob,
    reader: BlobReader,
    entries_max: usize,
    mut each: impl FnMut(String, &mut tar::Entry<'_, BlobReader>) -> Result<()>,
) -> Result<()> {
    let (mut last_member, mut end) = ("the start".to_owned(), 0);
    let mut archive = Archive::new(reader);
    // Tars put one behind another have zeros between them.
    archive.set_ignore_zeros(true);
    let members = archive.entries_with_seek().map_err(|error| IngestError::source(blob, error))?;
    for (count, member) in members.enumerate() {
        super::check_count(blob, count + 1, entries_max)?;
        let mut member = match member {
            Ok(member) => member,
            Err(_) if is_left_over(blob, end) => break,
            Err(error) => {
                return Err(refused(blob, &format!("after {last_member}"), &error.to_string()));
            }
        };
        end = member.raw_file_position().saturating_add(member.size());
        let Some(key) = member_key(blob, &member.path_bytes())? else { continue };
        last_member.clone_from(&key);
        each(key, &mut member)?;
    }
    Ok(())
}

/// Whether zeros and less than a block are all that follows `end`, where the last member ends.
fn is_left_over(blob: &Blob, end: u64) -> bool {
    let Ok(length) = blob.length() else { return false };
    let (start, last) = (end.next_multiple_of(BLOCK_BYTES), length / BLOCK_BYTES * BLOCK_BYTES);
    !length.is_multiple_of(BLOCK_BYTES)
        && (start + BLOCK_BYTES..=start.saturating_add(PADDING_BYTES_MAX)).contains(&last)
        && blob.read_range(start..last).is_ok_and(|tail| tail.iter().all(|&byte| byte == 0))
}

fn refused(blob: &Blob, member: &str, reason: &str) -> IngestError {
    let (archive, member) = (blob.to_string(), member.to_owned());
    IngestError::Member { archive, member, reason: reason.to_owned() }
}

fn starts_like_an_image(member: &mut tar::Entry<'_, BlobReader>) -> bool {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let read = member.take(HEAD_BYTES as u64).read_to_end(&mut head);
    read.is_ok() && Format::sniff(&head).is_ok()
}

fn class(blob: &Blob, key: &str, member: &mut tar::Entry<'_, BlobReader>) -> Result<u32> {
    let mut text = String::new();
    member
        .take(CLASS_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| refused(blob, key, &error.to_string()))?;
    let text = text.trim();
    text.parse().map_err(|_| refused(blob, key, &format!("`{text}` is not a class number")))
}

/// The key that a link of name `key` leads to: a hard link's target is named from the top of the
/// archive, a symbolic link's from the link's folder. None where it leads out.
fn target_key(blob: &Blob, key: &str, target: &[u8], symbolic: bool) -> Option<String> {
    if !symbolic {
        return member_key(blob, target).ok().flatten();
    }
    let target = std::str::from_utf8(target).ok().filter(|target| !target.starts_with('/'))?;
    let mut parts: Vec<&str> = key.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Adds the links that are called like images and lead to a member, by a second pass over the
/// headers, and counts the others.
fn resolve(
    blob: &Blob,
    number: u32,
    entries_max: usize,
    links: Vec<(String, Option<String>)>,
    listing: &mut ArchiveListing,
) -> Result<()> {
    if links.is_empty() {
        return Ok(());
    }
    let wanted = links.iter().filter_map(|(_, target)| target.clone());
    let mut found: HashMap<String, Option<Location>> = wanted.map(|key| (key, None)).collect();
    each_member(blob, open(blob)?, entries_max, |key, member| {
        let kind = member.header().entry_type();
        if let Some(place) = found.get_mut(&key).filter(|_| kind.is_file() || kind.is_contiguous())
        {
            let (offset, length) = (member.raw_file_position(), member.size());
            *place = Some(Location::Member { archive: number, offset, length });
        }
        Ok(())
    })?;
    // A link may lead to another link.
    let by_name: HashMap<&String, &Option<String>> = links.iter().map(|(k, t)| (k, t)).collect();
    let mut taken = HashSet::new();
    for (key, target) in &links {
        let (mut target, mut hops) = (target.as_ref(), links.len());
        let location = loop {
            let Some(at) = target else { break None };
            match (found.get(at), by_name.get(at)) {
                (Some(Some(location)), _) => break Some((at, location.clone())),
                (_, Some(next)) if hops > 0 => (target, hops) = (next.as_ref(), hops - 1),
                _ => break None,
            }
        };
        match location {
            Some((target, location)) if is_image(key) => {
                taken.insert(target.clone());
                listing.images.push(Listed::new(key.clone(), location));
            }
            Some(_) => listing.left_out.add(ending(key)),
            None => listing.left_out.add(DEAD_LINK),
        }
    }
    // As in a folder, what only its bytes tell and links lead to would be there twice.
    let listed = listing.images.len();
    listing.images.retain(|image| !(is_unclear(&image.key) && taken.contains(&image.key)));
    (listing.images.len()..listed).for_each(|_| listing.left_out.add(LINKED_WORDS));
    Ok(())
}

/// WebDataset's sample name: up to the first dot of the last path component.
fn sample(key: &str) -> &str {
    let name_start = key.rfind('/').map_or(0, |slash| slash + 1);
    let dot = key[name_start..].find('.').map_or(key.len(), |dot| name_start + dot);
    &key[..dot]
}
