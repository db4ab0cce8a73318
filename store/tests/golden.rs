//! A dataset of format version 1, written once (`examples/fixture.rs`, f16, mean, 60 rows), that
//! must open for ever.

use futures::StreamExt;
use lapflow_store::*;

fn value(id: i64, payload: i64, j: i64) -> f32 {
    ((31 * id + 17 * payload + 7 * j) % 97) as f32 / 8.0 - 6.0
}

#[tokio::test]
async fn version_1_opens_for_ever() {
    let uri = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1");
    let dataset = Dataset::open(uri).await.unwrap();
    let metadata = dataset.metadata();
    assert_eq!((metadata.format_version, metadata.dtype), (1, Dtype::F16));
    assert_eq!(metadata.classes, ["cat", "dog"]);
    assert_eq!(metadata.autoencoder["scale"], 0.18215);
    let rows: Vec<_> = dataset.scan().map(|row| row.unwrap()).collect().await;
    assert_eq!(rows.len(), 60);
    for (id, row) in rows.iter().enumerate() {
        let id = id as i64;
        assert_eq!((row.id, row.label, row.height), (id, (id % 3) as i32 - 1, 480 + id as i32));
        assert_eq!(
            (row.source.as_str(), row.sha256),
            (&*format!("class/{id}.jpg"), [id as u8; 32])
        );
        for (payload, level) in row.levels.iter().enumerate() {
            let expected: Vec<_> = (0..metadata.levels[payload].values())
                .map(|j| value(id, payload as i64, j as i64))
                .collect();
            assert_eq!(metadata.dtype.decode(level), expected);
        }
    }
    let verified = dataset.verify().await.unwrap();
    assert!(verified.problems.is_empty(), "{:?}", verified.problems);
    let sum: f64 = (0..60).flat_map(|id| (0..6).map(move |j| f64::from(value(id, 1, j)))).sum();
    assert!((dataset.statistics().levels[1][0].mean - sum / 360.0).abs() < 1e-12);
}
