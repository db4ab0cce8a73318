//! The shape of an `AutoencoderKL`: stated in a config, or read off its weights.

use super::kl_keys::Tensors;
use crate::error::{ModelError, Result};
use serde::{Deserialize, Serialize};

/// Width, depth and scaling, under the names of diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KlConfig {
    /// Channels of each level; every level but the last halves the image. Default 128, 256, 512, 512.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks an encoder level, one fewer than a decoder level has. Default 2.
    pub layers_per_block: usize,
    /// Channels of a latent. Default 4.
    pub latent_channels: usize,
    /// Groups of every group normalisation. Default 32.
    pub norm_num_groups: usize,
    /// Self-attention at the lowest resolution. Default true.
    pub mid_block_add_attention: bool,
    /// A 1x1 convolution behind the encoder. Default true.
    pub use_quant_conv: bool,
    /// A 1x1 convolution before the decoder. Default true.
    pub use_post_quant_conv: bool,
    /// A model sees `(latents - shift_factor) * scaling_factor`. Default 0.18215.
    pub scaling_factor: f64,
    /// See `scaling_factor`. Default 0.
    pub shift_factor: f64,
}

impl Default for KlConfig {
    fn default() -> Self {
        Self {
            block_out_channels: vec![128, 256, 512, 512],
            layers_per_block: 2,
            latent_channels: 4,
            norm_num_groups: 32,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            scaling_factor: 0.18215,
            shift_factor: 0.0,
        }
    }
}

impl KlConfig {
    /// Image pixels a latent pixel, in each direction.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// # Errors
    /// [`ModelError::Config`] saying what no network can be built from.
    pub fn validate(&self) -> Result<()> {
        let refuse = |reason: String| Err(ModelError::config("autoencoder", reason));
        let (widths, groups) = (&self.block_out_channels, self.norm_num_groups);
        if !(1..=16).contains(&widths.len()) {
            return refuse(format!("block_out_channels has {} levels, 1 to 16 work", widths.len()));
        }
        if let Some(width) = widths.iter().find(|&&w| w == 0 || groups == 0 || w % groups != 0) {
            return refuse(format!("{width} channels do not divide into {groups} groups"));
        }
        if self.layers_per_block == 0 || self.latent_channels == 0 {
            return refuse("layers_per_block and latent_channels must be at least 1".into());
        }
        if !self.scaling_factor.is_finite() || self.scaling_factor == 0.0 {
            return refuse(format!("scaling_factor is {}", self.scaling_factor));
        }
        Ok(())
    }

    /// The fields that `json`, a `config.json` of diffusers, states; the others by default.
    pub fn from_diffusers(json: &str) -> Result<Self, serde_json::Error> {
        let mut stated: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json)?;
        let known = serde_json::to_value(Self::default())?;
        stated.retain(|key, value| known.get(key).is_some() && !value.is_null());
        serde_json::from_value(stated.into())
    }

    /// Replaces everything that shows in the shapes of `weights`, which carry diffusers' names.
    pub(super) fn fitted_to(mut self, weights: &Tensors) -> Self {
        let width = |i: usize| {
            let key = format!("encoder.down_blocks.{i}.resnets.0.conv1.weight");
            weights.get(&key).and_then(|weight| weight.dims().first().copied())
        };
        let layer = |j: usize| format!("encoder.down_blocks.0.resnets.{j}.conv1.weight");
        self.block_out_channels = (0..).map_while(width).collect();
        self.layers_per_block = (0..).take_while(|&j| weights.contains_key(&layer(j))).count();
        if let Some(&[_, channels, ..]) = weights.get("decoder.conv_in.weight").map(|w| w.dims()) {
            self.latent_channels = channels;
        }
        self.mid_block_add_attention =
            weights.contains_key("encoder.mid_block.attentions.0.to_q.weight");
        self.use_quant_conv = weights.contains_key("quant_conv.weight");
        self.use_post_quant_conv = weights.contains_key("post_quant_conv.weight");
        self
    }
}
