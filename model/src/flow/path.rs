//! LapFlow's paths (paper eq. 3 to 5; MATH section 2): one for every level of the pyramid.
//!
//! Level k is active on `[S_k, 1]` with `tau = (t - S_k) / (1 - S_k)` and moves along
//! `x_t = alpha_k(t) x_data + sigma(t) x_noise` with velocity `alpha_k' x_data + sigma' x_noise`.

use super::config::{Coupling, FlowConfig, Noise, Sigma};
use super::method::{Example, Flow};
use super::noise::{draw_white, white_levels};
use crate::error::Result;
use crate::pyramid;
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use std::f64::consts::FRAC_PI_2;

/// The path of every level, from a validated [`FlowConfig`].
#[derive(Clone, Debug)]
pub struct Path {
    starts: Vec<f64>,
    coupling: Coupling,
    sigma: Sigma,
    noise: Noise,
}

impl Path {
    /// Checks `config` and fills in the default start times.
    ///
    /// # Errors
    /// For no or more than 4 levels without starts, and starts that do not fall strictly to 0.
    pub fn new(config: &FlowConfig) -> Result<Self> {
        let starts = config.starts()?;
        Ok(Self { starts, coupling: config.coupling, sigma: config.sigma, noise: config.noise })
    }

    /// alpha_k(t).
    pub fn alpha(&self, k: usize, t: f64) -> f64 {
        match self.coupling {
            Coupling::Linear => self.tau(k, t),
            Coupling::Gvp => (FRAC_PI_2 * self.tau(k, t)).sin(),
        }
    }

    /// d alpha_k / dt.
    pub fn alpha_dot(&self, k: usize, t: f64) -> f64 {
        let rate = 1.0 / (1.0 - self.starts[k]);
        match self.coupling {
            Coupling::Linear => rate,
            Coupling::Gvp => FRAC_PI_2 * rate * (FRAC_PI_2 * self.tau(k, t)).cos(),
        }
    }

    /// sigma(t), the same for every level.
    pub fn sigma(&self, t: f64) -> f64 {
        match self.sigma {
            Sigma::Linear => 1.0 - t,
            Sigma::Gvp => (FRAC_PI_2 * t).cos(),
            Sigma::Quadratic => (1.0 - t).powi(2),
            Sigma::Cubic => (1.0 - t).powi(3),
        }
    }

    /// d sigma / dt.
    pub fn sigma_dot(&self, t: f64) -> f64 {
        match self.sigma {
            Sigma::Linear => -1.0,
            Sigma::Gvp => -FRAC_PI_2 * (FRAC_PI_2 * t).sin(),
            Sigma::Quadratic => -2.0 * (1.0 - t),
            Sigma::Cubic => -3.0 * (1.0 - t).powi(2),
        }
    }

    fn tau(&self, k: usize, t: f64) -> f64 {
        (t - self.starts[k]) / (1.0 - self.starts[k])
    }

    /// `(x_t, velocity)` of level `k` at one time a sample; tensors are `(b, c, h, w)`.
    ///
    /// # Errors
    /// When the shapes differ or `t` has another length than the batch.
    pub fn interpolate(
        &self,
        k: usize,
        x_data: &Tensor,
        x_noise: &Tensor,
        t: &[f64],
    ) -> Result<(Tensor, Tensor)> {
        let x_t = mix(t, (&|t| self.alpha(k, t), x_data), (&|t| self.sigma(t), x_noise))?;
        let velocity =
            mix(t, (&|t| self.alpha_dot(k, t), x_data), (&|t| self.sigma_dot(t), x_noise))?;
        Ok((x_t, velocity))
    }
}

impl Flow for Path {
    fn levels(&self) -> usize {
        self.starts.len()
    }

    /// The times `[S_k, S_(k-1)]` (to 1 for level 0) in which level `k` is the finest active one.
    fn segment(&self, k: usize) -> (f64, f64) {
        (self.starts[k], if k == 0 { 1.0 } else { self.starts[k - 1] })
    }

    /// The times `[S_k, 1]` in which level `k` is active.
    fn trained(&self, k: usize) -> (f64, f64) {
        (self.starts[k], 1.0)
    }

    fn joint(&self) -> bool {
        true
    }

    /// The pyramid of one draw of full size, or white noise of every level's size.
    fn draw_noise(
        &self,
        rngs: &mut [ChaCha8Rng],
        shape: [usize; 3],
        device: &Device,
    ) -> Result<Vec<Tensor>> {
        match self.noise {
            Noise::Laplacian => {
                Ok(pyramid::split(&draw_white(rngs, shape, device)?, self.levels())?)
            }
            Noise::White => white_levels(rngs, shape, self.levels(), device),
        }
    }

    fn example(&self, k: usize, data: &[Tensor], noise: &[Tensor], t: &[f64]) -> Result<Example> {
        let mut example = Example { times: t.to_vec(), ..Example::default() };
        for (level, (data, noise)) in data.iter().zip(noise).enumerate().skip(k) {
            let (x_t, velocity) = self.interpolate(level, data, noise, t)?;
            example.states.push(x_t);
            example.targets.push(velocity);
        }
        Ok(example)
    }

    fn enter(&self, k: usize, mut state: Vec<Tensor>, noise: &[Tensor]) -> Result<Vec<Tensor>> {
        state.insert(0, (&noise[k] * self.sigma(self.starts[k]))?);
        Ok(state)
    }

    fn image(&self, state: &[Tensor]) -> Result<Tensor> {
        Ok(pyramid::merge(state)?)
    }
}

/// `f(t)` a sample, as `(b, 1, 1, 1)` beside `like`.
pub(super) fn per_sample(t: &[f64], f: &dyn Fn(f64) -> f64, like: &Tensor) -> Result<Tensor> {
    let values: Vec<f32> = t.iter().map(|&t| f(t) as f32).collect();
    let tensor = Tensor::from_vec(values, (t.len(), 1, 1, 1), like.device())?;
    Ok(tensor.to_dtype(like.dtype())?)
}

/// `a(t) x + b(t) y`, one time a sample.
pub(super) fn mix(
    t: &[f64],
    (a, x): (&dyn Fn(f64) -> f64, &Tensor),
    (b, y): (&dyn Fn(f64) -> f64, &Tensor),
) -> Result<Tensor> {
    let (x, y) = (x.broadcast_mul(&per_sample(t, a, x)?)?, y.broadcast_mul(&per_sample(t, b, y)?)?);
    Ok((x + y)?)
}
