//! Small image folders and what a job makes of them.

#![allow(dead_code)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use futures::TryStreamExt;
use lapflow_encode::{EncodeConfig, EncodeError, EncodeStats, Job, Watch};
use lapflow_ingest::IngestConfig;
use lapflow_model::autoencoder::Autoencoder;
use lapflow_store::{Dataset, Row, Worker};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Writes `count` PNGs of odd sizes and random pixels into three class folders; every
/// `corrupt_every`-th is cut short (0: none).
pub fn write_images(folder: &Path, count: usize, corrupt_every: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(count as u64);
    for index in 0..count {
        let class = folder.join(["ash", "birch", "cedar"][index % 3]);
        std::fs::create_dir_all(&class).unwrap();
        let (width, height) = (rng.random_range(16..60), rng.random_range(16..60));
        let mut image = image::RgbImage::new(width, height);
        rng.fill_bytes(&mut image);
        let path = class.join(format!("{index:03}.png"));
        image.save(&path).unwrap();
        if corrupt_every > 0 && index % corrupt_every == 0 {
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
    }
}

/// A folder with images in `images` and room for a dataset in `latents`.
pub struct Fixture {
    pub folder: tempfile::TempDir,
    pub ingest: IngestConfig,
    pub encode: EncodeConfig,
}

impl Fixture {
    pub fn new(count: usize, corrupt_every: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_images(&folder.path().join("images"), count, corrupt_every);
        let ingest = IngestConfig {
            source: folder.path().join("images").display().to_string(),
            size: 16,
            skip_fraction_max: 0.5,
            ..IngestConfig::default()
        };
        let encode =
            EncodeConfig { shard_rows: 7, batch: 3, shuffle_seed: 11, ..EncodeConfig::default() };
        Self { folder, ingest, encode }
    }

    pub fn uri(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    pub async fn open(&self, name: &str) -> Result<Job, EncodeError> {
        let autoencoder = Arc::new(Autoencoder::Pixel);
        let uri = self.uri(name);
        Job::open(&self.ingest, &self.encode, autoencoder, &Device::Cpu, &uri).await
    }

    pub async fn run(&self, name: &str, worker: Worker) -> Result<EncodeStats, EncodeError> {
        let stop = AtomicBool::new(false);
        self.open(name).await?.run(worker, &stop, &mut |_| {}).await
    }

    /// All rows of a dataset, by id and view.
    pub async fn rows(&self, name: &str) -> Vec<Row> {
        rows(&self.uri(name)).await
    }
}

/// All rows of the dataset at `uri`, by id and view.
pub async fn rows(uri: &str) -> Vec<Row> {
    let dataset = Dataset::open(uri).await.unwrap();
    let mut rows: Vec<Row> = dataset.scan().try_collect().await.unwrap();
    rows.sort_by_key(|row| (row.id, row.view));
    rows
}

/// What of a row does not depend on when its image arrived.
pub fn by_source(rows: &[Row]) -> Vec<Row> {
    let mut rows: Vec<Row> = rows.iter().map(|row| Row { id: 0, ..row.clone() }).collect();
    rows.sort_by(|left, right| left.source.cmp(&right.source));
    rows
}

/// Runs the fixtures' job over `images` as one worker.
pub async fn work(images: &str, uri: &str, worker: Worker) {
    let Fixture { mut ingest, encode, .. } = Fixture::new(0, 0);
    ingest.source = images.to_owned();
    let autoencoder = Arc::new(Autoencoder::Pixel);
    let job = Job::open(&ingest, &encode, autoencoder, &Device::Cpu, uri).await.unwrap();
    job.run(worker, &AtomicBool::new(false), &mut |_| {}).await.unwrap();
}

/// Watches `images` with the fixtures' configuration until there has been nothing to do for a
/// while.
pub async fn watch(images: &str, uri: &str) {
    let Fixture { mut ingest, mut encode, .. } = Fixture::new(0, 0);
    ingest.source = images.to_owned();
    let config = &mut encode.watch;
    (config.poll_seconds, config.settle_seconds, config.age_seconds) = (0.01, 0.0, 0.03);
    config.classes = ["ash", "birch", "cedar"].map(str::to_owned).to_vec();
    let autoencoder = Arc::new(Autoencoder::Pixel);
    let watch = Watch::open(&ingest, &encode, autoencoder, &Device::Cpu, uri).await.unwrap();
    let stop = AtomicBool::new(false);
    let mut report = |stats: &EncodeStats| {
        stop.store(stats.idle_polls > 20 && stats.images_pending == 0, Ordering::Relaxed);
    };
    watch.run(Worker::ALONE, &stop, &mut report).await.unwrap();
}
