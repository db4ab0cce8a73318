//! `AutoencoderKL` with weights from a file, ready to run.

use super::config::{Architecture, AutoencoderConfig, Identity};
use super::kl::KlNetwork;
use super::{KlConfig, Posterior, Tiling, kl_keys};
use crate::error::{ModelError, Result};
use crate::params::Params;
use crate::weights::Weights;
use candle_core::{DType, Device, Tensor};
use std::path::Path;

/// The safetensors metadata key under which lapflow writes a [`KlConfig`] as JSON.
pub const CONFIG_KEY: &str = "autoencoder";
/// diffusers' description of a model, in the folder of its weights.
const DIFFUSERS_CONFIG: &str = "config.json";

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

    /// Builds the network that fits `weights`, read from `path`.
    ///
    /// Widths and depths show in the weights. Groups, scale and shift are taken from the
    /// safetensors header, else from a `config.json` beside `path`, else they are SD-VAE's.
    ///
    /// # Errors
    /// When a parameter is absent, misshapen or unknown, or `config.json` cannot be understood.
    pub fn new(
        weights: Weights,
        path: Option<&Path>,
        config: &AutoencoderConfig,
        device: &Device,
    ) -> Result<Self> {
        let stated = stated_config(&weights, path)?;
        let tensors = kl_keys::diffusers_names(weights.tensors)?;
        let shape = stated.fitted_to(&tensors);
        shape.validate()?;
        let identity = Identity {
            architecture: Architecture::Kl,
            sha256: Some(weights.sha256),
            channels: shape.latent_channels,
            factor: shape.factor(),
            scale: config.scale.unwrap_or(shape.scaling_factor),
            shift: config.shift.unwrap_or(shape.shift_factor),
        };
        let network =
            Params::frozen(tensors, DType::F32, device, |scope| KlNetwork::new(scope, &shape))?;
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

fn stated_config(weights: &Weights, path: Option<&Path>) -> Result<KlConfig> {
    if let Some(json) = weights.metadata.get(CONFIG_KEY) {
        let refuse = |e| ModelError::config("autoencoder", format!("in the weights: {e}"));
        return serde_json::from_str(json).map_err(refuse);
    }
    let beside = path.and_then(Path::parent).map(|folder| folder.join(DIFFUSERS_CONFIG));
    match beside.filter(|path| path.is_file()) {
        Some(path) => {
            let json = std::fs::read_to_string(&path).map_err(|e| ModelError::weights(&path, e))?;
            KlConfig::from_diffusers(&json).map_err(|e| ModelError::weights(&path, e))
        }
        None => Ok(KlConfig::default()),
    }
}
