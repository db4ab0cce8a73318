//! Image sets as Parquet: one row an image, with its id, label, seed and PNG bytes.

use super::Partial;
use crate::error::{Result, SampleError};
use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int32Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows that are held at once.
const GROUP_ROWS: usize = 256;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRow {
    /// The image's index in its job.
    pub id: i64,
    /// Its class, -1 for none.
    pub label: i32,
    /// The job's seed.
    pub seed: i64,
    /// An encoded image.
    pub image: Vec<u8>,
}

/// Writes rows in groups.
pub struct ParquetWriter {
    writer: ArrowWriter<Partial>,
    schema: Arc<Schema>,
    path: PathBuf,
    pending: Vec<ImageRow>,
}

impl ParquetWriter {
    /// Starts a file of columns `id`, `label`, `seed` and `image`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let field = |name: &str, kind| Field::new(name, kind, false);
        let schema = Arc::new(Schema::new(vec![
            field("id", DataType::Int64),
            field("label", DataType::Int32),
            field("seed", DataType::Int64),
            field("image", DataType::Binary),
        ]));
        // The images are compressed already.
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .build();
        let writer = ArrowWriter::try_new(Partial::create(path)?, schema.clone(), Some(properties))
            .map_err(|e| SampleError::file(path, e))?;
        Ok(Self { writer, schema, path: path.to_path_buf(), pending: Vec::new() })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn push(&mut self, row: ImageRow) -> Result<()> {
        self.pending.push(row);
        if self.pending.len() == GROUP_ROWS { self.flush() } else { Ok(()) }
    }

    /// Writes the rest and puts the file in its place.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.writer.into_inner().map_err(|e| SampleError::file(&self.path, e))?.keep()
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.pending);
        if rows.is_empty() {
            return Ok(());
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.label))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.seed))),
            Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| &row.image))),
        ];
        let group = RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|e| SampleError::file(&self.path, e))?;
        self.writer
            .write(&group)
            .and_then(|()| self.writer.flush())
            .map_err(|e| SampleError::file(&self.path, e))
    }
}

/// The `image` column of a Parquet file: binary, or Hugging Face's struct with a `bytes` field.
pub(super) struct ParquetImages {
    path: PathBuf,
    builder: ParquetRecordBatchReaderBuilder<File>,
}

impl ParquetImages {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| SampleError::file(path, e))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)
            .map_err(|e| SampleError::file(path, format!("is not a Parquet file: {e}")))?;
        if builder.schema().field_with_name("image").is_err() {
            return Err(SampleError::file(path, "has no column `image`"));
        }
        Ok(Self { path: path.to_path_buf(), builder })
    }

    pub(super) fn rows(&self) -> usize {
        self.builder.metadata().file_metadata().num_rows() as usize
    }

    /// Hands every image's bytes to `each`, with its row.
    pub(super) fn for_each(self, mut each: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let path = self.path;
        let reader = self.builder.with_batch_size(GROUP_ROWS).build();
        let mut row = 0;
        for group in reader.map_err(|e| SampleError::file(&path, e))? {
            let group = group.map_err(|e| SampleError::file(&path, format!("row {row}: {e}")))?;
            let column = group.column_by_name("image").and_then(bytes_of);
            let unknown = || SampleError::file(&path, "column `image` holds no bytes");
            let images = column.ok_or_else(unknown)?;
            for i in 0..images.len() {
                each(row, images.as_binary::<i32>().value(i))?;
                row += 1;
            }
        }
        Ok(())
    }
}

fn bytes_of(column: &ArrayRef) -> Option<ArrayRef> {
    match column.data_type() {
        DataType::Binary => Some(column.clone()),
        DataType::Struct(_) => column.as_struct().column_by_name("bytes").and_then(bytes_of),
        _ => None,
    }
}
