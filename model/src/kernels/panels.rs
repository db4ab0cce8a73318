//! Products of a small row-major matrix with weights packed for it, one thread at a time.
//!
//! A convolution multiplies many small matrices with few weights. Packed once into panels of
//! [`PANEL`] columns, the weights stream through the cache in the order in which they are needed.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Columns of a panel: at least two registers, so that a value of `lhs` is used twice when loaded.
pub(super) const PANEL: usize = 32;
/// Depths of a panel that are used at a time: 32 KiB, so that they stay in the first-level cache.
const DEPTH: usize = 256;

/// Rows that are multiplied together: with two registers of AVX-512 each, 24 of its 32. AVX2's 16 hold
/// half of them.
pub(super) const ROWS: usize = 12;

/// Panels that `columns` take; the last one is filled up with zeros.
pub(super) fn panels(columns: usize) -> usize {
    columns.div_ceil(PANEL)
}

/// `weight` `(columns, channels, positions)` in panels of its columns, `[panels, (positions, channels),
/// PANEL]`.
pub(super) fn pack(weight: &[f32], channels: usize, positions: usize) -> Vec<f32> {
    let depth = channels * positions;
    let mut packed = vec![0f32; panels(weight.len() / depth) * depth * PANEL];
    let parts = packed.par_chunks_mut(depth * PANEL).zip(weight.par_chunks(depth * PANEL));
    parts.for_each(|(packed, weight)| {
        for (lane, weight) in weight.chunks_exact(depth).enumerate() {
            for (c, weight) in weight.chunks_exact(positions).enumerate() {
                for (position, value) in weight.iter().enumerate() {
                    packed[(position * channels + c) * PANEL + lane] = *value;
                }
            }
        }
    });
    packed
}

/// `y = lhs weight + bias`: `lhs` `[rows, depth]`, `y` `[rows, columns]`, the weight in panels.
pub(super) struct Dense<'a> {
    pub lhs: &'a [f32],
    pub depth: usize,
    pub weight: &'a [f32],
    pub bias: Option<&'a [f32]>,
    pub y: &'a mut [f32],
    pub columns: usize,
}

impl Dense<'_> {
    pub fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Dense<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { lhs, depth, weight, bias, y, columns: stride } = self;
        for (panel, weight) in weight.chunks_exact(depth * PANEL).enumerate() {
            let first = panel * PANEL;
            let columns = first..stride.min(first + PANEL);
            let bias = bias.map(|bias| &bias[columns.clone()]);
            let target = Target { values: y, stride, columns };
            multiply(simd, target, lhs, depth, weight, bias);
        }
    }
}

/// Where a product goes: rows of `stride` values, of which those in `columns` are written.
pub(super) struct Target<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
    /// At most [`PANEL`] columns.
    pub columns: std::ops::Range<usize>,
}

/// `target = lhs panel + bias`.
///
/// `lhs` is `[rows, depth]`, `panel` `[depth, PANEL]`, `bias` of the target's columns. A sum runs in
/// the order of the depth whatever the number of rows, so a row's result does not depend on its
/// neighbours.
///
/// # Panics
/// When a slice is too short.
#[inline(always)]
pub(super) fn multiply<S: Simd>(
    simd: S,
    target: Target<'_>,
    lhs: &[f32],
    depth: usize,
    panel: &[f32],
    bias: Option<&[f32]>,
) {
    let product = Product { simd, lhs, depth, panel, bias };
    match (S::F32_LANES, target.columns.len()) {
        (16, ..=16) => product.strips::<ROWS, 1>(target),
        (16, _) => product.strips::<ROWS, 2>(target),
        _ => product.strips::<{ ROWS / 2 }, 2>(target),
    }
}

/// What [`multiply`] multiplies.
struct Product<'a, S> {
    simd: S,
    lhs: &'a [f32],
    depth: usize,
    panel: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl<S: Simd> Product<'_, S> {
    /// `R` rows and `H` registers of the panel's row at a time.
    #[inline(always)]
    fn strips<const R: usize, const H: usize>(&self, mut target: Target<'_>) {
        let rows = self.lhs.len() / self.depth;
        let registers = target.columns.len().div_ceil(S::F32_LANES);
        for first in (0..self.depth).step_by(DEPTH) {
            let part = first..self.depth.min(first + DEPTH);
            for register in (0..registers).step_by(H) {
                let mut row = 0;
                while row + R <= rows {
                    self.block::<R, H>(&mut target, row, register, part.clone());
                    row += R;
                }
                while row + 3 <= rows {
                    self.block::<3, H>(&mut target, row, register, part.clone());
                    row += 3;
                }
                while row < rows {
                    self.block::<1, H>(&mut target, row, register, part.clone());
                    row += 1;
                }
            }
        }
    }

    /// `R` rows from `row` and `H` registers from `register` on, over the depths in `part`.
    #[inline(always)]
    fn block<const R: usize, const H: usize>(
        &self,
        target: &mut Target<'_>,
        row: usize,
        register: usize,
        part: std::ops::Range<usize>,
    ) {
        let Self { simd, depth, .. } = *self;
        let columns = &target.columns;
        let first = columns.start + register * S::F32_LANES;
        let width = columns.end.min(first + H * S::F32_LANES) - first;
        let start = |r: usize| (row + r) * target.stride + first;
        let lhs: [&[f32]; R] = std::array::from_fn(|r| {
            let at = (row + r) * depth;
            &self.lhs[at + part.start..at + part.end]
        });
        let mut sums = [[simd.splat_f32s(0.0); H]; R];
        let panel = S::as_simd_f32s(&self.panel[part.start * PANEL..part.end * PANEL]).0;
        for (k, weights) in panel.chunks_exact(PANEL / S::F32_LANES).enumerate() {
            let weights: [S::f32s; H] = std::array::from_fn(|h| weights[register + h]);
            for r in 0..R {
                let x = simd.splat_f32s(lhs[r][k]);
                for h in 0..H {
                    sums[r][h] = simd.mul_add_f32s(x, weights[h], sums[r][h]);
                }
            }
        }
        let bias = self.bias.filter(|_| part.start == 0).map(|bias| &bias[first - columns.start..]);
        // By value: sums that this loop indexed would live in memory, and be stored at every depth.
        for (r, sums) in sums.into_iter().enumerate() {
            let row = &mut target.values[start(r)..][..width];
            for (h, (sum, values)) in sums.into_iter().zip(row.chunks_mut(S::F32_LANES)).enumerate()
            {
                let column = h * S::F32_LANES;
                let sum = match bias {
                    Some(bias) => {
                        let bias = &bias[column..column + values.len()];
                        simd.add_f32s(load(simd, bias), sum)
                    }
                    None if part.start > 0 => simd.add_f32s(load(simd, values), sum),
                    None => sum,
                };
                match S::as_mut_simd_f32s(values) {
                    ([register], []) => *register = sum,
                    _ => simd.partial_store_f32s(values, sum),
                }
            }
        }
    }
}

/// At most a register's values, zeros behind them.
#[inline(always)]
fn load<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    match S::as_simd_f32s(values) {
        ([register], []) => *register,
        _ => simd.partial_load_f32s(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Multiply<'a> {
        target: Target<'a>,
        lhs: &'a [f32],
        depth: usize,
        panel: &'a [f32],
        bias: &'a [f32],
    }

    impl pulp::WithSimd for Multiply<'_> {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            multiply(simd, self.target, self.lhs, self.depth, self.panel, Some(self.bias));
        }
    }

    #[test]
    fn agrees_with_the_definition() {
        for (rows, depth, columns) in
            [(1, 1, 1), (5, 3, 16), (6, 40, 17), (13, 700, 33), (29, 258, 64)]
        {
            let lhs: Vec<f32> = (0..rows * depth).map(|i| (i % 13) as f32 - 6.0).collect();
            let rhs = |k: usize, c: usize| ((k * 7 + c * 3) % 11) as f32 - 5.0;
            let bias: Vec<f32> = (0..columns).map(|c| c as f32).collect();
            let mut actual = vec![f32::NAN; rows * columns];
            for panel in 0..panels(columns) {
                let first = panel * PANEL;
                let range = first..columns.min(first + PANEL);
                let mut packed = vec![0f32; depth * PANEL];
                for k in 0..depth {
                    for c in range.clone() {
                        packed[k * PANEL + c - first] = rhs(k, c);
                    }
                }
                let bias = &bias[range.clone()];
                let target = Target { values: &mut actual, stride: columns, columns: range };
                pulp::Arch::new().dispatch(Multiply {
                    target,
                    lhs: &lhs,
                    depth,
                    panel: &packed,
                    bias,
                });
            }
            for row in 0..rows {
                for c in 0..columns {
                    let sum: f32 = (0..depth).map(|k| lhs[row * depth + k] * rhs(k, c)).sum();
                    assert_eq!(
                        actual[row * columns + c],
                        c as f32 + sum,
                        "{rows} {depth} {columns}"
                    );
                }
            }
        }
    }
}
