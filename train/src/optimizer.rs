//! AdamW (Loshchilov and Hutter) and the weights' moving averages, in one pass over a parameter.

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use candle_core::{CpuStorage, Device, InplaceOp1, InplaceOp2, Layout, Storage, Tensor};
use lapflow_model::Params;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

/// Values that a thread updates at a time.
const CHUNK: usize = 1 << 14;

/// Moments and moving averages of every parameter, in the parameters' order.
pub struct Optimizer {
    slots: Vec<Slot>,
    /// Names of the averages' groups in a checkpoint.
    averages: Vec<String>,
}

/// One parameter's state.
struct Slot {
    first: Vec<f32>,
    second: Vec<f32>,
    averages: Vec<Vec<f32>>,
}

/// One step's coefficients.
#[derive(Clone, Debug)]
struct Rates {
    beta1: f32,
    beta2: f32,
    /// lr / (1 - beta1^n)
    step: f32,
    /// 1 / sqrt(1 - beta2^n)
    second: f32,
    eps: f32,
    /// 1 - lr * weight_decay
    keep: f32,
    grad_scale: f32,
    /// 1 - decay of each average.
    averages: Vec<f32>,
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
                let values = var.flatten_all()?.to_vec1::<f32>()?;
                let zeros = vec![0f32; values.len()];
                let averages = vec![values; config.averages().len()];
                Ok(Slot { first: zeros.clone(), second: zeros, averages })
            })
            .collect::<Result<_>>()?;
        Ok(Self { slots, averages: config.average_groups() })
    }

    /// Applies `grads` (one a parameter, absent for zero) scaled by `grad_scale` at the learning
    /// rate of `step`; `updates` counts the updates before this one.
    ///
    /// # Errors
    /// When a gradient is not a contiguous f32 CPU tensor of its parameter's size.
    pub fn step(
        &mut self,
        params: &Params,
        grads: &[Option<Tensor>],
        config: &TrainConfig,
        step: u64,
        updates: u64,
        grad_scale: f64,
    ) -> Result<()> {
        let (lr, [beta1, beta2]) = (config.learning_rate(step), config.betas);
        let n = i32::try_from(updates + 1).unwrap_or(i32::MAX);
        // Warm start: the first weights count little from the beginning.
        let warm = (1 + updates) as f64 / (10 + updates) as f64;
        let rates = Rates {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            step: (lr / (1.0 - beta1.powi(n))) as f32,
            second: (1.0 / (1.0 - beta2.powi(n)).sqrt()) as f32,
            eps: config.eps as f32,
            keep: (1.0 - lr * config.weight_decay) as f32,
            grad_scale: grad_scale as f32,
            averages: config.averages().iter().map(|&d| (1.0 - d.min(warm)) as f32).collect(),
        };
        for ((slot, (_, var)), grad) in self.slots.iter_mut().zip(params.iter()).zip(grads) {
            let update = Update { slot: Mutex::new(slot), rates: &rates };
            match grad {
                Some(grad) => var.inplace_op2(&grad.contiguous()?, &update)?,
                None => var.inplace_op1(&update)?,
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
            let averages = self.averages.iter().map(String::as_str).zip(&slot.averages);
            let moments = [("adam.m", &slot.first), ("adam.v", &slot.second)];
            for (group, values) in moments.into_iter().chain(averages) {
                let tensor = Tensor::from_slice(values, var.shape(), &Device::Cpu)?;
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
        for (slot, (name, _)) in self.slots.iter_mut().zip(params.iter()) {
            let fill = |target: &mut Vec<f32>, source: &BTreeMap<String, Tensor>| -> Result<()> {
                let tensor = source.get(name).filter(|t| t.elem_count() == target.len());
                let tensor = tensor.ok_or_else(|| {
                    TrainError::Config(format!("no optimizer state for `{name}` in the checkpoint"))
                })?;
                *target = tensor.flatten_all()?.to_vec1()?;
                Ok(())
            };
            fill(&mut slot.first, &first)?;
            fill(&mut slot.second, &second)?;
            for (average, source) in slot.averages.iter_mut().zip(&averages) {
                fill(average, source)?;
            }
        }
        Ok(())
    }
}

/// The update of one parameter by its gradient.
struct Update<'a> {
    slot: Mutex<&'a mut Slot>,
    rates: &'a Rates,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        param: &mut CpuStorage,
        layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> candle_core::Result<()> {
        let grad = &grad.as_slice::<f32>()?[span(grad_layout)?];
        self.apply(param, layout, Some(grad))
    }
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, param: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        self.apply(param, layout, None)
    }
}

impl Update<'_> {
    /// The update with `grad`, or with a gradient of zero.
    fn apply(
        &self,
        param: &mut CpuStorage,
        layout: &Layout,
        grad: Option<&[f32]>,
    ) -> candle_core::Result<()> {
        let CpuStorage::F32(param) = param else { candle_core::bail!("adamw: f32 only") };
        let param = &mut param[span(layout)?];
        if let Some(grad) = grad.filter(|grad| grad.len() != param.len()) {
            candle_core::bail!("adamw: {} gradients for {} values", grad.len(), param.len())
        }
        let mut slot = self.slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Slot { first, second, averages } = &mut **slot;
        let mut averages: Vec<_> = averages.iter_mut().map(|a| a.chunks_mut(CHUNK)).collect();
        let moments = first.chunks_mut(CHUNK).zip(second.chunks_mut(CHUNK));
        let chunks: Vec<Chunk> = param
            .chunks_mut(CHUNK)
            .zip(moments)
            .enumerate()
            .map(|(i, (param, (first, second)))| {
                let grad = grad.map(|grad| &grad[i * CHUNK..][..param.len()]);
                let averages = averages.iter_mut().filter_map(Iterator::next).collect();
                Chunk { param, grad, first, second, averages }
            })
            .collect();
        chunks.into_par_iter().for_each(|chunk| chunk.update(self.rates));
        Ok(())
    }
}

/// The part of a parameter and of its state that one thread updates while it is in the cache.
struct Chunk<'a> {
    param: &'a mut [f32],
    grad: Option<&'a [f32]>,
    first: &'a mut [f32],
    second: &'a mut [f32],
    averages: Vec<&'a mut [f32]>,
}

impl Chunk<'_> {
    fn update(self, rates: &Rates) {
        let Self { param, grad, first, second, averages } = self;
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let moments = first.iter_mut().zip(second.iter_mut());
                match grad {
                    Some(grad) => {
                        for ((p, (m, v)), g) in param.iter_mut().zip(moments).zip(grad) {
                            rates.update(p, m, v, g * rates.grad_scale);
                        }
                    }
                    None => {
                        for (p, (m, v)) in param.iter_mut().zip(moments) {
                            rates.update(p, m, v, 0.0);
                        }
                    }
                }
                for (average, share) in averages.into_iter().zip(&rates.averages) {
                    for (a, p) in average.iter_mut().zip(param.iter()) {
                        *a += share * (p - *a);
                    }
                }
            },
        );
    }
}

impl Rates {
    #[inline(always)]
    fn update(&self, p: &mut f32, m: &mut f32, v: &mut f32, g: f32) {
        *m = self.beta1 * *m + (1.0 - self.beta1) * g;
        *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
        *p = *p * self.keep - self.step * *m / (v.sqrt() * self.second + self.eps);
    }
}

fn span(layout: &Layout) -> candle_core::Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("adamw: contiguous tensors only"),
    }
}

/// Sum of squares of a contiguous f32 CPU tensor, in f64 and in an order that no number of threads
/// changes.
pub(crate) fn square_sum(tensor: &Tensor) -> Result<f64> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        return Err(TrainError::Config("gradients must be f32 on the CPU".into()));
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
