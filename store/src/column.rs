//! Columns of equally long PLAIN values, handed on page by page as the file or decompression left
//! them: a page without a codec is a slice of what was read, a zstd page is decompressed once.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{self, PageReader};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;
use zstd::bulk::Decompressor;

use crate::buffers::Buffer;

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

    /// Bytes from one value to the next.
    pub fn stride(self) -> usize {
        self.prefix() + self.bytes
    }

    /// Checks that `page` has `length` bytes, values and nothing else.
    fn check(self, page: &[u8], length: usize) -> Result<(), String> {
        let size = (self.bytes as u32).to_le_bytes();
        let mut values = page.chunks_exact(self.stride());
        let whole = !self.prefixed || values.all(|value| value[..LENGTH_BYTES] == size);
        match whole && page.len() == length {
            true => Ok(()),
            false => Err(format!("a value does not have {} bytes", self.bytes)),
        }
    }
}

/// Consecutive rows of a column, without the codec.
pub(crate) struct Page {
    values: Values,
    /// Which row of the row group is its first.
    pub first_row: usize,
    bytes: Bytes,
}

impl Page {
    /// The value of `row` of the row group, which does not lie before this page; `None` behind it.
    pub fn value(&self, row: usize) -> Option<&[u8]> {
        let start = (row - self.first_row) * self.values.stride() + self.values.prefix();
        self.bytes.get(start..start + self.values.bytes)
    }

    /// All values in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let prefix = self.values.prefix();
        self.bytes.chunks_exact(self.values.stride()).map(move |value| &value[prefix..])
    }
}

/// Reads the required PLAIN column `chunk` of `total` rows page by page. A page with a codec is
/// decompressed into a buffer that the next one takes over where `found` drops it.
pub(crate) fn read_column<R: ChunkReader>(
    source: &Arc<R>,
    chunk: &ColumnChunkMetaData,
    total: usize,
    values: Values,
    mut found: impl FnMut(Page),
) -> Result<(), String> {
    let mut zstd = None;
    let mut pages = match chunk.compression() {
        Compression::ZSTD(_) => {
            zstd = Some(Decompressor::new().map_err(|error| error.to_string())?);
            // The page reader is told of no codec, so that it hands out pages as they are stored:
            // its own decompression would allocate each anew.
            let plain = chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED);
            pages(source, &plain.build().map_err(|error| error.to_string())?)?
        }
        _ => pages(source, chunk)?,
    };
    let mut first_row = 0;
    while let Some(Stored { mut bytes, rows, packed }) = next_page(&mut pages)? {
        if rows > total - first_row {
            return Err(format!("more values than {total}"));
        }
        let length = rows * values.stride();
        if let Some(zstd) = zstd.as_mut().filter(|_| packed) {
            bytes = unpack(zstd, &bytes, length)?;
        }
        values.check(&bytes, length)?;
        found(Page { values, first_row, bytes });
        first_row += rows;
    }
    match first_row == total {
        true => Ok(()),
        false => Err(format!("{first_row} values, expected {total}")),
    }
}

/// A zstd page decompressed into `length` bytes.
fn unpack(zstd: &mut Decompressor<'_>, page: &[u8], length: usize) -> Result<Bytes, String> {
    let mut unpacked = Buffer::take(length);
    match zstd.decompress_to_buffer(page, &mut unpacked[..]).map_err(|error| error.to_string())? {
        filled if filled == length => Ok(Bytes::from_owner(unpacked)),
        filled => Err(format!("{filled} bytes of values, expected {length}")),
    }
}

fn pages<R: ChunkReader>(
    source: &Arc<R>,
    chunk: &ColumnChunkMetaData,
) -> Result<SerializedPageReader<R>, String> {
    let rows = usize::try_from(chunk.num_values()).map_err(|error| error.to_string())?;
    SerializedPageReader::new(Arc::clone(source), chunk, rows, None)
        .map_err(|error| error.to_string())
}

/// A page as it lies in the file.
struct Stored {
    bytes: Bytes,
    rows: usize,
    /// Whether a page like it is compressed where the column has a codec.
    packed: bool,
}

fn next_page(pages: &mut impl PageReader) -> Result<Option<Stored>, String> {
    let page = pages.get_next_page().map_err(|error| error.to_string())?;
    let (bytes, rows, encoding, packed) = match page {
        None => return Ok(None),
        Some(page::Page::DataPage { buf, num_values, encoding, .. }) => {
            (buf, num_values, encoding, true)
        }
        Some(page::Page::DataPageV2 { buf, num_values, encoding, is_compressed, .. }) => {
            (buf, num_values, encoding, is_compressed)
        }
        Some(page::Page::DictionaryPage { .. }) => return Err("it has a dictionary".to_string()),
    };
    match encoding {
        Encoding::PLAIN => Ok(Some(Stored { bytes, rows: rows as usize, packed })),
        other => Err(format!("its encoding is {other}, expected PLAIN")),
    }
}
