//! What may go wrong with writers, files and logs: each ends in correct data or in one sentence
//! that names the place.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use futures::StreamExt;
use lapflow_store::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

async fn read_all(uri: &str) -> Result<Vec<Row>> {
    let rows: Vec<_> = Dataset::open(uri).await?.scan().collect().await;
    rows.into_iter().collect()
}

async fn load_all(uri: &str) -> Result<usize> {
    let config = LoaderConfig { epochs: Some(1), batch: 7, ..LoaderConfig::default() };
    let loader = Loader::new(&Dataset::open(uri).await?, config, LoaderState::default())?;
    let batches: Vec<_> = loader.stream().collect().await;
    batches.into_iter().map(|batch| batch.map(|batch| batch.ids.len())).sum()
}

fn data_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("data")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn commit_path(folder: &Path, version: u64) -> PathBuf {
    folder.join(format!("_delta_log/{version:020}.json"))
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_found_and_named() {
    let (folder, dataset) = dataset(1, 40).await;
    let file = &data_files(&folder.path().join("set"))[0];
    let name = file.file_name().unwrap().to_str().unwrap();
    let whole = std::fs::read(file).unwrap();
    let mut generator = ChaCha8Rng::seed_from_u64(5);
    let random: Vec<_> = (0..200).map(|_| generator.random_range(0..whole.len())).collect();
    let ends = [0, 3, whole.len() - 1, whole.len() - 5, whole.len() - 8];
    let shard = dataset.shards().next().unwrap();
    let edges = shard.row_groups.iter().flat_map(|group| group.ends.clone());
    let edges = edges.flat_map(|end| [end as usize - 1, end as usize]);
    for offset in random.into_iter().chain(ends).chain(edges) {
        let mut flipped = whole.clone();
        flipped[offset] ^= 1 << generator.random_range(0..8);
        std::fs::write(file, flipped).unwrap();
        for error in [
            read_all(dataset.uri()).await.unwrap_err().to_string(),
            load_all(dataset.uri()).await.unwrap_err().to_string(),
        ] {
            assert!(
                error.contains(name) && error.contains("checksum differs"),
                "{offset}: {error}"
            );
            assert!(error.contains("row group") || error.contains("footer"), "{offset}: {error}");
        }
        let found = Dataset::open(dataset.uri()).await.unwrap().verify().await.unwrap();
        assert!(!found.problems.is_empty(), "{offset}");
    }
    std::fs::write(file, whole).unwrap();
    let found = dataset.verify().await.unwrap();
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    assert_eq!(found.rows, 40);
}

#[tokio::test]
async fn truncated_and_missing_files_are_named() {
    let (folder, dataset) = dataset(2, 40).await;
    let file = &data_files(&folder.path().join("set"))[1];
    let name = file.file_name().unwrap().to_str().unwrap();
    let whole = std::fs::read(file).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(file, &whole[..length]).unwrap();
        let error = read_all(dataset.uri()).await.unwrap_err().to_string();
        assert!(error.contains(name), "{length}: {error}");
        let error = load_all(dataset.uri()).await.unwrap_err().to_string();
        assert!(error.contains(name), "{length}: {error}");
    }
    std::fs::remove_file(file).unwrap();
    let error = load_all(dataset.uri()).await.unwrap_err().to_string();
    assert!(error.contains(name) && error.starts_with("reading"), "{error}");
    assert_eq!(dataset.verify().await.unwrap().problems.len(), 4, "its size and 3 row groups");
}

#[tokio::test]
async fn a_log_with_a_hole_is_refused() {
    let (folder, dataset) = dataset(5, 3).await;
    std::fs::remove_file(commit_path(&folder.path().join("set"), 3)).unwrap();
    let error = Dataset::open(dataset.uri()).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("log of dataset '{}'", dataset.uri())), "{error}");
    assert!(error.contains("version 3"), "{error}");
}

#[tokio::test]
async fn a_torn_log_entry_is_refused() {
    let (folder, dataset) = dataset(2, 3).await;
    let commit = commit_path(&folder.path().join("set"), 2);
    let text = std::fs::read(&commit).unwrap();
    std::fs::write(&commit, &text[..text.len() - 40]).unwrap();
    let error = Dataset::open(dataset.uri()).await.unwrap_err().to_string();
    assert!(error.starts_with("log of dataset"), "{error}");
}

#[tokio::test]
async fn a_later_format_version_is_refused_before_it_is_interpreted() {
    let (folder, dataset) = dataset(1, 3).await;
    let commit = commit_path(&folder.path().join("set"), 0);
    let text = std::fs::read_to_string(&commit).unwrap();
    let later = text
        .replace(r#""lapflow.formatVersion":"1""#, r#""lapflow.formatVersion":"9""#)
        .replace(r#""lapflow.metadata":"{"#, r#""lapflow.metadata":"{{{"#);
    assert_ne!(text, later);
    std::fs::write(&commit, later).unwrap();
    let error = Dataset::open(dataset.uri()).await.unwrap_err().to_string();
    assert!(error.ends_with("has format version 9; this program reads up to 1"), "{error}");
}

#[tokio::test]
async fn a_table_of_others_is_refused() {
    let (folder, dataset) = dataset(1, 3).await;
    let commit = commit_path(&folder.path().join("set"), 0);
    let text = std::fs::read_to_string(&commit).unwrap();
    std::fs::write(&commit, text.replace("lapflow.formatVersion", "another.property")).unwrap();
    let error = Dataset::open(dataset.uri()).await.unwrap_err().to_string();
    assert!(error.ends_with("table property 'lapflow.formatVersion' is missing"), "{error}");
}

#[tokio::test]
async fn vacuum_removes_old_orphans_only_and_trusts_the_storage_clock() {
    let (folder, dataset) = dataset(2, 10).await;
    let data = folder.path().join("set/data");
    let age = |name: &str, seconds: i64| {
        let file = std::fs::File::create(data.join(name)).unwrap();
        let now = std::time::SystemTime::now();
        let time = match seconds >= 0 {
            true => now - Duration::from_secs(seconds as u64),
            false => now + Duration::from_secs(-seconds as u64),
        };
        file.set_modified(time).unwrap();
    };
    age("old.parquet", 7200);
    age("old.parquet#1", 7200);
    age("young.parquet", 10);
    age("future.parquet", -7200);
    assert_eq!(dataset.verify().await.unwrap().orphans.len(), 3);
    let removed = dataset.vacuum(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(removed.len(), 2, "{removed:?}");
    assert!(removed.iter().all(|path| path.contains("old.parquet")));
    assert!(data.join("young.parquet").exists() && data.join("future.parquet").exists());
    assert_eq!(read_all(dataset.uri()).await.unwrap().len(), 20);
}

const WRITER_URI: &str = "LAPFLOW_TEST_WRITER_URI";
const WRITER_SHARDS: i64 = 6;

/// Not a test of its own: the process that the tests below start and kill. It writes all shards
/// that are missing and then says so.
#[tokio::test]
async fn writer_process() {
    let Ok(uri) = std::env::var(WRITER_URI) else { return };
    let dataset = Dataset::open(&uri).await.unwrap();
    for shard in 0..WRITER_SHARDS {
        let name = format!("{shard:05}");
        if dataset.is_committed(&name).await.unwrap() {
            continue;
        }
        if let Err(error) = write_shard(&dataset, &name, shard * 50..shard * 50 + 50).await {
            eprintln!("writer failed: {error}");
            std::process::exit(1);
        }
    }
}

fn writer(uri: &str, shell_prefix: &str) -> Command {
    let binary = std::env::current_exe().unwrap();
    let mut command = Command::new("sh");
    let line =
        format!("{shell_prefix} exec {} --exact writer_process --nocapture", binary.display());
    command.arg("-c").arg(line).env(WRITER_URI, uri).stdout(Stdio::null());
    command
}

#[tokio::test]
async fn writers_killed_at_random_instants_lose_nothing_and_repeat_nothing() {
    let (folder, dataset) = dataset(0, 0).await;
    let mut generator = ChaCha8Rng::seed_from_u64(9);
    let mut killed = 0;
    for _ in 0..50 {
        let mut first = writer(dataset.uri(), "").stderr(Stdio::null()).spawn().unwrap();
        let mut second = writer(dataset.uri(), "").stderr(Stdio::null()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(generator.random_range(5..60))).await;
        for child in [&mut first, &mut second] {
            killed += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    assert!(killed > 10, "{killed} of 100 were killed at work: the delays no longer fit");
    assert!(writer(dataset.uri(), "").status().unwrap().success());
    let rows = read_all(dataset.uri()).await.unwrap();
    let expected: Vec<_> = (0..WRITER_SHARDS * 50).map(|id| row(dataset.metadata(), id)).collect();
    assert_eq!(rows, expected);
    let found = dataset.refresh().await.unwrap().verify().await.unwrap();
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    tokio::time::sleep(Duration::from_millis(20)).await;
    dataset.vacuum(Duration::from_millis(1)).await.unwrap();
    assert_eq!(data_files(&folder.path().join("set")).len(), WRITER_SHARDS as usize);
}

#[tokio::test]
async fn a_full_disk_ends_in_one_sentence_and_a_later_writer_completes_the_set() {
    let (_folder, dataset) = dataset(0, 0).await;
    let limit = "trap '' XFSZ; ulimit -f 4;";
    let output = writer(dataset.uri(), limit).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let line = stderr.lines().find(|line| line.starts_with("writer failed")).unwrap_or_default();
    assert!(line.contains("writing") && line.contains("data/00000-"), "{stderr}");
    assert_eq!(dataset.refresh().await.unwrap().rows(), 0);
    assert!(writer(dataset.uri(), "").status().unwrap().success());
    assert_eq!(read_all(dataset.uri()).await.unwrap().len(), 300);
}

#[tokio::test]
async fn a_lost_file_is_told_and_put_back_by_whoever_writes_its_shard_again() {
    let (folder, dataset) = dataset(2, 40).await;
    assert!(dataset.lost().await.unwrap().is_empty());
    let files = data_files(&folder.path().join("set"));
    let whole = std::fs::read(&files[1]).unwrap();
    std::fs::remove_file(&files[1]).unwrap();
    assert_eq!(dataset.lost().await.unwrap(), ["00001"]);

    // Other rows under the shard's name are not what the log says.
    let error = write_shard(&dataset, "00001", 0..40).await.unwrap_err().to_string();
    assert!(error.contains("it is lost, and what was encoded now has other bytes"), "{error}");
    assert_eq!(write_shard(&dataset, "00001", 40..80).await.unwrap(), Commit::Restored);
    assert_eq!(std::fs::read(&files[1]).unwrap(), whole);
    assert!(dataset.verify().await.unwrap().problems.is_empty());

    // A file that was cut is lost as well.
    std::fs::write(&files[0], b"PAR1").unwrap();
    assert_eq!(dataset.lost().await.unwrap(), ["00000"]);
    assert_eq!(write_shard(&dataset, "00000", 0..40).await.unwrap(), Commit::Restored);
    assert_eq!(write_shard(&dataset, "00000", 0..40).await.unwrap(), Commit::AlreadyDone);
    assert!(dataset.verify().await.unwrap().problems.is_empty());
}

#[tokio::test]
async fn an_empty_table_gives_way_and_its_writers_commit_nowhere() {
    let (_folder, dataset) = dataset(0, 40).await;
    let metadata = Metadata { classes: vec!["other".into()], ..dataset.metadata().clone() };
    dataset.write_beside("plan.json", "{}").await.unwrap();
    let anew = dataset.recreate(&metadata).await.unwrap();
    assert_eq!(anew.metadata(), &metadata);
    assert_eq!(anew.read_beside("plan.json").await.unwrap(), None);
    // Whoever comes late finds the new one.
    let late = dataset.recreate(&metadata).await.unwrap();
    assert_eq!(late.version(), 0);

    let error = write_shard(&dataset, "00000", 0..40).await.unwrap_err();
    assert!(matches!(error, StoreError::Replaced { .. }), "{error}");
    assert_eq!(anew.refresh().await.unwrap().rows(), 0);
    write_shard(&anew, "00000", 0..40).await.unwrap();
    let error = anew.recreate(&metadata).await.unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
}
