//! 3x3 convolution at stride 1 by Winograd's F(4x4, 3x3): a quarter of the multiplications.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): each 4x4 tile of the
//! output is `A^T [(G g G^T) * (B^T d B)] A` for its 6x6 window `d` of the input and the kernel `g`,
//! the products running over all channels as 36 matrix products. The interpolation points are
//! 0, +-1, +-2 and infinity.

use super::conv2d::ConvShape;
use super::matmul::{Mat, matmul};
use super::vector::vectorized;
use gemm::Parallelism;
use rayon::prelude::*;

/// Output rows and columns of a tile.
const TILE: usize = 4;
/// Input rows and columns of a tile.
const WINDOW: usize = 6;
/// Matrix products.
const POINTS: usize = WINDOW * WINDOW;
/// Tiles that a task transforms at a time, at least, while there are that many.
const TASK_TILES: usize = 48;
/// Channels that are transformed together in registers.
const LANES: usize = 16;
/// With fewer channels on either side the transforms cost more than the products save.
const CHANNELS_MIN: usize = 24;
/// With fewer tiles the kernel's own transform costs more than the products save.
const TILES_MIN: usize = 12;

/// `G`, which takes a kernel's three rows to six.
const KERNEL: [[f32; 3]; WINDOW] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

type Lanes = [f32; LANES];

/// Whether this convolution is one that [`forward`] computes, and faster than patches would be.
pub fn pays(shape: &ConvShape) -> bool {
    let tiles = shape.batch * tile_rows(shape) * tile_columns(shape);
    shape.kernel == 3
        && shape.stride == 1
        && shape.channels_in.min(shape.channels_out) >= CHANNELS_MIN
        && tiles >= TILES_MIN
}

/// The convolution of `x` `[B, H, W, Cin]` as `[B, H', W', Cout]`; `weight` is
/// `[(kh, kw, Cin), Cout]`.
pub fn forward(x: &[f32], weight: &[f32], bias: Option<&[f32]>, shape: &ConvShape) -> Vec<f32> {
    let (channels_in, channels_out) = (shape.channels_in, shape.channels_out);
    let kernel = transform_kernel(weight, channels_in * channels_out);
    let mut y = vec![0f32; shape.pixels_out() * channels_out];
    tasks(&mut y, shape).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        let tiles = task.rows.len() * tile_columns(shape);
        scratch.inputs.resize(POINTS * tiles * channels_in, 0.0);
        scratch.products.resize(POINTS * tiles * channels_out, 0.0);
        let Scratch { inputs, products } = scratch;
        vectorized(
            #[inline(always)]
            || transform_inputs(x, shape, task.rows.clone(), inputs),
        );
        let planes = products
            .chunks_exact_mut(tiles * channels_out)
            .zip(inputs.chunks_exact(tiles * channels_in))
            .zip(kernel.chunks_exact(channels_in * channels_out));
        for ((product, input), kernel) in planes {
            let input = Mat::new(input, tiles, channels_in);
            let kernel = Mat::new(kernel, channels_in, channels_out);
            matmul(product, input, kernel, 1.0, false, Parallelism::None);
        }
        vectorized(
            #[inline(always)]
            || transform_outputs(products, bias, shape, task.rows, task.y),
        );
    });
    y
}

/// What a thread keeps from task to task: `[36, tiles, Cin]` and `[36, tiles, Cout]`.
#[derive(Default)]
struct Scratch {
    inputs: Vec<f32>,
    products: Vec<f32>,
}

/// Consecutive rows of tiles, counted through the batch, and the output rows that they cover.
struct Task<'a> {
    rows: std::ops::Range<usize>,
    y: &'a mut [f32],
}

fn tile_rows(shape: &ConvShape) -> usize {
    shape.height_out.div_ceil(TILE)
}

fn tile_columns(shape: &ConvShape) -> usize {
    shape.width_out.div_ceil(TILE)
}

fn tasks<'a>(mut y: &'a mut [f32], shape: &ConvShape) -> Vec<Task<'a>> {
    let rows_per_image = tile_rows(shape);
    let rows_per_task = TASK_TILES.div_ceil(tile_columns(shape));
    let row_values = shape.width_out * shape.channels_out;
    let total = shape.batch * rows_per_image;
    (0..total)
        .step_by(rows_per_task)
        .map(|first| {
            let rows = first..total.min(first + rows_per_task);
            let height: usize = rows.clone().map(|row| output_rows(row, shape)).sum();
            let (own, rest) = std::mem::take(&mut y).split_at_mut(height * row_values);
            y = rest;
            Task { rows, y: own }
        })
        .collect()
}

/// Output rows of a row of tiles: four but for an image's last.
fn output_rows(row: usize, shape: &ConvShape) -> usize {
    TILE.min(shape.height_out - row % tile_rows(shape) * TILE)
}

/// `[9, n]` to `[36, n]`: `G g G^T` for each of the `n` pairs of channels.
fn transform_kernel(weight: &[f32], n: usize) -> Vec<f32> {
    let mut planes = vec![0f32; POINTS * n];
    planes.par_chunks_mut(n).enumerate().for_each(|(point, plane)| {
        let (rows, columns) = (KERNEL[point / WINDOW], KERNEL[point % WINDOW]);
        for (position, weight) in weight.chunks_exact(n).enumerate() {
            let factor = rows[position / 3] * columns[position % 3];
            if factor != 0.0 {
                vectorized(
                    #[inline(always)]
                    || plane.iter_mut().zip(weight).for_each(|(p, w)| *p += factor * w),
                );
            }
        }
    });
    planes
}

/// `B^T d B` of every tile in `rows`, to `[36, tiles, Cin]`.
#[inline(always)]
fn transform_inputs(
    x: &[f32],
    shape: &ConvShape,
    rows: std::ops::Range<usize>,
    inputs: &mut [f32],
) {
    let (columns, channels) = (tile_columns(shape), shape.channels_in);
    let plane = rows.len() * columns * channels;
    let mut tile = 0;
    for row in rows {
        let (image, row) = (row / tile_rows(shape), row % tile_rows(shape));
        for column in 0..columns {
            let window = Window::new(shape, image, row, column);
            for first in (0..channels).step_by(LANES) {
                let width = LANES.min(channels - first);
                let mut d = [[[0f32; LANES]; WINDOW]; WINDOW];
                for (i, d) in d.iter_mut().enumerate() {
                    for (j, d) in d.iter_mut().enumerate() {
                        if let Some(at) = window.pixel(i, j) {
                            load(d, &x[at + first..at + first + width]);
                        }
                    }
                }
                let d = input_columns(&d);
                for (i, row) in d.iter().enumerate() {
                    for (j, value) in input_row(row).iter().enumerate() {
                        let at = (i * WINDOW + j) * plane + tile * channels + first;
                        inputs[at..at + width].copy_from_slice(&value[..width]);
                    }
                }
            }
            tile += 1;
        }
    }
}

/// A whole group of channels is one vector move, the rest a loop.
#[inline(always)]
fn load(lanes: &mut Lanes, values: &[f32]) {
    match <&Lanes>::try_from(values) {
        Ok(values) => *lanes = *values,
        Err(_) => lanes[..values.len()].copy_from_slice(values),
    }
}

/// `A^T m A` plus bias of every tile in `rows`, to their output rows.
#[inline(always)]
fn transform_outputs(
    products: &[f32],
    bias: Option<&[f32]>,
    shape: &ConvShape,
    rows: std::ops::Range<usize>,
    y: &mut [f32],
) {
    let (columns, channels) = (tile_columns(shape), shape.channels_out);
    let plane = rows.len() * columns * channels;
    let (mut tile, mut top) = (0, 0);
    for row in rows {
        let height = output_rows(row, shape);
        for column in 0..columns {
            let left = column * TILE;
            let breadth = TILE.min(shape.width_out - left);
            for first in (0..channels).step_by(LANES) {
                let width = LANES.min(channels - first);
                let mut m = [[[0f32; LANES]; WINDOW]; WINDOW];
                for (i, m) in m.iter_mut().enumerate() {
                    for (j, m) in m.iter_mut().enumerate() {
                        let at = (i * WINDOW + j) * plane + tile * channels + first;
                        load(m, &products[at..at + width]);
                    }
                }
                let mut offset = [0f32; LANES];
                if let Some(bias) = bias {
                    load(&mut offset, &bias[first..first + width]);
                }
                let m = output_columns(&m);
                for (i, row) in m.iter().enumerate().take(height) {
                    for (j, value) in output_row(row, &offset).iter().enumerate().take(breadth) {
                        let pixel = (top + i) * shape.width_out + left + j;
                        let at = pixel * channels + first;
                        y[at..at + width].copy_from_slice(&value[..width]);
                    }
                }
            }
            tile += 1;
        }
        top += height;
    }
}

/// Where a tile's 6x6 window lies in the input.
struct Window<'a> {
    shape: &'a ConvShape,
    image: usize,
    top: isize,
    left: isize,
}

impl<'a> Window<'a> {
    #[inline(always)]
    fn new(shape: &'a ConvShape, image: usize, row: usize, column: usize) -> Self {
        let start = |tile: usize| (tile * TILE) as isize - shape.pad_before as isize;
        Self { shape, image, top: start(row), left: start(column) }
    }

    /// Offset of a pixel of the window; `None` outside the image, where it counts as zero.
    #[inline(always)]
    fn pixel(&self, i: usize, j: usize) -> Option<usize> {
        let (row, column) = (self.top + i as isize, self.left + j as isize);
        let Self { shape, image, .. } = self;
        let inside =
            row >= 0 && column >= 0 && row < shape.height as isize && column < shape.width as isize;
        let pixel = (image * shape.height + row as usize) * shape.width + column as usize;
        inside.then(|| pixel * shape.channels_in)
    }
}

/// `B^T d` for one lane: the products with B's rows, common terms shared.
#[inline(always)]
fn input_point([d0, d1, d2, d3, d4, d5]: [f32; WINDOW]) -> [f32; WINDOW] {
    let (even, odd) = (d4 - 4.0 * d2, d3 - 4.0 * d1);
    let (even_2, odd_2) = (d4 - d2, 2.0 * (d3 - d1));
    [
        4.0 * d0 - 5.0 * d2 + d4,
        even + odd,
        even - odd,
        even_2 + odd_2,
        even_2 - odd_2,
        4.0 * d1 - 5.0 * d3 + d5,
    ]
}

/// `A^T m` for one lane.
#[inline(always)]
fn output_point([m0, m1, m2, m3, m4, m5]: [f32; WINDOW]) -> [f32; TILE] {
    let (sum_1, difference_1) = (m1 + m2, m1 - m2);
    let (sum_2, difference_2) = (m3 + m4, m3 - m4);
    [
        m0 + sum_1 + sum_2,
        difference_1 + 2.0 * difference_2,
        sum_1 + 4.0 * sum_2,
        difference_1 + 8.0 * difference_2 + m5,
    ]
}

#[inline(always)]
fn input_columns(d: &[[Lanes; WINDOW]; WINDOW]) -> [[Lanes; WINDOW]; WINDOW] {
    let mut out = [[[0f32; LANES]; WINDOW]; WINDOW];
    for j in 0..WINDOW {
        for lane in 0..LANES {
            let point = input_point(std::array::from_fn(|i| d[i][j][lane]));
            for i in 0..WINDOW {
                out[i][j][lane] = point[i];
            }
        }
    }
    out
}

#[inline(always)]
fn input_row(d: &[Lanes; WINDOW]) -> [Lanes; WINDOW] {
    let mut out = [[0f32; LANES]; WINDOW];
    for lane in 0..LANES {
        let point = input_point(std::array::from_fn(|j| d[j][lane]));
        for j in 0..WINDOW {
            out[j][lane] = point[j];
        }
    }
    out
}

#[inline(always)]
fn output_columns(m: &[[Lanes; WINDOW]; WINDOW]) -> [[Lanes; WINDOW]; TILE] {
    let mut out = [[[0f32; LANES]; WINDOW]; TILE];
    for j in 0..WINDOW {
        for lane in 0..LANES {
            let point = output_point(std::array::from_fn(|i| m[i][j][lane]));
            for i in 0..TILE {
                out[i][j][lane] = point[i];
            }
        }
    }
    out
}

#[inline(always)]
fn output_row(m: &[Lanes; WINDOW], offset: &Lanes) -> [Lanes; TILE] {
    let mut out = [[0f32; LANES]; TILE];
    for lane in 0..LANES {
        let point = output_point(std::array::from_fn(|j| m[j][lane]));
        for j in 0..TILE {
            out[j][lane] = point[j] + offset[lane];
        }
    }
    out
}
