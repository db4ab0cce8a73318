//! Writing and reading back: every row whole, every shard once, statistics exact.

mod common;

use common::*;
use futures::StreamExt;
use lapflow_store::*;

#[tokio::test]
async fn every_dtype_and_posterior_comes_back_bit_for_bit() {
    for dtype in [Dtype::F16, Dtype::Bf16, Dtype::F32] {
        for posterior in [Posterior::Mean, Posterior::Sample, Posterior::Moments] {
            let folder = tempfile::tempdir().unwrap();
            let metadata = metadata(dtype, posterior);
            let uri = folder.path().to_str().unwrap();
            let dataset = Dataset::create(uri, &metadata).await.unwrap();
            write_shard(&dataset, "b", 100..150).await.unwrap();
            write_shard(&dataset, "a", 0..50).await.unwrap();
            let dataset = Dataset::open(uri).await.unwrap();
            assert_eq!(dataset.metadata(), &metadata);
            let rows: Vec<_> = dataset.scan().map(|row| row.unwrap()).collect().await;
            let expected: Vec<_> = (0..50).chain(100..150).map(|id| row(&metadata, id)).collect();
            assert_eq!(rows, expected);
        }
    }
}

#[tokio::test]
async fn a_shard_is_committed_once() {
    let (_folder, dataset) = dataset(1, 20).await;
    assert!(dataset.is_committed("00000").await.unwrap());
    assert!(!dataset.is_committed("00001").await.unwrap());
    let again = write_shard(&dataset, "00000", 0..20).await.unwrap();
    assert_eq!(again, Commit::AlreadyDone);
    assert_eq!(dataset.refresh().await.unwrap().rows(), 20);
    let files = std::fs::read_dir(_folder.path().join("set/data")).unwrap().count();
    assert_eq!(files, 1, "the loser removes its file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_that_race_for_the_same_shards_add_each_once() {
    let (_folder, dataset) = dataset(0, 0).await;
    let writers = (0..4).map(|_| {
        let dataset = dataset.clone();
        tokio::spawn(async move {
            let mut won = 0;
            for shard in 0..8 {
                let ids = shard * 10..shard * 10 + 10;
                let outcome = write_shard(&dataset, &format!("{shard:05}"), ids).await.unwrap();
                won += u32::from(outcome != Commit::AlreadyDone);
            }
            won
        })
    });
    let won: u32 = futures::future::join_all(writers).await.into_iter().map(|w| w.unwrap()).sum();
    assert_eq!(won, 8);
    let dataset = dataset.refresh().await.unwrap();
    let mut ids: Vec<_> = dataset.scan().map(|row| row.unwrap().id).collect().await;
    ids.sort_unstable();
    assert_eq!(ids, (0..80).collect::<Vec<_>>());
}

#[tokio::test]
async fn statistics_do_not_depend_on_commit_order_and_match_the_rows() {
    let metadata = metadata(Dtype::F16, Posterior::Mean);
    let mut statistics = Vec::new();
    for order in [[0, 1, 2], [2, 0, 1]] {
        let folder = tempfile::tempdir().unwrap();
        let uri = folder.path().to_str().unwrap();
        let dataset = Dataset::create(uri, &metadata).await.unwrap();
        for shard in order {
            let ids = shard * 30..shard * 30 + 30;
            write_shard(&dataset, &format!("{shard}"), ids).await.unwrap();
        }
        statistics.push(Dataset::open(uri).await.unwrap().statistics());
    }
    assert_eq!(statistics[0], statistics[1]);
    for (level, spec) in metadata.levels.iter().enumerate() {
        let area = spec.height * spec.width;
        for channel in 0..spec.channels {
            let values: Vec<f64> = (0..90)
                .flat_map(|id| {
                    let values = metadata.dtype.decode(&row(&metadata, id).levels[level]);
                    values[channel * area..(channel + 1) * area].to_vec()
                })
                .map(f64::from)
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance =
                values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            let found = statistics[0].levels[level][channel];
            assert!((found.mean - mean).abs() < 1e-12, "{found:?} {mean}");
            assert!((found.std - variance.sqrt()).abs() < 1e-12);
            assert_eq!(found.count as usize, values.len());
            let max = values.iter().copied().fold(f64::MIN, f64::max);
            assert_eq!(f64::from(found.max), max);
        }
    }
}

#[tokio::test]
async fn an_older_version_stays_readable() {
    let (_folder, dataset) = dataset(3, 10).await;
    let older = Dataset::open_at(dataset.uri(), 1).await.unwrap();
    assert_eq!((older.version(), older.rows(), dataset.rows()), (1, 10, 30));
}

#[tokio::test]
async fn a_shard_without_rows_counts_as_done() {
    let (_folder, dataset) = dataset(1, 5).await;
    write_shard(&dataset, "empty", 0..0).await.unwrap();
    assert!(dataset.is_committed("empty").await.unwrap());
    let dataset = dataset.refresh().await.unwrap();
    assert_eq!((dataset.shards().len(), dataset.rows()), (2, 5));
    assert_eq!(dataset.scan().count().await, 5);
}

#[tokio::test]
async fn hundreds_of_commits_are_condensed_into_checkpoints() {
    let (folder, dataset) = dataset(120, 1).await;
    let log = std::fs::read_dir(folder.path().join("set/_delta_log")).unwrap();
    let names: Vec<_> = log.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let checkpoints = names.iter().filter(|name| name.ends_with(".checkpoint.parquet")).count();
    assert_eq!(checkpoints, 2, "{names:?}");
    let dataset = Dataset::open(dataset.uri()).await.unwrap();
    assert_eq!((dataset.rows(), dataset.shards().len()), (120, 120));
    assert!(dataset.is_committed("00007").await.unwrap());
    assert_eq!(write_shard(&dataset, "00007", 0..1).await.unwrap(), Commit::AlreadyDone);
    let counts = dataset.statistics().levels[0][0].count;
    assert_eq!(counts, 120 * 16);
}

#[tokio::test]
async fn rows_that_do_not_fit_are_refused_by_name() {
    let (_folder, dataset) = dataset(0, 0).await;
    let metadata = dataset.metadata().clone();
    let mut writer = dataset.shard("x").await.unwrap();
    writer.push(row(&metadata, 1)).await.unwrap();
    let mut short = row(&metadata, 7);
    short.levels[1].pop();
    let error = writer.push(short).await.unwrap_err().to_string();
    assert_eq!(error, "shard 'x', row 1 (id 7): level_1 has 23 bytes, expected 24");
    let mut infinite = row(&metadata, 8);
    infinite.levels[0] = Dtype::F16.encode(&[f32::INFINITY; 48]);
    let error = writer.push(infinite).await.unwrap_err().to_string();
    assert_eq!(error, "shard 'x', row 1 (id 8): level_0 holds a value that is not finite");
    writer.commit().await.unwrap();
    assert_eq!(dataset.refresh().await.unwrap().rows(), 1);
}

#[tokio::test]
async fn creating_twice_and_opening_nothing_say_so() {
    let (folder, dataset) = dataset(0, 0).await;
    let error = Dataset::create(dataset.uri(), dataset.metadata()).await.unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    let nowhere = folder.path().join("nowhere");
    let error = Dataset::open(nowhere.to_str().unwrap()).await.unwrap_err();
    assert!(matches!(error, StoreError::Missing { .. }), "{error}");
    let error = dataset.shard("../x").await.err().unwrap().to_string();
    assert_eq!(error, "name '../x' is not 1 to 64 letters, digits, '-', '_', '.'");
}
