//! Datasets and batches of made-up latents, to measure training without data.

use crate::error::Result;
use lapflow_store::{
    Batch, Dataset, Dtype, LevelBatch, LevelSpec, LoaderState, Metadata, Posterior, Row,
};

/// A dataset of one row at an empty `uri`, for a [`crate::Trainer`] that is given [`batch`]es.
///
/// # Errors
/// When it cannot be written.
pub async fn dataset(uri: &str, specs: &[LevelSpec], classes: usize) -> Result<Dataset> {
    let metadata = Metadata {
        classes: (0..classes).map(|i| i.to_string()).collect(),
        ..Metadata::new(specs.to_vec(), Dtype::F32, Posterior::Mean)
    };
    let dataset = Dataset::create(uri, &metadata).await?;
    let mut shard = dataset.shard("0").await?;
    shard
        .push(Row {
            id: 0,
            label: 0,
            source: "noise".into(),
            sha256: [0; 32],
            width: 1,
            height: 1,
            view: 0,
            levels: batch(specs, 1, 1)
                .levels
                .into_iter()
                .map(|level| level.data.to_vec())
                .collect(),
            logvar: None,
        })
        .await?;
    shard.commit().await?;
    Ok(dataset.refresh().await?)
}

/// A batch of `count` samples with labels below `classes`.
pub fn batch(specs: &[LevelSpec], count: usize, classes: usize) -> Batch {
    let level = |spec: &LevelSpec| {
        let values = count * spec.channels * spec.height * spec.width;
        let values: Vec<f32> = (0..values).map(|i| (i as f32 * 0.7).sin() * 1.4).collect();
        LevelBatch { spec: *spec, dtype: Dtype::F32, data: Dtype::F32.encode(&values).into() }
    };
    Batch {
        ids: (0..count as i64).collect(),
        labels: (0..count).map(|i| (i % classes.max(1)) as i32).collect(),
        positions: (0..count as u32).collect(),
        levels: specs.iter().map(level).collect(),
        logvar: None,
        state: LoaderState::default(),
    }
}
