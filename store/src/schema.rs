//! The table's columns, as Arrow fields with shapes, dtype and layout in their metadata.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::metadata::{LevelSpec, Metadata, Posterior};

/// Columns every row carries before its levels, in file order.
pub(crate) const HEAD_COLUMNS: [(&str, DataType); 7] = [
    ("id", DataType::Int64),
    ("label", DataType::Int32),
    ("source", DataType::Utf8),
    ("sha256", DataType::Binary),
    ("width", DataType::Int32),
    ("height", DataType::Int32),
    ("view", DataType::Int8),
];
/// Where `id` stands among the head columns.
pub(crate) const ID_COLUMN: usize = 0;
/// Where `label` stands among the head columns.
pub(crate) const LABEL_COLUMN: usize = 1;

/// Name of the column that holds level `index`: what it holds is part of the name, so that
/// a mean and a log-variance of the same shape cannot be confused.
pub(crate) fn level_column(posterior: Posterior, index: usize) -> String {
    match posterior {
        Posterior::Mean | Posterior::Sample => format!("level_{index}"),
        Posterior::Moments => format!("mean_level_{index}"),
    }
}

/// Every column after the head: its name and shape, in file order.
pub(crate) fn payload_columns(metadata: &Metadata) -> Vec<(String, LevelSpec)> {
    let levels = metadata.levels.iter().enumerate();
    let mut columns: Vec<_> =
        levels.map(|(index, &spec)| (level_column(metadata.posterior, index), spec)).collect();
    columns.extend(metadata.logvar().map(|spec| ("logvar".to_string(), spec)));
    columns
}

/// The table's schema; no column may be null.
pub(crate) fn arrow_schema(metadata: &Metadata) -> SchemaRef {
    let head = HEAD_COLUMNS.into_iter().map(|(name, kind)| Field::new(name, kind, false));
    let payload = payload_columns(metadata).into_iter().map(|(name, spec)| {
        let LevelSpec { channels, height, width } = spec;
        Field::new(name, DataType::Binary, false).with_metadata(HashMap::from([
            ("lapflow.shape".to_string(), format!("[{channels},{height},{width}]")),
            ("lapflow.dtype".to_string(), metadata.dtype.name().to_string()),
            ("lapflow.layout".to_string(), "CHW little-endian".to_string()),
        ]))
    });
    Arc::new(Schema::new(head.chain(payload).collect::<Vec<_>>()))
}
