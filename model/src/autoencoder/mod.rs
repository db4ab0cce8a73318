//! Autoencoders between images and latents: `AutoencoderKL`, the tiny family, and none at all.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig};
//!
//! # fn main() -> lapflow_model::Result<()> {
//! let config = AutoencoderConfig::default();
//! let autoencoder = Autoencoder::open(&config, &Device::Cpu)?;
//! let images = Tensor::zeros((1, 3, 64, 64), DType::F32, &Device::Cpu)?;
//! let latents = autoencoder.encode(&images)?.mean;
//! assert_eq!(autoencoder.decode(&latents)?.dims(), images.dims());
//! # Ok(())
//! # }
//! ```

mod config;
mod equivariance;
mod kl;
mod kl_autoencoder;
mod kl_config;
mod kl_keys;
mod layers;
mod objective;
mod tiles;
mod tiny;

pub use config::{Architecture, AutoencoderConfig, Identity, WeightsSource};
pub use equivariance::{Transform, resize};
pub use kl::KlNetwork;
pub use kl_autoencoder::KlAutoencoder;
pub use kl_config::{CONFIG_KEY, KlConfig};
pub use kl_keys::diffusers_names;
pub use objective::{Losses, ObjectiveConfig};
pub use tiles::Tiling;
pub use tiny::TinyAutoencoder;

use crate::error::{ModelError, Result};
use crate::pool::on_pool;
use crate::weights::Weights;
use candle_core::{DType, Device, Tensor};

/// The weights behind [`WeightsSource::Builtin`]; `assets/builtin.toml` is their recipe.
const BUILTIN: &[u8] = include_bytes!("../../assets/builtin.safetensors");

/// An encoder and decoder ready to run, without gradients.
pub enum Autoencoder {
    /// No autoencoder: latents are the images themselves.
    Pixel,
    /// SD-VAE, EQ-VAE and every other `AutoencoderKL`.
    Kl(Box<KlAutoencoder>),
    /// A tiny autoencoder of the TAESD family.
    Tiny(TinyAutoencoder),
}

/// What an encoder says about an image: a Gaussian a latent value.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// `[B, C, h, w]`.
    pub mean: Tensor,
    /// The logarithm of the variance, clamped to [-30, 20]; `None` from a deterministic encoder.
    pub logvar: Option<Tensor>,
}

impl Posterior {
    /// `mean + exp(logvar / 2) noise` for standard normal `noise` of the mean's shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        match &self.logvar {
            Some(logvar) => Ok((&self.mean + (logvar * 0.5)?.exp()?.mul(noise)?)?),
            None => Ok(self.mean.clone()),
        }
    }
}

impl Autoencoder {
    /// Loads the autoencoder that `config` names onto `device`.
    ///
    /// # Errors
    /// When a file cannot be read, is no autoencoder that is known here, or lacks a parameter.
    pub fn open(config: &AutoencoderConfig, device: &Device) -> Result<Self> {
        match &config.weights {
            WeightsSource::Pixel => Ok(Self::Pixel),
            WeightsSource::Builtin => {
                let weights = Weights::from_bytes("builtin", BUILTIN)?;
                let kl = KlAutoencoder::new(weights, config, device)?;
                Ok(Self::Kl(Box::new(kl)))
            }
            WeightsSource::Pair { encoder, decoder } => {
                let (encoder, decoder) = (Weights::read(encoder)?, Weights::read(decoder)?);
                Ok(Self::Tiny(TinyAutoencoder::from_pair(encoder, decoder, config, device)?))
            }
            WeightsSource::File(path) => {
                let weights = Weights::read(path)?;
                if KlAutoencoder::recognises(&weights) {
                    let kl = KlAutoencoder::new(weights, config, device)?;
                    Ok(Self::Kl(Box::new(kl)))
                } else if TinyAutoencoder::recognises(&weights) {
                    Ok(Self::Tiny(TinyAutoencoder::from_file(weights, config, device)?))
                } else {
                    let keys = weights.first_keys();
                    let reason = format!("holds no autoencoder that lapflow knows: {keys}");
                    Err(ModelError::weights(path, reason))
                }
            }
        }
    }

    /// What a dataset records, so that latents meet no other decoder than theirs.
    pub fn identity(&self) -> &Identity {
        match self {
            Self::Pixel => &Identity::PIXEL,
            Self::Kl(kl) => kl.identity(),
            Self::Tiny(tiny) => tiny.identity(),
        }
    }

    /// How images are cut that are larger than a tile; `None` for whole images.
    pub fn tiling(&self) -> Option<&Tiling> {
        match self {
            Self::Pixel => None,
            Self::Kl(kl) => kl.tiling(),
            Self::Tiny(tiny) => tiny.tiling(),
        }
    }

    /// Raw latents of `images` `[B, 3, H, W]`, f32 in [-1, 1]; H and W divisible by the factor.
    /// Large ones are cut as [`AutoencoderConfig::tiling`] says.
    ///
    /// # Errors
    /// When `images` has another shape or dtype.
    pub fn encode(&self, images: &Tensor) -> Result<Posterior> {
        match self.tiling() {
            Some(tiling) => self.encode_tiled(images, tiling),
            None => {
                self.latent_size(images)?;
                self.encode_whole(images)
            }
        }
    }

    /// Height and width of the latents of `images`.
    fn latent_size(&self, images: &Tensor) -> Result<(usize, usize)> {
        let factor = self.identity().factor;
        let (_, channels, height, width) = images.dims4()?;
        if channels != 3 || height % factor != 0 || width % factor != 0 {
            let wanted = format!("wants [B, 3, H, W] divisible by {factor}");
            return Err(ModelError::config("autoencoder", format!("{wanted}, got {images:?}")));
        }
        Ok((height / factor, width / factor))
    }

    fn encode_whole(&self, images: &Tensor) -> Result<Posterior> {
        on_pool(images.device(), || match self {
            Self::Pixel => Ok(Posterior { mean: images.to_dtype(DType::F32)?, logvar: None }),
            Self::Kl(kl) => kl.encode(images),
            Self::Tiny(tiny) => Ok(Posterior { mean: tiny.encode(images)?, logvar: None }),
        })
    }

    /// Images `[B, 3, H, W]`, nominally in [-1, 1], of raw `latents` `[B, C, h, w]` in f32. Large
    /// ones are cut as [`AutoencoderConfig::tiling`] says.
    ///
    /// # Errors
    /// When `latents` has another number of channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match self.tiling() {
            Some(tiling) => self.decode_tiled(latents, tiling),
            None => self.decode_whole(latents),
        }
    }

    fn decode_whole(&self, latents: &Tensor) -> Result<Tensor> {
        let channels = self.identity().channels;
        if latents.dims4()?.1 != channels {
            let wanted = format!("decodes [B, {channels}, h, w]");
            return Err(ModelError::config("autoencoder", format!("{wanted}, got {latents:?}")));
        }
        on_pool(latents.device(), || match self {
            Self::Pixel => Ok(latents.clone()),
            Self::Kl(kl) => kl.decode(latents),
            Self::Tiny(tiny) => tiny.decode(latents),
        })
    }

    /// [`Autoencoder::encode`] in pieces, with the memory of one piece.
    ///
    /// # Errors
    /// As [`Autoencoder::encode`].
    pub fn encode_tiled(&self, images: &Tensor, tiling: &Tiling) -> Result<Posterior> {
        let Identity { factor, channels, .. } = *self.identity();
        let (height, width) = self.latent_size(images)?;
        if !tiling.cuts(height, width) {
            return self.encode_whole(images);
        }
        let moments = tiling.run(images, factor, 1, |piece| {
            let Posterior { mean, logvar } = self.encode_whole(piece)?;
            Ok(match logvar {
                Some(logvar) => Tensor::cat(&[mean, logvar], 1)?,
                None => mean,
            })
        })?;
        let mean = moments.narrow(1, 0, channels)?.contiguous()?;
        let has_logvar = moments.dims()[1] > channels;
        let logvar =
            has_logvar.then(|| moments.narrow(1, channels, channels)?.contiguous()).transpose()?;
        Ok(Posterior { mean, logvar })
    }

    /// [`Autoencoder::decode`] in pieces, with the memory of one piece.
    ///
    /// # Errors
    /// As [`Autoencoder::decode`].
    pub fn decode_tiled(&self, latents: &Tensor, tiling: &Tiling) -> Result<Tensor> {
        let (_, _, height, width) = latents.dims4()?;
        if !tiling.cuts(height, width) {
            return self.decode_whole(latents);
        }
        tiling.run(latents, 1, self.identity().factor, |piece| self.decode_whole(piece))
    }
}
