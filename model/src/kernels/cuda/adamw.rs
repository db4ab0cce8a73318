//! AdamW and moving averages of many parameters in one launch (`adamw.cu`).

use super::{BLOCK, int, launch, ptx, view};
use crate::kernels::{AdamW, Moved};
use candle_core::cuda_backend::cudarc::driver::{CudaView, DevicePtr, DeviceRepr, LaunchConfig};
use candle_core::{Layout, Result, Storage, Tensor, bail};

/// Averages that the kernel has room for.
pub(in super::super) const AVERAGES_MAX: usize = 4;
/// Values of a block.
const BLOCK_VALUES: usize = 16 * BLOCK;

/// As `adamw.cu` has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Averages {
    count: i32,
    share: [f32; AVERAGES_MAX],
}

// SAFETY: plain numbers without padding, the same as the structs of adamw.cu.
unsafe impl DeviceRepr for Averages {}
unsafe impl DeviceRepr for AdamW {}

/// Moves all parameters, of which there is at least one, as [`AdamW::update`] says.
pub(in super::super) fn adamw(rates: &AdamW, all: &[Moved], shares: &[f32]) -> Result<()> {
    let device = all[0].param.device().as_cuda_device()?.clone();
    let stream = device.cuda_stream();
    let mut share = [0f32; AVERAGES_MAX];
    share[..shares.len()].copy_from_slice(shares);
    let averages = Averages { count: int(shares.len())?, share };
    // Storages stay locked, and the stream knows of their use, until the kernel is on it.
    let held: Vec<Vec<_>> =
        all.iter().map(|moved| tensors(moved).map(Tensor::storage_and_layout).collect()).collect();
    let views = held.iter().zip(all).map(|(held, moved)| {
        let count = moved.param.elem_count();
        held.iter().map(|(storage, layout)| values(storage, layout, count)).collect()
    });
    let views = views.collect::<Result<Vec<Vec<_>>>>()?;
    let (mut uses, mut words, mut blocks) = (Vec::new(), Vec::new(), 0);
    for (moved, views) in all.iter().zip(&views) {
        let count = moved.param.elem_count();
        let (mut pointers, used): (Vec<_>, Vec<_>) =
            views.iter().map(|view| view.device_ptr(&stream)).unzip();
        uses.push(used);
        let grad = moved.grad.as_ref().and_then(|_| pointers.pop()).unwrap_or(0);
        pointers.resize(3 + AVERAGES_MAX, 0);
        // Moved of adamw.cu, a word a field.
        words.extend([blocks as u64, count as u64, grad]);
        words.extend(pointers);
        blocks += count.div_ceil(BLOCK_VALUES);
    }
    let words = device.clone_htod(&words)?;
    let config = LaunchConfig {
        grid_dim: (int(blocks)? as u32, 1, 1),
        block_dim: (BLOCK as u32, 1, 1),
        shared_mem_bytes: 0,
    };
    launch!(device, ADAMW, "adamw_f32", config, words.as_view(), int(all.len())?, *rates, averages);
    Ok(())
}

/// In the order of `adamw.cu`, but the gradient last.
fn tensors<'a>(moved: &'a Moved) -> impl Iterator<Item = &'a Tensor> {
    let Moved { param, grad, moments, averages } = moved;
    std::iter::once(*param).chain(*moments).chain(*averages).chain(grad)
}

fn values<'a>(storage: &'a Storage, layout: &'a Layout, count: usize) -> Result<CudaView<'a, f32>> {
    let Storage::Cuda(storage) = storage else { bail!("adamw: not on the GPU") };
    if layout.shape().elem_count() != count {
        bail!("adamw: {:?} for {count} values", layout.shape())
    }
    view::<f32>((storage, layout))
}
