//! Arithmetic on states: lists of tensors whose first axis is the batch.

use crate::error::{Result, SampleError};
use candle_core::{D, DType, Tensor};

/// The rows of a state.
pub(super) fn batch(state: &[Tensor]) -> Result<usize> {
    let first = state.first().ok_or_else(|| SampleError::setting("state", "has no levels"))?;
    let rows = first.dim(0)?;
    for level in state {
        if level.dim(0)? != rows {
            return Err(SampleError::setting("state", "levels differ in batch size"));
        }
        if !matches!(level.dtype(), DType::F32 | DType::F64) {
            return Err(SampleError::setting("state", "must be f32 or f64"));
        }
    }
    Ok(rows)
}

/// The step size of a Runge-Kutta step.
#[derive(Clone, Copy)]
pub(super) enum Steps<'a> {
    /// One for all samples; it goes into the weights, as torchdiffeq does it.
    Same(f64),
    /// One for each sample.
    Each(&'a [f64]),
}

impl Steps<'_> {
    /// h sum_j weights_j slopes_j.
    pub(super) fn increment(self, weights: &[f64], slopes: &[Vec<Tensor>]) -> Result<Vec<Tensor>> {
        match self {
            Steps::Same(h) if slopes[0][0].dtype() == DType::F32 => {
                let single = |w: &f64| f64::from(*w as f32 * h as f32);
                weighted(&weights.iter().map(single).collect::<Vec<_>>(), slopes)
            }
            Steps::Same(h) => weighted(&weights.iter().map(|w| w * h).collect::<Vec<_>>(), slopes),
            Steps::Each(steps) => scale(&weighted(weights, slopes)?, steps),
        }
    }

    /// y + h sum_j weights_j slopes_j.
    pub(super) fn advance(
        self,
        y: &[Tensor],
        weights: &[f64],
        slopes: &[Vec<Tensor>],
    ) -> Result<Vec<Tensor>> {
        let increment = self.increment(weights, slopes)?;
        y.iter().zip(&increment).map(|(y, dy)| Ok((y + dy)?)).collect()
    }
}

/// sum_j weights_j slopes_j; a zero weight skips its slope.
fn weighted(weights: &[f64], slopes: &[Vec<Tensor>]) -> Result<Vec<Tensor>> {
    let mut terms = weights.iter().zip(slopes).filter(|(weight, _)| **weight != 0.0);
    let (weight, slope) = terms.next().expect("a Runge-Kutta row has a weight");
    let mut sum = slope.iter().map(|k| k * *weight).collect::<candle_core::Result<Vec<_>>>()?;
    for (weight, slope) in terms {
        for (total, k) in sum.iter_mut().zip(slope) {
            *total = (&*total + (k * *weight)?)?;
        }
    }
    Ok(sum)
}

/// a - b.
pub(super) fn difference(a: &[Tensor], b: &[Tensor]) -> Result<Vec<Tensor>> {
    a.iter().zip(b).map(|(a, b)| Ok((a - b)?)).collect()
}

/// Each sample's rows times its own factor.
fn scale(state: &[Tensor], factors: &[f64]) -> Result<Vec<Tensor>> {
    state.iter().map(|level| Ok(level.broadcast_mul(&column(factors, level)?)?)).collect()
}

/// One number a sample, shaped to broadcast over `like`: (B, 1, .., 1).
fn column(values: &[f64], like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    shape[0] = values.len();
    Ok(Tensor::new(values, like.device())?.to_dtype(like.dtype())?.reshape(shape)?)
}

/// The given rows, as a new state; all of them in order are the state itself.
pub(super) fn select(state: &[Tensor], rows: &[usize]) -> Result<Vec<Tensor>> {
    if rows.len() == batch(state)? && rows.iter().enumerate().all(|(i, row)| i == *row) {
        return Ok(state.to_vec());
    }
    let index: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
    let index = Tensor::new(index, state[0].device())?;
    state.iter().map(|level| Ok(level.index_select(&index, 0)?)).collect()
}

/// `old` with row `rows[i]` replaced by row i of `new` wherever `keep[i]`.
pub(super) fn replace(
    old: &[Tensor],
    new: &[Tensor],
    rows: &[usize],
    keep: &[bool],
) -> Result<Vec<Tensor>> {
    let total = batch(old)?;
    let mut source: Vec<usize> = (0..total).collect();
    for (i, row) in rows.iter().enumerate().filter(|(i, _)| keep[*i]) {
        source[*row] = total + i;
    }
    if source.iter().enumerate().all(|(i, row)| total + i == *row) {
        return Ok(new.to_vec());
    }
    let both = old.iter().zip(new).map(|(old, new)| Tensor::cat(&[old, new], 0));
    select(&both.collect::<candle_core::Result<Vec<_>>>()?, &source)
}

/// |value| / (atol + rtol max(|a|, |b|)), elementwise.
pub(super) fn relative(
    value: &[Tensor],
    (rtol, atol): (f64, f64),
    a: &[Tensor],
    b: &[Tensor],
) -> Result<Vec<Tensor>> {
    let mut ratios = Vec::with_capacity(value.len());
    for ((value, a), b) in value.iter().zip(a).zip(b) {
        let tolerance = a.abs()?.maximum(&b.abs()?)?.affine(rtol, atol)?;
        ratios.push((value / tolerance)?);
    }
    Ok(ratios)
}

/// Root mean square of each sample's part of each level, the largest level's for each sample.
pub(super) fn norms(state: &[Tensor]) -> Result<Vec<f64>> {
    let mut largest = vec![0f64; batch(state)?];
    for level in state {
        for (norm, mean) in largest.iter_mut().zip(mean_squares(level)?) {
            *norm = nan_max(*norm, mean.sqrt());
        }
    }
    Ok(largest)
}

/// Root mean square of each level over the whole batch, the largest level's.
pub(super) fn batch_norm(state: &[Tensor]) -> Result<f64> {
    let mut largest = 0f64;
    for level in state {
        let means = mean_squares(level)?;
        let mean = means.iter().sum::<f64>() / means.len() as f64;
        largest = nan_max(largest, mean.sqrt());
    }
    Ok(largest)
}

fn mean_squares(level: &Tensor) -> Result<Vec<f64>> {
    let flat = level.reshape((level.dim(0)?, ()))?.to_dtype(DType::F64)?;
    Ok(flat.sqr()?.mean(D::Minus1)?.to_vec1()?)
}

/// The larger; not a number where either is, so that a lost state is never overlooked.
fn nan_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}
