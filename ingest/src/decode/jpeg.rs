//! JPEG through libjpeg-turbo-rs, whose pixels are those of the libjpeg-turbo in PIL.

use libjpeg_turbo_rs::{DecodeLimits, Decoder, Image, JpegError, PixelFormat, ScalingFactor};

use super::{Format, Orientation};
use crate::image::RgbImage;
use crate::skip::SkipReason;

/// The largest side a JPEG header can express.
const SIDE_MAX: usize = u16::MAX as usize;

/// More scans than this are taken for an attack: each costs a pass over the image, and
/// encoders write about ten.
const SCANS_MAX: usize = 256;

/// The decoder makes an image at an eighth of its sides at the least.
pub(super) const HALVINGS_MAX: u32 = 3;

/// A JPEG whose header has been read.
pub(super) struct Jpeg<'a> {
    decoder: Decoder<'a>,
}

/// Reads the header. Stray bytes between its segments are passed over, as libjpeg does.
pub(super) fn open(bytes: &[u8], pixels_max: u64) -> Result<Jpeg<'_>, SkipReason> {
    let limits = DecodeLimits {
        max_width: SIDE_MAX,
        max_height: SIDE_MAX,
        max_pixels: pixels_max,
        max_scans: SCANS_MAX,
        max_memory: None,
    };
    let mut decoder = Decoder::new_with_limits(bytes, limits).map_err(reason)?;
    let frame = decoder.header();
    if frame.width == 0 || frame.height == 0 {
        return Err(corrupt("its width or height is 0"));
    }
    let (bits, components) = (frame.precision, frame.components.len());
    if bits != 8 {
        return Err(unsupported(format!("{bits} bits a sample")));
    }
    // The decoder runs out of its rows on inks sampled in thirds, which no program writes.
    let in_thirds = frame
        .components
        .iter()
        .find(|component| component.horizontal_sampling == 3 || component.vertical_sampling == 3);
    if let (4, Some(component)) = (components, in_thirds) {
        let (x, y) = (component.horizontal_sampling, component.vertical_sampling);
        return Err(unsupported(format!("an ink sampled {x}x{y}")));
    }
    decoder.set_output_format(match components {
        1 | 3 => PixelFormat::Rgb,
        4 => PixelFormat::Cmyk,
        _ => return Err(unsupported(format!("{components} components"))),
    });
    Ok(Jpeg { decoder })
}

impl Jpeg<'_> {
    pub(super) fn dimensions(&self) -> (u32, u32) {
        let frame = self.decoder.header();
        (frame.width.into(), frame.height.into())
    }

    /// Makes the decoder halve the sides (rounding up) so many times, at most
    /// [`HALVINGS_MAX`]: it leaves out the high frequencies of each block.
    pub(super) fn reduce(&mut self, halvings: u32) -> Result<(), SkipReason> {
        let scale = ScalingFactor::try_new(1, 1 << halvings).map_err(reason)?;
        self.decoder.set_scale(scale);
        Ok(())
    }

    /// Bytes held at the peak of decoding: the coefficients of every component, which
    /// progressive files and files in several scans need all at once; the planes, as stored and
    /// brought to full size; and the result.
    pub(super) fn working_bytes(&self) -> u64 {
        let frame = self.decoder.header();
        let components = frame.components.len() as u64;
        let stored = u64::from(frame.width) * u64::from(frame.height);
        let made = (self.decoder.output_width() * self.decoder.output_height()) as u64;
        let coefficient_bytes = if self.decoder.has_multiple_scans() { 2 * components } else { 0 };
        stored * coefficient_bytes + made * (2 * components + 4)
    }

    pub(super) fn decode(self) -> Result<(RgbImage, Orientation), SkipReason> {
        let orientation = self
            .decoder
            .exif_data()
            .and_then(Orientation::from_exif_chunk)
            .unwrap_or(Orientation::NoTransforms);
        let image = self.decoder.decode_image().map_err(reason)?;
        let (width, height) = (image.width as u32, image.height as u32);
        Ok((RgbImage { width, height, pixels: to_rgb(image) }, orientation))
    }
}

/// The pixels as RGB. Four inks become three colours as in PIL, which takes them for inverted,
/// as Adobe writes them.
fn to_rgb(image: Image) -> Vec<u8> {
    if image.pixel_format != PixelFormat::Cmyk {
        return image.data;
    }
    let product = |a: u8, b: u8| {
        let scaled = u32::from(a) * u32::from(b) + 128;
        (((scaled >> 8) + scaled) >> 8) as u8
    };
    image
        .data
        .chunks_exact(4)
        .flat_map(|inks| [0, 1, 2].map(|ink| inks[3] - product(!inks[ink], inks[3])))
        .collect()
}

fn reason(error: JpegError) -> SkipReason {
    match error {
        JpegError::UnexpectedEof => SkipReason::Truncated { format: Format::Jpeg },
        JpegError::Unsupported(detail) => unsupported(detail),
        error @ (JpegError::LimitExceeded { .. } | JpegError::AllocationFailed { .. }) => {
            unsupported(error.to_string())
        }
        JpegError::CorruptData(detail) => corrupt(&detail),
        error => corrupt(&error.to_string()),
    }
}

fn unsupported(detail: String) -> SkipReason {
    SkipReason::Unsupported { format: Format::Jpeg, detail }
}

fn corrupt(detail: &str) -> SkipReason {
    SkipReason::Corrupt { format: Format::Jpeg, detail: detail.trim_end().to_owned() }
}
