//! Writes one shard: rows in, one Parquet file and one commit out.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Int8Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::buffered::BufWriter;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as ParquetCompression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use tokio::io::AsyncWriteExt;

use crate::dataset::Dataset;
use crate::error::{Result, StoreError};
use crate::location::{blocking, on_runtime, retrying};
use crate::metadata::{Metadata, Row};
use crate::schema::{HEAD_COLUMNS, arrow_schema, payload_columns};
use crate::shard::{RowGroupSummary, ShardSummary, validate_name};
use crate::statistics::LevelSums;
use crate::table::{Commit, DataFile};

/// Rows of a row group, whatever their size.
const ROW_GROUP_ROWS_MAX: usize = 8192;
/// Target size of a data page: small enough to read single samples, and to stay in a core's cache
/// between decompression and copying.
const PAGE_BYTES_TARGET: usize = 128 << 10;
/// Values between two looks at a page's size.
const PAGE_CHECK_ROWS: usize = 16;

/// How data pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Zstandard at a level from 1 to 22.
    Zstd(i32),
    /// Stored as they are.
    None,
}

/// Layout of the shards to write.
#[derive(Debug, Clone, Copy)]
pub struct ShardOptions {
    /// Codec of the data pages.
    pub compression: Compression,
    /// Uncompressed size of a row group. The loader reads whole row groups and mixes several.
    pub row_group_bytes_target: usize,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self { compression: Compression::Zstd(1), row_group_bytes_target: 8 << 20 }
    }
}

/// One shard being written; nothing of it is visible before [`ShardWriter::commit`] returns.
///
/// Memory: one row group, plus the upload's buffer (10 MB).
pub struct ShardWriter {
    dataset: Dataset,
    shard: String,
    path: String,
    pending: Vec<Row>,
    row_group_rows: usize,
    rows: u64,
    sums: Vec<LevelSums>,
    groups: Vec<RowGroupSummary>,
    /// Taken while a row group is being encoded; absent after a failure.
    parts: Option<(Encoder, BufWriter)>,
}

impl ShardWriter {
    pub(crate) fn new(dataset: Dataset, shard: &str, options: ShardOptions) -> Result<Self> {
        validate_name(shard).map_err(StoreError::Config)?;
        let metadata = dataset.metadata();
        let path = format!("data/{shard}-{:016x}.parquet", rand::random::<u64>());
        let location = dataset.location();
        let upload = BufWriter::new(Arc::clone(&location.store), location.path(&path));
        let encoder = Encoder::new(metadata, options)?;
        let row_group_rows = (options.row_group_bytes_target / metadata.sample_bytes())
            .clamp(PAGE_CHECK_ROWS, ROW_GROUP_ROWS_MAX);
        Ok(Self {
            shard: shard.to_string(),
            path,
            pending: Vec::with_capacity(row_group_rows),
            row_group_rows,
            rows: 0,
            sums: metadata.levels.iter().map(|spec| LevelSums::new(spec.channels)).collect(),
            groups: Vec::new(),
            parts: Some((encoder, upload)),
            dataset,
        })
    }

    /// Adds a row; rows keep their order.
    ///
    /// # Errors
    /// [`StoreError::Row`] where a level is missing, has the wrong size or holds a value that is
    /// not finite (the row is not added); [`StoreError::Storage`] where the upload fails.
    pub async fn push(&mut self, row: Row) -> Result<()> {
        self.accept(&row).map_err(|reason| StoreError::Row {
            shard: self.shard.clone(),
            row: self.rows,
            id: row.id,
            reason,
        })?;
        self.rows += 1;
        self.pending.push(row);
        if self.pending.len() == self.row_group_rows {
            self.flush_group().await?;
        }
        Ok(())
    }

    /// Rows pushed so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Completes the file and commits it, once, whoever else writes the same shard.
    ///
    /// Where another writer came first its rows stand, this file is removed and the answer is
    /// [`Commit::AlreadyDone`]; where the file of those rows is lost and this one is the same to the
    /// byte, it takes its place ([`Commit::Restored`]).
    pub async fn commit(mut self) -> Result<Commit> {
        if !self.pending.is_empty() {
            self.flush_group().await?;
        }
        let (encoder, mut upload) = self.take_parts()?;
        let (tail, footer_crc) = blocking(move || encoder.finish()).await?;
        let location = self.dataset.location().clone();
        let path = location.path(&self.path);
        let store = Arc::clone(&location.store);
        let failed = |error| location.failed("writing", &path, error);
        on_runtime(async move {
            upload.put(tail).await?;
            // The writer's errors come wrapped as I/O errors.
            upload.shutdown().await.map_err(|error| object_store::Error::Generic {
                store: "upload",
                source: error.into(),
            })
        })
        .await
        .map_err(failed)?;
        let meta = retrying(|| {
            let (store, object) = (Arc::clone(&store), path.clone());
            on_runtime(async move { store.head(&object).await })
        })
        .await
        .map_err(failed)?;
        let file = DataFile {
            path: self.path.clone(),
            size: meta.size,
            summary: ShardSummary {
                shard: self.shard.clone(),
                row_groups: std::mem::take(&mut self.groups),
                footer_crc,
                levels: std::mem::take(&mut self.sums),
            },
        };
        let table = self.dataset.table().clone();
        let modified_ms = meta.last_modified.timestamp_millis();
        let creation = self.dataset.creation().map(str::to_owned);
        let committed = file.clone();
        let outcome =
            blocking(move || table.commit(&committed, modified_ms, creation.as_deref())).await?;
        match outcome {
            Commit::AlreadyDone => restore(&self.dataset, &file).await,
            outcome => Ok(outcome),
        }
    }

    fn accept(&mut self, row: &Row) -> std::result::Result<(), String> {
        let metadata = self.dataset.metadata();
        let columns = payload_columns(metadata);
        if row.levels.len() != metadata.levels.len() {
            let (found, expected) = (row.levels.len(), metadata.levels.len());
            return Err(format!("{found} levels, expected {expected}"));
        }
        if row.logvar.is_some() != metadata.logvar().is_some() {
            return Err("log-variance belongs to datasets of posterior moments only".to_string());
        }
        let payloads = row.levels.iter().chain(&row.logvar);
        let mut decoded = Vec::with_capacity(columns.len());
        for ((name, spec), payload) in columns.iter().zip(payloads) {
            let expected = spec.bytes(metadata.dtype);
            if payload.len() != expected {
                return Err(format!("{name} has {} bytes, expected {expected}", payload.len()));
            }
            let values = metadata.dtype.decode(payload);
            if !values.iter().all(|value| value.is_finite()) {
                return Err(format!("{name} holds a value that is not finite"));
            }
            decoded.push(values);
        }
        for (sums, values) in self.sums.iter_mut().zip(&decoded) {
            sums.add(values);
        }
        Ok(())
    }

    async fn flush_group(&mut self) -> Result<()> {
        let (mut encoder, mut upload) = self.take_parts()?;
        let rows = std::mem::take(&mut self.pending);
        let (encoder, bytes, group) = blocking(move || {
            let (bytes, group) = encoder.encode(&rows)?;
            Ok::<_, StoreError>((encoder, bytes, group))
        })
        .await?;
        let (upload, sent) = on_runtime(async move {
            let sent = upload.put(bytes).await;
            (upload, sent)
        })
        .await;
        sent.map_err(|error| {
            let location = self.dataset.location();
            location.failed("writing", &location.path(&self.path), error)
        })?;
        self.groups.push(group);
        self.parts = Some((encoder, upload));
        Ok(())
    }

    fn take_parts(&mut self) -> Result<(Encoder, BufWriter)> {
        self.parts.take().ok_or_else(|| {
            StoreError::Config(format!(
                "shard '{}' failed before and must be begun anew",
                self.shard
            ))
        })
    }
}

/// Puts `file` into the place of the one that the log names for its shard, where that is lost, and
/// removes it otherwise.
async fn restore(dataset: &Dataset, file: &DataFile) -> Result<Commit> {
    let newest = dataset.refresh().await?;
    let lost = newest.lost().await?.contains(&file.summary.shard);
    let theirs = newest.files().iter().find(|one| one.summary.shard == file.summary.shard);
    let (location, ours) = (dataset.location().clone(), file.path.clone());
    let from = location.path(&ours);
    if let Some(theirs) = theirs.filter(|_| lost) {
        if !theirs.is_of_the_same_bytes(file) {
            let reason = "it is lost, and what was encoded now has other bytes than it had: \
                          encode into another dataset";
            return Err(StoreError::corrupt(&theirs.path, "its place", reason));
        }
        let to = location.path(&theirs.path);
        let (store, target) = (Arc::clone(&location.store), to.clone());
        on_runtime(async move { store.rename(&from, &target).await })
            .await
            .map_err(|error| location.failed("writing", &to, error))?;
        return Ok(Commit::Restored);
    }
    let removed = on_runtime(async move { location.store.delete(&from).await }).await;
    if let Err(error) = removed {
        tracing::warn!(file = ours, %error, "superfluous shard file not removed");
    }
    Ok(Commit::AlreadyDone)
}

/// Encodes rows as Parquet, handing out the bytes of each row group as it is complete.
struct Encoder {
    metadata: Metadata,
    schema: SchemaRef,
    writer: ArrowWriter<Vec<u8>>,
    /// Bytes handed out so far.
    offset: u64,
}

impl Encoder {
    fn new(metadata: &Metadata, options: ShardOptions) -> Result<Self> {
        let schema = arrow_schema(metadata);
        let properties = properties(metadata, options)?;
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))
            .map_err(encoding_error)?;
        Ok(Self { metadata: metadata.clone(), schema, writer, offset: 0 })
    }

    fn encode(&mut self, rows: &[Row]) -> Result<(Bytes, RowGroupSummary)> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), self.columns(rows))
            .map_err(|error| encoding_error(error.into()))?;
        self.writer.write(&batch).and_then(|()| self.writer.flush()).map_err(encoding_error)?;
        self.writer.sync().map_err(|error| encoding_error(error.into()))?;
        let bytes = Bytes::from(std::mem::take(self.writer.inner_mut()));
        let group = self.writer.flushed_row_groups().last().expect("a row group was just written");
        let ends: Vec<u64> = (HEAD_COLUMNS.len() - 1..self.schema.fields().len())
            .map(|column| {
                let (start, length) = group.column(column).byte_range();
                start + length
            })
            .collect();
        let mut start = self.offset;
        let crcs = ends.iter().map(|&end| {
            let segment = (start - self.offset) as usize..(end - self.offset) as usize;
            start = end;
            crc32fast::hash(&bytes[segment])
        });
        let summary = RowGroupSummary { rows: rows.len() as u64, crcs: crcs.collect(), ends };
        self.offset += bytes.len() as u64;
        Ok((bytes, summary))
    }

    /// Page index and footer, with their checksum.
    fn finish(mut self) -> Result<(Bytes, u32)> {
        self.writer.finish().map_err(encoding_error)?;
        let bytes = Bytes::from(std::mem::take(self.writer.inner_mut()));
        let crc = crc32fast::hash(&bytes);
        Ok((bytes, crc))
    }

    fn columns(&self, rows: &[Row]) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.label))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.source))),
            Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| row.sha256))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.width))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.height))),
            Arc::new(Int8Array::from_iter_values(rows.iter().map(|row| row.view))),
        ];
        for level in 0..self.metadata.levels.len() {
            let values = rows.iter().map(|row| &row.levels[level]);
            columns.push(Arc::new(BinaryArray::from_iter_values(values)));
        }
        if self.metadata.logvar().is_some() {
            let values = rows.iter().flat_map(|row| &row.logvar);
            columns.push(Arc::new(BinaryArray::from_iter_values(values)));
        }
        columns
    }
}

fn properties(metadata: &Metadata, options: ShardOptions) -> Result<WriterProperties> {
    let compression = match options.compression {
        Compression::Zstd(level) => ParquetCompression::ZSTD(
            ZstdLevel::try_new(level).map_err(|error| StoreError::Config(error.to_string()))?,
        ),
        Compression::None => ParquetCompression::UNCOMPRESSED,
    };
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("lapflow ", env!("CARGO_PKG_VERSION")).to_string())
        .set_compression(compression)
        .set_dictionary_enabled(false)
        .set_encoding(Encoding::PLAIN)
        .set_data_page_size_limit(PAGE_BYTES_TARGET)
        .set_write_batch_size(PAGE_CHECK_ROWS)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX));
    for (name, _) in payload_columns(metadata) {
        properties = properties
            .set_column_statistics_enabled(ColumnPath::from(name), EnabledStatistics::None);
    }
    Ok(properties.build())
}

fn encoding_error(error: parquet::errors::ParquetError) -> StoreError {
    StoreError::Config(format!("rows could not be encoded as Parquet: {error}"))
}
