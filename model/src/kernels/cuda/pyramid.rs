//! The steps of a Laplacian pyramid (`pyramid.cu`).

use super::{Operand, blocks, int, launch, ptx, typed, uninitialized, view, with_type};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaStorage, cudarc::driver::LaunchConfig};
use candle_core::{Result, Shape};

pub(in super::super) fn pyramid_down(x: Operand) -> Result<(CudaStorage, Shape)> {
    let (device, (b, c, h, w)) = (x.0.device.clone(), x.1.shape().dims4()?);
    let shape = Shape::from((b, c, h / 2, w / 2));
    let (count, h, w) = (shape.elem_count(), int(h / 2)?, int(w / 2)?);
    with_type!(x.0.dtype(), T, {
        let means = uninitialized::<T>(&device, count)?;
        let (name, config) = (typed::<T>("pyramid_down"), blocks(count)?);
        launch!(device, PYRAMID, name, config, count, h, w, view::<T>(x)?, means.as_view());
        Ok((CudaStorage::wrap_cuda_slice(means, device), shape))
    })
}

pub(in super::super) fn pyramid_add_up(
    level: Operand,
    coarse: Operand,
    factor: f32,
) -> Result<(CudaStorage, Shape)> {
    let (device, shape) = (level.0.device.clone(), level.1.shape());
    let (_, _, h, w) = shape.dims4()?;
    let (count, h, w) = (shape.elem_count(), int(h)?, int(w)?);
    with_type!(level.0.dtype(), T, {
        let sums = uninitialized::<T>(&device, count)?;
        let (name, config) = (typed::<T>("pyramid_add_up"), blocks(count)?);
        let (level, coarse) = (view::<T>(level)?, view::<T>(coarse)?);
        launch!(device, PYRAMID, name, config, count, h, w, factor, level, coarse, sums.as_view());
        Ok((CudaStorage::wrap_cuda_slice(sums, device), shape.clone()))
    })
}
