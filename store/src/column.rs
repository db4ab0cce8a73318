//! Columns of equally long PLAIN values, read where the file or decompression left them.
//!
//! Nothing is copied here: a page without a codec is a slice of what was read, a zstd page is
//! decompressed once, and rows go from there straight into a batch.

use std::io::Cursor;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use crate::buffers::Buffer;
use crate::group::Segments;

/// Bytes before each BYTE_ARRAY value: its length.
const LENGTH_BYTES: usize = 4;

/// How values lie in a page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values {
    /// Bytes of each.
    pub bytes: usize,
    /// Whether each comes after its length (BYTE_ARRAY).
    pub prefixed: bool,
}

impl Values {
    fn prefix(self) -> usize {
        if self.prefixed { LENGTH_BYTES } else { 0 }
    }

    fn stride(self) -> usize {
        self.prefix() + self.bytes
    }

    /// Checks that `page` holds whole values and nothing else.
    fn check(self, page: &[u8]) -> Result<(), String> {
        let length = (self.bytes as u32).to_le_bytes();
        let mut values = page.chunks_exact(self.stride());
        let whole = !self.prefixed || values.all(|value| value[..LENGTH_BYTES] == length);
        match whole && page.len().is_multiple_of(self.stride()) {
            true => Ok(()),
            false => Err(format!("a value does not have {} bytes", self.bytes)),
        }
    }
}

/// One column of a row group.
#[derive(Debug)]
pub(crate) struct Column {
    values: Values,
    /// Pages without their codec, in order.
    pages: Vec<Bytes>,
    /// The row after the last one of each page.
    ends: Vec<usize>,
}

impl Column {
    /// Reads the required PLAIN column `chunk` of `rows` rows.
    pub fn read(
        segments: &Segments,
        chunk: &ColumnChunkMetaData,
        rows: usize,
        values: Values,
    ) -> Result<Self, String> {
        let total = rows.checked_mul(values.stride()).ok_or("the row count overflows")?;
        let mut column = Self { values, pages: Vec::new(), ends: Vec::new() };
        if let Compression::ZSTD(_) = chunk.compression() {
            column.push(unpack(segments, chunk, total)?)?;
        } else {
            let mut pages = pages(segments, chunk)?;
            while let Some((page, _)) = next_page(&mut pages)? {
                column.push(page)?;
            }
        }
        match column.ends.last().copied().unwrap_or(0) {
            found if found == rows => Ok(column),
            found => Err(format!("{found} values, expected {rows}")),
        }
    }

    fn push(&mut self, page: Bytes) -> Result<(), String> {
        self.values.check(&page)?;
        let first = self.ends.last().copied().unwrap_or(0);
        self.ends.push(first + page.len() / self.values.stride());
        self.pages.push(page);
        Ok(())
    }

    /// Bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        self.pages.iter().map(Bytes::len).sum()
    }

    /// The value of `row`, which is below the column's rows.
    pub fn value(&self, row: usize) -> &[u8] {
        let page = self.ends.partition_point(|&end| end <= row);
        let first = page.checked_sub(1).map_or(0, |before| self.ends[before]);
        let start = (row - first) * self.values.stride() + self.values.prefix();
        &self.pages[page][start..start + self.values.bytes]
    }

    /// All values in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let (stride, prefix) = (self.values.stride(), self.values.prefix());
        self.pages.iter().flat_map(move |page| page.chunks_exact(stride)).map(move |v| &v[prefix..])
    }
}

/// All zstd pages of `chunk`, decompressed one after the other into `total` bytes.
fn unpack(segments: &Segments, chunk: &ColumnChunkMetaData, total: usize) -> Result<Bytes, String> {
    // The page reader is told of no codec, so that it hands out pages as they are stored:
    // its own decompression would allocate each anew.
    let stored = chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build();
    let mut pages = pages(segments, &stored.map_err(|error| error.to_string())?)?;
    let mut zstd = zstd::bulk::Decompressor::new().map_err(|error| error.to_string())?;
    let mut unpacked = Buffer::take(total);
    let mut filled = 0;
    while let Some((page, packed)) = next_page(&mut pages)? {
        let rest = &mut unpacked[filled..];
        filled += if packed {
            zstd.decompress_to_buffer(&page, rest).map_err(|error| error.to_string())?
        } else {
            rest.get_mut(..page.len()).ok_or("a page is too long")?.copy_from_slice(&page);
            page.len()
        };
    }
    match filled == total {
        true => Ok(Bytes::from_owner(unpacked)),
        false => Err(format!("{filled} bytes of values, expected {total}")),
    }
}

type Pages<'a> = SerializedPageReader<SegmentsRef<'a>>;

fn pages<'a>(segments: &'a Segments, chunk: &ColumnChunkMetaData) -> Result<Pages<'a>, String> {
    let rows = usize::try_from(chunk.num_values()).map_err(|error| error.to_string())?;
    SerializedPageReader::new(Arc::new(SegmentsRef(segments)), chunk, rows, None)
        .map_err(|error| error.to_string())
}

/// The next page's values as the reader hands them out, and whether a page like it is stored
/// compressed.
fn next_page(pages: &mut Pages) -> Result<Option<(Bytes, bool)>, String> {
    let (page, encoding, packed) = match pages.get_next_page().map_err(|error| error.to_string())? {
        None => return Ok(None),
        Some(Page::DataPage { buf, encoding, .. }) => (buf, encoding, true),
        Some(Page::DataPageV2 { buf, encoding, is_compressed, .. }) => {
            (buf, encoding, is_compressed)
        }
        Some(Page::DictionaryPage { .. }) => return Err("it has a dictionary".to_string()),
    };
    match encoding {
        Encoding::PLAIN => Ok(Some((page, packed))),
        other => Err(format!("its encoding is {other}, expected PLAIN")),
    }
}

/// A borrowed [`Segments`] that page readers can share.
struct SegmentsRef<'a>(&'a Segments);

impl Length for SegmentsRef<'_> {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for SegmentsRef<'_> {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        self.0.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.0.get_bytes(start, length)
    }
}
