//! Group normalisation (`group_norm.cu`), f32.

use super::{BLOCK, Operand, blocks, int, launch, ptx, uninitialized, view};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, LaunchConfig};
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

/// Channels side by side in a block of the weights' gradients, and parts that rows are summed in.
const LANES: usize = 32;
const PARTS: usize = 64;

/// What all kernels take first, as `group_norm.cu` has it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in super::super) struct Groups {
    images: i32,
    pixels: i32,
    channels: i32,
    groups: i32,
    silu: i32,
    eps: f32,
}

// SAFETY: plain numbers without padding, the same as the struct `Groups` of group_norm.cu.
unsafe impl DeviceRepr for Groups {}

impl Groups {
    /// Of images `(B, H, W, C)`.
    pub(in super::super) fn new(x: &Shape, groups: usize, eps: f64, silu: bool) -> Result<Self> {
        let (images, height, width, channels) = x.dims4()?;
        Ok(Self {
            images: int(images)?,
            pixels: int(height * width)?,
            channels: int(channels)?,
            groups: int(groups)?,
            silu: i32::from(silu),
            eps: eps as f32,
        })
    }

    /// A block for each group of each image.
    fn by_group(self) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (self.groups as u32, self.images as u32, 1),
            block_dim: (BLOCK as u32, 1, 1),
            shared_mem_bytes: 0,
        }
    }

    fn moments(self, device: &CudaDevice, x: &CudaView<f32>) -> Result<CudaSlice<f32>> {
        let moments = uninitialized::<f32>(device, (2 * self.images * self.groups) as usize)?;
        let (config, view) = (self.by_group(), moments.as_view());
        launch!(device, GROUP_NORM, "group_norm_moments", config, self, x.slice(..), view);
        Ok(moments)
    }
}

pub(in super::super) fn group_norm(
    s: Groups,
    x: Operand,
    weight: Operand,
    bias: Operand,
) -> Result<(CudaStorage, Shape)> {
    let (device, shape) = (x.0.device.clone(), x.1.shape().clone());
    let (x, count) = (view::<f32>(x)?, shape.elem_count());
    let y = uninitialized::<f32>(&device, count)?;
    if count > 0 {
        let moments = s.moments(&device, &x)?;
        let (weight, bias) = (view::<f32>(weight)?, view::<f32>(bias)?);
        let (moments, out, config) = (moments.as_view(), y.as_view(), blocks(count)?);
        launch!(device, GROUP_NORM, "group_norm", config, s, x, weight, bias, moments, out);
    }
    Ok((CudaStorage::wrap_cuda_slice(y, device), shape))
}

/// Gradients of images, weights `(C)` and biases `(C)`.
pub(in super::super) fn group_norm_backward(
    s: Groups,
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    grad: &Tensor,
) -> Result<[Tensor; 3]> {
    let affine = Tensor::stack(&[weight, bias], 0)?;
    let grad = grad.contiguous()?;
    let dx = x.apply_op3_no_bwd(&affine, &grad, &Backward { s, of_images: true })?;
    let sums = x.apply_op3_no_bwd(&affine, &grad, &Backward { s, of_images: false })?.sum(0)?;
    Ok([dx, sums.get(0)?, sums.get(1)?])
}

/// Gradients of images, or the partial sums `(PARTS, 2, C)` of those of weights and biases.
struct Backward {
    s: Groups,
    of_images: bool,
}

impl CustomOp3 for Backward {
    fn name(&self) -> &'static str {
        "group_norm_backward"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        bail!("group_norm: the gradients are not on a CUDA device")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        affine: &CudaStorage,
        affine_layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (s, device, shape) = (self.s, x.device().clone(), layout.shape().clone());
        let (x, affine) = (view::<f32>((x, layout))?, view::<f32>((affine, affine_layout))?);
        let grad = view::<f32>((grad, grad_layout))?;
        let channels = s.channels as usize;
        let (weight, bias) = (affine.slice(..channels), affine.slice(channels..));
        let moments = s.moments(&device, &x)?;
        let moments = moments.as_view();
        if !self.of_images {
            let sums = uninitialized::<f32>(&device, PARTS * 2 * channels)?;
            let grid_dim = (int(channels.div_ceil(LANES))? as u32, PARTS as u32, 1);
            let config = LaunchConfig { grid_dim, ..s.by_group() };
            let (name, out) = ("group_norm_dweight", sums.as_view());
            launch!(device, GROUP_NORM, name, config, s, x, weight, bias, grad, moments, out);
            return Ok((CudaStorage::wrap_cuda_slice(sums, device), (PARTS, 2, channels).into()));
        }
        let means = uninitialized::<f32>(&device, moments.len())?;
        let dx = uninitialized::<f32>(&device, shape.elem_count())?;
        let views = || (x.slice(..), weight.slice(..), bias.slice(..), grad.slice(..));
        let ((x, w, b, g), of) = (views(), moments.slice(..));
        let (name, config, out) = ("group_norm_means", s.by_group(), means.as_view());
        launch!(device, GROUP_NORM, name, config, s, x, w, b, g, of, out);
        let ((x, w, b, g), means) = (views(), means.as_view());
        let (name, config, out) = ("group_norm_dx", blocks(shape.elem_count())?, dx.as_view());
        launch!(device, GROUP_NORM, name, config, s, x, w, b, g, moments, means, out);
        Ok((CudaStorage::wrap_cuda_slice(dx, device), shape))
    }
}
