//! Multi-scale flow paths (paper eq. 3 to 5; MATH section 2): t = 0 is noise, t = 1 is data.
//!
//! Level k is active on `[S_k, 1]` with `tau = (t - S_k) / (1 - S_k)` and moves along
//! `x_t = alpha_k(t) x_data + sigma(t) x_noise` with velocity `alpha_k' x_data + sigma' x_noise`.

use crate::error::{ModelError, Result};
use crate::pyramid;
use candle_core::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_PI_2;

/// The `[flow]` section: how many levels, when each starts, and along which path it moves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowConfig {
    /// Pyramid levels K; 1 is single-scale latent flow matching (LFM).
    pub levels: usize,
    /// Start times S_k, finest first, the last one 0; empty for the paper's defaults.
    pub starts: Vec<f64>,
    /// Data coefficient alpha.
    pub coupling: Coupling,
    /// Noise coefficient sigma.
    pub sigma: Sigma,
    /// How the levels' noise is drawn.
    pub noise: Noise,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            levels: 2,
            starts: Vec::new(),
            coupling: Coupling::default(),
            sigma: Sigma::default(),
            noise: Noise::default(),
        }
    }
}

/// The data coefficient alpha_k as a function of tau.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coupling {
    /// tau
    #[default]
    Linear,
    /// sin(pi tau / 2)
    Gvp,
}

/// The noise coefficient sigma as a function of t.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sigma {
    /// 1 - t
    #[default]
    Linear,
    /// cos(pi t / 2)
    Gvp,
    /// (1 - t)^2
    Quadratic,
    /// (1 - t)^3
    Cubic,
}

/// The joint distribution of the levels' noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Noise {
    /// The pyramid of one full-size N(0, I) draw, so that the merged noise is white.
    #[default]
    Laplacian,
    /// Independent N(0, I) for every level.
    White,
}

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
        let wrong = |reason: String| ModelError::config("flow", reason);
        let starts = match (config.starts.as_slice(), config.levels) {
            ([], 1) => vec![0.0],
            ([], 2) => vec![0.5, 0.0],
            ([], 3) => vec![0.67, 0.33, 0.0],
            ([], 4) => vec![0.75, 0.5, 0.25, 0.0],
            ([], k) => return Err(wrong(format!("levels = {k} needs explicit starts"))),
            (starts, k) if starts.len() != k => {
                return Err(wrong(format!("{} starts for levels = {k}", starts.len())));
            }
            (starts, _) => starts.to_vec(),
        };
        let falling = starts.windows(2).all(|pair| pair[0] > pair[1]);
        if !falling || starts.last() != Some(&0.0) || starts[0] >= 1.0 {
            return Err(wrong(format!("starts must fall from below 1 to 0, got {starts:?}")));
        }
        Ok(Self { starts, coupling: config.coupling, sigma: config.sigma, noise: config.noise })
    }

    /// Pyramid levels K.
    pub fn levels(&self) -> usize {
        self.starts.len()
    }

    /// The times `[S_k, S_(k-1)]` (to 1 for level 0) in which level `k` is the finest active one.
    pub fn segment(&self, k: usize) -> (f64, f64) {
        (self.starts[k], if k == 0 { 1.0 } else { self.starts[k - 1] })
    }

    /// The times `[S_k, 1]` in which level `k` is active.
    pub fn active(&self, k: usize) -> (f64, f64) {
        (self.starts[k], 1.0)
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
        let mix = |data: &dyn Fn(f64) -> f64, noise: &dyn Fn(f64) -> f64| -> Result<Tensor> {
            let data = per_sample(t, data, x_data)?;
            let noise = per_sample(t, noise, x_noise)?;
            Ok((x_data.broadcast_mul(&data)? + x_noise.broadcast_mul(&noise)?)?)
        };
        let x_t = mix(&|t| self.alpha(k, t), &|t| self.sigma(t))?;
        let velocity = mix(&|t| self.alpha_dot(k, t), &|t| self.sigma_dot(t))?;
        Ok((x_t, velocity))
    }

    /// Noise for every level, finest first: level 0 is `(rngs.len(), c, h, w)` for
    /// `shape = [c, h, w]`, f32. One generator an image, so that an image's noise does not depend
    /// on its batch.
    ///
    /// # Errors
    /// When h or w is not divisible by `2^(K-1)`.
    pub fn draw_noise(
        &self,
        rngs: &mut [ChaCha8Rng],
        shape: [usize; 3],
        device: &Device,
    ) -> Result<Vec<Tensor>> {
        let [c, h, w] = shape;
        let mut white = |scale: usize| -> Result<Tensor> {
            let (h, w) = (h / scale, w / scale);
            let mut values = Vec::with_capacity(rngs.len() * c * h * w);
            for rng in rngs.iter_mut() {
                values.extend((0..c * h * w).map(|_| -> f32 { StandardNormal.sample(rng) }));
            }
            Ok(Tensor::from_vec(values, (rngs.len(), c, h, w), device)?)
        };
        match self.noise {
            Noise::Laplacian => Ok(pyramid::split(&white(1)?, self.levels())?),
            Noise::White => (0..self.levels()).map(|k| white(1 << k)).collect(),
        }
    }
}

/// The generator of one image: independent streams of `seed`, one an `index`.
pub fn image_rng(seed: u64, index: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index);
    rng
}

/// `f(t)` a sample, as `(b, 1, 1, 1)` beside `like`.
fn per_sample(t: &[f64], f: &dyn Fn(f64) -> f64, like: &Tensor) -> Result<Tensor> {
    let values: Vec<f32> = t.iter().map(|&t| f(t) as f32).collect();
    let tensor = Tensor::from_vec(values, (t.len(), 1, 1, 1), like.device())?;
    Ok(tensor.to_dtype(like.dtype())?)
}
