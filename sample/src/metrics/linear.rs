//! Matrix products on row-major slices, and what follows from them.

use super::eigen::{cholesky, symmetric_eigenvalues};
use crate::error::Result;
use candle_core::{Device, Tensor, WithDType};

/// rows^T rows, `dims` x `dims`.
pub(super) fn gram(rows: &[f64], dims: usize) -> Result<Vec<f64>> {
    let rows = Tensor::from_slice(rows, (rows.len() / dims, dims), &Device::Cpu)?;
    Ok(rows.t()?.matmul(&rows)?.flatten_all()?.to_vec1()?)
}

/// The trace of (A B)^(1/2) for symmetric positive semi-definite A and B.
///
/// With A = L L^T that product has the eigenvalues of the symmetric L^T B L.
pub(super) fn trace_sqrt_product(a: &[f64], b: &[f64], dims: usize) -> Result<f64> {
    let root = cholesky(a.to_vec(), dims);
    let rank = root.len() / dims;
    if rank == 0 {
        return Ok(0.0);
    }
    let half = products(&root, b, dims)?;
    let eigenvalues = symmetric_eigenvalues(products(&half, &root, dims)?, rank)?;
    Ok(eigenvalues.iter().map(|value| value.max(0.0).sqrt()).sum())
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
