//! Tensors as pictures.

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use image::{DynamicImage, RgbImage};
use lapflow_sample::{Generator, Request};

/// RGB bytes as a picture.
pub fn from_pixels(pixels: Vec<u8>, width: usize, height: usize) -> Result<DynamicImage> {
    let image = RgbImage::from_raw(width as u32, height as u32, pixels);
    Ok(image.context("an image of another size than its pixels")?.into())
}

/// The images that `requests` ask for, drawn in the generator's batches.
pub fn drawn(generator: &Generator, requests: &[Request]) -> Result<Vec<DynamicImage>> {
    let mut pictures = Vec::with_capacity(requests.len());
    for batch in requests.chunks(generator.config().batch) {
        pictures.extend(of_images(generator, &generator.draw(batch)?.images)?);
    }
    Ok(pictures)
}

/// Decoded images `(b, 3, h, w)` as pictures.
pub fn of_images(generator: &Generator, images: &Tensor) -> Result<Vec<DynamicImage>> {
    let (_, _, height, width) = images.dims4()?;
    let pixels = generator.pixels(images)?;
    pixels.into_iter().map(|pixels| from_pixels(pixels, width, height)).collect()
}

/// A level `(c, h, w)` as a picture: its first three channels as red, green and blue (one channel
/// as grey), zero as mid-grey and `range` as white.
pub fn level_picture(level: &Tensor, range: f64) -> Result<DynamicImage> {
    let (channels, height, width) = level.dims3()?;
    let values: Vec<Vec<f32>> = level.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2()?;
    let byte = |value: f32| ((f64::from(value) / range + 1.0) * 127.5).round().clamp(0.0, 255.0);
    let pixels = (0..height * width)
        .flat_map(|at| [0, 1, 2].map(|c| byte(values[c.min(channels - 1)][at]) as u8))
        .collect();
    from_pixels(pixels, width, height)
}

/// The value that all but a few of a level's values stay below: three standard deviations.
pub fn unit_range(level: &Tensor) -> Result<f64> {
    let square = level.to_dtype(DType::F32)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
    Ok((3.0 * f64::from(square).sqrt()).max(1e-6))
}
