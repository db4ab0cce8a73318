//! From an image of any size to a square.

use crate::config::Crop;
use crate::halve::halve;
use crate::image::{Decoded, RgbImage};
use crate::resize::{Axis, Filter, resize};

/// Crops `image` to `size` by `size` pixels.
///
/// `seed` matters to [`Crop::Random`] alone; the same seed gives the same crop of an image.
///
/// # Panics
/// If `size` is 0.
pub fn crop(image: RgbImage, size: u32, crop: Crop, seed: u64) -> RgbImage {
    crop_decoded(Decoded::whole(image), size, crop, seed)
}

/// As [`crop`], of an image that its decoder may have reduced.
pub(crate) fn crop_decoded(decoded: Decoded, size: u32, crop: Crop, seed: u64) -> RgbImage {
    assert!(size > 0, "an image of no pixels was asked for");
    match crop {
        Crop::Adm => cover(decoded, size, size, |free| free / 2),
        Crop::Resize => fit(decoded, size),
        Crop::Center => center(decoded.image, size),
        Crop::Random => random(decoded, size, seed),
    }
}

/// ADM's `center_crop_arr` and the frame of its `random_crop_arr` (guided-diffusion,
/// image_datasets.py): halve with a box filter while the short side is at least twice
/// `short_side`, scale it to `short_side` with a bicubic filter, and keep the square of `size`
/// at the offset that `place` chooses out of the free pixels of each axis.
///
/// Only what the square needs is computed. Halvings that the decoder did are not done again; the
/// sides that those of ADM would have come to, rounded down, still decide the scale.
fn cover(
    decoded: Decoded,
    size: u32,
    short_side: u32,
    mut place: impl FnMut(u32) -> u32,
) -> RgbImage {
    let (mut extent, (mut width, mut height)) = (decoded.extent(), decoded.full);
    let Decoded { mut image, mut halvings, .. } = decoded;
    while u64::from(width.min(height)) >= 2 * u64::from(short_side) {
        (width, height) = (width / 2, height / 2);
        if halvings > 0 {
            halvings -= 1;
            continue;
        }
        let before = (f64::from(image.width), f64::from(image.height));
        image = halve(image);
        let part = (extent.0 / before.0, extent.1 / before.1);
        extent = (part.0 * f64::from(image.width), part.1 * f64::from(image.height));
    }
    let scale = f64::from(short_side) / f64::from(width.min(height));
    // Python rounds half to even.
    let scaled = |side: u32| (f64::from(side) * scale).round_ties_even() as u32;
    let mut axis = |source: u32, extent: f64, side: u32| {
        let scaled = scaled(side);
        Axis { source, extent, scaled, first: place(scaled - size), kept: size }
    };
    let (y, x) = (axis(image.height, extent.1, height), axis(image.width, extent.0, width));
    resize(image, x, y, Filter::Bicubic)
}

/// `random_crop_arr` of ADM with its fractions 0.8 to 1.
fn random(decoded: Decoded, size: u32, seed: u64) -> RgbImage {
    let mut state = seed;
    let mut below = |count: u32| (splitmix64(&mut state) % u64::from(count)) as u32;
    // ceil(size / 1.0) to ceil(size / 0.8), both included.
    let short_side = size + below(Crop::Random.short_side(size) - size + 1);
    cover(decoded, size, short_side, |free| below(free + 1))
}

fn fit(decoded: Decoded, size: u32) -> RgbImage {
    let (width, height) = decoded.extent();
    let image = decoded.image;
    if (image.width, image.height) == (size, size) {
        return image;
    }
    let x = Axis { extent: width, ..Axis::whole(image.width, size) };
    let y = Axis { extent: height, ..Axis::whole(image.height, size) };
    resize(image, x, y, Filter::Bilinear)
}

fn center(image: RgbImage, size: u32) -> RgbImage {
    let side = image.width.min(image.height);
    let left = (image.width - side) as usize / 2;
    let top = (image.height - side) as usize / 2;
    let pixels = image
        .pixels
        .chunks_exact(image.row_bytes())
        .skip(top)
        .take(side as usize)
        .flat_map(|row| &row[3 * left..3 * (left + side as usize)])
        .copied()
        .collect();
    let square = RgbImage { width: side, height: side, pixels };
    resize(square, Axis::whole(side, size), Axis::whole(side, size), Filter::Bicubic)
}

/// Steele, Lea and Flood's generator: one multiplication-mixed counter.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
