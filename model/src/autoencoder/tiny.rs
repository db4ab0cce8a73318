//! The tiny autoencoders: TAESD, TAESDXL, TAESD3, TAEF1 and TAEF2 (MATH.md, section 7).
//!
//! All are f8 with 64 channels inside; they differ in latent channels and in whether the blocks at
//! the lowest resolution have a pool branch, and both follow from the weights.

use super::Tiling;
use super::config::{Architecture, AutoencoderConfig, Identity};
use super::kl_keys::{prefix_of, under};
use super::layers::{Conv2d, GroupNorm, channels_first, channels_last};
use crate::error::{ModelError, Result};
use crate::kernels::{Activation, ConvGeometry, upsample};
use crate::params::{Params, Scope};
use crate::weights::Weights;
use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

const WIDTH: usize = 64;
const POOL_WIDTH: usize = 256;
const POOL_GROUPS: usize = 4;
const POOL_EPS: f64 = 1e-5;
/// Keys that tell it, as diffusers saves it and as published.
const MARKERS: [&str; 2] = ["encoder.layers.1.conv.0.weight", "encoder.1.conv.0.weight"];
/// Index of the encoder's last convolution in its `Sequential`.
const ENCODER_OUT: usize = 14;

/// A tiny autoencoder with its weights.
pub struct TinyAutoencoder {
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
    identity: Identity,
    tiling: Option<Tiling>,
}

type Tensors = BTreeMap<String, Tensor>;

impl TinyAutoencoder {
    /// From the two files in which these autoencoders are published.
    pub fn from_pair(
        encoder: Weights,
        decoder: Weights,
        config: &AutoencoderConfig,
        device: &Device,
    ) -> Result<Self> {
        let digest = Sha256::digest(format!("{}{}", encoder.sha256, decoder.sha256));
        let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self::new(encoder.tensors, decoder.tensors, sha256, config, device)
    }

    /// From one file as diffusers' `AutoencoderTiny` saves it, or with the keys of the two files
    /// under `encoder.` and `decoder.`.
    pub fn from_file(
        weights: Weights,
        config: &AutoencoderConfig,
        device: &Device,
    ) -> Result<Self> {
        let (mut encoder, mut decoder) = (Tensors::new(), Tensors::new());
        for (key, tensor) in under(weights.tensors, &MARKERS) {
            match key.split_once('.') {
                Some(("encoder", rest)) => {
                    encoder.insert(rest.trim_start_matches("layers.").to_owned(), tensor);
                }
                Some(("decoder", rest)) => {
                    decoder.insert(published_decoder_key(rest), tensor);
                }
                _ => return Err(ModelError::UnusedKeys { count: 1, first: key }),
            }
        }
        Self::new(encoder, decoder, weights.sha256, config, device)
    }

    /// Whether one file holds a tiny autoencoder.
    pub fn recognises(weights: &Weights) -> bool {
        prefix_of(&weights.tensors, &MARKERS).is_some()
    }

    fn new(
        encoder: Tensors,
        decoder: Tensors,
        sha256: String,
        config: &AutoencoderConfig,
        device: &Device,
    ) -> Result<Self> {
        let channels = match encoder.get(&format!("{ENCODER_OUT}.weight")).map(Tensor::dims) {
            Some(&[channels, ..]) => channels,
            _ => {
                let key = format!("{ENCODER_OUT}.weight");
                return Err(ModelError::MissingKey { key, expected: vec![4, WIDTH, 3, 3] });
            }
        };
        let identity = Identity {
            architecture: Architecture::Tiny,
            sha256: Some(sha256),
            channels,
            factor: 8,
            groups: None,
            scale: Some(config.scale.unwrap_or(1.0)),
            shift: config.shift.unwrap_or(0.0),
        };
        let pools = [has_pool(&encoder), has_pool(&decoder)];
        let encoder = Params::frozen(encoder, DType::F32, device, |scope| {
            encoder_layers(scope, channels, pools[0])
        })?;
        let decoder = Params::frozen(decoder, DType::F32, device, |scope| {
            decoder_layers(scope, channels, pools[1])
        })?;
        Ok(Self { encoder, decoder, identity, tiling: config.tiling })
    }

    /// How images are cut, if they are.
    pub(super) fn tiling(&self) -> Option<&Tiling> {
        self.tiling.as_ref()
    }

    /// What tells its latents from another's.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// `[B, 3, H, W]` in [-1, 1] to `[B, C, H/8, W/8]`.
    pub(super) fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let x = channels_last(&images.affine(0.5, 0.5)?)?; // [B, H, W, 3] in [0, 1]
        channels_first(&run(&self.encoder, x)?)
    }

    /// `[B, C, h, w]` to `[B, 3, 8h, 8w]` in [-1, 1].
    pub(super) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let z = ((latents / 3.0)?.tanh()? * 3.0)?;
        let x = run(&self.decoder, channels_last(&z)?)?; // [B, H, W, 3] in [0, 1]
        Ok(channels_first(&x)?.affine(2.0, -1.0)?)
    }
}

/// diffusers counts the decoder's layers without the clamp that comes first.
fn published_decoder_key(key: &str) -> String {
    let shifted = key.strip_prefix("layers.").and_then(|rest| {
        let (index, rest) = rest.split_once('.')?;
        Some(format!("{}.{rest}", index.parse::<usize>().ok()? + 1))
    });
    shifted.unwrap_or_else(|| key.to_owned())
}

fn has_pool(tensors: &Tensors) -> bool {
    tensors.keys().any(|key| key.contains(".pool."))
}

/// One entry of PyTorch's `Sequential`.
enum Layer {
    Conv(Conv2d),
    Block(Box<Block>),
    Relu,
    Upsample,
}

fn run(layers: &[Layer], x: Tensor) -> Result<Tensor> {
    layers.iter().try_fold(x, |x, layer| match layer {
        Layer::Conv(conv) => conv.forward(&x),
        Layer::Block(block) => block.forward(&x),
        Layer::Relu => Ok(x.relu()?),
        Layer::Upsample => Ok(upsample(&x)?),
    })
}

fn encoder_layers(scope: &Scope, channels: usize, pool: bool) -> Result<Vec<Layer>> {
    let halve = ConvGeometry { stride: 2, pad_before: [1, 1], pad_after: [1, 1] };
    let mut layers =
        vec![Layer::Conv(Conv2d::same(&scope.at(0), [3, WIDTH], 3)?), block(&scope.at(1), false)?];
    for stage in 0..3 {
        let conv = Conv2d::new(&scope.at(layers.len()), [WIDTH, WIDTH], 3, halve, false)?;
        layers.push(Layer::Conv(conv));
        push_blocks(&mut layers, scope, 0, pool && stage == 2)?;
    }
    layers.push(Layer::Conv(Conv2d::same(&scope.at(ENCODER_OUT), [WIDTH, channels], 3)?));
    Ok(layers)
}

/// Index 0 of the published `Sequential` is the clamp, which [`TinyAutoencoder::decode`] does.
fn decoder_layers(scope: &Scope, channels: usize, pool: bool) -> Result<Vec<Layer>> {
    let mut layers =
        vec![Layer::Conv(Conv2d::same(&scope.at(1), [channels, WIDTH], 3)?), Layer::Relu];
    for stage in 0..3 {
        push_blocks(&mut layers, scope, 1, pool && stage == 0)?;
        layers.push(Layer::Upsample);
        let same = ConvGeometry::same([3, 3]);
        let conv = Conv2d::new(&scope.at(layers.len() + 1), [WIDTH, WIDTH], 3, same, false)?;
        layers.push(Layer::Conv(conv));
    }
    layers.push(block(&scope.at(layers.len() + 1), false)?);
    layers.push(Layer::Conv(Conv2d::same(&scope.at(layers.len() + 1), [WIDTH, 3], 3)?));
    Ok(layers)
}

fn block(scope: &Scope, pool: bool) -> Result<Layer> {
    Ok(Layer::Block(Box::new(Block::new(scope, pool)?)))
}

/// Three blocks, named by their place in `layers` plus `offset`.
fn push_blocks(layers: &mut Vec<Layer>, scope: &Scope, offset: usize, pool: bool) -> Result<()> {
    for _ in 0..3 {
        layers.push(block(&scope.at(layers.len() + offset), pool)?);
    }
    Ok(())
}

/// `relu(conv(relu(conv(relu(conv(x))))) + x)`, after `x + pool(x)` where there is a pool branch.
struct Block {
    convs: [Conv2d; 3],
    pool: Option<Pool>,
}

impl Block {
    fn new(scope: &Scope, pool: bool) -> Result<Self> {
        let conv = |name: &str| Conv2d::same(&scope.at("conv").at(name), [WIDTH, WIDTH], 3);
        Ok(Self {
            convs: [conv("0")?, conv("2")?, conv("4")?],
            pool: pool.then(|| Pool::new(&scope.at("pool"))).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = match &self.pool {
            Some(pool) => (x + pool.forward(x)?)?,
            None => x.clone(),
        };
        let [first, second, third] = &self.convs;
        let y = second.forward(&first.forward(&x)?.relu()?)?.relu()?;
        Ok((third.forward(&y)? + x)?.relu()?)
    }
}

/// `conv1x1(relu(GroupNorm(conv1x1(x))))`: lets a position see its whole image's statistics.
struct Pool {
    expand: Conv2d,
    norm: GroupNorm,
    contract: Conv2d,
}

impl Pool {
    fn new(scope: &Scope) -> Result<Self> {
        let point = |name: &str, channels| {
            Conv2d::new(&scope.at(name), channels, 1, ConvGeometry::same([1, 1]), false)
        };
        Ok(Self {
            expand: point("0", [WIDTH, POOL_WIDTH])?,
            norm: GroupNorm::new(&scope.at(1), POOL_WIDTH, POOL_GROUPS, POOL_EPS)?,
            contract: point("3", [POOL_WIDTH, WIDTH])?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.norm.forward(&self.expand.forward(x)?, Activation::None)?;
        self.contract.forward(&y.relu()?)
    }
}
