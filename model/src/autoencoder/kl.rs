//! `AutoencoderKL`, the autoencoder of Stable Diffusion, of any width and depth (MATH.md, section 7).
//!
//! SD-VAE and EQ-VAE are two sets of weights for it. Parameters carry diffusers' names; the names
//! of the original code are translated when weights are read.

use super::layers::{Conv2d, GroupNorm, channels_first, channels_last};
use super::{KlConfig, Posterior};
use crate::error::Result;
use crate::kernels::{Activation, ConvGeometry, upsample};
use crate::params::{Init, Scope};
use candle_core::{D, Tensor};

const NORM_EPS: f64 = 1e-6;
const LOGVAR: std::ops::RangeInclusive<f32> = -30.0..=20.0;

/// The network; trained with gradients or run without, as its [`Scope`] decides.
pub struct KlNetwork {
    encoder: Encoder,
    quant: Option<Conv2d>,
    post_quant: Option<Conv2d>,
    decoder: Decoder,
}

impl KlNetwork {
    /// Asks `scope` for every parameter.
    ///
    /// # Errors
    /// When `config` is not valid or the weights do not fit it.
    pub fn new(scope: &Scope, config: &KlConfig) -> Result<Self> {
        config.validate()?;
        let z = config.latent_channels;
        let point = |name, channels| Conv2d::same(&scope.at(name), channels, 1);
        Ok(Self {
            encoder: Encoder::new(&scope.at("encoder"), config)?,
            quant: config
                .use_quant_conv
                .then(|| point("quant_conv", [2 * z, 2 * z]))
                .transpose()?,
            post_quant: config
                .use_post_quant_conv
                .then(|| point("post_quant_conv", [z, z]))
                .transpose()?,
            decoder: Decoder::new(&scope.at("decoder"), config)?,
        })
    }

    /// `[B, 3, H, W]` in [-1, 1] to a Gaussian over `[B, C, H/f, W/f]`; logvar clamped to [-30, 20].
    pub fn encode(&self, images: &Tensor) -> Result<Posterior> {
        let mut moments = self.encoder.forward(&channels_last(images)?)?; // [B, h, w, 2C]
        if let Some(quant) = &self.quant {
            moments = quant.forward(&moments)?;
        }
        let moments = channels_first(&moments)?.chunk(2, 1)?;
        let logvar = moments[1].contiguous()?.clamp(*LOGVAR.start(), *LOGVAR.end())?;
        Ok(Posterior { mean: moments[0].contiguous()?, logvar: Some(logvar) })
    }

    /// `[B, C, h, w]` to `[B, 3, fh, fw]`.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let mut z = channels_last(latents)?;
        if let Some(post_quant) = &self.post_quant {
            z = post_quant.forward(&z)?;
        }
        channels_first(&self.decoder.forward(&z)?)
    }
}

struct Encoder {
    conv_in: Conv2d,
    levels: Vec<(Vec<ResnetBlock>, Option<Conv2d>)>,
    mid: MidBlock,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(scope: &Scope, config: &KlConfig) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let halve = ConvGeometry { stride: 2, pad_before: [0, 0], pad_after: [1, 1] };
        let mut levels = Vec::with_capacity(widths.len());
        let mut width_in = first;
        let conv_in = Conv2d::same(&scope.at("conv_in"), [3, first], 3)?;
        for (i, &width) in widths.iter().enumerate() {
            let scope = scope.at("down_blocks").at(i);
            let blocks = resnets(&scope, [width_in, width], config.layers_per_block, config)?;
            let down = (i + 1 < widths.len()).then(|| {
                let scope = scope.at("downsamplers.0.conv");
                Conv2d::new(&scope, [width, width], 3, halve, true)
            });
            levels.push((blocks, down.transpose()?));
            width_in = width;
        }
        Ok(Self {
            conv_in,
            levels,
            mid: MidBlock::new(&scope.at("mid_block"), last, config)?,
            norm_out: norm(&scope.at("conv_norm_out"), last, config)?,
            conv_out: Conv2d::same(&scope.at("conv_out"), [last, 2 * config.latent_channels], 3)?,
        })
    }

    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(images)?; // [B, H, W, width]
        for (blocks, down) in &self.levels {
            for block in blocks {
                x = block.forward(&x)?;
            }
            if let Some(down) = down {
                x = down.forward(&x)?; // [B, H/2, W/2, width]
            }
        }
        x = self.mid.forward(&x)?;
        self.conv_out.forward(&self.norm_out.forward(&x, Activation::Silu)?) // [B, h, w, 2C]
    }
}

struct Decoder {
    conv_in: Conv2d,
    mid: MidBlock,
    levels: Vec<(Vec<ResnetBlock>, Option<Conv2d>)>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(scope: &Scope, config: &KlConfig) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let conv_in = Conv2d::same(&scope.at("conv_in"), [config.latent_channels, last], 3)?;
        let mid = MidBlock::new(&scope.at("mid_block"), last, config)?;
        let mut levels = Vec::with_capacity(widths.len());
        let mut width_in = last;
        for (i, &width) in widths.iter().rev().enumerate() {
            let scope = scope.at("up_blocks").at(i);
            let blocks = resnets(&scope, [width_in, width], config.layers_per_block + 1, config)?;
            let up = (i + 1 < widths.len())
                .then(|| Conv2d::same(&scope.at("upsamplers.0.conv"), [width, width], 3));
            levels.push((blocks, up.transpose()?));
            width_in = width;
        }
        Ok(Self {
            conv_in,
            mid,
            levels,
            norm_out: norm(&scope.at("conv_norm_out"), first, config)?,
            conv_out: Conv2d::same(&scope.at("conv_out"), [first, 3], 3)?,
        })
    }

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(latents)?; // [B, h, w, width]
        x = self.mid.forward(&x)?;
        for (blocks, up) in &self.levels {
            for block in blocks {
                x = block.forward(&x)?;
            }
            if let Some(up) = up {
                x = up.forward(&upsample(&x)?)?; // [B, 2h, 2w, width]
            }
        }
        self.conv_out.forward(&self.norm_out.forward(&x, Activation::Silu)?) // [B, H, W, 3]
    }
}

/// Residual block, self-attention where the config wants it, residual block.
struct MidBlock {
    before: ResnetBlock,
    attention: Option<Attention>,
    after: ResnetBlock,
}

impl MidBlock {
    fn new(scope: &Scope, width: usize, config: &KlConfig) -> Result<Self> {
        let resnet =
            |i: usize| ResnetBlock::new(&scope.at("resnets").at(i), [width, width], config);
        Ok(Self {
            before: resnet(0)?,
            attention: config
                .mid_block_add_attention
                .then(|| Attention::new(&scope.at("attentions.0"), width, config))
                .transpose()?,
            after: resnet(1)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.before.forward(x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.after.forward(&x)
    }
}

/// `shortcut(x) + conv(silu(norm(conv(silu(norm(x))))))`.
struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    fn new(scope: &Scope, channels: [usize; 2], config: &KlConfig) -> Result<Self> {
        let [width_in, width_out] = channels;
        Ok(Self {
            norm1: norm(&scope.at("norm1"), width_in, config)?,
            conv1: Conv2d::same(&scope.at("conv1"), channels, 3)?,
            norm2: norm(&scope.at("norm2"), width_out, config)?,
            conv2: Conv2d::same(&scope.at("conv2"), [width_out, width_out], 3)?,
            shortcut: (width_in != width_out)
                .then(|| Conv2d::same(&scope.at("conv_shortcut"), channels, 1))
                .transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut h = self.norm1.forward(x, Activation::Silu)?;
        h = self.conv1.forward(&h)?;
        h = self.norm2.forward(&h, Activation::Silu)?;
        h = self.conv2.forward(&h)?;
        match &self.shortcut {
            Some(shortcut) => Ok((shortcut.forward(x)? + h)?),
            None => Ok((x + h)?),
        }
    }
}

/// Single-head attention over all pixels.
struct Attention {
    norm: GroupNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl Attention {
    fn new(scope: &Scope, width: usize, config: &KlConfig) -> Result<Self> {
        let linear = |name| Linear::new(&scope.at(name), width);
        Ok(Self {
            norm: norm(&scope.at("group_norm"), width, config)?,
            query: linear("to_q")?,
            key: linear("to_k")?,
            value: linear("to_v")?,
            out: linear("to_out.0")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, _, c) = x.dims4()?;
        let tokens = self.norm.forward(x, Activation::None)?.flatten(1, 2)?; // [B, HW, C]
        let query = (self.query.forward(&tokens)? * (c as f64).sqrt().recip())?;
        let scores = query.matmul(&self.key.forward(&tokens)?.t()?)?; // [B, HW, HW]
        let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        let attended = weights.matmul(&self.value.forward(&tokens)?)?; // [B, HW, C]
        Ok((self.out.forward(&attended)?.reshape(x.shape())? + x)?)
    }
}

struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn new(scope: &Scope, width: usize) -> Result<Self> {
        let weight = scope.get("weight", [width, width], Init::FanIn)?;
        let bias = scope.get("bias", [width], Init::Zeros)?;
        Ok(Self { weight, bias })
    }

    /// `[B, N, C]` to the same.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, n, c) = x.dims3()?;
        let y = x.reshape((b * n, c))?.matmul(&self.weight.t()?)?;
        Ok(y.broadcast_add(&self.bias)?.reshape((b, n, c))?)
    }
}

fn norm(scope: &Scope, channels: usize, config: &KlConfig) -> Result<GroupNorm> {
    GroupNorm::new(scope, channels, config.norm_num_groups, NORM_EPS)
}

/// `count` blocks, the first of which changes the width.
fn resnets(
    scope: &Scope,
    channels: [usize; 2],
    count: usize,
    config: &KlConfig,
) -> Result<Vec<ResnetBlock>> {
    let [width_in, width_out] = channels;
    (0..count)
        .map(|j| {
            let width_in = if j == 0 { width_in } else { width_out };
            ResnetBlock::new(&scope.at("resnets").at(j), [width_in, width_out], config)
        })
        .collect()
}
