//! From [-1, 1] to bytes.

use crate::error::{Result, SampleError};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

/// How a value becomes a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// The nearest byte: 127.5 (x + 1), rounded.
    #[default]
    Nearest,
    /// What DiT's and ADM's sampling scripts do: 127.5 x + 128 (DiT) with the fraction cut off. It
    /// differs from the nearest byte only where f32 rounds the two sums apart.
    Truncate,
}

/// Images (B, 3, H, W) in [-1, 1], f32, as one buffer of H W 3 bytes each; values outside are
/// clamped.
///
/// # Errors
/// For a tensor of another shape, or one with values that are not numbers.
pub fn to_pixels(images: &Tensor, rounding: Rounding) -> Result<Vec<Vec<u8>>> {
    let (batch, channels, height, width) = images.dims4()?;
    if channels != 3 {
        return Err(SampleError::setting("images", format!("have {channels} channels, not 3")));
    }
    let values = images.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?.flatten_all()?;
    let values: Vec<f32> = values.to_vec1()?;
    if let Some(at) = values.iter().position(|v| v.is_nan()) {
        let row = at / (height * width * 3);
        return Err(SampleError::setting("images", format!("row {row} of {batch} holds NaN")));
    }
    let byte = |v: &f32| match rounding {
        Rounding::Nearest => (127.5 * (v + 1.0)).round().clamp(0.0, 255.0) as u8,
        Rounding::Truncate => (127.5 * v + 128.0).clamp(0.0, 255.0) as u8,
    };
    Ok(values.chunks(height * width * 3).map(|image| image.iter().map(byte).collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn bytes_survive_the_way_to_values_and_back() {
        for byte in 0..=255u8 {
            let value = f32::from(byte) / 127.5 - 1.0;
            let image = Tensor::full(value, (1, 3, 1, 1), &Device::Cpu).unwrap();
            for rounding in [Rounding::Nearest, Rounding::Truncate] {
                assert_eq!(to_pixels(&image, rounding).unwrap()[0], [byte; 3]);
            }
        }
    }

    #[test]
    fn channels_interleave_and_values_clamp() {
        let values: Vec<f32> = vec![-2.0, -1.0, 0.0, 1.0, 0.5, 7.0];
        let image = Tensor::from_vec(values, (1, 3, 1, 2), &Device::Cpu).unwrap();
        assert_eq!(to_pixels(&image, Rounding::Nearest).unwrap()[0], [0, 128, 191, 0, 255, 255]);
        let nan = Tensor::full(f32::NAN, (2, 3, 1, 1), &Device::Cpu).unwrap();
        assert!(to_pixels(&nan, Rounding::Nearest).unwrap_err().to_string().contains("row 0"));
    }
}
