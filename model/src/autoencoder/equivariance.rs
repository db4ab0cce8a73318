//! The transformations that EQ-VAE regularises with: bilinear scaling and quarter turns.

use candle_core::{Result, Tensor};
use rand::{Rng, RngExt};

/// Numerators of the scales `s / 32` that EQ-VAE draws from.
const SCALES: std::ops::RangeInclusive<usize> = 8..=31;
const SCALE_UNIT: usize = 32;

/// A scaling to `height x width` latents followed by quarter turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transform {
    /// Latent rows after scaling.
    pub height: usize,
    /// Latent columns after scaling.
    pub width: usize,
    /// Anticlockwise turns by 90 degrees, 0 to 3.
    pub turns: usize,
}

impl Transform {
    /// Draws a scale from 8/32 to 31/32, rounded to whole latents, and a number of turns.
    pub fn draw(rng: &mut impl Rng, height: usize, width: usize) -> Self {
        let scale = rng.random_range(SCALES);
        let scaled = |size: usize| ((size * scale + SCALE_UNIT / 2) / SCALE_UNIT).max(1);
        Self { height: scaled(height), width: scaled(width), turns: rng.random_range(0..4) }
    }

    /// Applies it to `x` `[B, C, h, w]` that has `factor` pixels a latent pixel: 1 for latents.
    ///
    /// # Errors
    /// When `x` has not four dimensions.
    pub fn apply(&self, x: &Tensor, factor: usize) -> Result<Tensor> {
        turn(&resize(x, self.height * factor, self.width * factor)?, self.turns)
    }
}

/// Bilinear interpolation of `x` `[B, C, H, W]`, pixel centres aligned, without antialiasing: at
/// half the size it is the 2x2 mean.
///
/// # Errors
/// When `x` has not four dimensions.
pub fn resize(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let along_width = interpolation(w, width, x)?; // [W, width]
    let along_height = interpolation(h, height, x)?; // [H, height]
    let x = x.contiguous()?.reshape((b * c * h, w))?.matmul(&along_width)?; // [BCH, width]
    let x = x.reshape((b * c, h, width))?.transpose(1, 2)?.contiguous()?; // [BC, width, H]
    let x = x.reshape((b * c * width, h))?.matmul(&along_height)?; // [BC width, height]
    x.reshape((b, c, width, height))?.transpose(2, 3)?.contiguous()
}

/// The matrix `[from, to]` that interpolates a row of `from` values to `to`, like `x`.
fn interpolation(from: usize, to: usize, like: &Tensor) -> Result<Tensor> {
    let mut matrix = vec![0f32; from * to];
    let ratio = from as f64 / to as f64;
    for target in 0..to {
        let source = ((target as f64 + 0.5) * ratio - 0.5).max(0.0);
        let low = (source as usize).min(from - 1);
        let high = (low + 1).min(from - 1);
        let share = source - low as f64;
        matrix[low * to + target] += (1.0 - share) as f32;
        matrix[high * to + target] += share as f32;
    }
    Tensor::from_vec(matrix, (from, to), like.device())?.to_dtype(like.dtype())
}

/// Turns `x` `[B, C, H, W]` anticlockwise by `turns` times 90 degrees.
fn turn(x: &Tensor, turns: usize) -> Result<Tensor> {
    match turns % 4 {
        0 => Ok(x.clone()),
        1 => x.transpose(2, 3)?.contiguous()?.flip(&[2]),
        2 => x.contiguous()?.flip(&[2, 3]),
        _ => x.contiguous()?.flip(&[2])?.transpose(2, 3)?.contiguous(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn ramp(shape: (usize, usize, usize, usize)) -> Tensor {
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap().reshape(shape).unwrap()
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn half_size_is_the_mean_of_four() {
        let x = ramp((2, 3, 6, 8));
        assert_eq!(flat(&resize(&x, 3, 4).unwrap()), flat(&x.avg_pool2d(2).unwrap()));
    }

    /// `torch.nn.functional.interpolate(arange(4), size=3, mode="bilinear")` along a row.
    #[test]
    fn odd_sizes_follow_torch() {
        let row = resize(&ramp((1, 1, 1, 4)), 1, 3).unwrap();
        let expected = [1.0 / 6.0, 1.5, 17.0 / 6.0];
        for (actual, expected) in flat(&row).iter().zip(expected) {
            assert!((actual - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn turns_are_anticlockwise() {
        let x = ramp((1, 1, 2, 3)); // 0 1 2 / 3 4 5
        assert_eq!(flat(&turn(&x, 1).unwrap()), [2.0, 5.0, 1.0, 4.0, 0.0, 3.0]);
        assert_eq!(flat(&turn(&x, 2).unwrap()), [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]);
        assert_eq!(flat(&turn(&x, 3).unwrap()), [3.0, 0.0, 4.0, 1.0, 5.0, 2.0]);
    }

    #[test]
    fn latents_and_images_keep_their_ratio() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..50 {
            let transform = Transform::draw(&mut rng, 16, 8);
            let latents = transform.apply(&ramp((1, 2, 16, 8)), 1).unwrap();
            let images = transform.apply(&ramp((1, 3, 64, 32)), 4).unwrap();
            let (h, w) = (latents.dims()[2], latents.dims()[3]);
            assert_eq!((images.dims()[2], images.dims()[3]), (4 * h, 4 * w));
            assert!((4..=16).contains(&transform.height) && (2..=8).contains(&transform.width));
        }
    }
}
