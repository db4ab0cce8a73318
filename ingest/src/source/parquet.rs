//! Parquet files with embedded images, in the layout of Hugging Face datasets.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema, UInt64Type};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use super::archive::ArchiveListing;
use super::blob::{Blob, BlobReader};
use super::labels::Written;
use super::{Listed, Location};
use crate::error::{IngestError, Result};
use crate::skip::SkipReason;

/// The largest row group whose images are read.
const ROW_GROUP_BYTES_MAX: i64 = 1 << 30;
/// Row groups kept decoded, for readers that go through a file in order.
const ROW_GROUPS_CACHED: usize = 4;
/// The column of labels.
const LABEL: &str = "label";
/// Rows of labels read at a time.
const LABEL_BATCH_ROWS: usize = 1 << 16;

/// A row of a Parquet file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowAt {
    row_group: u32,
    /// Position in the row group.
    row: u32,
}

/// Lists the rows of a Parquet file, and reads their labels: a column `label` of class numbers,
/// whose names may stand in the schema's `huggingface` metadata, or of class names.
pub(super) fn list(blob: &Blob, number: u32, entries_max: usize) -> Result<ArchiveListing> {
    let failed = |error: &dyn std::fmt::Display| IngestError::source(blob, error);
    let builder = open(blob).map_err(|error| failed(&error))?;
    image_column(builder.schema()).ok_or_else(|| {
        failed(&"it has no column of images, a struct with a binary field `bytes`")
    })?;
    let rows = builder.metadata().row_groups().iter().map(|group| group.num_rows() as usize);
    let row_counts: Vec<usize> = rows.collect();
    let total = row_counts.iter().try_fold(0_usize, |sum, rows| sum.checked_add(*rows));
    super::check_count(blob, total.unwrap_or(usize::MAX), entries_max)?;

    let mut listing = ArchiveListing::default();
    for (row_group, rows) in (0..).zip(row_counts) {
        for row in 0..rows as u32 {
            let key = format!("{:08}", listing.images.len());
            let location = Location::Row { archive: number, row: RowAt { row_group, row } };
            listing.images.push(Listed::new(key, location));
        }
    }
    if let Some(column) = label_column(blob, builder.schema(), &mut listing.notes)? {
        listing.classes = class_names(builder.schema(), &column);
        listing.images = label(blob, builder, &column, listing.images)?;
    }
    Ok(listing)
}

/// The column of labels: `label`, else the only one that is a class by Hugging Face's metadata.
fn label_column(blob: &Blob, schema: &Schema, notes: &mut Vec<String>) -> Result<Option<String>> {
    let names = || schema.fields().iter().map(|field| field.name().clone());
    if names().any(|name| name == LABEL) {
        return Ok(Some(LABEL.to_owned()));
    }
    let classes: Vec<String> =
        names().filter(|name| !class_names(schema, name).is_empty()).collect();
    match classes.as_slice() {
        [] => {
            let columns = names().collect::<Vec<_>>().join(", ");
            tracing::info!(archive = %blob, columns, "no column `{LABEL}`: its images have no labels");
            Ok(None)
        }
        [column] => {
            notes.push(format!("{blob}: labels are those of column `{column}`"));
            Ok(Some(column.clone()))
        }
        several => {
            let columns = several.join("`, `");
            let reason =
                format!("its columns `{columns}` all hold classes: call one of them `{LABEL}`");
            Err(IngestError::source(blob, reason))
        }
    }
}

/// Gives the images of `blob`, in the order of its rows, the labels of `column`.
fn label(
    blob: &Blob,
    builder: ParquetRecordBatchReaderBuilder<ParquetBlob>,
    column: &str,
    images: Vec<Listed>,
) -> Result<Vec<Listed>> {
    let failed = |reason: String| IngestError::source(blob, reason);
    let mask = ProjectionMask::columns(builder.parquet_schema(), [column]);
    let batches = builder.with_projection(mask).with_batch_size(LABEL_BATCH_ROWS).build();
    let batches = batches.map_err(|error| failed(error.to_string()))?;
    let mut labelled = Vec::with_capacity(images.len());
    let mut images = images.into_iter();
    for batch in batches {
        let batch = batch.map_err(|error| failed(error.to_string()))?;
        let labels = written(batch.column(0))
            .map_err(|reason| failed(format!("its column `{column}`: {reason}")))?;
        for (label, image) in labels.into_iter().zip(&mut images) {
            let label = label.map_err(|reason| {
                failed(format!("its column `{column}`, row {}: {reason}", labelled.len()))
            })?;
            labelled.push(image.labelled(label));
        }
    }
    Ok(labelled)
}

/// The labels of a column, or why one of them is none, by row.
fn written(values: &ArrayRef) -> Result<Vec<Result<Written, String>>, String> {
    let cast = |to: &DataType| cast(values, to).map_err(|error| error.to_string());
    let kind = values.data_type();
    Ok(match kind {
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let numbers = cast(&DataType::Float64)?;
            let number = |number: Option<f64>| number.map_or(Ok(Written::None), Written::of_number);
            numbers.as_primitive::<Float64Type>().iter().map(number).collect()
        }
        DataType::UInt64 => {
            let number = |number: Option<u64>| {
                let integer = |number| i64::try_from(number).unwrap_or(i64::MAX);
                number.map(integer).map_or(Ok(Written::None), Written::of_integer)
            };
            values.as_primitive::<UInt64Type>().iter().map(number).collect()
        }
        _ if kind.is_integer() || *kind == DataType::Boolean => {
            let numbers = cast(&DataType::Int64)?;
            let number =
                |number: Option<i64>| number.map_or(Ok(Written::None), Written::of_integer);
            numbers.as_primitive::<Int64Type>().iter().map(number).collect()
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
            let texts = cast(&DataType::Utf8)?;
            let text = |text: Option<&str>| text.map_or(Ok(Written::None), Written::of_text);
            texts.as_string::<i32>().iter().map(text).collect()
        }
        other => return Err(format!("{other} is neither numbers nor names of classes")),
    })
}

/// Position of the first struct column with a binary field `bytes`.
fn image_column(schema: &Schema) -> Option<usize> {
    schema.fields().iter().position(|field| match field.data_type() {
        DataType::Struct(fields) => fields.iter().any(|child| {
            child.name() == "bytes"
                && matches!(child.data_type(), DataType::Binary | DataType::LargeBinary)
        }),
        _ => false,
    })
}

/// Class names of the `ClassLabel` feature `column` in Hugging Face's schema metadata.
fn class_names(schema: &Schema, column: &str) -> Vec<String> {
    let features = schema.metadata().get("huggingface").and_then(|text| {
        let info: serde_json::Value = serde_json::from_str(text).ok()?;
        let feature = info.pointer("/info/features")?.get(column)?;
        serde_json::from_value(feature.get("names")?.clone()).ok()
    });
    features.unwrap_or_default()
}

fn open(blob: &Blob) -> ParquetResult<ParquetRecordBatchReaderBuilder<ParquetBlob>> {
    let length = blob.length()?;
    ParquetRecordBatchReaderBuilder::try_new(ParquetBlob { blob: blob.clone(), length })
}

/// The images of recently used row groups.
#[derive(Default)]
pub(crate) struct RowGroups {
    /// Most recently used last.
    recent: Mutex<Vec<Cached>>,
}

/// A row group's images, read by whoever asks first.
type RowGroup = OnceLock<Result<BinaryArray, String>>;
/// A row group, by the numbers of its archive and of itself.
type Cached = ((u32, u32), Arc<RowGroup>);

impl RowGroups {
    /// The bytes of the image in `at` of archive `number`, which is `blob`. Blocks; a row costs
    /// its whole row group, unless that is among the last few used.
    pub(super) fn read(&self, blob: &Blob, number: u32, at: RowAt) -> Result<Bytes, SkipReason> {
        let group = self.group((number, at.row_group));
        let unreadable = |detail: &str| SkipReason::Unreadable { detail: detail.to_owned() };
        let images = group
            .get_or_init(|| {
                read_group(blob, at.row_group as usize).map_err(|error| error.to_string())
            })
            .as_ref()
            .map_err(|detail| unreadable(detail))?;
        let row = at.row as usize;
        if row >= images.len() || images.is_null(row) {
            return Err(unreadable("the row holds no image"));
        }
        Ok(Bytes::copy_from_slice(images.value(row)))
    }

    fn group(&self, key: (u32, u32)) -> Arc<RowGroup> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let group = match recent.iter().position(|(cached, _)| *cached == key) {
            Some(index) => recent.remove(index).1,
            None => Arc::default(),
        };
        if recent.len() == ROW_GROUPS_CACHED {
            recent.remove(0);
        }
        recent.push((key, Arc::clone(&group)));
        group
    }
}

fn read_group(blob: &Blob, row_group: usize) -> ParquetResult<BinaryArray> {
    let builder = open(blob)?;
    let broken = |detail: &str| ParquetError::General(detail.to_owned());
    let column =
        image_column(builder.schema()).ok_or_else(|| broken("the column of images is gone"))?;
    let group = builder
        .metadata()
        .row_groups()
        .get(row_group)
        .ok_or_else(|| broken("the row group is gone"))?;
    if group.total_byte_size() > ROW_GROUP_BYTES_MAX {
        return Err(broken("the row group is larger than 1 GiB"));
    }
    let rows = group.num_rows() as usize;
    let mask = ProjectionMask::roots(builder.parquet_schema(), [column]);
    let reader = builder
        .with_row_groups(vec![row_group])
        .with_projection(mask)
        .with_batch_size(rows.max(1))
        .build()?;
    let schema = arrow::array::RecordBatchReader::schema(&reader);
    let batches = reader.collect::<Result<Vec<RecordBatch>, _>>()?;
    let batch = concat_batches(&schema, &batches)?;
    let images: &ArrayRef = batch
        .column(0)
        .as_struct_opt()
        .and_then(|image| image.column_by_name("bytes"))
        .ok_or_else(|| broken("the column of images has no field `bytes`"))?;
    Ok(cast(images, &DataType::Binary)?.as_binary().clone())
}

/// A blob as the parquet crate reads files.
struct ParquetBlob {
    blob: Blob,
    length: u64,
}

impl Length for ParquetBlob {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for ParquetBlob {
    type T = PageHeaders;

    fn get_read(&self, start: u64) -> ParquetResult<PageHeaders> {
        let mut reader = BlobReader::new(self.blob.clone())?;
        reader.seek(SeekFrom::Start(start))?;
        Ok(PageHeaders(reader))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let bytes = self.blob.read_range(start..start.saturating_add(length as u64))?;
        if bytes.len() != length {
            return Err(ParquetError::EOF(format!("{} ends early", self.blob)));
        }
        Ok(bytes)
    }
}

/// What the parquet crate reads page headers from. The end is an error: skipping a field that a
/// header says is there, the crate would not notice it, and go on for hours if the header says so.
struct PageHeaders(BlobReader);

impl Read for PageHeaders {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        match self.0.read(target)? {
            0 if !target.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}
