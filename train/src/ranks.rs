//! The processes that train together, each on its share of a batch, and what they sum.

use crate::error::Result;
use candle_core::{Device, Tensor};
use lapflow_model::Params;

/// Values that are summed over the ranks at a time: 16 MiB of f32.
const BUCKET: usize = 1 << 22;

/// What ranks need of each other. All of them must call the same functions in the same order.
pub trait Communicator {
    /// This process among [`Communicator::size`].
    fn rank(&self) -> usize;

    /// Processes that train together.
    fn size(&self) -> usize;

    /// Replaces `values` by their sums over all ranks, bit for bit the same on each.
    ///
    /// # Errors
    /// When another rank is gone.
    fn sum(&self, values: &mut [f32]) -> Result<()>;

    /// [`Communicator::sum`] of few values in f64.
    ///
    /// # Errors
    /// When another rank is gone.
    fn sum_f64(&self, values: &mut [f64]) -> Result<()>;

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

    fn sum(&self, _values: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn sum_f64(&self, _values: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn abort(&self) -> ! {
        std::process::exit(1)
    }
}

/// Sums the gradients of all ranks in buckets; one that is absent here counts as zero.
///
/// # Errors
/// When another rank is gone.
pub(crate) fn sum_gradients(
    ranks: &dyn Communicator,
    params: &Params,
    grads: &mut [Option<Tensor>],
) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let sizes: Vec<usize> = params.iter().map(|(_, var)| var.elem_count()).collect();
    let vars: Vec<_> = params.iter().map(|(_, var)| var).collect();
    let mut first = 0;
    while first < grads.len() {
        let (mut last, mut bucket) = (first, Vec::with_capacity(BUCKET.max(sizes[first])));
        while last < grads.len() && (last == first || bucket.len() + sizes[last] <= BUCKET) {
            match &grads[last] {
                Some(grad) => bucket.extend(grad.flatten_all()?.to_vec1::<f32>()?),
                None => bucket.resize(bucket.len() + sizes[last], 0.0),
            }
            last += 1;
        }
        ranks.sum(&mut bucket)?;
        let mut rest = bucket.as_slice();
        for i in first..last {
            let (values, others) = rest.split_at(sizes[i]);
            let grad = Tensor::from_slice(values, vars[i].shape(), &Device::Cpu)?;
            grads[i] = Some(grad.to_device(vars[i].device())?);
            rest = others;
        }
        first = last;
    }
    Ok(())
}
