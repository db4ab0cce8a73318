//! Separable resampling in PIL's order, on fast_image_resize.
//!
//! PIL resamples rows first, rounds to 8 bits, then columns. fast_image_resize has PIL's filters
//! and windows but does the columns first, so each axis is a call of its own here. What then
//! remains between the two are coefficients of 15 bits against 22: a rounding now and then.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer};

use crate::image::RgbImage;

/// PIL's filters, by its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    /// Area average.
    Box,
    /// Triangle.
    Bilinear,
    /// Keys' cubic with a = -0.5.
    Bicubic,
}

impl Filter {
    fn kernel(self) -> FilterType {
        match self {
            Self::Box => FilterType::Box,
            Self::Bilinear => FilterType::Bilinear,
            Self::Bicubic => FilterType::CatmullRom,
        }
    }

    /// Radius of the kernel in source pixels when it is not stretched.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }
}

/// One axis of a resize: `extent` of the `source` pixels scaled to `scaled`, of which only `kept`
/// from `first` are computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axis {
    pub(crate) source: u32,
    /// How many of the source pixels the picture takes, from the first on: less than all of
    /// them where a decoder rounded a reduced side up.
    pub(crate) extent: f64,
    pub(crate) scaled: u32,
    pub(crate) first: u32,
    pub(crate) kept: u32,
}

impl Axis {
    /// All of `source` to `scaled` pixels.
    pub(crate) fn whole(source: u32, scaled: u32) -> Self {
        Self { source, extent: source.into(), scaled, first: 0, kept: scaled }
    }

    fn scale(&self) -> f64 {
        self.extent / f64::from(self.scaled)
    }

    /// Start and length of the kept part in source pixels.
    fn window(&self) -> (f64, f64) {
        let scale = self.scale();
        // Multiplying back would leave the whole axis an ulp short or long.
        let length =
            if self.kept == self.scaled { self.extent } else { f64::from(self.kept) * scale };
        (f64::from(self.first) * scale, length)
    }

    /// The source pixels that the kept part depends on, as start and length.
    fn reach(&self, filter: Filter) -> (u32, u32) {
        let (start, length) = self.window();
        let margin = filter.support() * self.scale().max(1.0) + 1.0;
        let first = (start - margin).floor().max(0.0) as u32;
        let end = (start + length + margin).ceil().min(f64::from(self.source)) as u32;
        (first, end - first)
    }
}

/// Resizes `image` along `x` and `y` with antialiasing, as PIL's `Image.resize` does, and
/// returns the kept part, `x.kept` by `y.kept` pixels.
pub(crate) fn resize(image: RgbImage, x: Axis, y: Axis, filter: Filter) -> RgbImage {
    debug_assert_eq!((image.width, image.height), (x.source, y.source));
    let (first_row, rows) = y.reach(filter);
    let strip = resize_rows(&image, x, (first_row, rows), filter);
    drop(image);
    let (top, height) = y.window();
    let part =
        CropBox { left: 0.0, top: top - f64::from(first_row), width: f64::from(x.kept), height };
    convolve(&strip, part, (x.kept, y.kept), filter)
}

/// The rows pass alone, for the rows given as start and count.
pub(crate) fn resize_rows(
    image: &RgbImage,
    x: Axis,
    (first_row, rows): (u32, u32),
    filter: Filter,
) -> RgbImage {
    let (left, width) = x.window();
    let part = CropBox { left, top: f64::from(first_row), width, height: f64::from(rows) };
    convolve(image, part, (x.kept, rows), filter)
}

/// `part` of `image` to `(width, height)` pixels.
fn convolve(
    image: &RgbImage,
    part: CropBox,
    (width, height): (u32, u32),
    filter: Filter,
) -> RgbImage {
    // Typed: fast_image_resize is compiled here, for the one pixel type that there is.
    let source = TypedImageRef::<U8x3>::from_buffer(image.width, image.height, &image.pixels)
        .expect("an RgbImage holds 3 bytes a pixel");
    let mut pixels = vec![0; 3 * width as usize * height as usize];
    let mut target = TypedImage::<U8x3>::from_buffer(width, height, &mut pixels)
        .expect("the buffer was made for these sides");
    // A part computed up to the edge may end an ulp behind it.
    let part_width = part.width.min(f64::from(image.width) - part.left);
    let part_height = part.height.min(f64::from(image.height) - part.top);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter.kernel())).crop(
        part.left,
        part.top,
        part_width,
        part_height,
    );
    Resizer::new()
        .resize_typed(&source, &mut target, &options)
        .expect("the part lies in the image");
    RgbImage { width, height, pixels }
}
