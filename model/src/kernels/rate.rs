//! How fast a device multiplies f32 matrices: what a network's rate is measured by.

use super::matmul::cpu_matrix_rate;
use candle_core::{Device, Result, Tensor};
use std::time::Instant;

/// Multiply-accumulates a second of `device`'s f32 matrix product: the best of a few, a tenth of a
/// second in all.
///
/// # Errors
/// When the device fails.
pub fn matrix_rate(device: &Device) -> Result<f64> {
    /// A product takes this long, or its matrices grow.
    const SECONDS: f64 = 0.02;
    const SIDE_MAX: usize = 8192;
    if device.is_cpu() {
        return Ok(cpu_matrix_rate());
    }
    let mut side = 256;
    loop {
        let a = Tensor::ones((side, side), candle_core::DType::F32, device)?;
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            device.synchronize()?;
            let start = Instant::now();
            a.matmul(&a)?;
            device.synchronize()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        if best > SECONDS || side == SIDE_MAX {
            return Ok((side as f64).powi(3) / best);
        }
        side *= 2;
    }
}
