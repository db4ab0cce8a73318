//! AdamW (Loshchilov and Hutter) and the weights' moving average, in one pass over a parameter.

use crate::config::TrainConfig;
use crate::error::{Result, TrainError};
use candle_core::{CpuStorage, Device, InplaceOp2, Layout, Tensor};
use lapflow_model::Params;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Values that a thread updates at a time.
const CHUNK: usize = 1 << 14;

/// Moments and moving averages of every parameter, in the parameters' order.
pub struct Optimizer {
    slots: Vec<Slot>,
}

/// One parameter's state.
struct Slot {
    first: Vec<f32>,
    second: Vec<f32>,
    /// Empty when no average is kept.
    ema: Vec<f32>,
}

/// One step's coefficients.
#[derive(Clone, Copy, Debug)]
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
    ema_decay: f32,
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
                let ema = if config.ema_decay > 0.0 { values } else { Vec::new() };
                Ok(Slot { first: zeros.clone(), second: zeros, ema })
            })
            .collect::<Result<_>>()?;
        Ok(Self { slots })
    }

    /// Applies `grads` (one a parameter, absent for zero) scaled by `grad_scale`; `step` counts
    /// from 0.
    ///
    /// # Errors
    /// When a gradient is not a contiguous f32 CPU tensor of its parameter's size.
    pub fn step(
        &mut self,
        params: &Params,
        grads: &[Option<Tensor>],
        config: &TrainConfig,
        step: u64,
        grad_scale: f64,
    ) -> Result<()> {
        let (lr, [beta1, beta2]) = (config.learning_rate(step), config.betas);
        let n = (step + 1) as i32;
        let rates = Rates {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            step: (lr / (1.0 - beta1.powi(n))) as f32,
            second: (1.0 / (1.0 - beta2.powi(n)).sqrt()) as f32,
            eps: config.eps as f32,
            keep: (1.0 - lr * config.weight_decay) as f32,
            grad_scale: grad_scale as f32,
            ema_decay: config.ema_decay_at(step) as f32,
        };
        for ((slot, (_, var)), grad) in self.slots.iter_mut().zip(params.iter()).zip(grads) {
            let grad = match grad {
                Some(grad) => grad.contiguous()?,
                None => var.zeros_like()?,
            };
            var.inplace_op2(&grad, &Update { slot: Mutex::new(slot), rates })?;
        }
        Ok(())
    }

    /// State as named tensors, `adam.m.*`, `adam.v.*` and `ema.*`.
    ///
    /// # Errors
    /// When a tensor cannot be made.
    pub fn tensors(&self, params: &Params) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        for (slot, (name, var)) in self.slots.iter().zip(params.iter()) {
            let groups = [("adam.m", &slot.first), ("adam.v", &slot.second), ("ema", &slot.ema)];
            for (group, values) in groups.iter().filter(|(_, values)| !values.is_empty()) {
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
        let (first, second, ema) = (group("adam.m"), group("adam.v"), group("ema"));
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
            if !slot.ema.is_empty() {
                fill(&mut slot.ema, &ema)?;
            }
        }
        Ok(())
    }
}

/// The update of one parameter by its gradient.
struct Update<'a> {
    slot: Mutex<&'a mut Slot>,
    rates: Rates,
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
        let CpuStorage::F32(param) = param else { candle_core::bail!("adamw: f32 only") };
        let span = |layout: &Layout| match layout.contiguous_offsets() {
            Some((start, end)) => Ok(start..end),
            None => candle_core::bail!("adamw: contiguous tensors only"),
        };
        let param = &mut param[span(layout)?];
        let grad = &grad.as_slice::<f32>()?[span(grad_layout)?];
        if param.len() != grad.len() {
            candle_core::bail!("adamw: {} gradients for {} values", grad.len(), param.len())
        }
        let mut slot = self.slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Slot { first, second, ema } = &mut **slot;
        let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
        let rates = self.rates;
        param.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK)).zip(moments).for_each(
            |((param, grad), (first, second))| {
                for (((p, g), m), v) in param.iter_mut().zip(grad).zip(first).zip(second) {
                    let g = g * rates.grad_scale;
                    *m = rates.beta1 * *m + (1.0 - rates.beta1) * g;
                    *v = rates.beta2 * *v + (1.0 - rates.beta2) * g * g;
                    *p = *p * rates.keep - rates.step * *m / (v.sqrt() * rates.second + rates.eps);
                }
            },
        );
        ema.par_chunks_mut(CHUNK).zip(param.par_chunks(CHUNK)).for_each(|(ema, param)| {
            for (e, p) in ema.iter_mut().zip(param) {
                *e += (1.0 - rates.ema_decay) * (p - *e);
            }
        });
        Ok(())
    }
}
