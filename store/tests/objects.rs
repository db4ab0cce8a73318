//! Datasets on object stores, with and without faults between client and server.
//!
//! Needs `LAPFLOW_TEST_OBJECTS_URI` (a folder in a bucket) and the variables that lead there;
//! `store/tests/objects/run.sh` sets them and starts servers. `LAPFLOW_TEST_OBJECTS_WRITERS` is how
//! many writers race for the same shards: 3 unless told.

mod common;

use std::time::Duration;

use common::*;
use futures::StreamExt;
use lapflow_store::*;

/// Long enough for every retry; beyond it something hangs.
const TIME_MAX: Duration = Duration::from_secs(240);
const SHARDS: i64 = 6;
/// Enough that an upload is many pieces to a faulty proxy.
const SHARD_ROWS: i64 = 200;

async fn open(uri: &str) -> Dataset {
    loop {
        match Dataset::open(uri).await {
            Ok(dataset) => break dataset,
            Err(error) => eprintln!("once more: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_writers_and_a_loader_agree() {
    let Ok(root) = std::env::var("LAPFLOW_TEST_OBJECTS_URI") else {
        eprintln!("skipped: LAPFLOW_TEST_OBJECTS_URI is not set");
        return;
    };
    let writers = std::env::var("LAPFLOW_TEST_OBJECTS_WRITERS").map_or(3, |n| n.parse().unwrap());
    let uri = format!("{root}/{:016x}", rand::random::<u64>());
    let work = async {
        let metadata = metadata(Dtype::F16, Posterior::Mean);
        // An answer may be lost after the table was made: then it exists.
        while let Err(error) = Dataset::create(&uri, &metadata).await {
            eprintln!("once more: {error}");
            if matches!(error, StoreError::Exists { .. }) {
                break;
            }
        }
        let dataset = open(&uri).await;
        let racing = (0..writers).map(|_| {
            let dataset = dataset.clone();
            tokio::spawn(async move {
                for shard in 0..SHARDS {
                    let ids = shard * SHARD_ROWS..(shard + 1) * SHARD_ROWS;
                    let name = format!("{shard:05}");
                    while let Err(error) = write_shard(&dataset, &name, ids.clone()).await {
                        eprintln!("once more: {error}");
                    }
                }
            })
        });
        futures::future::join_all(racing).await.into_iter().for_each(|w| w.unwrap());
        let dataset = open(&uri).await;
        let mut state = LoaderState::default();
        let mut ids = Vec::new();
        while ids.len() < (SHARDS * SHARD_ROWS) as usize {
            let config = LoaderConfig { batch: 16, epochs: Some(1), ..LoaderConfig::default() };
            let mut batches = Box::pin(Loader::new(&dataset, config, state).unwrap().stream());
            while let Some(batch) = batches.next().await {
                match batch {
                    Ok(batch) => {
                        for (index, &id) in batch.ids.iter().enumerate() {
                            let expected = &row(&metadata, id).levels[0];
                            let size = expected.len();
                            let found = &batch.levels[0].data[index * size..(index + 1) * size];
                            assert_eq!(found, expected);
                        }
                        ids.extend(batch.ids);
                        state = batch.state;
                    }
                    Err(error) => {
                        eprintln!("resumed after: {error}");
                        break;
                    }
                }
            }
        }
        ids.sort_unstable();
        assert_eq!(ids, (0..SHARDS * SHARD_ROWS).collect::<Vec<_>>());
        assert_eq!(dataset.shards().len(), SHARDS as usize);
    };
    tokio::time::timeout(TIME_MAX, work).await.expect("nothing hangs");
}
