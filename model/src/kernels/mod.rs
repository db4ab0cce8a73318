//! Kernels with exact gradients, as Candle custom operations: on the CPU in f32, on CUDA devices
//! (`cuda/`) in f32 and bf16; everything else takes [`plain`] compositions of Candle's operations.
//!
//! The transformer's kernels work on one `(rows, width)` matrix that holds the tokens of every
//! active level, laid out by [`TokenLayout`]. Each is tested against its plain composition.
#![allow(unsafe_code)]

mod adamw;
mod attention;
mod check;
mod conv2d;
mod conv2d_im2col;
mod conv2d_winograd;
mod conv2d_winograd_points;
#[cfg(feature = "cuda")]
mod cuda;
mod fresh;
mod gelu;
mod group_norm;
mod layout;
mod linear;
mod matmul;
mod norm;
mod panels;
pub mod plain;
mod pyramid;
mod rate;
mod recorder;
mod residual;
mod transfer;
mod upsample;
mod vector;

pub use adamw::{AdamW, Moved};
pub(crate) use attention::attention_backward;
pub use attention::{Mask, attention};
pub use check::{Checked, check, largest};
pub use conv2d::{ConvGeometry, conv2d};
pub use gelu::gelu;
pub(crate) use gelu::gelu_backward;
pub use group_norm::{Activation, group_norm};
pub use layout::TokenLayout;
pub use linear::linear;
pub(crate) use linear::{PackedLinear, linear_backward};
pub use norm::modulated_norm;
pub(crate) use norm::modulated_norm_backward;
pub use pyramid::{pyramid_add_up, pyramid_down};
pub use rate::matrix_rate;
pub use recorder::Recorder;
pub use residual::gated_residual;
pub(crate) use residual::gated_residual_backward;
pub use transfer::{Download, InFlight, Upload};
pub use upsample::upsample;

use candle_core::{CpuStorage, Layout, Result, Shape, Storage, Tensor, bail};

/// Whether there are kernels of ours for a tensor; others take the [`plain`] compositions.
fn has_kernels(x: &Tensor) -> bool {
    #[cfg(feature = "cuda")]
    if cuda::has_kernels(x) {
        return true;
    }
    x.device().is_cpu()
}

/// The values of a contiguous f32 tensor on the CPU.
fn values<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{op}: wants contiguous tensors, got strides {:?}", layout.stride())
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Lends the values of contiguous f32 tensors on the CPU to `f`, for backward passes that make
/// several gradients at once.
fn with_values<const N: usize, R>(
    op: &str,
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> R,
) -> Result<R> {
    let storages = tensors.map(Tensor::storage_and_layout);
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&storages) {
        let Storage::Cpu(storage) = &**storage else { bail!("{op}: not on the CPU") };
        *slice = values(op, storage, layout)?;
    }
    Ok(f(slices))
}

/// A kernel's result as Candle wants it.
fn output(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}
