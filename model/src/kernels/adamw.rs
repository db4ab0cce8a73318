//! AdamW (Loshchilov and Hutter) and moving averages on a device that has a kernel for them.

use candle_core::{Result, Tensor, Var};

/// Coefficients of one update.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// lr / (1 - beta1^n)
    pub step: f32,
    /// 1 / sqrt(1 - beta2^n)
    pub second: f32,
    /// Added to the second moment's root.
    pub eps: f32,
    /// 1 - lr * weight_decay
    pub keep: f32,
    /// Gradients are scaled by it first.
    pub grad_scale: f32,
}

impl AdamW {
    /// Moves `param` by `grad` (absent for zero), its moments, and then its averages towards it by
    /// their shares, in one pass; f32, all of one size, none sharing its values with another.
    ///
    /// `false`, and nothing done, where there is no kernel: on every device but CUDA's, and for more
    /// than four averages.
    ///
    /// # Errors
    /// When something is of another size or on another device.
    pub fn update(
        &self,
        param: &Var,
        grad: Option<&Tensor>,
        moments: [&Tensor; 2],
        averages: &[Tensor],
        shares: &[f32],
    ) -> Result<bool> {
        #[cfg(feature = "cuda")]
        if super::has_kernels(param) && averages.len() <= super::cuda::AVERAGES_MAX {
            let grad = grad.map(Tensor::contiguous).transpose()?;
            let grad = grad.as_ref();
            let update = super::cuda::Update { rates: self, grad, moments, averages, shares };
            param.inplace_op1(&update)?;
            return Ok(true);
        }
        let _ = (param, grad, moments, averages, shares);
        Ok(false)
    }
}
