//! A job beside its stages alone: `occupancy SOURCE SIZE BATCH DATASET [WEIGHTS | ENCODER DECODER]`.
//!
//! Encodes SOURCE into a new DATASET, then runs decoding and encoding over the same images by
//! themselves, and prints the occupancy of each stage and how the whole compares. Without weights
//! the pixels are the latents.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use futures::StreamExt;
use lapflow_encode::{EncodeConfig, Job, StageTimes};
use lapflow_ingest::{IngestConfig, Item, Outcome, Source};
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, WeightsSource};
use lapflow_model::pyramid;
use lapflow_store::Worker;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, size, batch, dataset, weights @ ..] = &arguments[..] else {
        return Err("usage: occupancy SOURCE SIZE BATCH DATASET [WEIGHTS | ENCODER DECODER]".into());
    };
    let weights = match weights {
        [] => WeightsSource::Pixel,
        [file] => WeightsSource::File(file.into()),
        [encoder, decoder, ..] => {
            WeightsSource::Pair { encoder: encoder.into(), decoder: decoder.into() }
        }
    };
    let config = AutoencoderConfig { weights, ..AutoencoderConfig::default() };
    let autoencoder = Arc::new(Autoencoder::open(&config, &Device::Cpu)?);
    let ingest = IngestConfig {
        source: source.clone(),
        size: size.parse()?,
        skip_fraction_max: 1.0,
        ..IngestConfig::default()
    };
    let encode = EncodeConfig { batch: batch.parse()?, shard_rows: 64, ..EncodeConfig::default() };

    let job = Job::open(&ingest, &encode, Arc::clone(&autoencoder), &Device::Cpu, dataset).await?;
    let stats = job.run(Worker::ALONE, &AtomicBool::new(false), &mut |_| {}).await?;
    let rows = stats.rows_committed as f64;
    println!(
        "whole      {:8.2} images/s  ({rows} rows, {} skipped)",
        rows / stats.seconds,
        stats.skips()
    );
    let stage = |name: &str, times: StageTimes| {
        let StageTimes { busy, starved, blocked } = times;
        let share = 100.0 * busy / stats.seconds;
        println!(
            "  {name:7} busy {busy:6.2} s ({share:3.0}% of the whole), waits {starved:.2} s for input, {blocked:.2} s for room"
        );
    };
    stage("read", stats.read);
    stage("encode", stats.encode);
    stage("write", stats.write);

    let start = Instant::now();
    let items = decode_alone(&ingest).await?;
    let decoding = start.elapsed().as_secs_f64();
    println!("read alone {:8.2} images/s", rows / decoding);
    let start = Instant::now();
    for items in items.chunks(encode.batch) {
        let images = pixels(items)?;
        let levels = pyramid::split(&autoencoder.encode(&images)?.mean, encode.levels)?;
        assert_eq!(levels.len(), encode.levels);
    }
    let encoding = start.elapsed().as_secs_f64();
    println!("encode alone {:6.2} images/s", rows / encoding);
    println!(
        "the whole takes {:.2} times its slowest stage alone",
        stats.seconds / decoding.max(encoding)
    );
    Ok(())
}

async fn decode_alone(ingest: &IngestConfig) -> Result<Vec<Item>, Box<dyn Error>> {
    let source = Arc::new(Source::open(ingest).await?);
    let mut outcomes = std::pin::pin!(source.stream((0..source.entries().len()).collect()));
    let mut items = Vec::new();
    while let Some(outcome) = outcomes.next().await {
        if let Outcome::Image(item) = outcome? {
            items.push(item);
        }
    }
    Ok(items)
}

/// The images as `(b, 3, s, s)` in [-1, 1].
fn pixels(items: &[Item]) -> Result<Tensor, candle_core::Error> {
    let side = items[0].image.width as usize;
    let bytes: Vec<u8> = items.iter().flat_map(|item| item.image.pixels.iter().copied()).collect();
    let images = Tensor::from_vec(bytes, (items.len(), side, side, 3), &Device::Cpu)?;
    (images.to_dtype(DType::F32)? / 127.5)?.permute((0, 3, 1, 2))?.contiguous()? - 1.0
}
