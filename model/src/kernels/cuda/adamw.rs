//! AdamW and moving averages (`adamw.cu`).

use super::{blocks, int, launch, ptx, view};
use crate::kernels::AdamW;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, LaunchConfig};
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};

/// Averages that the kernel has arguments for.
pub(in super::super) const AVERAGES_MAX: usize = 4;

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

/// The update of a parameter, to which everything here belongs and has its size.
pub(in super::super) struct Update<'a> {
    pub rates: &'a AdamW,
    pub grad: Option<&'a Tensor>,
    pub moments: [&'a Tensor; 2],
    pub averages: &'a [Tensor],
    pub shares: &'a [f32],
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        bail!("adamw: the parameter is not on a CUDA device")
    }

    fn cuda_fwd(&self, param: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let (device, count) = (param.device.clone(), layout.shape().elem_count());
        let tensors = self.moments.into_iter().chain(self.averages).chain(self.grad);
        let held: Vec<_> = tensors.map(Tensor::storage_and_layout).collect();
        let mut views = Vec::with_capacity(held.len());
        for (storage, layout) in &held {
            let Storage::Cuda(storage) = &**storage else {
                bail!("adamw: state on another device")
            };
            if layout.shape().elem_count() != count {
                bail!("adamw: {:?} for {count} values", layout.shape())
            }
            views.push(view::<f32>((storage, layout))?);
        }
        let param = view::<f32>((&*param, layout))?;
        let last = if self.grad.is_some() { views.pop() } else { None };
        let grad = last.as_ref().unwrap_or(&param).slice(..);
        // What is not there is never touched.
        let place = |i: usize| views.get(i).unwrap_or(&param).slice(..);
        let mut share = [0f32; AVERAGES_MAX];
        share[..self.shares.len()].copy_from_slice(self.shares);
        let averages = Averages { count: int(self.averages.len())?, share };
        launch!(
            device,
            ADAMW,
            "adamw_f32",
            blocks(count)?,
            count,
            *self.rates,
            averages,
            i32::from(self.grad.is_some()),
            grad,
            param.slice(..),
            place(0),
            place(1),
            place(2),
            place(3),
            place(4),
            place(5)
        );
        Ok(())
    }
}
