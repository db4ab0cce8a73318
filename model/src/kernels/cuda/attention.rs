//! Attention over levels (`attention.cu`).

use super::{Levels, Operand, int, launch, ptx, typed, uninitialized, view, with_type};
use crate::kernels::{Mask, TokenLayout};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{
    CudaStorage,
    cudarc::driver::{DeviceRepr, LaunchConfig},
};
use candle_core::{Result, Shape, bail};

/// Queries or keys of a block, as in `attention.cu`.
const TILE: usize = 32;
/// Neighbouring threads that share a row of a tile.
const QUARTERS: usize = 4;
/// Head sizes that there are kernels for; others are padded to the next.
const HEAD_SIZES: [usize; 4] = [32, 64, 80, 128];

/// What all of the kernels take first, as `attention.cu` has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attention {
    levels: Levels,
    mask: i32,
    heads: i32,
    dim: i32,
    scale: f32,
}

// SAFETY: plain numbers without padding, the same as the struct `Attention` of attention.cu.
unsafe impl DeviceRepr for Attention {}

/// Which kernels run, and in how many blocks.
struct Call {
    attention: Attention,
    /// The padded size of a head.
    padded: usize,
    grid: (u32, u32, u32),
}

impl Call {
    fn new(layout: &TokenLayout, heads: usize, mask: Mask, columns: usize) -> Result<Self> {
        let dim = columns / 3 / heads;
        let Some(padded) = HEAD_SIZES.into_iter().find(|size| *size >= dim) else {
            bail!("attention: a head of {dim}, the CUDA kernels take at most {}", HEAD_SIZES[3])
        };
        let tiles = (0..layout.levels()).map(|level| layout.tokens(level).div_ceil(TILE)).sum();
        let mask = match mask {
            Mask::Causal => 0,
            Mask::None => 1,
            Mask::Own => 2,
        };
        let scale = (dim as f32).sqrt().recip();
        let (levels, heads, dim) = (Levels::new(layout)?, int(heads)?, int(dim)?);
        let attention = Attention { levels, mask, heads, dim, scale };
        let grid = (int(tiles)? as u32, heads as u32, levels.batch as u32);
        Ok(Self { attention, padded, grid })
    }

    /// A launch with shared memory for `vectors` tiles of head vectors and `scores` tiles of scores.
    fn config(&self, vectors: usize, scores: usize) -> LaunchConfig {
        let floats = TILE * (vectors * (self.padded + 1) + scores * (TILE + 1));
        LaunchConfig {
            grid_dim: self.grid,
            block_dim: ((TILE * QUARTERS) as u32, 1, 1),
            shared_mem_bytes: (4 * floats) as u32,
        }
    }
}

pub(in super::super) fn attention(
    layout: &TokenLayout,
    heads: usize,
    mask: Mask,
    qkv: Operand,
) -> Result<(CudaStorage, Shape)> {
    let (rows, columns) = qkv.1.shape().dims2()?;
    let device = qkv.0.device.clone();
    let call = Call::new(layout, heads, mask, columns)?;
    with_type!(qkv.0.dtype(), T, {
        let out = uninitialized::<T>(&device, rows * columns / 3)?;
        let config = call.config(2, 1);
        let name = typed::<T>(&format!("attention_{}", call.padded));
        launch!(device, ATTENTION, name, config, call.attention, view::<T>(qkv)?, out.as_view());
        Ok((CudaStorage::wrap_cuda_slice(out, device), (rows, columns / 3).into()))
    })
}

pub(in super::super) fn attention_backward(
    layout: &TokenLayout,
    heads: usize,
    mask: Mask,
    qkv: Operand,
    grad: Operand,
) -> Result<(CudaStorage, Shape)> {
    let (rows, columns) = qkv.1.shape().dims2()?;
    let device = qkv.0.device.clone();
    let call = Call::new(layout, heads, mask, columns)?;
    with_type!(qkv.0.dtype(), T, {
        let statistics = uninitialized::<f32>(&device, rows * heads * 2)?;
        let dqkv = uninitialized::<T>(&device, rows * columns)?;
        let name = |part: &str| typed::<T>(&format!("attention_{part}_{}", call.padded));
        let config = call.config(2, 1);
        launch!(
            device,
            ATTENTION,
            name("statistics"),
            config,
            call.attention,
            view::<T>(qkv)?,
            view::<T>(grad)?,
            statistics.as_view()
        );
        for (part, scores) in [("dq", 1), ("dkv", 2)] {
            let config = call.config(4, scores);
            launch!(
                device,
                ATTENTION,
                name(part),
                config,
                call.attention,
                view::<T>(qkv)?,
                view::<T>(grad)?,
                statistics.as_view(),
                dqkv.as_view()
            );
        }
        Ok((CudaStorage::wrap_cuda_slice(dqkv, device), (rows, columns).into()))
    })
}
