//! The Kernel Inception Distance (Binkowski et al. 2018).

use super::linear;
use crate::error::{Result, SampleError};
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How subsets are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KidConfig {
    /// How many subsets; torch-fidelity draws 100.
    pub subsets: usize,
    /// Rows in a subset, at most; torch-fidelity draws 1000.
    pub subset_rows: usize,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for KidConfig {
    fn default() -> Self {
        Self { subsets: 100, subset_rows: 1000, seed: 0 }
    }
}

/// The squared maximum mean discrepancy over subsets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Kid {
    /// Mean over the subsets.
    pub mean: f64,
    /// Standard deviation over the subsets (N in the denominator).
    pub std: f64,
}

/// KID of feature rows of `dims` values, with the kernel (x y / dims + 1)^3.
///
/// # Errors
/// When a set has fewer than two rows.
pub fn kid(samples: &[f32], reference: &[f32], dims: usize, config: &KidConfig) -> Result<Kid> {
    let (n, m) = (samples.len() / dims, reference.len() / dims);
    let rows = config.subset_rows.min(n).min(m);
    if rows < 2 {
        return Err(SampleError::setting("kid", format!("{rows} images are too few for a subset")));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut scores = Vec::with_capacity(config.subsets);
    for _ in 0..config.subsets {
        let a = gather(samples, dims, &index::sample(&mut rng, n, rows));
        let b = gather(reference, dims, &index::sample(&mut rng, m, rows));
        scores.push(mmd2(&a, &b, dims, rows)?);
    }
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let spread: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    Ok(Kid { mean, std: (spread / scores.len() as f64).sqrt() })
}

/// The unbiased estimate of the squared maximum mean discrepancy of two sets of `rows` rows.
fn mmd2(a: &[f64], b: &[f64], dims: usize, rows: usize) -> Result<f64> {
    let kernel = |x: &[f64], y: &[f64]| -> Result<Vec<f64>> {
        let mut products = linear::products(x, y, dims)?;
        products.iter_mut().for_each(|v| *v = (*v / dims as f64 + 1.0).powi(3));
        Ok(products)
    };
    let within = |x: &[f64]| -> Result<f64> {
        let k = kernel(x, x)?;
        let trace: f64 = k.iter().step_by(rows + 1).sum();
        Ok((k.iter().sum::<f64>() - trace) / (rows * (rows - 1)) as f64)
    };
    let between = kernel(a, b)?.iter().sum::<f64>() / (rows * rows) as f64;
    Ok(within(a)? + within(b)? - 2.0 * between)
}

fn gather(rows: &[f32], dims: usize, picked: &index::IndexVec) -> Vec<f64> {
    let row = |i: usize| rows[i * dims..(i + 1) * dims].iter().map(|v| f64::from(*v));
    picked.iter().flat_map(row).collect()
}
