//! Compressed bytes to RGB pixels, as PIL's `convert('RGB')` gives them.
//!
//! The format is told from the first bytes; file extensions are not consulted. Alpha is dropped
//! and colour profiles are ignored, as PIL does. Nothing is allocated for pixels before the
//! header's dimensions were checked.

mod jpeg;
mod raster;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use image::metadata::Orientation;
use serde::Serialize;

use crate::image::RgbImage;
use crate::skip::SkipReason;

/// What a decoder may be asked for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Images whose header announces more pixels are refused before allocation.
    pub pixels_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { pixels_max: 100_000_000 }
    }
}

/// An image format, as the first bytes tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Baseline or progressive JPEG.
    Jpeg,
    /// PNG of any depth and colour type.
    Png,
    /// Lossy or lossless WebP; of an animation, the first frame.
    WebP,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
        })
    }
}

impl Format {
    /// The format that `bytes` start with.
    ///
    /// # Errors
    /// [`SkipReason::Empty`] and [`SkipReason::Unrecognized`].
    pub fn sniff(bytes: &[u8]) -> Result<Self, SkipReason> {
        match bytes {
            [] => Err(SkipReason::Empty),
            [0xff, 0xd8, 0xff, ..] => Ok(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Ok(Self::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Self::WebP),
            _ => {
                let start = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                Err(SkipReason::Unrecognized { start })
            }
        }
    }
}

/// Decodes a JPEG, PNG or WebP file held in `bytes`.
///
/// Grayscale is repeated over the channels, CMYK and YCCK are converted as PIL does (Adobe's
/// inverted inks), palettes are looked up, and of 16-bit PNGs the high byte is kept.
///
/// # Errors
/// The [`SkipReason`] with which a stream would leave the image out.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, SkipReason> {
    contained(Format::sniff(bytes)?, || Opened::new(bytes, limits)?.decode(false))
}

/// Runs a decoder over foreign bytes. A panic there is the decoder's bug, met by one bad file;
/// it must not end the job.
pub(crate) fn contained<T>(
    format: Format,
    decode: impl FnOnce() -> Result<T, SkipReason>,
) -> Result<T, SkipReason> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        Err(SkipReason::Corrupt { format, detail: "the decoder panicked".into() })
    })
}

/// An image whose header has been read and found within the limits.
pub(crate) struct Opened<'a> {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Bytes that decoding will hold at its peak, the result included.
    pub(crate) working_bytes: u64,
    decoder: Decoder<'a>,
}

enum Decoder<'a> {
    Jpeg(Box<jpeg::Jpeg<'a>>),
    Png(Box<raster::Png<'a>>),
    WebP(Box<raster::WebP<'a>>),
}

impl<'a> Opened<'a> {
    /// Reads the header of the image in `bytes`.
    pub(crate) fn new(bytes: &'a [u8], limits: &Limits) -> Result<Self, SkipReason> {
        let (decoder, (width, height), pixel_bytes) = match Format::sniff(bytes)? {
            Format::Jpeg => {
                let jpeg = jpeg::open(bytes)?;
                let (dimensions, pixel_bytes) = (jpeg.dimensions(), jpeg.pixel_bytes());
                (Decoder::Jpeg(Box::new(jpeg)), dimensions, pixel_bytes)
            }
            Format::Png => {
                let png = raster::open_png(bytes)?;
                let (dimensions, pixel_bytes) = raster::measure(&png);
                (Decoder::Png(Box::new(png)), dimensions, pixel_bytes)
            }
            Format::WebP => {
                let webp = raster::open_webp(bytes)?;
                let (dimensions, pixel_bytes) = raster::measure(&webp);
                (Decoder::WebP(Box::new(webp)), dimensions, pixel_bytes)
            }
        };
        let pixels = u64::from(width) * u64::from(height);
        if pixels > limits.pixels_max {
            let pixels_max = limits.pixels_max;
            return Err(SkipReason::TooManyPixels { width, height, pixels_max });
        }
        Ok(Self { width, height, working_bytes: pixels * pixel_bytes, decoder })
    }

    /// Decodes to RGB, turned upright if `exif_orientation` and the file asks for it.
    pub(crate) fn decode(self, exif_orientation: bool) -> Result<RgbImage, SkipReason> {
        let (image, orientation) = match self.decoder {
            Decoder::Jpeg(jpeg) => jpeg.decode()?,
            Decoder::Png(png) => raster::decode(*png, Format::Png)?,
            Decoder::WebP(webp) => raster::decode(*webp, Format::WebP)?,
        };
        Ok(if exif_orientation { image.oriented(orientation) } else { image })
    }
}
