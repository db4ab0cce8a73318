//! From cropped images to rows: autoencoder, posterior, pyramid, bytes.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use lapflow_ingest::Item;
use lapflow_model::autoencoder::Autoencoder;
use lapflow_model::flow::image_rng;
use lapflow_model::kernels::{Download, InFlight, Upload};
use lapflow_model::pyramid;
use lapflow_store::{Dtype, LevelSpec, Posterior, Row};
use rand_distr::{Distribution, StandardNormal};

use crate::config::EncodeConfig;
use crate::error::{EncodeError, Result};

/// Side of the image that probes an autoencoder, in latent pixels.
const PROBE_SIDE: usize = 8;

/// Images on their way to the device.
#[derive(Debug, Default)]
pub(crate) struct PixelBatch {
    /// The images' identities; their own pixels are taken.
    items: Vec<Item>,
    /// `(b, 3, s, s)` in [-1, 1].
    pixels: Vec<f32>,
}

impl PixelBatch {
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Adds an image, interleaved bytes becoming planes in [-1, 1].
    pub(crate) fn push(&mut self, mut item: Item) {
        let bytes = std::mem::take(&mut item.image.pixels);
        self.pixels.reserve(bytes.len());
        for channel in 0..3 {
            let plane = bytes.iter().skip(channel).step_by(3);
            self.pixels.extend(plane.map(|&byte| f32::from(byte) / 127.5 - 1.0));
        }
        self.items.push(item);
    }
}

/// Turns images into rows of a dataset.
pub(crate) struct Encoder {
    autoencoder: Arc<Autoencoder>,
    device: Device,
    dtype: Dtype,
    posterior: Posterior,
    posterior_seed: u64,
    size: usize,
    levels: Vec<LevelSpec>,
}

impl Encoder {
    /// Prepares for square images of side `size`.
    ///
    /// # Errors
    /// [`EncodeError::Config`] when the pyramid does not divide the latents, or the posterior has
    /// no variance and the configuration wants to use it.
    pub(crate) fn new(
        autoencoder: Arc<Autoencoder>,
        device: &Device,
        config: &EncodeConfig,
        size: usize,
    ) -> Result<Self> {
        let identity = autoencoder.identity();
        // The dataset records the scale, which training may want.
        identity.normalization()?;
        let (factor, channels) = (identity.factor, identity.channels);
        let divisor = factor << (config.levels - 1);
        if !size.is_multiple_of(divisor) {
            let reason = format!(
                "{} levels of an autoencoder with factor {factor} need a size divisible by \
                 {divisor}, it is {size}",
                config.levels
            );
            return Err(EncodeError::config("levels", reason));
        }
        if config.posterior != Posterior::Mean {
            let side = factor * PROBE_SIDE;
            let probe = Tensor::zeros((1, 3, side, side), DType::F32, device)?;
            if autoencoder.encode(&probe)?.logvar.is_none() {
                let reason = "this autoencoder is deterministic: it has a mean and no variance";
                return Err(EncodeError::config("posterior", reason));
            }
        }
        let levels = (0..config.levels)
            .map(|level| {
                let side = (size / factor) >> level;
                LevelSpec { channels, height: side, width: side }
            })
            .collect();
        Ok(Self {
            autoencoder,
            device: device.clone(),
            dtype: config.dtype,
            posterior: config.posterior,
            posterior_seed: config.posterior_seed,
            size,
            levels,
        })
    }

    /// Shapes of the levels, finest first.
    pub(crate) fn levels(&self) -> &[LevelSpec] {
        &self.levels
    }

    /// Whether the autoencoder shares the cores with everything else.
    pub(crate) fn on_cpu(&self) -> bool {
        self.device.is_cpu()
    }

    /// Identity of the autoencoder, as datasets record it.
    pub(crate) fn identity(&self) -> serde_json::Value {
        serde_json::to_value(self.autoencoder.identity()).expect("an identity is plain data")
    }

    /// [`Encoder::identity`] in the words of a dataset that records `recorded`.
    pub(crate) fn identity_beside(&self, recorded: &serde_json::Value) -> serde_json::Value {
        self.autoencoder.identity().beside(recorded)
    }

    /// A way to the device and back.
    pub(crate) fn lane(&self) -> Result<Lane<'_>> {
        let (upload, download) = (Upload::new(&self.device)?, Download::new(&self.device)?);
        Ok(Lane { encoder: self, upload, download })
    }

    /// Standard normal noise `(b, c, h, w)`, each image's from a stream of its own.
    fn noise(&self, items: &[Item]) -> Result<Tensor> {
        let LevelSpec { channels, height, width } = self.levels[0];
        let mut values = Vec::with_capacity(items.len() * self.levels[0].values());
        for item in items {
            let mut rng = image_rng(self.posterior_seed, item.id << 1 | u64::from(item.view));
            let draws =
                (0..self.levels[0].values()).map(|_| -> f32 { StandardNormal.sample(&mut rng) });
            values.extend(draws);
        }
        Ok(Tensor::from_vec(values, (items.len(), channels, height, width), &Device::Cpu)?)
    }
}

/// One thread's way to an encoder's device and back: a GPU copies images in and rows out while it computes.
pub(crate) struct Lane<'a> {
    encoder: &'a Encoder,
    upload: Upload,
    download: Download,
}

/// A batch that the device works on.
pub(crate) struct Encoding {
    items: Vec<Item>,
    levels: Vec<InFlight>,
    logvar: Option<InFlight>,
}

impl Lane<'_> {
    /// Sets the device to work: raw latents, split in f32. A GPU is not waited for.
    pub(crate) fn start(&mut self, batch: PixelBatch) -> Result<Encoding> {
        let encoder = self.encoder;
        let shape = (batch.len(), 3, encoder.size, encoder.size);
        let images = Tensor::from_vec(batch.pixels, shape, &Device::Cpu)?; // (b, 3, s, s)
        let posterior = encoder.autoencoder.encode(&self.upload.upload(&images)?)?;
        let latents = match encoder.posterior {
            Posterior::Mean | Posterior::Moments => posterior.mean.clone(), // (b, c, h, w)
            Posterior::Sample => {
                let noise = self.upload.upload(&encoder.noise(&batch.items)?)?;
                posterior.sample(&noise)?
            }
        };
        let levels = pyramid::split(&latents.to_dtype(DType::F32)?, encoder.levels.len())?;
        let logvar = match (encoder.posterior, &posterior.logvar) {
            (Posterior::Moments, Some(logvar)) => Some(logvar.to_dtype(DType::F32)?),
            _ => None,
        };
        let mut download = |x: &Tensor| self.download.start(x);
        let levels = levels.iter().map(&mut download).collect::<lapflow_model::Result<_>>()?;
        let logvar = logvar.as_ref().map(download).transpose()?;
        Ok(Encoding { items: batch.items, levels, logvar })
    }

    /// The rows of a batch, once they are here, rounded to the dtype.
    pub(crate) fn rows(&mut self, encoding: Encoding) -> Result<Vec<Row>> {
        let images = encoding.items.len();
        let mut bytes = |in_flight| -> Result<_> {
            let values = self.download.finish(in_flight)?;
            let each = values.chunks_exact(values.len() / images);
            Ok(each.map(|values| self.encoder.dtype.encode(values)).collect::<Vec<_>>().into_iter())
        };
        let mut levels = encoding.levels.into_iter().map(&mut bytes).collect::<Result<Vec<_>>>()?;
        let mut logvars = encoding.logvar.map(bytes).transpose()?;
        Ok(encoding
            .items
            .into_iter()
            .map(|item| Row {
                id: item.id as i64,
                label: item.label.map_or(-1, |label| label as i32),
                source: item.key,
                sha256: item.sha256,
                width: item.width as i32,
                height: item.height as i32,
                view: item.view as i8,
                levels: levels.iter_mut().filter_map(Iterator::next).collect(),
                logvar: logvars.as_mut().and_then(Iterator::next),
            })
            .collect())
    }
}
