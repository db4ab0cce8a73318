//! Eigenvalues of symmetric matrices, row-major in f64.
//!
//! Only values are wanted here, at 2,000 to 4,000 dimensions and once per score, so that plain
//! Householder tridiagonalisation and QL iteration serve (Golub and Van Loan, 8.3); a linear
//! algebra library would cost more to compile than it saves.

use crate::error::{Result, SampleError};
use rayon::prelude::*;

/// QL iterations for one eigenvalue; a few are usual.
const ITERATIONS_MAX: usize = 60;

/// Rows of a trailing block below which threads cost more than they bring.
const PARALLEL_ROWS_MIN: usize = 128;

/// The rows of L^T in A = L L^T (rank x dims), by Cholesky's method with pivoting.
///
/// For positive semi-definite A; it stops where the largest remaining pivot is rounding.
pub(super) fn cholesky(mut a: Vec<f64>, dims: usize) -> Vec<f64> {
    let largest = (0..dims).map(|i| a[i * dims + i]).fold(0.0, f64::max);
    let negligible = largest * dims as f64 * f64::EPSILON;
    let mut used = vec![false; dims];
    let mut rows = Vec::new();
    for _ in 0..dims {
        let diagonal = |i: &usize| a[i * dims + i];
        let free = (0..dims).filter(|i| !used[*i]);
        let Some(pivot) = free.max_by(|i, j| diagonal(i).total_cmp(&diagonal(j))) else { break };
        let value = a[pivot * dims + pivot];
        if value <= negligible {
            break;
        }
        used[pivot] = true;
        let scale = value.sqrt().recip();
        let row: Vec<f64> = a[pivot * dims..(pivot + 1) * dims].iter().map(|v| v * scale).collect();
        for_rows(&mut a, dims, dims, |i, target| {
            if !used[i] {
                target.iter_mut().zip(&row).for_each(|(v, r)| *v -= row[i] * r);
            }
        });
        // What earlier pivots have taken away is zero but for rounding.
        rows.extend((0..dims).map(|j| if used[j] && j != pivot { 0.0 } else { row[j] }));
    }
    rows
}

/// The eigenvalues of a symmetric matrix, in no order.
///
/// # Errors
/// When the iteration does not converge, which only values that are not finite bring about.
pub(super) fn symmetric_eigenvalues(a: Vec<f64>, dims: usize) -> Result<Vec<f64>> {
    let (diagonal, off_diagonal) = tridiagonal(a, dims);
    tridiagonal_eigenvalues(diagonal, off_diagonal)
}

/// Householder reflections from the last row up: the diagonal, and off-diagonal i between i, i+1.
fn tridiagonal(mut a: Vec<f64>, dims: usize) -> (Vec<f64>, Vec<f64>) {
    let mut off_diagonal = vec![0.0; dims.saturating_sub(1)];
    for last in (1..dims).rev() {
        // Row `last` left of the diagonal becomes (0, .., 0, alpha).
        let mut v = a[last * dims..last * dims + last].to_vec();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let alpha = if v[last - 1] > 0.0 { -norm } else { norm };
        off_diagonal[last - 1] = alpha;
        v[last - 1] -= alpha;
        let squared: f64 = v.iter().map(|x| x * x).sum();
        if squared == 0.0 {
            continue;
        }
        let beta = 2.0 / squared;
        // A <- H A H with H = 1 - beta v v^T:  A - v w^T - w v^T,  w = beta A v - (gamma) v.
        let mut w = vec![0.0; last];
        let product = |i: usize| -> f64 {
            beta * a[i * dims..i * dims + last].iter().zip(&v).map(|(x, y)| x * y).sum::<f64>()
        };
        if last < PARALLEL_ROWS_MIN {
            w.iter_mut().enumerate().for_each(|(i, w)| *w = product(i));
        } else {
            w.par_iter_mut().enumerate().for_each(|(i, w)| *w = product(i));
        }
        let gamma = 0.5 * beta * w.iter().zip(&v).map(|(x, y)| x * y).sum::<f64>();
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= gamma * v);
        for_rows(&mut a, dims, last, |i, row| {
            for (j, value) in row[..last].iter_mut().enumerate() {
                *value -= v[i] * w[j] + w[i] * v[j];
            }
        });
    }
    ((0..dims).map(|i| a[i * dims + i]).collect(), off_diagonal)
}

/// Runs `each` on the first `count` rows.
fn for_rows(a: &mut [f64], dims: usize, count: usize, each: impl Fn(usize, &mut [f64]) + Sync) {
    let rows = &mut a[..count * dims];
    if count < PARALLEL_ROWS_MIN {
        rows.chunks_mut(dims).enumerate().for_each(|(i, row)| each(i, row));
    } else {
        rows.par_chunks_mut(dims).enumerate().for_each(|(i, row)| each(i, row));
    }
}

/// QL iteration with implicit shifts.
fn tridiagonal_eigenvalues(mut d: Vec<f64>, mut e: Vec<f64>) -> Result<Vec<f64>> {
    let dims = d.len();
    e.push(0.0);
    for l in 0..dims {
        for iteration in 0.. {
            let small = |m: &usize| e[*m].abs() <= f64::EPSILON * (d[*m].abs() + d[*m + 1].abs());
            let m = (l..dims - 1).find(small).unwrap_or(dims - 1);
            if m == l {
                break;
            }
            if iteration == ITERATIONS_MAX {
                return Err(SampleError::setting("covariance", "has no eigenvalues to be found"));
            }
            ql_sweep(&mut d, &mut e, l, m);
        }
    }
    Ok(d)
}

/// One sweep over the unreduced block l..=m.
fn ql_sweep(d: &mut [f64], e: &mut [f64], l: usize, m: usize) {
    let half = (d[l + 1] - d[l]) / (2.0 * e[l]);
    let root = half.hypot(1.0);
    let mut g = d[m] - d[l] + e[l] / (half + root.copysign(half));
    let (mut sine, mut cosine, mut shift) = (1.0, 1.0, 0.0);
    for i in (l..m).rev() {
        let (f, b) = (sine * e[i], cosine * e[i]);
        let r = f.hypot(g);
        e[i + 1] = r;
        if r == 0.0 {
            // The block falls apart here; the next sweep works on its parts.
            d[i + 1] -= shift;
            e[m] = 0.0;
            return;
        }
        (sine, cosine) = (f / r, g / r);
        let before = d[i + 1] - shift;
        let turned = (d[i] - before) * sine + 2.0 * cosine * b;
        shift = sine * turned;
        d[i + 1] = before + shift;
        g = cosine * turned - b;
    }
    d[l] -= shift;
    e[l] = g;
    e[m] = 0.0;
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
    fn known_eigenvalues_are_found() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        for dims in [1, 2, 3, 17, 150, 200] {
            let mut values: Vec<f64> = (0..dims)
                .map(|i| if i % 5 == 0 { 0.0 } else { rng.random_range(-3.0..9.0) })
                .collect();
            let mut found =
                symmetric_eigenvalues(with_eigenvalues(&values, &mut rng), dims).unwrap();
            values.sort_by(f64::total_cmp);
            found.sort_by(f64::total_cmp);
            for (a, b) in values.iter().zip(&found) {
                assert!((a - b).abs() < 1e-12 * dims as f64, "{dims}: {a} {b}");
            }
        }
    }

    #[test]
    fn cholesky_restores_singular_matrices() {
        let mut rng = ChaCha8Rng::seed_from_u64(10);
        for (dims, rank) in [(4, 4), (30, 11), (140, 60), (5, 0)] {
            let value = |i: usize| if i < rank { 0.5 + i as f64 } else { 0.0 };
            let values: Vec<f64> = (0..dims).map(value).collect();
            let a = with_eigenvalues(&values, &mut rng);
            let rows = cholesky(a.clone(), dims);
            assert_eq!(rows.len(), rank * dims);
            for i in 0..dims {
                for j in 0..dims {
                    let sum: f64 = rows.chunks(dims).map(|row| row[i] * row[j]).sum();
                    assert!((sum - a[i * dims + j]).abs() < 1e-10, "{dims} {i} {j}");
                }
            }
        }
    }
}
