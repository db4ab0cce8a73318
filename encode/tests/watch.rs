//! A source that grows is followed: new files and archives come into the table once, whatever
//! interrupts the watcher.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;
use common::Fixture;
use lapflow_encode::{EncodeError, EncodeStats, Status, Watch};
use lapflow_model::autoencoder::Autoencoder;
use lapflow_store::{Row, Worker};

/// A folder that is watched, and all images that are to come into it.
struct Growing {
    fixture: Fixture,
    /// Key and content of each image, the corrupt ones included.
    images: Vec<(String, Vec<u8>)>,
}

impl Growing {
    fn new(count: usize, corrupt_every: usize) -> Self {
        let mut fixture = Fixture::new(count, corrupt_every);
        let folder = fixture.folder.path().join("images");
        let mut images = Vec::new();
        for class in ["ash", "birch", "cedar"] {
            for entry in fs::read_dir(folder.join(class)).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                images.push((format!("{class}/{name}"), fs::read(&path).unwrap()));
            }
        }
        // In the order of their numbers, so that all classes come in from the start.
        images.sort_by_key(|(key, _)| key.rsplit('/').next().map(str::to_owned));
        let inbox = fixture.folder.path().join("inbox");
        fs::create_dir(&inbox).unwrap();
        fixture.ingest.source = inbox.display().to_string();
        let watch = &mut fixture.encode.watch;
        (watch.poll_seconds, watch.settle_seconds, watch.age_seconds) = (0.02, 0.0, 0.1);
        watch.classes = ["ash", "birch", "cedar"].map(str::to_owned).to_vec();
        Self { fixture, images }
    }

    fn inbox(&self) -> &Path {
        Path::new(&self.fixture.ingest.source)
    }

    /// Puts images into the inbox as a careful program does: written beside, then renamed.
    fn add(&self, images: &[(String, Vec<u8>)]) {
        for (key, content) in images {
            let path = self.inbox().join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let beside = path.with_file_name(".arriving");
            fs::write(&beside, content).unwrap();
            fs::rename(&beside, &path).unwrap();
        }
    }

    fn add_tar(&self, name: &str, images: &[(String, Vec<u8>)]) {
        let mut archive = tar::Builder::new(Vec::new());
        for (key, content) in images {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, key, content.as_slice()).unwrap();
        }
        let beside = self.inbox().join(".arriving");
        fs::write(&beside, archive.into_inner().unwrap()).unwrap();
        fs::rename(&beside, self.inbox().join(name)).unwrap();
    }

    async fn watch(&self) -> Result<Watch, EncodeError> {
        let Fixture { ingest, encode, .. } = &self.fixture;
        let uri = self.fixture.uri("latents");
        Watch::open(ingest, encode, Arc::new(Autoencoder::Pixel), &Device::Cpu, &uri).await
    }

    /// Watches until `done`, or a minute is over.
    async fn until(
        &self,
        worker: Worker,
        done: impl Fn(&EncodeStats) -> bool + Sync,
    ) -> EncodeStats {
        let (stop, start) = (AtomicBool::new(false), Instant::now());
        let watch = self.watch().await.unwrap();
        let mut report = |stats: &EncodeStats| {
            assert!(start.elapsed() < Duration::from_secs(60), "{stats:?}");
            stop.store(done(stats) || stop.load(Ordering::Relaxed), Ordering::Relaxed);
        };
        watch.run(worker, &stop, &mut report).await.unwrap()
    }

    async fn rows(&self) -> Vec<Row> {
        self.fixture.rows("latents").await
    }
}

/// Label and levels by source and view, which are the same however an image came in.
type Contents = BTreeMap<(String, i8), (i32, Vec<Vec<u8>>)>;

fn by_source(rows: &[Row]) -> Contents {
    let entry = |row: &Row| ((row.source.clone(), row.view), (row.label, row.levels.clone()));
    let map: BTreeMap<_, _> = rows.iter().map(entry).collect();
    assert_eq!(map.len(), rows.len(), "an image is there twice");
    map
}

#[tokio::test]
async fn files_and_archives_come_in_once_across_restarts() {
    let growing = Growing::new(40, 0);
    growing.add(&growing.images[..10]);
    let stats = growing.until(Worker::ALONE, |stats| stats.rows_committed >= 7).await;
    assert!(stats.stopped && stats.rows_committed <= 10, "{stats:?}");
    growing.add(&growing.images[10..25]);
    growing.add_tar("more.tar", &growing.images[25..40]);
    fs::write(growing.inbox().join("broken.zip"), b"PK, but no archive").unwrap();
    let before = stats.rows_committed;
    let stats = growing
        .until(Worker::ALONE, |stats| stats.rows_committed + before == 40 && stats.idle_polls > 0)
        .await;
    assert_eq!(stats.images_pending, 0);
    let rows = growing.rows().await;
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    assert_eq!(ids, (0..40).collect::<Vec<_>>());
    let status = Status::read(&growing.fixture.uri("latents")).await.unwrap();
    assert_eq!((status.missing.len(), status.open.len(), status.skips), (0, 0, 0));

    // The same levels and labels as a job makes of them: the class of an archive's member is its
    // folder in there.
    let mut planned = Fixture::new(40, 0);
    planned.encode = growing.fixture.encode.clone();
    planned.run("latents", Worker::ALONE).await.unwrap();
    let expected = by_source(&planned.rows("latents").await);
    let found: BTreeMap<_, _> = by_source(&rows)
        .into_iter()
        .map(|((source, view), row)| {
            ((source.trim_start_matches("more.tar/").to_owned(), view), row)
        })
        .collect();
    assert!(found == expected, "other levels or labels than a job's");
}

#[tokio::test]
async fn two_watchers_share_what_appears() {
    let mut growing = Growing::new(60, 9);
    growing.fixture.ingest.flip = true;
    growing.fixture.encode.shard_rows = 8;
    growing.add(&growing.images[..30]);
    let worker = |index| Worker { index, count: 2 };
    // Idle after the last addition: nothing pending, and each has done its part.
    let done = |stats: &EncodeStats| {
        stats.idle_polls > 20 && stats.images_pending == 0 && stats.shards_committed > 0
    };
    let add = async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        growing.add(&growing.images[30..]);
    };
    let (first, second, ()) =
        tokio::join!(growing.until(worker(0), done), growing.until(worker(1), done), add);
    // Whatever a watcher abandoned when it was stopped, the next one of its number makes.
    for index in [0, 1, 0, 1] {
        let rest = |stats: &EncodeStats| stats.idle_polls > 20 && stats.images_pending == 0;
        growing.until(worker(index), rest).await;
    }
    assert!(first.shards_committed > 0 && second.shards_committed > 0);
    let rows = growing.rows().await;
    assert_eq!(by_source(&rows).len(), 2 * 53);
    let status = Status::read(&growing.fixture.uri("latents")).await.unwrap();
    assert_eq!((status.open.len(), status.skips, status.skipped.len()), (0, 7, 7));
}

#[tokio::test]
async fn a_planned_dataset_is_watched_on_and_then_refuses_the_plan() {
    let growing = Growing::new(30, 5);
    growing.add(&growing.images[..20]);
    let fixture = &growing.fixture;
    let planned = fixture.run("latents", Worker::ALONE).await.unwrap();
    assert!(planned.rows_committed < 20, "some of them are corrupt");
    growing.add(&growing.images[20..]);
    let stats = growing.until(Worker::ALONE, |stats| stats.idle_polls > 8).await;
    assert_eq!(stats.rows_committed + stats.skips(), 10);
    let rows = growing.rows().await;
    assert_eq!(by_source(&rows).len(), 24);
    assert!(rows.iter().skip(planned.rows_committed as usize).all(|row| row.id >= 20));
    let error = fixture.run("latents", Worker::ALONE).await.unwrap_err().to_string();
    assert!(error.contains("plan.images = 20, this job has 30"), "{error}");
    let status = Status::read(&fixture.uri("latents")).await.unwrap();
    assert_eq!((status.skips, status.missing.len(), status.open.len()), (6, 0, 0));
}

#[tokio::test]
async fn a_job_does_not_join_a_dataset_that_is_watched() {
    let growing = Growing::new(9, 0);
    growing.watch().await.unwrap();
    growing.add(&growing.images);
    let error = growing.fixture.run("latents", Worker::ALONE).await.unwrap_err().to_string();
    assert!(error.contains("plan.images = 0, this job has 9"), "{error}");
}

#[tokio::test]
async fn unknown_classes_are_left_out_and_counted() {
    let growing = Growing::new(6, 0);
    growing.add(&growing.images);
    fs::rename(growing.inbox().join("birch"), growing.inbox().join("yew")).unwrap();
    let stats = growing.until(Worker::ALONE, |stats| stats.rows_committed == 4).await;
    assert_eq!((stats.images_unlabelled, stats.skips()), (2, 0));
    let labels: Vec<i32> = growing.rows().await.iter().map(|row| row.label).collect();
    assert!(labels.iter().all(|label| [0, 2].contains(label)), "{labels:?}");
}

#[tokio::test]
async fn a_file_still_being_written_is_left_alone() {
    let mut growing = Growing::new(3, 0);
    growing.fixture.encode.watch.settle_seconds = 1.5;
    let (key, content) = &growing.images[0];
    let path = growing.inbox().join(key);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let writer = async {
        let mut file = fs::File::create(&path).unwrap();
        for part in content.chunks(content.len() / 5 + 1) {
            file.write_all(part).unwrap();
            file.flush().unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let watched = growing.until(Worker::ALONE, |stats| stats.rows_committed + stats.skips() > 0);
    let (stats, ()) = tokio::join!(watched, writer);
    assert_eq!((stats.rows_committed, stats.skips()), (1, 0));
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused() {
    let mut growing = Growing::new(3, 0);
    growing.fixture.encode.watch.classes.clear();
    let error = growing.watch().await.err().unwrap().to_string();
    assert!(error.starts_with("data.watch.classes: the source holds no images"), "{error}");
    growing.fixture.ingest.source += "/one.tar";
    let error = growing.watch().await.err().unwrap().to_string();
    assert!(error.contains("only folders and prefixes can be followed"), "{error}");
    growing.fixture.encode.watch.poll_seconds = -1.0;
    let error = growing.watch().await.err().unwrap().to_string();
    assert_eq!(error, "data.watch.poll_seconds: -1 is outside 0..=1000000");
}
