//! Products of a small row-major matrix with weights packed for it, one thread at a time.
//!
//! A convolution multiplies many small matrices with few weights. Packed once into panels of
//! [`PANEL`] columns, the weights stream through the cache in the order in which they are needed.
//! Everything here is `#[inline(always)]`: call it from [`super::vector::vectorized`].

/// Columns of a panel: two AVX2 registers, of which [`ROWS`] rows of sums fill twelve.
pub(super) const PANEL: usize = 16;
/// A panel's row: what the vector loops hold in registers.
pub(super) type Row = [f32; PANEL];
/// Rows that are multiplied together.
const ROWS: usize = 6;
/// Rows of a panel that are used at a time: 32 KiB, so that they stay in the first-level cache.
const DEPTH: usize = 512;

/// Panels that `columns` take; the last one is filled up with zeros.
pub(super) fn panels(columns: usize) -> usize {
    columns.div_ceil(PANEL)
}

/// Where a product goes: rows of `stride` values, of which those in `columns` are written.
pub(super) struct Target<'a> {
    pub values: &'a mut [f32],
    pub stride: usize,
    /// At most [`PANEL`] columns.
    pub columns: std::ops::Range<usize>,
}

/// `target = lhs panel`, or `target += lhs panel` when `accumulate`.
///
/// `lhs` is `[rows, depth]`, `panel` `[depth, PANEL]`. A sum runs in the order of the depth
/// whatever the number of rows, so a row's result does not depend on its neighbours.
///
/// # Panics
/// When a slice is too short.
#[inline(always)]
pub(super) fn multiply(
    mut target: Target<'_>,
    lhs: &[f32],
    depth: usize,
    panel: &[f32],
    accumulate: bool,
) {
    let rows = lhs.len() / depth;
    for first in (0..depth).step_by(DEPTH) {
        let part = first..depth.min(first + DEPTH);
        let panel = &panel[part.start * PANEL..part.end * PANEL];
        let accumulate = accumulate || first > 0;
        let mut row = 0;
        while row + ROWS <= rows {
            block::<ROWS>(&mut target, row, lhs, depth, part.clone(), panel, accumulate);
            row += ROWS;
        }
        match rows - row {
            0 => {}
            1 => block::<1>(&mut target, row, lhs, depth, part, panel, accumulate),
            2 => block::<2>(&mut target, row, lhs, depth, part, panel, accumulate),
            3 => block::<3>(&mut target, row, lhs, depth, part, panel, accumulate),
            4 => block::<4>(&mut target, row, lhs, depth, part, panel, accumulate),
            _ => block::<5>(&mut target, row, lhs, depth, part, panel, accumulate),
        }
    }
}

/// `R` rows from `row` on, over the depths in `part`.
#[inline(always)]
fn block<const R: usize>(
    target: &mut Target<'_>,
    row: usize,
    lhs: &[f32],
    depth: usize,
    part: std::ops::Range<usize>,
    panel: &[f32],
    accumulate: bool,
) {
    let width = target.columns.len();
    let start = |r: usize| (row + r) * target.stride + target.columns.start;
    let lhs: [&[f32]; R] = std::array::from_fn(|r| {
        let at = (row + r) * depth;
        &lhs[at + part.start..at + part.end]
    });
    let panel = &panel.as_chunks::<PANEL>().0[..part.len()];
    let mut sums: [Row; R] = [[0.0; PANEL]; R];
    if accumulate {
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = load(&target.values[start(r)..][..width]);
        }
    }
    for k in 0..part.len() {
        let weights = &panel[k];
        for r in 0..R {
            let x = lhs[r][k];
            for column in 0..PANEL {
                sums[r][column] = x.mul_add(weights[column], sums[r][column]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        store(*sums, &mut target.values[start(r)..][..width]);
    }
}

/// A row from at most [`PANEL`] `values`. By value: sums whose address is taken would not stay in
/// registers.
#[inline(always)]
pub(super) fn load(values: &[f32]) -> Row {
    match Row::try_from(values) {
        Ok(row) => row,
        Err(_) => {
            let mut row = [0f32; PANEL];
            row[..values.len()].copy_from_slice(values);
            row
        }
    }
}

/// The first columns of `row` to `values`, as many as it has.
#[inline(always)]
pub(super) fn store(row: Row, values: &mut [f32]) {
    match <&mut Row>::try_from(&mut *values) {
        Ok(values) => *values = row,
        Err(_) => {
            let len = values.len();
            values.copy_from_slice(&row[..len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::vector::vectorized;
    use super::*;

    #[test]
    fn agrees_with_the_definition() {
        for (rows, depth, columns) in [(1, 1, 1), (5, 3, 16), (6, 40, 17), (13, 700, 33)] {
            let lhs: Vec<f32> = (0..rows * depth).map(|i| (i % 13) as f32 - 6.0).collect();
            let rhs = |k: usize, c: usize| ((k * 7 + c * 3) % 11) as f32 - 5.0;
            let mut actual = vec![1f32; rows * columns];
            for panel in 0..panels(columns) {
                let first = panel * PANEL;
                let range = first..columns.min(first + PANEL);
                let mut packed = vec![0f32; depth * PANEL];
                for k in 0..depth {
                    for c in range.clone() {
                        packed[k * PANEL + c - first] = rhs(k, c);
                    }
                }
                let target = Target { values: &mut actual, stride: columns, columns: range };
                vectorized(
                    #[inline(always)]
                    || multiply(target, &lhs, depth, &packed, true),
                );
            }
            for row in 0..rows {
                for c in 0..columns {
                    let sum: f32 = (0..depth).map(|k| lhs[row * depth + k] * rhs(k, c)).sum();
                    assert_eq!(actual[row * columns + c], 1.0 + sum, "{rows} {depth} {columns}");
                }
            }
        }
    }
}
