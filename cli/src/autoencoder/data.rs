//! Batches of training images, and the images held out from training.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use futures::StreamExt;
use lapflow_ingest::{IngestConfig, Outcome, Source};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::recipe::{DataConfig, RenderingsConfig};
use lapflow_demo::{CLASSES, render};

/// Decoded pixels of a folder that are kept in memory, at most.
const PIXEL_BYTES_MAX: u64 = 8 << 30;

/// Training images by their position in an endless sequence.
pub enum Images {
    /// Drawn when asked for.
    Renderings { size: u32, first_seed: u64, held_out: usize },
    /// RGB pixels of a folder, held-out images first.
    Decoded { size: u32, pixels: Vec<Vec<u8>>, held_out: usize, seed: u64 },
}

impl Images {
    /// Reads or prepares the images; `held_out` of them are kept from training.
    pub async fn open(config: &DataConfig, held_out: usize, seed: u64) -> Result<Self> {
        match config {
            &DataConfig::Renderings(RenderingsConfig { size, first_seed }) => {
                ensure!(
                    first_seed >= held_out.div_ceil(CLASSES.len()) as u64,
                    "data.renderings.first_seed leaves no seeds for {held_out} held-out drawings"
                );
                Ok(Self::Renderings { size, first_seed, held_out })
            }
            DataConfig::Images(config) => {
                let pixels = decode_all(config, seed).await?;
                ensure!(
                    pixels.len() > held_out,
                    "{}: {} images, of which {held_out} are held out",
                    config.source,
                    pixels.len()
                );
                Ok(Self::Decoded { size: config.size, pixels, held_out, seed })
            }
        }
    }

    /// Images `position..position + count` of the sequence as `[count, 3, size, size]` in [-1, 1].
    ///
    /// A folder's images come in a new order every time round; the same position gives the same
    /// image, so that a resumed run continues as if it had never stopped.
    pub fn batch(&self, position: u64, count: usize) -> Result<Tensor> {
        let indices = position..position + count as u64;
        match self {
            &Self::Renderings { size, first_seed, .. } => {
                let first = first_seed * CLASSES.len() as u64;
                to_tensor(size, draw(size, first + indices.start..first + indices.end))
            }
            Self::Decoded { size, pixels, held_out, seed } => {
                let trained = &pixels[*held_out..];
                let mut order = Vec::new();
                let mut order_of = None;
                let chosen = indices.map(|index| {
                    let (round, at) = (index / trained.len() as u64, index % trained.len() as u64);
                    if order_of != Some(round) {
                        order = permutation(trained.len(), *seed, round);
                        order_of = Some(round);
                    }
                    trained[order[at as usize]].clone()
                });
                to_tensor(*size, chosen.collect())
            }
        }
    }

    /// The images that are never trained on, as `[n, 3, size, size]` in [-1, 1].
    pub fn held_out(&self) -> Result<Tensor> {
        match self {
            &Self::Renderings { size, held_out, .. } => {
                to_tensor(size, draw(size, 0..held_out as u64))
            }
            Self::Decoded { size, pixels, held_out, .. } => {
                to_tensor(*size, pixels[..*held_out].to_vec())
            }
        }
    }
}

/// Drawing `n` is of class `n mod classes`, seed `n div classes`.
fn draw(size: u32, indices: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    let classes = CLASSES.len() as u64;
    let draw = |n: u64| render((n % classes) as usize, n / classes, size).into_raw();
    indices.into_par_iter().map(draw).collect()
}

fn permutation(len: usize, seed: u64, round: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(round);
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut rng);
    order
}

async fn decode_all(config: &IngestConfig, seed: u64) -> Result<Vec<Vec<u8>>> {
    let source = Arc::new(Source::open(config).await?);
    let image_bytes = 3 * u64::from(config.size).pow(2);
    let count = source.entries().len();
    ensure!(
        count as u64 * image_bytes <= PIXEL_BYTES_MAX,
        "{}: {count} images of {} pixels do not fit into {} GiB of memory",
        config.source,
        config.size,
        PIXEL_BYTES_MAX >> 30
    );
    let mut stream = std::pin::pin!(source.stream(permutation(count, seed, u64::MAX)));
    let mut pixels = Vec::with_capacity(count);
    while let Some(outcome) = stream.next().await {
        match outcome.with_context(|| format!("reading {}", config.source))? {
            Outcome::Image(item) => pixels.push(item.image.pixels),
            Outcome::Skip(skip) => tracing::warn!("{}: {}", skip.key, skip.reason),
        }
    }
    Ok(pixels)
}

/// Interleaved RGB images to `[B, 3, size, size]` in [-1, 1].
pub fn to_tensor(size: u32, images: Vec<Vec<u8>>) -> Result<Tensor> {
    let (count, size) = (images.len(), size as usize);
    let pixels = Tensor::from_vec(images.concat(), (count, size, size, 3), &Device::Cpu)?;
    let images = pixels.permute((0, 3, 1, 2))?.contiguous()?.to_dtype(DType::F32)?;
    Ok(images.affine(2.0 / 255.0, -1.0)?)
}
