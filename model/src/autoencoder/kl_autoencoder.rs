//! `AutoencoderKL` with weights from a file, ready to run.

use super::config::{Architecture, AutoencoderConfig, Identity};
use super::kl::KlNetwork;
use super::{KlConfig, Posterior, Tiling, kl_keys};
use crate::error::{ModelError, Result};
use crate::params::Params;
use crate::weights::Weights;
use candle_core::{DType, Device, Tensor};

/// An `AutoencoderKL` that runs without gradients.
pub struct KlAutoencoder {
    network: KlNetwork,
    identity: Identity,
    tiling: Option<Tiling>,
}

impl KlAutoencoder {
    /// Whether `weights` hold an `AutoencoderKL`.
    pub fn recognises(weights: &Weights) -> bool {
        kl_keys::recognises(&weights.tensors)
    }

    /// Builds the network that fits `weights`, as [`KlConfig::of`] finds it.
    ///
    /// # Errors
    /// When a parameter is absent, misshapen, unknown or not finite, or nothing states the groups.
    pub fn new(weights: Weights, config: &AutoencoderConfig, device: &Device) -> Result<Self> {
        let shape = KlConfig::of(&weights, config)?;
        let Weights { tensors, sha256, path, .. } = weights;
        let tensors = kl_keys::diffusers_names(tensors)?;
        let identity = Identity {
            architecture: Architecture::Kl,
            sha256: Some(sha256),
            channels: shape.latent_channels,
            factor: shape.factor(),
            groups: Some(shape.norm_num_groups),
            scale: shape.scaling_factor,
            shift: shape.shift_factor,
        };
        let network =
            Params::frozen(tensors, DType::F32, device, |scope| KlNetwork::new(scope, &shape))
                .map_err(|e| ModelError::weights(path, e))?;
        Ok(Self { network, identity, tiling: config.tiling })
    }

    /// How images are cut, if they are.
    pub(super) fn tiling(&self) -> Option<&Tiling> {
        self.tiling.as_ref()
    }

    /// What tells its latents from another's.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// See [`KlNetwork::encode`].
    pub(super) fn encode(&self, images: &Tensor) -> Result<Posterior> {
        self.network.encode(images)
    }

    /// See [`KlNetwork::decode`].
    pub(super) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.network.decode(latents)
    }
}
