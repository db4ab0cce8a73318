//! Single PNG files.

use super::Partial;
use crate::error::{Result, SampleError};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use std::io::Write;
use std::path::Path;

/// Writes RGB `pixels` of `width` x `height` as `path`.
///
/// # Errors
/// When the file cannot be written or the pixels do not fill the image.
pub fn write_png(path: &Path, (width, height): (u32, u32), pixels: &[u8]) -> Result<()> {
    let wanted = width as usize * height as usize * 3;
    if pixels.len() != wanted {
        let reason = format!("the image has {} bytes, not {wanted}", pixels.len());
        return Err(SampleError::file(path, reason));
    }
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
        .write_image(pixels, width, height, ExtendedColorType::Rgb8)
        .map_err(|e| SampleError::file(path, e))?;
    let mut file = Partial::create(path)?;
    file.write_all(&bytes).map_err(|e| SampleError::file(path, e))?;
    file.keep()
}
