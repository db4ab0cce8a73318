//! PNG and WebP through the `image` crate.

use std::io::{Cursor, ErrorKind};

use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{ColorType, ImageDecoder, ImageError};

use super::{Format, Orientation};
use crate::image::RgbImage;
use crate::skip::SkipReason;

/// A PNG whose header has been read.
pub(super) type Png<'a> = PngDecoder<Cursor<&'a [u8]>>;
/// A WebP whose header has been read.
pub(super) type WebP<'a> = WebPDecoder<Cursor<&'a [u8]>>;

/// What a PNG's ancillary chunks (colour profiles, compressed text) may unpack to.
const PNG_CHUNK_BYTES_MAX: u64 = 64 << 20;

/// Planes and tables that the decoders hold beside their output, in bytes per pixel.
const INTERNAL_PIXEL_BYTES: u64 = 4;

pub(super) fn open_png(bytes: &[u8]) -> Result<Png<'_>, SkipReason> {
    // The decoder panics on a palette that ends within a colour.
    if let Some(length) = palette_bytes(bytes).filter(|length| !length.is_multiple_of(3)) {
        let detail = format!("its palette has {length} bytes, which is no number of colours");
        return Err(SkipReason::Corrupt { format: Format::Png, detail });
    }
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(PNG_CHUNK_BYTES_MAX);
    PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(|error| reason(Format::Png, error))
}

/// The length of the palette, if there is one before the image.
fn palette_bytes(png: &[u8]) -> Option<u32> {
    let mut chunks = png.get(8..)?;
    loop {
        let (&length, after) = chunks.split_first_chunk()?;
        let length = u32::from_be_bytes(length);
        match after.get(..4)? {
            b"PLTE" => return Some(length),
            b"IDAT" => return None,
            // Behind the name: the content and its checksum.
            _ => chunks = after.get(8_usize.checked_add(length.try_into().ok()?)?..)?,
        }
    }
}

pub(super) fn open_webp(bytes: &[u8]) -> Result<WebP<'_>, SkipReason> {
    WebPDecoder::new(Cursor::new(bytes)).map_err(|error| reason(Format::WebP, error))
}

/// Dimensions, and bytes held while decoding: the image as stored, and as RGB.
pub(super) fn measure(decoder: &impl ImageDecoder) -> ((u32, u32), u64) {
    let stored = u64::from(decoder.color_type().bytes_per_pixel());
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    // A header may announce more pixels than any memory has bytes.
    ((width, height), pixels.saturating_mul(stored + 3 + INTERNAL_PIXEL_BYTES))
}

pub(super) fn decode(
    mut decoder: impl ImageDecoder,
    format: Format,
) -> Result<(RgbImage, Orientation), SkipReason> {
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let total_bytes = usize::try_from(decoder.total_bytes()).map_err(|_| SkipReason::Corrupt {
        format,
        detail: "it exceeds the address space".into(),
    })?;
    // An unreadable EXIF chunk is no reason to lose the image.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut stored = vec![0; total_bytes];
    decoder.read_image(&mut stored).map_err(|error| reason(format, error))?;
    Ok((RgbImage { width, height, pixels: to_rgb(stored, color) }, orientation))
}

/// Drops alpha, repeats gray and keeps the high byte of 16 (native endian, as `image` gives).
fn to_rgb(stored: Vec<u8>, color: ColorType) -> Vec<u8> {
    if color == ColorType::Rgb8 {
        return stored;
    }
    let pixel_bytes = usize::from(color.bytes_per_pixel());
    let channels = usize::from(color.channel_count());
    let sample_bytes = pixel_bytes / channels;
    let high_byte = if cfg!(target_endian = "little") { sample_bytes - 1 } else { 0 };
    // Gray stays at its only channel; colour steps from channel to channel.
    let step = if channels < 3 { 0 } else { sample_bytes };
    stored
        .chunks_exact(pixel_bytes)
        .flat_map(|pixel| [pixel[high_byte], pixel[high_byte + step], pixel[high_byte + 2 * step]])
        .collect()
}

fn reason(format: Format, error: ImageError) -> SkipReason {
    match error {
        ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
            SkipReason::Truncated { format }
        }
        error @ (ImageError::Unsupported(_) | ImageError::Limits(_)) => {
            SkipReason::Unsupported { format, detail: error.to_string() }
        }
        error => SkipReason::Corrupt { format, detail: error.to_string() },
    }
}
