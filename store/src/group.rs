//! Reads row groups: only the segments asked for, each checked against its checksum.

use std::io::{self, Cursor};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::future::try_join_all;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};

use crate::cache::DiskCache;
use crate::column::{Page, Values, read_column};
use crate::dataset::Dataset;
use crate::error::{Result, StoreError};
use crate::location::blocking;
use crate::schema::{HEAD_COLUMNS, ID_COLUMN, LABEL_COLUMN, payload_columns};
use crate::strip::Strip;
use crate::table::DataFile;

/// Bytes at a Parquet file's end: the footer's length and the magic.
const TRAILER_BYTES: usize = 8;
const ID: Values = Values { bytes: 8, prefixed: false };
const LABEL: Values = Values { bytes: 4, prefixed: false };

/// What to read of a row group.
pub(crate) struct GroupReader {
    pub dataset: Dataset,
    /// Index of the data file in the dataset.
    pub file: usize,
    /// Index of the row group in the file.
    pub group: usize,
    /// Payload columns, by index.
    pub payloads: Arc<[usize]>,
    /// Whether to check the segments read against their checksums.
    pub verify: bool,
}

/// A row group as it is stored.
pub(crate) struct EncodedGroup {
    reader: GroupReader,
    footer: Arc<ParquetMetaData>,
    segments: Arc<Segments>,
    /// The file of the payload columns, where they are read while they are decoded.
    file: Option<PathBuf>,
}

/// A row group decoded.
pub(crate) struct RowGroup {
    pub ids: Vec<i64>,
    pub labels: Vec<i32>,
    /// Pages of the payload columns, each with its place among the columns asked for.
    pub pages: Vec<(usize, Page)>,
}

impl GroupReader {
    /// Bytes it takes in memory when decoded.
    pub fn bytes(&self) -> usize {
        let rows = self.dataset.files()[self.file].summary.row_groups[self.group].rows as usize;
        let payloads = self.payloads.iter().map(|&payload| self.values(payload).stride());
        rows * (ID.stride() + LABEL.stride() + payloads.sum::<usize>())
    }

    /// Fetches the segments that are needed, the payload columns of local files but for their
    /// decoding.
    pub async fn read(self) -> Result<EncodedGroup> {
        let footer = footer(&self.dataset, self.file).await?;
        let path = &self.dataset.files()[self.file].path;
        let file = match self.dataset.cache() {
            Some(_) => None,
            None => self.dataset.location().local(path),
        };
        let ahead = if file.is_some() { &[][..] } else { &self.payloads };
        let segments = fetch(&self.dataset, self.file, self.group, ahead, self.verify).await?;
        let segments = Arc::new(segments);
        Ok(EncodedGroup { reader: self, footer, segments, file })
    }

    fn values(&self, payload: usize) -> Values {
        let metadata = self.dataset.metadata();
        let bytes = payload_columns(metadata)[payload].1.bytes(metadata.dtype);
        Values { bytes, prefixed: true }
    }
}

impl EncodedGroup {
    /// Decodes ids and labels, which it returns, and hands on the pages of the payload columns,
    /// each with its column's place among those asked for.
    pub fn decode(&self, mut found: impl FnMut(usize, Page)) -> Result<(Vec<i64>, Vec<i32>)> {
        let (mut ids, mut labels) = (Vec::new(), Vec::new());
        self.column(ID_COLUMN, ID, |page| {
            ids.extend(page.iter().map(|mut value| value.get_i64_le()))
        })?;
        self.column(LABEL_COLUMN, LABEL, |page| {
            labels.extend(page.iter().map(|mut value| value.get_i32_le()));
        })?;
        for (place, &payload) in self.reader.payloads.iter().enumerate() {
            self.payload(payload, |page| found(place, page))?;
        }
        Ok((ids, labels))
    }

    fn payload(&self, payload: usize, found: impl FnMut(Page)) -> Result<()> {
        let (column, values) = (HEAD_COLUMNS.len() + payload, self.reader.values(payload));
        let Some(path) = &self.file else {
            return self.column(column, values, found);
        };
        let GroupReader { dataset, file, group, verify, .. } = &self.reader;
        let (file, segment) = (&dataset.files()[*file], payload + 1);
        let damaged = |reason: io::Error| self.damaged(column, reason.to_string());
        let strip = Arc::new(
            Strip::open(path, file.summary.segment(*group, segment), *verify).map_err(damaged)?,
        );
        let read = self.column_of(&strip, column, values, found);
        // Of a damaged column it is said that it is, whatever its pages led to.
        let expected = file.summary.row_groups[*group].crcs[segment];
        match strip.checksum().map_err(damaged)? {
            Some(crc) if crc != expected => Err(differs(dataset, file, *group, segment)),
            _ => read,
        }
    }

    fn column(&self, column: usize, values: Values, found: impl FnMut(Page)) -> Result<()> {
        self.column_of(&self.segments, column, values, found)
    }

    fn column_of<R: ChunkReader>(
        &self,
        source: &Arc<R>,
        column: usize,
        values: Values,
        found: impl FnMut(Page),
    ) -> Result<()> {
        let row_group = self.footer.row_group(self.reader.group);
        let (rows, chunk) = (row_group.num_rows() as usize, row_group.column(column));
        read_column(source, chunk, rows, values, found)
            .map_err(|reason| self.damaged(column, reason))
    }

    fn damaged(&self, column: usize, reason: String) -> StoreError {
        let GroupReader { dataset, file, group, .. } = &self.reader;
        let path = self.footer.row_group(*group).column(column).column_path();
        let place = format!("row group {group}, column {path}");
        StoreError::corrupt(&dataset.files()[*file].path, place, reason)
    }
}

/// The error of a segment whose checksum is not the commit's.
fn differs(dataset: &Dataset, file: &DataFile, group: usize, segment: usize) -> StoreError {
    let column = match segment {
        0 => "columns id to view".to_string(),
        segment => format!("column {}", payload_columns(dataset.metadata())[segment - 1].0),
    };
    let place = format!("row group {group}, {column}");
    StoreError::corrupt(&file.path, place, "the checksum differs")
}

/// The file's footer, from the dataset's cache or from storage.
pub(crate) async fn footer(dataset: &Dataset, file: usize) -> Result<Arc<ParquetMetaData>> {
    let data_file = &dataset.files()[file];
    if let Some(footer) = dataset.footers().get(&data_file.path) {
        return Ok(footer);
    }
    let range = data_file.summary.footer_start()..data_file.size;
    let ends = vec![range.end];
    let fetched = fetch_range(dataset, data_file, range.clone(), ends, "the footer").await?;
    let cached = matches!(fetched, Fetched::Cache(_));
    let sound = match &fetched {
        Fetched::Cache(_) => true,
        Fetched::Storage(_, crcs) => crcs == &[data_file.summary.footer_crc],
    };
    let tail = fetched.bytes();
    if !sound {
        return Err(StoreError::corrupt(&data_file.path, "the footer", "its checksum differs"));
    }
    let footer = parse_footer(&tail)
        .map_err(|reason| StoreError::corrupt(&data_file.path, "the footer", reason))?;
    let groups = data_file.summary.row_groups.iter().map(|group| group.rows as i64);
    if !groups.eq(footer.row_groups().iter().map(|group| group.num_rows())) {
        let reason = "its row groups are not those of the commit";
        return Err(StoreError::corrupt(&data_file.path, "the footer", reason));
    }
    if !cached {
        keep_range(dataset, data_file, range, tail).await;
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
    let mut runs: Vec<Run> = Vec::new();
    for segment in wanted {
        let range = data_file.summary.segment(group, segment);
        match runs.last_mut() {
            Some(run) if run.range.end == range.start => {
                run.range.end = range.end;
                run.segments.push((segment, range.end));
            }
            _ => runs.push(Run { segments: vec![(segment, range.end)], range }),
        }
    }
    let reads = runs.iter().map(|run| fetch_run(dataset, data_file, group, run, verify));
    let parts = try_join_all(reads).await?;
    let parts = runs.iter().map(|run| run.range.start).zip(parts).collect();
    Ok(Segments { runs: parts, size: data_file.size })
}

/// Segments of a row group that follow each other in the file.
struct Run {
    range: Range<u64>,
    /// Index and end of each.
    segments: Vec<(usize, u64)>,
}

async fn fetch_run(
    dataset: &Dataset,
    file: &DataFile,
    group: usize,
    run: &Run,
    verify: bool,
) -> Result<Bytes> {
    // What is kept in a cache must be right, asked to verify or not.
    let ends = match verify || dataset.cache().is_some() {
        true => run.segments.iter().map(|&(_, end)| end).collect(),
        false => Vec::new(),
    };
    let place = format!("row group {group}");
    let fetched = fetch_range(dataset, file, run.range.clone(), ends, &place).await?;
    let Fetched::Storage(bytes, crcs) = fetched else { return Ok(fetched.bytes()) };
    let expected = &file.summary.row_groups[group].crcs;
    let mut found = run.segments.iter().zip(&crcs);
    if let Some(((segment, _), _)) = found.find(|((segment, _), crc)| expected[*segment] != **crc) {
        return Err(differs(dataset, file, group, *segment));
    }
    keep_range(dataset, file, run.range.clone(), bytes.clone()).await;
    Ok(bytes)
}

/// Bytes of a file, and where they were found.
enum Fetched {
    /// In the dataset's cache, which checked them.
    Cache(Bytes),
    /// In storage, with the checksums asked for.
    Storage(Bytes, Vec<u32>),
}

impl Fetched {
    fn bytes(self) -> Bytes {
        match self {
            Self::Cache(bytes) | Self::Storage(bytes, _) => bytes,
        }
    }
}

async fn fetch_range(
    dataset: &Dataset,
    file: &DataFile,
    range: Range<u64>,
    ends: Vec<u64>,
    place: &str,
) -> Result<Fetched> {
    let wanted = range.end.saturating_sub(range.start);
    if let Some(cache) = dataset.cache() {
        let (cache, name) = (Arc::clone(cache), DiskCache::name(dataset.uri(), &file.path, &range));
        if let Some(bytes) = blocking(move || cache.get(&name, wanted as usize)).await {
            return Ok(Fetched::Cache(bytes));
        }
    }
    let (bytes, crcs) = dataset
        .location()
        .read(&file.path, range, ends)
        .await
        .map_err(|error| StoreError::storage("reading", &file.path, error))?;
    if bytes.len() as u64 != wanted {
        let reason = format!("{} bytes, expected {wanted}: the file is truncated", bytes.len());
        return Err(StoreError::corrupt(&file.path, place, reason));
    }
    Ok(Fetched::Storage(bytes, crcs))
}

/// Keeps what was fetched and checked in the dataset's cache, if it has one.
async fn keep_range(dataset: &Dataset, file: &DataFile, range: Range<u64>, bytes: Bytes) {
    if let Some(cache) = dataset.cache() {
        let (cache, name) = (Arc::clone(cache), DiskCache::name(dataset.uri(), &file.path, &range));
        blocking(move || cache.put(&name, &bytes)).await;
    }
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
