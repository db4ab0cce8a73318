//! `lapflow autoencoder reconstruct`: images beside their reconstructions, with PSNR and SSIM.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use candle_core::Tensor;
use futures::StreamExt;
use image::{DynamicImage, RgbImage};
use lapflow_ingest::{IngestConfig, Item, Outcome, Source};
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, Tiling, WeightsSource};
use serde::Serialize;

use super::data::to_tensor;
use super::score::{SSIM_WINDOW, psnr, ssim};
use crate::commands::Context;
use lapflow_report::{encode_png, grid};

/// Pixels between an image and its reconstruction.
const GAP: u32 = 4;

/// Arguments of `lapflow autoencoder reconstruct`.
#[derive(clap::Args, Debug)]
pub struct ReconstructArgs {
    /// Weight file, or `builtin`; of a tiny autoencoder in two files, the encoder
    weights: String,
    /// Images: a folder, a list or an archive
    images: String,
    /// Folder for the pairs
    #[arg(long)]
    out: PathBuf,
    /// The decoder's file where encoder and decoder come apart
    #[arg(long)]
    decoder: Option<PathBuf>,
    /// Side in pixels, after a centre crop
    #[arg(long, default_value_t = 256)]
    size: u32,
    /// Encode and decode in pieces of so many latent pixels a side
    #[arg(long)]
    tile: Option<usize>,
    /// Stop after so many images
    #[arg(long)]
    limit: Option<usize>,
}

/// What became of one image.
#[derive(Serialize)]
struct Line {
    key: String,
    psnr: f32,
    ssim: f32,
}

/// Writes a PNG an image, original left and reconstruction right, and prints the scores.
pub fn reconstruct(args: &ReconstructArgs, context: &Context) -> Result<()> {
    let weights = match &args.decoder {
        Some(decoder) => {
            WeightsSource::Pair { encoder: args.weights.clone().into(), decoder: decoder.clone() }
        }
        None => WeightsSource::from(args.weights.as_str()),
    };
    let tiling = args.tile.map(|tile| Tiling { tile, ..Tiling::default() });
    let config = AutoencoderConfig { weights, tiling, ..Default::default() };
    let autoencoder = Autoencoder::open(&config, &context.device)?;
    let factor = autoencoder.identity().factor as u32;
    let wanted = factor.max(SSIM_WINDOW as u32);
    ensure!(
        args.size >= wanted && args.size.is_multiple_of(factor),
        "--size {} is not a multiple of {factor} of at least {wanted}",
        args.size
    );
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;
    let lines = context.runtime.block_on(all(args, &autoencoder, context))?;
    ensure!(!lines.is_empty(), "{}: no image could be read", args.images);
    let mean = |value: fn(&Line) -> f32| {
        lines.iter().map(|line| f64::from(value(line))).sum::<f64>() / lines.len() as f64
    };
    let (psnr, ssim) = (mean(|line| line.psnr), mean(|line| line.ssim));
    if context.json {
        let summary = serde_json::json!({ "images": lines, "psnr": psnr, "ssim": ssim });
        println!("{summary}");
    } else {
        for Line { key, psnr, ssim } in &lines {
            println!("{psnr:6.2} dB  SSIM {ssim:.4}  {key}");
        }
        println!("{psnr:6.2} dB  SSIM {ssim:.4}  mean of {} images", lines.len());
    }
    Ok(())
}

async fn all(
    args: &ReconstructArgs,
    autoencoder: &Autoencoder,
    context: &Context,
) -> Result<Vec<Line>> {
    let config = IngestConfig {
        source: args.images.clone(),
        size: args.size,
        skip_fraction_max: 1.0,
        ..IngestConfig::default()
    };
    let source = Arc::new(Source::open(&config).await?);
    let count = source.entries().len().min(args.limit.unwrap_or(usize::MAX));
    let mut stream = std::pin::pin!(source.stream((0..count).collect()));
    let mut lines = Vec::with_capacity(count);
    while let Some(outcome) = stream.next().await {
        match outcome? {
            Outcome::Image(item) => lines.push(one(args, autoencoder, context, &item)?),
            Outcome::Skip(skip) => eprintln!("{}: {}", skip.key, skip.reason),
        }
    }
    Ok(lines)
}

fn one(
    args: &ReconstructArgs,
    autoencoder: &Autoencoder,
    context: &Context,
    item: &Item,
) -> Result<Line> {
    let image = to_tensor(args.size, vec![item.image.pixels.clone()])?;
    let latents = autoencoder.encode(&image.to_device(&context.device)?)?.mean;
    let decoded = autoencoder.decode(&latents)?.to_device(image.device())?.clamp(-1f32, 1f32)?;
    let pixels = [&image, &decoded].map(|image| to_picture(args.size, image));
    let [image_picture, decoded_picture] = pixels;
    let pair = grid(&[image_picture?, decoded_picture?], 2, GAP);
    let path = args.out.join(format!("{}.png", item.key.replace(['/', '\\'], "_")));
    fs::write(&path, encode_png(&pair))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let (psnr, ssim) = (psnr(&decoded, &image)?[0], ssim(&decoded, &image)?[0]);
    Ok(Line { key: item.key.clone(), psnr, ssim })
}

/// `[1, 3, size, size]` in [-1, 1] to a picture.
fn to_picture(size: u32, image: &Tensor) -> Result<DynamicImage> {
    let pixels = image.affine(127.5, 127.5)?.round()?.permute((0, 2, 3, 1))?.flatten_all()?;
    let pixels = pixels.to_dtype(candle_core::DType::U8)?.to_vec1::<u8>()?;
    let picture = RgbImage::from_raw(size, size, pixels).context("a picture of another size")?;
    Ok(picture.into())
}
