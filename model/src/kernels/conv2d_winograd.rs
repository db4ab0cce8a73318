//! 3x3 convolution at stride 1 by Winograd's F(4x4, 3x3): a quarter of the multiplications.
//!
//! Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): each 4x4 tile of the
//! output is `A^T [(G g G^T) * (B^T d B)] A` for its 6x6 window `d` of the input and the kernel `g`,
//! the products running over all channels as 36 matrix products.

use super::conv2d::ConvShape;
use super::conv2d_winograd_points::{
    TILE, WINDOW, input_columns, input_row, kernel_points, output_columns, output_row,
};
use super::fresh::zeros;
use super::panels::{PANEL, Target, multiply, panels};
use super::vector::{LANES, Row, load, store, vectorized};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::cell::Cell;

/// Matrix products.
const POINTS: usize = WINDOW * WINDOW;
/// Tiles that a task transforms at a time, about, while there are that many for every thread.
const TASK_TILES: usize = 64;
/// With fewer channels on either side the transforms cost more than the products save.
const CHANNELS_MIN: usize = 16;
/// With fewer tiles the kernel's own transform costs more than the products save.
const TILES_MIN: usize = 12;

thread_local! {
    /// The last transformed kernel's memory: asking the system for such a buffer anew, page by
    /// page, takes as long as filling it.
    static KERNEL_MEMORY: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Whether this convolution is one that [`forward`] computes, and faster than patches would be.
pub fn pays(shape: &ConvShape) -> bool {
    let tiles = shape.batch * tile_rows(shape) * tile_columns(shape);
    shape.kernel == [3, 3]
        && shape.stride == 1
        && shape.channels_in.min(shape.channels_out) >= CHANNELS_MIN
        && tiles >= TILES_MIN
}

/// The convolution of `x` `[B, H, W, Cin]` as `[B, H', W', Cout]`; `weight` is `(Cout, Cin, 3, 3)`.
pub fn forward(x: &[f32], weight: &[f32], bias: Option<&[f32]>, shape: &ConvShape) -> Vec<f32> {
    let mut kernel = KERNEL_MEMORY.take();
    transform_kernel(weight, shape, &mut kernel);
    let mut y = zeros(shape.pixels_out() * shape.channels_out);
    tasks(&mut y, shape).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        let tiles = task.rows.len() * tile_columns(shape);
        scratch.inputs.resize(POINTS * plane(tiles, shape.channels_in), 0.0);
        scratch.products.resize(POINTS * plane(tiles, shape.channels_out), 0.0);
        let Scratch { inputs, products } = scratch;
        vectorized(
            #[inline(always)]
            || transform_inputs(x, shape, task.rows.clone(), inputs),
        );
        Arch::new().dispatch(Products { inputs, kernel: &kernel, shape, tiles, products });
        vectorized(
            #[inline(always)]
            || transform_outputs(products, bias, shape, task.rows, task.y),
        );
    });
    KERNEL_MEMORY.set(kernel);
    y
}

/// The 36 products `[tiles, Cin] [Cin, Cout]`. A point's inputs stay in the second-level cache
/// while the panels of its kernel pass.
struct Products<'a> {
    inputs: &'a [f32],
    kernel: &'a [f32],
    shape: &'a ConvShape,
    tiles: usize,
    products: &'a mut [f32],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { inputs, kernel, shape, tiles, products } = self;
        let ConvShape { channels_in, channels_out, .. } = *shape;
        let block = channels_in * PANEL;
        let points = inputs
            .chunks_exact(plane(tiles, channels_in))
            .zip(products.chunks_exact_mut(plane(tiles, channels_out)));
        for (point, (input, product)) in points.enumerate() {
            let input = &input[..tiles * channels_in];
            for panel in 0..panels(channels_out) {
                let first = panel * PANEL;
                let columns = first..channels_out.min(first + PANEL);
                let kernel = &kernel[(panel * POINTS + point) * block..][..block];
                let target = Target { values: product, stride: channels_out, columns };
                multiply(simd, target, input, channels_in, kernel, None);
            }
        }
    }
}

/// Values from one point to the next. The transforms go through all 36 planes at once: a stride of
/// a power of two would have them compete for the same few lines of the cache.
fn plane(tiles: usize, channels: usize) -> usize {
    tiles * channels + LANES
}

/// What a thread keeps from task to task: `[36, tiles, Cin]` and `[36, tiles, Cout]`, each plane
/// with a gap behind it.
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
    let row_values = shape.width_out * shape.channels_out;
    let total = shape.batch * rows_per_image;
    // As many tasks for every thread, so that none waits for the last one.
    let threads = rayon::current_num_threads();
    let tasks = (total * tile_columns(shape)).div_ceil(TASK_TILES).next_multiple_of(threads);
    let rows_per_task = total.div_ceil(tasks);
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

/// `G g G^T` of every pair of channels, in panels of output channels:
/// `[panels, 36, Cin, PANEL]`.
fn transform_kernel(weight: &[f32], shape: &ConvShape, kernel: &mut Vec<f32>) {
    let channels_in = shape.channels_in;
    let block = POINTS * channels_in * PANEL;
    kernel.resize(panels(shape.channels_out) * block, 0.0);
    kernel.par_chunks_mut(block).enumerate().for_each(|(panel, kernel)| {
        let depth = 9 * channels_in;
        let first = panel * PANEL;
        let weight = &weight[first * depth..shape.channels_out.min(first + PANEL) * depth];
        vectorized(
            #[inline(always)]
            || transform_panel(weight, channels_in, kernel),
        );
    });
}

/// One panel of the kernel, `[36, Cin, PANEL]`, from `weight` `(PANEL or fewer, Cin, 3, 3)`.
#[inline(always)]
fn transform_panel(weight: &[f32], channels_in: usize, kernel: &mut [f32]) {
    let halves = weight.chunks(LANES * 9 * channels_in);
    for (half, weight) in halves.enumerate() {
        for c in 0..channels_in {
            let mut g = [[[0f32; LANES]; 3]; 3];
            for (lane, weight) in weight.chunks_exact(9 * channels_in).enumerate() {
                for (position, value) in weight[9 * c..9 * c + 9].iter().enumerate() {
                    g[position / 3][position % 3][lane] = *value;
                }
            }
            let rows: [[Row; WINDOW]; 3] =
                std::array::from_fn(|j| kernel_points(std::array::from_fn(|i| g[i][j])));
            for i in 0..WINDOW {
                let points = kernel_points(rows.map(|row| row[i]));
                for (j, point) in points.iter().enumerate() {
                    let at = ((i * WINDOW + j) * channels_in + c) * PANEL + half * LANES;
                    store(*point, &mut kernel[at..at + LANES]);
                }
            }
        }
    }
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
    let plane = plane(rows.len() * columns, channels);
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
                            *d = load(&x[at + first..at + first + width]);
                        }
                    }
                }
                let d = input_columns(&d);
                for (i, row) in d.iter().enumerate() {
                    for (j, value) in input_row(row).iter().enumerate() {
                        let at = (i * WINDOW + j) * plane + tile * channels + first;
                        store(*value, &mut inputs[at..at + width]);
                    }
                }
            }
            tile += 1;
        }
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
    let plane = plane(rows.len() * columns, channels);
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
                        *m = load(&products[at..at + width]);
                    }
                }
                let offset = bias.map_or([0f32; LANES], |bias| load(&bias[first..first + width]));
                let m = output_columns(&m);
                for (i, row) in m.iter().enumerate().take(height) {
                    for (j, value) in output_row(row, &offset).iter().enumerate().take(breadth) {
                        let pixel = (top + i) * shape.width_out + left + j;
                        let at = pixel * channels + first;
                        store(*value, &mut y[at..at + width]);
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
        let start = |tile: usize, pad: usize| (tile * TILE) as isize - pad as isize;
        let [above, left] = shape.pad_before;
        Self { shape, image, top: start(row, above), left: start(column, left) }
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
