//! Reverse steps of a diffusion, for networks trained by DiT's own objective: DDIM and DDPM.

use crate::error::Result;
use crate::segments::{Sampled, Segment, SegmentCost};
use crate::solver::{Query, Velocity};
use candle_core::Tensor;
use lapflow_model::flow::{Diffusion, draw_white};
use rand_chacha::ChaCha8Rng;

/// Which reverse step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Deterministic (Song et al. 2021 with eta = 0).
    Ddim,
    /// Ancestral, with the learned variance where the network has one (Ho et al. 2020).
    Ddpm,
}

/// A sampler over some of the schedule's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReverseSampler {
    /// Which step.
    pub kind: Kind,
    /// How many of the 1000 steps, evenly spread.
    pub steps: usize,
}

impl ReverseSampler {
    /// Samples from `noise`, one level. `rngs`, one an image, drew it and go on from there. `show`
    /// sees the state at the first step past each of `times` (0 noise, 1 data).
    ///
    /// # Errors
    /// When the number of steps cannot be, or the network or `show` fails.
    pub fn sample(
        &self,
        noise: &[Tensor],
        rngs: &mut [ChaCha8Rng],
        network: &mut Velocity,
        times: &[f64],
        mut show: impl FnMut(f64, &[Tensor]) -> Result<()>,
    ) -> Result<Sampled> {
        let mut x = noise[0].clone();
        let (rows, c, h, w) = x.dims4()?;
        let samples: Vec<usize> = (0..rows).collect();
        let mut cost = SegmentCost::none(Segment { level: 0, start: 0.0, end: 1.0 }, rows);
        let mut pending: Vec<f64> = times.to_vec();
        pending.sort_by(f64::total_cmp);
        for step in Diffusion::new().reverse(self.steps)? {
            let told = vec![step.time(); rows];
            let levels = [x.clone()];
            let query = Query { levels: &levels, times: &told, samples: &samples };
            let answer = network(&query)?.remove(0).detach();
            cost.add(&vec![1; rows], &vec![0; rows], 1);
            x = match self.kind {
                Kind::Ddim => step.ddim(&x, &answer)?,
                Kind::Ddpm => {
                    let white = draw_white(rngs, [c, h, w], x.device())?;
                    step.ddpm(&x, &answer, &white)?
                }
            };
            let now = if step.is_last() { 1.0 } else { 1.0 - step.time() };
            while pending.first().is_some_and(|t| *t <= now) {
                show(pending.remove(0), std::slice::from_ref(&x))?;
            }
        }
        Ok(Sampled { levels: vec![x], costs: vec![cost] })
    }
}
