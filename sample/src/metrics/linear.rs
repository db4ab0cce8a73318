//! Matrix products on row-major slices, and what follows from them.

use crate::error::{Result, SampleError};
use candle_core::{Device, Tensor, WithDType};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::svd::{ComputeSvdVectors, SvdParams, svd, svd_scratch};
use faer::{Auto, Mat, MatRef, Side, Spec, get_global_parallelism};

/// rows^T rows, `dims` x `dims`.
pub(super) fn gram(rows: &[f64], dims: usize) -> Result<Vec<f64>> {
    let rows = Tensor::from_slice(rows, (rows.len() / dims, dims), &Device::Cpu)?;
    Ok(rows.t()?.matmul(&rows)?.flatten_all()?.to_vec1()?)
}

/// The trace of (A B)^(1/2) for symmetric positive semi-definite A and B.
///
/// With A = R^T R and B = Q^T Q it is the sum of the singular values of R Q^T. The eigenvalues of
/// A B are their squares, and would lose what is small beside the largest.
///
/// # Errors
/// When a decomposition does not converge.
pub(super) fn trace_sqrt_product(a: &[f64], b: &[f64], dims: usize) -> Result<f64> {
    let product = root(a, dims)? * root(b, dims)?.transpose();
    Ok(singular_values(&product)?.column_vector().iter().sum())
}

/// Those of a square matrix, by QR iterations alone: faer's own `singular_values` divides and
/// conquers, and gives NaN for some matrices with many singular values at 0.
fn singular_values(a: &Mat<f64>) -> Result<Diag<f64>> {
    let qr_only = SvdParams { recursion_threshold: usize::MAX, ..<SvdParams as Auto<f64>>::auto() };
    let (qr_only, none, par) =
        (Spec::new(qr_only), ComputeSvdVectors::No, get_global_parallelism());
    let mut values = Diag::zeros(a.nrows());
    let scratch = svd_scratch::<f64>(a.nrows(), a.ncols(), none, none, par, qr_only);
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let found = svd(a.as_ref(), values.as_mut(), None, None, par, stack, qr_only);
    found.map(|()| values).map_err(|_| undecomposed())
}

/// R of A = R^T R: row i is the i-th eigenvector by the root of its eigenvalue, or 0 where that
/// is rounding. A is brought to values about 1 before: faer takes for 0 what is small in itself.
fn root(a: &[f64], dims: usize) -> Result<Mat<f64>> {
    let a = MatRef::from_row_major_slice(a, dims, dims);
    let largest = a.norm_max();
    if largest == 0.0 {
        return Ok(Mat::zeros(dims, dims));
    }
    let a = a * (1.0 / largest);
    let eigen = a.self_adjoint_eigen(Side::Lower).map_err(|_| undecomposed())?;
    let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
    let rounding = values.iter().copied().fold(0.0, f64::max) * dims as f64 * f64::EPSILON;
    let scale = |i: usize| if values[i] > rounding { (largest * values[i]).sqrt() } else { 0.0 };
    Ok(Mat::from_fn(dims, dims, |i, j| scale(i) * eigen.U()[(j, i)]))
}

fn undecomposed() -> SampleError {
    SampleError::setting("covariance", "has no eigenvalues to be found")
}

/// a b^T of row-major rows of `dims` values: (rows of a) x (rows of b).
pub(super) fn products<T: WithDType>(a: &[T], b: &[T], dims: usize) -> Result<Vec<T>> {
    let matrix = |rows: &[T]| Tensor::from_slice(rows, (rows.len() / dims, dims), &Device::Cpu);
    Ok(matrix(a)?.matmul(&matrix(b)?.t()?)?.flatten_all()?.to_vec1()?)
}

/// Squared distances between the rows of `a` and of `b`, none below 0.
pub(super) fn squared_distances(a: &[f32], b: &[f32], dims: usize) -> Result<Vec<f32>> {
    let norms = |rows: &[f32]| -> Vec<f32> {
        rows.chunks(dims).map(|row| row.iter().map(|v| v * v).sum()).collect()
    };
    let (of_a, of_b) = (norms(a), norms(b));
    let mut distances = products(a, b, dims)?;
    for (row, norm) in distances.chunks_mut(of_b.len()).zip(&of_a) {
        for (value, other) in row.iter_mut().zip(&of_b) {
            *value = (norm + other - 2.0 * *value).max(0.0);
        }
    }
    Ok(distances)
}

/// Both sets with the mean of `b` taken away: smaller norms cancel less in distances.
pub(super) fn centred(a: &[f32], b: &[f32], dims: usize) -> (Vec<f32>, Vec<f32>) {
    let mut mean = vec![0f64; dims];
    let count = (b.len() / dims) as f64;
    for row in b.chunks(dims) {
        mean.iter_mut().zip(row).for_each(|(mean, v)| *mean += f64::from(*v) / count);
    }
    let shift = |rows: &[f32]| -> Vec<f32> {
        let value = |(i, v): (usize, &f32)| (f64::from(*v) - mean[i % dims]) as f32;
        rows.iter().enumerate().map(value).collect()
    };
    (shift(a), shift(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Q diag(values) Q^T, Q a product of random reflections.
    fn with_eigenvalues(values: &[f64], rng: &mut ChaCha8Rng) -> Vec<f64> {
        let dims = values.len();
        let mut a = vec![0.0; dims * dims];
        (0..dims).for_each(|i| a[i * dims + i] = values[i]);
        for _ in 0..3 {
            let v: Vec<f64> = (0..dims).map(|_| rng.random_range(-1.0..1.0)).collect();
            let beta = 2.0 / v.iter().map(|x| x * x).sum::<f64>();
            for transposed in [false, true] {
                let at = |i: usize, j: usize| if transposed { j * dims + i } else { i * dims + j };
                for j in 0..dims {
                    let dot: f64 = (0..dims).map(|i| v[i] * a[at(i, j)]).sum();
                    (0..dims).for_each(|i| a[at(i, j)] -= beta * dot * v[i]);
                }
            }
        }
        a
    }

    #[test]
    fn roots_restore_singular_matrices() {
        let mut rng = ChaCha8Rng::seed_from_u64(10);
        for (dims, rank) in [(1, 1), (4, 4), (30, 11), (140, 60), (5, 0)] {
            let value = |i: usize| if i < rank { 0.5 + i as f64 } else { 0.0 };
            let values: Vec<f64> = (0..dims).map(value).collect();
            let a = with_eigenvalues(&values, &mut rng);
            let root = root(&a, dims).unwrap();
            let restored = root.transpose() * &root;
            let nonzero = (0..dims).filter(|i| root.row(*i).iter().any(|v| *v != 0.0)).count();
            assert_eq!(nonzero, rank);
            for (i, value) in a.iter().enumerate() {
                let found = restored[(i / dims, i % dims)];
                assert!((found - value).abs() < 1e-10, "{dims} {i}: {found} {value}");
            }
        }
    }

    #[test]
    fn singular_values_at_zero_and_any_scale_are_summed() {
        // With common eigenvectors: the roots of the eigenvalues' products, three in four of them 0.
        let mut rng = ChaCha8Rng::seed_from_u64(12);
        for exponent in [-30, -20, -10, -5, 0, 0, 0, 5, 20] {
            let scale = 10f64.powi(exponent);
            let mut draw = |alive: fn(usize) -> bool| -> Vec<f64> {
                let value =
                    |i: usize| if alive(i) { scale / (1.0 + i as f64).powi(2) } else { 0.0 };
                (0..400).map(|i| value(i) * rng.random_range(1.0..2.0)).collect()
            };
            let (a, b) = (draw(|i| i % 2 == 0), draw(|i| i % 4 < 2));
            let wanted: f64 = a.iter().zip(&b).map(|(a, b)| (a * b).sqrt()).sum();
            let rotated =
                |values: &[f64], rng: &ChaCha8Rng| with_eigenvalues(values, &mut rng.clone());
            let (a, b) = (rotated(&a, &rng), rotated(&b, &rng));
            let found = trace_sqrt_product(&a, &b, 400).unwrap();
            assert!((found / wanted - 1.0).abs() < 1e-10, "{found} for {wanted}");
        }
    }

    #[test]
    fn what_is_small_is_not_lost_beside_what_is_large() {
        // Of equal matrices the product's root is the matrix: its trace, to the last small value.
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let small: Vec<f64> = (0..150).map(|_| rng.random_range(1e-9..2e-9)).collect();
        let a = with_eigenvalues(&[&small[..], &[400.0]].concat(), &mut rng);
        let found = trace_sqrt_product(&a, &a, 151).unwrap() - 400.0;
        let wanted: f64 = small.iter().sum();
        assert!((found / wanted - 1.0).abs() < 1e-4, "{found} for {wanted}");
    }
}
