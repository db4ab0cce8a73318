//! JPEG through zune-jpeg.

use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Format, Orientation};
use crate::image::RgbImage;
use crate::skip::SkipReason;

/// The largest side a JPEG header can express.
const SIDE_MAX: usize = u16::MAX as usize;

/// A JPEG whose header has been read.
pub(super) struct Jpeg<'a> {
    decoder: JpegDecoder<ZCursor<&'a [u8]>>,
    width: u32,
    height: u32,
    components: u8,
}

/// Reads the header. Stray bytes between its segments are passed over, as libjpeg does.
pub(super) fn open(bytes: &[u8]) -> Result<Jpeg<'_>, SkipReason> {
    let options = DecoderOptions::default()
        .set_max_width(SIDE_MAX)
        .set_max_height(SIDE_MAX)
        .set_strict_mode(false)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(reason)?;
    let info = decoder.info().expect("the header was just decoded");
    // Adobe's transform 0 on three components means plain RGB; zune-jpeg reads it as a
    // broken CMYK and then only copies the bands.
    let mut options = *decoder.options();
    if decoder.input_colorspace() == Some(ADOBE_RGB) {
        options = options.jpeg_set_out_colorspace(ADOBE_RGB);
    }
    // The scans are read strictly: the lenient mode paints what is missing gray.
    decoder.set_options(options.set_strict_mode(true));
    Ok(Jpeg {
        width: info.width.into(),
        height: info.height.into(),
        components: info.components,
        decoder,
    })
}

/// Three bands without a colour transform.
const ADOBE_RGB: ColorSpace = ColorSpace::MultiBand(std::num::NonZeroU32::new(3).unwrap());

impl Jpeg<'_> {
    pub(super) fn dimensions(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Bytes held per pixel: the RGB result, and the coefficients of every component, which
    /// progressive files and files in several scans need all at once.
    pub(super) fn pixel_bytes(&self) -> u64 {
        3 + 2 * u64::from(self.components)
    }

    pub(super) fn decode(mut self) -> Result<(RgbImage, Orientation), SkipReason> {
        let pixels = self.decoder.decode().map_err(reason)?;
        let orientation = self
            .decoder
            .exif()
            .and_then(|chunk| Orientation::from_exif_chunk(chunk))
            .unwrap_or(Orientation::NoTransforms);
        Ok((RgbImage { width: self.width, height: self.height, pixels }, orientation))
    }
}

fn reason(error: DecodeErrors) -> SkipReason {
    let format = Format::Jpeg;
    match error {
        DecodeErrors::ExhaustedData
        | DecodeErrors::IoErrors(_)
        | DecodeErrors::FormatStatic("Premature end of buffer" | "Premature End of image") => {
            SkipReason::Truncated { format }
        }
        DecodeErrors::Unsupported(scheme) => {
            SkipReason::Unsupported { format, detail: format!("{scheme:?}") }
        }
        DecodeErrors::ZeroError => corrupt("its width or height is 0"),
        DecodeErrors::FormatStatic(detail) => corrupt(detail),
        DecodeErrors::Format(detail)
        | DecodeErrors::HuffmanDecode(detail)
        | DecodeErrors::DqtError(detail)
        | DecodeErrors::SosError(detail)
        | DecodeErrors::SofError(detail)
        | DecodeErrors::MCUError(detail) => corrupt(&detail),
        other => corrupt(&other.to_string()),
    }
}

fn corrupt(detail: &str) -> SkipReason {
    SkipReason::Corrupt { format: Format::Jpeg, detail: detail.trim_end().to_owned() }
}
