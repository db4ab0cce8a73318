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
            let autoencoder = Autoencoder::open(&config, &context.device)?;
            let here = json!(autoencoder.identity());
            // Scale and shift are the model's business: the latents are stored raw.
            if ["architecture", "sha256"].iter().all(|key| here[key] == wanted[key]) {
                return Ok(Self { dataset, autoencoder, context });
            }
            if named.is_some() {
                bail!("{uri}: its latents are of {wanted}, the autoencoder given is {here}");
            }
        }
        bail!("{uri}: its latents are of {wanted}: name that autoencoder with --decoder")
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
