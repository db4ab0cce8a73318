//! The two steps of a Laplacian pyramid, a pass over memory each: [`crate::pyramid`] is made of them.

use super::fresh::zeros;
use super::vector::vectorized;
use super::{output, values};
use crate::pyramid::up;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Mean of each 2x2 block: `(b, c, h, w)` to `(b, c, h/2, w/2)`.
///
/// # Errors
/// When a side is odd.
pub fn pyramid_down(x: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if h % 2 != 0 || w % 2 != 0 {
        bail!("pyramid: {h}x{w} cannot be halved")
    }
    match has_kernel(x) {
        true => x.contiguous()?.apply_op1(Down),
        false => down_candle(x),
    }
}

/// `level + factor Up(coarse)`, each pixel of `coarse` `(b, c, h/2, w/2)` repeated as a 2x2 block of
/// `level`'s `(b, c, h, w)`.
///
/// # Errors
/// When the shapes are not so.
pub fn pyramid_add_up(level: &Tensor, coarse: &Tensor, factor: f64) -> Result<Tensor> {
    let ((b, c, h, w), small) = (level.dims4()?, coarse.dims4()?);
    if (b, c, h, w) != (small.0, small.1, 2 * small.2, 2 * small.3) {
        bail!("pyramid: {:?} is not twice {:?}", level.dims(), coarse.dims())
    }
    match has_kernel(level) {
        true => level.contiguous()?.apply_op2(&coarse.contiguous()?, AddUp { factor }),
        false => add_up_candle(level, coarse, factor),
    }
}

/// The kernels of the CPU are for f32 alone.
fn has_kernel(x: &Tensor) -> bool {
    super::has_kernels(x) && (x.dtype() == DType::F32 || !x.device().is_cpu())
}

/// [`pyramid_down`] by Candle's operations.
pub(super) fn down_candle(x: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    x.reshape((b, c, h / 2, 2, w / 2, 2))?.mean((3, 5))
}

/// [`pyramid_add_up`] by Candle's operations.
pub(super) fn add_up_candle(level: &Tensor, coarse: &Tensor, factor: f64) -> Result<Tensor> {
    level + (up(coarse)? * factor)?
}

struct Down;

impl CustomOp1 for Down {
    fn name(&self) -> &'static str {
        "pyramid_down"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        let x = values(self.name(), x, layout)?;
        let mut means = zeros(x.len() / 4);
        let planes = means.par_chunks_exact_mut((h / 2 * w / 2).max(1));
        planes.zip(x.par_chunks_exact((h * w).max(1))).for_each(|(means, x)| {
            let rows = means.chunks_exact_mut(w / 2).zip(x.chunks_exact(2 * w));
            vectorized(
                #[inline(always)]
                || {
                    for (means, pair) in rows {
                        let (first, second) = pair.split_at(w);
                        let blocks = first.chunks_exact(2).zip(second.chunks_exact(2));
                        for (mean, (a, b)) in means.iter_mut().zip(blocks) {
                            *mean = ((a[0] + a[1]) + (b[0] + b[1])) * 0.25;
                        }
                    }
                },
            );
        });
        output(means, (b, c, h / 2, w / 2))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::pyramid_down((x, layout))
    }

    fn bwd(&self, x: &Tensor, _means: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(pyramid_add_up(&x.zeros_like()?, grad, 0.25)?))
    }
}

struct AddUp {
    factor: f64,
}

impl CustomOp2 for AddUp {
    fn name(&self) -> &'static str {
        "pyramid_add_up"
    }

    fn cpu_fwd(
        &self,
        level: &CpuStorage,
        layout: &Layout,
        coarse: &CpuStorage,
        coarse_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, _, h, w) = layout.shape().dims4()?;
        let (level, factor) = (values(self.name(), level, layout)?, self.factor as f32);
        let coarse = values(self.name(), coarse, coarse_layout)?;
        let mut sums = zeros(level.len());
        let planes = sums.par_chunks_exact_mut((h * w).max(1));
        let planes = planes.zip(level.par_chunks_exact((h * w).max(1)));
        planes.zip(coarse.par_chunks_exact((h * w / 4).max(1))).for_each(
            |((sums, level), coarse)| {
                let rows = sums.chunks_exact_mut(w).zip(level.chunks_exact(w)).enumerate();
                vectorized(
                    #[inline(always)]
                    || {
                        for (y, (sums, level)) in rows {
                            let coarse = &coarse[y / 2 * (w / 2)..][..w / 2];
                            let pairs = sums.chunks_exact_mut(2).zip(level.chunks_exact(2));
                            for ((sum, level), up) in pairs.zip(coarse) {
                                sum[0] = level[0] + factor * up;
                                sum[1] = level[1] + factor * up;
                            }
                        }
                    },
                );
            },
        );
        output(sums, layout.shape().clone())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        level: &CudaStorage,
        layout: &Layout,
        coarse: &CudaStorage,
        coarse_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        super::cuda::pyramid_add_up((level, layout), (coarse, coarse_layout), self.factor as f32)
    }

    fn bwd(
        &self,
        _level: &Tensor,
        _coarse: &Tensor,
        _sums: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let coarse = (pyramid_down(grad)? * (4.0 * self.factor))?;
        Ok((Some(grad.clone()), Some(coarse)))
    }
}
