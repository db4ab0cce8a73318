//! The kernels' twins on a CUDA device: `*.cu` beside this file, f32 and bf16, computing in f32.
//!
//! Each function here gives what the operation of the same name gives on the CPU. No GPU has run
//! them yet; docs/cuda.md says how they are checked.

mod adamw;
mod attention;
mod elementwise;
mod group_norm;
mod modulation;
mod pyramid;

pub(super) use adamw::{AVERAGES_MAX, adamw};
pub(super) use attention::{attention, attention_backward};
pub(super) use elementwise::{gelu, gelu_dx};
pub(super) use group_norm::{Groups, group_norm, group_norm_backward};
pub(super) use modulation::{
    gated_residual, gated_residual_dm, modulated_norm, modulated_norm_dm, modulated_norm_dx,
};
pub(super) use pyramid::{pyramid_add_up, pyramid_down};

use super::TokenLayout;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, DeviceRepr, LaunchConfig, sys::CUfunction_attribute_enum,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::{DType, Layout, Result, Tensor, bail};

/// The kernels' PTX by file.
mod ptx {
    include!(concat!(env!("OUT_DIR"), "/ptx.rs"));
}

/// Threads of a warp.
const WARP: usize = 32;
/// Threads of a block that gives every warp or thread its own work.
const BLOCK: usize = 256;
/// Shared memory that a block gets without asking, and the attribute by which it asks.
const SHARED_BYTES: u32 = 48 << 10;
const SHARED_LIMIT: CUfunction_attribute_enum =
    CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
/// Levels that a kernel's layout has room for.
const LEVELS_MAX: usize = 8;

/// A tensor as an operation gets it.
pub(super) type Operand<'a> = (&'a CudaStorage, &'a Layout);

/// Whether the kernels take a tensor of this kind.
pub(super) fn has_kernels(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.dtype(), DType::F32 | DType::BF16)
}

/// [`TokenLayout`] as `common.cuh` has it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Levels {
    batch: i32,
    levels: i32,
    tokens: [i32; LEVELS_MAX],
}

impl Levels {
    fn new(layout: &TokenLayout) -> Result<Self> {
        if layout.levels() > LEVELS_MAX {
            bail!("{} levels, the CUDA kernels take at most {LEVELS_MAX}", layout.levels())
        }
        let mut tokens = [0; LEVELS_MAX];
        for (level, tokens) in tokens.iter_mut().enumerate().take(layout.levels()) {
            *tokens = int(layout.tokens(level))?;
        }
        Ok(Self { batch: int(layout.batch())?, levels: int(layout.levels())?, tokens })
    }
}

fn int(value: usize) -> Result<i32> {
    i32::try_from(value).map_err(candle_core::Error::wrap)
}

/// The values of a contiguous tensor.
fn view<'a, T: CudaDType>((storage, layout): Operand<'a>) -> Result<CudaView<'a, T>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a CUDA kernel wants contiguous tensors, got strides {:?}", layout.stride())
    };
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// As many blocks of [`BLOCK`] threads as `threads` take.
fn blocks(threads: usize) -> Result<LaunchConfig> {
    Ok(LaunchConfig {
        grid_dim: (int(threads.div_ceil(BLOCK))? as u32, 1, 1),
        block_dim: (BLOCK as u32, 1, 1),
        shared_mem_bytes: 0,
    })
}

/// `NAME_f32` or `NAME_bf16`.
fn typed<T: candle_core::WithDType>(name: &str) -> String {
    format!("{name}_{}", T::DTYPE.as_str())
}

fn uninitialized<T: DeviceRepr>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every kernel here writes each value of what it is given to fill.
    unsafe { device.alloc::<T>(len) }
}

/// Launches a kernel of a file with its arguments in order.
///
/// The one place where what a kernel may touch is promised: views are of the lengths that the shapes
/// give, and shapes are checked where an operation is made.
macro_rules! launch {
    ($device:expr, $file:ident, $name:expr, $config:expr, $($argument:expr),+ $(,)?) => {{
        use candle_core::cuda_backend::{WrapErr, cudarc::driver::PushKernelArg};
        let config: LaunchConfig = $config;
        let function = $device.get_or_load_custom_func(&$name, stringify!($file), ptx::$file)?;
        if config.shared_mem_bytes > $crate::kernels::cuda::SHARED_BYTES {
            let bytes = $crate::kernels::cuda::int(config.shared_mem_bytes as usize)?;
            function.set_attribute($crate::kernels::cuda::SHARED_LIMIT, bytes).w()?;
        }
        let mut arguments = function.builder();
        $(let argument = $argument; arguments.arg(&argument);)+
        // SAFETY: the kernel's parameters are these, and it stays inside them (see above).
        unsafe { arguments.launch(config) }.w()?;
    }};
}
use launch;

/// Runs `$body` with `$T` the type of the values.
macro_rules! with_type {
    ($dtype:expr, $T:ident, $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            other => candle_core::bail!("the CUDA kernels take f32 and bf16, not {other:?}"),
        }
    };
}
use with_type;
