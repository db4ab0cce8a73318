//! The layers of convolutional autoencoders, over channels-last images `[B, H, W, C]`.

use crate::error::Result;
use crate::kernels::{Activation, ConvGeometry, conv2d, group_norm};
use crate::params::{Init, Scope};
use candle_core::Tensor;

/// A square convolution.
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    geometry: ConvGeometry,
}

impl Conv2d {
    /// Stride 1, padding that keeps the size, with bias.
    pub fn same(scope: &Scope, channels: [usize; 2], kernel: usize) -> Result<Self> {
        Self::new(scope, channels, kernel, ConvGeometry::same([kernel; 2]), true)
    }

    /// `channels` are input and output; parameters `weight` and, if `bias`, `bias`.
    pub fn new(
        scope: &Scope,
        channels: [usize; 2],
        kernel: usize,
        geometry: ConvGeometry,
        bias: bool,
    ) -> Result<Self> {
        let [channels_in, channels_out] = channels;
        let bound = ((channels_in * kernel * kernel) as f64).sqrt().recip();
        let weight =
            scope.get("weight", [channels_out, channels_in, kernel, kernel], Init::FanIn)?;
        let bias =
            bias.then(|| scope.get("bias", [channels_out], Init::Uniform(bound))).transpose()?;
        Ok(Self { weight, bias, geometry })
    }

    /// `[B, H, W, Cin]` to `[B, H', W', Cout]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(conv2d(x, &self.weight, self.bias.as_ref(), self.geometry)?)
    }
}

/// Group normalisation with affine parameters, and the activation behind it.
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// Over `channels` in `groups`; parameters `weight` and `bias`.
    pub fn new(scope: &Scope, channels: usize, groups: usize, eps: f64) -> Result<Self> {
        let weight = scope.get("weight", [channels], Init::Ones)?;
        let bias = scope.get("bias", [channels], Init::Zeros)?;
        Ok(Self { weight, bias, groups, eps })
    }

    /// `[B, H, W, C]` to the same; statistics per image and group of channels.
    pub fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let Self { weight, bias, groups, eps } = self;
        Ok(group_norm(x, weight, bias, *groups, *eps, activation)?)
    }
}

/// `[B, C, H, W]` to `[B, H, W, C]`.
pub fn channels_last(x: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 2, 3, 1))?.contiguous()?)
}

/// `[B, H, W, C]` to `[B, C, H, W]`.
pub fn channels_first(x: &Tensor) -> Result<Tensor> {
    Ok(x.permute((0, 3, 1, 2))?.contiguous()?)
}
