//! Reads whole rows in the order they are stored, for export, previews and checks.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int8Type, Int32Type, Int64Type};
use async_stream::try_stream;
use futures::Stream;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};

use crate::dataset::Dataset;
use crate::error::{Result, StoreError};
use crate::group::{fetch, footer};
use crate::location::blocking;
use crate::metadata::{Metadata, Row};
use crate::schema::{HEAD_COLUMNS, payload_columns};

impl Dataset {
    /// All rows, shard by shard in the order of their names, checksums verified.
    pub fn scan(&self) -> impl Stream<Item = Result<Row>> + Send + 'static {
        let dataset = self.clone();
        try_stream! {
            for (file, groups) in dataset.shards().map(|shard| shard.row_groups.len()).enumerate() {
                for group in 0..groups {
                    for row in read_rows(&dataset, file, group).await? {
                        yield row;
                    }
                }
            }
        }
    }
}

/// All rows of one row group.
pub(crate) async fn read_rows(dataset: &Dataset, file: usize, group: usize) -> Result<Vec<Row>> {
    let metadata = footer(dataset, file).await?;
    let payloads: Vec<usize> = (0..payload_columns(dataset.metadata()).len()).collect();
    let segments = fetch(dataset, file, group, &payloads, true).await?;
    let dataset = dataset.clone();
    blocking(move || {
        let options = ArrowReaderOptions::new();
        let rows = ArrowReaderMetadata::try_new(metadata, options)
            .and_then(|metadata| {
                let builder =
                    ParquetRecordBatchReaderBuilder::new_with_metadata(segments, metadata);
                builder.with_row_groups(vec![group]).build()
            })
            .map_err(|error| error.to_string())
            .and_then(|batches| {
                let mut rows = Vec::new();
                for batch in batches {
                    let batch = batch.map_err(|error| error.to_string())?;
                    rows.extend(to_rows(dataset.metadata(), &batch)?);
                }
                Ok(rows)
            });
        rows.map_err(|reason| {
            StoreError::corrupt(&dataset.files()[file].path, format!("row group {group}"), reason)
        })
    })
    .await
}

fn to_rows(metadata: &Metadata, batch: &RecordBatch) -> std::result::Result<Vec<Row>, String> {
    let expected = HEAD_COLUMNS.len() + payload_columns(metadata).len();
    if batch.num_columns() != expected {
        return Err(format!("{} columns, expected {expected}", batch.num_columns()));
    }
    let wrong =
        |index: usize| format!("column {} has another type", batch.schema().field(index).name());
    macro_rules! column {
        ($index:expr, $cast:ident $(::<$kind:ty>)?) => {
            batch.column($index).$cast$(::<$kind>)?().ok_or_else(|| wrong($index))?
        };
    }
    let ids = column!(0, as_primitive_opt::<Int64Type>);
    let labels = column!(1, as_primitive_opt::<Int32Type>);
    let sources = column!(2, as_string_opt::<i32>);
    let hashes = column!(3, as_binary_opt::<i32>);
    let widths = column!(4, as_primitive_opt::<Int32Type>);
    let heights = column!(5, as_primitive_opt::<Int32Type>);
    let views = column!(6, as_primitive_opt::<Int8Type>);
    let mut payloads = Vec::new();
    for index in HEAD_COLUMNS.len()..expected {
        payloads.push(column!(index, as_binary_opt::<i32>));
    }
    (0..batch.num_rows())
        .map(|row| {
            let mut levels: Vec<_> =
                payloads.iter().map(|column| column.value(row).to_vec()).collect();
            let logvar = levels.split_off(metadata.levels.len()).pop();
            let sha256 = hashes.value(row).try_into().map_err(|_| {
                format!("row {row} has a sha256 of {} bytes", hashes.value(row).len())
            })?;
            Ok(Row {
                id: ids.value(row),
                label: labels.value(row),
                source: sources.value(row).to_string(),
                sha256,
                width: widths.value(row),
                height: heights.value(row),
                view: views.value(row),
                levels,
                logvar,
            })
        })
        .collect()
}
