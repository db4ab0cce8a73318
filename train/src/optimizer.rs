//! AdamW (Loshchilov and Hutter) and the weights' moving averages, in one pass over a parameter.

use crate::adamw::{CHUNK, Rates, State, span, update_all};
use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use crate::ranks::{Communicator, share_params, shares};
use candle_core::{CpuStorage, Device, Shape, Storage, Tensor};
use lapflow_model::Params;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Moments and moving averages of every parameter, in the parameters' order.
pub struct Optimizer {
    /// Those that this rank holds: all, unless [`Optimizer::shard`] gave others to other ranks.
    slots: Vec<Option<Slot>>,
    /// What each rank holds, where the state is shared out.
    shares: Vec<Range<usize>>,
    /// Names of the averages' groups in a checkpoint.
    averages: Vec<String>,
}

/// One parameter's state, where the parameter is.
enum Slot {
    Cpu(State<Vec<f32>>),
    Device(State<Tensor>),
}

impl Optimizer {
    /// Zero moments; averages, if any, start at the parameters.
    ///
    /// # Errors
    /// When parameters are not f32.
    pub fn new(params: &Params, config: &TrainConfig) -> Result<Self> {
        let slots = params
            .iter()
            .map(|(_, var)| {
                let averages = config.averages().len();
                if !var.device().is_cpu() {
                    let copy = || var.as_tensor().copy();
                    let state = State::new(averages, || var.zeros_like(), copy)?;
                    return Ok(Some(Slot::Device(state)));
                }
                let values = var.flatten_all()?.to_vec1::<f32>()?;
                let zeros = || Ok(vec![0f32; values.len()]);
                Ok(Some(Slot::Cpu(State::new(averages, zeros, || Ok(values.clone()))?)))
            })
            .collect::<Result<_>>()?;
        Ok(Self { slots, shares: Vec::new(), averages: config.average_groups() })
    }

    /// Keeps this rank's share of the state, a part of the parameters, and drops the rest (the first
    /// stage of ZeRO, Rajbhandari et al. 2020). From then on a step moves this rank's parameters,
    /// and [`Optimizer::share`] gives them to the others.
    pub fn shard(&mut self, params: &Params, ranks: &dyn Communicator) {
        if ranks.size() > 1 {
            self.shares = shares(params, ranks.size());
            let own = self.shares[ranks.rank()].clone();
            let others = self.slots.iter_mut().enumerate().filter(|(i, _)| !own.contains(i));
            others.for_each(|(_, slot)| *slot = None);
        }
    }

    /// Gives every rank what the others have moved. Nothing to do where the state is whole.
    ///
    /// # Errors
    /// When another rank is gone.
    pub fn share(&self, params: &Params, ranks: &dyn Communicator) -> Result<()> {
        share_params(ranks, params, &self.shares)
    }

    /// Applies `grads` (one a parameter, absent for zero) scaled by `grad_scale` at the learning
    /// rate of `step`; `updates` counts the updates before this one.
    ///
    /// # Errors
    /// When a gradient is not an f32 tensor of its parameter's size, on its device.
    pub fn step(
        &mut self,
        params: &Params,
        grads: &[Option<Tensor>],
        config: &TrainConfig,
        step: u64,
        updates: u64,
        grad_scale: f64,
    ) -> Result<()> {
        let rates = Rates::new(config, step, updates, grad_scale);
        let vars = || params.iter().map(|(_, var)| var).zip(grads);
        let on_device =
            self.slots.iter().zip(vars()).filter_map(|(slot, (var, grad))| match slot {
                Some(Slot::Device(state)) => Some((state, var, grad.as_ref())),
                _ => None,
            });
        let moved = update_all(on_device, &rates)?;
        for (slot, (var, grad)) in self.slots.iter_mut().zip(vars()) {
            match slot {
                Some(Slot::Cpu(state)) => state.update(var, grad.as_ref(), &rates)?,
                Some(Slot::Device(state)) if !moved => state.update(var, grad.as_ref(), &rates)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// State as named tensors, `adam.m.*`, `adam.v.*`, `ema.*` and `ema@DECAY.*`, of the groups that
    /// begin with `prefix`, on the CPU. All ranks must ask for them; the first gets all, the others none.
    ///
    /// # Errors
    /// When a tensor cannot be made, or another rank is gone.
    pub fn tensors(
        &self,
        params: &Params,
        ranks: &dyn Communicator,
        prefix: &str,
    ) -> Result<Vec<(String, Tensor)>> {
        let (first, whole) = (ranks.rank() == 0, self.shares.is_empty());
        if whole && !first {
            return Ok(Vec::new());
        }
        let groups = ["adam.m", "adam.v"].into_iter();
        let groups: Vec<_> = groups.chain(self.averages.iter().map(String::as_str)).collect();
        let mut tensors = Vec::new();
        for (i, (slot, (name, var))) in self.slots.iter().zip(params.iter()).enumerate() {
            for (place, group) in groups.iter().enumerate().filter(|(_, g)| g.starts_with(prefix)) {
                let mut tensor = match slot {
                    Some(slot) => slot.tensor(place, var.shape())?,
                    // Of the right shape, which is all that a receiver needs.
                    None => var.as_tensor().detach(),
                };
                if let Some(owner) = self.shares.iter().position(|share| share.contains(&i)) {
                    tensor = ranks.broadcast(tensor.copy()?, owner)?;
                }
                if first {
                    tensors.push((format!("{group}.{name}"), tensor.to_device(&Device::Cpu)?));
                }
            }
        }
        Ok(tensors)
    }

    /// Restores what [`Optimizer::tensors`] gave; `group` looks a group up by its prefix.
    ///
    /// # Errors
    /// Names the first parameter whose state is absent or of another size.
    pub fn restore(
        &mut self,
        params: &Params,
        group: impl Fn(&str) -> BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let (first, second) = (group("adam.m"), group("adam.v"));
        let averages: Vec<_> = self.averages.iter().map(|name| group(name)).collect();
        for (slot, (name, var)) in self.slots.iter_mut().zip(params.iter()) {
            let find = |source: &BTreeMap<String, Tensor>| {
                let tensor = source.get(name).filter(|t| t.elem_count() == var.elem_count());
                tensor.cloned().ok_or_else(|| {
                    TrainError::Config(format!("no optimizer state for `{name}` in the checkpoint"))
                })
            };
            let Some(slot) = slot else { continue };
            let groups = [&first, &second].into_iter().chain(&averages);
            slot.fill(groups.map(find).collect::<Result<Vec<_>>>()?)?;
        }
        Ok(())
    }
}

impl Slot {
    /// One of both moments and then the averages, where it is.
    fn tensor(&self, place: usize, shape: &Shape) -> Result<Tensor> {
        let tensor = match self {
            Self::Cpu(state) => {
                let values = state.all().nth(place);
                values.map(|values| Tensor::from_slice(values, shape, &Device::Cpu)).transpose()?
            }
            Self::Device(state) => state.all().nth(place).cloned(),
        };
        tensor.ok_or_else(|| TrainError::Config(format!("no optimizer state {place}")))
    }

    /// Takes both moments, then the averages.
    fn fill(&mut self, tensors: Vec<Tensor>) -> Result<()> {
        match self {
            Self::Cpu(state) => {
                for (values, tensor) in state.all_mut().zip(tensors) {
                    *values = tensor.flatten_all()?.to_vec1()?;
                }
            }
            Self::Device(state) => {
                for (values, tensor) in state.all_mut().zip(tensors) {
                    *values = tensor.to_device(values.device())?;
                }
            }
        }
        Ok(())
    }
}

/// Sum of squares of an f32 tensor: on the CPU in f64 and in an order that no number of threads
/// changes, elsewhere by Candle in f32.
pub(crate) fn square_sum(tensor: &Tensor) -> Result<f64> {
    if !tensor.device().is_cpu() {
        return Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?));
    }
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        return Err(TrainError::Config("gradients must be f32".into()));
    };
    let chunk = |values: &[f32]| {
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let mut lanes = [0f64; 8];
                let mut eights = values.chunks_exact(8);
                for eight in &mut eights {
                    for (lane, &x) in lanes.iter_mut().zip(eight) {
                        *lane += f64::from(x) * f64::from(x);
                    }
                }
                let rest = eights.remainder().iter().map(|&x| f64::from(x) * f64::from(x));
                lanes.iter().sum::<f64>() + rest.sum::<f64>()
            },
        )
    };
    let sums: Vec<f64> = values[span(layout)?].par_chunks(CHUNK).map(chunk).collect();
    Ok(sums.iter().sum())
}
