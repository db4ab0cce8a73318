//! `lapflow dataset preview`: some samples on one sheet.

use super::Context;
use crate::pictures::{from_pixels, level_picture, unit_range};
use anyhow::{Context as _, Result};
use candle_core::{DType, Device, Tensor};
use futures::TryStreamExt;
use image::DynamicImage;
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, WeightsSource};
use lapflow_model::pyramid;
use lapflow_report::{encode_png, grid};
use lapflow_store::{Batch, Dataset, LevelBatch, Loader, LoaderConfig, LoaderState};
use std::path::PathBuf;

/// Pixels between pictures.
const GAP: u32 = 4;

/// Arguments of `lapflow dataset preview`.
#[derive(clap::Args)]
pub struct Args {
    /// Path or s3://, gs://, az:// address
    uri: String,
    /// The sheet
    #[arg(long, default_value = "preview.png")]
    out: PathBuf,
    /// Samples on it, drawn from the whole dataset
    #[arg(long, default_value_t = 16)]
    count: usize,
    /// Seed of the draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Weights of the dataset's autoencoder: one file, or encoder and decoder; `pixel` for none
    #[arg(long, num_args = 1..=2)]
    weights: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<()> {
    let (batch, autoencoder) = context.runtime.block_on(draw(args))?;
    let levels: Vec<_> =
        batch.levels.iter().map(|level| tensor(level, batch.ids.len())).collect::<Result<_>>()?;
    let (pictures, columns) = match WeightsSource::from_paths(&args.weights) {
        Some(weights) => {
            let config = AutoencoderConfig { weights, ..AutoencoderConfig::default() };
            let config = config.recorded(&autoencoder);
            (decoded(&levels, &config, &context.device)?, columns(batch.ids.len()))
        }
        None => (raw(&levels)?, levels.len()),
    };
    std::fs::write(&args.out, encode_png(&grid(&pictures, columns, GAP)))
        .with_context(|| format!("writing '{}'", args.out.display()))?;
    println!("{}", args.out.display());
    Ok(())
}

/// Samples, and the identity of the autoencoder that made them.
async fn draw(args: &Args) -> Result<(Batch, serde_json::Value)> {
    let dataset = Dataset::open(&args.uri).await?;
    let batch = args.count.clamp(1, dataset.rows().max(1) as usize);
    let config =
        LoaderConfig { batch, seed: args.seed, epochs: Some(1), ..LoaderConfig::default() };
    let mut batches = Box::pin(Loader::new(&dataset, config, LoaderState::default())?.stream());
    let batch = batches.try_next().await?.context("the dataset has no rows")?;
    Ok((batch, dataset.metadata().autoencoder.clone()))
}

/// The levels of a batch as `[B, C, h, w]` in f32.
pub fn tensor(level: &LevelBatch, samples: usize) -> Result<Tensor> {
    let shape = (samples, level.spec.channels, level.spec.height, level.spec.width);
    Ok(Tensor::from_vec(level.dtype.decode(&level.data), shape, &Device::Cpu)?)
}

fn columns(samples: usize) -> usize {
    (samples as f64).sqrt().ceil() as usize
}

fn decoded(
    levels: &[Tensor],
    config: &AutoencoderConfig,
    device: &Device,
) -> Result<Vec<DynamicImage>> {
    let autoencoder = Autoencoder::open(config, device)?;
    let latents = pyramid::merge(levels)?.to_device(device)?;
    let samples = latents.dim(0)?;
    (0..samples)
        .map(|sample| {
            let image = autoencoder.decode(&latents.narrow(0, sample, 1)?)?.squeeze(0)?;
            let (_, height, width) = image.dims3()?;
            let bytes =
                ((image.clamp(-1f32, 1f32)? + 1.0)? * 127.5)?.round()?.to_dtype(DType::U8)?;
            from_pixels(bytes.permute((1, 2, 0))?.flatten_all()?.to_vec1()?, width, height)
        })
        .collect()
}

/// Each sample's levels side by side.
fn raw(levels: &[Tensor]) -> Result<Vec<DynamicImage>> {
    let samples = levels[0].dim(0)?;
    let mut pictures = Vec::with_capacity(samples * levels.len());
    for sample in 0..samples {
        for level in levels {
            let level = level.get(sample)?;
            pictures.push(level_picture(&level, unit_range(&level)?)?);
        }
    }
    Ok(pictures)
}
