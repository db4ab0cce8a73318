//! A dataset of latents as one side of a comparison: its images, decoded again.

use crate::commands::Context;
use anyhow::{Result, bail};
use candle_core::Tensor;
use futures::{StreamExt, TryStreamExt};
use lapflow_ingest::RgbImage;
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, WeightsSource};
use lapflow_model::pyramid;
use lapflow_sample::SampleError;
use lapflow_sample::images::{Rounding, SetContent, to_pixels};
use lapflow_sample::metrics::DECODED_LATENTS;
use lapflow_store::{Dataset, Metadata, Row};
use serde_json::json;
use std::path::Path;

/// Whether `path` names a dataset: an address of an object store, or a table's folder.
pub fn is_dataset(path: &Path) -> bool {
    path.to_string_lossy().contains("://") || path.join("_delta_log").is_dir()
}

/// A dataset and the autoencoder that made its latents.
pub struct DecodedDataset<'a> {
    dataset: Dataset,
    autoencoder: Autoencoder,
    context: &'a Context,
}

impl<'a> DecodedDataset<'a> {
    /// Opens `uri`; without `named` weights only the autoencoders that need none are tried.
    ///
    /// # Errors
    /// When there is no dataset, or the autoencoder is not the one that made its latents.
    pub fn open(uri: &str, named: Option<WeightsSource>, context: &'a Context) -> Result<Self> {
        let dataset = context.runtime.block_on(Dataset::open(uri))?;
        let wanted = &dataset.metadata().autoencoder;
        let candidates = match &named {
            Some(weights) => vec![weights.clone()],
            None => vec![WeightsSource::Builtin, WeightsSource::Pixel],
        };
        for weights in candidates {
            let config = AutoencoderConfig { weights, ..AutoencoderConfig::default() };
            let config = if named.is_some() { config.recorded(wanted) } else { config };
            let autoencoder = Autoencoder::open(&config, &context.device)?;
            if autoencoder.identity().made(wanted) {
                return Ok(Self { dataset, autoencoder, context });
            }
            if named.is_some() {
                let here = json!(autoencoder.identity());
                bail!("{uri}: its latents are of {wanted}, the autoencoder given is {here}");
            }
        }
        bail!("{uri}: its latents are of {wanted}: name that autoencoder with --decoder")
    }

    /// How many images there are.
    pub fn images(&self) -> usize {
        self.dataset.rows() as usize
    }

    /// Hands all images to `each` in batches of `batch`, in the dataset's order.
    pub fn for_batches(
        &self,
        batch: usize,
        each: &mut dyn FnMut(&[RgbImage]) -> lapflow_sample::Result<()>,
    ) -> lapflow_sample::Result<SetContent> {
        let failed = |e: &dyn std::fmt::Display| SampleError::file(self.dataset.uri(), e);
        let mut chunks = Box::pin(self.dataset.scan().try_chunks(batch));
        let mut content = SetContent::default();
        while let Some(rows) = self.context.runtime.block_on(chunks.next()) {
            let images = self.decode(&rows.map_err(|e| failed(&e))?)?;
            content.images += images.len();
            if let Some(image) = images.first() {
                (content.width, content.height) = (image.width, image.height);
            }
            each(&images)?;
        }
        if content.images == 0 {
            return Err(failed(&"holds no images"));
        }
        content.formats.insert(DECODED_LATENTS.into(), content.images);
        Ok(content)
    }

    fn decode(&self, rows: &[Row]) -> lapflow_sample::Result<Vec<RgbImage>> {
        let levels = raw_levels(rows, self.dataset.metadata(), self.context)?;
        let images = self.autoencoder.decode(&pyramid::merge(&levels)?)?;
        let (_, _, height, width) = images.dims4()?;
        let image = |pixels| RgbImage { width: width as u32, height: height as u32, pixels };
        Ok(to_pixels(&images, Rounding::Nearest)?.into_iter().map(image).collect())
    }
}

/// The stored levels of `rows`, finest first, `(rows, c, h, w)` each.
pub fn raw_levels(
    rows: &[Row],
    metadata: &Metadata,
    context: &Context,
) -> candle_core::Result<Vec<Tensor>> {
    let level = |(k, spec): (usize, &lapflow_store::LevelSpec)| {
        let values: Vec<f32> =
            rows.iter().flat_map(|row| metadata.dtype.decode(&row.levels[k])).collect();
        let shape = (rows.len(), spec.channels, spec.height, spec.width);
        Tensor::from_vec(values, shape, &context.device)
    };
    metadata.levels.iter().enumerate().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use lapflow_store::{Dtype, LevelSpec, Posterior};
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    fn context() -> Context {
        Context {
            runtime: tokio::runtime::Runtime::new().unwrap(),
            device: Device::Cpu,
            json: false,
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    /// A dataset of `count` images of 4x4 pixels in two levels; all pixels of image i are 8 i + 3.
    fn write(uri: &str, count: i64, context: &Context) {
        let side = |side| LevelSpec { channels: 3, height: side, width: side };
        let levels = vec![side(4), side(2)];
        let autoencoder = json!(Autoencoder::Pixel.identity());
        let metadata =
            Metadata { autoencoder, ..Metadata::new(levels, Dtype::F32, Posterior::Mean) };
        let filled = context.runtime.block_on(async {
            let mut shard = Dataset::create(uri, &metadata).await?.shard("00000").await?;
            for id in 0..count {
                let value = (8 * id + 3) as f32 / 127.5 - 1.0;
                let levels = vec![Dtype::F32.encode(&[0.0; 48]), Dtype::F32.encode(&[value; 12])];
                let (source, sha256) = (format!("{id}"), [0; 32]);
                let (width, height, view, logvar) = (4, 4, 0, None);
                let label = -1;
                let row = Row { id, label, source, sha256, width, height, view, levels, logvar };
                shard.push(row).await?;
            }
            shard.commit().await
        });
        filled.unwrap();
    }

    #[test]
    fn a_dataset_gives_back_its_images() {
        let (folder, context) = (tempfile::tempdir().unwrap(), context());
        let uri = folder.path().join("set").to_str().unwrap().to_string();
        write(&uri, 10, &context);
        assert!(is_dataset(uri.as_ref()) && !is_dataset(folder.path()));
        assert!(is_dataset("s3://bucket/set".as_ref()));
        let dataset = DecodedDataset::open(&uri, None, &context).unwrap();
        let mut pixels = Vec::new();
        let content = dataset.for_batches(4, &mut |images| {
            pixels.extend(images.iter().map(|image| image.pixels.clone()));
            Ok(())
        });
        let content = content.unwrap();
        assert_eq!((content.images, content.width, content.height), (10, 4, 4));
        assert_eq!(content.formats[DECODED_LATENTS], 10);
        assert!(pixels.iter().enumerate().all(|(i, image)| *image == [8 * i as u8 + 3; 48]));

        let other = DecodedDataset::open(&uri, Some(WeightsSource::Builtin), &context);
        let message = other.err().unwrap().to_string();
        assert!(message.contains("pixel") && message.contains("kl"), "{message}");
    }
}
