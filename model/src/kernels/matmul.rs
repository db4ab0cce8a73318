//! The one door to the `gemm` crate: bounds-checked strided f32 matrix products.

use gemm::Parallelism;

/// A strided view of an f32 matrix.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// `rows x cols`, row-major without gaps, at the start of `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    fn fits(&self) -> bool {
        self.rows == 0
            || self.cols == 0
            || (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride
                < self.data.len()
    }
}

/// `dst = scale * lhs rhs`, or `dst += scale * lhs rhs` when `accumulate`; `dst` is row-major.
///
/// # Panics
/// When the shapes do not fit each other or their slices.
pub(crate) fn matmul(
    dst: &mut [f32],
    lhs: Mat<'_>,
    rhs: Mat<'_>,
    scale: f32,
    accumulate: bool,
    parallelism: Parallelism,
) {
    let (m, k, n) = (lhs.rows, lhs.cols, rhs.cols);
    assert!(rhs.rows == k && dst.len() >= m * n && lhs.fits() && rhs.fits(), "matmul: shapes");
    // SAFETY: the assertion bounds every element that strides and sizes reach in the three slices,
    // and `dst` is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// All threads of the pool for a product of so many multiply-accumulates, one where waking others
/// would take longer.
pub(crate) fn parallel(macs: usize) -> Parallelism {
    /// About a fifth of a millisecond of one core.
    const SHARED_MACS_MIN: usize = 1 << 24;
    match macs >= SHARED_MACS_MIN {
        true => Parallelism::Rayon(rayon::current_num_threads()),
        false => Parallelism::None,
    }
}

/// [`super::matrix_rate`] on all threads of the pool.
pub(super) fn cpu_matrix_rate() -> f64 {
    const SIDE: usize = 1024;
    const TRIES: usize = 6;
    let (a, b) = (vec![0.5f32; SIDE * SIDE], vec![0.25f32; SIDE * SIDE]);
    let mut product = vec![0f32; SIDE * SIDE];
    let mut seconds = || {
        let start = std::time::Instant::now();
        let (a, b) = (Mat::new(&a, SIDE, SIDE), Mat::new(&b, SIDE, SIDE));
        matmul(&mut product, a, b, 1.0, false, parallel(SIDE * SIDE * SIDE));
        start.elapsed().as_secs_f64()
    };
    let best = (0..TRIES).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    (SIDE * SIDE * SIDE) as f64 / best
}
