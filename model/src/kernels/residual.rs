//! Gated residual connections: `x + gate * y` with a per-sample gate.

use super::fresh::{copied, zeros};
use super::layout::split_tiles;
use super::{TokenLayout, has_kernels, output, plain, values};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
#[cfg(feature = "cuda")]
use {super::cuda, candle_core::CudaStorage};

const TILE_ROWS: usize = 32;

/// `x + gate * y` for `x`, `y` `(rows, width)`; the gate is chunk `gate` of `modulation`
/// (see [`super::modulated_norm`]).
///
/// # Errors
/// When the shapes do not fit `layout`.
pub fn gated_residual(
    x: &Tensor,
    y: &Tensor,
    modulation: &Tensor,
    layout: &TokenLayout,
    gate: usize,
) -> Result<Tensor> {
    let ((rows, width), (groups, columns)) = (x.dims2()?, modulation.dims2()?);
    let grouped = groups == layout.batch() || groups == layout.batch() * layout.levels();
    if rows != layout.rows() || x.dims() != y.dims() || !grouped || columns < (gate + 1) * width {
        bail!("gated_residual: x {:?}, modulation {:?}, {layout:?}", x.dims(), modulation.dims())
    }
    if !has_kernels(x) {
        return plain::gated_residual(x, y, modulation, layout, gate);
    }
    let op = GatedResidual { layout: layout.clone(), gate };
    x.contiguous()?.apply_op3(&y.contiguous()?, &modulation.contiguous()?, op)
}

/// dL/dy and dL/dmodulation of [`gated_residual`]; dL/dx is `grad` itself.
pub(crate) fn gated_residual_backward(
    y: &Tensor,
    modulation: &Tensor,
    grad: &Tensor,
    layout: &TokenLayout,
    gate: usize,
) -> Result<(Tensor, Tensor)> {
    let op = GatedResidual { layout: layout.clone(), gate };
    let dy = grad.apply_op2_no_bwd(modulation, &BranchGradient(op.clone()))?;
    let dm = grad.apply_op3_no_bwd(y, modulation, &GateGradient(op))?;
    Ok((dy, dm))
}

#[derive(Clone)]
struct GatedResidual {
    layout: TokenLayout,
    gate: usize,
}

impl GatedResidual {
    /// `base + gate * y`, or `gate * y` without a base.
    fn apply(&self, base: Option<&[f32]>, y: &[f32], m: &[f32], groups: usize) -> Vec<f32> {
        let (width, columns) = (y.len() / self.layout.rows(), m.len() / groups);
        let mut out = base.map_or_else(|| zeros(y.len()), copied);
        let tiles = self.layout.tiles(TILE_ROWS);
        split_tiles(&mut out, width, &tiles).into_par_iter().for_each(|(out, tile)| {
            let group = self.layout.modulation_row(groups, tile.level, tile.sample);
            let gate = &m[group * columns + self.gate * width..][..width];
            let y = &y[tile.rows.start * width..tile.rows.end * width];
            for (out, y) in out.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
                for ((out, y), gate) in out.iter_mut().zip(y).zip(gate) {
                    *out += gate * y;
                }
            }
        });
        out
    }
}

impl CustomOp3 for GatedResidual {
    fn name(&self) -> &'static str {
        "gated-residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
        modulation: &CpuStorage,
        m_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let groups = m_layout.shape().dims2()?.0;
        let x = values(self.name(), x, x_layout)?;
        let y = values(self.name(), y, y_layout)?;
        let m = values(self.name(), modulation, m_layout)?;
        output(self.apply(Some(x), y, m, groups), x_layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        y: &CudaStorage,
        y_layout: &Layout,
        modulation: &CudaStorage,
        m_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (base, m) = (Some((x, x_layout)), (modulation, m_layout));
        cuda::gated_residual(&self.layout, self.gate, base, (y, y_layout), m)
    }

    fn bwd(
        &self,
        _x: &Tensor,
        y: &Tensor,
        modulation: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dy, dm) = gated_residual_backward(y, modulation, &grad, &self.layout, self.gate)?;
        Ok((Some(grad), Some(dy), Some(dm)))
    }
}

/// dL/dy = gate * grad.
struct BranchGradient(GatedResidual);

impl CustomOp2 for BranchGradient {
    fn name(&self) -> &'static str {
        "gated-residual-backward"
    }

    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        modulation: &CpuStorage,
        m_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let groups = m_layout.shape().dims2()?.0;
        let grad = values(self.name(), grad, grad_layout)?;
        let m = values(self.name(), modulation, m_layout)?;
        output(self.0.apply(None, grad, m, groups), grad_layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        grad: &CudaStorage,
        grad_layout: &Layout,
        modulation: &CudaStorage,
        m_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (grad, m) = ((grad, grad_layout), (modulation, m_layout));
        cuda::gated_residual(&self.0.layout, self.0.gate, None, grad, m)
    }
}

/// dL/dmodulation: per group the sum of `grad * y` in the gate's chunk; zero elsewhere.
struct GateGradient(GatedResidual);

impl CustomOp3 for GateGradient {
    fn name(&self) -> &'static str {
        "gated-residual-backward-gate"
    }

    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
        _modulation: &CpuStorage,
        m_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let width = y_layout.shape().dims2()?.1;
        let (groups, columns) = m_layout.shape().dims2()?;
        let grad = values(self.name(), grad, grad_layout)?;
        let y = values(self.name(), y, y_layout)?;
        let mut dm = vec![0f32; groups * columns];
        dm.par_chunks_mut(columns).enumerate().for_each(|(group, dm)| {
            let gate = &mut dm[self.0.gate * width..][..width];
            for row in self.0.layout.modulated_rows(groups, group).into_iter().flatten() {
                let row = row * width..(row + 1) * width;
                for ((gate, grad), y) in gate.iter_mut().zip(&grad[row.clone()]).zip(&y[row]) {
                    *gate += grad * y;
                }
            }
        });
        output(dm, m_layout.shape())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        grad: &CudaStorage,
        grad_layout: &Layout,
        y: &CudaStorage,
        y_layout: &Layout,
        _modulation: &CudaStorage,
        m_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (grad, y) = ((grad, grad_layout), (y, y_layout));
        cuda::gated_residual_dm(&self.0.layout, self.0.gate, grad, y, m_layout)
    }
}
