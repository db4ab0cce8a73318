//! The shape of an `AutoencoderKL`: read off its weights, and where it does not show there, stated.

use super::kl_keys::{Tensors, diffusers_names};
use super::{AutoencoderConfig, KlNetwork};
use crate::error::{ModelError, Result};
use crate::params::Params;
use crate::weights::Weights;
use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

/// The safetensors metadata key under which lapflow writes a [`KlConfig`] as JSON.
pub const CONFIG_KEY: &str = "autoencoder";
/// diffusers' description of a model, in the folder of its weights.
const DIFFUSERS_CONFIG: &str = "config.json";
/// What diffusers takes where a `config.json` states no scale.
const DIFFUSERS_SCALE: f64 = 0.18215;
/// Published files by their SHA-256, with scale and shift: networks of one shape differ in them.
const PUBLISHED: [(&str, f64, f64); 6] = [
    // SD-VAE, ft-EMA and ft-MSE as diffusers has them; ft-MSE under CompVis' names.
    ("32db726da04f06c1b6b14c0043ce115cc87a501482945c5add89a40d838fcb46", 0.18215, 0.0),
    ("a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815", 0.18215, 0.0),
    ("735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75", 0.18215, 0.0),
    ("c6a580b13a5bc05a5e16e4dbb80608ff2ec251a162311590c1f34c013d7f3dab", 0.18215, 0.0),
    // SDXL's.
    ("63aeecb90ff7bc1c115395962d3e803571385b61938377bc7089b36e81e92e2e", 0.13025, 0.0),
    // FLUX.1's.
    ("afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38", 0.3611, 0.1159),
];

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
    /// A model sees `(latents - shift_factor) * scaling_factor`. Default: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling_factor: Option<f64>,
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
            scaling_factor: None,
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
        if let Some(scale) = self.scaling_factor.filter(|s| !s.is_finite() || *s == 0.0) {
            return refuse(format!("scaling_factor is {scale}"));
        }
        if !self.shift_factor.is_finite() {
            return refuse(format!("shift_factor is {}", self.shift_factor));
        }
        Ok(())
    }

    /// The network that `weights` are of. Widths and depths show in their shapes. Groups, scale and
    /// shift are `config`'s, else those of the safetensors header, else those of the `config.json`
    /// beside the file, else those of the published network that the weights are.
    ///
    /// # Errors
    /// When a parameter is absent, misshapen, unknown or not finite, nothing states the groups, or a
    /// statement does not fit the weights.
    pub fn of(weights: &Weights, config: &AutoencoderConfig) -> Result<Self> {
        let tensors = diffusers_names(weights.tensors.clone())?;
        let stated = Self::stated(weights)?;
        let mut shape = stated.clone().unwrap_or_default().fitted_to(&tensors);
        let known = stated.is_some() || shape.is_published();
        // Weights that no groups would fit are refused for what is wrong with them.
        let any = Self { norm_num_groups: 1, ..shape.clone() };
        Params::frozen(tensors, DType::F32, &Device::Cpu, |scope| KlNetwork::new(scope, &any))
            .map_err(|e| ModelError::weights(&weights.path, e))?;
        if stated.is_none()
            && let Some((_, scale, shift)) = PUBLISHED.iter().find(|(id, ..)| *id == weights.sha256)
        {
            (shape.scaling_factor, shape.shift_factor) = (Some(*scale), *shift);
        }
        shape.norm_num_groups = match config.groups {
            Some(groups) => groups,
            None if known => shape.norm_num_groups,
            None => {
                let reason = "nothing states how many groups its normalisations have, which decides \
                    every latent: set autoencoder.groups, or state it in the weights with `lapflow \
                    convert --groups`, or put their config.json beside them";
                return Err(ModelError::weights(&weights.path, reason));
            }
        };
        shape.scaling_factor = config.scale.or(shape.scaling_factor);
        shape.shift_factor = config.shift.unwrap_or(shape.shift_factor);
        shape.validate()?;
        Ok(shape)
    }

    /// What the header of `weights`, or a description of this very network beside them, states.
    ///
    /// # Errors
    /// When it cannot be understood, or describes another network.
    pub fn stated(weights: &Weights) -> Result<Option<Self>> {
        if let Some(json) = weights.metadata.get(CONFIG_KEY) {
            let refuse = |e| ModelError::weights(&weights.path, format!("its header: {e}"));
            return serde_json::from_str(json).map(Some).map_err(refuse);
        }
        let beside = weights.path.parent().map(|folder| folder.join(DIFFUSERS_CONFIG));
        let Some(path) = beside.filter(|path| path.is_file()) else { return Ok(None) };
        let wrong = |e: &dyn std::fmt::Display| ModelError::weights(&path, e);
        let json = std::fs::read_to_string(&path).map_err(|e| wrong(&e))?;
        let Some(stated) = Self::from_diffusers(&json).map_err(|e| wrong(&e))? else {
            return Ok(None);
        };
        let said: serde_json::Value = serde_json::from_str(&json).map_err(|e| wrong(&e))?;
        let tensors = diffusers_names(weights.tensors.clone())?;
        let fitted = serde_json::json!(stated.clone().fitted_to(&tensors));
        for key in ["block_out_channels", "layers_per_block", "latent_channels"] {
            if let Some(said) = said.get(key).filter(|said| **said != fitted[key]) {
                let (name, has) = (weights.path.display(), &fitted[key]);
                return Err(wrong(&format!("{key} is {said}, of {name} beside it {has}")));
            }
        }
        Ok(Some(stated))
    }

    /// Whether every network of this shape that has been published has the same groups: those of
    /// Stable Diffusion 1 to 3, SDXL and FLUX, whose training code fixes them at 32.
    fn is_published(&self) -> bool {
        let known = Self::default();
        (&self.block_out_channels, self.layers_per_block, self.mid_block_add_attention)
            == (&known.block_out_channels, known.layers_per_block, known.mid_block_add_attention)
            && [4, 16].contains(&self.latent_channels)
    }

    /// What `json`, a `config.json` of diffusers, states, with diffusers' defaults; `None` where it
    /// describes a model of another kind. Scale and shift of a file that normalises each channel by
    /// itself are left open.
    ///
    /// # Errors
    /// When it is no JSON object, or names an activation that is not SiLU.
    pub fn from_diffusers(json: &str) -> Result<Option<Self>, String> {
        let mut stated: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(json).map_err(|e| e.to_string())?;
        let text = |key: &str| stated.get(key).and_then(|value| value.as_str());
        if text("_class_name").is_some_and(|class| class != "AutoencoderKL") {
            return Ok(None);
        }
        if let Some(other) = text("act_fn").filter(|name| !["silu", "swish"].contains(name)) {
            return Err(format!("act_fn is {other:?}, only \"silu\" is supported"));
        }
        let by_channel = ["latents_mean", "latents_std"]
            .iter()
            .any(|key| stated.get(*key).is_some_and(|value| !value.is_null()));
        let scale = (!by_channel).then_some(DIFFUSERS_SCALE);
        let known = serde_json::to_value(Self { scaling_factor: Some(0.0), ..Self::default() });
        let known = known.map_err(|e| e.to_string())?;
        stated.retain(|key, value| known.get(key).is_some() && !value.is_null());
        if by_channel {
            stated.remove("scaling_factor");
        }
        let mut config: Self = serde_json::from_value(stated.into()).map_err(|e| e.to_string())?;
        config.scaling_factor = config.scaling_factor.or(scale);
        Ok(Some(config))
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
