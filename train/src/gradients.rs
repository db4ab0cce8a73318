//! The gradients of a step: added up over the parts of a batch, and over the ranks while the
//! backward pass of the last part goes on.

use crate::error::Result;
use crate::ranks::{Communicator, buckets, joined, split};
use candle_core::{Tensor, TensorId, Var};
use lapflow_model::Params;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;

/// Parameters as their gradients come: the last block's, the one's before it, at last those of no block.
/// The same on every rank, as the order of their exchanges must be.
pub(crate) struct Arrival {
    vars: Vec<Var>,
    /// Place among [`Params`] of each.
    places: Vec<usize>,
    by_id: HashMap<TensorId, usize>,
    /// Parameters of one block.
    block: usize,
    /// What ranks exchange together; nothing of one rank.
    buckets: Vec<Range<usize>>,
}

impl Arrival {
    /// The order of `params`, exchanged by so many ranks.
    pub fn new(params: &Params, ranks: usize) -> Self {
        let mut arrival: Vec<_> = params
            .iter()
            .enumerate()
            .map(|(place, (name, var))| (block_of(name), place, var.clone()))
            .collect();
        arrival.sort_by_key(|(block, ..)| (block.is_none(), Reverse(*block)));
        let last = arrival.first().and_then(|(block, ..)| *block);
        let block = arrival.iter().filter(|(block, ..)| block.is_some() && *block == last).count();
        let places = arrival.iter().map(|(_, place, _)| *place).collect();
        let vars: Vec<Var> = arrival.into_iter().map(|(.., var)| var).collect();
        let by_id = vars.iter().enumerate().map(|(i, var)| (var.id(), i)).collect();
        let buckets = if ranks > 1 { buckets(&vars, 0..vars.len()) } else { Vec::new() };
        Self { vars, places, by_id, block, buckets }
    }
}

/// Gradients in the making.
pub(crate) struct Gathering<'a> {
    ranks: &'a dyn Communicator,
    arrival: &'a Arrival,
    /// In the order of arrival.
    sums: Vec<Option<Tensor>>,
    /// Buckets that the ranks have exchanged.
    exchanged: usize,
}

impl<'a> Gathering<'a> {
    /// No gradients yet.
    pub fn new(ranks: &'a dyn Communicator, arrival: &'a Arrival) -> Self {
        Self { ranks, arrival, sums: vec![None; arrival.vars.len()], exchanged: 0 }
    }

    /// Adds gradients of parameters, by their tensors' ids.
    pub fn add(&mut self, gradients: impl IntoIterator<Item = (TensorId, Tensor)>) -> Result<()> {
        for (id, gradient) in gradients {
            let Some(&i) = self.arrival.by_id.get(&id) else { continue };
            self.sums[i] = Some(match self.sums[i].take() {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            });
        }
        Ok(())
    }

    /// Nothing will be added any more to the last `count` blocks: sums them over the ranks.
    pub fn blocks_done(&mut self, count: usize) -> Result<()> {
        self.exchange(count * self.arrival.block)
    }

    /// The sums of all ranks, in the parameters' order; absent for zero.
    pub fn finish(mut self) -> Result<Vec<Option<Tensor>>> {
        self.exchange(self.arrival.vars.len())?;
        let mut sums = vec![None; self.sums.len()];
        for (&place, sum) in self.arrival.places.iter().zip(self.sums) {
            sums[place] = sum;
        }
        Ok(sums)
    }

    /// Sums the buckets that end before `end` over the ranks; a gradient that is absent counts as zero.
    fn exchange(&mut self, end: usize) -> Result<()> {
        let arrival = self.arrival;
        let ready = arrival.buckets[self.exchanged..].iter().take_while(|bucket| bucket.end <= end);
        for bucket in ready {
            let vars = &arrival.vars[bucket.clone()];
            let parts = self.sums[bucket.clone()].iter_mut().zip(vars);
            let parts = parts.map(|(sum, var)| sum.take().map_or_else(|| var.zeros_like(), Ok));
            let sums = self.ranks.sum(joined(parts)?)?;
            for (sum, all) in self.sums[bucket.clone()].iter_mut().zip(split(&sums, vars)) {
                *sum = Some(all?);
            }
            self.exchanged += 1;
        }
        Ok(())
    }
}

/// The block that the parameter `name` belongs to.
fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use lapflow_model::Init;
    use std::cell::Cell;

    const BLOCKS: usize = 16;
    const WIDTH: usize = 8;

    /// Two ranks that have the same gradients; counts the values it has summed.
    struct Twins(Cell<usize>);

    impl Communicator for Twins {
        fn rank(&self) -> usize {
            0
        }

        fn size(&self) -> usize {
            2
        }

        fn sum(&self, values: Tensor) -> Result<Tensor> {
            self.0.set(self.0.get() + values.elem_count());
            Ok((values * 2.0)?)
        }

        fn broadcast(&self, values: Tensor, _root: usize) -> Result<Tensor> {
            Ok(values)
        }

        fn abort(&self) -> ! {
            panic!("aborted")
        }
    }

    fn params() -> Params {
        let build = |scope: &lapflow_model::Scope| {
            scope.get("embed", [WIDTH], Init::Zeros)?;
            for i in 0..BLOCKS {
                let block = scope.at("blocks").at(i);
                block.get("weight", [WIDTH, WIDTH], Init::Zeros)?;
                block.get("bias", [WIDTH], Init::Zeros)?;
            }
            scope.get("head", [3], Init::Zeros)
        };
        Params::init(0, DType::F32, &Device::Cpu, build).unwrap().1
    }

    #[test]
    fn blocks_that_are_done_travel_before_the_backward_pass_ends() {
        let (params, twins) = (params(), Twins(Cell::new(0)));
        let block = WIDTH * (WIDTH + 1);
        let gradient = |var: &Var, value: f32| Tensor::full(value, var.shape(), var.device());
        let arrival = Arrival::new(&params, 2);
        let mut grads = Gathering::new(&twins, &arrival);
        for i in (0..BLOCKS).rev() {
            let name = |part: &str| format!("blocks.{i}.{part}");
            // Untied parts of a level that is not trained have no gradient.
            for part in ["weight", "bias"].iter().take(1 + i % 2) {
                let var = params.get(&name(part)).unwrap();
                grads.add([(var.id(), gradient(var, i as f32).unwrap())]).unwrap();
            }
            let before = twins.0.get();
            grads.blocks_done(BLOCKS - i).unwrap();
            let done = (BLOCKS - i) * block;
            assert!(twins.0.get() <= done, "block {i}: not all of these are done");
            assert!(before < twins.0.get() || done - before < params.count() / 8 + block);
        }
        assert!(2 * twins.0.get() > params.count(), "{} travelled early", twins.0.get());
        let head = params.get("head").unwrap();
        grads.add([(head.id(), gradient(head, 3.0).unwrap())]).unwrap();
        let sums = grads.finish().unwrap();
        assert_eq!(twins.0.get(), params.count());
        for ((name, var), sum) in params.iter().zip(sums) {
            let sum = sum.unwrap();
            let expected = match (block_of(name), name) {
                (Some(i), name) if name.ends_with("weight") || i % 2 == 1 => 2.0 * i as f32,
                (None, "head") => 6.0,
                _ => 0.0,
            };
            assert_eq!(sum.dims(), var.dims());
            let zero = (sum - f64::from(expected)).unwrap().abs().unwrap().sum_all().unwrap();
            assert_eq!(zero.to_scalar::<f32>().unwrap(), 0.0, "{name}");
        }
    }
}
