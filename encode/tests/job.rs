//! Jobs over small folders: what is stored, by whom, and what is refused.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use common::Fixture;
use lapflow_encode::{Draft, EncodeError, Status};
use lapflow_ingest::IngestConfig;
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, Tiling};
use lapflow_store::{Dtype, Posterior, Worker};

/// `[3][16][16]` of the crop as level 0 and `[3][8][8]` as level 1, written out by hand.
fn expected_levels(pixels: &[u8]) -> [Vec<f32>; 2] {
    let value =
        |c: usize, y: usize, x: usize| f32::from(pixels[(y * 16 + x) * 3 + c]) / 127.5 - 1.0;
    let mean = |c: usize, y: usize, x: usize| {
        let (y, x) = (2 * (y / 2), 2 * (x / 2));
        (value(c, y, x) + value(c, y, x + 1) + value(c, y + 1, x) + value(c, y + 1, x + 1)) / 4.0
    };
    let (mut fine, mut coarse) = (Vec::new(), Vec::new());
    for c in 0..3 {
        for y in 0..16 {
            for x in 0..16 {
                fine.push(value(c, y, x) - mean(c, y, x));
                if y % 2 == 0 && x % 2 == 0 {
                    coarse.push(mean(c, y, x));
                }
            }
        }
    }
    [fine, coarse]
}

#[tokio::test]
async fn stored_levels_are_the_pyramid_of_each_crop_and_its_mirror_image() {
    let mut fixture = Fixture::new(10, 0);
    fixture.ingest.flip = true;
    let stats = fixture.run("latents", Worker::ALONE).await.unwrap();
    assert_eq!((stats.rows_encoded, stats.rows_committed, stats.skips()), (20, 20, 0));
    let rows = fixture.rows("latents").await;
    let keys: Vec<_> = rows.iter().map(|row| (row.id, row.view)).collect();
    assert_eq!(keys, (0..10).flat_map(|id| [(id, 0), (id, 1)]).collect::<Vec<_>>());
    for row in rows {
        let bytes = std::fs::read(fixture.folder.path().join("images").join(&row.source)).unwrap();
        let limits = lapflow_ingest::Limits { pixels_max: 1 << 20 };
        let image = lapflow_ingest::decode(&bytes, &limits).unwrap();
        assert_eq!((row.width, row.height), (image.width as i32, image.height as i32));
        let mut crop = lapflow_ingest::crop(image, 16, fixture.ingest.crop, 0);
        if row.view == 1 {
            crop = crop.flipped();
        }
        for (bytes, expected) in row.levels.iter().zip(expected_levels(&crop.pixels)) {
            let stored = Dtype::F16.decode(bytes);
            assert_eq!(stored.len(), expected.len());
            let gaps = stored.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let worst = gaps.max_by(f32::total_cmp).unwrap();
            assert!(worst < 6e-4, "row {}: {worst}", row.id);
        }
        let class = row.source.split('/').next().unwrap();
        assert_eq!(["ash", "birch", "cedar"][row.label as usize], class);
    }
}

#[tokio::test]
async fn the_content_does_not_depend_on_the_workers() {
    let fixture = Fixture::new(40, 9);
    fixture.run("one", Worker::ALONE).await.unwrap();
    let (first, second, third, same) = tokio::join!(
        fixture.run("three", Worker { index: 0, count: 3 }),
        fixture.run("three", Worker { index: 1, count: 3 }),
        fixture.run("three", Worker { index: 2, count: 3 }),
        fixture.run("three", Worker { index: 1, count: 3 }),
    );
    let committed: u64 = [first, second, third, same]
        .into_iter()
        .map(|stats| stats.unwrap())
        .inspect(|stats| {
            assert_eq!(stats.shards_present + stats.shards_committed, stats.shards_assigned);
        })
        .map(|stats| stats.shards_committed)
        .sum();
    assert_eq!(committed, 6);
    let one = fixture.rows("one").await;
    assert_eq!(one.len(), 35);
    assert_eq!(one, fixture.rows("three").await);

    let again = fixture.run("three", Worker { index: 0, count: 2 }).await.unwrap();
    assert_eq!((again.shards_present, again.shards_committed, again.rows_encoded), (3, 0, 0));
}

#[tokio::test]
async fn a_stopped_job_goes_on_where_it_was() {
    let fixture = Fixture::new(60, 7);
    let job = fixture.open("stopped").await.unwrap();
    let stop = AtomicBool::new(false);
    let mut stats = job
        .run(Worker::ALONE, &stop, &mut |stats| {
            stop.store(stats.shards_committed == 2, Ordering::Relaxed);
        })
        .await
        .unwrap();
    assert!(stats.stopped && stats.shards_committed < 9, "{stats:?}");
    let status = Status::read(&fixture.uri("stopped")).await.unwrap();
    assert_eq!(status.missing.len() as u64, 9 - stats.shards_committed);
    assert_eq!(status.rows, stats.rows_committed);

    let committed = stats.shards_committed;
    stats = fixture.run("stopped", Worker::ALONE).await.unwrap();
    assert_eq!((stats.shards_present, stats.shards_committed), (committed, 9 - committed));
    fixture.run("straight", Worker::ALONE).await.unwrap();
    assert_eq!(fixture.rows("stopped").await, fixture.rows("straight").await);
}

#[tokio::test]
async fn skipped_images_are_counted_and_named_also_where_a_whole_shard_is_bad() {
    let mut fixture = Fixture::new(9, 3);
    fixture.encode.shard_rows = 1;
    let stats = fixture.run("latents", Worker::ALONE).await.unwrap();
    assert_eq!((stats.shards_committed, stats.rows_committed), (9, 6));
    assert_eq!(stats.skipped.values().sum::<u64>(), 3);
    let status = Status::read(&fixture.uri("latents")).await.unwrap();
    assert_eq!((status.skips, status.rows, status.missing.len()), (3, 6, 0));
    let named: Vec<_> = status.skipped.iter().map(|skip| skip.key.as_str()).collect();
    assert_eq!(named, ["ash/000.png", "ash/003.png", "ash/006.png"]);
    assert!(status.skipped.iter().all(|skip| skip.reason == "truncated"), "{status:?}");
}

#[tokio::test]
async fn the_limit_on_skips_holds_over_the_whole_job() {
    let mut fixture = Fixture::new(40, 9);
    fixture.ingest.skip_fraction_max = 0.1;
    let error = fixture.run("latents", Worker::ALONE).await.unwrap_err();
    let EncodeError::TooManySkips { skipped: 5, images: 40, .. } = error else {
        panic!("{error}");
    };
    // Each worker alone stays below the limit; the last to end sees that together they do not.
    let mut last = None;
    for index in 0..5 {
        last = Some(fixture.run("shared", Worker { index, count: 5 }).await);
    }
    let error = last.unwrap().unwrap_err().to_string();
    assert!(error.starts_with("5 of 40 images skipped, more than"), "{error}");

    fixture.ingest.skip_fraction_max = 0.125;
    fixture.run("shared", Worker::ALONE).await.unwrap();
}

#[tokio::test]
async fn another_job_is_refused_and_both_sides_are_named() {
    let fixture = Fixture::new(8, 0);
    fixture.run("latents", Worker::ALONE).await.unwrap();
    let refused = async |change: &dyn Fn(&mut Fixture)| {
        let mut other =
            Fixture { folder: tempfile::tempdir().unwrap(), ..fixture_configs(&fixture) };
        change(&mut other);
        let draft =
            Draft::open(&other.ingest, &other.encode, Arc::new(Autoencoder::Pixel), &Device::Cpu);
        let error = draft.await.unwrap().attach(&fixture.uri("latents")).await.err().unwrap();
        let error = error.to_string();
        error.split_once(" was made with ").unwrap().1.to_owned()
    };
    let levels = refused(&|other| other.encode.levels = 1).await;
    assert!(levels.starts_with("levels = [{"), "{levels}");
    let dtype = refused(&|other| other.encode.dtype = Dtype::F32).await;
    assert_eq!(dtype, "dtype = \"f16\", this job has \"f32\"");
    let flip = refused(&|other| other.ingest.flip = true).await;
    assert_eq!(flip, "preprocessing.flip = false, this job has true");
    let shards = refused(&|other| other.encode.shard_rows = 3).await;
    assert_eq!(shards, "plan.shards = 2, this job has 3");
    common::write_images(&fixture.folder.path().join("images"), 9, 0);
    let listing = refused(&|_| {}).await;
    assert_eq!(listing, "plan.images = 8, this job has 9");
}

fn fixture_configs(fixture: &Fixture) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    Fixture { folder, ingest: fixture.ingest.clone(), encode: fixture.encode.clone() }
}

#[tokio::test]
async fn impossible_configurations_name_their_key() {
    let refused = async |change: &dyn Fn(&mut Fixture)| {
        let mut fixture = Fixture::new(1, 0);
        change(&mut fixture);
        fixture.open("latents").await.err().unwrap().to_string()
    };
    let error = refused(&|fixture| fixture.encode.levels = 6).await;
    assert!(error.starts_with("data.levels: 6 levels of an autoencoder with factor 1"), "{error}");
    let error = refused(&|fixture| fixture.encode.batch = 0).await;
    assert_eq!(error, "data.batch: must be at least 1");
    for posterior in [Posterior::Sample, Posterior::Moments] {
        let error = refused(&|fixture| fixture.encode.posterior = posterior).await;
        assert!(error.starts_with("data.posterior: this autoencoder is deterministic"), "{error}");
    }
    let error = refused(&|fixture| fixture.ingest = IngestConfig::default()).await;
    assert!(error.starts_with("data.source: "), "{error}");
}

#[tokio::test]
async fn a_dry_run_estimates_and_writes_nothing() {
    let fixture = Fixture::new(30, 0);
    let autoencoder = Arc::new(Autoencoder::Pixel);
    let draft = Draft::open(&fixture.ingest, &fixture.encode, autoencoder, &Device::Cpu);
    let draft = draft.await.unwrap();
    let estimate = draft.estimate(4).await.unwrap();
    assert_eq!(estimate.images_measured, 3); // the first shard's 6 less a batch
    assert_eq!(estimate.bytes, 30 * 2 * 3 * (16 * 16 + 8 * 8));
    let each = estimate.read_seconds + estimate.encode_seconds;
    assert!(each > 0.0 && (estimate.seconds / 30.0 / each - 1.0).abs() < 1e-9);
    assert_eq!(std::fs::read_dir(fixture.folder.path()).unwrap().count(), 1);
}

/// The built-in autoencoder's latents of 64 pixels are 16 a side.
#[tokio::test]
async fn a_dataset_records_that_its_images_were_cut() {
    let mut fixture = Fixture::new(3, 0);
    fixture.ingest.size = 64;
    for (tile, recorded) in [(8, serde_json::json!({ "tile": 8, "margin": 2 })), (16, ().into())] {
        let tiling = Some(Tiling { tile, margin: 2 });
        let config = AutoencoderConfig { tiling, ..Default::default() };
        let autoencoder = Arc::new(Autoencoder::open(&config, &Device::Cpu).unwrap());
        let draft = Draft::open(&fixture.ingest, &fixture.encode, autoencoder, &Device::Cpu);
        assert_eq!(draft.await.unwrap().metadata().preprocessing["tiling"], recorded);
    }
}

#[tokio::test]
async fn missing_shards_are_listed_for_a_job_array() {
    let mut fixture = Fixture::new(24, 0);
    fixture.encode.shard_rows = 2;
    let missing = async || Status::read(&fixture.uri("latents")).await.unwrap();
    fixture.open("latents").await.unwrap();
    assert_eq!(missing().await.array_expression(), "0-11");
    for index in [1, 6, 7, 8] {
        fixture.run("latents", Worker { index, count: 12 }).await.unwrap();
    }
    assert_eq!(missing().await.array_expression(), "0,2-5,9-11");
    fixture.run("latents", Worker::ALONE).await.unwrap();
    assert_eq!(missing().await.array_expression(), "");
}

#[tokio::test]
async fn a_lost_shard_is_encoded_once_more_and_an_empty_table_is_in_nobodys_way() {
    let mut fixture = Fixture::new(40, 0);
    fixture.run("latents", Worker::ALONE).await.unwrap();
    let rows = fixture.rows("latents").await;
    let data = fixture.folder.path().join("latents/data");
    for file in std::fs::read_dir(&data).unwrap().take(2) {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let again = fixture.run("latents", Worker::ALONE).await.unwrap();
    assert_eq!((again.shards_restored, again.shards_committed, again.shards_present), (2, 0, 4));
    assert_eq!(fixture.rows("latents").await, rows);
    let whole = fixture.run("latents", Worker::ALONE).await.unwrap();
    assert_eq!((whole.shards_restored, whole.rows_encoded), (0, 0));

    // A first try whose labels name no class of any image commits nothing.
    let labels = fixture.folder.path().join("labels.csv");
    let file = |index: usize| format!("{}/{index:03}", ["ash", "birch", "cedar"][index % 3]);
    let write = |label: fn(usize) -> &'static str| {
        let lines = (0..40).map(|index| format!("{},{}\n", file(index), label(index)));
        std::fs::write(&labels, lines.collect::<String>()).unwrap();
    };
    fixture.ingest.labels = Some(labels.clone());
    fixture.ingest.skip_fraction_max = 0.0;
    write(|index| if index == 0 { "oak" } else { "" });
    let error = fixture.run("second", Worker::ALONE).await.unwrap_err();
    assert!(matches!(error, EncodeError::TooManySkips { .. }), "{error}");
    write(|index| if index % 2 == 0 { "even" } else { "odd" });
    let stats = fixture.run("second", Worker::ALONE).await.unwrap();
    assert_eq!(stats.rows_committed, 40);
    // One that holds rows is another matter.
    write(|index| if index % 2 == 0 { "one" } else { "two" });
    let error = fixture.run("second", Worker::ALONE).await.unwrap_err();
    assert!(matches!(error, EncodeError::Differs { .. }), "{error}");
}
