//! Convolution of any kernel and stride as matrix products over tiles of gathered patches.

use super::conv2d::ConvShape;
use super::fresh::zeros;
use super::matmul::{Mat, matmul};
use super::panels::{Dense, pack};
use gemm::Parallelism;
use rayon::prelude::*;

/// Patch elements a tile may hold: with its share of the weights it stays in a core's L2 cache.
const TILE_ELEMENTS: usize = 96 * 1024;
/// Fewest and most output pixels of a tile.
const TILE_PIXELS: std::ops::RangeInclusive<usize> = 64..=512;
/// Input channels whose weight gradient is one task.
const GRAD_CHANNELS: usize = 64;
/// Output pixels that one product sums over in the weight gradient.
const GRAD_PIXELS: usize = 256;

/// `y[p, o] = bias[o] + sum over (kh, kw, c) of patch[p, (kh, kw, c)] weight[(kh, kw, c), o]`.
///
/// `x` is `[B, H, W, Cin]`, `weight` `(Cout, Cin, kh, kw)`, the result `[B, H', W', Cout]`; tiles of
/// output pixels run in parallel.
pub fn forward(x: &[f32], weight: &[f32], bias: Option<&[f32]>, shape: &ConvShape) -> Vec<f32> {
    let depth = shape.positions() * shape.channels_in;
    let columns = shape.channels_out;
    let tile_pixels = (TILE_ELEMENTS / depth).clamp(*TILE_PIXELS.start(), *TILE_PIXELS.end());
    let weight = pack(weight, shape.channels_in, shape.positions());
    let mut y = zeros(shape.pixels_out() * columns);
    y.par_chunks_mut(tile_pixels * columns).enumerate().for_each_init(
        Vec::new,
        |gathered, (tile, y)| {
            let (first, pixels) = (tile * tile_pixels, y.len() / columns);
            let patches = if shape.is_pointwise() {
                &x[first * depth..][..pixels * depth]
            } else {
                gathered.resize(tile_pixels * depth, 0.0);
                gather_patches(x, shape, first, &mut gathered[..pixels * depth]);
                &gathered[..pixels * depth]
            };
            Dense { lhs: patches, depth, weight: &weight, bias, y, columns }.run();
        },
    );
    y
}

/// The gradient of the weight, `(Cout, Cin, kh, kw)`, from `x` and the gradient of `y`.
///
/// A task owns one kernel position and a block of input channels and sums over all pixels in
/// order, so the result does not depend on the number of threads.
pub fn grad_weight(x: &[f32], grad: &[f32], shape: &ConvShape) -> Vec<f32> {
    let ConvShape { channels_in, channels_out, .. } = *shape;
    let positions = shape.positions();
    let blocks = channels_in.div_ceil(GRAD_CHANNELS);
    let parts: Vec<Vec<f32>> = (0..positions * blocks)
        .into_par_iter()
        .map(|task| {
            let first = task % blocks * GRAD_CHANNELS;
            let channels = first..channels_in.min(first + GRAD_CHANNELS);
            grad_weight_part(x, grad, shape, task / blocks, channels)
        })
        .collect();
    let mut weight = vec![0f32; channels_out * channels_in * positions];
    for (task, part) in parts.iter().enumerate() {
        let (position, first) = (task / blocks, task % blocks * GRAD_CHANNELS);
        for (c, row) in part.chunks_exact(channels_out).enumerate() {
            for (o, value) in row.iter().enumerate() {
                weight[(o * channels_in + first + c) * positions + position] = *value;
            }
        }
    }
    weight
}

/// `[channels, Cout]` of the weight's gradient at one kernel position.
fn grad_weight_part(
    x: &[f32],
    grad: &[f32],
    shape: &ConvShape,
    position: usize,
    channels: std::ops::Range<usize>,
) -> Vec<f32> {
    let (columns, depth) = (shape.channels_out, channels.len());
    let mut part = vec![0f32; depth * columns];
    let mut inputs = vec![0f32; GRAD_PIXELS * depth];
    for (tile, grad) in grad.chunks(GRAD_PIXELS * columns).enumerate() {
        let pixels = grad.len() / columns;
        for (i, input) in inputs.chunks_exact_mut(depth).take(pixels).enumerate() {
            let pixel = Pixel::of(tile * GRAD_PIXELS + i, shape);
            match pixel.input(position / shape.kernel[1], position % shape.kernel[1], shape) {
                Some(at) => input.copy_from_slice(&x[at + channels.start..at + channels.end]),
                None => input.fill(0.0),
            }
        }
        let inputs = Mat::new(&inputs, pixels, depth).t();
        let grad = Mat::new(grad, pixels, columns);
        matmul(&mut part, inputs, grad, 1.0, true, Parallelism::None);
    }
    part
}

/// Fills `patches` `[pixels, (kh, kw, Cin)]` for the output pixels from `first` on.
fn gather_patches(x: &[f32], shape: &ConvShape, first: usize, patches: &mut [f32]) {
    let channels = shape.channels_in;
    let row = shape.kernel[1] * channels;
    for (i, patch) in patches.chunks_exact_mut(shape.kernel[0] * row).enumerate() {
        let pixel = Pixel::of(first + i, shape);
        for (kh, patch_row) in patch.chunks_exact_mut(row).enumerate() {
            if let Some(at) = pixel.input_row(kh, shape) {
                patch_row.copy_from_slice(&x[at..at + row]);
                continue;
            }
            for (kw, target) in patch_row.chunks_exact_mut(channels).enumerate() {
                match pixel.input(kh, kw, shape) {
                    Some(at) => target.copy_from_slice(&x[at..at + channels]),
                    None => target.fill(0.0),
                }
            }
        }
    }
}

/// Where an output pixel's window begins in the input; negative in the padding.
struct Pixel {
    image: usize,
    top: isize,
    left: isize,
}

impl Pixel {
    fn of(index: usize, shape: &ConvShape) -> Self {
        let (rest, column) = (index / shape.width_out, index % shape.width_out);
        let (image, row) = (rest / shape.height_out, rest % shape.height_out);
        let start = |at: usize, pad: usize| (at * shape.stride) as isize - pad as isize;
        let [above, left] = shape.pad_before;
        Self { image, top: start(row, above), left: start(column, left) }
    }

    /// Offset of the input pixel under kernel position `(kh, kw)`, unless that is padding.
    fn input(&self, kh: usize, kw: usize, shape: &ConvShape) -> Option<usize> {
        let row = usize::try_from(self.top + kh as isize).ok().filter(|&row| row < shape.height)?;
        let column =
            usize::try_from(self.left + kw as isize).ok().filter(|&column| column < shape.width)?;
        Some(((self.image * shape.height + row) * shape.width + column) * shape.channels_in)
    }

    /// Offset of kernel row `kh` when the whole row lies inside the image.
    fn input_row(&self, kh: usize, shape: &ConvShape) -> Option<usize> {
        self.input(kh, shape.kernel[1] - 1, shape)?;
        self.input(kh, 0, shape)
    }
}
