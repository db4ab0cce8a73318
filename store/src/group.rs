//! Reads row groups: only the segments asked for, each checked against its checksum.

use std::io::Cursor;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::future::try_join_all;
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use crate::buffers::Buffer;
use crate::dataset::Dataset;
use crate::error::{Result, StoreError};
use crate::location::blocking;
use crate::schema::{HEAD_COLUMNS, ID_COLUMN, LABEL_COLUMN, payload_columns};
use crate::table::DataFile;

/// Bytes at a Parquet file's end: the footer's length and the magic.
const TRAILER_BYTES: usize = 8;
/// Bytes before each BYTE_ARRAY value: its length.
const LENGTH_BYTES: usize = 4;

/// One decoded row group: ids, labels and, for each payload column asked for, all rows' values in
/// one contiguous buffer.
#[derive(Debug)]
pub(crate) struct RowGroup {
    pub ids: Vec<i64>,
    pub labels: Vec<i32>,
    pub payloads: Vec<Buffer>,
}

/// Reads row group `group` of file `file`, with the payload columns named by index.
pub(crate) async fn read_group(
    dataset: Dataset,
    file: usize,
    group: usize,
    payloads: Arc<[usize]>,
    verify: bool,
) -> Result<RowGroup> {
    let footer = footer(&dataset, file).await?;
    let segments = fetch(&dataset, file, group, &payloads, verify).await?;
    blocking(move || decode(&dataset, file, group, &payloads, &footer, &segments)).await
}

/// The file's footer, from the dataset's cache or from storage.
pub(crate) async fn footer(dataset: &Dataset, file: usize) -> Result<Arc<ParquetMetaData>> {
    let data_file = &dataset.files()[file];
    if let Some(footer) = dataset.footers().get(&data_file.path) {
        return Ok(footer);
    }
    let range = data_file.summary.footer_start()..data_file.size;
    let tail = fetch_range(dataset, data_file, range, "the footer").await?;
    if crc32fast::hash(&tail) != data_file.summary.footer_crc {
        return Err(StoreError::corrupt(&data_file.path, "the footer", "its checksum differs"));
    }
    let footer = parse_footer(&tail)
        .map_err(|reason| StoreError::corrupt(&data_file.path, "the footer", reason))?;
    let groups = data_file.summary.row_groups.iter().map(|group| group.rows as i64);
    if !groups.eq(footer.row_groups().iter().map(|group| group.num_rows())) {
        let reason = "its row groups are not those of the commit";
        return Err(StoreError::corrupt(&data_file.path, "the footer", reason));
    }
    let footer = Arc::new(footer);
    dataset.footers().insert(&data_file.path, &footer);
    Ok(footer)
}

fn parse_footer(tail: &Bytes) -> std::result::Result<ParquetMetaData, String> {
    let trailer = tail.len().checked_sub(TRAILER_BYTES).ok_or("it is too short")?;
    let length = (&tail[trailer..]).get_u32_le() as usize;
    let start = trailer.checked_sub(length).ok_or("its length exceeds it")?;
    ParquetMetaDataReader::decode_metadata(&tail[start..trailer]).map_err(|e| e.to_string())
}

/// Fetches the head segment and the payload segments of a row group in as few reads as
/// contiguity allows.
pub(crate) async fn fetch(
    dataset: &Dataset,
    file: usize,
    group: usize,
    payloads: &[usize],
    verify: bool,
) -> Result<Segments> {
    let data_file = &dataset.files()[file];
    let mut wanted: Vec<usize> =
        std::iter::once(0).chain(payloads.iter().map(|payload| payload + 1)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let ranges: Vec<_> =
        wanted.iter().map(|&segment| data_file.summary.segment(group, segment)).collect();
    let mut runs: Vec<Range<u64>> = Vec::new();
    for range in &ranges {
        match runs.last_mut() {
            Some(run) if run.end == range.start => run.end = range.end,
            _ => runs.push(range.clone()),
        }
    }
    let place = format!("row group {group}");
    let reads = runs.iter().map(|run| fetch_range(dataset, data_file, run.clone(), &place));
    let buffers = try_join_all(reads).await?;
    let runs = runs.iter().map(|run| run.start).zip(buffers).collect();
    let segments = Segments { runs, size: data_file.size };
    if !verify {
        return Ok(segments);
    }
    let crcs: Vec<_> =
        wanted.iter().map(|&segment| data_file.summary.row_groups[group].crcs[segment]).collect();
    let (segments, failed) = blocking(move || {
        let failed = ranges.iter().zip(crcs).position(|(range, crc)| {
            let bytes = segments.slice(range.start, (range.end - range.start) as usize);
            bytes.is_none_or(|bytes| crc32fast::hash(&bytes) != crc)
        });
        (segments, failed)
    })
    .await;
    match failed {
        None => Ok(segments),
        Some(index) => {
            let column = match wanted[index] {
                0 => "columns id to view".to_string(),
                segment => format!("column {}", payload_columns(dataset.metadata())[segment - 1].0),
            };
            let place = format!("row group {group}, {column}");
            Err(StoreError::corrupt(&data_file.path, place, "the checksum differs"))
        }
    }
}

async fn fetch_range(
    dataset: &Dataset,
    file: &DataFile,
    range: Range<u64>,
    place: &str,
) -> Result<Bytes> {
    let wanted = range.end.saturating_sub(range.start);
    let bytes = dataset
        .location()
        .read(&file.path, range)
        .await
        .map_err(|error| StoreError::storage("reading", &file.path, error))?;
    if bytes.len() as u64 != wanted {
        let reason = format!("{} bytes, expected {wanted}: the file is truncated", bytes.len());
        return Err(StoreError::corrupt(&file.path, place, reason));
    }
    Ok(bytes)
}

/// Parts of a file, readable at their offsets in the file.
pub(crate) struct Segments {
    /// Offset and bytes of each part.
    runs: Vec<(u64, Bytes)>,
    size: u64,
}

impl Segments {
    fn slice(&self, start: u64, length: usize) -> Option<Bytes> {
        self.runs.iter().find_map(|(offset, bytes)| {
            let from = usize::try_from(start.checked_sub(*offset)?).ok()?;
            let to = from.checked_add(length)?;
            (to <= bytes.len()).then(|| bytes.slice(from..to))
        })
    }
}

impl Length for Segments {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Segments {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        self.runs
            .iter()
            .find_map(|(offset, bytes)| {
                let from = usize::try_from(start.checked_sub(*offset)?).ok()?;
                (from < bytes.len()).then(|| Cursor::new(bytes.slice(from..)))
            })
            .ok_or_else(|| ParquetError::EOF(format!("offset {start} was not fetched")))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.slice(start, length)
            .ok_or_else(|| ParquetError::EOF(format!("{length} bytes at {start} were not fetched")))
    }
}

fn decode(
    dataset: &Dataset,
    file: usize,
    group: usize,
    payloads: &[usize],
    footer: &ParquetMetaData,
    segments: &Segments,
) -> Result<RowGroup> {
    let metadata = dataset.metadata();
    let rows = footer.row_group(group).num_rows() as usize;
    let read = |column: usize, value_bytes: usize, prefixed: bool| {
        let chunk = footer.row_group(group).column(column);
        let reader = SegmentsRef(segments);
        SerializedPageReader::new(Arc::new(reader), chunk, rows, None)
            .map_err(|error| error.to_string())
            .and_then(|pages| read_plain(pages, rows, value_bytes, prefixed))
            .map_err(|reason| {
                let place = format!("row group {group}, column {}", chunk.column_path());
                StoreError::corrupt(&dataset.files()[file].path, place, reason)
            })
    };
    let ids = read(ID_COLUMN, 8, false)?;
    let labels = read(LABEL_COLUMN, 4, false)?;
    let columns = payload_columns(metadata);
    let payloads = payloads
        .iter()
        .map(|&index| {
            read(HEAD_COLUMNS.len() + index, columns[index].1.bytes(metadata.dtype), true)
        })
        .collect::<Result<_>>()?;
    Ok(RowGroup {
        ids: ids.chunks_exact(8).map(|mut value| value.get_i64_le()).collect(),
        labels: labels.chunks_exact(4).map(|mut value| value.get_i32_le()).collect(),
        payloads,
    })
}

/// A borrowed [`Segments`] that page readers can share.
struct SegmentsRef<'a>(&'a Segments);

impl Length for SegmentsRef<'_> {
    fn len(&self) -> u64 {
        self.0.size
    }
}

impl ChunkReader for SegmentsRef<'_> {
    type T = Cursor<Bytes>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        self.0.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        self.0.get_bytes(start, length)
    }
}

/// Copies the values of a required PLAIN column, each `value_bytes` long, into one buffer;
/// `prefixed` values (BYTE_ARRAY) carry their length before them.
fn read_plain(
    mut pages: impl PageReader,
    rows: usize,
    value_bytes: usize,
    prefixed: bool,
) -> std::result::Result<Buffer, String> {
    let total = rows.checked_mul(value_bytes).ok_or("the row count overflows")?;
    let mut values = Buffer::take(total);
    let mut slots = values.chunks_exact_mut(value_bytes);
    let prefix = if prefixed { LENGTH_BYTES } else { 0 };
    while let Some(page) = pages.get_next_page().map_err(|error| error.to_string())? {
        let (page, encoding) = match page {
            Page::DataPage { buf, encoding, .. } | Page::DataPageV2 { buf, encoding, .. } => {
                (buf, encoding)
            }
            Page::DictionaryPage { .. } => return Err("it has a dictionary".to_string()),
        };
        if encoding != Encoding::PLAIN {
            return Err(format!("its encoding is {encoding}, expected PLAIN"));
        }
        for value in page.chunks(prefix + value_bytes) {
            let (length, value) = value.split_at(prefix.min(value.len()));
            let whole = value.len() == value_bytes
                && (!prefixed || length == (value_bytes as u32).to_le_bytes());
            let slot = slots.next().ok_or_else(|| format!("more than {rows} values"))?;
            if !whole {
                return Err(format!("a value does not have {value_bytes} bytes"));
            }
            slot.copy_from_slice(value);
        }
    }
    match slots.len() {
        0 => Ok(values),
        missing => Err(format!("{missing} of {rows} values are missing")),
    }
}
