//! GELU in its tanh form, as DiT uses it.

use super::fresh::zeros;
use super::vector::{tanh, vectorized};
use super::{has_kernels, output, values};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
#[cfg(feature = "cuda")]
use {super::cuda, candle_core::CudaStorage};

const CHUNK: usize = 4096;
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, any shape, f32.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if !has_kernels(x) {
        return x.gelu();
    }
    x.contiguous()?.apply_op1(Gelu)
}

/// dL/dx of [`gelu`].
pub(crate) fn gelu_backward(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    x.apply_op2_no_bwd(&grad.contiguous()?, &GeluBackward)
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(self.name(), x, layout)?;
        let mut y = zeros(x.len());
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = 0.5 * x * (1.0 + tanh(inner(x)));
                    }
                },
            )
        });
        output(y, layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::gelu((x, layout))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(gelu_backward(x, grad)?))
    }
}

struct GeluBackward;

impl CustomOp2 for GeluBackward {
    fn name(&self) -> &'static str {
        "gelu-backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = values(self.name(), x, layout)?;
        let grad = values(self.name(), grad, grad_layout)?;
        let mut dx = zeros(x.len());
        let chunks = x.par_chunks(CHUNK).zip(grad.par_chunks(CHUNK));
        dx.par_chunks_mut(CHUNK).zip(chunks).for_each(|(dx, (x, grad))| {
            vectorized(
                #[inline(always)]
                || {
                    for ((dx, &x), &grad) in dx.iter_mut().zip(x).zip(grad) {
                        let t = tanh(inner(x));
                        let slope = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
                        *dx = grad * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope);
                    }
                },
            )
        });
        output(dx, layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::gelu_dx((x, layout), (grad, grad_layout))
    }
}

#[inline(always)]
fn inner(x: f32) -> f32 {
    SQRT_2_OVER_PI * (x + CUBIC * x * x * x)
}
