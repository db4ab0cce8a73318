//! From an image of any size to a square.

use crate::config::Crop;
use crate::halve::halve;
use crate::image::RgbImage;
use crate::resize::{Axis, Filter, resize};

/// Crops `image` to `size` by `size` pixels.
///
/// `seed` matters to [`Crop::Random`] alone; the same seed gives the same crop of an image.
///
/// # Panics
/// If `size` is 0.
pub fn crop(image: RgbImage, size: u32, crop: Crop, seed: u64) -> RgbImage {
    assert!(size > 0, "an image of no pixels was asked for");
    match crop {
        Crop::Adm => cover(image, size, size, |free| free / 2),
        Crop::Resize => fit(image, size),
        Crop::Center => center(image, size),
        Crop::Random => random(image, size, seed),
    }
}

/// ADM's `center_crop_arr` and the frame of its `random_crop_arr` (guided-diffusion,
/// image_datasets.py): halve with a box filter while the short side is at least twice
/// `short_side`, scale it to `short_side` with a bicubic filter, and keep the square of `size`
/// at the offset that `place` chooses out of the free pixels of each axis.
///
/// Only what the square needs is computed.
fn cover(
    mut image: RgbImage,
    size: u32,
    short_side: u32,
    mut place: impl FnMut(u32) -> u32,
) -> RgbImage {
    while u64::from(image.width.min(image.height)) >= 2 * u64::from(short_side) {
        image = halve(image);
    }
    let scale = f64::from(short_side) / f64::from(image.width.min(image.height));
    // Python rounds half to even.
    let scaled = |side: u32| (f64::from(side) * scale).round_ties_even() as u32;
    let mut axis = |source: u32| {
        let scaled = scaled(source);
        Axis { source, scaled, first: place(scaled - size), kept: size }
    };
    let (y, x) = (axis(image.height), axis(image.width));
    resize(image, x, y, Filter::Bicubic)
}

/// `random_crop_arr` of ADM with its fractions 0.8 to 1.
fn random(image: RgbImage, size: u32, seed: u64) -> RgbImage {
    let mut state = seed;
    let mut below = |count: u32| (splitmix64(&mut state) % u64::from(count)) as u32;
    // ceil(size / 1.0) to ceil(size / 0.8), both included.
    let short_side = size + below(Crop::Random.short_side(size) - size + 1);
    cover(image, size, short_side, |free| below(free + 1))
}

fn fit(image: RgbImage, size: u32) -> RgbImage {
    if (image.width, image.height) == (size, size) {
        return image;
    }
    let (x, y) = (Axis::whole(image.width, size), Axis::whole(image.height, size));
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
