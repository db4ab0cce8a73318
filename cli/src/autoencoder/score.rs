//! How good an autoencoder is: PSNR and SSIM of images in [-1, 1], and EQ-VAE's two errors.

use std::fmt;
use std::path::Path;

use candle_core::{D, Device, Result, Tensor};
use lapflow_model::autoencoder::{Autoencoder, AutoencoderConfig, Transform, WeightsSource};
use serde::Serialize;

/// Images that are scored at a time.
const SCORE_BATCH: usize = 32;

/// Gaussian window of SSIM (Wang et al. 2004): 11 pixels, standard deviation 1.5.
pub const SSIM_WINDOW: usize = 11;
const SSIM_SIGMA: f64 = 1.5;
/// (0.01 L)^2 and (0.03 L)^2 for values in [0, 1].
const SSIM_C1: f64 = 1e-4;
const SSIM_C2: f64 = 9e-4;

/// What an autoencoder does to a set of images. `Down` is the 2x2 mean.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Score {
    /// Mean PSNR of decode(z) against x, in dB.
    pub psnr: f64,
    /// Mean PSNR of decode(Down(z)) against Down(x), in dB.
    pub psnr_half: f64,
    /// |encode(Down(x)) - Down(z)| / |Down(z) - its mean|, over all images.
    pub latent_error_half: f64,
    /// Mean of all latent values.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
}

impl Score {
    /// Scores the weights in a file on `images` `[n, 3, H, W]`.
    pub fn of_file(weights: &Path, images: &Tensor) -> lapflow_model::Result<Self> {
        let config = AutoencoderConfig {
            weights: WeightsSource::File(weights.to_owned()),
            ..Default::default()
        };
        let autoencoder = Autoencoder::open(&config, &Device::Cpu)?;
        let factor = autoencoder.identity().factor;
        let (mut decibels, mut decibels_half) = (Vec::new(), Vec::new());
        let (mut latents, mut halves, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        let count = images.dims()[0];
        for start in (0..count).step_by(SCORE_BATCH) {
            let images = images.narrow(0, start, SCORE_BATCH.min(count - start))?;
            let z = autoencoder.encode(&images)?.mean;
            let decode = |z: &Tensor| -> lapflow_model::Result<Tensor> {
                Ok(autoencoder.decode(z)?.clamp(-1f32, 1f32)?)
            };
            let (_, _, h, w) = z.dims4()?;
            let down = Transform { height: h / 2, width: w / 2, turns: 0 };
            let (z_half, images_half) = (down.apply(&z, 1)?, down.apply(&images, factor)?);
            let values = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
            decibels.extend(psnr(&decode(&z)?, &images)?);
            decibels_half.extend(psnr(&decode(&z_half)?, &images_half)?);
            errors.extend(values(&(autoencoder.encode(&images_half)?.mean - &z_half)?)?);
            latents.extend(values(&z)?);
            halves.extend(values(&z_half)?);
        }
        let spread = |values: &[f32], centre: f64| {
            let square = values.iter().map(|&value| (f64::from(value) - centre).powi(2));
            (square.sum::<f64>() / values.len() as f64).sqrt()
        };
        let centre = mean(&latents);
        Ok(Self {
            psnr: mean(&decibels),
            psnr_half: mean(&decibels_half),
            latent_error_half: spread(&errors, 0.0) / spread(&halves, mean(&halves)),
            mean: centre,
            std: spread(&latents, centre),
        })
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { psnr, psnr_half, latent_error_half, mean, std } = self;
        write!(f, "PSNR {psnr:.2} dB, from halved latents {psnr_half:.2} dB, ")?;
        write!(f, "latent error {latent_error_half:.3}, latents {mean:.3} +- {std:.3}")
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64
}

/// PSNR of each image of `a` against `b`, both `[B, 3, H, W]`, in dB.
pub fn psnr(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    let mse = (a - b)?.sqr()?.flatten_from(1)?.mean(D::Minus1)?.to_vec1::<f32>()?;
    Ok(mse.into_iter().map(|mse| 10.0 * (4.0 / mse.max(1e-12)).log10()).collect())
}

/// SSIM of each image of `a` against `b`, both `[B, 3, H, W]` with sides of at least 11 pixels:
/// the mean over channels and windows that lie inside the image.
pub fn ssim(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    let (a, b) = (a.affine(0.5, 0.5)?, b.affine(0.5, 0.5)?);
    let (mean_a, mean_b) = (smooth(&a)?, smooth(&b)?);
    let var_a = (smooth(&a.sqr()?)? - mean_a.sqr()?)?;
    let var_b = (smooth(&b.sqr()?)? - mean_b.sqr()?)?;
    let product = (&mean_a * &mean_b)?;
    let covariance = (smooth(&(&a * &b)?)? - &product)?;
    let above = (product.affine(2.0, SSIM_C1)? * covariance.affine(2.0, SSIM_C2)?)?;
    let below = (((mean_a.sqr()? + mean_b.sqr()?)? + SSIM_C1)? * ((var_a + var_b)? + SSIM_C2)?)?;
    (above / below)?.flatten_from(1)?.mean(D::Minus1)?.to_vec1::<f32>()
}

/// Gaussian window along both axes, where it fits.
fn smooth(x: &Tensor) -> Result<Tensor> {
    let centre = (SSIM_WINDOW / 2) as f64;
    let weight = |i: usize| (-(i as f64 - centre).powi(2) / (2.0 * SSIM_SIGMA.powi(2))).exp();
    let total: f64 = (0..SSIM_WINDOW).map(weight).sum();
    let mut x = x.clone();
    for axis in [2, 3] {
        let len = x.dim(axis)? + 1 - SSIM_WINDOW;
        let mut sum = x.narrow(axis, 0, len)?.affine(weight(0) / total, 0.0)?;
        for i in 1..SSIM_WINDOW {
            sum = (sum + x.narrow(axis, i, len)?.affine(weight(i) / total, 0.0)?)?;
        }
        x = sum;
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    fn ramp(scale: f64) -> Tensor {
        let x = Tensor::arange(0f32, 3.0 * 16.0 * 16.0, &Device::Cpu).unwrap();
        x.reshape((1, 3, 16, 16)).unwrap().affine(scale / 384.0, -scale).unwrap()
    }

    #[test]
    fn psnr_of_a_constant_error() {
        let zeros = Tensor::zeros((2, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let off = (&zeros + 0.2).unwrap(); // 10 log10(4 / 0.04)
        assert!(psnr(&zeros, &off).unwrap().iter().all(|db| (db - 20.0).abs() < 1e-4));
    }

    #[test]
    fn ssim_is_one_for_equal_images_and_falls_with_contrast() {
        assert!((ssim(&ramp(1.0), &ramp(1.0)).unwrap()[0] - 1.0).abs() < 1e-5);
        let (near, far) =
            (ssim(&ramp(1.0), &ramp(0.9)).unwrap()[0], ssim(&ramp(1.0), &ramp(0.3)).unwrap()[0]);
        assert!(far < near && near < 1.0, "{far} {near}");
    }
}
