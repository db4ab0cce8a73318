//! Group normalisation of channels-last images with the SiLU that follows it, in two passes.

use super::fresh::zeros;
use super::vector::{exp, vectorized};
use super::{has_kernels, output, plain, values, with_values};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Values that one task reads; partial sums are f32 within it and f64 beyond.
const CHUNK_VALUES: usize = 1 << 15;

/// What follows the normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `x * sigmoid(x)`.
    Silu,
}

/// `activation(weight * (x - mean) / sqrt(variance + eps) + bias)` for `x` `[B, H, W, C]`.
///
/// Mean and variance are per image and group of `C / groups` channels; `weight` and `bias` are
/// `(C)`. On the CPU and on CUDA devices (f32) these are the crate's own kernels, elsewhere Candle operations.
///
/// # Errors
/// When the shapes do not fit or `groups` does not divide the channels.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (_, _, _, channels) = x.dims4()?;
    if groups == 0
        || channels % groups != 0
        || weight.dims() != [channels]
        || bias.dims() != [channels]
    {
        bail!("group_norm: {groups} groups of {:?} with {:?}", x.shape(), weight.shape());
    }
    if !has_kernels(x) || x.dtype() != DType::F32 {
        return plain::group_norm(x, weight, bias, groups, eps, activation);
    }
    let op = GroupNormOp { groups, eps, activation };
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

#[derive(Clone, Copy)]
struct GroupNormOp {
    groups: usize,
    eps: f64,
    activation: Activation,
}

/// Mean and reciprocal standard deviation, repeated for each channel of a group.
struct Moments {
    mean: Vec<f32>,
    rstd: Vec<f32>,
}

impl CustomOp3 for GroupNormOp {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = values(self.name(), x, x_layout)?;
        let weight = values(self.name(), weight, weight_layout)?;
        let bias = values(self.name(), bias, bias_layout)?;
        let images = x_layout.dims()[0].max(1);
        let mut y = zeros(x.len());
        let image_values = (x.len() / images).max(1);
        for (x, y) in x.chunks_exact(image_values).zip(y.chunks_exact_mut(image_values)) {
            self.forward_image(x, weight, bias, y);
        }
        output(y, x_layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let groups = self.cuda(x_layout.shape())?;
        super::cuda::group_norm(groups, (x, x_layout), (weight, weight_layout), (bias, bias_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            let groups = self.cuda(x.shape())?;
            let grads = super::cuda::group_norm_backward(groups, x, weight, bias, grad)?;
            return Ok(grads.map(Some).into());
        }
        let (device, channels) = (x.device(), weight.elem_count());
        let grad = grad.contiguous()?;
        let images = x.dims()[0].max(1);
        let image_values = (x.elem_count() / images).max(1);
        let mut grad_x = zeros(x.elem_count());
        let (mut grad_weight, mut grad_bias) = (vec![0f32; channels], vec![0f32; channels]);
        with_values(self.name(), [x, weight, bias, &grad], |[x, weight, bias, grad]| {
            let images = x.chunks_exact(image_values).zip(grad.chunks_exact(image_values));
            for ((x, grad), grad_x) in images.zip(grad_x.chunks_exact_mut(image_values)) {
                let sums = self.backward_image(x, weight, bias, grad, grad_x);
                for c in 0..channels {
                    grad_bias[c] += sums[c] as f32;
                    grad_weight[c] += sums[channels + c] as f32;
                }
            }
        })?;
        Ok((
            Some(Tensor::from_vec(grad_x, x.shape(), device)?),
            Some(Tensor::from_vec(grad_weight, channels, device)?),
            Some(Tensor::from_vec(grad_bias, channels, device)?),
        ))
    }
}

impl GroupNormOp {
    #[cfg(feature = "cuda")]
    fn cuda(&self, x: &Shape) -> Result<super::cuda::Groups> {
        super::cuda::Groups::new(x, self.groups, self.eps, self.activation == Activation::Silu)
    }

    fn forward_image(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let channels = weight.len();
        let Moments { mean, rstd } = self.moments(x, channels);
        let scale: Vec<f32> = rstd.iter().zip(weight).map(|(rstd, w)| rstd * w).collect();
        let shift: Vec<f32> =
            bias.iter().zip(&mean).zip(&scale).map(|((b, mean), scale)| b - mean * scale).collect();
        let chunk = chunk_values(channels);
        y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || match self.activation {
                    Activation::None => affine(x, &scale, &shift, y, |h| h),
                    Activation::Silu => affine(x, &scale, &shift, y, |h| h * sigmoid(h)),
                },
            );
        });
    }

    /// Writes the gradient of `x`; returns per channel the sums of `g` and then of `g n`, where
    /// `n` is the normalised input and `g` the gradient before the activation.
    fn backward_image(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        grad: &[f32],
        grad_x: &mut [f32],
    ) -> Vec<f64> {
        let channels = weight.len();
        let moments = self.moments(x, channels);
        let chunk = chunk_values(channels);
        let parts: Vec<Vec<f32>> = grad_x
            .par_chunks_mut(chunk)
            .zip(x.par_chunks(chunk).zip(grad.par_chunks(chunk)))
            .map(|(g, (x, grad))| {
                let mut sums = vec![0f32; 2 * channels];
                vectorized(
                    #[inline(always)]
                    || match self.activation {
                        Activation::None => {
                            slopes(x, [weight, bias], grad, &moments, g, &mut sums, |_| 1.0)
                        }
                        Activation::Silu => {
                            slopes(x, [weight, bias], grad, &moments, g, &mut sums, |h| {
                                let s = sigmoid(h);
                                s * (1.0 + h * (1.0 - s))
                            })
                        }
                    },
                );
                sums
            })
            .collect();
        let sums = total(&parts, 2 * channels);
        let (mean_g, mean_gn) = self.group_means(&sums, weight, x.len());
        let Moments { mean, rstd } = &moments;
        grad_x.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(g, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (g, x) in g.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                        for c in 0..channels {
                            let n = (x[c] - mean[c]) * rstd[c];
                            g[c] = rstd[c] * (g[c] * weight[c] - mean_g[c] - n * mean_gn[c]);
                        }
                    }
                },
            );
        });
        sums
    }

    /// Per group the means of `g weight` and `g weight n`, repeated for each of its channels.
    fn group_means(&self, sums: &[f64], weight: &[f32], values: usize) -> (Vec<f32>, Vec<f32>) {
        let (sum_g, sum_gn) = sums.split_at(weight.len());
        let members = (values / self.groups) as f64;
        let mean = |sums: &[f64]| {
            self.spread(weight.len(), |group| {
                group.map(|c| sums[c] * f64::from(weight[c])).sum::<f64>() / members
            })
        };
        (mean(sum_g), mean(sum_gn))
    }

    /// Sums of `x - pivot` and its square per channel, the first pixel being the pivot: that keeps
    /// the variance exact where the mean is large.
    fn moments(&self, x: &[f32], channels: usize) -> Moments {
        let pivot = &x[..channels];
        let parts: Vec<Vec<f32>> = x
            .par_chunks(chunk_values(channels))
            .map(|x| {
                let mut sums = vec![0f32; 2 * channels];
                let (sum, square) = sums.split_at_mut(channels);
                vectorized(
                    #[inline(always)]
                    || {
                        for x in x.chunks_exact(channels) {
                            for c in 0..channels {
                                let d = x[c] - pivot[c];
                                sum[c] += d;
                                square[c] += d * d;
                            }
                        }
                    },
                );
                sums
            })
            .collect();
        let sums = total(&parts, 2 * channels);
        let pixels = (x.len() / channels) as f64;
        let channel_mean = |c: usize| sums[c] / pixels + f64::from(pivot[c]);
        let group_mean = |group: std::ops::Range<usize>| {
            let width = group.len() as f64;
            group.map(channel_mean).sum::<f64>() / width
        };
        let mean = self.spread(channels, group_mean);
        let rstd = self.spread(channels, |group| {
            let (width, mean) = (group.len() as f64, group_mean(group.clone()));
            let variance = group.map(|c| {
                let within = sums[channels + c] / pixels - (sums[c] / pixels).powi(2);
                within + (channel_mean(c) - mean).powi(2)
            });
            ((variance.sum::<f64>() / width).max(0.0) + self.eps).sqrt().recip()
        });
        Moments { mean, rstd }
    }

    /// Evaluates `f` on each group's channels and repeats the value for each of them.
    fn spread(&self, channels: usize, f: impl Fn(std::ops::Range<usize>) -> f64) -> Vec<f32> {
        let width = channels / self.groups;
        (0..self.groups)
            .flat_map(|group| {
                std::iter::repeat_n(f(group * width..(group + 1) * width) as f32, width)
            })
            .collect()
    }
}

/// `y = activation(x scale + shift)` for every pixel. The activation is chosen outside: a choice
/// within would keep the loop from being vectorized, as slices of unknown lengths would.
#[inline(always)]
fn affine(x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32], activation: impl Fn(f32) -> f32) {
    let channels = scale.len();
    let shift = &shift[..channels];
    for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
        let (x, y) = (&x[..channels], &mut y[..channels]);
        for c in 0..channels {
            y[c] = activation(x[c] * scale[c] + shift[c]);
        }
    }
}

/// The gradient `g` before the activation, whose slope is `slope`, and its `sums`: per channel of
/// `g`, then of `g n`.
#[inline(always)]
fn slopes(
    x: &[f32],
    [weight, bias]: [&[f32]; 2],
    grad: &[f32],
    moments: &Moments,
    g: &mut [f32],
    sums: &mut [f32],
    slope: impl Fn(f32) -> f32,
) {
    let channels = weight.len();
    let (sum_g, sum_gn) = sums.split_at_mut(channels);
    let [bias, mean, rstd] = [bias, &moments.mean, &moments.rstd].map(|v| &v[..channels]);
    let sum_gn = &mut sum_gn[..channels];
    let pixels = x.chunks_exact(channels).zip(grad.chunks_exact(channels));
    for ((x, grad), g) in pixels.zip(g.chunks_exact_mut(channels)) {
        let (x, grad, g) = (&x[..channels], &grad[..channels], &mut g[..channels]);
        for c in 0..channels {
            let n = (x[c] - mean[c]) * rstd[c];
            g[c] = grad[c] * slope(n * weight[c] + bias[c]);
            sum_g[c] += g[c];
            sum_gn[c] += g[c] * n;
        }
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Whole pixels of about [`CHUNK_VALUES`] values.
fn chunk_values(channels: usize) -> usize {
    (CHUNK_VALUES / channels).max(1) * channels
}

/// The parts' sum in f64, in order, so that it does not depend on the number of threads.
fn total(parts: &[Vec<f32>], len: usize) -> Vec<f64> {
    parts.iter().fold(vec![0f64; len], |mut total, part| {
        total.iter_mut().zip(part).for_each(|(total, part)| *total += f64::from(*part));
        total
    })
}
