//! Rows that every test can predict from their id.

#![allow(dead_code)]

use lapflow_store::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Two levels of three channels, small enough for thousands of rows.
pub fn metadata(dtype: Dtype, posterior: Posterior) -> Metadata {
    let fine = LevelSpec { channels: 3, height: 4, width: 4 };
    let coarse = LevelSpec { channels: 3, height: 2, width: 2 };
    let mut metadata = Metadata::new(vec![fine, coarse], dtype, posterior);
    metadata.classes = vec!["cat".to_string(), "dog".to_string()];
    metadata.autoencoder = serde_json::json!({"architecture": "test", "sha256": "00"});
    metadata
}

/// The row with this id: its values are drawn from a generator seeded with the id.
pub fn row(metadata: &Metadata, id: i64) -> Row {
    let mut generator = ChaCha8Rng::seed_from_u64(id as u64);
    let mut payload = |spec: &LevelSpec| {
        let values: Vec<f32> =
            (0..spec.values()).map(|_| generator.random_range(-4.0..4.0)).collect();
        metadata.dtype.encode(&values)
    };
    let levels = metadata.levels.iter().map(&mut payload).collect();
    let logvar = (metadata.posterior == Posterior::Moments).then(|| payload(&metadata.levels[0]));
    Row {
        id,
        label: (id % 2) as i32,
        source: format!("class/{id}.jpg"),
        sha256: [id as u8; 32],
        width: 640,
        height: 480,
        view: (id % 3 == 0) as i8,
        levels,
        logvar,
    }
}

/// Small row groups, so that little data has many of them.
pub fn small_groups(metadata: &Metadata, rows: usize) -> ShardOptions {
    let row_group_bytes_target = rows * metadata.sample_bytes();
    ShardOptions { row_group_bytes_target, ..ShardOptions::default() }
}

/// Writes and commits rows `ids` as one shard.
pub async fn write_shard(
    dataset: &Dataset,
    shard: &str,
    ids: std::ops::Range<i64>,
) -> Result<Commit> {
    let metadata = dataset.metadata().clone();
    let mut writer = dataset.shard_with(shard, small_groups(&metadata, 16)).await?;
    for id in ids {
        writer.push(row(&metadata, id)).await?;
    }
    writer.commit().await
}

/// A dataset in a fresh folder with `shards` shards of `shard_rows` rows each.
pub async fn dataset(shards: i64, shard_rows: i64) -> (tempfile::TempDir, Dataset) {
    let folder = tempfile::tempdir().unwrap();
    let uri = folder.path().join("set").to_str().unwrap().to_string();
    let dataset = Dataset::create(&uri, &metadata(Dtype::F16, Posterior::Mean)).await.unwrap();
    for shard in 0..shards {
        let ids = shard * shard_rows..(shard + 1) * shard_rows;
        write_shard(&dataset, &format!("{shard:05}"), ids).await.unwrap();
    }
    (folder, dataset.refresh().await.unwrap())
}
