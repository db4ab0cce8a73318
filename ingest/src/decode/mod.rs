//! Compressed bytes to RGB pixels, as PIL's `convert('RGB')` gives them.
//!
//! The format is told from the first bytes; file extensions are not consulted. Alpha is dropped
//! and colour profiles are ignored, as PIL does. Nothing is allocated for pixels before the
//! header's dimensions were checked.

mod jpeg;
mod ppm;
mod raster;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use image::metadata::Orientation;
use serde::Serialize;

use crate::image::{Decoded, RgbImage};
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

/// As many first bytes as tell the format of a file.
pub(crate) const HEAD_BYTES: usize = 16;

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
    /// Binary PPM of 8 bits.
    Ppm,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Ppm => "PPM",
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
            [b'P', b'6', blank, ..] if blank.is_ascii_whitespace() => Ok(Self::Ppm),
            _ => {
                let start: String =
                    bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
                let start = match unread(bytes) {
                    Some(format) => format!("{start}, as {format} does"),
                    None => start,
                };
                Err(SkipReason::Unrecognized { start })
            }
        }
    }
}

/// What `bytes` of no format read here are, where they say so.
fn unread(bytes: &[u8]) -> Option<&'static str> {
    Some(match bytes {
        [b'G', b'I', b'F', b'8', ..] => "GIF",
        [b'B', b'M', ..] => "BMP",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "TIFF",
        [0, 0, 0, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', ..] => "AVIF",
        [0, 0, 0, _, b'f', b't', b'y', b'p', ..] => "HEIF",
        [0, 0, 0, 12, b'j', b'P', ..] => "JPEG 2000",
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', ..] => "JPEG XL",
        [b'<', ..] => "a page of HTML or XML",
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', b'h', b't', b't', b'p', ..] => {
            "a Git LFS pointer"
        }
        _ => return None,
    })
}

/// Decodes a JPEG, PNG, WebP or PPM file held in `bytes`.
///
/// Grayscale is repeated over the channels, CMYK and YCCK are converted as PIL does (Adobe's
/// inverted inks), palettes are looked up, and of 16-bit PNGs the high byte is kept.
///
/// # Errors
/// The [`SkipReason`] with which a stream would leave the image out.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, SkipReason> {
    contained(Format::sniff(bytes)?, || Ok(Opened::new(bytes, limits)?.decode(false)?.image))
}

/// As [`decode`], but lets the decoder halve the sides, rounding up, while the short side keeps
/// at least `short_side` pixels. JPEG's can, down to an eighth, and saves most of its work where
/// it does; images of other formats come in full.
///
/// # Errors
/// The [`SkipReason`] with which a stream would leave the image out.
pub fn decode_to_cover(
    bytes: &[u8],
    limits: &Limits,
    short_side: u32,
) -> Result<RgbImage, SkipReason> {
    contained(Format::sniff(bytes)?, || {
        let mut opened = Opened::new(bytes, limits)?;
        opened.reduce_to(short_side)?;
        Ok(opened.decode(false)?.image)
    })
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
    /// How often the decoder is to halve the sides.
    halvings: u32,
    decoder: Decoder<'a>,
}

enum Decoder<'a> {
    Jpeg(Box<jpeg::Jpeg<'a>>),
    Png(Box<raster::Png<'a>>),
    WebP(Box<raster::WebP<'a>>),
    Ppm(ppm::Ppm<'a>),
}

impl<'a> Opened<'a> {
    /// Reads the header of the image in `bytes`.
    pub(crate) fn new(bytes: &'a [u8], limits: &Limits) -> Result<Self, SkipReason> {
        let (decoder, (width, height), working_bytes) = match Format::sniff(bytes)? {
            Format::Jpeg => {
                let jpeg = jpeg::open(bytes, limits.pixels_max)?;
                let (dimensions, working_bytes) = (jpeg.dimensions(), jpeg.working_bytes());
                (Decoder::Jpeg(Box::new(jpeg)), dimensions, working_bytes)
            }
            Format::Png => {
                let png = raster::open_png(bytes)?;
                let (dimensions, working_bytes) = raster::measure(&png);
                (Decoder::Png(Box::new(png)), dimensions, working_bytes)
            }
            Format::WebP => {
                let webp = raster::open_webp(bytes)?;
                let (dimensions, working_bytes) = raster::measure(&webp);
                (Decoder::WebP(Box::new(webp)), dimensions, working_bytes)
            }
            Format::Ppm => {
                let ppm = ppm::open(bytes)?;
                let (dimensions, working_bytes) = (ppm.dimensions(), ppm.working_bytes());
                (Decoder::Ppm(ppm), dimensions, working_bytes)
            }
        };
        if u64::from(width) * u64::from(height) > limits.pixels_max {
            let pixels_max = limits.pixels_max;
            return Err(SkipReason::TooManyPixels { width, height, pixels_max });
        }
        Ok(Self { width, height, working_bytes, halvings: 0, decoder })
    }

    /// Lets the decoder halve both sides, rounding up, while the short side keeps at least
    /// `short_side` pixels. JPEG's can; images of other formats stay as they are.
    pub(crate) fn reduce_to(&mut self, short_side: u32) -> Result<(), SkipReason> {
        let Decoder::Jpeg(jpeg) = &mut self.decoder else { return Ok(()) };
        let times_larger = (self.width.min(self.height) / short_side.max(1)).max(1);
        self.halvings = times_larger.ilog2().min(jpeg::HALVINGS_MAX);
        jpeg.reduce(self.halvings)?;
        self.working_bytes = jpeg.working_bytes();
        Ok(())
    }

    /// Decodes to RGB, turned upright if `exif_orientation` and the file asks for it.
    pub(crate) fn decode(self, exif_orientation: bool) -> Result<Decoded, SkipReason> {
        let (width, height, halvings) = (self.width, self.height, self.halvings);
        let (image, orientation) = match self.decoder {
            Decoder::Jpeg(jpeg) => jpeg.decode()?,
            Decoder::Png(png) => raster::decode(*png, Format::Png)?,
            Decoder::WebP(webp) => raster::decode(*webp, Format::WebP)?,
            Decoder::Ppm(ppm) => ppm.decode()?,
        };
        if !exif_orientation {
            let unturned = orientation != Orientation::NoTransforms;
            return Ok(Decoded { image, full: (width, height), halvings, unturned });
        }
        let full = if turns(orientation) { (height, width) } else { (width, height) };
        Ok(Decoded { image: image.oriented(orientation), full, halvings, unturned: false })
    }
}

/// Whether an orientation swaps width and height.
fn turns(orientation: Orientation) -> bool {
    match orientation {
        Orientation::NoTransforms
        | Orientation::FlipHorizontal
        | Orientation::FlipVertical
        | Orientation::Rotate180 => false,
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => true,
    }
}
