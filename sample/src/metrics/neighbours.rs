//! Improved precision and recall (Kynkaanniemi et al. 2019), as ADM's evaluator computes them.

use super::linear;
use crate::error::{Result, SampleError};
use rayon::prelude::*;
use serde::Serialize;

/// Neighbours that a manifold's radii reach to.
pub const NEIGHBOURS: usize = 3;

/// Rows whose distances are held at once.
const BLOCK_ROWS: usize = 1024;

/// Precision and recall of samples against a reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PrecisionRecall {
    /// Share of samples within the reference's manifold.
    pub precision: f64,
    /// Share of references within the samples' manifold.
    pub recall: f64,
}

/// Precision and recall of feature rows of `dims` values.
///
/// A set's manifold is the union of balls around its rows that reach to their third nearest
/// neighbour, the row itself not counted; a point on the ball's surface is inside.
///
/// # Errors
/// When either set has not more rows than [`NEIGHBOURS`].
pub fn precision_recall(
    samples: &[f32],
    reference: &[f32],
    dims: usize,
) -> Result<PrecisionRecall> {
    for (name, rows) in [("samples", samples), ("reference", reference)] {
        let count = rows.len() / dims;
        if count <= NEIGHBOURS {
            let reason = format!("{count} images are too few for {NEIGHBOURS} neighbours");
            return Err(SampleError::setting(name, reason));
        }
    }
    let (samples, reference) = linear::centred(samples, reference, dims);
    let covered = |points: &[f32], manifold: &[f32]| -> Result<f64> {
        let radii = radii(manifold, dims)?;
        let mut inside = 0;
        for_blocks(points, manifold, dims, |_, distances| {
            let within = |row: &&[f32]| row.iter().zip(&radii).any(|(d, radius)| d <= radius);
            inside += distances.par_chunks(radii.len()).filter(within).count();
        })?;
        Ok(inside as f64 / (points.len() / dims) as f64)
    };
    Ok(PrecisionRecall {
        precision: covered(&samples, &reference)?,
        recall: covered(&reference, &samples)?,
    })
}

/// Squared distance of each row to its third nearest neighbour.
fn radii(rows: &[f32], dims: usize) -> Result<Vec<f32>> {
    let count = rows.len() / dims;
    let mut radii = Vec::with_capacity(count);
    for_blocks(rows, rows, dims, |first, distances| {
        distances.par_chunks_mut(count).enumerate().for_each(|(i, row)| row[first + i] = 0.0);
        let third = |row: &mut [f32]| *row.select_nth_unstable_by(NEIGHBOURS, f32::total_cmp).1;
        radii.par_extend(distances.par_chunks_mut(count).map(third));
    })?;
    Ok(radii)
}

/// Hands blocks of squared distances from `a` to `b` to `each`, with the index of their first row.
fn for_blocks(
    a: &[f32],
    b: &[f32],
    dims: usize,
    mut each: impl FnMut(usize, &mut [f32]),
) -> Result<()> {
    for (i, block) in a.chunks(BLOCK_ROWS * dims).enumerate() {
        each(i * BLOCK_ROWS, &mut linear::squared_distances(block, b, dims)?);
    }
    Ok(())
}
