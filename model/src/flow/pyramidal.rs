//! Pyramidal Flow (Jin et al. 2025; MATH section 6): a flow a resolution and a jump between them.
//!
//! Stage k goes from `start = s eps + (1 - s) Up(z_(k+1))` to `end = e eps + (1 - e) z_k`, where
//! z_k is the image at level k's size and eps the same unit white noise in both: only one stage is
//! trained at a time, so that drawing eps at its size is the same as halving one full-size noise
//! with its variance kept. The network learns `end - start`.

use super::FlowConfig;
use super::method::{Example, Flow};
use super::path::mix;
use crate::error::Result;
use crate::pyramid;
use candle_core::Tensor;

/// 1/3, with which the jump's noise has its negative correlation at the limit.
const GAMMA: f64 = 1.0 / 3.0;

/// The stages' noise levels, jumps and shares of time.
#[derive(Clone, Debug)]
pub struct Pyramidal {
    stages: Vec<Stage>,
}

/// One stage; the finest is the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Noise level s at which it starts.
    pub noise_start: f64,
    /// Noise level e at which it ends.
    pub noise_end: f64,
    /// Factor of the upsampled state in the jump into this stage.
    pub alpha: f64,
    /// Factor of the noise in the jump into this stage.
    pub beta: f64,
    /// The times in which it runs: a share of [0, 1] proportional to s - e.
    pub segment: (f64, f64),
}

impl Pyramidal {
    /// The stages between the configured start times: stage k begins where sigma = 1 - S_k.
    ///
    /// # Errors
    /// When the start times do not fall to 0.
    pub fn new(config: &FlowConfig) -> Result<Self> {
        let starts = config.starts()?;
        let mut stages: Vec<Stage> = starts
            .iter()
            .enumerate()
            .map(|(k, &g)| {
                let noise_end = 1.0 - if k == 0 { 1.0 } else { starts[k - 1] };
                let alpha = 1.0 / ((1.0 + 1.0 / GAMMA).sqrt() * (1.0 - g) + g);
                let jump = (alpha, alpha * (1.0 - g) / GAMMA.sqrt(), 1.0 - alpha * g);
                let (alpha, beta, noise_start) = if g == 0.0 { (0.0, 1.0, 1.0) } else { jump };
                Stage { noise_start, noise_end, alpha, beta, segment: (0.0, 1.0) }
            })
            .collect();
        let total: f64 = stages.iter().map(Stage::fall).sum();
        let mut time = 0.0;
        for stage in stages.iter_mut().rev() {
            let end = time + stage.fall() / total;
            stage.segment = (time, end);
            time = end;
        }
        stages[0].segment.1 = 1.0;
        Ok(Self { stages })
    }

    /// The stages, finest first.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Noise of covariance `(1 + gamma) I - gamma 1 1^T` in every 2x2 block, from unit white noise:
    /// singular at gamma = 1/3, where it is the noise without its block means, rescaled.
    ///
    /// # Errors
    /// When a side is odd.
    pub fn jump_noise(white: &Tensor) -> Result<Tensor> {
        let fresh = pyramid::add_up(white, &pyramid::down(white)?, -1.0)?;
        Ok((fresh * (1.0 + GAMMA).sqrt())?)
    }
}

impl Stage {
    fn fall(&self) -> f64 {
        self.noise_start - self.noise_end
    }

    /// How far through the stage `t` is, 0 to 1.
    fn progress(&self, t: f64) -> f64 {
        (t - self.segment.0) / (self.segment.1 - self.segment.0)
    }
}

impl Flow for Pyramidal {
    fn levels(&self) -> usize {
        self.stages.len()
    }

    fn segment(&self, k: usize) -> (f64, f64) {
        self.stages[k].segment
    }

    fn example(&self, k: usize, data: &[Tensor], noise: &[Tensor], t: &[f64]) -> Result<Example> {
        let (stage, eps) = (&self.stages[k], &noise[k]);
        let z = pyramid::merge(&data[k..])?;
        let start = match k + 1 < data.len() {
            true => {
                let coarse = pyramid::merge(&data[k + 1..])?;
                pyramid::add_up(&(eps * stage.noise_start)?, &coarse, 1.0 - stage.noise_start)?
            }
            false => eps.clone(),
        };
        let end = ((eps * stage.noise_end)? + (z * (1.0 - stage.noise_end))?)?;
        let state = mix(t, (&|t| 1.0 - stage.progress(t), &start), (&|t| stage.progress(t), &end))?;
        Ok(Example { states: vec![state], targets: vec![(end - start)?], times: t.to_vec() })
    }

    fn enter(&self, k: usize, state: Vec<Tensor>, noise: &[Tensor]) -> Result<Vec<Tensor>> {
        let Some(coarse) = state.first() else { return Ok(vec![noise[k].clone()]) };
        let stage = &self.stages[k];
        let jump = (Self::jump_noise(&noise[k])? * stage.beta)?;
        Ok(vec![pyramid::add_up(&jump, coarse, stage.alpha)?])
    }

    fn rate(&self, k: usize) -> f64 {
        let (start, end) = self.stages[k].segment;
        1.0 / (end - start)
    }
}
