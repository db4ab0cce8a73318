//! An RGB image in memory.

use crate::decode::Orientation;

/// An 8-bit sRGB image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Width in pixels, at least 1.
    pub width: u32,
    /// Height in pixels, at least 1.
    pub height: u32,
    /// `3 * width * height` bytes: RGB interleaved, row-major.
    pub pixels: Vec<u8>,
}

/// An image as a decoder gave it, perhaps smaller than the file says.
pub(crate) struct Decoded {
    pub(crate) image: RgbImage,
    /// Width and height that it has in full, as it is turned.
    pub(crate) full: (u32, u32),
    /// How often the decoder halved its sides, rounding up.
    pub(crate) halvings: u32,
    /// Whether its EXIF orientation asks for a turn that it was not given.
    pub(crate) unturned: bool,
}

impl Decoded {
    /// An image in full.
    pub(crate) fn whole(image: RgbImage) -> Self {
        let full = (image.width, image.height);
        Self { image, full, halvings: 0, unturned: false }
    }

    /// Width and height of the picture in pixels of the image. A side that the decoder rounded
    /// up ends with a pixel that the picture takes only a part of.
    pub(crate) fn extent(&self) -> (f64, f64) {
        let divisor = f64::from(1 << self.halvings);
        (f64::from(self.full.0) / divisor, f64::from(self.full.1) / divisor)
    }
}

impl RgbImage {
    /// Bytes in one row.
    pub(crate) fn row_bytes(&self) -> usize {
        3 * self.width as usize
    }

    /// The image mirrored left to right.
    #[must_use]
    pub fn flipped(&self) -> Self {
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for row in self.pixels.chunks_exact(self.row_bytes()) {
            pixels.extend(row.chunks_exact(3).rev().flatten());
        }
        Self { pixels, ..*self }
    }

    /// The image as its EXIF `orientation` asks to show it.
    pub(crate) fn oriented(self, orientation: Orientation) -> Self {
        let (w, h) = (self.width, self.height);
        // Each arm maps a pixel of the result to the pixel of the stored image.
        match orientation {
            Orientation::NoTransforms => self,
            Orientation::FlipHorizontal => self.flipped(),
            Orientation::Rotate180 => self.gather(w, h, |x, y| (w - 1 - x, h - 1 - y)),
            Orientation::FlipVertical => self.gather(w, h, |x, y| (x, h - 1 - y)),
            Orientation::Rotate90FlipH => self.gather(h, w, |x, y| (y, x)),
            Orientation::Rotate90 => self.gather(h, w, |x, y| (y, h - 1 - x)),
            Orientation::Rotate270FlipH => self.gather(h, w, |x, y| (w - 1 - y, h - 1 - x)),
            Orientation::Rotate270 => self.gather(h, w, |x, y| (w - 1 - y, x)),
        }
    }

    fn gather(&self, width: u32, height: u32, from: impl Fn(u32, u32) -> (u32, u32)) -> Self {
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for y in 0..height {
            for x in 0..width {
                let (source_x, source_y) = from(x, y);
                let at = source_y as usize * self.row_bytes() + 3 * source_x as usize;
                pixels.extend_from_slice(&self.pixels[at..at + 3]);
            }
        }
        Self { width, height, pixels }
    }
}
