//! Mean and covariance of features, streamed in f64.

use super::linear;
use crate::error::{Result, SampleError};

/// Rows that are gathered before they join the running scatter matrix.
const BLOCK_ROWS: usize = 256;

/// Running count, mean and scatter of feature rows.
///
/// Rows join in blocks by the pairwise update of Chan, Golub and LeVeque, which loses nothing to
/// cancellation; statistics of shards merge by the same update.
#[derive(Clone, Debug)]
pub struct Statistics {
    count: usize,
    mean: Vec<f64>,
    /// Sum of (x - mean)(x - mean)^T, row-major.
    scatter: Vec<f64>,
    pending: Vec<f64>,
}

/// A Gaussian: what Frechet distances compare.
#[derive(Clone, Debug, PartialEq)]
pub struct Gaussian {
    /// Mean, D values.
    pub mean: Vec<f64>,
    /// Covariance with N - 1 in the denominator, D x D, row-major.
    pub covariance: Vec<f64>,
}

impl Statistics {
    /// No rows yet, of `dims` features each.
    pub fn new(dims: usize) -> Self {
        let (mean, scatter) = (vec![0.0; dims], vec![0.0; dims * dims]);
        Self { count: 0, mean, scatter, pending: Vec::new() }
    }

    /// Features in a row.
    pub fn dims(&self) -> usize {
        self.mean.len()
    }

    /// Rows so far.
    pub fn count(&self) -> usize {
        self.count + self.pending.len() / self.dims()
    }

    /// Adds rows of features, row-major.
    ///
    /// # Errors
    /// For a feature that is not finite, and for values that do not divide into rows.
    pub fn push(&mut self, rows: &[f32]) -> Result<()> {
        let dims = self.dims();
        if !rows.len().is_multiple_of(dims) {
            let reason = format!("{} values are not rows of {dims}", rows.len());
            return Err(SampleError::setting("features", reason));
        }
        if let Some(at) = rows.iter().position(|v| !v.is_finite()) {
            let (row, column) = (self.count() + at / dims, at % dims);
            let reason = format!("feature {column} of image {row} is {}", rows[at]);
            return Err(SampleError::setting("features", reason));
        }
        for row in rows.chunks(dims) {
            self.pending.extend(row.iter().map(|v| f64::from(*v)));
            if self.pending.len() == BLOCK_ROWS * dims {
                self.settle()?;
            }
        }
        Ok(())
    }

    /// Joins the rows of `other`, as if they had been pushed here.
    ///
    /// # Errors
    /// When the numbers of features differ.
    pub fn merge(&mut self, other: &Statistics) -> Result<()> {
        if other.dims() != self.dims() {
            let reason = format!("{} dimensions, not {}", other.dims(), self.dims());
            return Err(SampleError::setting("features", reason));
        }
        let mut other = other.clone();
        other.settle()?;
        self.settle()?;
        self.join(other.count, &other.mean, &other.scatter);
        Ok(())
    }

    /// The Gaussian of these rows.
    ///
    /// # Errors
    /// For fewer than two rows.
    pub fn gaussian(&self) -> Result<Gaussian> {
        let mut all = self.clone();
        all.settle()?;
        if all.count < 2 {
            let reason = format!("{} images have no covariance", all.count);
            return Err(SampleError::setting("features", reason));
        }
        let scale = 1.0 / (all.count - 1) as f64;
        let covariance = all.scatter.iter().map(|v| v * scale).collect();
        Ok(Gaussian { mean: all.mean, covariance })
    }

    fn settle(&mut self) -> Result<()> {
        let dims = self.dims();
        let count = self.pending.len() / dims;
        if count == 0 {
            return Ok(());
        }
        let mut rows = std::mem::take(&mut self.pending);
        let mut mean = vec![0.0; dims];
        for row in rows.chunks(dims) {
            mean.iter_mut().zip(row).for_each(|(mean, v)| *mean += v / count as f64);
        }
        for row in rows.chunks_mut(dims) {
            row.iter_mut().zip(&mean).for_each(|(v, mean)| *v -= mean);
        }
        let scatter = linear::gram(&rows, dims)?;
        self.join(count, &mean, &scatter);
        Ok(())
    }

    fn join(&mut self, count: usize, mean: &[f64], scatter: &[f64]) {
        let dims = self.dims();
        let total = self.count + count;
        if count == 0 {
            return;
        }
        let change: Vec<f64> = mean.iter().zip(&self.mean).map(|(a, b)| a - b).collect();
        let weight = self.count as f64 * count as f64 / total as f64;
        for (i, row) in self.scatter.chunks_mut(dims).enumerate() {
            let added = &scatter[i * dims..(i + 1) * dims];
            for (j, value) in row.iter_mut().enumerate() {
                *value += added[j] + weight * change[i] * change[j];
            }
        }
        let share = count as f64 / total as f64;
        self.mean.iter_mut().zip(&change).for_each(|(mean, change)| *mean += share * change);
        self.count = total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn rows(rng: &mut ChaCha8Rng, count: usize, dims: usize) -> Vec<f32> {
        let value = |i: usize| 1000.0 + (i % dims) as f32;
        (0..count * dims).map(|i| value(i) + rng.random_range(-0.5..0.5f32)).collect()
    }

    #[test]
    fn shards_merge_to_the_whole() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let (dims, count) = (5, 700);
        let rows = rows(&mut rng, count, dims);
        let mut whole = Statistics::new(dims);
        whole.push(&rows).unwrap();
        let mut merged = Statistics::new(dims);
        for shard in rows.chunks(dims * rng.random_range(1..300)) {
            let mut part = Statistics::new(dims);
            part.push(shard).unwrap();
            merged.merge(&part).unwrap();
        }
        assert_eq!(merged.count(), count);
        let (whole, merged) = (whole.gaussian().unwrap(), merged.gaussian().unwrap());
        for (a, b) in whole.mean.iter().zip(&merged.mean) {
            assert!((a - b).abs() < 1e-11 * a.abs(), "{a} {b}");
        }
        for (i, (a, b)) in whole.covariance.iter().zip(&merged.covariance).enumerate() {
            assert!((a - b).abs() < 1e-13, "{a} {b}");
            if i % (dims + 1) == 0 {
                assert!((a - 1.0 / 12.0).abs() < 0.02, "{a}");
            }
        }
    }

    #[test]
    fn bad_features_are_named() {
        let mut statistics = Statistics::new(3);
        statistics.push(&[1.0; 6]).unwrap();
        let message = |rows: &[f32]| statistics.clone().push(rows).unwrap_err().to_string();
        assert!(message(&[0.0, f32::NAN, 0.0]).contains("feature 1 of image 2 is NaN"));
        assert!(message(&[0.0; 4]).contains("rows of 3"));
        assert!(Statistics::new(3).gaussian().unwrap_err().to_string().contains("0 images"));
    }
}
