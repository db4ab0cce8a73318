//! AdamW (Loshchilov and Hutter) and the weights' moving averages, in one pass over a parameter.

use crate::adamw::{CHUNK, Rates, State, span};
use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use candle_core::{CpuStorage, Device, Shape, Storage, Tensor};
use lapflow_model::Params;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Moments and moving averages of every parameter, in the parameters' order.
pub struct Optimizer {
    slots: Vec<Slot>,
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
                    return Ok(Slot::Device(State::new(averages, || var.zeros_like(), copy)?));
                }
                let values = var.flatten_all()?.to_vec1::<f32>()?;
                let zeros = || Ok(vec![0f32; values.len()]);
                Ok(Slot::Cpu(State::new(averages, zeros, || Ok(values.clone()))?))
            })
            .collect::<Result<_>>()?;
        Ok(Self { slots, averages: config.average_groups() })
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
        for ((slot, (_, var)), grad) in self.slots.iter_mut().zip(params.iter()).zip(grads) {
            match slot {
                Slot::Cpu(state) => state.update(var, grad.as_ref(), &rates)?,
                Slot::Device(state) => state.update(var, grad.as_ref(), &rates)?,
            }
        }
        Ok(())
    }

    /// State as named tensors, `adam.m.*`, `adam.v.*`, `ema.*` and `ema@DECAY.*`.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn tensors(&self, params: &Params) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for (slot, (name, var)) in self.slots.iter().zip(params.iter()) {
            let groups = ["adam.m", "adam.v"].into_iter();
            let groups = groups.chain(self.averages.iter().map(String::as_str));
            for (group, tensor) in groups.zip(slot.tensors(var.shape())?) {
                tensors.push((format!("{group}.{name}"), tensor));
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
            let groups = [&first, &second].into_iter().chain(&averages);
            slot.fill(groups.map(find).collect::<Result<Vec<_>>>()?)?;
        }
        Ok(())
    }
}

impl Slot {
    /// Both moments, then the averages, on the CPU.
    fn tensors(&self, shape: &Shape) -> Result<Vec<Tensor>> {
        let tensors = match self {
            Self::Cpu(state) => {
                let tensor = |values: &Vec<f32>| Tensor::from_slice(values, shape, &Device::Cpu);
                state.all().map(tensor).collect::<candle_core::Result<_>>()
            }
            Self::Device(state) => state.all().map(|t| t.to_device(&Device::Cpu)).collect(),
        };
        Ok(tensors?)
    }

    /// Takes what [`Slot::tensors`] gave.
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
