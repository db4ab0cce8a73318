//! GELU (`gelu.cu`).

use super::{Operand, blocks, launch, ptx, typed, uninitialized, view, with_type};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaStorage, cudarc::driver::LaunchConfig};
use candle_core::{Result, Shape};

pub(in super::super) fn gelu(x: Operand) -> Result<(CudaStorage, Shape)> {
    let (device, shape) = (x.0.device.clone(), x.1.shape());
    let count = shape.elem_count();
    with_type!(x.0.dtype(), T, {
        let y = uninitialized::<T>(&device, count)?;
        launch!(
            device,
            GELU,
            typed::<T>("gelu"),
            blocks(count)?,
            count,
            view::<T>(x)?,
            y.as_view()
        );
        Ok((CudaStorage::wrap_cuda_slice(y, device), shape.clone()))
    })
}

pub(in super::super) fn gelu_dx(x: Operand, grad: Operand) -> Result<(CudaStorage, Shape)> {
    let (device, shape) = (x.0.device.clone(), x.1.shape());
    let count = shape.elem_count();
    with_type!(x.0.dtype(), T, {
        let dx = uninitialized::<T>(&device, count)?;
        let (name, config) = (typed::<T>("gelu_dx"), blocks(count)?);
        launch!(device, GELU, name, config, count, view::<T>(x)?, view::<T>(grad)?, dx.as_view());
        Ok((CudaStorage::wrap_cuda_slice(dx, device), shape.clone()))
    })
}
