//! Images as the network takes them.

use crate::error::{Result, SampleError};
use candle_core::{Device, Tensor};
use lapflow_ingest::RgbImage;

/// Side of the network's input.
const SIDE: usize = 299;

/// Images of one size as (B, 299, 299, 3) in [-1, 1].
pub(super) fn to_input(images: &[RgbImage], device: &Device) -> Result<Tensor> {
    let first = images.first().ok_or_else(|| SampleError::setting("images", "are none"))?;
    let (height, width) = (first.height as usize, first.width as usize);
    let mut values = Vec::with_capacity(images.len() * height * width * 3);
    for image in images {
        if (image.width, image.height) != (first.width, first.height) {
            let reason =
                format!("differ in size: {width}x{height} and {}x{}", image.width, image.height);
            return Err(SampleError::setting("images", reason));
        }
        values.extend(image.pixels.iter().map(|byte| f32::from(*byte) / 255.0));
    }
    let x = Tensor::from_vec(values, (images.len(), height, width * 3), device)?;
    let rows = matrix(height, device)?.broadcast_matmul(&x)?; // (B, 299, W 3)
    let columns = rows.reshape((images.len() * SIDE, width, 3))?;
    let resized = matrix(width, device)?.broadcast_matmul(&columns)?; // (B 299, 299, 3)
    Ok(resized.affine(2.0, -1.0)?.reshape((images.len(), SIDE, SIDE, 3))?)
}

/// The (1, 299, `size`) matrix of linear interpolation with half-pixel centres.
fn matrix(size: usize, device: &Device) -> Result<Tensor> {
    let mut weights = vec![0f32; SIDE * size];
    for (i, row) in weights.chunks_mut(size).enumerate() {
        let at = ((i as f32 + 0.5) * (size as f32 / SIDE as f32) - 0.5).max(0.0);
        let low = (at as usize).min(size - 1);
        let share = at - low as f32;
        row[low] += 1.0 - share;
        row[(low + 1).min(size - 1)] += share;
    }
    Ok(Tensor::from_vec(weights, (1, SIDE, size), device)?)
}
