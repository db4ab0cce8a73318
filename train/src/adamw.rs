//! AdamW's update of one parameter and of its moving averages.

use crate::config::TrainConfig;
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, Var, bail};
use lapflow_model::kernels::{AdamW, Moved};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;

/// Values that a thread updates at a time.
pub(crate) const CHUNK: usize = 1 << 14;

/// Moments and averages of one parameter.
pub(crate) struct State<T> {
    pub(crate) first: T,
    pub(crate) second: T,
    pub(crate) averages: Vec<T>,
}

impl<T> State<T> {
    /// Zero moments, and averages that start at the parameter; each made anew, so that none shares
    /// its values with another.
    pub(crate) fn new(
        averages: usize,
        zeros: impl Fn() -> Result<T>,
        start: impl Fn() -> Result<T>,
    ) -> Result<Self> {
        let averages = (0..averages).map(|_| start()).collect::<Result<_>>()?;
        Ok(Self { first: zeros()?, second: zeros()?, averages })
    }

    /// Both moments, then the averages.
    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        [&self.first, &self.second].into_iter().chain(&self.averages)
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut T> {
        [&mut self.first, &mut self.second].into_iter().chain(&mut self.averages)
    }
}

/// One step's coefficients.
#[derive(Clone, Debug)]
pub(crate) struct Rates {
    adamw: AdamW,
    /// 1 - decay of each average.
    averages: Vec<f32>,
}

impl Rates {
    /// Of `step`, before which there were `updates`, for gradients that are to be scaled first.
    pub(crate) fn new(config: &TrainConfig, step: u64, updates: u64, grad_scale: f64) -> Self {
        let (lr, [beta1, beta2]) = (config.learning_rate(step), config.betas);
        let n = i32::try_from(updates + 1).unwrap_or(i32::MAX);
        // Warm start: the first weights count little from the beginning.
        let warm = (1 + updates) as f64 / (10 + updates) as f64;
        let adamw = AdamW {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            step: (lr / (1.0 - beta1.powi(n))) as f32,
            second: (1.0 / (1.0 - beta2.powi(n)).sqrt()) as f32,
            eps: config.eps as f32,
            keep: (1.0 - lr * config.weight_decay) as f32,
            grad_scale: grad_scale as f32,
        };
        Self {
            adamw,
            averages: config.averages().iter().map(|&d| (1.0 - d.min(warm)) as f32).collect(),
        }
    }

    #[inline(always)]
    fn update(&self, p: &mut f32, m: &mut f32, v: &mut f32, g: f32) {
        let AdamW { beta1, beta2, step, second, eps, keep, .. } = self.adamw;
        *m = beta1 * *m + (1.0 - beta1) * g;
        *v = beta2 * *v + (1.0 - beta2) * g * g;
        *p = *p * keep - step * *m / (v.sqrt() * second + eps);
    }
}

impl State<Vec<f32>> {
    /// Moves a parameter on the CPU by its gradient, or by one of zero, in one pass.
    pub(crate) fn update(&mut self, var: &Var, grad: Option<&Tensor>, rates: &Rates) -> Result<()> {
        let update = Update { state: Mutex::new(self), rates };
        match grad {
            Some(grad) => var.inplace_op2(&grad.contiguous()?, &update),
            None => var.inplace_op1(&update),
        }
    }
}

/// Moves parameters on another device by their gradients in one launch; `false`, and nothing done, where
/// there is no kernel for it.
pub(crate) fn update_all<'a>(
    all: impl Iterator<Item = (&'a State<Tensor>, &'a Var, Option<&'a Tensor>)>,
    rates: &Rates,
) -> Result<bool> {
    let moved = |(state, var, grad): (&'a State<Tensor>, &'a Var, Option<&'a Tensor>)| {
        let grad = grad.map(Tensor::contiguous).transpose()?;
        let moments = [&state.first, &state.second];
        Ok(Moved { param: var.as_tensor(), grad, moments, averages: &state.averages })
    };
    rates.adamw.update(&all.map(moved).collect::<Result<Vec<_>>>()?, &rates.averages)
}

impl State<Tensor> {
    /// The same on any device, by Candle's operations.
    pub(crate) fn update(&mut self, var: &Var, grad: Option<&Tensor>, rates: &Rates) -> Result<()> {
        let AdamW { beta1, beta2, step, second: unbias, eps, keep, grad_scale } = rates.adamw;
        let affine = |x: &Tensor, factor: f32| x.affine(f64::from(factor), 0.0);
        let (mut first, mut second) = (affine(&self.first, beta1)?, affine(&self.second, beta2)?);
        if let Some(grad) = grad {
            let grad = affine(&grad.detach(), grad_scale)?;
            first = (first + affine(&grad, 1.0 - beta1)?)?;
            second = (second + affine(&grad.sqr()?, 1.0 - beta2)?)?;
        }
        let root = second.sqrt()?.affine(f64::from(unbias), f64::from(eps))?;
        let change = (affine(&first, step)? / root)?;
        var.set(&(affine(&var.as_tensor().detach(), keep)? - change)?)?;
        (self.first, self.second) = (first, second);
        for (average, &share) in self.averages.iter_mut().zip(&rates.averages) {
            let step = affine(&(var.as_tensor().detach() - &*average)?, share)?;
            *average = (&*average + step)?;
        }
        Ok(())
    }
}

/// The update of one parameter by its gradient.
struct Update<'a> {
    state: Mutex<&'a mut State<Vec<f32>>>,
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
    ) -> Result<()> {
        let grad = &grad.as_slice::<f32>()?[span(grad_layout)?];
        self.apply(param, layout, Some(grad))
    }
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, param: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.apply(param, layout, None)
    }
}

impl Update<'_> {
    /// The update with `grad`, or with a gradient of zero.
    fn apply(&self, param: &mut CpuStorage, layout: &Layout, grad: Option<&[f32]>) -> Result<()> {
        let CpuStorage::F32(param) = param else { bail!("adamw: f32 only") };
        let param = &mut param[span(layout)?];
        if let Some(grad) = grad.filter(|grad| grad.len() != param.len()) {
            bail!("adamw: {} gradients for {} values", grad.len(), param.len())
        }
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let State { first, second, averages } = &mut **state;
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
                            rates.update(p, m, v, g * rates.adamw.grad_scale);
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

/// Where a contiguous tensor lies in its storage.
pub(crate) fn span(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("adamw: contiguous tensors only"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn both_ways_to_update_agree() -> Result<()> {
        let config = TrainConfig {
            weight_decay: 0.1,
            ema_decays: vec![0.5],
            lr: 1e-2,
            ..TrainConfig::default()
        };
        let shape = (37, 1 + CHUNK / 16);
        let draw = || Tensor::randn(0f32, 1.0, shape, &Device::Cpu);
        let start = draw()?;
        let vars = [Var::from_tensor(&start)?, Var::from_tensor(&start)?];
        let values = start.flatten_all()?.to_vec1::<f32>()?;
        let zeros = || Ok(vec![0f32; values.len()]);
        let mut fused = State::new(2, zeros, || Ok(values.clone()))?;
        let mut plain = State::new(2, || start.zeros_like(), || start.copy())?;
        for step in 0..5 {
            let rates = Rates::new(&config, step, step, 0.7);
            let grad = if step == 3 { None } else { Some(draw()?) };
            fused.update(&vars[0], grad.as_ref(), &rates)?;
            plain.update(&vars[1], grad.as_ref(), &rates)?;
        }
        let close = |a: &Tensor, b: &Tensor| -> Result<()> {
            let error = lapflow_model::kernels::largest(&(a - b)?)?;
            assert!(error < 1e-5, "{error}");
            Ok(())
        };
        close(&vars[0], &vars[1])?;
        for (fused, plain) in fused.all().zip(plain.all()) {
            close(&Tensor::from_slice(fused, shape, &Device::Cpu)?, plain)?;
        }
        Ok(())
    }
}
