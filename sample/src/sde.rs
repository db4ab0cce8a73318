//! Stochastic sampling: Euler-Maruyama on the reverse SDE that shares the flow's marginals (SiT,
//! Ma et al. 2024, equations 4 and 5).
//!
//! For each level dx = [v + w(t) C s] dt + sqrt(2 w(t)) dW with dW ~ N(0, C dt), C being the
//! covariance of the level's noise and s the score. Increments drawn like the noise itself, as a
//! pyramid, have that covariance, and C s = -E[noise | x_t] / sigma needs no inverse of it.

use crate::error::{Result, SampleError};
use crate::segments::{Sampled, SegmentCost, check_noise, segments};
use crate::solver::{Grid, Query, Velocity};
use candle_core::Tensor;
use lapflow_model::flow::{Flow, Path};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// The diffusion coefficient w(t), by SiT's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Diffusion {
    /// 1
    Constant,
    /// sigma(t), SiT's choice for its best figures.
    #[default]
    Sigma,
    /// 1 - t
    Linear,
    /// (cos(pi t) + 1)^2 / 4
    Decreasing,
    /// sin(pi t)^2
    IncreasingDecreasing,
    /// sigma^2 alpha' / alpha - sigma sigma', the score-based model's own. Refused: it is infinite
    /// where a level starts, as alpha_k is 0 there.
    Sbdm,
}

/// Settings of the stochastic sampler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sde {
    /// Euler-Maruyama's time grid.
    pub grid: Grid,
    /// The diffusion coefficient.
    pub diffusion: Diffusion,
    /// Its factor; 0 is Euler's method.
    pub norm: f64,
    /// Length of the last step, which follows the drift alone: SiT takes 0.04.
    pub last_step: f64,
}

impl Default for Sde {
    /// SiT's setting: 250 steps, the last of 0.04.
    fn default() -> Self {
        let grid = Grid::Uniform { steps: 250 };
        Self { grid, diffusion: Diffusion::default(), norm: 1.0, last_step: 0.04 }
    }
}

impl Diffusion {
    /// w(t) on `path`.
    pub fn coefficient(self, path: &Path, t: f64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Sigma => path.sigma(t),
            Self::Linear => 1.0 - t,
            Self::Decreasing => 0.25 * ((PI * t).cos() + 1.0).powi(2),
            Self::IncreasingDecreasing => (PI * t).sin().powi(2),
            Self::Sbdm => f64::INFINITY,
        }
    }
}

impl Sde {
    /// Samples a pyramid as [`crate::sample_pyramid`] does; `rngs`, one an image, are those that
    /// drew `noise`, and go on from there.
    ///
    /// # Errors
    /// For a negative factor, a last step outside [0, 1), a bad grid or other noise than the
    /// path's, and when the velocity fails.
    pub fn sample(
        &self,
        path: &Path,
        noise: &[Tensor],
        rngs: &mut [ChaCha8Rng],
        velocity: &mut Velocity,
    ) -> Result<Sampled> {
        self.validate()?;
        check_noise(path, noise)?;
        let (_, channels, height, width) = noise[0].dims4()?;
        let samples: Vec<usize> = (0..rngs.len()).collect();
        let mut levels: Vec<Tensor> = Vec::new();
        let mut costs = Vec::new();
        for segment in segments(path) {
            levels = path.enter(segment.level, levels, noise)?;
            let mut cost = SegmentCost::none(segment, samples.len());
            for pair in self.times(segment.start, segment.end)?.windows(2) {
                let (t, h) = (pair[0], pair[1] - pair[0]);
                let times = vec![t; samples.len()];
                let v = velocity(&Query { levels: &levels, times: &times, samples: &samples })?;
                cost.add(&vec![1; samples.len()], &vec![0; samples.len()], 1);
                let w = self.norm * self.diffusion.coefficient(path, t);
                let last = pair[1] == 1.0;
                let kicks = if last {
                    None
                } else {
                    let shape = [channels, height, width];
                    Some(path.draw_noise(rngs, shape, noise[0].device())?)
                };
                for (i, x) in levels.iter_mut().enumerate() {
                    let k = segment.level + i;
                    let score = noise_score(path, k, t, x, &v[i])?;
                    let drift = (&v[i] + (score * w)?)?;
                    let mut next = (&*x + (drift * h)?)?;
                    if let Some(kicks) = &kicks {
                        next = (next + (&kicks[k] * (2.0 * w * h).sqrt())?)?;
                    }
                    *x = next.detach();
                }
            }
            costs.push(cost);
        }
        Ok(Sampled { levels, costs })
    }

    /// Checks what does not depend on the noise.
    ///
    /// # Errors
    /// Names the setting that cannot be.
    pub fn validate(&self) -> Result<()> {
        if self.diffusion == Diffusion::Sbdm {
            let reason = "sbdm is not defined on these paths, it is infinite where a level starts: \
                          take constant, sigma, linear, decreasing or increasing-decreasing";
            return Err(SampleError::setting("sample.diffusion", reason));
        }
        self.grid.times(0.0, 1.0)?;
        if !(self.norm >= 0.0 && self.norm.is_finite()) {
            let reason = format!("{} is negative or not finite", self.norm);
            return Err(SampleError::setting("sample.diffusion_norm", reason));
        }
        if !(0.0..1.0).contains(&self.last_step) {
            let reason = format!("{} is outside [0, 1)", self.last_step);
            return Err(SampleError::setting("sample.last_step", reason));
        }
        Ok(())
    }

    /// The grid inside a segment; in the one that ends at 1, the last step has its own length.
    fn times(&self, start: f64, end: f64) -> Result<Vec<f64>> {
        let mut times = self.grid.times(start, end)?;
        let last = 1.0 - self.last_step;
        if end == 1.0 && self.last_step > 0.0 && last > start {
            times.retain(|t| *t < last);
            times.extend([last, 1.0]);
        }
        Ok(times)
    }
}

/// C times the score of level k at time t, from its velocity: -E[x_noise | x_t] / sigma.
///
/// With x = alpha d + sigma n and v = alpha' d + sigma' n, the noise is
/// n = (alpha' x - alpha v) / (alpha' sigma - alpha sigma').
fn noise_score(path: &Path, k: usize, t: f64, x: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (alpha, alpha_dot) = (path.alpha(k, t), path.alpha_dot(k, t));
    let (sigma, sigma_dot) = (path.sigma(t), path.sigma_dot(t));
    let scale = -1.0 / (sigma * (alpha_dot * sigma - alpha * sigma_dot));
    Ok(((x * (alpha_dot * scale))? - (v * (alpha * scale))?)?)
}
