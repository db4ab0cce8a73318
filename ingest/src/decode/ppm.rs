//! Binary PPM of 8 bits: a header of text, then RGB pixels.

use super::{Format, Orientation};
use crate::image::RgbImage;
use crate::skip::SkipReason;

/// A PPM whose header has been read.
pub(super) struct Ppm<'a> {
    width: u32,
    height: u32,
    /// What follows the header.
    content: &'a [u8],
}

/// Reads the header, `P6 WIDTH HEIGHT 255`, with `#` comments between its fields.
pub(super) fn open(bytes: &[u8]) -> Result<Ppm<'_>, SkipReason> {
    let mut rest = bytes.get(2..).unwrap_or_default();
    let mut number = || -> Result<u32, SkipReason> {
        loop {
            rest = rest.trim_ascii_start();
            if rest.first() != Some(&b'#') {
                break;
            }
            let line = rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
            rest = &rest[line..];
        }
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (text, after) = rest.split_at(digits);
        rest = after;
        let parsed = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        parsed.ok_or_else(|| match rest {
            [] => SkipReason::Truncated { format: Format::Ppm },
            _ => corrupt("its header is not three numbers"),
        })
    };
    let (width, height, level_max) = (number()?, number()?, number()?);
    if width == 0 || height == 0 {
        return Err(corrupt("its width or height is 0"));
    }
    if level_max != 255 {
        let detail = format!("{level_max} as the greatest level");
        return Err(SkipReason::Unsupported { format: Format::Ppm, detail });
    }
    // One blank ends the header.
    let content = rest.get(1..).ok_or(SkipReason::Truncated { format: Format::Ppm })?;
    Ok(Ppm { width, height, content })
}

impl Ppm<'_> {
    pub(super) fn dimensions(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    pub(super) fn working_bytes(&self) -> u64 {
        (u64::from(self.width) * u64::from(self.height)).saturating_mul(3)
    }

    pub(super) fn decode(self) -> Result<(RgbImage, Orientation), SkipReason> {
        let pixels = usize::try_from(self.working_bytes())
            .ok()
            .and_then(|bytes| self.content.get(..bytes))
            .ok_or(SkipReason::Truncated { format: Format::Ppm })?
            .to_vec();
        let image = RgbImage { width: self.width, height: self.height, pixels };
        Ok((image, Orientation::NoTransforms))
    }
}

fn corrupt(detail: &str) -> SkipReason {
    SkipReason::Corrupt { format: Format::Ppm, detail: detail.to_owned() }
}
