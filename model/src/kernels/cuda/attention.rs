//! Attention over levels (`attention.cu`).

use super::{Levels, Operand, int, launch, ptx, typed, uninitialized, view, with_type};
use crate::kernels::{Mask, TokenLayout};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{
    CudaStorage,
    cudarc::driver::{DeviceRepr, LaunchConfig},
};
use candle_core::{DType, Result, Shape, bail};

/// Threads of a block.
const THREADS: usize = 128;
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
    tiles: Tiles,
}

/// Shared memory of a kernel's block in bytes: tokens' head vectors lie in it, padded.
struct Tiles {
    /// Queries or keys of a block.
    rows: usize,
    forward: usize,
    dq: usize,
    dkv: usize,
}

impl Tiles {
    /// Of `attention_f32.cuh`: scores lie beside two or four tiles of vectors.
    fn f32(padded: usize) -> Self {
        let rows = 32;
        let bytes = |vectors, scores| 4 * rows * (vectors * (padded + 1) + scores * (rows + 1));
        Self { rows, forward: bytes(2, 1), dq: bytes(4, 1), dkv: bytes(4, 2) }
    }

    /// Of `attention_bf16.cuh`: a block's tile meets others of as many or half as many tokens.
    fn bf16(padded: usize) -> Self {
        let rows = 64;
        let bytes = |tokens| 2 * tokens * (padded + 8);
        Self { rows, forward: bytes(3 * rows), dq: bytes(3 * rows), dkv: bytes(3 * rows) }
    }
}

impl Call {
    fn new(
        layout: &TokenLayout,
        heads: usize,
        mask: Mask,
        columns: usize,
        dtype: DType,
    ) -> Result<Self> {
        let dim = columns / 3 / heads;
        let Some(padded) = HEAD_SIZES.into_iter().find(|size| *size >= dim) else {
            bail!("attention: a head of {dim}, the CUDA kernels take at most {}", HEAD_SIZES[3])
        };
        let tiles = if dtype == DType::BF16 { Tiles::bf16(padded) } else { Tiles::f32(padded) };
        let of_level = |level| layout.tokens(level).div_ceil(tiles.rows);
        let count = (0..layout.levels()).map(of_level).sum();
        let mask = match mask {
            Mask::Causal => 0,
            Mask::None => 1,
            Mask::Own => 2,
        };
        let scale = (dim as f32).sqrt().recip();
        let (levels, heads, dim) = (Levels::new(layout)?, int(heads)?, int(dim)?);
        let attention = Attention { levels, mask, heads, dim, scale };
        let grid = (int(count)? as u32, heads as u32, levels.batch as u32);
        Ok(Self { attention, padded, grid, tiles })
    }

    fn config(&self, shared_bytes: usize) -> LaunchConfig {
        LaunchConfig {
            grid_dim: self.grid,
            block_dim: (THREADS as u32, 1, 1),
            shared_mem_bytes: shared_bytes as u32,
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
    let call = Call::new(layout, heads, mask, columns, qkv.0.dtype())?;
    with_type!(qkv.0.dtype(), T, {
        let out = uninitialized::<T>(&device, rows * columns / 3)?;
        let config = call.config(call.tiles.forward);
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
    let call = Call::new(layout, heads, mask, columns, qkv.0.dtype())?;
    with_type!(qkv.0.dtype(), T, {
        let statistics = uninitialized::<f32>(&device, rows * heads * 2)?;
        let dqkv = uninitialized::<T>(&device, rows * columns)?;
        let name = |part: &str| typed::<T>(&format!("attention_{part}_{}", call.padded));
        let config = call.config(call.tiles.forward);
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
        for (part, bytes) in [("dq", call.tiles.dq), ("dkv", call.tiles.dkv)] {
            let config = call.config(bytes);
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
