//! LMDB environments, as LFM and NVAE keep CelebA-HQ in: one value an image.
//!
//! The file is a copy-on-write B+ tree in pages. It is read here page by page with every offset
//! checked, rather than mapped into memory, so that a broken file is an error, and an object in
//! a store will do. Files written on 64-bit little-endian machines are read.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::archive::{ArchiveListing, member_key};
use super::blob::{Blob, BlobReader};
use super::{Listed, Location};
use crate::error::{IngestError, Result};

/// Bytes of a page's header.
const HEADER_BYTES: usize = 16;
const MAGIC: u32 = 0xbeef_c0de;
const VERSION: u32 = 1;
/// Where a meta page says what; positions from the start of the page.
mod meta {
    pub(super) const MAGIC: usize = 16;
    pub(super) const VERSION: usize = 20;
    pub(super) const PAGE_BYTES: usize = 40;
    pub(super) const ROOT: usize = 128;
    pub(super) const TRANSACTION: usize = 144;
    pub(super) const END: usize = 152;
}
/// Page sizes that LMDB can have, powers of two.
const PAGE_BYTES: Range<u32> = 256..(64 << 10) + 1;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
/// A node whose value is in pages of its own.
const BIG: u16 = 0x01;
/// A tree deeper than this loops: 20 levels of two keys would hold a million pages.
const DEPTH_MAX: usize = 20;

/// Lists the values of an environment's main database by a pass over its tree. Keys are the
/// database's, which must be text; a key `length`, by which some writers state the number of
/// images, is passed over.
pub(super) fn list(blob: &Blob, number: u32, entries_max: usize) -> Result<ArchiveListing> {
    let failed = |error: io::Error| IngestError::source(blob, error);
    let mut tree = Tree::open(blob).map_err(failed)?;
    let mut listing = ArchiveListing::default();
    let mut pages_left = tree.pages;
    let mut pages: Vec<(u64, usize)> = tree.root.iter().map(|&root| (root, 0)).collect();
    while let Some((page, depth)) = pages.pop() {
        // A sound tree meets no page twice.
        pages_left = pages_left
            .checked_sub(1)
            .filter(|_| depth < DEPTH_MAX)
            .ok_or_else(|| failed(broken("its pages form a loop")))?;
        for node in tree.nodes(page).map_err(failed)? {
            match node {
                Node::Page(below) if pages.len() as u64 <= tree.pages => {
                    pages.push((below, depth + 1));
                }
                Node::Page(_) => return Err(failed(broken("its pages form a loop"))),
                Node::Value { key, .. } if key == b"length" => {}
                Node::Value { key, offset, length } => {
                    let Some(key) = member_key(blob, &key)? else {
                        listing.left_out.add("values of hidden names");
                        continue;
                    };
                    let location = Location::Value { archive: number, offset, length };
                    listing.images.push(Listed::new(key, location));
                    super::check_count(blob, listing.images.len(), entries_max)?;
                }
            }
        }
    }
    Ok(listing)
}

/// The bytes of a value as an image file. Values that are no image file, but as long as a square
/// of RGB pixels, get the header of a PPM: LFM's CelebA-HQ holds such squares.
pub(super) fn image_file(value: Bytes) -> Bytes {
    let side = (value.len() / 3).isqrt();
    if crate::decode::Format::sniff(&value).is_ok() || side == 0 || 3 * side * side != value.len() {
        return value;
    }
    [format!("P6\n{side} {side}\n255\n").as_bytes(), &value].concat().into()
}

/// What a page leads to.
enum Node {
    /// A page below.
    Page(u64),
    /// A value, at its place in the file.
    Value { key: Vec<u8>, offset: u64, length: u64 },
}

/// The newest committed state of the main database.
struct Tree {
    reader: BlobReader,
    page_bytes: u64,
    /// Pages in the file.
    pages: u64,
    /// None if it holds nothing.
    root: Option<u64>,
}

impl Tree {
    fn open(blob: &Blob) -> io::Result<Self> {
        let mut reader = BlobReader::new(blob.clone())?;
        let first = reader.read_at(0, meta::END)?;
        if u32_at(&first, meta::MAGIC)? != MAGIC || u32_at(&first, meta::VERSION)? != VERSION {
            return Err(broken("it is not an LMDB file of version 1, 64 bits, little-endian"));
        }
        let page_bytes = u32_at(&first, meta::PAGE_BYTES)?;
        if !PAGE_BYTES.contains(&page_bytes) || !page_bytes.is_power_of_two() {
            return Err(broken("its page size is none that LMDB has"));
        }
        let page_bytes = u64::from(page_bytes);
        // Two meta pages take turns; the one with the later transaction counts.
        let second = reader.read_at(page_bytes, meta::END)?;
        let newer = u64_at(&second, meta::TRANSACTION)? > u64_at(&first, meta::TRANSACTION)?;
        let root = u64_at(if newer { &second } else { &first }, meta::ROOT)?;
        let pages = reader.length() / page_bytes;
        Ok(Self { reader, page_bytes, pages, root: (root != u64::MAX).then_some(root) })
    }

    /// The nodes of a branch or leaf page.
    fn nodes(&mut self, number: u64) -> io::Result<Vec<Node>> {
        let start = self.start(number)?;
        let page = self.reader.read_at(start, self.page_bytes as usize)?;
        let (flags, lower) = (u16_at(&page, 10)?, usize::from(u16_at(&page, 12)?));
        let count = lower.saturating_sub(HEADER_BYTES) / 2;
        match flags & (BRANCH | LEAF) {
            BRANCH => (0..count).map(|index| branch_node(&page, index)).collect(),
            LEAF => (0..count).map(|index| self.leaf_node(&page, start, index)).collect(),
            _ => Err(broken("a page of its tree is neither branch nor leaf")),
        }
    }

    fn leaf_node(&mut self, page: &[u8], start: u64, index: usize) -> io::Result<Node> {
        let at = node_at(page, index)?;
        let length = u64::from(u16_at(page, at)?) | u64::from(u16_at(page, at + 2)?) << 16;
        let (flags, key_bytes) = (u16_at(page, at + 4)?, usize::from(u16_at(page, at + 6)?));
        let value_at = at + 8 + key_bytes;
        let key = page.get(at + 8..value_at).ok_or_else(outside)?.to_vec();
        let offset = match flags {
            0 => start + value_at as u64,
            BIG => self.start(u64_at(page, value_at)?)? + HEADER_BYTES as u64,
            _ => return Err(broken("it holds databases in its main database")),
        };
        Ok(Node::Value { key, offset, length })
    }

    fn start(&self, page: u64) -> io::Result<u64> {
        if page >= self.pages {
            return Err(outside());
        }
        Ok(page * self.page_bytes)
    }
}

fn branch_node(page: &[u8], index: usize) -> io::Result<Node> {
    let at = node_at(page, index)?;
    let word = |offset: usize| u16_at(page, at + offset).map(u64::from);
    Ok(Node::Page(word(0)? | word(2)? << 16 | word(4)? << 32))
}

/// Where the page's directory says that a node starts.
fn node_at(page: &[u8], index: usize) -> io::Result<usize> {
    u16_at(page, HEADER_BYTES + 2 * index).map(usize::from)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; N]> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(outside)
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> io::Result<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

fn outside() -> io::Error {
    broken("it points outside of itself")
}

fn broken(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
