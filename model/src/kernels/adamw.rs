//! AdamW (Loshchilov and Hutter) and moving averages on a device that has a kernel for them.

use candle_core::{Result, Tensor};

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

/// A parameter and all that moves with it: f32, of one size, none sharing its values with another.
pub struct Moved<'a> {
    /// The parameter.
    pub param: &'a Tensor,
    /// Its gradient, contiguous, or none for zero.
    pub grad: Option<Tensor>,
    /// The first and the second moment.
    pub moments: [&'a Tensor; 2],
    /// Moving averages of the parameter.
    pub averages: &'a [Tensor],
}

impl AdamW {
    /// Moves parameters by their gradients, their moments, and then their averages towards them by
    /// `shares`, reading and writing each value once, in one launch.
    ///
    /// `false`, and nothing done, where there is no kernel: on every device but CUDA's, and for more
    /// than four averages.
    ///
    /// # Errors
    /// When something is of another size or on another device.
    pub fn update(&self, all: &[Moved], shares: &[f32]) -> Result<bool> {
        #[cfg(feature = "cuda")]
        if let Some(one) = all.first()
            && super::cuda::has_kernels(one.param)
            && shares.len() <= super::cuda::AVERAGES_MAX
        {
            super::cuda::adamw(self, all, shares)?;
            return Ok(true);
        }
        let _ = shares;
        Ok(all.is_empty())
    }
}
