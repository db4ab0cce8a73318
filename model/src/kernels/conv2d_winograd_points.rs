//! The transforms of Winograd's F(4x4, 3x3), one register of channels at a time.
//!
//! See [`super::conv2d_winograd`]; the interpolation points are 0, +-1, +-2 and infinity.

use super::vector::{LANES, Row};

/// Output rows and columns of a tile.
pub(super) const TILE: usize = 4;
/// Input rows and columns of a tile.
pub(super) const WINDOW: usize = 6;

/// `G`, which takes a kernel's three rows to six.
const KERNEL: [[f32; 3]; WINDOW] = [
    [1.0 / 4.0, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// `G g` for every lane.
#[inline(always)]
pub(super) fn kernel_points(g: [Row; 3]) -> [Row; WINDOW] {
    KERNEL.map(|factors| {
        std::array::from_fn(|lane| {
            factors[0] * g[0][lane] + factors[1] * g[1][lane] + factors[2] * g[2][lane]
        })
    })
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

/// A transform along the columns of all lanes.
#[inline(always)]
fn columns<const N: usize>(
    m: &[[Row; WINDOW]; WINDOW],
    point: impl Fn([f32; WINDOW]) -> [f32; N],
) -> [[Row; WINDOW]; N] {
    let mut out = [[[0f32; LANES]; WINDOW]; N];
    for j in 0..WINDOW {
        for lane in 0..LANES {
            let point = point(std::array::from_fn(|i| m[i][j][lane]));
            for i in 0..N {
                out[i][j][lane] = point[i];
            }
        }
    }
    out
}

/// A transform along a row of all lanes.
#[inline(always)]
fn row<const N: usize>(m: &[Row; WINDOW], point: impl Fn([f32; WINDOW]) -> [f32; N]) -> [Row; N] {
    let mut out = [[0f32; LANES]; N];
    for lane in 0..LANES {
        let point = point(std::array::from_fn(|j| m[j][lane]));
        for j in 0..N {
            out[j][lane] = point[j];
        }
    }
    out
}

/// `B^T d`.
#[inline(always)]
pub(super) fn input_columns(d: &[[Row; WINDOW]; WINDOW]) -> [[Row; WINDOW]; WINDOW] {
    columns(d, input_point)
}

/// `d B` of a row.
#[inline(always)]
pub(super) fn input_row(d: &[Row; WINDOW]) -> [Row; WINDOW] {
    row(d, input_point)
}

/// `A^T m`.
#[inline(always)]
pub(super) fn output_columns(m: &[[Row; WINDOW]; WINDOW]) -> [[Row; WINDOW]; TILE] {
    columns(m, output_point)
}

/// `m A + offset` of a row.
#[inline(always)]
pub(super) fn output_row(m: &[Row; WINDOW], offset: &Row) -> [Row; TILE] {
    let mut out = row(m, output_point);
    for row in &mut out {
        for (value, offset) in row.iter_mut().zip(offset) {
            *value += offset;
        }
    }
    out
}
