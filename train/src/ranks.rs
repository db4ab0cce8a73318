//! The processes that train together, each on its share of a batch, and what they tell each other.

use crate::error::Result;
use candle_core::{Device, Tensor, Var};
use lapflow_model::Params;
use std::ops::Range;

/// The most values that travel at a time: 16 MiB of f32.
const BUCKET: usize = 1 << 22;
/// The fewest times that the values of all parameters travel in, so that some can while others are made.
const BUCKETS: usize = 8;

/// What ranks need of each other. All of them must call the same functions in the same order, with
/// tensors of the same shape, f32 or f64.
pub trait Communicator {
    /// This process among [`Communicator::size`].
    fn rank(&self) -> usize;

    /// Processes that train together.
    fn size(&self) -> usize;

    /// The sum of all ranks' `values`, bit for bit the same on each, perhaps in their memory.
    ///
    /// # Errors
    /// When another rank is gone.
    fn sum(&self, values: Tensor) -> Result<Tensor>;

    /// The `values` of rank `root`, perhaps in the memory of ours; those of the others are not looked at.
    ///
    /// # Errors
    /// When another rank is gone.
    fn broadcast(&self, values: Tensor, root: usize) -> Result<Tensor>;

    /// Ends the processes of all ranks, after an error in this one.
    fn abort(&self) -> !;
}

/// A process by itself.
pub struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, values: Tensor) -> Result<Tensor> {
        Ok(values)
    }

    fn broadcast(&self, values: Tensor, _root: usize) -> Result<Tensor> {
        Ok(values)
    }

    fn abort(&self) -> ! {
        std::process::exit(1)
    }
}

/// [`Communicator::sum`] of a few numbers.
pub(crate) fn sum_numbers(ranks: &dyn Communicator, numbers: &[f64]) -> Result<Vec<f64>> {
    if ranks.size() == 1 {
        return Ok(numbers.to_vec());
    }
    let numbers = Tensor::from_slice(numbers, numbers.len(), &Device::Cpu)?;
    Ok(ranks.sum(numbers)?.to_vec1()?)
}

/// Which parameters each rank holds the optimizer's state of: neighbours, about as many values a rank.
pub(crate) fn shares(params: &Params, ranks: usize) -> Vec<Range<usize>> {
    let sizes: Vec<usize> = params.iter().map(|(_, var)| var.elem_count()).collect();
    let total: usize = sizes.iter().sum();
    let (mut last, mut before) = (0, 0);
    let share = |rank: usize| {
        let first = last;
        // Up to where the middle of a parameter lies beyond this rank's part of the values.
        while last < sizes.len() && (before + sizes[last] / 2) * ranks < (rank + 1) * total {
            before += sizes[last];
            last += 1;
        }
        first..last
    };
    (0..ranks).map(share).collect()
}

/// Gives every rank the parameters that each has moved.
pub(crate) fn share_params(
    ranks: &dyn Communicator,
    params: &Params,
    shares: &[Range<usize>],
) -> Result<()> {
    let vars: Vec<Var> = params.iter().map(|(_, var)| var.clone()).collect();
    for (root, share) in shares.iter().enumerate() {
        for bucket in buckets(&vars, share.clone()) {
            let parts = vars[bucket.clone()].iter().map(|var| Ok(var.as_tensor().detach()));
            let values = ranks.broadcast(joined(parts)?, root)?;
            if root != ranks.rank() {
                let vars = &vars[bucket];
                vars.iter()
                    .zip(split(&values, vars))
                    .try_for_each(|(var, value)| var.set(&value?))?;
            }
        }
    }
    Ok(())
}

/// A copy of all values in a row.
pub(crate) fn joined(
    parts: impl Iterator<Item = candle_core::Result<Tensor>>,
) -> candle_core::Result<Tensor> {
    let parts = parts.map(|part| part?.flatten_all()).collect::<candle_core::Result<Vec<_>>>()?;
    match &parts[..] {
        [part] => part.copy(),
        parts => Tensor::cat(parts, 0),
    }
}

/// What [`joined`] put together, in the shapes of `vars`.
pub(crate) fn split(
    values: &Tensor,
    vars: &[Var],
) -> impl Iterator<Item = candle_core::Result<Tensor>> {
    let mut end = 0;
    vars.iter().map(move |var| {
        end += var.elem_count();
        values.narrow(0, end - var.elem_count(), var.elem_count())?.reshape(var.shape())
    })
}

/// `range` in parts of at most [`BUCKET`] values and a [`BUCKETS`]th of all, or of one parameter that
/// has more.
pub(crate) fn buckets(vars: &[Var], range: Range<usize>) -> Vec<Range<usize>> {
    let total: usize = vars.iter().map(|var| var.elem_count()).sum();
    let most = BUCKET.min(total.div_ceil(BUCKETS));
    let mut buckets = Vec::new();
    let mut first = range.start;
    while first < range.end {
        let (mut last, mut values) = (first + 1, vars[first].elem_count());
        while last < range.end && values + vars[last].elem_count() <= most {
            values += vars[last].elem_count();
            last += 1;
        }
        buckets.push(first..last);
        first = last;
    }
    buckets
}
