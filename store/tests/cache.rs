//! The disk cache: it saves reads, keeps its limit, survives crashes and touches nothing else.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use futures::StreamExt;
use lapflow_store::*;

fn config() -> LoaderConfig {
    LoaderConfig { batch: 16, epochs: Some(1), window_rows: 64, ..LoaderConfig::default() }
}

async fn load(dataset: &Dataset) -> Result<Vec<Batch>> {
    let loader = Loader::new(dataset, config(), LoaderState::default())?;
    let batches: Vec<_> = loader.stream().collect().await;
    batches.into_iter().collect()
}

fn entries(cache: &Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.to_string_lossy().ends_with(".lapflow-range")).collect()
}

fn bytes(cache: &Path) -> u64 {
    entries(cache).iter().map(|path| path.metadata().unwrap().len()).sum()
}

#[tokio::test]
async fn what_was_read_once_needs_no_storage() {
    let (folder, dataset) = dataset(4, 50).await;
    let expected = load(&dataset).await.unwrap();
    let folder_of_cache = tempfile::tempdir().unwrap();
    let cache = Arc::new(DiskCache::new(folder_of_cache.path(), 1 << 20).unwrap());
    // Opened anew: the first handle remembers footers.
    let opened = Dataset::open(dataset.uri()).await.unwrap().with_cache(Arc::clone(&cache));
    assert_eq!(load(&opened).await.unwrap(), expected);
    assert!(cache.hits() < 4, "at most a footer that two row groups asked for at once");
    std::fs::remove_dir_all(folder.path().join("set/data")).unwrap();
    // Another process, as it were: its own handles on table and cache.
    let again = Arc::new(DiskCache::new(folder_of_cache.path(), 1 << 20).unwrap());
    let opened = Dataset::open(dataset.uri()).await.unwrap().with_cache(Arc::clone(&again));
    assert_eq!(load(&opened).await.unwrap(), expected);
    assert_eq!(again.misses(), 0);
    assert!(again.hits() > 0);
    assert_eq!(load(&opened.refresh().await.unwrap()).await.unwrap(), expected, "it is kept");
}

#[tokio::test]
async fn the_limit_holds_and_foreign_files_stay() {
    let (_folder, dataset) = dataset(6, 64).await;
    let expected = load(&dataset).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let foreign = ["notes.txt", "0123-0-80.range", "old.lapflow-range.bak"];
    for name in foreign {
        std::fs::write(folder.path().join(name), [7; 5000]).unwrap();
    }
    let limit = 12_000;
    let handles: Vec<_> = (0..2)
        .map(|_| Arc::new(DiskCache::new(folder.path(), limit).unwrap()))
        .map(|cache| Dataset::with_cache(&dataset, cache))
        .collect();
    for _ in 0..3 {
        let (first, second) = futures::join!(load(&handles[0]), load(&handles[1]));
        assert_eq!(first.unwrap(), expected);
        assert_eq!(second.unwrap(), expected);
        assert!(bytes(folder.path()) <= limit, "{} bytes", bytes(folder.path()));
        assert!(!entries(folder.path()).is_empty());
    }
    for name in foreign {
        assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), [7; 5000], "{name}");
    }
}

#[tokio::test]
async fn what_a_crash_or_a_bad_disk_left_is_fetched_anew() {
    let (_folder, dataset) = dataset(3, 50).await;
    let expected = load(&dataset).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let open = || dataset.with_cache(Arc::new(DiskCache::new(folder.path(), 1 << 20).unwrap()));
    load(&open()).await.unwrap();
    for (index, entry) in entries(folder.path()).iter().enumerate() {
        let mut content = std::fs::read(entry).unwrap();
        match index % 3 {
            0 => content.truncate(content.len() / 2),
            1 => content[index] ^= 4,
            _ => content.clear(),
        }
        std::fs::write(entry, content).unwrap();
    }
    std::fs::write(folder.path().join("lapflow-cache.lock"), "half a num").unwrap();
    let dead = folder.path().join("00.lapflow-partial");
    std::fs::write(&dead, [0; 100]).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    std::fs::File::options().write(true).open(&dead).unwrap().set_modified(old).unwrap();
    assert_eq!(load(&open()).await.unwrap(), expected);
    assert!(!dead.exists(), "a dead process's entry goes");
    let again = Arc::new(DiskCache::new(folder.path(), 1 << 20).unwrap());
    assert_eq!(load(&dataset.with_cache(Arc::clone(&again))).await.unwrap(), expected);
    assert_eq!(again.misses(), 0, "the bad entries were replaced");
}

#[tokio::test]
async fn damaged_data_is_never_kept_and_a_full_cache_disk_costs_speed_only() {
    let (set, dataset) = dataset(1, 40).await;
    let expected = load(&dataset).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cache = Arc::new(DiskCache::new(folder.path(), 1 << 20).unwrap());
    let file = std::fs::read_dir(set.path().join("set/data")).unwrap().next().unwrap().unwrap();
    let whole = std::fs::read(file.path()).unwrap();
    let mut flipped = whole.clone();
    flipped[100] ^= 1;
    std::fs::write(file.path(), flipped).unwrap();
    let opened = dataset.with_cache(Arc::clone(&cache));
    let loader =
        Loader::new(&opened, LoaderConfig { verify: false, ..config() }, LoaderState::default());
    let read: Vec<_> = loader.unwrap().stream().collect().await;
    assert!(read.iter().any(|batch| batch.is_err()), "checked before it is kept, asked or not");
    std::fs::write(file.path(), whole).unwrap();
    assert_eq!(load(&opened).await.unwrap(), expected);
    // A folder where nothing can be written.
    let gone = folder.path().join("gone");
    let cache = Arc::new(DiskCache::new(&gone, 1 << 20).unwrap());
    std::fs::remove_dir(&gone).unwrap();
    assert_eq!(load(&dataset.with_cache(cache)).await.unwrap(), expected);
}
