//! PIL's halving with a box filter, bit for bit.
//!
//! An odd side of 4n + 1 pixels has a sample exactly on the border of two windows; which of
//! them takes it is decided by the rounding of PIL's floating-point arithmetic, so odd sides
//! are done here with that arithmetic. An even side is a plain mean of pairs.

use crate::image::RgbImage;
use crate::resize::{Axis, Filter, resize_rows};

/// Fractional bits of PIL's coefficients (`PRECISION_BITS` in its Resample.c).
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// Halves both sides, rounding down: `image.resize((w // 2, h // 2), Image.BOX)`.
///
/// `image` must be at least two pixels wide and high.
pub(crate) fn halve(image: RgbImage) -> RgbImage {
    halve_columns(&halve_rows(image))
}

/// Each row to half its length.
fn halve_rows(image: RgbImage) -> RgbImage {
    let width = image.width / 2;
    if image.width.is_multiple_of(2) {
        let rows = (0, image.height);
        return resize_rows(&image, Axis::whole(image.width, width), rows, Filter::Box);
    }
    let windows = windows(image.width, width);
    let mut pixels = Vec::with_capacity(3 * width as usize * image.height as usize);
    for row in image.pixels.chunks_exact(image.row_bytes()) {
        for window in &windows {
            let source = &row[3 * window.start..3 * (window.start + window.length)];
            for channel in 0..3 {
                let sum =
                    source[channel..].iter().step_by(3).map(|&sample| u32::from(sample)).sum();
                pixels.push(window.mean(sum));
            }
        }
    }
    RgbImage { width, height: image.height, pixels }
}

/// Each column to half its length.
fn halve_columns(image: &RgbImage) -> RgbImage {
    let height = image.height / 2;
    let row = |y: usize| &image.pixels[y * image.row_bytes()..(y + 1) * image.row_bytes()];
    let mut pixels = Vec::with_capacity(image.row_bytes() * height as usize);
    for window in windows(image.height, height) {
        let (above, below) = (row(window.start), row(window.start + 1));
        if window.length == 2 {
            let pairs = above.iter().zip(below);
            pixels.extend(pairs.map(|(&a, &b)| (u16::from(a) + u16::from(b)).div_ceil(2) as u8));
        } else {
            let triples = above.iter().zip(below).zip(row(window.start + 2));
            pixels.extend(
                triples
                    .map(|((&a, &b), &c)| window.mean(u32::from(a) + u32::from(b) + u32::from(c))),
            );
        }
    }
    RgbImage { width: image.width, height, pixels }
}

/// The source samples that a box filter averages: two, or three on odd sides.
struct Window {
    start: usize,
    length: usize,
}

impl Window {
    /// The mean of samples that add up to `sum`, in PIL's fixed point.
    fn mean(&self, sum: u32) -> u8 {
        let coefficient = (0.5 + f64::from(1 << PRECISION_BITS) / self.length as f64) as u32;
        ((sum * coefficient + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS) as u8
    }
}

/// PIL's `precompute_coeffs` for the box filter, operation by operation.
fn windows(source: u32, target: u32) -> Vec<Window> {
    let scale = f64::from(source) / f64::from(target);
    let (support, stretch) = (0.5 * scale, 1.0 / scale);
    (0..target)
        .map(|index| {
            let center = (f64::from(index) + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as u32;
            let end = ((center + support + 0.5) as u32).min(source);
            let inside = |sample: &u32| {
                let position = (f64::from(*sample) - center + 0.5) * stretch;
                position > -0.5 && position <= 0.5
            };
            let start = (first..end).find(inside).unwrap_or(first);
            let length = (first..end).filter(inside).count();
            Window { start: start as usize, length }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_averages_two_or_three_samples_and_lies_inside() {
        for source in 2..1200 {
            let windows = windows(source, source / 2);
            assert_eq!(windows[0].start, 0);
            for window in windows {
                let even = source.is_multiple_of(2);
                assert!(window.length == 2 || (window.length == 3 && !even), "side {source}");
                assert!(window.start + window.length <= source as usize, "side {source}");
            }
        }
    }
}
