//! adaLN: layer norm without affine parameters, then a per-sample shift and scale.

use super::fresh::zeros;
use super::layout::split_tiles;
use super::vector::{sum, vectorized};
use super::{TokenLayout, has_kernels, output, plain, values};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
#[cfg(feature = "cuda")]
use {super::cuda, candle_core::CudaStorage};

/// The variance's epsilon, as in DiT.
const EPS: f32 = 1e-6;
const TILE_ROWS: usize = 32;

/// `LN(x) * (1 + scale) + shift` for `x` `(rows, width)`; eps 1e-6.
///
/// `modulation` is `(groups, chunks * width)`, one row a sample or one a level and sample;
/// `shift` and `scale` say which of its chunks of `width` columns to take.
///
/// # Errors
/// When the shapes do not fit `layout`.
pub fn modulated_norm(
    x: &Tensor,
    modulation: &Tensor,
    layout: &TokenLayout,
    shift: usize,
    scale: usize,
) -> Result<Tensor> {
    let ((rows, width), (groups, columns)) = (x.dims2()?, modulation.dims2()?);
    let grouped = groups == layout.batch() || groups == layout.batch() * layout.levels();
    if rows != layout.rows() || !grouped || columns < (shift.max(scale) + 1) * width {
        bail!("modulated_norm: x {:?}, modulation {:?}, {layout:?}", x.dims(), modulation.dims())
    }
    if !has_kernels(x) {
        return plain::modulated_norm(x, modulation, layout, shift, scale);
    }
    let op = ModulatedNorm { layout: layout.clone(), shift, scale };
    x.contiguous()?.apply_op2(&modulation.contiguous()?, op)
}

/// dL/dx and dL/dmodulation of [`modulated_norm`].
pub(crate) fn modulated_norm_backward(
    x: &Tensor,
    modulation: &Tensor,
    grad: &Tensor,
    layout: &TokenLayout,
    shift: usize,
    scale: usize,
) -> Result<(Tensor, Tensor)> {
    ModulatedNorm { layout: layout.clone(), shift, scale }.gradients(x, modulation, grad)
}

#[derive(Clone)]
struct ModulatedNorm {
    layout: TokenLayout,
    shift: usize,
    scale: usize,
}

impl CustomOp2 for ModulatedNorm {
    fn name(&self) -> &'static str {
        "modulated-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        modulation: &CpuStorage,
        m_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = x_layout.shape().dims2()?.1;
        let (groups, columns) = m_layout.shape().dims2()?;
        let x = values(self.name(), x, x_layout)?;
        let m = values(self.name(), modulation, m_layout)?;
        let mut y = zeros(x.len());
        let tiles = self.layout.tiles(TILE_ROWS);
        split_tiles(&mut y, width, &tiles).into_par_iter().for_each(|(y, tile)| {
            let group = self.layout.modulation_row(groups, tile.level, tile.sample);
            let m = &m[group * columns..][..columns];
            let (shift, scale) = (&m[self.shift * width..][..width], &m[self.scale * width..]);
            let x = &x[tile.rows.start * width..tile.rows.end * width];
            vectorized(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let (mean, rstd) = moments(x);
                        for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                            *y = (x - mean) * rstd * (1.0 + scale) + shift;
                        }
                    }
                },
            )
        });
        output(y, x_layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        modulation: &CudaStorage,
        m_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let chunks = [self.shift, self.scale];
        cuda::modulated_norm(&self.layout, chunks, (x, x_layout), (modulation, m_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        modulation: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dm) = self.gradients(x, modulation, grad)?;
        Ok((Some(dx), Some(dm)))
    }
}

impl ModulatedNorm {
    fn gradients(
        &self,
        x: &Tensor,
        modulation: &Tensor,
        grad: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let grad = grad.contiguous()?;
        let dx = x.apply_op3_no_bwd(modulation, &grad, &InputGradient(self.clone()))?;
        let dm = x.apply_op3_no_bwd(modulation, &grad, &ModulationGradient(self.clone()))?;
        Ok((dx, dm))
    }
}

/// dL/dx: `rstd (g - mean(g) - n mean(g n))` with `n` the normalized row and `g = grad (1 + scale)`.
struct InputGradient(ModulatedNorm);

impl CustomOp3 for InputGradient {
    fn name(&self) -> &'static str {
        "modulated-norm-backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        modulation: &CpuStorage,
        m_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = x_layout.shape().dims2()?.1;
        let (groups, columns) = m_layout.shape().dims2()?;
        let x = values(self.name(), x, x_layout)?;
        let m = values(self.name(), modulation, m_layout)?;
        let grad = values(self.name(), grad, grad_layout)?;
        let mut dx = zeros(x.len());
        let tiles = self.0.layout.tiles(TILE_ROWS);
        split_tiles(&mut dx, width, &tiles).into_par_iter().for_each(|(dx, tile)| {
            let group = self.0.layout.modulation_row(groups, tile.level, tile.sample);
            let scale = &m[group * columns + self.0.scale * width..][..width];
            let rows = tile.rows.start * width..tile.rows.end * width;
            vectorized(
                #[inline(always)]
                || {
                    let inputs =
                        x[rows.clone()].chunks_exact(width).zip(grad[rows].chunks_exact(width));
                    for (dx, (x, grad)) in dx.chunks_exact_mut(width).zip(inputs) {
                        input_gradient_row(dx, x, grad, scale);
                    }
                },
            )
        });
        output(dx, x_layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        modulation: &CudaStorage,
        m_layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let operands = [(x, x_layout), (modulation, m_layout), (grad, grad_layout)];
        cuda::modulated_norm_dx(&self.0.layout, self.0.scale, operands)
    }
}

#[inline(always)]
fn input_gradient_row(dx: &mut [f32], x: &[f32], grad: &[f32], scale: &[f32]) {
    let width = x.len();
    let (mean, rstd) = moments(x);
    for ((dx, grad), scale) in dx.iter_mut().zip(grad).zip(scale) {
        *dx = grad * (1.0 + scale);
    }
    let g_mean = sum([dx], |[dx]| dx) / width as f32;
    let gn_mean = sum([dx, x], |[dx, x]| dx * (x - mean)) * rstd / width as f32;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = rstd * (*dx - g_mean - (x - mean) * rstd * gn_mean);
    }
}

/// dL/dmodulation: per group, the sum of `grad` (shift) and of `grad n` (scale); zero elsewhere.
struct ModulationGradient(ModulatedNorm);

impl CustomOp3 for ModulationGradient {
    fn name(&self) -> &'static str {
        "modulated-norm-backward-modulation"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        _modulation: &CpuStorage,
        m_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = x_layout.shape().dims2()?.1;
        let (groups, columns) = m_layout.shape().dims2()?;
        let x = values(self.name(), x, x_layout)?;
        let grad = values(self.name(), grad, grad_layout)?;
        let mut dm = vec![0f32; groups * columns];
        dm.par_chunks_mut(columns).enumerate().for_each(|(group, dm)| {
            let (mut shift, mut scale) = (vec![0f32; width], vec![0f32; width]);
            for row in self.0.layout.modulated_rows(groups, group).into_iter().flatten() {
                let row = row * width..(row + 1) * width;
                vectorized(
                    #[inline(always)]
                    || add_modulation_row(&mut shift, &mut scale, &x[row.clone()], &grad[row]),
                );
            }
            dm[self.0.shift * width..][..width].copy_from_slice(&shift);
            dm[self.0.scale * width..][..width].copy_from_slice(&scale);
        });
        output(dm, m_layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        _modulation: &CudaStorage,
        m_layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (op, chunks) = (&self.0, [self.0.shift, self.0.scale]);
        cuda::modulated_norm_dm(&op.layout, chunks, (x, x_layout), m_layout, (grad, grad_layout))
    }
}

#[inline(always)]
fn add_modulation_row(shift: &mut [f32], scale: &mut [f32], x: &[f32], grad: &[f32]) {
    let (mean, rstd) = moments(x);
    for (((shift, scale), x), grad) in shift.iter_mut().zip(scale).zip(x).zip(grad) {
        *shift += grad;
        *scale += grad * (x - mean) * rstd;
    }
}

/// Mean and reciprocal standard deviation of a row, in two passes.
#[inline(always)]
fn moments(x: &[f32]) -> (f32, f32) {
    let width = x.len() as f32;
    let mean = sum([x], |[x]| x) / width;
    let variance = sum([x], |[x]| (x - mean) * (x - mean)) / width;
    (mean, 1.0 / (variance + EPS).sqrt())
}
