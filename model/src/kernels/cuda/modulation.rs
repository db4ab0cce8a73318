//! adaLN and the gated residual (`modulation.cu`).

use super::{
    BLOCK, Levels, Operand, WARP, blocks, int, launch, ptx, typed, uninitialized, view, with_type,
};
use crate::kernels::TokenLayout;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig};
use candle_core::{Layout, Result, Shape};

/// What a modulation applies to, as `common.cuh` has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Modulated {
    levels: Levels,
    rows: i32,
    width: i32,
    groups: i32,
    columns: i32,
}

// SAFETY: plain integers without padding, the same as the struct `Modulated` of common.cuh.
unsafe impl DeviceRepr for Modulated {}

impl Modulated {
    fn new(layout: &TokenLayout, x: &Layout, modulation: &Layout) -> Result<Self> {
        let ((rows, width), (groups, columns)) = (x.shape().dims2()?, modulation.shape().dims2()?);
        Ok(Self {
            levels: Levels::new(layout)?,
            rows: int(rows)?,
            width: int(width)?,
            groups: int(groups)?,
            columns: int(columns)?,
        })
    }

    /// A warp for each row of tokens.
    fn warps(&self) -> Result<LaunchConfig> {
        blocks(self.rows as usize * WARP)
    }

    /// A block of 32 columns times 8 rows for each tile of columns of each row of the modulation.
    fn groups(&self) -> LaunchConfig {
        LaunchConfig {
            grid_dim: ((self.width as u32).div_ceil(WARP as u32), self.groups as u32, 1),
            block_dim: (BLOCK as u32, 1, 1),
            shared_mem_bytes: 0,
        }
    }
}

pub(in super::super) fn modulated_norm(
    layout: &TokenLayout,
    [shift, scale]: [usize; 2],
    x: Operand,
    m: Operand,
) -> Result<(CudaStorage, Shape)> {
    let (device, s) = (x.0.device.clone(), Modulated::new(layout, x.1, m.1)?);
    let (shift, scale) = (int(shift)?, int(scale)?);
    with_type!(x.0.dtype(), T, {
        let y = uninitialized::<T>(&device, x.1.shape().elem_count())?;
        let (name, config) = (typed::<T>("modulated_norm"), s.warps()?);
        launch!(
            device,
            MODULATION,
            name,
            config,
            s,
            shift,
            scale,
            view::<T>(x)?,
            view::<T>(m)?,
            y.as_view()
        );
        Ok((CudaStorage::wrap_cuda_slice(y, device), x.1.shape().clone()))
    })
}

pub(in super::super) fn modulated_norm_dx(
    layout: &TokenLayout,
    scale: usize,
    [x, m, grad]: [Operand; 3],
) -> Result<(CudaStorage, Shape)> {
    let (device, s) = (x.0.device.clone(), Modulated::new(layout, x.1, m.1)?);
    let scale = int(scale)?;
    with_type!(x.0.dtype(), T, {
        let dx = uninitialized::<T>(&device, x.1.shape().elem_count())?;
        let (name, config) = (typed::<T>("modulated_norm_dx"), s.warps()?);
        launch!(
            device,
            MODULATION,
            name,
            config,
            s,
            scale,
            view::<T>(x)?,
            view::<T>(m)?,
            view::<T>(grad)?,
            dx.as_view()
        );
        Ok((CudaStorage::wrap_cuda_slice(dx, device), x.1.shape().clone()))
    })
}

/// The modulation's own values are not needed, its layout is.
pub(in super::super) fn modulated_norm_dm(
    layout: &TokenLayout,
    [shift, scale]: [usize; 2],
    x: Operand,
    m: &Layout,
    grad: Operand,
) -> Result<(CudaStorage, Shape)> {
    let (device, s) = (x.0.device.clone(), Modulated::new(layout, x.1, m)?);
    let (shift, scale) = (int(shift)?, int(scale)?);
    with_type!(x.0.dtype(), T, {
        let moments = uninitialized::<f32>(&device, 2 * s.rows as usize)?;
        let (name, config) = (typed::<T>("row_moments"), s.warps()?);
        launch!(device, MODULATION, name, config, s, view::<T>(x)?, moments.as_view());
        let dm = device.alloc_zeros::<T>(m.shape().elem_count())?;
        let (name, config) = (typed::<T>("modulated_norm_dm"), s.groups());
        launch!(
            device,
            MODULATION,
            name,
            config,
            s,
            shift,
            scale,
            view::<T>(x)?,
            moments.as_view(),
            view::<T>(grad)?,
            dm.as_view()
        );
        Ok((CudaStorage::wrap_cuda_slice(dm, device), m.shape().clone()))
    })
}

/// `base + gate * y`, or `gate * y` without a base.
pub(in super::super) fn gated_residual(
    layout: &TokenLayout,
    gate: usize,
    base: Option<Operand>,
    y: Operand,
    m: Operand,
) -> Result<(CudaStorage, Shape)> {
    let (device, s) = (y.0.device.clone(), Modulated::new(layout, y.1, m.1)?);
    let (gate, based) = (int(gate)?, i32::from(base.is_some()));
    with_type!(y.0.dtype(), T, {
        let out = uninitialized::<T>(&device, y.1.shape().elem_count())?;
        let config = blocks(y.1.shape().elem_count())?;
        launch!(
            device,
            MODULATION,
            typed::<T>("gated_residual"),
            config,
            s,
            gate,
            based,
            view::<T>(base.unwrap_or(y))?,
            view::<T>(y)?,
            view::<T>(m)?,
            out.as_view()
        );
        Ok((CudaStorage::wrap_cuda_slice(out, device), y.1.shape().clone()))
    })
}

pub(in super::super) fn gated_residual_dm(
    layout: &TokenLayout,
    gate: usize,
    grad: Operand,
    y: Operand,
    m: &Layout,
) -> Result<(CudaStorage, Shape)> {
    let (device, s) = (y.0.device.clone(), Modulated::new(layout, y.1, m)?);
    let gate = int(gate)?;
    with_type!(y.0.dtype(), T, {
        let dm = device.alloc_zeros::<T>(m.shape().elem_count())?;
        let (name, config) = (typed::<T>("gated_residual_dm"), s.groups());
        launch!(
            device,
            MODULATION,
            name,
            config,
            s,
            gate,
            view::<T>(grad)?,
            view::<T>(y)?,
            dm.as_view()
        );
        Ok((CudaStorage::wrap_cuda_slice(dm, device), m.shape().clone()))
    })
}
