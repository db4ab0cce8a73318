//! The loader's promises: every sample once an epoch, exact resume, any world size.

mod common;

use std::collections::HashSet;

use common::*;
use futures::StreamExt;
use lapflow_store::*;

fn config(batch: usize) -> LoaderConfig {
    LoaderConfig { batch, seed: 11, window_rows: 100, ..LoaderConfig::default() }
}

async fn batches(dataset: &Dataset, config: LoaderConfig, state: LoaderState) -> Vec<Batch> {
    let loader = Loader::new(dataset, config, state).unwrap();
    loader.stream().map(|batch| batch.unwrap()).collect().await
}

fn ids(batches: &[Batch]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.ids.clone()).collect()
}

#[tokio::test]
async fn an_epoch_has_every_sample_once_with_its_own_data() {
    let (_folder, dataset) = dataset(5, 77).await;
    let read =
        batches(&dataset, LoaderConfig { epochs: Some(1), ..config(32) }, LoaderState::default())
            .await;
    assert_eq!(ids(&read).len(), 5 * 77);
    assert_eq!(ids(&read).into_iter().collect::<HashSet<_>>().len(), 5 * 77);
    assert_ne!(ids(&read)[..100], (0..100).collect::<Vec<_>>()[..]);
    assert_eq!(read.last().unwrap().ids.len(), 385 % 32, "a finite run ends with what is left");
    for batch in &read {
        for (index, &id) in batch.ids.iter().enumerate() {
            let expected = row(dataset.metadata(), id);
            assert_eq!(batch.labels[index], expected.label);
            for (level, values) in batch.levels.iter().zip(&expected.levels) {
                let bytes = values.len();
                assert_eq!(&level.data[index * bytes..(index + 1) * bytes], values);
            }
        }
    }
}

#[tokio::test]
async fn epochs_follow_without_a_gap_and_differ() {
    let (_folder, dataset) = dataset(3, 50).await;
    let read =
        batches(&dataset, LoaderConfig { epochs: Some(3), ..config(40) }, LoaderState::default())
            .await;
    let all = ids(&read);
    assert_eq!(all.len(), 450);
    let epochs: Vec<&[i64]> = all.chunks(150).collect();
    for epoch in &epochs {
        assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), 150);
    }
    assert_ne!(epochs[0], epochs[1]);
    assert!(read[..11].iter().all(|batch| batch.ids.len() == 40), "batches span epochs");
}

#[tokio::test]
async fn a_resume_from_any_batch_goes_on_exactly() {
    let (_folder, dataset) = dataset(3, 41).await;
    let config = LoaderConfig { epochs: Some(3), ..config(16) };
    let whole = batches(&dataset, config.clone(), LoaderState::default()).await;
    for stop in 0..whole.len() {
        let state = serde_json::to_string(&whole[stop].state).unwrap();
        let state = serde_json::from_str(&state).unwrap();
        let rest = batches(&dataset, config.clone(), state).await;
        assert_eq!(rest, whole[stop + 1..], "stopped after batch {stop}");
    }
}

#[tokio::test]
async fn a_run_may_change_its_number_of_ranks() {
    let (_folder, dataset) = dataset(4, 60).await;
    let single =
        batches(&dataset, LoaderConfig { epochs: Some(2), ..config(1) }, LoaderState::default())
            .await;
    let order = ids(&single);
    let mut state = LoaderState::default();
    let mut seen = 0;
    for world in [8, 6, 1, 5] {
        let mut streams = Vec::new();
        for rank in 0..world {
            let config = LoaderConfig { rank, world, ..config(3) };
            let loader = Loader::new(&dataset, config, state).unwrap();
            streams.push(Box::pin(loader.stream()));
        }
        for _ in 0..4 {
            let mut step = Vec::new();
            for stream in &mut streams {
                let batch = stream.next().await.unwrap().unwrap();
                assert_eq!(batch.ids.len(), 3);
                step.extend(batch.ids);
                state = batch.state;
            }
            let mut expected = order[seen..seen + step.len()].to_vec();
            seen += step.len();
            expected.sort_unstable();
            step.sort_unstable();
            assert_eq!(step, expected, "{world} ranks up to sample {seen}");
        }
    }
}

#[tokio::test]
async fn new_shards_join_at_the_next_epoch() {
    let (_folder, dataset) = dataset(2, 30).await;
    let config = LoaderConfig { follow: true, window_rows: 10, ..config(30) };
    let loader = Loader::new(&dataset, config, LoaderState::default()).unwrap();
    let mut stream = Box::pin(loader.stream());
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(first.state.version, Some(2));
    write_shard(&dataset, "late", 60..90).await.unwrap();
    let mut seen = first.ids.clone();
    let mut versions = vec![];
    for _ in 0..4 {
        let batch = stream.next().await.unwrap().unwrap();
        versions.push(batch.state.version);
        seen.extend(batch.ids);
    }
    assert!(versions.contains(&Some(3)), "{versions:?}");
    assert!(seen[60..].iter().any(|&id| id >= 60), "{seen:?}");
    let pinned = Loader::new(
        &dataset.refresh().await.unwrap(),
        LoaderConfig { epochs: Some(1), ..self::config(30) },
        LoaderState { version: Some(2), ..LoaderState::default() },
    )
    .unwrap();
    let rows: usize = pinned
        .stream()
        .map(|batch| batch.unwrap().ids.len())
        .collect::<Vec<_>>()
        .await
        .iter()
        .sum();
    assert_eq!(rows, 60, "a state's version is read as it was");
}

#[tokio::test]
async fn ranks_that_follow_agree_on_every_epochs_version() {
    let (_folder, dataset) = dataset(2, 30).await;
    let world = 3;
    let config = |rank| {
        let run = Some("nightly".to_string());
        LoaderConfig { follow: true, run, rank, world, window_rows: 10, ..config(5) }
    };
    let mut streams: Vec<_> = (0..world)
        .map(|rank| Loader::new(&dataset, config(rank), LoaderState::default()).unwrap())
        .map(|loader| Box::pin(loader.stream()))
        .collect();
    let mut all = Vec::new();
    let mut versions = HashSet::new();
    for step in 0..16 {
        let (mut states, mut ids) = (HashSet::new(), Vec::new());
        for (rank, stream) in streams.iter_mut().enumerate() {
            // Shards join between two ranks' looks at the table.
            if rank == 1 && step < 3 {
                let first = 60 + step * 30;
                write_shard(&dataset, &format!("late{step}"), first..first + 30).await.unwrap();
            }
            let batch = stream.next().await.unwrap().unwrap();
            states.insert(serde_json::to_string(&batch.state).unwrap());
            versions.insert((batch.state.epoch, batch.state.version));
            ids.extend(batch.ids);
        }
        assert_eq!(states.len(), 1, "step {step}: {states:?}");
        all.extend(ids);
    }
    assert_eq!(all[..60].iter().collect::<HashSet<_>>().len(), 60, "the first epoch");
    assert!(all[60..].iter().any(|&id| id >= 60), "later shards joined");
    let epochs: HashSet<_> = versions.iter().map(|(epoch, _)| epoch).collect();
    assert_eq!(epochs.len(), versions.len(), "one version an epoch: {versions:?}");
    let alone = LoaderConfig { run: None, ..config(0) };
    let error = Loader::new(&dataset, alone, LoaderState::default()).err().unwrap().to_string();
    assert_eq!(error, "several ranks that follow need the name of their run");
}

#[tokio::test]
async fn only_the_levels_asked_for_come() {
    let (_folder, dataset) = dataset(1, 40).await;
    let config = LoaderConfig { levels: Some(vec![1]), epochs: Some(1), ..config(40) };
    let read = batches(&dataset, config, LoaderState::default()).await;
    assert_eq!(read[0].levels.len(), 1);
    assert_eq!(read[0].levels[0].spec, dataset.metadata().levels[1]);
    let expected: Vec<u8> =
        read[0].ids.iter().flat_map(|&id| row(dataset.metadata(), id).levels[1].clone()).collect();
    assert_eq!(read[0].levels[0].data[..], expected);
}

#[tokio::test]
async fn the_bytes_of_other_levels_are_not_read() {
    let (folder, dataset) = dataset(1, 40).await;
    let data = std::fs::read_dir(folder.path().join("set/data")).unwrap();
    let path = data.last().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&path).unwrap();
    for group in &dataset.shards().next().unwrap().row_groups {
        bytes[group.ends[0] as usize..group.ends[1] as usize].fill(0);
    }
    std::fs::write(&path, bytes).unwrap();
    let config = LoaderConfig { epochs: Some(1), ..config(40) };
    let coarse = LoaderConfig { levels: Some(vec![1]), ..config.clone() };
    assert_eq!(ids(&batches(&dataset, coarse, LoaderState::default()).await).len(), 40);
    let whole = Loader::new(&dataset, config, LoaderState::default()).unwrap();
    assert!(Box::pin(whole.stream()).next().await.unwrap().is_err());
    let (all, one) = (dataset.bytes_of(&[0, 1]), dataset.bytes_of(&[1]));
    assert!(one < all && all < dataset.bytes(), "{one} of {all} bytes");
}

#[tokio::test]
async fn every_codec_and_page_layout_reads_the_same() {
    let mut reads = Vec::new();
    for compression in [Compression::Zstd(1), Compression::Zstd(9), Compression::None] {
        let folder = tempfile::tempdir().unwrap();
        let metadata = metadata(Dtype::F32, Posterior::Moments);
        let uri = folder.path().to_str().unwrap();
        let dataset = Dataset::create(uri, &metadata).await.unwrap();
        // 3000 rows of 192 bytes: several pages of 128 KiB in a row group.
        let options = ShardOptions { compression, ..ShardOptions::default() };
        let mut writer = dataset.shard_with("a", options).await.unwrap();
        for id in 0..3000 {
            writer.push(row(&metadata, id)).await.unwrap();
        }
        writer.commit().await.unwrap();
        let dataset = dataset.refresh().await.unwrap();
        let config = LoaderConfig { epochs: Some(1), logvar: true, ..config(500) };
        let read = batches(&dataset, config, LoaderState::default()).await;
        for batch in &read {
            for (index, &id) in batch.ids.iter().enumerate() {
                let expected = row(&metadata, id);
                let logvar = batch.logvar.as_ref().unwrap();
                let size = logvar.data.len() / batch.ids.len();
                let found = &logvar.data[index * size..(index + 1) * size];
                assert_eq!(found, expected.logvar.as_ref().unwrap());
            }
        }
        reads.push(read);
    }
    assert!(reads[0] == reads[1] && reads[1] == reads[2]);
}

#[tokio::test]
async fn row_groups_kept_in_memory_are_not_read_again() {
    let (folder, dataset) = dataset(4, 50).await;
    let kept = LoaderConfig { memory_cache_bytes_max: 1 << 20, epochs: Some(3), ..config(40) };
    let plain = LoaderConfig { memory_cache_bytes_max: 0, ..kept.clone() };
    let expected = batches(&dataset, plain, LoaderState::default()).await;
    let loader = Loader::new(&dataset, kept, LoaderState::default()).unwrap();
    let mut stream = Box::pin(loader.stream());
    let mut read = Vec::new();
    for _ in 0..10 {
        read.push(stream.next().await.unwrap().unwrap());
    }
    // Two epochs are through, so all of it is in memory: its files may go.
    std::fs::remove_dir_all(folder.path().join("set/data")).unwrap();
    while let Some(batch) = stream.next().await {
        read.push(batch.unwrap());
    }
    assert_eq!(read, expected);
}

#[tokio::test]
async fn datasets_mix_in_the_stated_proportion_and_resume_exactly() {
    let (_first, cats) = dataset(2, 50).await;
    let (_second, dogs) = dataset(1, 30).await;
    let mixture = |state: MixtureState| {
        let sources = vec![(cats.clone(), config(4), 3.0), (dogs.clone(), config(4), 1.0)];
        Mixture::new(sources, state).unwrap()
    };
    let whole: Vec<_> = mixture(MixtureState::default()).stream().take(40).collect().await;
    let whole: Vec<_> = whole.into_iter().map(|batch| batch.unwrap()).collect();
    for (step, batch) in whole.iter().enumerate() {
        let dogs = whole[..=step].iter().filter(|batch| batch.source == 1).count();
        assert!((dogs as f64 - (step + 1) as f64 / 4.0).abs() <= 1.0, "step {step}: {dogs}");
        assert_eq!(batch.state.steps.iter().sum::<u64>(), step as u64 + 1);
    }
    for stop in [0, 7, 38] {
        let rest: Vec<_> =
            mixture(whole[stop].state.clone()).stream().take(39 - stop).collect().await;
        let rest: Vec<_> = rest.into_iter().map(|batch| batch.unwrap()).collect();
        assert_eq!(rest, whole[stop + 1..]);
    }
}

#[test]
fn a_synchronous_trainer_pulls_batches_and_stops_early() {
    let (_folder, dataset) = futures::executor::block_on(dataset(2, 50));
    let loader = Loader::new(&dataset, config(16), LoaderState::default()).unwrap();
    let mut batches = loader.batches();
    let first: Vec<_> = (&mut batches).take(10).map(|batch| batch.unwrap().ids).collect();
    drop(batches);
    let loader = Loader::new(&dataset, config(16), LoaderState::default()).unwrap();
    let again: Vec<_> = loader.batches().take(10).map(|batch| batch.unwrap().ids).collect();
    assert_eq!(first, again);
}

#[tokio::test]
async fn requests_that_cannot_be_served_are_refused() {
    let (_folder, dataset) = dataset(1, 4).await;
    let refusal =
        |config| Loader::new(&dataset, config, LoaderState::default()).err().unwrap().to_string();
    let levels = LoaderConfig { levels: Some(vec![2]), ..config(1) };
    assert_eq!(refusal(levels), "level 2 was asked for, the dataset has 2");
    assert_eq!(refusal(LoaderConfig { rank: 2, world: 2, ..config(1) }), "rank 2 of 2 ranks");
    assert!(refusal(LoaderConfig { logvar: true, ..config(1) }).starts_with("log-variance"));
    assert!(refusal(config(0)).contains("at least 1"));
}
